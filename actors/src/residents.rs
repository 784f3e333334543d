//! The places for agents' processes: who has one, and who waits (`limits.resident_agents`).
//!
//! An actor owns them, and carries out what [`greenroom_core::residents`] decides. A run asks for
//! its place before its process is spawned, and gives it back when the [`Residency`] is dropped,
//! which is when nothing of its process tree is left, however its actor ends. What a run is needed
//! for stands in a cell that its group writes, so that a turn costs no message while nobody waits.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use actix::{
    Actor, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler, MailboxError, Message,
    MessageResponse, Recipient, WrapFuture as _,
};
use greenroom_core::{
    RunId,
    residents::{Call, Need},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

/// End this run, as a run of another group waits for a place and this one is idle. Answers whether
/// it ends: `false` if the group has work for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct LetGo(pub RunId);

/// The places of one server.
#[derive(Clone, Debug)]
pub struct Residents {
    house: Addr<House>,
    /// Whether any run waits. Only then need the actor hear that one became idle.
    is_short: Arc<AtomicBool>,
    /// Numbers the moments at which runs became idle.
    moments: Arc<AtomicU64>,
    /// Idle runs that were to make room for another.
    let_go: Counter,
}

/// What one run is needed for: written by its group, read when places are short.
#[derive(Clone, Debug, Default)]
pub struct Needed(Arc<AtomicU64>);

/// What comes with a run that wants a place.
#[derive(Debug)]
pub struct Wish {
    /// What it is needed for.
    pub needed: Needed,
    /// Whom to ask to let it go, when it is idle and others wait.
    pub group: Recipient<LetGo>,
}

/// The numbers in [`Needed`] that are no moments.
const BUSY: u64 = 0;
const GOING: u64 = 1;
const FIRST_MOMENT: u64 = 2;

impl Needed {
    fn get(&self) -> Need {
        match self.0.load(Ordering::SeqCst) {
            BUSY => Need::Busy,
            GOING => Need::Going,
            moment => Need::Idle(moment),
        }
    }
}

/// What a group says of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It has a task for it.
    Busy,
    /// It has none.
    Idle,
    /// It told it to end.
    Going,
}

/// How many places there are, and who is after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, MessageResponse)]
pub struct Census {
    /// Runs that have a place.
    pub count: usize,
    /// Places.
    pub max: usize,
    /// Runs that wait for one.
    pub waiting: usize,
}

/// One run's place, or its wait for one. Dropping it gives either up.
#[derive(Debug)]
pub struct Residency {
    house: Addr<House>,
    run: RunId,
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.house.do_send(Left(self.run));
    }
}

impl Residents {
    /// Places for `max` runs. Call it inside of an actix system.
    pub fn start(max: usize) -> Self {
        let (is_short, moments) = (Arc::default(), Arc::new(AtomicU64::new(FIRST_MOMENT)));
        let let_go = Counter::default();
        let house = House {
            residents: greenroom_core::residents::Residents::new(max),
            guests: HashMap::new(),
            is_short: Arc::clone(&is_short),
            let_go: let_go.clone(),
        };
        Self { house: house.start(), is_short, moments, let_go }
    }

    /// Asks for a place. The receiver tells when it is there.
    pub fn enter(&self, run: RunId, wish: Wish) -> (Residency, oneshot::Receiver<()>) {
        let (grant, granted) = oneshot::channel();
        self.house.do_send(Arrived { run, guest: Guest { wish, grant: Some(grant) } });
        (Residency { house: self.house.clone(), run }, granted)
    }

    /// Says what a run is needed for from now on.
    pub fn note(&self, needed: &Needed, now: Use) {
        match (needed.get(), now) {
            (Need::Busy, Use::Busy) | (Need::Idle(_), Use::Idle) | (Need::Going, Use::Going) => {}
            (_, Use::Busy) => needed.0.store(BUSY, Ordering::SeqCst),
            (_, Use::Going) => needed.0.store(GOING, Ordering::SeqCst),
            (_, Use::Idle) => {
                let moment = self.moments.fetch_add(1, Ordering::SeqCst);
                needed.0.store(moment, Ordering::SeqCst);
                // Whoever began to wait after this looks at the cell itself.
                if self.is_short.load(Ordering::SeqCst) {
                    self.house.do_send(BecameIdle);
                }
            }
        }
    }

