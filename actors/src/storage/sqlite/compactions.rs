//! The rows of compactions: how they are written.

use greenroom_core::Compaction;
use rusqlite::{Connection, params};

use super::rows::{json, ms};
use crate::wire_name::wire_name;

/// Inserts or updates a compaction. The row keeps the key of its first frame.
pub fn store(conn: &Connection, key: i64, compaction: &Compaction) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO compactions (key, id, status, started_at, ended_at, record) \
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET status = excluded.status, \
         ended_at = excluded.ended_at, record = excluded.record",
    )?
    .execute(params![
        key,
        compaction.id.0.as_bytes(),
        wire_name(&compaction.status),
        compaction.started_at.0,
        ms(compaction.ended_at),
        json(compaction)
    ])?;
    Ok(())
}
