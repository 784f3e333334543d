//! The queries of a scrape's gauges.
//!
//! Each reads `heads`, one row a group, or an index of what has not ended: none reads the history.

use std::collections::BTreeMap;

use greenroom_core::{Blocked, TaskState, Timestamp};
use rusqlite::{Connection, Row};

use crate::{
    storage::{GaugeSnapshot, GroupNo},
    wire_name::wire_name,
};

/// The groups: one row a status.
const GROUPS: &str = "SELECT status, count(*), total(queue_length), sum(blocked_by IS 'slot') \
                      FROM heads WHERE no NOT IN ($broken) GROUP BY status";
/// The waiting tasks. `INDEXED BY` makes SQLite fail unless it uses the partial index.
const WAITING: &str = "SELECT kind, state, count(*) FROM tasks INDEXED BY tasks_waiting \
                       WHERE state IN ('queued', 'retrying') AND claimed_at IS NULL \
                       AND key >> 36 NOT IN ($broken) GROUP BY kind, state";
/// The tasks with a slot: at most one a group.
const CLAIMED: &str = "SELECT kind, state, count(*), min(started_at), min(created_at) \
                       FROM heads CROSS JOIN tasks ON tasks.id = heads.current_task \
                       WHERE current_task IS NOT NULL AND no NOT IN ($broken) \
                       GROUP BY kind, state";
/// The oldest waiting task of each group: keys are in the order of acceptance.
const OLDEST: &str = "SELECT blocked_by, min((SELECT created_at \
                      FROM tasks INDEXED BY tasks_waiting \
                      WHERE key > heads.no << 36 AND key < heads.no + 1 << 36 \
                      AND state IN ('queued', 'retrying') AND claimed_at IS NULL \
                      ORDER BY key LIMIT 1)) \
                      FROM heads WHERE queue_length > 0 AND blocked_by IS NOT NULL \
                      AND no NOT IN ($broken) GROUP BY blocked_by";
/// The open permissions and compactions: each has an index of them.
const OPEN: &str = "SELECT (SELECT count(*) FROM permissions WHERE state = 'pending'), \
                    (SELECT count(*) FROM compactions WHERE status = 'in_progress')";

/// Reads all gauges without the `broken` groups, whose rows may hold unknown words. The caller
/// ensures that all reads see one moment.
pub fn read(conn: &Connection, broken: &[GroupNo]) -> rusqlite::Result<GaugeSnapshot> {
    let broken = numbers(broken);
    let of_others = |sql: &str| conn.prepare_cached(&sql.replace("$broken", &broken));
    let mut gauges = GaugeSnapshot::default();
    groups(conn, &broken, &mut gauges)?;
    let mut statement = of_others(WAITING)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key = (stored_word(row, 0)?, stored_word(row, 1)?);
        *gauges.tasks.entry(key).or_default() += row.get::<_, i64>(2)? as u64;
    }
    let mut statement = of_others(CLAIMED)?;
    let mut rows = statement.query([])?;
    let mut for_agent: Option<Timestamp> = None;
    while let Some(row) = rows.next()? {
        let (kind, state) = (stored_word(row, 0)?, stored_word(row, 1)?);
        if state == wire_name(&TaskState::Running) {
            if let Some(since) = row.get::<_, Option<i64>>(3)? {
                gauges.running_since.insert(kind.clone(), Timestamp(since));
            }
        } else {
            // It has its slot, and waits for its agent. The tasks after it are younger.
            let since = Timestamp(row.get(4)?);
            for_agent = Some(for_agent.map_or(since, |other| other.min(since)));
        }
        *gauges.tasks.entry((kind, state)).or_default() += row.get::<_, i64>(2)? as u64;
    }
    let mut statement = of_others(OLDEST)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(since) = row.get::<_, Option<i64>>(1)? {
            gauges.waiting_since.insert(stored_word(row, 0)?, Timestamp(since));
        }
    }
    if let Some(since) = for_agent {
        let oldest = gauges.waiting_since.entry(wire_name(&Blocked::Agent)).or_insert(since);
        *oldest = since.min(*oldest);
    }
    (gauges.permissions, gauges.compactions) = conn
        .prepare_cached(OPEN)?
        .query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
    Ok(gauges)
}

/// Reads the number of groups by status, and the number of their waiting tasks.
pub fn status_counts(
    conn: &Connection,
    broken: &[GroupNo],
) -> rusqlite::Result<(BTreeMap<String, u64>, u64)> {
    let mut gauges = GaugeSnapshot::default();
    groups(conn, &numbers(broken), &mut gauges)?;
    Ok((gauges.groups, gauges.queued))
}

fn groups(conn: &Connection, broken: &str, gauges: &mut GaugeSnapshot) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(&GROUPS.replace("$broken", broken))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let queued = row.get::<_, f64>(2)? as u64;
        *gauges.groups.entry(stored_word(row, 0)?).or_default() += row.get::<_, i64>(1)? as u64;
        gauges.queued += queued;
        gauges.wait_for_slot += row.get::<_, Option<i64>>(3)?.unwrap_or_default() as u64;
    }
    Ok(())
}

/// Reads a word as it is stored, unchecked.
fn stored_word(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    let text = row.get_ref(column)?.as_bytes_or_null()?.unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Formats groups as a list in SQL.
fn numbers(groups: &[GroupNo]) -> String {
    groups.iter().map(GroupNo::to_string).collect::<Vec<_>>().join(",")
}
