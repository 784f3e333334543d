//! Loads the rows with which a group's actor starts.
//!
//! The group needs all of them: if one is unreadable, it cannot work.

use std::collections::VecDeque;

use greenroom_core::{Compaction, KNOWN_SESSIONS_MAX, Run, RunPhase, SessionId, Task};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    RowsError,
    damage::{Damage, group_row, keyed, required},
    digests, permissions,
    rows::{self, key, seq},
};
use crate::storage::{GroupNo, GroupSummary, StoredGroup};

/// Reads the group, whose owner now has this epoch.
pub fn load(conn: &Connection, group: GroupNo, epoch: u64) -> Result<StoredGroup, RowsError> {
    let sql = format!(
        "SELECT {} FROM groups JOIN heads USING (no) WHERE groups.no = ?",
        rows::GROUP_COLUMNS
    );
    let row = conn.prepare_cached(&sql)?.query_row([group], group_row(rows::summary));
    let (_, summary) = required(conn, row)?;
    // Each half has the condition of its index.
    let sql = format!(
        "SELECT {columns} FROM tasks \
         WHERE key >= ?1 AND key < ?2 AND state IN ('queued', 'retrying') \
         AND claimed_at IS NULL UNION ALL SELECT {columns} FROM tasks \
         WHERE key >> 36 = ?3 AND claimed_at IS NOT NULL \
         AND state IN ('queued', 'retrying', 'running') \
         ORDER BY key",
        columns = rows::TASK_COLUMNS
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let range = [key(group, 0), key(group + 1, 0), i64::from(group)];
    let found = statement.query_map(range, keyed("task", rows::task))?;
    let tasks: Vec<Task> = found.map(|task| required(conn, task)).collect::<Result<_, _>>()?;
    let open = summary.queue_length + u64::from(summary.current_task.is_some());
    let claimed = tasks.iter().find(|task| task.has_slot()).map(|task| task.id);
    let found = tasks.len() as u64;
    if open != found {
        // An unknown state hides a task from the indexes.
        if claimed != summary.current_task || !all_read(conn, group, &summary, found)? {
            let what = format!("tasks: {open} are open by the group's own row, {found} by theirs");
            return Err(damaged(conn, group, what));
        }
        let waiting = tasks.iter().filter(|task| !task.has_slot()).count();
        conn.prepare_cached("UPDATE heads SET queue_length = ? WHERE no = ?")?
            .execute(params![waiting as i64, group])?;
    } else if claimed != summary.current_task {
        let what = "the group: current_task is not the task that is claimed by its row".into();
        return Err(damaged(conn, group, what));
    }
    if let Some(what) = contradiction(conn, group, &summary)? {
        return Err(damaged(conn, group, what));
    }
    let run = summary.current_run.map(|id| Run::new(id, RunPhase::Stopping));
    let current = tasks.iter().find(|task| task.has_slot());
    let compactions = compactions(conn, group, current)?;
    let permissions = permissions::pending(conn, group)?;
    let known_sessions = known_sessions(conn, group)?;
    let digests = digests::load(conn, group, summary.state.last_seq)?;
    let state = summary.state;
    Ok(StoredGroup { epoch, state, tasks, run, compactions, permissions, known_sessions, digests })
}

/// Explains a group without a row in `heads` that has a valid epoch. Returns `None` if the group
/// does not exist, and an error if its row is unreadable.
pub fn missing<T>(conn: &Connection, group: GroupNo) -> Result<Option<T>, RowsError> {
    let sql = format!(
        "SELECT {} FROM groups LEFT JOIN heads USING (no) WHERE groups.no = ?",
        rows::GROUP_COLUMNS
    );
    let found = conn.query_row(&sql, [group], group_row(rows::summary)).optional()?;
    let Some(row) = found else { return Ok(None) };
    required(conn, Ok(row))?;
    Err(damaged(conn, group, "the group: epoch cannot be read: it is out of range".into()))
}

/// Whether the `found` open tasks are all that there are, whatever the group's own row counts: no
/// task is hidden or missing.
fn all_read(
    conn: &Connection,
    group: GroupNo,
    summary: &GroupSummary,
    found: u64,
) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*), \
               count(*) FILTER (WHERE state NOT IN ('queued', 'retrying', 'running', 'completed', \
               'failed', 'cancelled', 'interrupted', 'skipped') \
               OR state = 'running' AND claimed_at IS NULL), \
               count(*) FILTER (WHERE state = 'failed' AND ended_at IS NULL) \
               FROM tasks WHERE key >= ? AND key < ?";
    let counted = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let range = params![key(group, 0), key(group + 1, 0)];
    let (all, hidden, dropped): (i64, i64, i64) = conn.query_row(sql, range, counted)?;
    // Earlier versions failed a task with an unreadable row, and did not correct the count.
    let open = summary.queue_length + u64::from(summary.current_task.is_some());
    let is_dropped = open.checked_sub(found).is_some_and(|less| less <= dropped as u64);
    // Retention deletes ended tasks: then a missing row proves nothing.
    Ok(hidden == 0 && (is_dropped || all as u64 == summary.state.tasks))
}

