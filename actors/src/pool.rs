//! The pool of places for agents' processes: which runs have one, and which wait for one
//! (`limits.resident_agents`).
//!
//! An actor owns it, and performs what [`greenroom_core::pool`] decides. A run acquires its place
//! before its process is spawned. It releases the place by dropping the [`PoolPermit`], when its
//! process tree is gone, however its actor ends. A group writes the use of its run to a cell, so
//! that a turn costs no message while no run waits.

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
    pool::{Activity, PoolAction, RunUsage},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use crate::abort_on_panic::AbortOnPanic;

/// Stop this idle run, as a run of another group waits for a place. Answers whether it stops:
/// `false` if the group has work for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct Evict(pub RunId);

/// The handle of a server's pool.
#[derive(Clone, Debug)]
pub struct AgentPool {
    actor: Addr<PoolActor>,
    /// Whether any run waits. Only then does the actor need to know of a run's use.
    is_short: Arc<AtomicBool>,
    /// Numbers the moments at which runs became idle.
    moments: Arc<AtomicU64>,
    /// Counts evicted runs.
    evicted: Counter,
}

/// The use of one run: written by its group, read by the pool when places are short.
#[derive(Clone, Debug, Default)]
pub struct UsageCell(Arc<AtomicU64>);

/// A run's request for a place.
#[derive(Debug)]
pub struct PoolRequest {
    /// The run's use.
    pub usage: UsageCell,
    /// The run's group, which decides on its eviction.
    pub group: Recipient<Evict>,
}

/// The values of a [`UsageCell`] that are no moments.
const BUSY: u64 = 0;
const STOPPING: u64 = 1;
const BUSY_FORGETFUL: u64 = 2;
const FIRST_MOMENT: u64 = 3;
/// Added to the moment of an idle run whose context would be lost with it.
const FORGETFUL: u64 = 1 << 63;

impl UsageCell {
    fn get(&self) -> RunUsage {
        match self.0.load(Ordering::SeqCst) {
            BUSY => RunUsage::Busy,
            STOPPING => RunUsage::Stopping,
            BUSY_FORGETFUL => RunUsage::BusyForgetful,
            moment if moment & FORGETFUL != 0 => RunUsage::IdleForgetful(moment & !FORGETFUL),
            moment => RunUsage::Idle(moment),
        }
    }
}

/// The occupancy of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, MessageResponse)]
pub struct Occupancy {
    /// Runs that have a place.
    pub count: usize,
    /// The number of places.
    pub max: usize,
    /// Runs that wait for a place.
    pub waiting: usize,
}

/// One run's place, or its wait for one. Dropping it releases the place, or ends the wait.
#[derive(Debug)]
pub struct PoolPermit {
    actor: Addr<PoolActor>,
    run: RunId,
}

impl Drop for PoolPermit {
    fn drop(&mut self) {
        self.actor.do_send(Released(self.run));
    }
}

impl AgentPool {
    /// Starts the actor of a pool with places for `max` runs. Call it in an actix system.
    pub fn start(max: usize) -> Self {
        let (is_short, moments) = (Arc::default(), Arc::new(AtomicU64::new(FIRST_MOMENT)));
        let evicted = Counter::default();
        let actor = PoolActor {
            plan: greenroom_core::pool::Pool::new(max),
            entries: HashMap::new(),
            is_short: Arc::clone(&is_short),
            evicted: evicted.clone(),
            _vital: AbortOnPanic("pool"),
        };
        Self { actor: actor.start(), is_short, moments, evicted }
    }

    /// Requests a place. The receiver completes when the run gets it.
    pub fn acquire(&self, run: RunId, request: PoolRequest) -> (PoolPermit, oneshot::Receiver<()>) {
        let (grant, granted) = oneshot::channel();
        self.actor.do_send(Requested { run, entry: PoolEntry { request, grant: Some(grant) } });
        (PoolPermit { actor: self.actor.clone(), run }, granted)
    }

    /// Records the activity of a run.
    pub fn report_usage(&self, usage: &UsageCell, activity: Activity) {
        let moment = || self.moments.fetch_add(1, Ordering::SeqCst);
        let value = match (usage.get(), activity) {
            (RunUsage::Busy, Activity::Busy)
            | (RunUsage::Idle(_), Activity::Idle)
            | (RunUsage::Stopping, Activity::Stopping)
            | (RunUsage::BusyForgetful, Activity::BusyForgetful)
            | (RunUsage::IdleForgetful(_), Activity::IdleForgetful) => return,
            (_, Activity::Busy) => BUSY,
            (_, Activity::Stopping) => STOPPING,
            (_, Activity::BusyForgetful) => BUSY_FORGETFUL,
            (_, Activity::Idle) => moment(),
            (_, Activity::IdleForgetful) => moment() | FORGETFUL,
        };
        usage.0.store(value, Ordering::SeqCst);
        // A run that is forgetful protects no other one any more. For a run that begins to wait
        // later, the actor reads the cell itself.
        let may_matter = activity.is_idle() || activity == Activity::BusyForgetful;
        if may_matter && self.is_short.load(Ordering::SeqCst) {
            self.actor.do_send(UsageChanged);
        }
    }

