//! The checkpointer: a thread that moves the write-ahead log into the database.
//!
//! It has a connection of its own so that commits do not wait. SQLite would do it within a commit,
//! and would hide its errors.
//!
//! A checkpoint here is SQLite's; the checkpoint of a group's log is in `truncation`.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use actix::Recipient;
use rusqlite::Connection;

use super::failed;
use crate::storage::{Fault, ReadFailed, StorageHealth, StoreError, chain};

/// The pages of the log, 16 MiB, from which they are moved. Four times SQLite's own limit, so that
/// a page that is often rewritten is moved once. More would lengthen the start after a crash, which
/// reads the log.
const MOVED_FROM_PAGES: u64 = 4000;
/// How long a checkpoint that restarts the log waits for readers. Commits wait as long.
pub const BUSY: Duration = Duration::from_millis(100);

/// How often and when the checkpointer works.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointSchedule {
    /// The wait between two checks, while there are commits.
    pub check: Duration,
    /// The time without a commit after which the whole log is moved.
    pub quiet: Duration,
    /// The time without a commit after which the log's file is truncated to zero bytes. Growing it
    /// again costs syncs, so this is long.
    pub idle: Duration,
}

impl Default for CheckpointSchedule {
    fn default() -> Self {
        Self {
            check: Duration::from_millis(100),
            quiet: Duration::from_secs(1),
            idle: Duration::from_secs(30),
        }
    }
}

/// SQLite's modes of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Only returns the numbers of pages.
    Noop,
    /// Moves the pages that can be moved without a wait.
    Passive,
    /// Waits for the readers of older states, and moves all pages.
    Full,
    /// Like `Full`, and the next commit writes at the log's beginning.
    Restart,
    /// Like `Restart`, and truncates the file to zero bytes.
    Truncate,
}

/// The result of a checkpoint, in pages.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Pages in the log.
    pub pages: u64,
    /// Pages of the log that are in the database as well.
    pub moved: u64,
    /// Whether a reader or writer blocked the checkpoint.
    pub busy: bool,
}

impl Log {
    /// Whether all pages were moved.
    pub fn is_done(self) -> bool {
        !self.busy && self.moved == self.pages
    }
}

/// Runs one checkpoint.
pub fn checkpoint(conn: &Connection, mode: Mode) -> Result<Log, StoreError> {
    let sql = match mode {
        Mode::Noop => "PRAGMA wal_checkpoint(NOOP)",
        Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Mode::Full => "PRAGMA wal_checkpoint(FULL)",
        Mode::Restart => "PRAGMA wal_checkpoint(RESTART)",
        Mode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let read = |row: &rusqlite::Row<'_>| {
        // SQLite returns -1 if there is no log.
        let pages = |column| row.get::<_, i64>(column).map(|pages| pages.max(0).unsigned_abs());
        Ok(Log { busy: row.get(0)?, pages: pages(1)?, moved: pages(2)? })
    };
    conn.query_row(sql, [], read).map_err(failed("moved its write-ahead log"))
}

/// The checkpointer, with its connection.
#[derive(Debug)]
pub struct Checkpointer {
    conn: Connection,
    schedule: CheckpointSchedule,
    /// Whether the current failure has been logged.
    warned: bool,
    /// When the next `Restart` may be tried, after long reads blocked one.
    restart_after: Option<Instant>,
}

/// The wait after a `Restart` that readers blocked: a backup reads for seconds.
const BUSY_BACKOFF: Duration = Duration::from_secs(10);

impl Checkpointer {
    pub(super) fn new(conn: Connection, schedule: CheckpointSchedule) -> Self {
        Self { conn, schedule, warned: false, restart_after: None }
    }

    /// Starts the thread, which runs until the process ends. Errors that make the database unusable
    /// go to `report_to`.
    ///
    /// # Errors
    ///
    /// The system cannot start a thread.
    pub fn start(self, health: StorageHealth, report_to: Recipient<ReadFailed>) -> io::Result<()> {
        let thread = thread::Builder::new().name("checkpoint".into());
        thread.spawn(move || self.run(&health, &report_to)).map(|_| ())
    }

    fn run(mut self, health: &StorageHealth, report_to: &Recipient<ReadFailed>) {
        health.set_checkpointer(thread::current());
        let mut seen = 0;
        let mut committed = Instant::now();
        loop {
            thread::sleep(self.schedule.check);
            let (_, transactions) = health.totals();
            if std::mem::replace(&mut seen, transactions) != transactions {
                committed = Instant::now();
            }
            let quiet = committed.elapsed();
            if health.is_good() {
                self.check(quiet, health, report_to);
            }
            if self.schedule.idle <= quiet && health.totals().1 == seen {
                // The next commit wakes it.
                thread::park();
            }
        }
    }

    fn check(
        &mut self,
        quiet: Duration,
        health: &StorageHealth,
        report_to: &Recipient<ReadFailed>,
    ) {
        match self.move_due(quiet) {
            Ok(true) => {
                health.checkpointed();
                self.warned = false;
            }
            Ok(false) => {}
            Err(err) => match err.fault() {
                Some(Fault::Locked) => {}
                Some(Fault::Corrupt | Fault::Unsynced) => report_to.do_send(ReadFailed(err)),
                _ if self.warned => {}
                _ => {
                    self.warned = true;
                    log::warn!(
                        target: "greenroom::storage", err:% = chain(&err);
                        "the write-ahead log could not be moved; greenroom retries"
                    );
                }
            },
        }
    }

    /// Moves the pages that are due. Returns whether the whole log was moved.
    fn move_due(&mut self, quiet: Duration) -> Result<bool, StoreError> {
        let Log { pages, moved, .. } = checkpoint(&self.conn, Mode::Noop)?;
        if self.schedule.idle <= quiet {
            return checkpoint(&self.conn, Mode::Truncate).map(Log::is_done);
        }
        let due = MOVED_FROM_PAGES <= pages || self.schedule.quiet <= quiet;
        if pages == moved || !due {
            return Ok(false);
        }
        let done = checkpoint(&self.conn, Mode::Passive)?.is_done();
        if pages < MOVED_FROM_PAGES {
            return Ok(done);
        }
        // A long read would block it again, and all commits would wait.
        if self.restart_after.is_some_and(|at| Instant::now() < at) {
            return Ok(false);
        }
        // Few pages are left to move, so commits wait for a short time only.
        let restarted = checkpoint(&self.conn, Mode::Restart).map(Log::is_done);
        let busy = matches!(&restarted, Ok(false) | Err(_));
        self.restart_after = busy.then(|| Instant::now() + BUSY_BACKOFF);
        restarted
    }
}
