//! Everything that a group's actor begins with. It needs every row of it: of a group with one that
//! cannot be understood nothing is read, and the group cannot work.

use greenroom_core::{Compaction, Run, RunPhase, Task, TaskState};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Failure, digests,
    flaws::{Flaw, group_row, keyed, needed},
    permissions,
    rows::{self, key},
};
use crate::storage::{GroupNo, Hydration};

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
    // A state that is no word hides a task from the indexes.
    let open = standing.queue_length + u64::from(standing.current_task.is_some());
    let claimed = tasks.iter().find(|task| task.claimed_at.is_some()).map(|task| task.id);
    if open != tasks.len() as u64 || claimed != standing.current_task {
        let found = tasks.len();
        let what = format!("tasks: {open} are open by the group's own row, {found} by theirs");
        return Err(Flaw { group, what }.named(conn, true).into());
    }
    let run = standing.current_run.map(|id| Run::new(id, RunPhase::Stopping));
    let current = tasks.iter().find(|task| task.claimed_at.is_some());
    let compactions = compactions(conn, group, current)?;
    let permissions = permissions::pending(conn, group)?;
    let digests = digests::hydrate(conn, group, standing.head.last_seq)?;
    Ok(Hydration { epoch, head: standing.head, tasks, run, compactions, permissions, digests })
}

/// The group has no row in `heads`: there is none, or its row is lost.
pub fn missing<T>(conn: &Connection, group: GroupNo) -> Result<Option<T>, Failure> {
    let sql = format!(
        "SELECT {} FROM groups LEFT JOIN heads USING (no) WHERE groups.no = ?",
        rows::GROUP_COLUMNS
    );
    let found = conn.query_row(&sql, [group], group_row(rows::standing)).optional()?;
    found.map(|judged| needed(conn, Ok(judged))).transpose()?;
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
