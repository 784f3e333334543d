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
    /// Whether the log may hold deleted text: at a start, that of an earlier server.
    holds_deleted: bool,
    /// When it may be truncated for that, after the last try.
    truncate_after: Option<Instant>,
}

/// The wait after a `Restart` that readers blocked: a backup reads for seconds. Also the wait
/// between two truncations of deleted text, as the log has to grow again after each.
const BUSY_BACKOFF: Duration = Duration::from_secs(10);

impl Checkpointer {
    pub(super) fn new(conn: Connection, schedule: CheckpointSchedule) -> Self {
        Self {
            conn,
            schedule,
            warned: false,
            restart_after: None,
            holds_deleted: true,
            truncate_after: None,
        }
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
            let has_work = self.holds_deleted || health.totals().1 != seen;
            if self.schedule.idle <= quiet && !has_work {
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
        self.holds_deleted |= health.take_deleted();
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
        if self.schedule.idle <= quiet || self.may_hold_deleted() {
            return self.truncate();
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

impl Checkpointer {
    /// Whether the log is to be truncated because it may hold deleted text.
    fn may_hold_deleted(&self) -> bool {
        self.holds_deleted && self.truncate_after.is_none_or(|at| at <= Instant::now())
    }

    /// Moves the log, and truncates its file: a log that only restarts keeps the pages of deleted
    /// text until others overwrite them. Commits wait for readers, as in `Restart`.
    fn truncate(&mut self) -> Result<bool, StoreError> {
        // Most pages are moved without a wait.
        checkpoint(&self.conn, Mode::Passive)?;
        let done = checkpoint(&self.conn, Mode::Truncate).map(Log::is_done);
        if self.holds_deleted {
            self.holds_deleted = !matches!(done, Ok(true));
            self.truncate_after = Some(Instant::now() + BUSY_BACKOFF);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::storage::sqlite::{Database, files};

    const SCHEDULE: CheckpointSchedule = CheckpointSchedule {
        check: Duration::ZERO,
        quiet: Duration::from_secs(1),
        idle: Duration::from_secs(30),
    };
    const BUSY_GROUPS: Duration = Duration::ZERO;

    struct TestLog {
        database: Database,
        writer: Connection,
        checkpointer: Checkpointer,
        dir: tempfile::TempDir,
    }

    impl TestLog {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
            let writer = database.writer().unwrap();
            let mut checkpointer = database.checkpointer(SCHEDULE).unwrap();
            assert!(checkpointer.holds_deleted, "an earlier server may have deleted text");
            checkpointer.holds_deleted = false;
            Self { database, writer, checkpointer, dir }
        }

        /// Commits this number of rows of four pages each, and returns the log.
        fn fill(&self, rows: u32) -> Log {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ?) \
                       INSERT INTO blocks (key, count, at, segment, kinds, text) \
                       SELECT coalesce((SELECT max(key) FROM blocks), 0) + i, 1, 0, 1, 'k', \
                       randomblob(16000) FROM n";
            self.writer.execute(sql, [rows]).unwrap();
            self.log()
        }

        fn log(&self) -> Log {
            checkpoint(&self.writer, Mode::Noop).unwrap()
        }

        /// How many bytes the log's file has.
        fn bytes(&self) -> u64 {
            fs::metadata(files::beside(self.database.path(), "-wal")).unwrap().len()
        }

        /// A connection that reads the present state until it is dropped.
        fn long_read(&self) -> Connection {
            let reader = Connection::open(self.dir.path().join("greenroom.db")).unwrap();
            reader.execute_batch("BEGIN").unwrap();
            reader.query_row("SELECT count(*) FROM blocks", [], |_| Ok(())).unwrap();
            reader
        }
    }

    /// I11: a small log is moved once commits pause, and its file is truncated after a long pause.
    #[test]
    fn a_small_log_is_moved_when_commits_pause() {
        let mut test = TestLog::new();
        let log = test.fill(10);
        assert!((40..MOVED_FROM_PAGES).contains(&log.pages) && log.moved == 0, "{log:?}");
        assert!(!test.checkpointer.move_due(SCHEDULE.quiet - Duration::from_millis(1)).unwrap());
        assert_eq!(test.log().moved, 0, "commits do not pause");
        assert!(test.checkpointer.move_due(SCHEDULE.quiet).unwrap());
        let moved = test.log();
        assert!(moved.is_done() && test.bytes() > 0, "{moved:?}");
        assert!(!test.checkpointer.move_due(SCHEDULE.quiet).unwrap(), "nothing is left to move");
        assert!(test.checkpointer.move_due(SCHEDULE.idle).unwrap());
        assert_eq!(test.bytes(), 0);
    }

    /// C14: deleted text leaves the log at the first moment without an older reader, though commits
    /// continue; the tries have pauses.
    #[test]
    fn a_log_with_deleted_text_is_truncated() {
        let mut test = TestLog::new();
        test.fill(1);
        assert!(!test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        assert!(test.bytes() > 0, "nothing was deleted");

        test.checkpointer.holds_deleted = true;
        assert!(test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        assert_eq!(test.bytes(), 0);

        test.checkpointer.holds_deleted = true;
        test.fill(1);
        assert!(!test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        assert!(test.bytes() > 0, "the last truncation was just before");
        test.checkpointer.truncate_after = Some(Instant::now());
        let reader = test.long_read();
        test.fill(1);
        assert!(!test.checkpointer.move_due(BUSY_GROUPS).unwrap_or_default());
        assert!(test.checkpointer.holds_deleted && test.bytes() > 0);
        drop(reader);
        test.checkpointer.truncate_after = Some(Instant::now());
        assert!(test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        assert!(!test.checkpointer.holds_deleted);
        assert_eq!(test.bytes(), 0);
    }

    /// I11: a large log is moved and begun again while commits continue. If a long read blocks
    /// that, the pages that may be moved are, and commits wait for no second try.
    #[test]
    fn a_large_log_is_moved_while_commits_continue() {
        let mut test = TestLog::new();
        let large = MOVED_FROM_PAGES as u32 / 4 + 1;
        let log = test.fill(large);
        assert!(log.pages >= MOVED_FROM_PAGES, "{log:?}");
        assert!(test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        let log = test.fill(1);
        assert!(log.pages < 100, "the commit wrote at the log's beginning: {log:?}");

        test.fill(large);
        let reader = test.long_read();
        test.fill(1);
        assert!(!test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        let log = test.log();
        assert!(MOVED_FROM_PAGES <= log.moved && log.moved < log.pages, "{log:?}");
        assert!(test.checkpointer.restart_after.is_some());
        drop(reader);
        assert!(!test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        assert!(test.log().is_done(), "all is moved, without a wait for it");
        test.fill(large);
        test.checkpointer.restart_after = Some(Instant::now());
        assert!(test.checkpointer.move_due(BUSY_GROUPS).unwrap());
        assert!(test.checkpointer.restart_after.is_none());
    }
}
