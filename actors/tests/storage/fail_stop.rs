//! The writer over a failing store: which calls it passes on, and when it recovers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use actix::SyncArbiter;
use greenroom_actors::storage::{Db, Fault, Reader, StoreError, sqlite::Database, stall};
use tokio::time::timeout;

use super::{
    actor::{Actor, SUBMIT},
    gated::{Call, Gated, failure, start},
    open,
};

/// Starts a writer over a store that fails while `fails`, and counts the calls that are no probes.
fn faulty(database: &Database, fails: &Arc<AtomicBool>, calls: &Arc<AtomicUsize>) -> Db {
    let (fails, calls) = (fails.clone(), calls.clone());
    let gate = move |call| {
        calls.fetch_add((call != Call::Probe).into(), Ordering::SeqCst);
        if fails.load(Ordering::SeqCst) { Err(failure()) } else { Ok(()) }
    };
    start(database, Gated(database.store().unwrap(), gate))
}

/// F19: after the first failure only the probe reaches the database; recovery wakes the waiting
/// callers.
#[actix_rt::test]
async fn after_a_failure_all_writes_are_refused_until_a_probe_succeeds() {
    let (_dir, database, ..) = open::<Database>();
    let (fails, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let db = faulty(&database, &fails, &calls);
    let health = db.health.clone();

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
    assert!(matches!(db.purge(1, Some(1)).await, Err(StoreError::Unavailable(_))));
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
    let (_dir, database, ..) = open::<Database>();
    let fails = Arc::<AtomicBool>::default();
    let opener = database.opener();
    let closed = Arc::new(AtomicBool::new(true));
    let is_closed = closed.clone();
    let readers = SyncArbiter::start(1, move || {
        let (opener, is_closed) = (opener.clone(), is_closed.clone());
        Reader::new(move || {
            if is_closed.load(Ordering::SeqCst) {
                return Err(failure());
            }
            opener.read_store()
        })
    });
    let db = faulty(&database, &fails, &Arc::default());
    let db = Db { query: readers.recipient(), ..db };
    let health = db.health.clone();
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
            db.read(|_| Err::<(), _>(failure())).await.unwrap_err();
            // Answered after the writer got the report.
            if matches!(db.trusted_time().await, Err(StoreError::Unavailable(_))) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), stopped).await.unwrap();
    assert_eq!(health.failing().unwrap().fault, Fault::Other);
}

/// F38: a commit that does not return refuses requests from outside, and only these: what groups
/// have to store waits, and is stored once the commit returns.
#[actix_rt::test]
async fn a_call_that_does_not_return_is_a_stall() {
    let (_dir, database, ..) = open::<Database>();
    let (release, hang) = mpsc::channel::<()>();
    let mut hangs = true;
    let gate = move |call| {
        if call == Call::Commit && std::mem::take(&mut hangs) {
            hang.recv().expect("the test releases it");
        }
        Ok(())
    };
    let db = start(&database, Gated(database.store().unwrap(), gate));
    let health = db.health.clone();
    stall::watch(health.clone(), Duration::from_millis(1)).unwrap();
    let first_of = |group| Actor::new(group).play(SUBMIT).unwrap();
    let commit = |group| {
        let (db, commit) = (db.clone(), first_of(group));
        actix_rt::spawn(async move { db.commit(commit).await })
    };
    health.check_answers().unwrap();
    let hanging = commit(1);
    timeout(Duration::from_secs(20), health.until_stalled()).await.expect("it is noticed");
    let since = health.stalled().unwrap().since;
    let refused = health.check_answers().unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(Fault::Stalled)), "{refused:?}");
    assert!(health.is_good(), "nothing has failed");
    let waiting = commit(2);
    assert_eq!(db.read(|read_store| read_store.group_index()).await.unwrap().groups.len(), 0);
    assert_eq!(health.stalled().unwrap().since, since, "since the same time");
    release.send(()).unwrap();
    hanging.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    timeout(Duration::from_secs(20), health.until_moving()).await.expect("its end, too");
    health.check_answers().unwrap();
}
