//! What holds of the files and of SQLite itself, whatever is stored.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use tempfile::TempDir;

use super::{
    checkpoint::{Mode, checkpoint},
    *,
};
use crate::storage::Store as _;

struct Bed {
    database: Database,
    store: SqliteStore,
    dir: TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
        let store = database.store().unwrap();
        Self { database, store, dir }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        files::beside(self.database.path(), suffix)
    }

    fn bytes(&self, suffix: &str) -> u64 {
        fs::metadata(self.file(suffix)).unwrap().len()
    }

    fn number(&self, pragma: &str) -> i64 {
        self.store.0.pragma_query_value(None, pragma, |row| row.get(0)).unwrap()
    }

    /// Stores rows of about four pages each, one commit a row.
    fn fill(&self, keys: std::ops::Range<i64>) {
        let sql = "INSERT INTO blocks (key, count, at, segment, kinds, text) \
                   VALUES (?, 1, 0, 1, 'k', randomblob(16000))";
        for key in keys {
            self.store.0.execute(sql, [key]).unwrap();
        }
    }
}

fn rows(path: &Path) -> i64 {
    let conn = Connection::open(path).unwrap();
    conn.query_row("SELECT count(*) FROM blocks", [], |row| row.get(0)).unwrap()
}

/// I2 hangs on it: both are of a connection, and only the writer's own word counts. A checkpoint
/// within a commit would keep a failed sync to itself (RELIABILITY F20).
#[test]
fn the_writer_syncs_fully_and_writes_ahead() {
    let bed = Bed::new();
    let mode: String =
        bed.store.0.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!((&*mode, bed.number("synchronous")), ("wal", 2), "2 is FULL");
    assert_eq!((bed.number("busy_timeout"), bed.number("auto_vacuum")), (5_000, 2));
    assert_eq!(bed.number("wal_autocheckpoint"), 0);
}

/// Earlier ones reset a write-ahead log that was still needed, in a rare race.
#[test]
fn the_bundled_sqlite_is_recent_enough() {
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}

/// RELIABILITY F19: a full disk is called one; the trial does not work before there is room again,
/// and is durable when it works.
#[test]
fn a_trial_fails_as_long_as_there_is_no_room() {
    let mut bed = Bed::new();
    let before = bed.bytes("-wal");
    bed.store.probe().unwrap();
    assert!(before + 16 * 4096 < bed.bytes("-wal"), "it writes, though nothing changes");

    bed.fill(0..10);
    assert_eq!(bed.number("freelist_count"), 0, "no room is left over");
    let allow = |bed: &Bed, pages: i64| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        bed.store.0.query_row(&sql, [], |_| Ok(())).unwrap();
    };
    let pages = bed.number("page_count");
    allow(&bed, pages);
    for _ in 0..3 {
        let full = bed.store.probe().unwrap_err();
        assert_eq!(full.fault(), Some(Fault::DiskFull), "{full:?}");
    }
    allow(&bed, pages + 100);
    bed.store.probe().unwrap();
    let trial = "SELECT count(*) FROM sqlite_schema WHERE name = 'trial'";
    let left: i64 = bed.store.0.query_row(trial, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "nothing stays behind");
}

