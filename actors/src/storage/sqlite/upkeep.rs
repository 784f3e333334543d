//! The writer's upkeep: tests the database, checks its files, gives free pages back.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::{
    BUSY,
    checkpoint::{Log, Mode, checkpoint},
    database_error, failed,
    files::Files,
};
use crate::storage::{Fault, Sizes, StoreError, chain};

/// Deletes what a probe created.
pub const FORGET_TRIAL: &str = "DROP TABLE IF EXISTS trial";
/// A probe allocates pages: a page that is free already could be written even on a full disk.
const TRIAL: &str = "INSERT INTO trial (bytes) VALUES (zeroblob(65536))";
const TRIAL_TABLE: &str = "CREATE TABLE trial (bytes BLOB NOT NULL) STRICT";
/// The pages of the write-ahead log, 256 MiB, from which the writer moves them itself. Commits wait
/// meanwhile, and the log stops growing.
const LOG_PAGES_MAX: u64 = 65_536;
/// SQLite's default size of a page.
const PAGE_BYTES: u64 = 4096;
/// Free pages, 1 MiB, that are kept for the next writes.
const FREE_PAGES_KEPT: u32 = 256;
/// Free pages that are given back at a time, which takes a few milliseconds.
const SHRINK_PAGES: u32 = 256;

/// See [`crate::storage::Store::probe`].
pub fn probe(conn: &mut Connection) -> Result<(), StoreError> {
    let tested = failed("was tested");
    conn.busy_timeout(Duration::ZERO).map_err(&tested)?;
    let wrote = write(conn);
    conn.busy_timeout(BUSY).map_err(&tested)?;
    wrote.map_err(tested)
}

fn write(conn: &mut Connection) -> rusqlite::Result<()> {
    let trial = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for sql in [FORGET_TRIAL, TRIAL_TABLE, TRIAL] {
        trial.execute(sql, [])?;
    }
    trial.commit()?;
    conn.execute(FORGET_TRIAL, [])?;
    Ok(())
}

/// See [`crate::storage::Store::check`].
pub fn check(conn: &Connection, files: &Files) -> Result<Sizes, StoreError> {
    let sizes = files.check().map_err(|changed| {
        let saved = if rescue(conn, files) {
            "; all commits are in the database, so a restart is enough"
        } else {
            ""
        };
        // A file that cannot be inspected may still be the same.
        let fault = if changed.may_be_same() { Fault::Io } else { Fault::Replaced };
        database_error("checked its files", fault, format!("{}{saved}", chain(&changed)))
    })?;
    if LOG_PAGES_MAX * PAGE_BYTES <= sizes.log {
        let Log { pages, moved, .. } = checkpoint(conn, Mode::Noop)?;
        if LOG_PAGES_MAX <= pages.saturating_sub(moved) {
            checkpoint(conn, Mode::Passive)?;
        }
    }
    Ok(sizes)
}

/// If only the log was removed, moves all commits from the open log into the database. Returns
/// whether all were moved.
fn rescue(conn: &Connection, files: &Files) -> bool {
    files.only_log_removed() && checkpoint(conn, Mode::Full).is_ok_and(Log::is_done)
}

/// See [`crate::storage::Store::shrink`].
pub fn shrink(conn: &Connection) -> Result<bool, StoreError> {
    let shrunk = || -> rusqlite::Result<bool> {
        let free: u32 = conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free <= FREE_PAGES_KEPT {
            return Ok(false);
        }
        let pages = SHRINK_PAGES.min(free - FREE_PAGES_KEPT);
        // SQLite frees a page for each row that is read.
        let mut step = conn.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut rows = step.query([])?;
        while rows.next()?.is_some() {}
        Ok(true)
    };
    shrunk().map_err(failed("gave free pages back"))
}
