//! The numbers of a scrape. Each query goes through the heads, one row a group, or through an index
//! of what is not over: none reads the history.

use std::collections::BTreeMap;

use greenroom_core::{Blocked, TaskState, Timestamp};
use rusqlite::{Connection, Row};

use crate::{
    storage::{GroupNo, Tally},
    word::word,
};

/// One row a status.
const GROUPS: &str = "SELECT status, count(*), total(queue_length), sum(blocked_by IS 'slot') \
                      FROM heads WHERE no NOT IN ($broken) GROUP BY status";
/// What waits. `INDEXED BY` refuses any other way than that through the partial index.
const WAITING: &str = "SELECT kind, state, count(*) FROM tasks INDEXED BY tasks_waiting \
                       WHERE state IN ('queued', 'retrying') AND claimed_at IS NULL \
                       AND key >> 36 NOT IN ($broken) GROUP BY kind, state";
/// What has a slot: one task a group at most.
const CLAIMED: &str = "SELECT kind, state, count(*), min(started_at), min(created_at) \
                       FROM heads CROSS JOIN tasks ON tasks.id = heads.current_task \
                       WHERE current_task IS NOT NULL AND no NOT IN ($broken) \
                       GROUP BY kind, state";
/// The first that waits of each group is its oldest: keys are in the order of acceptance.
const OLDEST: &str = "SELECT blocked_by, min((SELECT created_at \
                      FROM tasks INDEXED BY tasks_waiting \
                      WHERE key > heads.no << 36 AND key < heads.no + 1 << 36 \
                      AND state IN ('queued', 'retrying') AND claimed_at IS NULL \
                      ORDER BY key LIMIT 1)) \
                      FROM heads WHERE queue_length > 0 AND blocked_by IS NOT NULL \
                      AND no NOT IN ($broken) GROUP BY blocked_by";
/// Both have an index of those that are open.
const OPEN: &str = "SELECT (SELECT count(*) FROM permissions WHERE state = 'pending'), \
                    (SELECT count(*) FROM compactions WHERE status = 'in_progress')";

/// Reads all of it but what is of `broken` groups: of their rows not every word is one. The caller
/// sees to it that it is of one moment.
pub fn read(conn: &Connection, broken: &[GroupNo]) -> rusqlite::Result<Tally> {
    let broken = numbers(broken);
    let of_others = |sql: &str| conn.prepare_cached(&sql.replace("$broken", &broken));
    let mut tally = Tally::default();
    groups(conn, &broken, &mut tally)?;
    let mut statement = of_others(WAITING)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key = (word_of(row, 0)?, word_of(row, 1)?);
        *tally.tasks.entry(key).or_default() += row.get::<_, i64>(2)? as u64;
    }
    let mut statement = of_others(CLAIMED)?;
    let mut rows = statement.query([])?;
    let mut for_agent: Option<Timestamp> = None;
    while let Some(row) = rows.next()? {
        let (kind, state) = (word_of(row, 0)?, word_of(row, 1)?);
        if state == word(&TaskState::Running) {
            if let Some(since) = row.get::<_, Option<i64>>(3)? {
                tally.running_since.insert(kind.clone(), Timestamp(since));
            }
        } else {
            // It has its slot, and waits for its agent. What is behind it is younger.
            let since = Timestamp(row.get(4)?);
            for_agent = Some(for_agent.map_or(since, |other| other.min(since)));
        }
        *tally.tasks.entry((kind, state)).or_default() += row.get::<_, i64>(2)? as u64;
    }
    let mut statement = of_others(OLDEST)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(since) = row.get::<_, Option<i64>>(1)? {
            tally.waiting_since.insert(word_of(row, 0)?, Timestamp(since));
        }
    }
    if let Some(since) = for_agent {
        let oldest = tally.waiting_since.entry(word(&Blocked::Agent)).or_insert(since);
        *oldest = since.min(*oldest);
    }
    (tally.permissions, tally.compactions) = conn
        .prepare_cached(OPEN)?
        .query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
    Ok(tally)
}

/// The groups by status, and how many of their tasks wait.
pub fn census(
    conn: &Connection,
    broken: &[GroupNo],
) -> rusqlite::Result<(BTreeMap<String, u64>, u64)> {
    let mut tally = Tally::default();
    groups(conn, &numbers(broken), &mut tally)?;
    Ok((tally.groups, tally.queued))
}

fn groups(conn: &Connection, broken: &str, tally: &mut Tally) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(&GROUPS.replace("$broken", broken))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let queued = row.get::<_, f64>(2)? as u64;
        *tally.groups.entry(word_of(row, 0)?).or_default() += row.get::<_, i64>(1)? as u64;
        tally.queued += queued;
        tally.wait_for_slot += row.get::<_, Option<i64>>(3)?.unwrap_or_default() as u64;
    }
    Ok(())
}

/// A word as it is stored, unchecked.
fn word_of(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    let text = row.get_ref(column)?.as_bytes_or_null()?.unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Groups as a list in SQL.
fn numbers(groups: &[GroupNo]) -> String {
    groups.iter().map(GroupNo::to_string).collect::<Vec<_>>().join(",")
}
