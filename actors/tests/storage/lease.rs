//! Keeping a lease, on a real database and on one that fails by a script (HL-6).

use std::time::Duration;

use actix::{Actor, Context, Handler, Recipient, ResponseFuture};
use greenroom_actors::storage::{
    Db, LockError, LockRequest, StoreError, Write, holder,
    lease::{LeaseEnd, keep},
    sqlite::Database,
};
use greenroom_core::lock::{Lock, LockKey, Ttl};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::{gated, open};

const LONG: Duration = Duration::from_secs(20);

struct World {
    db: Db,
    _database: Database,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let (dir, database, ..) = open::<Database>();
        let db = gated::start(&database, database.store().unwrap());
        Self { db, _database: database, _dir: dir }
    }

    async fn acquire(&self, ttl_ms: u64) -> Result<Lock, LockError> {
        let (holder, ttl) = (holder::fresh(), ttl(ttl_ms));
        let request = LockRequest { key: key(), holder, ttl, group: None };
        self.db.lock_acquire(request).await.map(|granted| granted.lock)
    }
}

fn key() -> LockKey {
    "session".parse().unwrap()
}

fn ttl(ms: u64) -> Ttl {
    Ttl::from_ms(ms).unwrap()
}

/// HL-6: another holder cannot steal the lease of a compaction that lasts twice as long as
/// the time to live; once it is no longer kept, it expires.
#[actix_rt::test]
async fn a_long_compaction_under_a_short_lease_is_not_stolen() {
    let world = World::new();
    let mine = world.acquire(3_000).await.unwrap();
    let keeping = keep(world.db.clone(), mine.lease.clone(), ttl(3_000), LONG);
    let stealing = async {
        let done = Instant::now() + Duration::from_secs(6);
        while Instant::now() < done {
            let stolen = world.acquire(3_000).await;
            assert!(matches!(stolen, Err(LockError::Conflict { .. })), "{stolen:?}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        lost = keeping => panic!("{lost:?}"),
        () = stealing => {}
    }
    assert_eq!(world.db.lock_get(key()).await.unwrap().unwrap().lease, mine.lease);
    let stolen = timeout(LONG, async {
        loop {
            match world.acquire(3_000).await {
                Ok(lock) => return lock,
                Err(err) => assert!(matches!(err, LockError::Conflict { .. }), "{err:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(stolen.await.unwrap().lease.token > mine.lease.token);
}

/// HL-6: the next refresh detects that a lease was released or taken; a cap ends a lease that could
/// be refreshed for ever.
#[actix_rt::test]
async fn keeping_ends_with_the_lease() {
    let world = World::new();
    let mine = world.acquire(2_000).await.unwrap();
    let life = Duration::from_secs(3);
    let keeping = keep(world.db.clone(), mine.lease.clone(), ttl(2_000), life);
    let lost = timeout(LONG, keeping).await.unwrap();
    assert!(matches!(lost, LeaseEnd::Outlived), "{lost:?}");

    assert!(world.db.lock_release(mine.lease.clone()).await.unwrap());
    let keeping = keep(world.db.clone(), mine.lease.clone(), ttl(2_000), LONG);
    let lost = timeout(LONG, keeping).await.unwrap();
    assert!(matches!(lost, LeaseEnd::Gone(LockError::Lost)), "{lost:?}");

    world.acquire(60_000).await.unwrap();
    let keeping = keep(world.db.clone(), mine.lease, ttl(2_000), LONG);
    let lost = timeout(LONG, keeping).await.unwrap();
    assert!(matches!(lost, LeaseEnd::Gone(LockError::Conflict { .. })), "{lost:?}");
}

/// A writer that passes each call on, or fails, by its script.
struct Scripted {
    works: Vec<bool>,
    writer: Recipient<Write>,
}

impl Actor for Scripted {
    type Context = Context<Self>;
}

impl Handler<Write> for Scripted {
    type Result = ResponseFuture<Result<(), StoreError>>;

    fn handle(&mut self, write: Write, _: &mut Self::Context) -> Self::Result {
        let works = self.works.remove(0);
        let writer = self.writer.clone();
        Box::pin(async move {
            if works { writer.send(write).await.unwrap() } else { Err(gated::failure()) }
        })
    }
}

/// HL-6: keeping survives single failures; two in a row last as long as the time to live here.
#[actix_rt::test]
async fn keeping_survives_single_failures_and_ends_after_several() {
    let world = World::new();
    let lock = world.acquire(2_000).await.unwrap();
    // One refresh more than needed would empty the script, and panic.
    let works = vec![false, true, false, false];
    let writer = Scripted { works, writer: world.db.write.clone() }.start();
    let db = Db { write: writer.recipient(), ..world.db.clone() };
    let began = Instant::now();
    let lost = timeout(LONG, keep(db, lock.lease, ttl(2_000), LONG)).await.unwrap();
    assert!(matches!(lost, LeaseEnd::Unreachable), "{lost:?}");
    assert!(began.elapsed() >= Duration::from_secs(4), "keeping does not end too early");
}
