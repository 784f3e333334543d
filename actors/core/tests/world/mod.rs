//! A model of the world around one group: a server that grants slots and locks, an agent that does
//! whatever an agent may do, and crashes at any point. What it leads to is checked at every step.
//!
//! It is played by the rules' own tests and, against real rows, by those of the storage.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test crate that includes this module uses a part of it"
)]

mod attempts;
mod checker;
mod compactions;
mod drain;
mod events;
mod moves;
mod permissions;
mod reference;
mod rest;
pub mod situations;
mod spoken;

use greenroom_core::{
    Effect, Event, Expiry, Group, Patience, Recovery, Rejected, RunId, SessionId, Step, Task,
    TaskId, TaskState, Terms, Timestamp, Write,
    lock::{BootId, Now, Uptime},
};
use uuid::Uuid;

use self::{attempts::Happened, checker::Checker};
pub use self::{
    drain::Drain,
    moves::{Asked, Bound, Chosen, LockSaid, Move, Seen, Spoken, moves},
    reference::Reference,
    spoken::settings,
};

/// A statement that did not hold, by name.
pub type Held<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}
pub(crate) use ensure;

/// Small, so that random play reaches them.
pub const LIMITS: Patience = Patience {
    turn_ms: 60_000,
    compaction_ms: 3_000,
    idle_ms: 5_000,
    permission_ms: 20_000,
    retry_base_ms: 700,
    queue_max: 6,
    queue_bytes_max: 400,
};

/// The facts of one step and when they were stated.
pub type Committed = (Timestamp, Vec<Write>);

/// A lock that the group has, as whoever gave it knows it: session, holder, token.
type Lease = (SessionId, String, u64);

/// A group and everything around it.
pub struct World {
    /// The group as it lives.
    pub group: Group,
    /// What a database would hold of it.
    pub reference: Reference,
    /// The wall clock, which may jump.
    pub now: Timestamp,
    /// The clock that nobody sets; it begins anew at each boot.
    up: Uptime,
    /// What the server's configuration and the agent's profile come to.
    terms: Terms,
    /// Whether they changed since the group was last given them.
    terms_changed: bool,
    /// The group as it comes out of its facts alone (I13).
    shadow: Group,
    checker: Checker,
    agent: Option<Agent>,
    /// Every task that was ever offered, accepted or not.
    offered: Vec<TaskId>,
    /// Locks that were asked for, and those that were given.
    lock_requests: Vec<(TaskId, SessionId)>,
    leases: Vec<Lease>,
    /// How often the group's agent or directory changed.
    moves: u32,
    /// Runs that are over, and prompts that were answered.
    past_runs: Vec<RunId>,
    answered: Vec<(RunId, u64)>,
    /// Prompts that a run owed an answer when it ended.
    owed: Vec<(RunId, u64)>,
    /// What was bounded in time and is not any more.
    gone: Vec<Expiry>,
    /// Whether the last thing that happened was a shutdown: nothing is asked for then.
    shut_down: bool,
    ids: u128,
}

/// The model agent.
struct Agent {
    run: RunId,
    wanted: Option<SessionId>,
    /// [`World::moves`] when it was launched.
    moves: u32,
    ready: bool,
    told_to_end: bool,
    /// Whether it closed its stdout.
    closed: bool,
    prompts: Vec<u64>,
    /// Sessions that it was asked to open.
    opening: Vec<u64>,
    /// The number of its last request for a permission.
    requests: i64,
}

impl Agent {
    fn speaks(&self) -> bool {
        !self.closed
    }
}

impl Default for World {
    fn default() -> Self {
        let group = Group::new(settings(0));
        Self {
            reference: Reference::new(settings(0)),
            shadow: group.clone(),
            group,
            now: Timestamp(1_000),
            up: Uptime { boot: BootId(Uuid::from_u128(1)), ms: 50 },
            terms: spoken::terms(0, 12),
            terms_changed: false,
            checker: Checker::default(),
            agent: None,
            offered: Vec::new(),
            lock_requests: Vec::new(),
            leases: Vec::new(),
            moves: 0,
            past_runs: Vec::new(),
            answered: Vec::new(),
            owed: Vec::new(),
            gone: Vec::new(),
            shut_down: false,
            ids: 0,
        }
    }
}

impl World {
    /// A world whose ids are above `from`: several may share a database.
    pub fn numbered(from: u128) -> Self {
        Self { ids: from, ..Self::default() }
    }

    /// Both clocks.
    pub fn moment(&self) -> Now {
        Now { wall: self.now, up: self.up }
    }

    /// What the settings and the profile come to: what a caller sets goes before.
    fn terms(&self) -> Terms {
        let mut terms = self.terms.clone();
        let settings = &self.group.head().settings;
        terms.on_interrupt = settings.on_interrupt.unwrap_or(terms.on_interrupt);
        terms.permissions = settings.permission_policy.clone().unwrap_or(terms.permissions);
        terms
    }

