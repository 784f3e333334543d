//! Calls of the store through the writer: their order, and which are made at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _, future::join_all, poll, stream::FuturesUnordered,
};
use greenroom_actors::storage::{Db, StoreError, sqlite::Database};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    actor::{Actor, SUBMIT},
    gated::{self, Call, Gated},
    open, sqlite,
};

/// The groups that start together in a test.
const GROUPS: u32 = 80;

/// Starts a writer.
fn idle() -> (Db, (Database, TempDir)) {
    let (dir, database, ..) = open::<Database>();
    (gated::start(&database, database.store().unwrap()), (database, dir))
}

/// Starts a writer, and blocks it until the returned sender is dropped.
async fn blocked() -> (Db, mpsc::Sender<()>, (Database, TempDir)) {
    let (db, database) = idle();
    (db.clone(), block(&db).await, database)
}

/// Blocks the writer until the returned sender is dropped.
async fn block(db: &Db) -> mpsc::Sender<()> {
    let (unblock, blocked) = mpsc::channel::<()>();
    let (begin, begun) = oneshot::channel();
    let blocking = db.clone();
    actix_rt::spawn(async move {
        let block = blocking.write(move |_| {
            begin.send(()).unwrap();
            _ = blocked.recv_timeout(Duration::from_secs(20));
            Ok(())
        });
        block.await
    });
    begun.await.unwrap();
    unblock
}

/// I2: a call sees the commits that were sent before it.
#[actix_rt::test]
async fn a_call_follows_the_commits_before_it() {
    let (db, unblock, _database) = blocked().await;
    let mut commit = Box::pin(db.commit(Actor::new(1).play(SUBMIT).unwrap()));
    let mut adopt = Box::pin(db.adopt(1));
    assert!(poll!(&mut commit).is_pending() && poll!(&mut adopt).is_pending());
    drop(unblock);
    assert_eq!(adopt.await.unwrap().unwrap().tasks.len(), 1);
    commit.await.unwrap();
}

/// A client that has gone away must not leave a lock that it does not know of.
#[actix_rt::test]
async fn a_call_is_not_made_once_its_caller_has_stopped_waiting() {
    let (db, unblock, _database) = blocked().await;
    let called = Arc::<AtomicBool>::default();
    let calls = called.clone();
    let mut call = Box::pin(db.write(move |_| {
        calls.store(true, Ordering::SeqCst);
        Ok(())
    }));
    assert!(poll!(&mut call).is_pending());
    drop(call);
    drop(unblock);
    db.write(|_| Ok(())).await.unwrap();
    assert!(!called.load(Ordering::SeqCst));
}

/// Starts a writer of [`GROUPS`] groups that counts its calls.
async fn counting() -> (Db, Arc<AtomicU32>, (Database, TempDir)) {
    let (dir, database, ..) = open::<Database>();
    let calls = Arc::<AtomicU32>::default();
    let counted = calls.clone();
    let count = move |call| {
        counted.fetch_add((call == Call::Other).into(), Ordering::SeqCst);
        Ok(())
    };
    let db = gated::start(&database, Gated(database.store().unwrap(), count));
    for group in 1..=GROUPS {
        db.commit(Actor::new(group).play(SUBMIT).unwrap()).await.unwrap();
    }
    (db, calls, (database, dir))
}

/// F31: the groups that start together share transactions, so that the restart of a server with
/// many busy groups is soon over.
#[actix_rt::test]
async fn groups_that_start_together_get_their_owners_in_one_transaction() {
    let (db, calls, _database) = counting().await;
    let unblock = block(&db).await;
    let mut adopted: FuturesUnordered<_> =
        (1..=GROUPS).map(|group| db.adopt(group).map(move |found| (group, found))).collect();
    assert!(poll!(adopted.next()).is_pending());
    drop(unblock);
    while let Some((group, found)) = adopted.next().await {
        let found = found.unwrap().unwrap();
        assert_eq!((found.epoch, found.tasks.len()), (2, 1), "{group}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // More than one transaction may hold: none waits for ever.
    let many = join_all((1..=5 * GROUPS).map(|group| db.adopt(group))).await;
    assert_eq!(many.iter().filter(|found| matches!(found, Ok(Some(_)))).count(), GROUPS as usize);
}

/// I15: of the groups that start together, only the one with an unreadable row gets no owner.
#[actix_rt::test]
async fn an_unreadable_group_keeps_no_other_from_its_owner() {
    let (db, _, (database, _dir)) = counting().await;
    sqlite::change(database.path(), "UPDATE heads SET usage = 'nonsense' WHERE no = 7");
    let unblock = block(&db).await;
    let mut adopted = Box::pin(join_all((1..=GROUPS).map(|group| db.adopt(group))));
    assert!(poll!(&mut adopted).is_pending());
    drop(unblock);
    for (group, found) in (1..).zip(adopted.await) {
        match found {
            Err(StoreError::Unreadable(row)) => assert_eq!((group, row.group), (7, 7)),
            found => assert_eq!(found.unwrap().unwrap().epoch, 2, "{group}"),
        }
    }
    assert!(db.health.is_good());
}

/// I14: an actor that has stopped does not take the group from the one that followed it.
#[actix_rt::test]
async fn an_owner_that_has_stopped_waiting_gets_no_epoch() {
    let (db, _, _database) = counting().await;
    let unblock = block(&db).await;
    let (mut stopped, mut next) = (Box::pin(db.adopt(1)), Box::pin(db.adopt(1)));
    assert!(poll!(&mut next).is_pending() && poll!(&mut stopped).is_pending());
    drop(stopped);
    drop(unblock);
    let epoch = next.await.unwrap().unwrap().epoch;
    assert_eq!((epoch, db.adopt(1).await.unwrap().unwrap().epoch), (2, 3));
}
