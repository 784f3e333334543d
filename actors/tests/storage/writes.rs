//! Calls of the store through the writer: their order, and which are made at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::poll;
use greenroom_actors::storage::{Db, sqlite::Database};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    actor::{Actor, SUBMIT},
    gated, open,
};

/// Starts a writer, and blocks it until the returned sender is dropped.
async fn blocked() -> (Db, mpsc::Sender<()>, (Database, TempDir)) {
    let (dir, database, ..) = open::<Database>();
    let db = gated::start(&database, database.store().unwrap());
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
    (db, unblock, (database, dir))
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
