//! The rows of cut logs: bases, and what is deleted below them.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::{
    Failure,
    flaws::{Flaw, asked, of_group},
    rows::{int, key},
};
use crate::storage::{Cut, GroupNo, StoredBase, Swept, unreadable::BASE};

/// Blocks that one transaction deletes, and bytes of them: those of the block that goes over are
/// still deleted. So many take a few milliseconds; a commit may have to wait that long.
const BLOCKS_MAX: usize = 250;
const BYTES_MAX: u64 = 1 << 20;

/// See [`crate::storage::Store::cut`].
pub fn cut(conn: &mut Connection, cut: &Cut) -> rusqlite::Result<bool> {
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let moved = transaction
        .prepare_cached(
            "INSERT INTO bases (no, seq, state) \
             SELECT ?1, ?2, ?3 FROM heads WHERE no = ?1 AND last_seq >= ?2 \
             ON CONFLICT (no) DO UPDATE SET seq = excluded.seq, state = excluded.state \
             WHERE excluded.seq > seq",
        )?
        .execute(params![cut.group, int(cut.base.seq), cut.base.state])?;
    if moved == 0 {
        return Ok(false);
    }
    {
        // Whatever the log says: what is open or reaches beyond the cut is not deleted.
        let mut turn = transaction.prepare_cached(
            "DELETE FROM turns WHERE (ended_at, key) IN (SELECT ended_at, key FROM tasks \
             WHERE id = ? AND ended_at IS NOT NULL AND seq_last <= ?)",
        )?;
        let mut task = transaction.prepare_cached(
            "DELETE FROM tasks WHERE id = ? AND ended_at IS NOT NULL AND seq_last <= ?",
        )?;
        for id in &cut.ended.tasks {
            turn.execute(params![id.0.as_bytes(), int(cut.base.seq)])?;
            task.execute(params![id.0.as_bytes(), int(cut.base.seq)])?;
        }
        let mut run =
            transaction.prepare_cached("DELETE FROM runs WHERE id = ? AND ended_at IS NOT NULL")?;
        for id in &cut.ended.runs {
            run.execute([id.0.as_bytes()])?;
        }
        let mut compaction = transaction.prepare_cached(
            "DELETE FROM compactions WHERE id = ? AND key <= ? AND status <> 'in_progress'",
        )?;
        for id in &cut.ended.compactions {
            compaction.execute(params![id.0.as_bytes(), key(cut.group, cut.base.seq)])?;
        }
        let mut permission = transaction.prepare_cached(
            "DELETE FROM permissions WHERE id = ? AND key <= ? AND state <> 'pending'",
        )?;
        for id in &cut.ended.permissions {
            permission.execute(params![id.0.as_bytes(), key(cut.group, cut.base.seq)])?;
        }
    }
    transaction.commit()?;
    Ok(true)
}

/// See [`crate::storage::Store::sweep`].
pub fn sweep(conn: &mut Connection, group: GroupNo) -> Result<Swept, Failure> {
    let mut swept = Swept { frames: 0, bytes: 0, more: false };
    let Some(base) = seq(conn, group)? else { return Ok(swept) };
    // A damaged place beyond the last frame would have the whole log deleted.
    let within = conn
        .prepare_cached("SELECT 1 FROM heads WHERE no = ? AND last_seq >= ?")?
        .exists(params![group, int(base)])?;
    if !within {
        let what = format!("{BASE}: seq cannot be read: {base} is after the last frame");
        return Err(Flaw { group, what }.named(conn, false).into());
    }
    let (from, to) = (key(group, 0), key(group, base));
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

/// Where a group's log was cut last, if it was.
pub fn seq(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<u64>> {
    let mut found = conn.prepare_cached("SELECT seq FROM bases WHERE no = ?")?;
    found.query_row([group], |row| row.get::<_, i64>(0)).optional().map(|seq| seq.map(as_seq))
}

/// What a group's log came to up to there.
pub fn base(conn: &Connection, group: GroupNo) -> Result<Option<StoredBase>, Failure> {
    let mut found = conn.prepare_cached("SELECT seq, state FROM bases WHERE no = ?")?;
    let base = of_group(BASE, group, |row| {
        Ok(StoredBase { seq: as_seq(row.get(0)?), state: row.get(1)? })
    });
    found.query_row([group], base).optional()?.map(|base| asked(conn, Ok(base))).transpose()
}

fn as_seq(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or_default()
}