fn damaged(conn: &Connection, group: GroupNo, what: String) -> RowsError {
    Damage { group, what }.named(conn, true).into()
}

/// Returns how the group's own row contradicts others, if it does so that the next commit would be
/// refused. The group would otherwise be reloaded for ever.
fn contradiction(
    conn: &Connection,
    group: GroupNo,
    summary: &GroupSummary,
) -> rusqlite::Result<Option<String>> {
    let state = &summary.state;
    let range = params![key(group, 0), key(group + 1, 0)];
    let last = conn
        .prepare_cached(
            "SELECT key + max(count, 1) - 1 FROM blocks WHERE key >= ? AND key < ? \
             ORDER BY key DESC LIMIT 1",
        )?
        .query_row(range, |row| row.get::<_, i64>(0))
        .optional()?;
    if let Some(last) = last.filter(|last| key(group, state.last_seq) < *last) {
        let last = last.saturating_sub(key(group, 0));
        return Ok(Some(format!(
            "the group: last_seq is {}, the log goes to {last}",
            state.last_seq
        )));
    }
    let last = conn
        .prepare_cached("SELECT max(key) FROM tasks WHERE key >= ? AND key < ?")?
        .query_row(range, |row| row.get::<_, Option<i64>>(0))?;
    if let Some(last) = last.filter(|last| key(group, state.tasks) < *last) {
        let last = seq(last);
        return Ok(Some(format!("the group: tasks is {}, there is a task {last}", state.tasks)));
    }
    let living = conn
        .prepare_cached("SELECT id FROM runs WHERE no = ? AND ended_at IS NULL")?
        .query_row([group], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    if living.as_deref() != summary.current_run.as_ref().map(|run| &run.0.as_bytes()[..]) {
        return Ok(Some("the group: current_run is not the run that is alive by its row".into()));
    }
    let last: Option<u32> = conn
        .prepare_cached("SELECT max(segment) FROM segments WHERE no = ?")?
        .query_row([group], |row| row.get(0))?;
    if last.is_some_and(|last| state.segment < last) {
        return Ok(Some(format!(
            "the group: segment is {}, the last row is {last:?}",
            state.segment
        )));
    }
    Ok(None)
}

/// Reads the compaction whose end no detector reported, and those of the running attempt of
/// `current` that were completed.
fn compactions(
    conn: &Connection,
    group: GroupNo,
    current: Option<&Task>,
) -> Result<Vec<Compaction>, RowsError> {
    let sql = format!(
        "SELECT {columns} FROM compactions WHERE key >> 36 = ?1 AND status = 'in_progress' \
         UNION ALL SELECT {columns} FROM compactions \
         WHERE key >= ?2 AND key < ?3 AND status = 'completed' ORDER BY key",
        columns = rows::COMPACTION_COLUMNS
    );
    let start = current.and_then(Task::running_start);
    let from = start.map(|start| key(group, start.seq));
    let mut statement = conn.prepare_cached(&sql)?;
    let to = key(group + 1, 0);
    let found = statement.query_map(
        params![group, from.unwrap_or(to), to],
        keyed("compaction at frame", rows::compaction),
    )?;
    let found: Vec<(u64, Compaction)> =
        found.map(|found| required(conn, found)).collect::<Result<_, _>>()?;
    let is_wanted = |compaction: &Compaction| {
        compaction.is_active() || compaction.task == current.map(|task| task.id)
    };
    Ok(found.into_iter().map(|(_, compaction)| compaction).filter(is_wanted).collect())
}

/// Reads the sessions of the group's last segments, each once, the last one last. Reads segments
/// until it knows enough sessions, one at a time: all of them, if the group had few sessions.
fn known_sessions(conn: &Connection, group: GroupNo) -> Result<VecDeque<SessionId>, RowsError> {
    let sql = "SELECT session FROM segments WHERE no = ? ORDER BY segment DESC";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([group])?;
    let mut known = VecDeque::new();
    while known.len() < KNOWN_SESSIONS_MAX
        && let Some(row) = rows.next()?
    {
        // The group can work without a row that cannot be read.
        let Ok(session) = row.get::<_, String>(0) else { continue };
        let session = SessionId(session.into());
        if !known.contains(&session) {
            known.push_front(session);
        }
    }
    Ok(known)
}
