//! What the writer does beside writing: it tries whether that works, looks after the files, and
//! gives free pages back.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::{
    BUSY, broken,
    checkpoint::{Log, Mode, checkpoint},
    failed,
    files::Files,
};
use crate::storage::{Fault, Sizes, StoreError, chain};

/// Undoes what a probe made.
pub const FORGET_TRIAL: &str = "DROP TABLE IF EXISTS trial";
/// A probe takes some pages that were not there before: a page of an old one may be had for nothing
/// on a full disk.
const TRIAL: &str = "INSERT INTO trial (bytes) VALUES (zeroblob(65536))";
const TRIAL_TABLE: &str = "CREATE TABLE trial (bytes BLOB NOT NULL) STRICT";
/// Pages of the write-ahead log, 256 MiB, from which the writer moves them itself: commits wait,
/// and the log grows no further.
const LOG_PAGES_MAX: u64 = 65_536;
/// SQLite's own size of a page.
const PAGE_BYTES: u64 = 4096;
/// Free pages, 1 MiB, that are kept for what is written next.
const FREE_PAGES_KEPT: u32 = 256;
/// Free pages that are given back at a time: some milliseconds.
const SHRINK_PAGES: u32 = 256;

/// See [`crate::storage::Store::probe`].
pub fn probe(conn: &mut Connection) -> Result<(), StoreError> {
    let tried = failed("was tried");
    conn.busy_timeout(Duration::ZERO).map_err(&tried)?;
    let wrote = write(conn);
    conn.busy_timeout(BUSY).map_err(&tried)?;
    wrote.map_err(tried)
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
            "; all that was committed is in the database, so a restart is enough"
        } else {
            ""
        };
        broken("looked at its files", Fault::Replaced, format!("{}{saved}", chain(&changed)))
    })?;
    if LOG_PAGES_MAX * PAGE_BYTES <= sizes.log {
        let Log { pages, moved, .. } = checkpoint(conn, Mode::Noop)?;
        if LOG_PAGES_MAX <= pages.saturating_sub(moved) {
            checkpoint(conn, Mode::Passive)?;
        }
    }
    Ok(sizes)
}

/// If only the log's name is gone, all that was committed can still be had: it is moved into the
/// database, which has its name.
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
        // A row for each page, and nothing happens before it is asked for.
        let mut step = conn.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut rows = step.query([])?;
        while rows.next()?.is_some() {}
        Ok(true)
    };
    shrunk().map_err(failed("gave free pages back"))
}
