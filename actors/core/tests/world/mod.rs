//! A model of the world around one group: a server that grants slots and locks, an agent that does
//! whatever an agent may do, and crashes at any point. What it leads to is checked at every step.
//!
//! It is played by the rules' own tests and, against real rows, by those of the storage.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test crate that includes this module uses a part of it"
)]

mod checker;
mod compactions;
mod events;
mod moves;
mod reference;
mod spoken;

use greenroom_core::{
    CompactionStatus, Continuity, Effect, Event, ExitReason, Expiry, Group, Patience, RunId,
    RunPhase, SessionId, Step, StopReason, Strategy, TaskId, TaskState, Terms, Timestamp, Write,
};
use uuid::Uuid;

use self::checker::Checker;
pub use self::{
    moves::{LockSaid, Move, Seen, Spoken, moves},
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
    /// The clock, which may jump.
    pub now: Timestamp,
    /// The group's settings and its agent's profile.
    terms: Terms,
    /// The group as it comes out of its facts alone (I13).
    shadow: Group,
    checker: Checker,
    agent: Option<Agent>,
    /// Every task that was ever offered, accepted or not.
    offered: Vec<TaskId>,
    /// Locks that were asked for, and those that were given.
    lock_requests: Vec<(TaskId, SessionId)>,
    leases: Vec<Lease>,
    /// How often the group's agent or directory changed, and how often it had when the task that
    /// has the slot got it.
    moves: u32,
    moves_at_claim: u32,
    /// Runs that are over, and prompts that were answered.
    past_runs: Vec<RunId>,
    answered: Vec<(RunId, u64)>,
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
            terms: terms(0),
            checker: Checker::default(),
            agent: None,
            offered: Vec::new(),
            lock_requests: Vec::new(),
            leases: Vec::new(),
            moves: 0,
            moves_at_claim: 0,
            past_runs: Vec::new(),
            answered: Vec::new(),
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

    /// Makes one move, if the world is such that it can happen.
    pub fn play(&mut self, next: Move) -> Held<Option<Committed>> {
        self.now.0 += 1;
        match next {
            Move::Clock(jump) => self.now.0 += i64::from(jump) * 10_000,
            Move::Terms(number) => self.terms = terms(number),
            Move::Crash => return self.crash(),
            _ => {
                let nothing = self.means_nothing(next);
                let Some(event) = self.event(next) else { return Ok(None) };
                let shut_down = matches!(next, Move::Shutdown);
                self.shut_down |= shut_down;
                let committed = self.take(event)?;
                self.shut_down &= shut_down || committed.is_none();
                let led_to = committed.as_ref().map_or(0, |(_, writes)| writes.len());
                ensure!(!nothing || led_to == 0, "{next:?} means nothing and led to {committed:?}");
                return Ok(committed);
            }
        }
        Ok(None)
    }

    /// Lets the world do what it should until nothing is left to do (I12). A `silent` agent starts
    /// and then never answers, nor heeds a cancel.
    pub fn drain(&mut self, silent: bool) -> Held<Vec<Committed>> {
        let mut committed = Vec::new();
        // After a shutdown comes a start.
        if self.shut_down {
            committed.extend(self.play(Move::Crash)?);
        }
        for _ in 0..300 {
            let Some(next) = self.next_in_order(silent) else { break };
            committed.extend(self.play(next)?);
        }
        ensure!(self.group.waiting().len() == 0, "I12: tasks wait for ever: {:?}", self.group);
        ensure!(self.group.current().is_none(), "I12: a task hangs for ever: {:?}", self.group);
        let active = self.group.active_compaction();
        ensure!(active.is_none(), "I5, I12: a compaction hangs for ever: {active:?}");
        ensure!(self.leases.is_empty(), "HL-7: a lock is held for ever: {:?}", self.leases);
        self.checker.all_ended()?;
        Ok(committed)
    }

    fn next_in_order(&self, silent: bool) -> Option<Move> {
        match &self.agent {
            Some(agent) if agent.told_to_end || agent.closed => {
                return Some(Move::Exit(ExitReason::Stopped));
            }
            Some(agent) if !agent.ready => return Some(Move::Ready(Continuity::New)),
            Some(agent) if !agent.prompts.is_empty() && !silent => {
                return Some(Move::Answer(StopReason::EndTurn));
            }
            Some(agent) if !agent.opening.is_empty() && !silent => return Some(Move::Open(true)),
            Some(_) | None => {}
        }
        if !self.lock_requests.is_empty() {
            return Some(Move::Lock(LockSaid::Taken));
        }
        if self.group.wants_slot() {
            return Some(Move::Grant);
        }
        if self.group.head().paused && self.group.waiting().len() > 0 {
            return Some(Move::Resume);
        }
        // An idle agent may stay; anything else that is bounded in time gets that time.
        let ends = |(expiry, _): &(Expiry, u64)| !matches!(expiry, Expiry::Idle(..));
        let place = self.group.patience(&self.terms.patience).position(|bound| ends(&bound))?;
        Some(Move::Expire(place as u8))
    }

    fn take(&mut self, event: Event) -> Held<Option<Committed>> {
        let before = self.group.clone();
        let said = format!("{event:?}");
        let mut ids = self.ids;
        let mut fresh = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let applied = self.group.apply(event, self.now, &self.terms, &mut fresh);
        self.ids = ids;
        let step = match applied {
            Ok(step) => step,
            Err(rejected) => {
                ensure!(self.group == before, "{said} was rejected ({rejected}) and changed state");
                return Ok(None);
            }
        };
        let place = |group: &Group| {
            let settings = &group.head().settings;
            (settings.agent.clone(), settings.cwd.clone())
        };
        self.moves += u32::from(place(&before) != place(&self.group));
        if before.current().is_none() && self.group.current().is_some() {
            self.moves_at_claim = self.moves;
        }
        self.commit(step).map(Some).map_err(|why| format!("{why}\n  at {said}\n  in {before:?}"))
    }

    fn commit(&mut self, Step { writes, effects }: Step) -> Held<Committed> {
        self.checker.begin(&self.terms);
        for write in &writes {
            self.shadow.replay(write, self.now);
            self.reference.store(write, self.now);
            self.checker.fact(write)?;
            self.give_back(write)?;
        }
        let (shadow, live) = (&self.shadow, &self.group);
        ensure!(shadow == live, "I13: replay is not live:\n  replayed {shadow:?}\n  live {live:?}");
        let (stored, live) = (self.reference.restore(), kept(live));
        ensure!(
            stored == live,
            "I13: restore is not live:\n  restored {stored:?}\n  live {live:?}"
        );
        self.forgets_well()?;
        let closed = self.agent.as_ref().is_some_and(|agent| agent.closed);
        self.checker.orders(&writes, &effects, &self.group, closed)?;
        let rested = self.reference.may_compact(self.now);
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

    /// A database does not keep a run's phase and what it was seen to do, nor a prompt's id, nor
    /// who cut a turn off, nor the lock, nor compactions of the run that ended: none of them makes
    /// a difference once the group has recovered, but for the words in which what was cut off says
    /// why: its deadline, or somebody who cancelled it after that. Nothing of a past run is heard
    /// any more, so that no late signal can be about those compactions; and the lock's row goes
    /// with its holder, so that a compaction which still waits asks again.
    fn forgets_well(&self) -> Held {
        let recovered = |mut group: Group| {
            let mut fresh = || Uuid::from_u128(self.ids + 1);
            let step = group.apply(Event::Recovered, self.now, &self.terms, &mut fresh);
            let step = step.map_err(|rejected| rejected.to_string())?;
            let outcome = |write: &Write| match write {
                Write::TaskEnded {
                    task,
                    state: TaskState::Cancelled | TaskState::Interrupted,
                    ..
                } => Some(format!("{task} cut off")),
                Write::TaskEnded { task, state, .. } => Some(format!("{task} {state:?}")),
                Write::CompactionEnded(own)
                    if matches!(
                        own.status,
                        CompactionStatus::Cancelled | CompactionStatus::Abandoned
                    ) =>
                {
                    Some(format!("{} cut off", own.id))
                }
                Write::CompactionEnded(own) => Some(format!("{} {:?}", own.id, own.status)),
                Write::LockAsked { .. } | Write::LockReleased { .. } => None,
                other => Some(other.kind().to_owned()),
            };
            let outcomes: Vec<String> = step.writes.iter().filter_map(outcome).collect();
            Held::Ok((kept(&group), outcomes))
        };
        let live = recovered(self.group.clone())?;
        let forgetful = recovered(self.reference.restore_forgetful())?;
        ensure!(
            live == forgetful,
            "I13: what is not stored makes a difference:\n  {forgetful:?}\n  {live:?}"
        );
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
                });
            }
            Effect::Prompt { run, id, .. } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("I7: {run} cannot hear {id}")) };
                ensure!(agent.ready && !agent.told_to_end, "I7: {run} takes no prompt now");
                ensure!(agent.speaks(), "I12: {run} closed its stdout and is asked {id}");
                ensure!(agent.prompts.is_empty(), "I1: {run} is sent {id} beside another prompt");
                let moved = agent.moves < self.moves_at_claim;
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

    /// What holds between two events: whatever waits has somebody who ends the wait (I12).
    fn at_rest(&self) -> Held {
        self.checker.at_rest(&self.group)?;
        let (group, agent) = (&self.group, self.agent.as_ref());
        let run = group.run();
        ensure!(
            run.map(|run| run.id) == agent.map(|agent| agent.run),
            "the group believes in run {run:?}, which is not the one that lives"
        );
        let stopping = run.is_some_and(|run| run.phase == RunPhase::Stopping);
        let ends = agent
            .is_some_and(|agent| agent.told_to_end || (agent.closed && (agent.ready || stopping)));
        ensure!(stopping == ends, "a run that is to end is ending, and no other: {run:?}");
        let held: Vec<_> = group.lease().into_iter().collect();
        let given = self.leases.iter().map(|(key, holder, token)| (key, holder.as_str(), *token));
        ensure!(
            held == given.collect::<Vec<_>>(),
            "HL-7: {held:?} is held, and given are {:?}",
            self.leases
        );
        self.waits_end()?;
        self.bounds_hold()
    }

    fn waits_end(&self) -> Held {
        let group = &self.group;
        if let Some(current) = group.current() {
            let ready = group.run().is_some_and(|run| run.phase == RunPhase::Ready);
            ensure!(group.run().is_some(), "I12: {} has no run to wait for", current.id);
            let in_flight = self.checker.in_flight().is_some();
            ensure!(in_flight || !ready, "I12: {} is not started", current.id);
        } else if let Some(next) = group.waiting().next().filter(|_| !group.head().paused) {
            let asked = self.lock_requests.iter().any(|(task, _)| *task == next.id);
            let bounded = group
                .patience(&self.terms.patience)
                .any(|(expiry, _)| matches!(expiry, Expiry::Lock(task, _) if task == next.id));
            ensure!(
                group.wants_slot() || asked || bounded || self.shut_down,
                "I12: {} waits, and for neither a slot nor a lock",
                next.id
            );
        } else {
            ensure!(!group.wants_slot(), "a slot is wanted for nothing");
        }
        Ok(())
    }

    fn bounds_hold(&self) -> Held {
        let (group, run) = (&self.group, self.group.run());
        let bounds: Vec<_> = group.patience(&self.terms.patience).collect();
        let ready = run.is_some_and(|run| run.phase == RunPhase::Ready);
        ensure!(!ready || !bounds.is_empty(), "I12: a ready run has no deadline: {group:?}");
        let active = group.active_compaction().map(|active| active.id);
        let bounded = |id| bounds.iter().any(|(expiry, _)| *expiry == Expiry::Compaction(id));
        ensure!(active.is_none_or(bounded), "AM-28: {active:?} has no deadline");
        for (expiry, _) in bounds {
            match expiry {
                Expiry::Turn(task) | Expiry::Cancel(task) => {
                    let runs = self.checker.in_flight() == Some(task);
                    ensure!(runs, "a deadline for {task}, which does not run");
                }
                Expiry::Idle(id, seq) => {
                    let idle = group.current().is_none() && group.head().last_seq == seq;
                    let own = run.is_some_and(|run| run.id == id);
                    ensure!(idle && own && active.is_none(), "{id} is not idle at {seq}");
                }
                Expiry::Compaction(id) => {
                    ensure!(active == Some(id), "a deadline for {id}, which is over");
                }
                Expiry::Lock(task, _) => {
                    let waits = group.waiting().any(|waiting| waiting.id == task);
                    ensure!(waits, "HL-2: {task} does not wait for its lock");
                }
            }
        }
        Ok(())
    }

    /// The server dies at this very point; another one reads the group back. Its locks went with
    /// it.
    fn crash(&mut self) -> Held<Option<Committed>> {
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
        let committed = self.take(Event::Recovered)?;
        let left = (self.group.run(), self.group.current(), self.group.active_compaction());
        ensure!(left == (None, None, None), "RELIABILITY 1: alive after a restart: {left:?}");
        Ok(committed)
    }
}

/// As much of a group as a database can give back: neither its lock, nor what became of the run's
/// other compactions.
fn kept(group: &Group) -> Group {
    let tasks = group.current().into_iter().chain(group.waiting()).cloned().collect();
    let current = group.current().map(|task| task.id);
    let compactions = group.compactions().filter(|own| reference::is_kept(own, current));
    let compactions = compactions.map(reference::as_stored);
    let (run, turn) = (group.run().cloned(), group.turn().cloned());
    Group::restore(group.head().clone(), tasks, run, turn, compactions)
}

/// Some of what a profile and the settings may come to.
fn terms(number: u8) -> Terms {
    let strategy = if number & 1 == 0 { Strategy::Command } else { Strategy::Rotate };
    Terms {
        patience: LIMITS,
        auto_compact: if number & 6 == 6 { 0.0 } else { 0.5 },
        compaction: (number & 24 != 24).then(|| (strategy, spoken::text("/a"))),
        listens: number & 32 != 0,
    }
}