    /// Counts the idle runs that were asked to make room for another, and did.
    pub fn let_go(&self) -> &Counter {
        &self.let_go
    }

    /// How many places there are now, and who is after them.
    ///
    /// # Errors
    ///
    /// The actor is gone.
    pub async fn census(&self) -> Result<Census, MailboxError> {
        self.house.send(Count).await
    }
}

/// The actor that owns the places.
#[derive(Debug)]
pub struct House {
    residents: greenroom_core::residents::Residents,
    guests: HashMap<RunId, Guest>,
    is_short: Arc<AtomicBool>,
    let_go: Counter,
}

#[derive(Debug)]
struct Guest {
    wish: Wish,
    grant: Option<oneshot::Sender<()>>,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Arrived {
    run: RunId,
    guest: Guest,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Left(RunId);

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct BecameIdle;

#[derive(Debug, Message)]
#[rtype(result = "Census")]
struct Count;

impl House {
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        // Before the cells are read: a group that writes one later sees it, and says so.
        self.is_short.store(self.residents.waiting() > 0, Ordering::SeqCst);
        let guests = &self.guests;
        let need =
            |run: RunId| guests.get(&run).map_or(Need::Going, |guest| guest.wish.needed.get());
        for call in self.residents.next(need) {
            match call {
                Call::Enter(run) => {
                    let grant = self.guests.get_mut(&run).and_then(|guest| guest.grant.take());
                    // Whoever does not wait any more says so by its `Left`.
                    grant.map(|grant| grant.send(()));
                }
                Call::LetGo { run, since } => self.let_go(run, since, ctx),
            }
        }
        self.is_short.store(self.residents.waiting() > 0, Ordering::SeqCst);
    }

    fn let_go(&mut self, run: RunId, since: u64, ctx: &mut Context<Self>) {
        let Some(guest) = self.guests.get(&run) else { return };
        log::info!(target: "greenroom::run", run:%; "idle run makes room for another");
        let asked = guest.wish.group.send(LetGo(run));
        ctx.spawn(asked.into_actor(self).map(move |goes, house, ctx| {
            match goes {
                Ok(true) => _ = house.let_go.inc(),
                Ok(false) => {
                    house.residents.refuse(run, since);
                    house.go_on(ctx);
                }
                // A group whose actor is gone has taken its run with it.
                Err(_) => {}
            }
        }));
    }
}

impl Actor for House {
    type Context = Context<Self>;
}

impl Handler<Arrived> for House {
    type Result = ();

    fn handle(&mut self, Arrived { run, guest }: Arrived, ctx: &mut Context<Self>) {
        self.guests.insert(run, guest);
        self.residents.arrive(run);
        self.go_on(ctx);
        if self.residents.waiting() > 0 {
            let (waiting, max) = (self.residents.waiting(), self.residents.max());
            log::info!(
                target: "greenroom::run", waiting, resident_agents = max;
                "all places for agents are taken; a run waits for one"
            );
        }
    }
}

impl Handler<Left> for House {
    type Result = ();

    fn handle(&mut self, Left(run): Left, ctx: &mut Context<Self>) {
        self.guests.remove(&run);
        self.residents.leave(run);
        self.go_on(ctx);
    }
}

impl Handler<BecameIdle> for House {
    type Result = ();

    fn handle(&mut self, _: BecameIdle, ctx: &mut Context<Self>) {
        self.go_on(ctx);
    }
}

impl Handler<Count> for House {
    type Result = Census;

    fn handle(&mut self, _: Count, _: &mut Context<Self>) -> Census {
        Census {
            count: self.residents.count(),
            max: self.residents.max(),
            waiting: self.residents.waiting(),
        }
    }
}
