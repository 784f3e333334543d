//! The rows of idempotency keys: how they are written.

use greenroom_core::Timestamp;
use rusqlite::{Connection, params};

use crate::storage::KeyUse;

/// Inserts a key that was used at `at`. A key whose task was deleted may be reused.
pub fn insert(conn: &Connection, used: &KeyUse, at: Timestamp) -> rusqlite::Result<()> {
    let KeyUse { key, body, task } = used;
    let stored = conn
        .prepare_cached(
            "INSERT INTO idempotency (key, body, task, at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (key) DO UPDATE SET body = excluded.body, task = excluded.task, \
             at = excluded.at \
             WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = idempotency.task)",
        )?
        .execute(params![key, body, task.0.as_bytes(), at.0])?;
    if stored == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(stored)) }
}