    /// What is bounded in time now.
    pub fn bounds(&self) -> Vec<(Expiry, u64)> {
        self.group.patience(&LIMITS, self.moment()).collect()
    }

    fn pass(&mut self, ms: u64) {
        self.now.0 += ms as i64;
        self.up.ms += ms;
    }

    /// Makes one move, if the world is such that it can happen.
    pub fn play(&mut self, next: Move) -> Held<Option<Committed>> {
        self.pass(1);
        match next {
            Move::Clock(jump) => self.now.0 += i64::from(jump) * 10_000,
            Move::Wait(long) => self.pass([1, 1_000, 10_000, 120_000][usize::from(long % 4)]),
            Move::Terms(number, more) => {
                self.terms = spoken::terms(number, more);
                self.terms_changed = true;
            }
            Move::Crash => return self.crash(Recovery::Restart),
            Move::Unstored => return self.crash(Recovery::Storage),
            Move::Reboot(jump) => {
                self.now.0 += i64::from(jump) * 1_000;
                let boot = BootId(Uuid::from_u128(self.up.boot.0.as_u128() + 1));
                self.up = Uptime { boot, ms: 3 };
                return self.crash(Recovery::Restart);
            }
            _ => return self.play_event(next),
        }
        Ok(None)
    }

    fn play_event(&mut self, next: Move) -> Held<Option<Committed>> {
        let nothing = self.means_nothing(next);
        let something = matches!(next, Move::Grant) && self.group.wants_slot();
        let Some(event) = self.event(next) else { return Ok(None) };
        let expiry = match event {
            Event::Expired(expiry) => Some(expiry),
            _ => None,
        };
        let shut_down = matches!(next, Move::Shutdown);
        self.shut_down |= shut_down;
        let before = self.bounds();
        let committed = self.take(event, next)?;
        let after = self.bounds();
        let is_gone = |(bound, _): &&(Expiry, u64)| after.iter().all(|(own, _)| own != bound);
        self.gone.extend(before.iter().filter(is_gone).map(|(bound, _)| *bound));
        self.gone.drain(..self.gone.len().saturating_sub(8));
        self.shut_down &= shut_down || committed.is_none();
        let led_to = committed.as_ref().map_or(0, |(_, writes)| writes.len());
        ensure!(!nothing || led_to == 0, "{next:?} means nothing and led to {committed:?}");
        ensure!(!something || led_to > 0, "I12: a slot was wanted, and is not used");
        let again = self.bounds().iter().any(|(bound, _)| Some(*bound) == expiry);
        ensure!(!again, "I12: {expiry:?} ran out, and bounds as before: {:?}", self.group);
        Ok(committed)
    }

    fn take(&mut self, event: Event, said: Move) -> Held<Option<Committed>> {
        let before = self.group.clone();
        let mut ids = self.ids;
        let mut fresh = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let (now, terms) = (self.moment(), self.terms());
        let happened = Happened::from(&event);
        let answered = match &event {
            Event::PermissionAnswered { permission, choice, .. } => {
                Some((*permission, choice.clone()))
            }
            _ => None,
        };
        let applied = self.group.apply(event, now, &terms, &mut fresh);
        self.ids = ids;
        let rejected = applied.as_ref().err().copied();
        if let Some((permission, choice)) = answered {
            self.checker.decided(permission, &choice, rejected)?;
        }
        let step = match applied {
            Ok(step) => step,
            Err(rejected) => {
                ensure!(
                    self.group == before,
                    "{said:?} was rejected ({rejected}) and changed state"
                );
                return Ok(None);
            }
        };
        self.terms_changed &= matches!(said, Move::Shutdown);
        self.checker.begin(&terms, happened, now);
        let place = |group: &Group| {
            let settings = &group.head().settings;
            (settings.agent.clone(), settings.cwd.clone())
        };
        self.moves += u32::from(place(&before) != place(&self.group));
        self.commit(step).map(Some).map_err(|why| format!("{why}\n  at {said:?}\n  in {before:?}"))
    }

    fn commit(&mut self, Step { writes, effects }: Step) -> Held<Committed> {
        for write in &writes {
            self.shadow.replay(write, self.now);
            self.reference.store(write, self.now);
            self.checker.fact(write)?;
            self.give_back(write)?;
        }
        let (shadow, live) = (&self.shadow, &self.group);
        ensure!(shadow == live, "I13: replay is not live:\n  replayed {shadow:?}\n  live {live:?}");
        let (stored, live) = (kept(&self.reference.restore()), kept(live));
        ensure!(
            stored == live,
            "I13: restore is not live:\n  restored {stored:?}\n  live {live:?}"
        );
        self.forgets_well()?;
        let closed = self.agent.as_ref().is_some_and(|agent| agent.closed);
        self.checker.orders(&writes, &effects, &self.group, closed)?;
        let rested = self.reference.may_compact(self.moment());
        self.checker.ordered_by_itself(&writes, self.reference.head(), rested)?;
        for effect in effects {
            self.perform(effect)?;
        }
        self.at_rest()?;
        Ok((self.now, writes))
    }

