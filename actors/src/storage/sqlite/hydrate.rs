//! Everything that a group's actor begins with. It needs every row of it: of a group with one that
//! cannot be understood nothing is read, and the group cannot work.

use greenroom_core::{Compaction, Run, RunPhase, Task, TaskState};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    Failure, digests,
    flaws::{Flaw, group_row, keyed, needed},
    permissions,
    rows::{self, key, seq},
};
use crate::storage::{GroupNo, Hydration, Standing};

/// Reads the group, whose owner has this epoch from now on.
pub fn hydrate(conn: &Connection, group: GroupNo, epoch: u64) -> Result<Hydration, Failure> {
    let sql = format!(
        "SELECT {} FROM groups JOIN heads USING (no) WHERE groups.no = ?",
        rows::GROUP_COLUMNS
    );
    let head = conn.query_row(&sql, [group], group_row(rows::standing));
    let (_, standing) = needed(conn, head)?;
    // Each half in the words of the index that finds it.
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
    let tasks: Vec<Task> = found.map(|task| needed(conn, task)).collect::<Result<_, _>>()?;
    let open = standing.queue_length + u64::from(standing.current_task.is_some());
    let claimed = tasks.iter().find(|task| task.claimed_at.is_some()).map(|task| task.id);
    let found = tasks.len() as u64;
    if open != found {
        // A state that is no word hides a task from the indexes.
        if claimed != standing.current_task || !all_read(conn, group, &standing, found)? {
            let what = format!("tasks: {open} are open by the group's own row, {found} by theirs");
            return Err(flaw(conn, group, what));
        }
        let waiting = tasks.iter().filter(|task| task.claimed_at.is_none()).count();
        conn.prepare_cached("UPDATE heads SET queue_length = ? WHERE no = ?")?
            .execute(params![waiting as i64, group])?;
    } else if claimed != standing.current_task {
        let what = "the group: current_task is not the task that is claimed by its row".into();
        return Err(flaw(conn, group, what));
    }
    if let Some(what) = contradiction(conn, group, &standing)? {
        return Err(flaw(conn, group, what));
    }
    let run = standing.current_run.map(|id| Run::new(id, RunPhase::Stopping));
    let current = tasks.iter().find(|task| task.claimed_at.is_some());
    let compactions = compactions(conn, group, current)?;
    let permissions = permissions::pending(conn, group)?;
    let digests = digests::hydrate(conn, group, standing.head.last_seq)?;
    Ok(Hydration { epoch, head: standing.head, tasks, run, compactions, permissions, digests })
}

/// The group has no row in `heads`, or not one whose epoch is one: it does not exist, or its row
/// cannot be read.
pub fn missing<T>(conn: &Connection, group: GroupNo) -> Result<Option<T>, Failure> {
    let sql = format!(
        "SELECT {} FROM groups LEFT JOIN heads USING (no) WHERE groups.no = ?",
        rows::GROUP_COLUMNS
    );
    let found = conn.query_row(&sql, [group], group_row(rows::standing)).optional()?;
    let Some(judged) = found else { return Ok(None) };
    needed(conn, Ok(judged))?;
    Err(flaw(conn, group, "the group: epoch cannot be read: it is out of range".into()))
}

/// Whether no task is hidden or gone: then the `found` open ones are all, whatever the group's own
/// row counts.
fn all_read(
    conn: &Connection,
    group: GroupNo,
    standing: &Standing,
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
    // Earlier versions ended a task whose row they could not read, and did not count it out.
    let open = standing.queue_length + u64::from(standing.current_task.is_some());
    let is_dropped = open.checked_sub(found).is_some_and(|less| less <= dropped as u64);
    // Retention deletes ended ones: then a missing row says nothing.
    Ok(hidden == 0 && (is_dropped || all as u64 == standing.head.tasks))
}

fn flaw(conn: &Connection, group: GroupNo, what: String) -> Failure {
    Flaw { group, what }.named(conn, true).into()
}

/// How the group's own row contradicts others so that the next commit could not be stored: the
/// group would be read back again and again.
fn contradiction(
    conn: &Connection,
    group: GroupNo,
    standing: &Standing,
) -> rusqlite::Result<Option<String>> {
    let head = &standing.head;
    let range = params![key(group, 0), key(group + 1, 0)];
    let last = conn
        .prepare_cached(
            "SELECT key + max(count, 1) - 1 FROM blocks WHERE key >= ? AND key < ? \
             ORDER BY key DESC LIMIT 1",
        )?
        .query_row(range, |row| row.get::<_, i64>(0))
        .optional()?;
    if let Some(last) = last.filter(|last| key(group, head.last_seq) < *last) {
        let last = last.saturating_sub(key(group, 0));
        return Ok(Some(format!(
            "the group: last_seq is {}, the log goes to {last}",
            head.last_seq
        )));
    }
    let last = conn
        .prepare_cached("SELECT max(key) FROM tasks WHERE key >= ? AND key < ?")?
        .query_row(range, |row| row.get::<_, Option<i64>>(0))?;
    if let Some(last) = last.filter(|last| key(group, head.tasks) < *last) {
        let last = seq(last);
        return Ok(Some(format!("the group: tasks is {}, there is a task {last}", head.tasks)));
    }
    let living = conn
        .prepare_cached("SELECT id FROM runs WHERE no = ? AND ended_at IS NULL")?
        .query_row([group], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    if living.as_deref() != standing.current_run.as_ref().map(|run| &run.0.as_bytes()[..]) {
        return Ok(Some("the group: current_run is not the run that is alive by its row".into()));
    }
    let last: Option<u32> = conn
        .prepare_cached("SELECT max(segment) FROM segments WHERE no = ?")?
        .query_row([group], |row| row.get(0))?;
    if last.is_some_and(|last| head.segment < last) {
        return Ok(Some(format!(
            "the group: segment is {}, the last row is {last:?}",
            head.segment
        )));
    }
    Ok(None)
}

/// The compaction that nobody saw to end, and those that were completed within `current`, in any of
/// its attempts.
fn compactions(
    conn: &Connection,
    group: GroupNo,
    current: Option<&Task>,
) -> Result<Vec<Compaction>, Failure> {
    let sql = format!(
        "SELECT {columns} FROM compactions WHERE key >> 36 = ?1 AND status = 'in_progress' \
         UNION ALL SELECT {columns} FROM compactions \
         WHERE key >= ?2 AND key < ?3 AND status = 'completed' ORDER BY key",
        columns = rows::COMPACTION_COLUMNS
    );
    // Of a task that is made again, an earlier attempt may have seen one: there are few.
    let first = current.filter(|task| task.attempt > 0).map(|task| match task.state {
        TaskState::Running if task.attempt == 1 => task.seq_first.unwrap_or_default(),
        _ => 0,
    });
    let from = first.map(|seq| key(group, seq));
    let mut statement = conn.prepare_cached(&sql)?;
    let to = key(group + 1, 0);
    let found = statement.query_map(
        params![group, from.unwrap_or(to), to],
        keyed("compaction at frame", rows::compaction),
    )?;
    let found: Vec<(u64, Compaction)> =
        found.map(|found| needed(conn, found)).collect::<Result<_, _>>()?;
    let own = |compaction: &Compaction| {
        compaction.is_active() || compaction.task == current.map(|task| task.id)
    };
    Ok(found.into_iter().map(|(_, compaction)| compaction).filter(own).collect())
}
