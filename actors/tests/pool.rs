//! The actor of the agent pool (DQ-7): with groups that accept or refuse an eviction, and with
//! owners that vanish.

use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, Message};
use greenroom_actors::{
    clock,
    pool::{AgentPool, Evict, Occupancy, PoolPermit, PoolRequest, UsageCell},
};
use greenroom_core::{RunId, pool::Activity};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

const LONG: Duration = Duration::from_secs(20);

/// A group that records the eviction requests, and accepts or refuses them.
struct Group {
    accepts: bool,
    evicted: mpsc::UnboundedSender<RunId>,
}

impl Actor for Group {
    type Context = Context<Self>;
}

impl Handler<Evict> for Group {
    type Result = bool;

    fn handle(&mut self, Evict(run): Evict, _: &mut Self::Context) -> bool {
        self.evicted.send(run).unwrap();
        self.accepts
    }
}

/// Sets the group's answer from now on.
#[derive(Message)]
#[rtype(result = "()")]
struct Answer(bool);

impl Handler<Answer> for Group {
    type Result = ();

    fn handle(&mut self, Answer(accepts): Answer, _: &mut Self::Context) {
        self.accepts = accepts;
    }
}

struct Admission {
    run: RunId,
    usage: UsageCell,
    permit: PoolPermit,
    granted: oneshot::Receiver<()>,
}

struct World {
    pool: AgentPool,
    group: Addr<Group>,
    evicted: mpsc::UnboundedReceiver<RunId>,
}

impl World {
    fn new(max: usize) -> Self {
        let (sender, evicted) = mpsc::unbounded_channel();
        let group = Group { accepts: true, evicted: sender }.start();
        Self { pool: AgentPool::start(max), group, evicted }
    }

    fn acquire(&self) -> Admission {
        let (run, usage) = (clock::run_id(), UsageCell::default());
        let request = PoolRequest { usage: usage.clone(), group: self.group.clone().recipient() };
        let (permit, granted) = self.pool.acquire(run, request);
        Admission { run, usage, permit, granted }
    }

    async fn admitted(&self) -> Admission {
        let mut admission = self.acquire();
        timeout(LONG, &mut admission.granted).await.unwrap().unwrap();
        admission
    }

    /// Returns the pool's occupancy after all earlier messages.
    async fn occupancy(&self) -> (usize, usize) {
        let Occupancy { count, waiting, .. } = self.pool.occupancy().await.unwrap();
        (count, waiting)
    }

    async fn evicted(&mut self) -> RunId {
        timeout(LONG, self.evicted.recv()).await.unwrap().unwrap()
    }
}

#[actix_rt::test]
async fn the_longest_idle_agent_is_evicted_for_a_new_one() {
    let mut world = World::new(2);
    let (first, second) = (world.admitted().await, world.admitted().await);
    world.pool.report_usage(&second.usage, Activity::Idle);
    world.pool.report_usage(&first.usage, Activity::Idle);
    let mut third = world.acquire();
    assert_eq!(world.evicted().await, second.run);
    assert_eq!(world.occupancy().await, (2, 1), "its place is free once its permit is dropped");
    assert!(third.granted.try_recv().is_err());
    drop(second.permit);
    timeout(LONG, &mut third.granted).await.unwrap().unwrap();
    assert_eq!(world.occupancy().await, (2, 0));
    assert!(world.evicted.try_recv().is_err(), "the other is not evicted");
}

/// The pool evicts an agent that becomes idle while others wait, but not one that has work again.
#[actix_rt::test]
async fn a_busy_agent_is_evicted_only_once_idle() {
    let mut world = World::new(1);
    let first = world.admitted().await;
    let mut second = world.acquire();
    assert_eq!(world.occupancy().await, (1, 1));
    assert!(world.evicted.try_recv().is_err(), "a busy agent is not evicted");
    world.group.send(Answer(false)).await.unwrap();
    world.pool.report_usage(&first.usage, Activity::Idle);
    assert_eq!(world.evicted().await, first.run);
    let third = world.acquire();
    for _ in 0..3 {
        assert_eq!(world.occupancy().await, (1, 2));
    }
    assert!(world.evicted.try_recv().is_err(), "a refused eviction is not repeated");
    drop(third);
    world.pool.report_usage(&first.usage, Activity::Busy);
    assert_eq!(world.occupancy().await, (1, 1));
    world.group.send(Answer(true)).await.unwrap();
    world.pool.report_usage(&first.usage, Activity::Idle);
    assert_eq!(world.evicted().await, first.run, "evicted again, as it is idle again");
    drop(first.permit);
    timeout(LONG, &mut second.granted).await.unwrap().unwrap();
}

/// A group that gives up or panics before, at or after its admission keeps no place.
#[actix_rt::test]
async fn a_dropped_permit_frees_its_place() {
    let world = World::new(1);
    let first = world.admitted().await;
    let (second, third, mut fourth) = (world.acquire(), world.acquire(), world.acquire());
    drop(second);
    assert_eq!(world.occupancy().await, (1, 2));
    // The third gets the place, and is dropped before it learns so.
    drop(first);
    drop(third);
    timeout(LONG, &mut fourth.granted).await.unwrap().unwrap();
    let dies = actix_rt::spawn(async move {
        let _place = fourth;
        panic!("on demand");
    });
    assert!(dies.await.is_err());
    assert_eq!(world.occupancy().await, (0, 0));
    world.admitted().await;
}

/// The end of a group's actor ends its run: its processes are killed.
#[actix_rt::test]
async fn the_agent_of_a_dead_group_frees_its_place() {
    let mut world = World::new(1);
    let first = world.admitted().await;
    world.pool.report_usage(&first.usage, Activity::Idle);
    let dead = std::mem::replace(&mut world.group, World::new(1).group);
    drop(dead);
    let mut second = world.acquire();
    assert_eq!(world.occupancy().await, (1, 1));
    drop(first.permit);
    timeout(LONG, &mut second.granted).await.unwrap().unwrap();
}