/// RELIABILITY F23: a trial does not wait for whoever holds the lock.
#[test]
fn a_trial_waits_for_nobody() {
    let mut bed = Bed::new();
    let other = Connection::open(bed.database.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    let locked = bed.store.probe().unwrap_err();
    assert_eq!(locked.fault(), Some(Fault::Locked), "{locked:?}");
    assert!(began.elapsed() < BUSY / 5, "{:?}", began.elapsed());
    assert_eq!(bed.number("busy_timeout"), 5_000, "commits wait as before");
    other.execute_batch("ROLLBACK").unwrap();
    bed.store.probe().unwrap();
}

/// RELIABILITY F20, F22, F24: SQLite's words, as an operator reads them.
#[test]
fn errors_are_told_apart() {
    let cases = [
        (ffi::SQLITE_FULL, Fault::DiskFull),
        (ffi::SQLITE_READONLY, Fault::ReadOnly),
        (ffi::SQLITE_BUSY, Fault::Locked),
        (ffi::SQLITE_BUSY_SNAPSHOT, Fault::Locked),
        (ffi::SQLITE_CORRUPT, Fault::Corrupt),
        (ffi::SQLITE_NOTADB, Fault::Corrupt),
        (ffi::SQLITE_IOERR_FSYNC, Fault::Unsynced),
        (ffi::SQLITE_IOERR_DIR_FSYNC, Fault::Unsynced),
        (ffi::SQLITE_IOERR_WRITE, Fault::Io),
        (ffi::SQLITE_CANTOPEN, Fault::Io),
        (ffi::SQLITE_TOOBIG, Fault::Other),
    ];
    for (code, expected) in cases {
        let err = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(failed("wrote")(err).fault(), Some(expected), "{code}");
    }
}

/// RELIABILITY F25: what was committed to a log whose name is gone is moved into the database, and
/// the failure says that.
#[test]
fn a_removed_log_is_noticed_and_what_it_holds_is_kept() {
    for removed in ["-wal", "-shm"] {
        let mut bed = Bed::new();
        bed.fill(0..5);
        assert!(bed.store.check().unwrap().log > 5 * 16_000);
        fs::remove_file(bed.file(removed)).unwrap();
        let gone = bed.store.check().unwrap_err();
        assert_eq!(gone.fault(), Some(Fault::Replaced));
        let text = crate::storage::chain(&gone);
        assert!(text.contains(removed) && text.contains("a restart is enough"), "{text}");
        assert!(!bed.file(removed).exists() || removed == "-shm", "not made anew");
        let copy = bed.dir.path().join("copy.db");
        fs::copy(bed.database.path(), &copy).unwrap();
        assert_eq!(rows(&copy), 5, "the database alone has everything");
    }
}

/// RELIABILITY F25: nothing is done to files that somebody else put there.
#[test]
fn a_replaced_file_is_noticed_and_left_alone() {
    for replaced in ["", "-wal"] {
        let mut bed = Bed::new();
        bed.fill(0..5);
        let file = bed.file(replaced);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "somebody else's").unwrap();
        let gone = bed.store.check().unwrap_err();
        assert_eq!(gone.fault(), Some(Fault::Replaced));
        let text = crate::storage::chain(&gone);
        assert!(text.contains("was replaced") && !text.contains("enough"), "{text}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "somebody else's");
    }
}

/// Pages that became free go back to the file system, a bounded number at a time.
#[test]
fn free_pages_are_given_back_in_small_steps() {
    let mut bed = Bed::new();
    bed.fill(0..1_000);
    checkpoint(&bed.store.0, Mode::Truncate).unwrap();
    let before = bed.bytes("");
    assert!(!bed.store.shrink().unwrap(), "there is nothing to give back");
    bed.store.0.execute("DELETE FROM blocks", []).unwrap();
    let mut free = bed.number("freelist_count");
    assert!(3_000 < free, "{free}");
    while bed.store.shrink().unwrap() {
        let left = bed.number("freelist_count");
        assert!(free - left <= 300 && left < free, "{free} to {left}");
        free = left;
    }
    assert!(free <= 256, "{free}");
    checkpoint(&bed.store.0, Mode::Truncate).unwrap();
    assert!(bed.bytes("") < before / 5, "{} of {before}", bed.bytes(""));
}

/// The writer does what nobody else did when the log has grown past all measure.
#[test]
fn a_log_that_nobody_moved_is_moved_by_the_writer() {
    let mut bed = Bed::new();
    bed.store.0.execute_batch("BEGIN").unwrap();
    bed.fill(0..17_000);
    bed.store.0.execute_batch("COMMIT").unwrap();
    let log = checkpoint(&bed.store.0, Mode::Noop).unwrap();
    assert!(log.pages > 65_536 && log.moved == 0, "{log:?}");
    bed.store.check().unwrap();
    assert!(checkpoint(&bed.store.0, Mode::Noop).unwrap().is_done());
}

/// A backup has what was committed when it began, all of it and nothing else, while somebody
/// commits without a pause; the log does not keep them from each other.
#[test]
fn a_backup_is_of_one_moment_while_others_commit() {
    let bed = Bed::new();
    bed.fill(0..300);
    let stop = Arc::<AtomicBool>::default();
    let writer = Connection::open(bed.database.path()).unwrap();
    let writing = thread::spawn({
        let stop = stop.clone();
        move || {
            let mut commits = 0;
            while !stop.load(Ordering::SeqCst) {
                // Two rows a commit: a copy of half a commit has an odd number.
                let sql = "INSERT INTO blocks (key, count, at, segment, kinds, text) VALUES \
                           (?1, 1, 0, 1, 'k', x'00'), (?1 + 1, 1, 0, 1, 'k', randomblob(9000))";
                writer.execute(sql, [1_000 + 2 * commits]).unwrap();
                commits += 1;
            }
            commits
        }
    });
    for round in 0..3 {
        let target = bed.dir.path().join(format!("backup-{round}.db"));
        let bytes = bed.database.opener().backup(&target).unwrap();
        let found = fs::metadata(&target).unwrap();
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (bytes, 0o600));
        let conn = Connection::open(&target).unwrap();
        let ask = "SELECT count(*), max(key), sum(key >= 1000) FROM blocks";
        let (all, last, later): (i64, i64, i64) =
            conn.query_row(ask, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!(all, 300 + later, "what was there before");
        assert!(later % 2 == 0 && (later == 0 || last == 999 + later), "no gap, no half commit");
        assert_eq!(version(&conn).unwrap(), MIGRATIONS.len() as u32);
    }
    stop.store(true, Ordering::SeqCst);
    assert!(writing.join().unwrap() > 3, "the backups did not keep it from committing");
    let restored = Database::open(&bed.dir.path().join("restored/greenroom.db"));
    drop(restored.unwrap());
    let target = bed.dir.path().join("restored/greenroom.db");
    fs::copy(bed.dir.path().join("backup-2.db"), &target).unwrap();
    Database::open(&target).unwrap().store().unwrap().probe().unwrap();
}

/// A backup overwrites nothing, and is not there in part.
#[test]
fn a_backup_that_fails_leaves_nothing() {
    let bed = Bed::new();
    let taken = bed.dir.path().join("taken.db");
    fs::write(&taken, "mine").unwrap();
    let refused = bed.database.opener().backup(&taken);
    assert!(matches!(refused, Err(BackupError::Exists(_))), "{refused:?}");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
    let nowhere = bed.dir.path().join("missing/backup.db");
    let refused = bed.database.opener().backup(&nowhere);
    assert!(matches!(refused, Err(BackupError::Write(..))), "{refused:?}");

    bed.fill(0..200);
    checkpoint(&bed.store.0, Mode::Truncate).unwrap();
    let file = OpenOptions::new().write(true).open(bed.database.path()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xA5; 40_960], 409_600).unwrap();
    let target = bed.dir.path().join("backup.db");
    let damaged = Opener::at(bed.database.path()).backup(&target);
    assert!(matches!(damaged, Err(BackupError::Store(_))), "{damaged:?}");
    let left: Vec<_> = fs::read_dir(bed.dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("backup")), "{left:?}");
}

