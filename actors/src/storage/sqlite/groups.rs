//! The rows of groups, in `groups` and `heads`: how they are written and deleted.

use greenroom_core::{Existence, Settings, digest::SCHEMA_VERSION};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{
    RowsError, locks,
    rows::{int, json, key, memory},
};
use crate::{
    storage::{GroupCommit, GroupNo},
    wire_name::wire_name,
};

/// Inserts a group, with an empty row in `heads` for [`store_head`].
pub fn insert(
    conn: &Connection,
    commit: &GroupCommit,
    settings: &Settings,
) -> rusqlite::Result<()> {
    let id = commit.summary.id.as_str();
    conn.prepare_cached("INSERT INTO groups (no, id, settings, created_at) VALUES (?, ?, ?, ?)")?
        .execute(params![commit.group, id, json(settings), commit.at.0])?;
    conn.prepare_cached(
        "INSERT INTO heads (no, epoch, last_seq, tasks, segment, paused, archived, status, \
         queue_length) VALUES (?, ?, 0, 0, 0, 0, 0, 'idle', 0)",
    )?
    .execute(params![commit.group, int(commit.epoch)])?;
    Ok(())
}

/// Stores changed settings.
pub fn change_settings(
    conn: &Connection,
    group: GroupNo,
    settings: &Settings,
) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE groups SET settings = ? WHERE no = ?")?
        .execute(params![json(settings), group])?;
    Ok(())
}

/// Updates the group's row in `heads`. Returns `false` if the row has another epoch, or another
/// last frame than `last_seq_before`.
pub fn store_head(
    conn: &Connection,
    commit: &GroupCommit,
    last_seq_before: u64,
) -> rusqlite::Result<bool> {
    let (summary, digests) = (&commit.summary, commit.digests.as_ref());
    let state = &summary.state;
    let changed = conn
        .prepare_cached(
            "UPDATE heads SET last_seq = ?, tasks = ?, session = ?, segment = ?, usage = ?, \
             paused = ?, archived = ?, purging = ?, provenance = ?, compacting = ?, lead_in = ?, \
             held = ?, interruptions = ?, crashes = ?, launch_due = ?, unspoken = ?, \
             digest_version = coalesce(?, digest_version), digest = coalesce(?, digest), \
             run_digest = coalesce(?, run_digest), carry = coalesce(?, carry), \
             status = ?, blocked_by = ?, queue_length = ?, current_task = ?, current_run = ?, \
             is_compacting = ? WHERE no = ? AND epoch = ? AND last_seq = ?",
        )?
        .execute(params![
            int(state.last_seq),
            int(state.tasks),
            state.session_id().map(|id| &*id.0),
            state.segment,
            state.usage().map(json),
            state.paused,
            state.is_archived(),
            state.existence == Existence::Purging,
            state.provenance().map(json),
            memory(state),
            state.pending_summary,
            state.hold.reason.as_ref().map(wire_name),
            state.hold.interruptions,
            state.crash_loop.crashes,
            state.crash_loop.launch_wait.as_ref().map(json),
            state.session.as_ref().is_some_and(|session| session.is_fresh),
            digests.map(|_| SCHEMA_VERSION),
            digests.map(|rows| &rows.group),
            digests.and_then(|rows| rows.run.as_ref()),
            digests.map(|rows| &rows.open),
            wire_name(&summary.status),
            summary.blocked_by.as_ref().map(wire_name),
            int(summary.queue_length),
            summary.current_task.as_ref().map(|id| id.0.as_bytes()),
            summary.current_run.as_ref().map(|id| id.0.as_bytes()),
            summary.is_compacting,
            commit.group,
            int(commit.epoch),
            int(last_seq_before),
        ])?;
    Ok(changed == 1)
}

/// Advances the group's epoch, and returns it. In a transaction, as a statement of its own returns
/// the row before it commits. Returns `None` if the group has no valid one.
pub fn claim(transaction: &Transaction<'_>, group: GroupNo) -> rusqlite::Result<Option<u64>> {
    let sql = "UPDATE heads SET epoch = epoch + 1 \
               WHERE no = ? AND epoch BETWEEN 0 AND 1 << 62 RETURNING epoch";
    read_epoch(transaction, sql, group)
}

/// Returns the group's epoch. Returns `None` if it has no valid one: then no owner can store
/// anything.
pub fn epoch(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<u64>> {
    read_epoch(conn, "SELECT epoch FROM heads WHERE no = ? AND epoch BETWEEN 0 AND 1 << 62", group)
}

fn read_epoch(conn: &Connection, sql: &str, group: GroupNo) -> rusqlite::Result<Option<u64>> {
    let found = conn.prepare_cached(sql)?.query_row([group], |row| row.get::<_, i64>(0));
    Ok(found.optional()?.map(i64::unsigned_abs))
}

/// Refuses a caller under another epoch than the stored one (I14).
pub fn check_epoch(
    conn: &Connection,
    group: GroupNo,
    claimed: Option<u64>,
) -> Result<(), RowsError> {
    if epoch(conn, group)? == claimed { Ok(()) } else { Err(RowsError::Fenced) }
}

/// Deletes all rows of a group: see [`crate::storage::Store::purge`].
pub fn purge(conn: &mut Connection, group: GroupNo, epoch: Option<u64>) -> Result<(), RowsError> {
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    check_epoch(&transaction, group, epoch)?;
    let (from, to) = (key(group, 0), key(group + 1, 0));
    let turns = transaction.execute(
        "DELETE FROM turns WHERE (ended_at, key) IN \
         (SELECT ended_at, key FROM tasks WHERE key >= ? AND key < ?)",
        [from, to],
    )?;
    let ended: i64 = transaction.query_row(
        "SELECT count(*) FROM tasks WHERE key >= ? AND key < ? \
         AND started_at IS NOT NULL AND ended_at IS NOT NULL",
        [from, to],
        |row| row.get(0),
    )?;
    if turns as i64 != ended {
        // Some have another end than their task. This reads the whole table.
        let sql = "DELETE FROM turns WHERE key >= ? AND key < ?";
        transaction.execute(sql, [from, to])?;
    }
    transaction.execute(
        "DELETE FROM idempotency WHERE task IN \
         (SELECT id FROM tasks WHERE key >= ? AND key < ?)",
        [from, to],
    )?;
    for table in ["blocks", "tasks", "compactions", "permissions"] {
        let sql = format!("DELETE FROM {table} WHERE key >= ? AND key < ?");
        transaction.execute(&sql, [from, to])?;
    }
    locks::forget_group(&transaction, group)?;
    for table in ["runs", "segments", "bases", "heads", "groups"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE no = ?"), [group])?;
    }
    Ok(transaction.commit()?)
}
