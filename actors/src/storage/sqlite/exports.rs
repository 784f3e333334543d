//! The rows of exports: up to which ended task each exporter has exported.

use greenroom_core::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::storage::EndedAt;

/// See [`crate::storage::Store::put_exported`].
pub fn put(conn: &Connection, name: &str, place: EndedAt) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(
        "INSERT INTO exports (name, ended_at, key) VALUES (?1, ?2, ?3) \
         ON CONFLICT (name) DO UPDATE SET ended_at = ?2, key = ?3",
    )?;
    statement.execute(params![name, place.at.0, place.key])?;
    Ok(())
}

/// See [`crate::storage::ReadStore::exported`].
pub fn get(conn: &Connection, name: &str) -> rusqlite::Result<Option<EndedAt>> {
    let mut statement = conn.prepare_cached("SELECT ended_at, key FROM exports WHERE name = ?")?;
    let place = statement
        .query_row([name], |row| Ok(EndedAt { at: Timestamp(row.get(0)?), key: row.get(1)? }));
    place.optional()
}
