//! A model of the world around one group: a server that grants slots and locks, an agent that may
//! do anything, and crashes at any point. A checker tests the invariants at every step.
//!
//! The tests of the rules use it, and those of the storage with a real database.

mod actions;
mod between_events;
mod drain;
mod events;
mod messages;
mod restore;
pub mod situations;

use greenroom_core::{
    BootId, Effect, EffectiveSettings, Event, Existence, Fact, Group, Limits, Now, Recorded,
    Recovery, RunId, SessionId, Step, TaskId, Timer, Timestamp, Uptime,
};
use uuid::Uuid;

use self::restore::Records;
pub use self::{
    actions::{
        Action, AgentMessage, DetectorSignal, LockReply, PermissionChoice, PermissionRequest,
        TimerKind, actions,
    },
    drain::Drain,
    messages::chunk_line,
    messages::settings,
};
use crate::invariants::{Begun, Checked, Checker, Played, Trigger, ensure};

/// Small limits, so that random histories reach them.
pub const LIMITS: Limits = Limits {
    turn_ms: 60_000,
    compaction_ms: 3_000,
    idle_ms: 5_000,
    permission_ms: 20_000,
    retry_base_ms: 700,
    queue_max: 6,
    queue_bytes_max: 400,
};

/// The facts of one step and their time.
pub type Committed = (Timestamp, Vec<Recorded>);

/// A lock that the server granted to the group: session, holder, token.
type Lease = (SessionId, String, u64);

/// A group and the world around it.
pub struct World {
    /// The live group.
    pub group: Group,
    /// The wall clock, which may jump.
    pub now: Timestamp,
    /// The uptime; it restarts at each boot.
    up: Uptime,
    /// The settings of the server's configuration and the agent's profile.
    settings: EffectiveSettings,
    /// Whether they changed since the group's last event.
    settings_changed: bool,
    /// The group as a replay of its facts makes it (I13).
    replayed: Group,
    checker: Checker,
    records: Records,
    /// The steps so far, if they are kept.
    pub trail: Option<Vec<Played>>,
    agent: Option<Agent>,
    /// Every submitted task, accepted or not.
    offered: Vec<TaskId>,
    /// The lock requests, and the granted locks.
    lock_requests: Vec<(TaskId, SessionId)>,
    leases: Vec<Lease>,
    /// How often the group's agent or directory changed.
    relocations: u32,
    /// Ended runs, and answered prompts.
    past_runs: Vec<RunId>,
    answered: Vec<(RunId, u64)>,
    /// Prompts that were unanswered at the end of their run.
    owed: Vec<(RunId, u64)>,
    /// Timers that no longer run.
    removed_timers: Vec<Timer>,
    /// Whether the server shuts down: the group begins nothing then.
    shut_down: bool,
    /// Whether the rows of the group are deleted: nothing happens to it any more.
    is_purged: bool,
    ids: u128,
}

/// The model agent.
struct Agent {
    run: RunId,
    session: Option<SessionId>,
    /// [`World::relocations`] when it was launched.
    relocations: u32,
    ready: bool,
    is_stopping: bool,
    /// Whether it closed its stdout.
    closed: bool,
    prompts: Vec<u64>,
    /// The last prompt that it was sent.
    last_prompt: Option<u64>,
    /// The session of that prompt.
    prompted: Option<SessionId>,
    /// Whether it cannot have read its prompt yet.
    has_unread_prompt: bool,
    /// Requests to open a session.
    opening: Vec<u64>,
    /// The number of its last permission request.
    requests: i64,
}

impl Agent {
    fn can_write(&self) -> bool {
        !self.closed
    }
}

