//! Tests of the database's files and of SQLite itself, whatever is stored.
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

struct TestDatabase {
    database: Database,
    store: SqliteStore,
    dir: TempDir,
}

impl TestDatabase {
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

/// I2 depends on it: both settings are of a connection, and only the writer's count. A checkpoint
/// within a commit would hide a failed sync (F20).
#[test]
fn the_writer_syncs_fully_and_writes_ahead() {
    let test = TestDatabase::new();
    let mode: String =
        test.store.0.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!((&*mode, test.number("synchronous")), ("wal", 2), "2 is FULL");
    assert_eq!((test.number("busy_timeout"), test.number("auto_vacuum")), (5_000, 2));
    assert_eq!(test.number("wal_autocheckpoint"), 0);
    let sql = "SELECT group_concat(name) FROM pragma_table_list \
               WHERE schema = 'main' AND NOT strict AND name NOT LIKE 'sqlite_%'";
    let lax: Option<String> = test.store.0.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(lax, None, "all tables are strict");
}

/// Earlier versions of SQLite reset a needed write-ahead log, in a rare race.
#[test]
fn the_bundled_sqlite_is_recent_enough() {
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}

/// F19: a full disk is reported as such. The trial write fails until there is room again, and is
/// durable when it succeeds.
#[test]
fn a_trial_fails_as_long_as_there_is_no_room() {
    let mut test = TestDatabase::new();
    let before = test.bytes("-wal");
    test.store.probe().unwrap();
    assert!(before + 16 * 4096 < test.bytes("-wal"), "it writes, without a change");

    test.fill(0..10);
    assert_eq!(test.number("freelist_count"), 0, "no room is left over");
    let allow = |test: &TestDatabase, pages: i64| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        test.store.0.query_row(&sql, [], |_| Ok(())).unwrap();
    };
    let pages = test.number("page_count");
    allow(&test, pages);
    for _ in 0..3 {
        let full = test.store.probe().unwrap_err();
        assert_eq!(full.fault(), Some(Fault::DiskFull), "{full:?}");
    }
    allow(&test, pages + 100);
    test.store.probe().unwrap();
    let trial = "SELECT count(*) FROM sqlite_schema WHERE name = 'trial'";
    let left: i64 = test.store.0.query_row(trial, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "the trial table is deleted");
}

/// F23: a trial write does not wait for another program's lock.
#[test]
fn a_trial_does_not_wait_for_a_lock() {
    let mut test = TestDatabase::new();
    let other = Connection::open(test.database.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    let locked = test.store.probe().unwrap_err();
    assert_eq!(locked.fault(), Some(Fault::Locked), "{locked:?}");
    assert!(began.elapsed() < BUSY / 5, "{:?}", began.elapsed());
    assert_eq!(test.number("busy_timeout"), 5_000, "commits wait as before");
    other.execute_batch("ROLLBACK").unwrap();
    test.store.probe().unwrap();
}

/// F20, F22, F24: each code of SQLite has its fault.
#[test]
fn each_error_has_its_fault() {
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

/// F25: the commits in a removed log are moved into the database, and the failure reports that.
#[test]
fn a_removed_log_is_detected_and_its_commits_are_kept() {
    for removed in ["-wal", "-shm"] {
        let mut test = TestDatabase::new();
        test.fill(0..5);
        assert!(test.store.check().unwrap().log > 5 * 16_000);
        fs::remove_file(test.file(removed)).unwrap();
        let gone = test.store.check().unwrap_err();
        assert_eq!(gone.fault(), Some(Fault::Replaced));
        let text = crate::storage::chain(&gone);
        assert!(text.contains(removed) && text.contains("a restart is enough"), "{text}");
        assert!(!test.file(removed).exists() || removed == "-shm", "it is not created again");
        let copy = test.dir.path().join("copy.db");
        fs::copy(test.database.path(), &copy).unwrap();
        assert_eq!(rows(&copy), 5, "the database alone has everything");
    }
}

/// F25: a file that replaced one of the database is not changed.
#[test]
fn a_replaced_file_is_detected_and_not_changed() {
    for replaced in ["", "-wal"] {
        let mut test = TestDatabase::new();
        test.fill(0..5);
        let file = test.file(replaced);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "another file").unwrap();
        let gone = test.store.check().unwrap_err();
        assert_eq!(gone.fault(), Some(Fault::Replaced));
        let text = crate::storage::chain(&gone);
        assert!(text.contains("was replaced") && !text.contains("enough"), "{text}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "another file");
    }
}

/// Free pages are given back to the file system, a bounded number at a time.
#[test]
fn free_pages_are_given_back_in_small_steps() {
    let mut test = TestDatabase::new();
    test.fill(0..1_000);
    checkpoint(&test.store.0, Mode::Truncate).unwrap();
    let before = test.bytes("");
    assert!(!test.store.shrink().unwrap(), "there is nothing to give back");
    test.store.0.execute("DELETE FROM blocks", []).unwrap();
    let mut free = test.number("freelist_count");
    assert!(3_000 < free, "{free}");
    while test.store.shrink().unwrap() {
        let left = test.number("freelist_count");
        assert!(free - left <= 300 && left < free, "{free} to {left}");
        free = left;
    }
    assert!(free <= 256, "{free}");
    checkpoint(&test.store.0, Mode::Truncate).unwrap();
    assert!(test.bytes("") < before / 5, "{} of {before}", test.bytes(""));
}

/// The writer moves a log that grew too large because the checkpointer failed.
#[test]
fn the_writer_moves_a_log_that_grew_too_large() {
    let mut test = TestDatabase::new();
    test.store.0.execute_batch("BEGIN").unwrap();
    test.fill(0..17_000);
    test.store.0.execute_batch("COMMIT").unwrap();
    let log = checkpoint(&test.store.0, Mode::Noop).unwrap();
    assert!(log.pages > 65_536 && log.moved == 0, "{log:?}");
    test.store.check().unwrap();
    assert!(checkpoint(&test.store.0, Mode::Noop).unwrap().is_done());
}

/// A backup has exactly what was committed when it began, while another connection commits without
/// a pause. Neither blocks the other.
#[test]
fn a_backup_is_of_one_moment_while_others_commit() {
    let test = TestDatabase::new();
    test.fill(0..300);
    let stop = Arc::<AtomicBool>::default();
    let writer = Connection::open(test.database.path()).unwrap();
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
        let target = test.dir.path().join(format!("backup-{round}.db"));
        let bytes = test.database.opener().backup(&target).unwrap();
        let found = fs::metadata(&target).unwrap();
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (bytes, 0o600));
        let conn = Connection::open(&target).unwrap();
        let ask = "SELECT count(*), max(key), sum(key >= 1000) FROM blocks";
        let (all, last, later): (i64, i64, i64) =
            conn.query_row(ask, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!(all, 300 + later, "the earlier rows");
        assert!(later % 2 == 0 && (later == 0 || last == 999 + later), "no gap, no half commit");
        assert_eq!(version(&conn).unwrap(), MIGRATIONS.len() as u32);
    }
    stop.store(true, Ordering::SeqCst);
    assert!(writing.join().unwrap() > 3, "the backups did not block its commits");
    let restored = Database::open(&test.dir.path().join("restored/greenroom.db"));
    drop(restored.unwrap());
    let target = test.dir.path().join("restored/greenroom.db");
    fs::copy(test.dir.path().join("backup-2.db"), &target).unwrap();
    Database::open(&target).unwrap().store().unwrap().probe().unwrap();
}

/// A backup overwrites nothing, and a failed one leaves no file.
#[test]
fn a_backup_that_fails_leaves_nothing() {
    let test = TestDatabase::new();
    let taken = test.dir.path().join("taken.db");
    fs::write(&taken, "mine").unwrap();
    let refused = test.database.opener().backup(&taken);
    assert!(matches!(refused, Err(BackupError::Exists(_))), "{refused:?}");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
    let nowhere = test.dir.path().join("missing/backup.db");
    let refused = test.database.opener().backup(&nowhere);
    assert!(matches!(refused, Err(BackupError::Write(..))), "{refused:?}");

    test.fill(0..200);
    checkpoint(&test.store.0, Mode::Truncate).unwrap();
    let file = OpenOptions::new().write(true).open(test.database.path()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xA5; 40_960], 409_600).unwrap();
    let target = test.dir.path().join("backup.db");
    let damaged = Opener::at(test.database.path()).backup(&target);
    assert!(matches!(damaged, Err(BackupError::Store(_))), "{damaged:?}");
    let left: Vec<_> = fs::read_dir(test.dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("backup")), "{left:?}");
}

