//! The actor that gives out the places for agents (SEEDS DQ-7): with groups that are told to let a
//! run go, and with owners that vanish.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, Message};
use greenroom_actors::{
    clock,
    residents::{Census, LetGo, Needed, Residency, Residents, Use, Wish},
};
use greenroom_core::RunId;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

const LONG: Duration = Duration::from_secs(20);

/// A group that says what it is asked, and lets go or not.
struct Group {
    lets_go: bool,
    asked: mpsc::UnboundedSender<RunId>,
}

impl Actor for Group {
    type Context = Context<Self>;
}

impl Handler<LetGo> for Group {
    type Result = bool;

    fn handle(&mut self, LetGo(run): LetGo, _: &mut Self::Context) -> bool {
        self.asked.send(run).unwrap();
        self.lets_go
    }
}

/// Tells the group what to answer from now on.
#[derive(Message)]
#[rtype(result = "()")]
struct Answer(bool);

impl Handler<Answer> for Group {
    type Result = ();

    fn handle(&mut self, Answer(lets_go): Answer, _: &mut Self::Context) {
        self.lets_go = lets_go;
    }
}

struct Stay {
    run: RunId,
    needed: Needed,
    residency: Residency,
    granted: oneshot::Receiver<()>,
}

struct World {
    residents: Residents,
    group: Addr<Group>,
    asked: mpsc::UnboundedReceiver<RunId>,
}

impl World {
    fn new(max: usize) -> Self {
        let (sender, asked) = mpsc::unbounded_channel();
        let group = Group { lets_go: true, asked: sender }.start();
        Self { residents: Residents::start(max), group, asked }
    }

    fn enter(&self) -> Stay {
        let (run, needed) = (clock::run_id(), Needed::default());
        let wish = Wish { needed: needed.clone(), group: self.group.clone().recipient() };
        let (residency, granted) = self.residents.enter(run, wish);
        Stay { run, needed, residency, granted }
    }

    async fn entered(&self) -> Stay {
        let mut stay = self.enter();
        timeout(LONG, &mut stay.granted).await.unwrap().unwrap();
        stay
    }

    /// What the actor knows when it has dealt with all that was sent before.
    async fn census(&self) -> (usize, usize) {
        let Census { count, waiting, .. } = self.residents.census().await.unwrap();
        (count, waiting)
    }

    async fn asked(&mut self) -> RunId {
        timeout(LONG, self.asked.recv()).await.unwrap().unwrap()
    }
}

#[actix_rt::test]
async fn the_longest_idle_goes_and_the_newcomer_comes() {
    let mut world = World::new(2);
    let (first, second) = (world.entered().await, world.entered().await);
    world.residents.note(&second.needed, Use::Idle);
    world.residents.note(&first.needed, Use::Idle);
    let mut third = world.enter();
    assert_eq!(world.asked().await, second.run);
    assert_eq!(world.census().await, (2, 1), "its place is free when nothing of it is left");
    assert!(third.granted.try_recv().is_err());
    drop(second.residency);
    timeout(LONG, &mut third.granted).await.unwrap().unwrap();
    assert_eq!(world.census().await, (2, 0));
    assert!(world.asked.try_recv().is_err(), "the other stays");
}

/// One that becomes idle while others wait is told of; one that has work again is not taken.
#[actix_rt::test]
async fn a_busy_one_is_waited_for() {
    let mut world = World::new(1);
    let first = world.entered().await;
    let mut second = world.enter();
    assert_eq!(world.census().await, (1, 1));
    assert!(world.asked.try_recv().is_err(), "it is busy");
    world.group.send(Answer(false)).await.unwrap();
    world.residents.note(&first.needed, Use::Idle);
    assert_eq!(world.asked().await, first.run);
    world.residents.note(&first.needed, Use::Busy);
    assert_eq!(world.census().await, (1, 1));
    world.group.send(Answer(true)).await.unwrap();
    world.residents.note(&first.needed, Use::Idle);
    assert_eq!(world.asked().await, first.run, "asked again, as it is idle anew");
    drop(first.residency);
    timeout(LONG, &mut second.granted).await.unwrap().unwrap();
}

/// A refusal is not asked for again and again.
#[actix_rt::test]
async fn a_refusal_is_final_until_it_is_idle_anew() {
    let mut world = World::new(1);
    world.group.send(Answer(false)).await.unwrap();
    let first = world.entered().await;
    world.residents.note(&first.needed, Use::Idle);
    let _second = world.enter();
    assert_eq!(world.asked().await, first.run);
    let _third = world.enter();
    for _ in 0..3 {
        assert_eq!(world.census().await, (1, 2));
    }
    assert!(world.asked.try_recv().is_err());
}

/// Whoever gives up, or panics, before, at or after the moment when it gets its place, keeps none.
#[actix_rt::test]
async fn a_place_comes_back_from_whoever_has_it() {
    let world = World::new(1);
    let first = world.entered().await;
    let (second, third, mut fourth) = (world.enter(), world.enter(), world.enter());
    drop(second);
    assert_eq!(world.census().await, (1, 2));
    // The third gets it, and is gone before it learns.
    drop(first);
    drop(third);
    timeout(LONG, &mut fourth.granted).await.unwrap().unwrap();
    let dies = actix_rt::spawn(async move {
        let _place = fourth;
        panic!("told to");
    });
    assert!(dies.await.is_err());
    assert_eq!(world.census().await, (0, 0));
    world.entered().await;
}

/// A group whose actor is gone lets go by that: its run's processes are killed.
#[actix_rt::test]
async fn a_dead_group_is_not_waited_for() {
    let mut world = World::new(1);
    let first = world.entered().await;
    world.residents.note(&first.needed, Use::Idle);
    let dead = std::mem::replace(&mut world.group, World::new(1).group);
    drop(dead);
    let mut second = world.enter();
    assert_eq!(world.census().await, (1, 1));
    drop(first.residency);
    timeout(LONG, &mut second.granted).await.unwrap().unwrap();
}