impl Default for World {
    fn default() -> Self {
        let group = Group::new(settings(0));
        Self {
            replayed: group.clone(),
            group,
            now: Timestamp(1_000),
            up: Uptime { boot: BootId(Uuid::from_u128(1)), ms: 50 },
            settings: messages::effective_settings(0, 12),
            settings_changed: false,
            checker: Checker::default(),
            records: Records::default(),
            trail: None,
            agent: None,
            offered: Vec::new(),
            lock_requests: Vec::new(),
            leases: Vec::new(),
            relocations: 0,
            past_runs: Vec::new(),
            answered: Vec::new(),
            owed: Vec::new(),
            removed_timers: Vec::new(),
            shut_down: false,
            is_purged: false,
            ids: 0,
        }
    }
}

impl World {
    /// Returns a world whose ids are above `from`: several may share a database.
    pub fn numbered(from: u128) -> Self {
        Self { ids: from, ..Self::default() }
    }

    /// Returns both clocks.
    pub fn moment(&self) -> Now {
        Now { wall: self.now, up: self.up }
    }

    /// Returns the effective settings: those of the group override the profile's.
    fn effective_settings(&self) -> EffectiveSettings {
        let mut effective = self.settings.clone();
        let overrides = &self.group.state().settings;
        effective.is_draining = self.shut_down;
        effective.on_interrupt = overrides.on_interrupt.unwrap_or(effective.on_interrupt);
        effective.permissions =
            overrides.permission_policy.clone().unwrap_or(effective.permissions);
        effective
    }

    /// Returns the running timers.
    pub fn timers(&self) -> Vec<(Timer, u64)> {
        self.group.timers(&LIMITS, self.moment()).collect()
    }

    fn pass(&mut self, ms: u64) {
        self.now.0 += ms as i64;
        self.up.ms += ms;
    }

    /// Plays one action, if it is possible now.
    pub fn play(&mut self, next: Action) -> Checked<Option<Committed>> {
        self.pass(1);
        match next {
            _ if self.is_purged => {}
            // A start follows a shutdown.
            Action::GrantSlot if self.shut_down => return self.crash(Recovery::Restart),
            Action::SetClock(jump) => self.now.0 += i64::from(jump) * 10_000,
            Action::Wait(long) => self.pass([1, 1_000, 10_000, 120_000][usize::from(long % 4)]),
            Action::ChangeSettings(number, more) => {
                self.settings = messages::effective_settings(number, more);
                self.settings_changed = true;
            }
            Action::Crash => return self.crash(Recovery::Restart),
            Action::StorageFailure => return self.crash(Recovery::Storage),
            Action::Reboot(jump) => {
                self.now.0 += i64::from(jump) * 1_000;
                let boot = BootId(Uuid::from_u128(self.up.boot.0.as_u128() + 1));
                self.up = Uptime { boot, ms: 3 };
                return self.crash(Recovery::Restart);
            }
            _ => return self.play_event(next),
        }
        Ok(None)
    }

    fn play_event(&mut self, next: Action) -> Checked<Option<Committed>> {
        let must_do_nothing = self.must_do_nothing(next);
        let must_act = matches!(next, Action::GrantSlot) && self.group.wants_slot();
        let Some(event) = self.event(next) else { return Ok(None) };
        let fired = match event {
            Event::TimerFired(timer) => Some(timer),
            _ => None,
        };
        let shut_down = matches!(next, Action::Drain | Action::Shutdown);
        self.shut_down |= shut_down;
        let before = self.timers();
        let committed = self.apply(event, next)?;
        let after = self.timers();
        let is_gone =
            |(timer, _): &&(Timer, u64)| after.iter().all(|(running, _)| running != timer);
        self.removed_timers.extend(before.iter().filter(is_gone).map(|(timer, _)| *timer));
        self.removed_timers.drain(..self.removed_timers.len().saturating_sub(8));
        let fact_count = committed.as_ref().map_or(0, |(_, facts)| facts.len());
        ensure!(
            !must_do_nothing || fact_count == 0,
            "{next:?} must do nothing and led to {committed:?}"
        );
        ensure!(!must_act || fact_count > 0, "I12: a slot was wanted and is not used");
        let still_runs = self.timers().iter().any(|(running, _)| Some(*running) == fired);
        // The lock is not requested again while the server shuts down.
        let is_idle = self.shut_down && matches!(fired, Some(Timer::Lock(..)));
        ensure!(!still_runs || is_idle, "I12: {fired:?} fired and still runs: {:?}", self.group);
        Ok(committed)
    }

