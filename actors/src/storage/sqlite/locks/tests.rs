//! Tests of the lock: two processes compact one session at once, and two threads without the lock.
//!
//! Also the answers of a database without the table of locks, and of one that fails.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use greenroom_core::{EndReason, Fact, Group, SessionId, Settings};
use rusqlite::OpenFlags;
use tempfile::TempDir;

use super::*;
use crate::{
    clock,
    storage::{
        GroupCommit, GroupSummary, ReadStore as _, Store as _, StoreError, holder,
        sqlite::{Database, SqliteReadStore, SqliteStore, connect},
    },
};

/// How long a party's compaction takes: long enough for both to overlap.
const OVERLAP: Duration = Duration::from_millis(250);
/// The session that both parties compact.
const PARENT: &str = "parent";
const LONG: Duration = Duration::from_secs(20);

/// A database with one group, one session and one open segment.
struct World {
    database: Database,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
        let opened = Fact::SegmentStarted {
            segment: 1,
            parent: None,
            session: SessionId(PARENT.into()),
            provenance: None,
        };
        let settings = Settings { agent: "agent".into(), ..Settings::default() };
        let mut group = Group::new(settings.clone());
        let facts = facts(&mut group, vec![Fact::GroupCreated(settings), opened]);
        let answers = database.store().unwrap().commit(&[facts]).unwrap();
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        Self { database, _dir: dir }
    }

    fn path(&self) -> &Path {
        self.database.path()
    }

    fn children(&self) -> u32 {
        let conn = connect(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let sql = "SELECT count(*) FROM segments WHERE no = 1 AND parent = 1";
        conn.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

fn facts(group: &mut Group, facts: Vec<Fact>) -> GroupCommit {
    let at = Timestamp(1);
    let facts = facts.into_iter().map(|fact| group.record(fact, at)).collect();
    GroupCommit {
        group: 1,
        epoch: 1,
        at,
        summary: GroupSummary::of("work".parse().unwrap(), group),
        facts,
        blocks: Vec::new(),
        digests: None,
        key: None,
    }
}

fn key() -> LockKey {
    PARENT.parse().unwrap()
}

fn ask(ttl_ms: u64) -> LockRequest {
    let ttl = Ttl::from_ms(ttl_ms).unwrap();
    LockRequest { key: key(), holder: holder::fresh(), ttl, group: Some(1) }
}

/// Runs one party, which finds the session open and compacts it, and returns what came of it. It
/// calls `started` first.
fn party(path: &Path, started: impl FnOnce()) -> &'static str {
    let open = |access| connect(path, access).unwrap();
    let read_store = SqliteReadStore::new(open(OpenFlags::SQLITE_OPEN_READ_ONLY));
    let mut store = SqliteStore::new(open(OpenFlags::SQLITE_OPEN_READ_WRITE), None);
    let summary = read_store.group(1).unwrap().unwrap();
    assert_eq!(summary.state.segment, 1);
    started();
    let lease = match store.lock_acquire(&ask(60_000), clock::moment(), &holder::is_dead) {
        Ok(granted) => granted.lock.lease,
        Err(LockError::Conflict { .. }) => return "skipped",
        Err(err) => panic!("{err:?}"),
    };
    // HL-10: the other party may have compacted it already.
    let state = read_store.group(1).unwrap().unwrap().state;
    if state.segment != 1 {
        assert!(store.lock_release(&lease).unwrap());
        return "skipped";
    }
    thread::sleep(OVERLAP);
    let rotated = vec![
        Fact::SegmentEnded { segment: 1, end_reason: EndReason::Compaction },
        Fact::SegmentStarted {
            segment: 2,
            parent: Some(1),
            session: SessionId("child".into()),
            provenance: None,
        },
        Fact::LockReleased {
            key: SessionId(lease.key.as_str().into()),
            holder: lease.holder.to_string(),
            token: lease.token,
            fences: true,
        },
    ];
    let mut group = Group::restore(state, Vec::new(), None, None, [], Vec::new());
    match store.commit(&[facts(&mut group, rotated)]) {
        Ok(_) => "moved",
        Err(err) => panic!("{err:?}"),
    }
}

/// I4, HL-8: without the lock the schema alone prevents that a peer forks the session. Without the
/// index it would: so this test can fail.
#[test]
fn with_the_lock_switched_off_the_index_prevents_the_fork() {
    let sql = "BEGIN IMMEDIATE; \
               UPDATE segments SET closed_seq = 3, closed_at = 1 WHERE no = 1 AND segment = 1; \
               INSERT INTO segments (no, segment, parent, session, opened_seq, opened_at) \
               SELECT 1, max(segment) + 1, 1, 'child', 4, 1 FROM segments WHERE no = 1; \
               COMMIT";
    for (drop, moved) in [("", 1), ("DROP INDEX segments_one_child", 2)] {
        let world = World::new();
        let open = || connect(world.path(), OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        // The other unique index that prevents a fork, as both children are open.
        open().execute_batch(&format!("DROP INDEX segments_one_open; {drop}")).unwrap();
        let rotations = [open(), open()].map(|peer| peer.execute_batch(sql));
        for refused in rotations.iter().filter_map(|rotated| rotated.as_ref().err()) {
            assert!(refused.to_string().contains("segments.no, segments.parent"), "{refused}");
        }
        assert_eq!(rotations.iter().filter(|rotated| rotated.is_ok()).count(), moved, "{drop}");
        assert_eq!(world.children() as usize, moved, "{drop}");
    }
}

/// The environment variable with the directory of a child process, which runs this test program.
const STAGE: &str = "LOCK_TEST_STAGE";

/// Starts a child process that runs `test`; there [`on_stage`] returns `stage`.
fn spawn_child(test: &str, stage: &Path) -> Child {
    let test = format!("storage::sqlite::locks::tests::{test}");
    Command::new(env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture"])
        .env(STAGE, stage)
        .spawn()
        .unwrap()
}

fn on_stage() -> Option<PathBuf> {
    env::var_os(STAGE).map(PathBuf::from)
}

fn wait_for(what: &Path) {
    let began = Instant::now();
    while !what.exists() {
        assert!(began.elapsed() < LONG, "{} did not appear", what.display());
        thread::sleep(Duration::from_millis(1));
    }
}

/// The file by which a child process shows that it is ready.
fn mark(stage: &Path, pid: u32) -> PathBuf {
    stage.join(format!("here-{pid}"))
}

/// HL-1, HL-2, I4: one party moves the session to the only child, the other skips before it
/// compacts.
#[test]
fn of_two_processes_one_compacts() {
    const SELF: &str = "of_two_processes_one_compacts";
    if let Some(stage) = on_stage() {
        let pid = std::process::id();
        let outcome = party(&stage.join("greenroom.db"), || {
            fs::write(mark(&stage, pid), "").unwrap();
            wait_for(&stage.join("go"));
        });
        fs::write(stage.join(format!("outcome-{pid}")), outcome).unwrap();
        return;
    }
    let world = World::new();
    let stage = world.database.dir();
    let parties = [spawn_child(SELF, stage), spawn_child(SELF, stage)];
    parties.iter().for_each(|party| wait_for(&mark(stage, party.id())));
    fs::write(stage.join("go"), "").unwrap();
    let mut outcomes = parties.map(|mut party| {
        assert!(party.wait().unwrap().success());
        fs::read_to_string(stage.join(format!("outcome-{}", party.id()))).unwrap()
    });
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["moved", "skipped"]);
    assert_eq!(world.children(), 1);
    let read_store = world.database.opener().read_store().unwrap();
    assert_eq!(read_store.lock(&key()).unwrap(), None, "the lock is free afterwards");
    let segments = read_store.segments(1, 0, 10).unwrap();
    let open: Vec<bool> = segments.iter().map(|segment| segment.closed.is_none()).collect();
    assert_eq!(open, [false, true]);
}

/// HL-5: the lock of a killed process is free at once, however long its lease is.
#[test]
fn the_lock_of_a_killed_process_is_reclaimed() {
    const SELF: &str = "the_lock_of_a_killed_process_is_reclaimed";
    let acquire = |path: &Path| {
        let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        let mut store = SqliteStore::new(conn, None);
        store.lock_acquire(&ask(TTL_MS_MAX), clock::moment(), &holder::is_dead)
    };
    if let Some(stage) = on_stage() {
        acquire(&stage.join("greenroom.db")).unwrap();
        fs::write(mark(&stage, std::process::id()), "").unwrap();
        // Until it is killed; it ends by itself if the test fails.
        thread::sleep(LONG);
        return;
    }
    let world = World::new();
    let mut holder = spawn_child(SELF, world.database.dir());
    wait_for(&mark(world.database.dir(), holder.id()));
    let held = acquire(world.path());
    assert!(matches!(held, Err(LockError::Conflict { .. })), "{held:?}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let reclaimed = acquire(world.path()).unwrap();
    assert_eq!((reclaimed.fresh, reclaimed.lock.lease.token), (true, 2));
}

/// Returns every answer of a store about the lock.
fn probe(world: &World, store: &mut SqliteStore) -> [Result<(), LockError>; 5] {
    let now = clock::moment();
    let lease = Lease { key: key(), holder: holder::fresh(), token: 1 };
    let read_store = world.database.opener().read_store().unwrap();
    [
        store.lock_acquire(&ask(1_000), now, &holder::is_dead).map(drop),
        store.lock_refresh(&lease, now).map(drop),
        store.lock_release(&lease).map(drop),
        store.forget_locks(now.up).map(drop),
        read_store.lock(&lease.key).map(drop),
    ]
}

/// HL-8: a database without the table of locks reports that, and all else works.
#[test]
fn an_absent_table_is_distinguished_from_a_failure() {
    let world = World::new();
    let mut store = world.database.store().unwrap();
    store.0.execute("DROP TABLE locks", []).unwrap();
    for err in probe(&world, &mut store).map(Result::unwrap_err) {
        assert!(matches!(err, LockError::Absent), "{err:?}");
        assert!(err.to_string().contains("restart greenroom, or upgrade"), "the remedy: {err}");
    }
    store.0.execute("UPDATE segments SET closed_seq = 2, closed_at = 1", []).unwrap();
    assert!(store.adopt(1, clock::moment().up).unwrap().is_some());
    let open: u32 = store
        .0
        .query_row("SELECT count(*) FROM segments WHERE closed_seq IS NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(open, 1, "HL-12, though there are no locks");
    store.purge(1, Some(2)).unwrap();
}

/// HL-9, HL-12: no other failure counts as an absent table.
#[test]
fn a_failing_database_is_not_taken_for_one_without_locks() {
    let world = World::new();
    let mut store = world.database.store().unwrap();
    let broken = |err: LockError| {
        assert!(matches!(err, LockError::Store(StoreError::Database { .. })), "{err:?}");
    };
    let lease = Lease { key: key(), holder: holder::fresh(), token: 1 };

    let other = connect(world.path(), OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    store.0.busy_timeout(Duration::ZERO).unwrap();
    broken(store.lock_acquire(&ask(1), clock::moment(), &holder::is_dead).unwrap_err());
    broken(store.lock_release(&lease).unwrap_err());
    other.execute_batch("ROLLBACK").unwrap();

    let conn = connect(world.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut read_only = SqliteStore::new(conn, None);
    broken(read_only.lock_acquire(&ask(1), clock::moment(), &holder::is_dead).unwrap_err());

    // Damage: changed tables and columns.
    other.execute_batch("ALTER TABLE locks RENAME COLUMN boot TO shoe").unwrap();
    other.execute_batch("UPDATE segments SET closed_seq = 2, closed_at = 1").unwrap();
    store.adopt(1, clock::moment().up).unwrap_err();
    let open = "SELECT count(*) FROM segments WHERE closed_seq IS NULL";
    let open: u32 = other.query_row(open, [], |row| row.get(0)).unwrap();
    assert_eq!(open, 0, "HL-12: the lock may be held, so its holder may open the next segment");
    let [acquire, refresh, _, forget, get] = probe(&world, &mut store);
    [acquire, refresh, forget, get].into_iter().map(Result::unwrap_err).for_each(broken);
    other.execute_batch("DROP TABLE locks; CREATE VIEW locks AS SELECT * FROM gone").unwrap();
    probe(&world, &mut store).into_iter().map(Result::unwrap_err).for_each(broken);
}

/// An unreadable row blocks no acquisition.
#[test]
fn an_unreadable_lock_is_replaced() {
    let world = World::new();
    let mut store = world.database.store().unwrap();
    let first = store.lock_acquire(&ask(60_000), clock::moment(), &holder::is_dead).unwrap();
    for damage in ["boot = 'x'", "ttl_ms = 0", "holder = ''"] {
        store.0.execute(&format!("UPDATE locks SET {damage}"), []).unwrap();
        let granted = store.lock_acquire(&ask(60_000), clock::moment(), &holder::is_dead);
        assert!(granted.unwrap().lock.lease.token > first.lock.lease.token, "{damage}");
    }
}
