//! The actor that commits, over a store that fails: what it lets through, and when it goes on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::Duration;

use actix::{Actor as _, Arbiter, SyncArbiter};
use greenroom_actors::storage::{
    ClosedRows, Cut, DigestRows, EndedAt, Fault, Granted, GroupNo, Hydration, Ledger, LockAsk,
    LockError, Reader, Storage, StorageHealth, Store, StoreError, Swept, Writes,
    sqlite::{Database, SqliteStore},
};
use greenroom_core::{
    Timestamp,
    lock::{Holder, Lease, Lock, Now, Uptime},
};
use tokio::time::timeout;

use crate::actor::{Actor, SUBMIT};

/// A store that fails while it is told to, and counts how often it is asked to write.
struct Faulty {
    store: SqliteStore,
    fails: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Faulty {
    fn ask(&mut self) -> Result<&mut SqliteStore, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("told to"));
            return Err(StoreError::Database { operation: "wrote", source });
        }
        Ok(&mut self.store)
    }
}

impl Store for Faulty {
    fn commit(&mut self, batch: &[Writes]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.ask()?.commit(batch)
    }

    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<Hydration>, StoreError> {
        self.ask()?.adopt(group, now)
    }

    fn put_closed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &ClosedRows,
    ) -> Result<(), StoreError> {
        self.ask()?.put_closed(group, epoch, rows)
    }

    fn put_digests(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &DigestRows,
    ) -> Result<(), StoreError> {
        self.ask()?.put_digests(group, epoch, rows)
    }

    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError> {
        self.ask()?.put_exported(name, place)
    }

    fn purge(&mut self, group: GroupNo) -> Result<(), StoreError> {
        self.ask()?.purge(group)
    }

    fn cut(&mut self, cut: &Cut) -> Result<bool, StoreError> {
        self.ask()?.cut(cut)
    }

    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError> {
        self.ask()?.sweep(group)
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        if self.fails.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("told to"));
            return Err(StoreError::Database { operation: "was tried", source });
        }
        Ok(())
    }

    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        self.ask()?.forget_keys(before)
    }

    fn lock_acquire(
        &mut self,
        ask: &LockAsk,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<Granted, LockError> {
        self.ask()?.lock_acquire(ask, now, is_dead)
    }

    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError> {
        self.ask()?.lock_refresh(lease, now)
    }

    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError> {
        self.ask()?.lock_release(lease)
    }

    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError> {
        self.ask()?.forget_locks(now)
    }
}

/// RELIABILITY F19: after the first failure nothing reaches the database but the trial, whoever
/// asks for what; whoever waits for it to work again is woken.
#[actix_rt::test]
async fn after_a_failure_everything_is_refused_until_a_trial_works() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let (fails, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let store =
        Faulty { store: database.store().unwrap(), fails: fails.clone(), asked: asked.clone() };
    let health = StorageHealth::default();
    let for_actor = health.clone();
    let writer = Storage::start_in_arbiter(&Arbiter::new().handle(), move |_| {
        Storage::new(store, for_actor)
    });
    let opener = database.opener();
    let readers = SyncArbiter::start(1, move || {
        let opener = opener.clone();
        Reader::new(move || opener.archive())
    });
    let ledger = Ledger::new(writer, readers, health.clone());

    let first_of = |group| Actor::new(group).play(SUBMIT).unwrap();
    ledger.commit(first_of(1)).await.unwrap();
    timeout(Duration::ZERO, health.until_good()).await.expect("it works: nothing to wait for");

    fails.store(true, Ordering::SeqCst);
    let failed = ledger.commit(first_of(2)).await.unwrap_err();
    assert!(matches!(failed, StoreError::Database { .. }), "{failed:?}");
    let failing = health.failing().unwrap();
    assert_eq!(failing.fault, Fault::Other);
    assert!(!health.is_good());
    let before = asked.load(Ordering::SeqCst);
    for group in 2..100 {
        let refused = ledger.commit(first_of(group)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable(Fault::Other)), "{refused:?}");
    }
    assert!(matches!(ledger.adopt(1).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(ledger.purge(1).await, Err(StoreError::Unavailable(_))));
    assert_eq!(asked.load(Ordering::SeqCst), before, "nothing reached the database");
    assert_eq!(ledger.read(|archive| archive.group_index()).await.unwrap().groups.len(), 1);
    assert_eq!(health.failing(), Some(failing), "still since the same moment");

    let waiting = health.clone();
    let waiting = actix_rt::spawn(async move { waiting.until_good().await });
    fails.store(false, Ordering::SeqCst);
    timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert!(health.is_good());
    assert_eq!(ledger.adopt(1).await.unwrap().unwrap().tasks.len(), 1);
    assert!(ledger.adopt(2).await.unwrap().is_none(), "of the refused ones nothing is stored");
    ledger.commit(first_of(2)).await.unwrap();
}

/// A reading thread that could not open the database opens it for the next question. Its failure is
/// its own: the writer probes the database and continues.
#[actix_rt::test]
async fn a_reader_that_could_not_open_opens_again_and_stops_no_writer() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let (fails, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let store =
        Faulty { store: database.store().unwrap(), fails: fails.clone(), asked: asked.clone() };
    let health = StorageHealth::default();
    let for_actor = health.clone();
    let writer = Storage::start_in_arbiter(&Arbiter::new().handle(), move |_| {
        Storage::new(store, for_actor)
    });
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
            opener.archive()
        })
    });
    let ledger = Ledger::new(writer, readers, health.clone());
    let index = || ledger.read(|archive| archive.group_index());

    let mut actor = Actor::new(1);
    for _ in 0..3 {
        let failed = index().await.unwrap_err();
        assert!(matches!(failed, StoreError::Database { .. }), "{failed:?}");
        ledger.commit(actor.play(SUBMIT).unwrap()).await.unwrap();
        assert!(health.is_good());
    }
    closed.store(false, Ordering::SeqCst);
    assert_eq!(index().await.unwrap().groups.len(), 1);

    // If the writer's own trial fails as well, it is the database.
    fails.store(true, Ordering::SeqCst);
    // A failure is looked into once a second.
    let stopped = async {
        loop {
            let failing = ledger.read(|_| {
                let source = Arc::new(std::io::Error::other("told to"));
                Err::<(), _>(StoreError::Database { operation: "was read", source })
            });
            failing.await.unwrap_err();
            // Answered after the writer has heard of it.
            if matches!(ledger.trusted().await, Err(StoreError::Unavailable(_))) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), stopped).await.unwrap();
    assert_eq!(health.failing().unwrap().fault, Fault::Other);
}