    fn apply(&mut self, event: Event, action: Action) -> Checked<Option<Committed>> {
        let before = self.group.clone();
        let mut ids = self.ids;
        let mut fresh = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let (now, settings) = (self.moment(), self.effective_settings());
        let trigger = Trigger::from(&event);
        let reported = match &event {
            Event::OutputReceived { session: Some(named), summary, .. } => {
                summary.usage.is_some().then(|| named.clone())
            }
            _ => None,
        };
        let answered = match &event {
            Event::PermissionAnswered { permission, choice, .. } => {
                Some((*permission, choice.clone()))
            }
            _ => None,
        };
        let applied = self.group.apply(event, now, &settings, &mut fresh);
        self.ids = ids;
        let rejected = applied.as_ref().err().copied();
        if let Some((permission, choice)) = answered {
            self.checker.check_answer(permission, &choice, rejected)?;
        }
        let step = match applied {
            Ok(step) => step,
            Err(rejected) => {
                ensure!(
                    self.group == before,
                    "{action:?} was rejected ({rejected}) and changed state"
                );
                return Ok(None);
            }
        };
        // A group's usage is that of its session in force, or none.
        let is_other = reported.is_some_and(|of| before.state().session_id() != Some(&of));
        ensure!(
            !is_other || before.state().usage() == self.group.state().usage(),
            "AM-13: {action:?} changed the usage of {before:?}"
        );
        self.settings_changed &= !reconciles(action, step.facts.len());
        let begun = Begun { trigger, now, settings };
        let location = |group: &Group| {
            let settings = &group.state().settings;
            (settings.agent.clone(), settings.cwd.clone())
        };
        self.relocations += u32::from(location(&before) != location(&self.group));
        self.commit(begun, step)
            .map(Some)
            .map_err(|why| format!("{why}\n  at {action:?}\n  in {before:?}"))
    }

    fn commit(&mut self, begun: Begun, Step { facts, effects }: Step) -> Checked<Committed> {
        for recorded in &facts {
            self.replayed.replay(recorded, self.now);
            self.records.store(recorded);
            self.release_lock(&recorded.fact)?;
        }
        let (replayed, live) = (&self.replayed, &self.group);
        ensure!(
            replayed == live,
            "I13: replay is not live:\n  replayed {replayed:?}\n  live {live:?}"
        );
        self.check_restore()?;
        let stdout_closed = self.agent.as_ref().is_some_and(|agent| agent.closed);
        let (group, timers) = (self.group.clone(), self.timers());
        let step = Played { begun, facts, effects, group, timers, stdout_closed };
        self.checker.step(&step)?;
        if let Some(trail) = &mut self.trail {
            trail.push(step.clone());
        }
        for effect in step.effects {
            self.perform(effect)?;
        }
        self.at_rest()?;
        Ok((self.now, step.facts))
    }

    /// HL-7: the group releases only its own lock.
    fn release_lock(&mut self, fact: &Fact) -> Checked {
        let Fact::LockReleased { key, holder, token, .. } = fact else { return Ok(()) };
        self.drop_lease(&(key.clone(), holder.clone(), *token))
    }

