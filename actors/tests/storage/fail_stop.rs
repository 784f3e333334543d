//! The writer over a failing store: which calls it passes on, and when it recovers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::{Actor as _, Arbiter, SyncArbiter};
use greenroom_actors::storage::{
    Db, DigestRows, EndedAt, Fault, GroupCommit, GroupNo, LockError, LockGrant, LockRequest,
    LogTruncation, Reader, SealedDigests, StorageHealth, Store, StoreError, StoredGroup, Swept,
    Writer,
    sqlite::{Database, SqliteStore},
};
use greenroom_core::{
    Now, Timestamp, Uptime,
    lock::{Holder, Lease, Lock},
};
use tokio::time::timeout;

use crate::actor::{Actor, SUBMIT};

/// A store that fails on demand, and counts the calls.
struct Faulty {
    store: SqliteStore,
    fails: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl Faulty {
    fn pass_on(&mut self) -> Result<&mut SqliteStore, StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("on demand"));
            return Err(StoreError::Database { operation: "wrote", source });
        }
        Ok(&mut self.store)
    }
}

impl Store for Faulty {
    fn commit(&mut self, batch: &[GroupCommit]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.pass_on()?.commit(batch)
    }

    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<StoredGroup>, StoreError> {
        self.pass_on()?.adopt(group, now)
    }

    fn put_sealed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &SealedDigests,
    ) -> Result<(), StoreError> {
        self.pass_on()?.put_sealed(group, epoch, rows)
    }

    fn put_digests(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &DigestRows,
    ) -> Result<(), StoreError> {
        self.pass_on()?.put_digests(group, epoch, rows)
    }

    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError> {
        self.pass_on()?.put_exported(name, place)
    }

    fn purge(&mut self, group: GroupNo) -> Result<(), StoreError> {
        self.pass_on()?.purge(group)
    }

    fn truncate_log(&mut self, truncation: &LogTruncation) -> Result<bool, StoreError> {
        self.pass_on()?.truncate_log(truncation)
    }

    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError> {
        self.pass_on()?.sweep(group)
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        if self.fails.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("on demand"));
            return Err(StoreError::Database { operation: "was tested", source });
        }
        Ok(())
    }

    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        self.pass_on()?.forget_keys(before)
    }

    fn lock_acquire(
        &mut self,
        request: &LockRequest,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<LockGrant, LockError> {
        self.pass_on()?.lock_acquire(request, now, is_dead)
    }

    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError> {
        self.pass_on()?.lock_refresh(lease, now)
    }

    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError> {
        self.pass_on()?.lock_release(lease)
    }

    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError> {
        self.pass_on()?.forget_locks(now)
    }
}

/// F19: after the first failure only the probe reaches the database; recovery wakes the waiting
/// callers.
#[actix_rt::test]
async fn after_a_failure_all_writes_are_refused_until_a_probe_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let (fails, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let store =
        Faulty { store: database.store().unwrap(), fails: fails.clone(), calls: calls.clone() };
    let health = StorageHealth::default();
    let for_actor = health.clone();
    let writer =
        Writer::start_in_arbiter(&Arbiter::new().handle(), move |_| Writer::new(store, for_actor));
    let opener = database.opener();
    let readers = SyncArbiter::start(1, move || {
        let opener = opener.clone();
        Reader::new(move || opener.read_store())
    });
    let db = Db::new(writer, readers, health.clone());

    let first_of = |group| Actor::new(group).play(SUBMIT).unwrap();
    db.commit(first_of(1)).await.unwrap();
    timeout(Duration::ZERO, health.until_good()).await.expect("the storage works: no wait");

    fails.store(true, Ordering::SeqCst);
    let failed = db.commit(first_of(2)).await.unwrap_err();
    assert!(matches!(failed, StoreError::Database { .. }), "{failed:?}");
    let failing = health.failing().unwrap();
    assert_eq!(failing.fault, Fault::Other);
    assert!(!health.is_good());
    let before = calls.load(Ordering::SeqCst);
    for group in 2..100 {
        let refused = db.commit(first_of(group)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable(Fault::Other)), "{refused:?}");
    }
    assert!(matches!(db.adopt(1).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(db.purge(1).await, Err(StoreError::Unavailable(_))));
    assert_eq!(calls.load(Ordering::SeqCst), before, "no call reached the database");
    assert_eq!(db.read(|read_store| read_store.group_index()).await.unwrap().groups.len(), 1);
    assert_eq!(health.failing(), Some(failing), "failing since the same time");

    let waiting = health.clone();
    let waiting = actix_rt::spawn(async move { waiting.until_good().await });
    fails.store(false, Ordering::SeqCst);
    timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert!(health.is_good());
    assert_eq!(db.adopt(1).await.unwrap().unwrap().tasks.len(), 1);
    assert!(db.adopt(2).await.unwrap().is_none(), "no refused commit is stored");
    db.commit(first_of(2)).await.unwrap();
}

/// A reader thread that could not open the database reopens it for the next query. Its failure is
/// its own: the writer probes the database and continues.
#[actix_rt::test]
async fn a_failed_reader_reopens_and_does_not_stop_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let (fails, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let store =
        Faulty { store: database.store().unwrap(), fails: fails.clone(), calls: calls.clone() };
    let health = StorageHealth::default();
    let for_actor = health.clone();
    let writer =
        Writer::start_in_arbiter(&Arbiter::new().handle(), move |_| Writer::new(store, for_actor));
    let opener = database.opener();
    let closed = Arc::new(AtomicBool::new(true));
    let is_closed = closed.clone();
    let readers = SyncArbiter::start(1, move || {
        let (opener, is_closed) = (opener.clone(), is_closed.clone());
        Reader::new(move || {
            if is_closed.load(Ordering::SeqCst) {
                let source = Arc::new(std::io::Error::other("no descriptor is left"));
                return Err(StoreError::Database { operation: "opened", source });
            }
            opener.read_store()
        })
    });
    let db = Db::new(writer, readers, health.clone());
    let index = || db.read(|read_store| read_store.group_index());

    let mut actor = Actor::new(1);
    for _ in 0..3 {
        let failed = index().await.unwrap_err();
        assert!(matches!(failed, StoreError::Database { .. }), "{failed:?}");
        db.commit(actor.play(SUBMIT).unwrap()).await.unwrap();
        assert!(health.is_good());
    }
    closed.store(false, Ordering::SeqCst);
    assert_eq!(index().await.unwrap().groups.len(), 1);

    // If the writer's own probe fails as well, the database is at fault.
    fails.store(true, Ordering::SeqCst);
    // The writer probes after a failure at most once a second.
    let stopped = async {
        loop {
            let failing = db.read(|_| {
                let source = Arc::new(std::io::Error::other("on demand"));
                Err::<(), _>(StoreError::Database { operation: "was read", source })
            });
            failing.await.unwrap_err();
            // Answered after the writer got the report.
            if matches!(db.trusted_time().await, Err(StoreError::Unavailable(_))) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), stopped).await.unwrap();
    assert_eq!(health.failing().unwrap().fault, Fault::Other);
}
