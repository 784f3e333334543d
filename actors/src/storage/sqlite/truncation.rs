//! The rows of checkpoints: truncates a group's log, and deletes the frames before the checkpoint.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::{
    RowsError,
    damage::{Damage, of_group, requested},
    groups,
    rows::{int, key},
};
use crate::storage::{GroupNo, LogTruncation, StoredCheckpoint, Swept, unreadable::CHECKPOINT};

/// The blocks that one transaction deletes, and their bytes; the block that exceeds the bytes is
/// still deleted. That takes a few milliseconds, for which a commit may have to wait.
const BLOCKS_MAX: usize = 250;
const BYTES_MAX: u64 = 1 << 20;

/// See [`crate::storage::Store::truncate_log`].
pub fn truncate_log(conn: &mut Connection, truncation: &LogTruncation) -> Result<bool, RowsError> {
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    groups::check_epoch(&transaction, truncation.group, truncation.epoch)?;
    let moved = transaction
        .prepare_cached(
            "INSERT INTO bases (no, seq, state) \
             SELECT ?1, ?2, ?3 FROM heads WHERE no = ?1 AND last_seq >= ?2 \
             ON CONFLICT (no) DO UPDATE SET seq = excluded.seq, state = excluded.state \
             WHERE excluded.seq > seq",
        )?
        .execute(params![
            truncation.group,
            int(truncation.checkpoint.seq),
            truncation.checkpoint.state
        ])?;
    if moved == 0 {
        return Ok(false);
    }
    {
        // What is open or reaches beyond the checkpoint is never deleted, whatever the log says.
        let mut turn = transaction.prepare_cached(
            "DELETE FROM turns WHERE (ended_at, key) IN (SELECT ended_at, key FROM tasks \
             WHERE id = ? AND ended_at IS NOT NULL AND seq_last <= ?)",
        )?;
        let mut task = transaction.prepare_cached(
            "DELETE FROM tasks WHERE id = ? AND ended_at IS NOT NULL AND seq_last <= ?",
        )?;
        for id in &truncation.ended.tasks {
            turn.execute(params![id.0.as_bytes(), int(truncation.checkpoint.seq)])?;
            task.execute(params![id.0.as_bytes(), int(truncation.checkpoint.seq)])?;
        }
        let mut run =
            transaction.prepare_cached("DELETE FROM runs WHERE id = ? AND ended_at IS NOT NULL")?;
        for id in &truncation.ended.runs {
            run.execute([id.0.as_bytes()])?;
        }
        let mut compaction = transaction.prepare_cached(
            "DELETE FROM compactions WHERE id = ? AND key <= ? AND status <> 'in_progress'",
        )?;
        for id in &truncation.ended.compactions {
            compaction.execute(params![
                id.0.as_bytes(),
                key(truncation.group, truncation.checkpoint.seq)
            ])?;
        }
        let mut permission = transaction.prepare_cached(
            "DELETE FROM permissions WHERE id = ? AND key <= ? AND state <> 'pending'",
        )?;
        for id in &truncation.ended.permissions {
            permission.execute(params![
                id.0.as_bytes(),
                key(truncation.group, truncation.checkpoint.seq)
            ])?;
        }
    }
    transaction.commit()?;
    Ok(true)
}

/// See [`crate::storage::Store::sweep`].
pub fn sweep(conn: &mut Connection, group: GroupNo) -> Result<Swept, RowsError> {
    let mut swept = Swept { frames: 0, bytes: 0, more: false };
    let Some(checkpoint) = seq(conn, group)? else { return Ok(swept) };
    // A damaged checkpoint after the last frame would delete the whole log.
    let within = conn
        .prepare_cached("SELECT 1 FROM heads WHERE no = ? AND last_seq >= ?")?
        .exists(params![group, int(checkpoint)])?;
    if !within {
        let what =
            format!("{CHECKPOINT}: seq cannot be read: {checkpoint} is after the last frame");
        return Err(Damage { group, what }.named(conn, false).into());
    }
    let (from, to) = (key(group, 0), key(group, checkpoint));
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut last = None;
    {
        let mut found = transaction.prepare_cached(
            "SELECT key, count, length(text) FROM blocks WHERE key >= ? AND key <= ? \
             ORDER BY key LIMIT ?",
        )?;
        let mut found = found.query(params![from, to, BLOCKS_MAX as i64])?;
        let mut blocks = 0;
        while swept.bytes < BYTES_MAX {
            let Some(row) = found.next()? else { break };
            last = Some(row.get::<_, i64>(0)?);
            // A damaged row is deleted like any other.
            swept.frames += row.get::<_, i64>(1)?.max(0).unsigned_abs();
            swept.bytes += row.get::<_, i64>(2)?.unsigned_abs();
            blocks += 1;
        }
        swept.more = blocks == BLOCKS_MAX || swept.bytes >= BYTES_MAX;
    }
    if let Some(last) = last {
        transaction
            .prepare_cached("DELETE FROM blocks WHERE key >= ? AND key <= ?")?
            .execute([from, last])?;
        transaction.commit()?;
    }
    Ok(swept)
}

/// Returns the frame of a group's checkpoint, if its log was truncated.
pub fn seq(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<u64>> {
    let mut found = conn.prepare_cached("SELECT seq FROM bases WHERE no = ?")?;
    found.query_row([group], |row| row.get::<_, i64>(0)).optional().map(|seq| seq.map(as_seq))
}

/// Returns a group's checkpoint.
pub fn checkpoint(
    conn: &Connection,
    group: GroupNo,
) -> Result<Option<StoredCheckpoint>, RowsError> {
    let mut found = conn.prepare_cached("SELECT seq, state FROM bases WHERE no = ?")?;
    let checkpoint = of_group(CHECKPOINT, group, |row| {
        Ok(StoredCheckpoint { seq: as_seq(row.get(0)?), state: row.get(1)? })
    });
    found
        .query_row([group], checkpoint)
        .optional()?
        .map(|checkpoint| requested(conn, Ok(checkpoint)))
        .transpose()
}

fn as_seq(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or_default()
}