/// RELIABILITY F24: where a database has been, none is begun in silence, and nothing is changed.
#[test]
fn a_database_that_was_removed_is_missed() {
    type Remains = fn(&Path);
    let cases: [(&str, Remains, bool); 5] = [
        ("nothing", |_| {}, true),
        ("an empty log", |dir| fs::write(dir.join("greenroom.db-wal"), "").unwrap(), true),
        ("another's work", |dir| fs::create_dir_all(dir.join("work/mine")).unwrap(), true),
        ("a log", |dir| fs::write(dir.join("greenroom.db-wal"), "log").unwrap(), false),
        ("a group's directory", |dir| fs::create_dir_all(dir.join("work/7")).unwrap(), false),
    ];
    for (name, leave, works) in cases {
        for empty in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("greenroom.db");
            leave(dir.path());
            if empty {
                fs::write(&path, "").unwrap();
            }
            match Database::open(&path) {
                Ok(_) => assert!(works, "{name}"),
                Err(err) => {
                    assert!(!works && matches!(err, StoreError::Unusable { .. }), "{name}: {err}");
                    assert_eq!(path.exists(), empty, "{name}: nothing is made");
                }
            }
        }
    }
}

/// The files of a database that is a link are beside what it leads to.
#[test]
fn a_database_may_be_a_link() {
    let bed = Bed::new();
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("greenroom.db");
    let file = bed.database.path().to_owned();
    drop(bed.store);
    std::os::unix::fs::symlink(file, &link).unwrap();
    let mut store = Database::open(&link).unwrap().store().unwrap();
    assert!(store.check().unwrap().database > 0);
}

/// RELIABILITY F24: a byte that changed hides the commits behind it; a log that ends in the middle
/// of its last commit, or whose last commit has holes, or that began anew, is as SQLite left it.
#[test]
fn a_damaged_log_is_told_from_a_torn_one() {
    let bed = Bed::new();
    checkpoint(&bed.store.0, Mode::Truncate).unwrap();
    let mut ends = Vec::new();
    for key in 0..5 {
        bed.fill(key..key + 1);
        ends.push(usize::try_from(bed.bytes("-wal")).unwrap());
    }
    let whole = fs::read(bed.file("-wal")).unwrap();
    let path = bed.dir.path().join("log");
    let damage = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        wal::damage(&path).unwrap()
    };
    assert_eq!(damage(&whole), None);
    assert_eq!(wal::damage(&bed.dir.path().join("none")).unwrap(), None);
    for at in (0..whole.len()).step_by(997).chain(24..64) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let found = damage(&bytes);
        // A header that says of itself that it is none, or has other salts, hides everything.
        let telling = !(0..4).contains(&at) && !(8..24).contains(&at);
        if at < ends[3] && telling {
            let frame = found.unwrap_or_else(|| panic!("byte {at} of {}", whole.len()));
            assert!(frame <= at.max(HEADER) as u64 && at as u64 <= frame + 4120, "{at}: {frame}");
        } else {
            assert!(found.is_none() || at < HEADER, "byte {at} is of the last commit");
        }
        assert_eq!(damage(&whole[..at]), None, "torn at {at}");
        let mut holed = whole.clone();
        let hole = ends[3].max(at)..whole.len().min(ends[3].max(at) + 512);
        holed[hole].fill(0);
        assert_eq!(damage(&holed), None, "a hole in the last commit at {at}");
    }
    checkpoint(&bed.store.0, Mode::Restart).unwrap();
    bed.fill(5..6);
    let anew = fs::read(bed.file("-wal")).unwrap();
    assert_eq!(anew.len(), whole.len(), "old frames stand behind the latest ones");
    assert_eq!(damage(&anew), None);
}

const HEADER: usize = 32;