    /// HL-7: a lock that is given back was the group's.
    fn give_back(&mut self, write: &Write) -> Held {
        let Write::LockReleased { key, holder, token, .. } = write else { return Ok(()) };
        self.drop_lease(&(key.clone(), holder.clone(), *token))
    }

    fn drop_lease(&mut self, lease: &Lease) -> Held {
        let place = self.leases.iter().position(|own| own == lease);
        let place = place.ok_or_else(|| format!("HL-4: {lease:?} is given back and not held"))?;
        self.leases.remove(place);
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Held {
        let own = self.agent.as_ref().map(|agent| agent.run);
        match effect {
            Effect::Launch { run, session } => {
                ensure!(own.is_none(), "AM-1: {run} is launched beside {own:?}");
                self.agent = Some(Agent {
                    run,
                    wanted: session,
                    moves: self.moves,
                    ready: false,
                    told_to_end: false,
                    closed: false,
                    prompts: Vec::new(),
                    opening: Vec::new(),
                    requests: 0,
                });
            }
            Effect::Prompt { run, id, .. } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("I7: {run} cannot hear {id}")) };
                ensure!(agent.ready && !agent.told_to_end, "I7: {run} takes no prompt now");
                ensure!(agent.speaks(), "I12: {run} closed its stdout and is asked {id}");
                ensure!(agent.prompts.is_empty(), "I1: {run} is sent {id} beside another prompt");
                let moved = agent.moves < self.moves;
                ensure!(!moved, "prompt {id} goes to an agent, or a directory, of the past");
                agent.prompts.push(id);
            }
            Effect::OpenSession { run, id } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("{run} cannot open {id}")) };
                ensure!(agent.prompts.is_empty(), "{run} is to open {id} and its prompt runs");
                agent.opening = vec![id];
            }
            Effect::Cancel { run, .. } => {
                let agent = self.agent.as_ref().filter(|agent| agent.run == run);
                let in_flight = agent.is_some_and(|agent| !agent.prompts.is_empty());
                ensure!(in_flight, "{run} is sent a cancel with no prompt in flight");
            }
            Effect::Answer { run, .. } => {
                ensure!(own == Some(run), "{run} is not there to hear an answer");
            }
            Effect::Stop { run, .. } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("{run} is not there to end")) };
                agent.told_to_end = true;
            }
            Effect::TakeLock { task, key } => self.lock_requests.push((task, key)),
            Effect::DropLock { key, holder, token } => self.drop_lease(&(key, holder, token))?,
        }
        Ok(())
    }

    /// The server dies at this very point; another one reads the group back. Its locks went with
    /// it.
    fn crash(&mut self, recovery: Recovery) -> Held<Option<Committed>> {
        self.past_runs.extend(self.agent.take().map(|agent| agent.run));
        self.leases.clear();
        self.lock_requests.clear();
        self.shut_down = false;
        self.checker.forget_lock();
        self.group = self.reference.restore_forgetful();
        self.shadow = self.group.clone();
        let active = self.group.active_compaction().is_some();
        let used = self.group.run().is_some() || self.group.current().is_some();
        if !used && !active && self.group.waiting().len() == 0 {
            return Ok(None);
        }
        let committed = self.take(Event::Recovered(recovery), Move::Crash)?;
        let left = (self.group.run(), self.group.current(), self.group.active_compaction());
        ensure!(left == (None, None, None), "RELIABILITY 1: alive after a restart: {left:?}");
        let open = self.group.permissions();
        ensure!(open.is_empty(), "RELIABILITY 1: permissions outlive their run: {open:?}");
        Ok(committed)
    }
}

/// As much of a group as a database can give back: neither its lock, nor what became of the run's
/// other compactions. Which of a task's attempts one was in, its row does not tell.
fn kept(group: &Group) -> Group {
    let tasks = group.current().into_iter().chain(group.waiting()).cloned().collect();
    let first = |task: &&Task| task.attempt < 2 && task.state != TaskState::Retrying;
    let current = group.current().filter(first).map(|task| task.id);
    let compactions = group.compactions().filter(|own| reference::is_kept(own, current));
    let compactions = compactions.map(reference::as_stored);
    let (run, turn) = (group.run().cloned(), group.turn().cloned());
    let permissions = group.permissions().to_vec();
    Group::restore(group.head().clone(), tasks, run, turn, compactions, permissions)
}