/// F24: if an earlier database is missing, none is created, and nothing is changed.
#[test]
fn a_removed_database_is_not_replaced_by_a_new_one() {
    type Leftover = fn(&Path);
    let cases: [(&str, Leftover, bool); 5] = [
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

/// The files of a database that is a link are beside the link's target. By whatever path, it is one
/// database, and has one server (F26).
#[test]
fn a_database_may_be_a_link() {
    let test = TestDatabase::new();
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("greenroom.db");
    let file = test.database.path().to_owned();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let hard = tempfile::tempdir_in(test.dir.path()).unwrap();
    let hard = hard.path().join("greenroom.db");
    fs::hard_link(&file, &hard).unwrap();
    for second in [&link, &hard] {
        let refused = Database::open(second).unwrap_err();
        assert!(matches!(refused, StoreError::InUse(_)), "{}: {refused}", second.display());
    }
    let refused = Opener::at(&hard).inspect().unwrap_err();
    assert!(matches!(refused, StoreError::InUse(_)), "its log has another name: {refused}");
    Opener::at(&link).inspect().unwrap();
    drop((test.store, test.database));
    let mut store = Database::open(&link).unwrap().store().unwrap();
    assert!(store.check().unwrap().database > 0);
}

/// F24: a changed byte hides the commits after it. A log that ends in the middle of its last
/// commit, whose last commit has holes, or that was restarted, is not damaged.
#[test]
fn a_damaged_log_is_distinguished_from_a_torn_one() {
    let test = TestDatabase::new();
    checkpoint(&test.store.0, Mode::Truncate).unwrap();
    let mut ends = Vec::new();
    for key in 0..5 {
        test.fill(key..key + 1);
        ends.push(usize::try_from(test.bytes("-wal")).unwrap());
    }
    let whole = fs::read(test.file("-wal")).unwrap();
    let path = test.dir.path().join("log");
    let damage = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        wal::damage(&path).unwrap()
    };
    assert_eq!(damage(&whole), None);
    assert_eq!(wal::damage(&test.dir.path().join("none")).unwrap(), None);
    wal::damage(test.dir.path()).expect_err("what cannot be read is not whole");
    for at in (0..whole.len()).step_by(997).chain(24..64) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let found = damage(&bytes);
        // A header with a wrong magic number or other salts hides the whole log.
        let is_detectable = !(0..4).contains(&at) && !(8..24).contains(&at);
        if at < ends[3] && is_detectable {
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
    checkpoint(&test.store.0, Mode::Restart).unwrap();
    test.fill(5..6);
    let restarted = fs::read(test.file("-wal")).unwrap();
    assert_eq!(restarted.len(), whole.len(), "old frames follow the latest ones");
    assert_eq!(damage(&restarted), None);
}

const HEADER: usize = 32;
