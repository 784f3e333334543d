//! Moves the write-ahead log into the database, off the commits' way: in a thread with a connection
//! of its own. SQLite would do it within a commit, and would keep an error of it to itself.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use actix::Recipient;
use rusqlite::Connection;

use super::failed;
use crate::storage::{Fault, Found, StorageHealth, StoreError, chain};

/// Pages of the log, 16 MiB, from which they are moved. Four times SQLite's own limit: a page that
/// is written again and again is moved once. More would lengthen the start after a crash, which
/// reads the log.
const MOVED_FROM_PAGES: u64 = 4000;
/// How long the others are waited for when the log is to begin anew: commits wait as long.
pub const BUSY: Duration = Duration::from_millis(100);

/// How often, and when.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// Between two looks, while there are commits.
    pub look: Duration,
    /// How long nobody commits before all of the log is moved.
    pub quiet: Duration,
    /// How long nobody commits before the log's file is cut to nothing. Growing it again costs
    /// syncs, so a short pause is no reason.
    pub idle: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(100),
            quiet: Duration::from_secs(1),
            idle: Duration::from_secs(30),
        }
    }
}

/// How a checkpoint treats others.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Only looks.
    Noop,
    /// Moves what can be moved without waiting for anybody.
    Passive,
    /// Waits for the readers of older states, and moves all.
    Full,
    /// As before, and the next commit writes at the log's beginning.
    Restart,
    /// As before, and the file is cut to nothing.
    Truncate,
}

/// What a checkpoint found, in pages.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// In the log.
    pub pages: u64,
    /// Of these, in the database as well.
    pub moved: u64,
    /// Whether somebody was in the way.
    pub busy: bool,
}

impl Log {
    /// Whether all of it was moved.
    pub fn is_done(self) -> bool {
        !self.busy && self.moved == self.pages
    }
}

/// One checkpoint.
pub fn checkpoint(conn: &Connection, mode: Mode) -> Result<Log, StoreError> {
    let sql = match mode {
        Mode::Noop => "PRAGMA wal_checkpoint(NOOP)",
        Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Mode::Full => "PRAGMA wal_checkpoint(FULL)",
        Mode::Restart => "PRAGMA wal_checkpoint(RESTART)",
        Mode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let read = |row: &rusqlite::Row<'_>| {
        // -1 where there is no log.
        let pages = |column| row.get::<_, i64>(column).map(|pages| pages.max(0).unsigned_abs());
        Ok(Log { busy: row.get(0)?, pages: pages(1)?, moved: pages(2)? })
    };
    conn.query_row(sql, [], read).map_err(failed("moved its write-ahead log"))
}

/// What moves the log.
#[derive(Debug)]
pub struct Checkpointer {
    conn: Connection,
    rhythm: Rhythm,
    /// Whether somebody was told that it cannot be done.
    warned: bool,
}

impl Checkpointer {
    pub(super) fn new(conn: Connection, rhythm: Rhythm) -> Self {
        Self { conn, rhythm, warned: false }
    }

    /// Works until the process ends; what makes the database unusable goes to `found`.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn start(self, health: StorageHealth, found: Recipient<Found>) -> io::Result<()> {
        let thread = thread::Builder::new().name("checkpoint".into());
        thread.spawn(move || self.run(&health, &found)).map(|_| ())
    }

    fn run(mut self, health: &StorageHealth, found: &Recipient<Found>) {
        health.wake(thread::current());
        let mut seen = 0;
        let mut committed = Instant::now();
        loop {
            thread::sleep(self.rhythm.look);
            let (_, transactions) = health.totals();
            if std::mem::replace(&mut seen, transactions) != transactions {
                committed = Instant::now();
            }
            let quiet = committed.elapsed();
            if health.is_good() {
                self.look(quiet, health, found);
            }
            if self.rhythm.idle <= quiet && health.totals().1 == seen {
                // The next commit wakes it.
                thread::park();
            }
        }
    }

    fn look(&mut self, quiet: Duration, health: &StorageHealth, found: &Recipient<Found>) {
        match self.tidy(quiet) {
            Ok(true) => {
                health.checkpointed();
                self.warned = false;
            }
            Ok(false) => {}
            Err(err) => match err.fault() {
                Some(Fault::Locked) => {}
                Some(Fault::Corrupt | Fault::Unsynced) => found.do_send(Found(err)),
                _ if self.warned => {}
                _ => {
                    self.warned = true;
                    log::warn!(
                        target: "greenroom::storage", err:% = chain(&err);
                        "the write-ahead log stays; it is tried again"
                    );
                }
            },
        }
    }

    /// Moves what is due. Whether all was moved just now.
    fn tidy(&self, quiet: Duration) -> Result<bool, StoreError> {
        let Log { pages, moved, .. } = checkpoint(&self.conn, Mode::Noop)?;
        if self.rhythm.idle <= quiet {
            return checkpoint(&self.conn, Mode::Truncate).map(Log::is_done);
        }
        let due = MOVED_FROM_PAGES <= pages || self.rhythm.quiet <= quiet;
        if pages == moved || !due {
            return Ok(false);
        }
        let done = checkpoint(&self.conn, Mode::Passive)?.is_done();
        if pages < MOVED_FROM_PAGES {
            return Ok(done);
        }
        // Little is left to move, and only for that the commits wait.
        checkpoint(&self.conn, Mode::Restart).map(Log::is_done)
    }
}