    /// Returns the counter of idle runs that were evicted.
    pub fn evicted(&self) -> &Counter {
        &self.evicted
    }

    /// Returns the occupancy.
    ///
    /// # Errors
    ///
    /// The actor is gone.
    pub async fn occupancy(&self) -> Result<Occupancy, MailboxError> {
        self.actor.send(GetOccupancy).await
    }
}

/// The actor that owns the pool.
#[derive(Debug)]
pub struct PoolActor {
    plan: greenroom_core::pool::Pool,
    entries: HashMap<RunId, PoolEntry>,
    is_short: Arc<AtomicBool>,
    evicted: Counter,
    _vital: AbortOnPanic,
}

#[derive(Debug)]
struct PoolEntry {
    request: PoolRequest,
    grant: Option<oneshot::Sender<()>>,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Requested {
    run: RunId,
    entry: PoolEntry,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Released(RunId);

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct UsageChanged;

#[derive(Debug, Message)]
#[rtype(result = "Occupancy")]
struct GetOccupancy;

impl PoolActor {
    fn run_actions(&mut self, ctx: &mut Context<Self>) {
        // Before the cells are read: a group that writes its cell later sees this, and reports it.
        self.is_short.store(self.plan.waiting() > 0, Ordering::SeqCst);
        let entries = &self.entries;
        let usage = |run: RunId| {
            entries.get(&run).map_or(RunUsage::Stopping, |entry| entry.request.usage.get())
        };
        for action in self.plan.next_actions(usage) {
            match action {
                PoolAction::Admit(run) => {
                    let grant = self.entries.get_mut(&run).and_then(|entry| entry.grant.take());
                    // A run that no longer waits sends its `Released`.
                    grant.map(|grant| grant.send(()));
                }
                PoolAction::Evict { run, since } => self.evict(run, since, ctx),
            }
        }
        self.is_short.store(self.plan.waiting() > 0, Ordering::SeqCst);
    }

    fn evict(&mut self, run: RunId, since: u64, ctx: &mut Context<Self>) {
        let Some(entry) = self.entries.get(&run) else { return };
        log::info!(target: "greenroom::run", run:%; "evicting an idle run for a waiting one");
        let evicted = entry.request.group.send(Evict(run));
        ctx.spawn(evicted.into_actor(self).map(move |evicted, pool, ctx| {
            match evicted {
                Ok(true) => _ = pool.evicted.inc(),
                Ok(false) => {
                    pool.plan.refuse_eviction(run, since);
                    pool.run_actions(ctx);
                }
                // The end of a group's actor also ends its run.
                Err(_) => {}
            }
        }));
    }
}

impl Actor for PoolActor {
    type Context = Context<Self>;
}

impl Handler<Requested> for PoolActor {
    type Result = ();

    fn handle(&mut self, Requested { run, entry }: Requested, ctx: &mut Context<Self>) {
        self.entries.insert(run, entry);
        self.plan.request(run);
        self.run_actions(ctx);
        if self.plan.waiting() > 0 {
            let (waiting, max) = (self.plan.waiting(), self.plan.max());
            log::info!(
                target: "greenroom::run", waiting, resident_agents = max;
                "all places for agents are taken; a run waits for one"
            );
        }
    }
}

impl Handler<Released> for PoolActor {
    type Result = ();

    fn handle(&mut self, Released(run): Released, ctx: &mut Context<Self>) {
        self.entries.remove(&run);
        self.plan.release(run);
        self.run_actions(ctx);
    }
}

impl Handler<UsageChanged> for PoolActor {
    type Result = ();

    fn handle(&mut self, _: UsageChanged, ctx: &mut Context<Self>) {
        self.run_actions(ctx);
    }
}

impl Handler<GetOccupancy> for PoolActor {
    type Result = Occupancy;

    fn handle(&mut self, _: GetOccupancy, _: &mut Context<Self>) -> Occupancy {
        Occupancy { count: self.plan.count(), max: self.plan.max(), waiting: self.plan.waiting() }
    }
}