    fn drop_lease(&mut self, lease: &Lease) -> Checked {
        let place = self.leases.iter().position(|granted| granted == lease);
        let place = place.ok_or_else(|| format!("HL-4: {lease:?} is released and not held"))?;
        self.leases.remove(place);
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Checked {
        let live = self.agent.as_ref().map(|agent| agent.run);
        match effect {
            Effect::Launch { run, session, .. } => {
                ensure!(live.is_none(), "AM-1: {run} is launched beside {live:?}");
                self.agent = Some(Agent {
                    run,
                    session,
                    relocations: self.relocations,
                    ready: false,
                    is_stopping: false,
                    closed: false,
                    prompts: Vec::new(),
                    last_prompt: None,
                    prompted: None,
                    has_unread_prompt: false,
                    opening: Vec::new(),
                    requests: 0,
                });
            }
            Effect::Prompt { run, id, session } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else {
                    return Err(format!("I7: {run} cannot get prompt {id}"));
                };
                ensure!(agent.ready && !agent.is_stopping, "I7: {run} takes no prompt now");
                ensure!(agent.can_write(), "I12: {run} closed its stdout and is sent {id}");
                ensure!(agent.prompts.is_empty(), "I1: {run} is sent {id} beside another prompt");
                let moved = agent.relocations < self.relocations;
                ensure!(!moved, "prompt {id} goes to a former agent or directory");
                agent.prompts.push(id);
                (agent.last_prompt, agent.prompted) = (Some(id), Some(session));
                agent.has_unread_prompt = true;
            }
            Effect::OpenSession { run, id } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("{run} cannot open {id}")) };
                ensure!(agent.prompts.is_empty(), "{run} is to open {id} while its prompt runs");
                agent.opening = vec![id];
            }
            Effect::Cancel { run, .. } => {
                let agent = self.agent.as_ref().filter(|agent| agent.run == run);
                let in_flight = agent.is_some_and(|agent| !agent.prompts.is_empty());
                ensure!(in_flight, "{run} is sent a cancel with no prompt in flight");
            }
            Effect::FollowSession { run, .. } => {
                ensure!(live == Some(run), "{run} is not live to move");
            }
            Effect::Answer { run, .. } => {
                ensure!(live == Some(run), "{run} is not live to get an answer");
            }
            Effect::Stop { run, .. } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else {
                    return Err(format!("{run} is not live to be stopped"));
                };
                agent.is_stopping = true;
            }
            Effect::AcquireLock { task, key } => self.lock_requests.push((task, key)),
            Effect::ReleaseLock { key, holder, token } => self.drop_lease(&(key, holder, token))?,
            Effect::Purge => {
                ensure!(live.is_none(), "{live:?} lives, and its group is purged");
                let is_ordered = self.group.state().existence == Existence::Purging;
                ensure!(is_ordered, "the group is purged, and no caller ordered that");
                self.is_purged = true;
            }
        }
        Ok(())
    }

    /// The server dies and loses its locks; another one restores the group.
    fn crash(&mut self, recovery: Recovery) -> Checked<Option<Committed>> {
        self.past_runs.extend(self.agent.take().map(|agent| agent.run));
        self.leases.clear();
        self.lock_requests.clear();
        self.shut_down = false;
        self.group = self.restored_forgetfully();
        self.replayed = self.group.clone();
        let active = self.group.active_compaction().is_some();
        let used = self.group.run().is_some() || self.group.current().is_some();
        if !used && !active && self.group.waiting().len() == 0 {
            return Ok(None);
        }
        let committed = self.apply(Event::Recovered(recovery), Action::Crash)?;
        let left = (self.group.run(), self.group.current(), self.group.active_compaction());
        ensure!(left == (None, None, None), "R-1: alive after a restart: {left:?}");
        let open = self.group.permissions();
        ensure!(open.is_empty(), "R-1: permissions outlive their run: {open:?}");
        Ok(committed)
    }
}

/// Whether the group asks after the action what its settings and its queue require. It does not
/// while the server shuts down, nor after an eviction that it ignores.
fn reconciles(action: Action, fact_count: usize) -> bool {
    match action {
        Action::Drain | Action::Shutdown => false,
        Action::Evict => fact_count > 0,
        _ => true,
    }
}
