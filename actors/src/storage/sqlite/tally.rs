//! The numbers of a scrape. Each query goes through the heads, one row a group, or through an index
//! of what is not over: none reads the history.

use greenroom_core::{Blocked, TaskState, Timestamp};
use rusqlite::Connection;

use crate::{storage::Tally, word::word};

/// One row a status.
const GROUPS: &str = "SELECT status, count(*), sum(queue_length), sum(blocked_by IS 'slot') \
                      FROM heads GROUP BY status";
/// What waits. `INDEXED BY` refuses any other way than that through the partial index.
const WAITING: &str = "SELECT kind, state, count(*) FROM tasks INDEXED BY tasks_waiting \
                       WHERE state IN ('queued', 'retrying') AND claimed_at IS NULL \
                       GROUP BY kind, state";
/// What has a slot: one task a group at most.
const CLAIMED: &str = "SELECT kind, state, count(*), min(started_at), min(created_at) \
                       FROM heads CROSS JOIN tasks ON tasks.id = heads.current_task \
                       WHERE current_task IS NOT NULL GROUP BY kind, state";
/// The first that waits of each group is its oldest: keys are in the order of acceptance.
const OLDEST: &str = "SELECT blocked_by, min((SELECT created_at \
                      FROM tasks INDEXED BY tasks_waiting \
                      WHERE key > heads.no << 36 AND key < heads.no + 1 << 36 \
                      AND state IN ('queued', 'retrying') AND claimed_at IS NULL \
                      ORDER BY key LIMIT 1)) \
                      FROM heads WHERE queue_length > 0 AND blocked_by IS NOT NULL \
                      GROUP BY blocked_by";
/// Both have an index of those that are open.
const OPEN: &str = "SELECT (SELECT count(*) FROM permissions WHERE state = 'pending'), \
                    (SELECT count(*) FROM compactions WHERE status = 'in_progress')";

/// Reads all of it; the caller sees to it that it is of one moment.
pub fn read(conn: &Connection) -> rusqlite::Result<Tally> {
    let mut tally = Tally::default();
    let mut statement = conn.prepare_cached(GROUPS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        tally.groups.insert(row.get(0)?, row.get::<_, i64>(1)? as u64);
        tally.queued += row.get::<_, i64>(2)? as u64;
        tally.wait_for_slot += row.get::<_, i64>(3)? as u64;
    }
    let mut statement = conn.prepare_cached(WAITING)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        *tally.tasks.entry((row.get(0)?, row.get(1)?)).or_default() += row.get::<_, i64>(2)? as u64;
    }
    let mut statement = conn.prepare_cached(CLAIMED)?;
    let mut rows = statement.query([])?;
    let mut for_agent: Option<Timestamp> = None;
    while let Some(row) = rows.next()? {
        let (kind, state) = (row.get::<_, String>(0)?, row.get::<_, String>(1)?);
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
    let mut statement = conn.prepare_cached(OLDEST)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(since) = row.get::<_, Option<i64>>(1)? {
            tally.waiting_since.insert(row.get(0)?, Timestamp(since));
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
