//! One group's actor: asks core for a step, commits its facts, and only then performs its effects.
//!
//! The steps of each message, in order: decide (`apply`), pack, commit, perform, reconcile,
//! publish. What is done once is an effect of core (`effects`). What the actor holds over time is
//! no effect: it is reconciled with core's state after each commit (`held`).
//!
//! The mailbox is closed during a commit, so that no answer is given from a state that is not
//! durable yet.

mod broken;
mod effects;
mod eviction;
mod held;
mod lease;
mod log_cursor;
mod logging;
mod messages;
mod notifications;
mod recovery;
mod rejected_log;
mod self_message;
mod submit;
mod timers;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, Context, Recipient, SpawnHandle,
    WrapFuture as _, fut::LocalBoxActorFuture,
};
use greenroom_core::{
    Blocked, EffectiveSettings, Event, Fact, GroupId, Now, Recorded, Recovery, Rejected, RunId,
    Settings, Status, Step, Stop, Task, TaskId, TaskState, Timer,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::{log_cursor::LogCursor, rejected_log::RejectedLog};
pub use self::{
    messages::{
        Accepted, AnswerPermission, Archive, Await, Cancel, CancelRunning, Configure, Control,
        Drain, EnsureLoaded, GroupError, KeyHashes, RebuildDigests, StopAgent, Submit,
    },
    notifications::{Forget, GroupDied, StatusChanged},
};
use crate::{
    agent::{Agent, AgentCommand, AgentLauncher},
    awake::Awake,
    changes::{Change, ChangeGate},
    clock,
    metrics::Metrics,
    pool::UsageCell,
    profile::{Capacity, Defaults, Profile},
    projections::digest,
    quota::{Quotas, Share},
    storage::{
        Db, GroupCommit, GroupNo, GroupSummary, KeyUse, StoreError, TaskView, Unreadable, WorkDir,
    },
    transcript::{
        feed::{self, Feed},
        frame,
    },
    unsettled::UnsettledGroups,
};

/// What all groups of a server share.
#[derive(Debug)]
pub struct Shared {
    /// The database.
    pub db: Db,
    /// One permit for each task that may run. The group that has waited longest gets the next free
    /// one (DQ-2, DQ-10); an actor that dies releases its own.
    pub slots: Arc<Semaphore>,
    /// How agents are started.
    pub launcher: AgentLauncher,
    /// The counters and histograms.
    pub metrics: Arc<Metrics>,
    /// The launch profiles.
    pub profiles: BTreeMap<String, Arc<Profile>>,
    /// What the server has room for.
    pub capacity: Capacity,
    /// The defaults and limits of every group.
    pub defaults: Defaults,
    /// What the server as a whole holds.
    pub quotas: Quotas,
    /// The time from the start of a shutdown until running turns are cancelled.
    pub drain_timeout: Duration,
    /// The parent of the directories that groups without a `cwd` work in.
    pub work_dir: WorkDir,
    /// Receives each status change while a reader is connected.
    pub status: Recipient<StatusChanged>,
    /// Whether a reader of status changes is connected: waking the supervisor twice a turn without
    /// one costs a tenth of the turn.
    pub change_gate: ChangeGate,
    /// Whether the server shuts down: set once, before any group gets its `Drain` message, so that
    /// no group claims work or sends a prompt meanwhile (DQ-11).
    pub draining: AtomicBool,
    /// The groups that an earlier server left in the middle of something.
    pub unsettled: UnsettledGroups,
    /// Receives the end of each group's actor.
    pub died: Recipient<GroupDied>,
    /// Receives each group that was purged.
    pub forget: Recipient<Forget>,
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Returns the launch profile of this name.
    ///
    /// # Errors
    ///
    /// [`GroupError::UnknownAgent`] if the configuration has none.
    pub fn profile(&self, agent: &str) -> Result<&Arc<Profile>, GroupError> {
        self.profiles.get(agent).ok_or_else(|| GroupError::UnknownAgent(agent.to_owned()))
    }
}

/// One group's actor.
pub struct Group {
    id: GroupId,
    no: GroupNo,
    epoch: u64,
    /// What the group's log says so far.
    log: LogCursor,
    /// Whether this actor rebuilt the digests already because a reader missed a row.
    digests_rebuilt: bool,
    rejected_log: RejectedLog,
    /// The effective settings; computed on first use, dropped when the settings change.
    effective: Option<EffectiveSettings>,
    shared: Arc<Shared>,
    feed: Arc<Feed>,
    /// Held exactly while the core has a current task.
    slot: Option<OwnedSemaphorePermit>,
    waits_for_slot: bool,
    /// The fencing token of the lease that core holds, and the future that renews it.
    lease: Option<(u64, SpawnHandle)>,
    agent: Option<(RunId, AgentHandle)>,
    waiters: HashMap<TaskId, Vec<oneshot::Sender<Task>>>,
    stop_waiters: Vec<oneshot::Sender<()>>,
    /// Whether a commit is under way.
    is_committing: bool,
    /// Whether recovery, with its own commit, is still under way.
    is_recovering: bool,
    /// The unreadable row that keeps the group from working.
    broken: Option<Unreadable>,
    status: Status,
    /// The bytes that wait in its queue, and its pending permissions, of the server's quotas.
    shares: (Share, Share),
    /// The armed timer, and its time.
    timer: Option<(SpawnHandle, Awake)>,
    /// Core's timers, and when each fires.
    deadlines: Vec<(Timer, Awake)>,
    /// How the last actor of the group ended.
    recovery: Recovery,
    obituary: Obituary,
}

/// Reports the actor's end to the supervisor when it is dropped: also by a panic, which actix does
/// not report.
struct Obituary {
    group: GroupId,
    incarnation: u64,
    /// How the actor ended, for its successor.
    recovery: Recovery,
    reader: Recipient<GroupDied>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let Self { incarnation, recovery, .. } = *self;
        self.reader.do_send(GroupDied { group: self.group.clone(), incarnation, recovery });
    }
}

/// A run's actor. Dropping the handle kills its process tree, so that no run outlives its group.
struct AgentHandle {
    agent: Addr<Agent>,
    usage: UsageCell,
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.agent.do_send(AgentCommand::Stop(Stop::AtOnce));
    }
}

type Progress = LocalBoxActorFuture<Group, Result<(), GroupError>>;

impl Group {
    /// Creates the actor of a group. It recovers the group from the database when it starts;
    /// `recovery` says how the group's last actor ended.
    pub fn new(
        id: GroupId,
        no: GroupNo,
        (incarnation, recovery): (u64, Recovery),
        shared: Arc<Shared>,
        feed: Arc<Feed>,
    ) -> Self {
        let obituary =
            Obituary { group: id.clone(), incarnation, recovery, reader: shared.died.clone() };
        let quotas = &shared.quotas;
        let shares = (quotas.queued_bytes.hold(0), quotas.permissions.hold(0));
        let log = LogCursor::new(Settings {
            agent: shared.defaults.agent.clone(),
            ..Settings::default()
        });
        Self {
            id,
            no,
            epoch: 1,
            log,
            digests_rebuilt: false,
            rejected_log: RejectedLog::default(),
            effective: None,
            shared,
            feed,
            slot: None,
            waits_for_slot: false,
            lease: None,
            agent: None,
            waiters: HashMap::new(),
            stop_waiters: Vec::new(),
            is_committing: false,
            is_recovering: true,
            broken: None,
            status: Status::Idle,
            shares,
            timer: None,
            deadlines: Vec::new(),
            recovery,
            obituary,
        }
    }

    /// Applies events in order, with one commit for all of their facts. An event that core rejects
    /// ends the series; the facts of the earlier ones are stored all the same. Events that may
    /// publish a compaction are applied after those of a lost lease.
    fn advance(&mut self, events: Vec<Event>, ctx: &mut Context<Self>) -> Progress {
        match self.checked_lease(&events) {
            None => self.advance_now(events, ctx),
            Some(checked) => Box::pin(checked.then(|lost, group: &mut Self, ctx| {
                group.advance_now(lost.into_iter().chain(events).collect(), ctx)
            })),
        }
    }

    fn advance_now(&mut self, events: Vec<Event>, ctx: &mut Context<Self>) -> Progress {
        if let Err(refused) = self.check_readable() {
            return Box::pin(actix::fut::ready(Err(refused)));
        }
        let at = clock::moment();
        let mut step = Step::default();
        let mut refused = Ok(());
        for event in events {
            match self.apply(event, at) {
                Ok(next) => step.extend(next),
                Err(rejected) => {
                    refused = Err(rejected.into());
                    break;
                }
            }
        }
        self.reconcile_slot(&mut step, at, ctx);
        let stored = self.commit(step, at, None);
        Box::pin(stored.map(|stored, _, _| stored.and(refused)))
    }

    /// Applies one event. Everything that one commit stores has one time, `at`: live and in the
    /// database (I13).
    fn apply(&mut self, event: Event, at: Now) -> Result<Step, Rejected> {
        let configures = matches!(event, Event::Configured(_));
        let mut effective = match &event {
            // The consequences of a change are decided by the settings after it.
            Event::Configured(settings) => self.effective_settings(settings),
            _ => self
                .effective
                .take()
                .unwrap_or_else(|| self.effective_settings(&self.log.core.state().settings)),
        };
        effective.is_draining = self.shared.is_draining();
        effective.has_permission_room = self.shared.quotas.permissions.check(1).is_ok();
        let step = self.log.core.apply(event, at, &effective, &mut clock::fresh);
        let mut facts = step.iter().flat_map(|step| &step.facts).map(|recorded| &recorded.fact);
        let changes = |fact: &Fact| matches!(fact, Fact::GroupCreated(_) | Fact::GroupChanged(_));
        let stale = configures || facts.any(changes);
        self.effective = Some(effective).filter(|_| !stale);
        self.hold_shares();
        step
    }

    /// Holds what core's state has of the server's quotas.
    fn hold_shares(&mut self) {
        let (queued, permissions) = &mut self.shares;
        queued.set(self.log.core.waiting_bytes() as u64);
        permissions.set(self.log.core.pending_permissions() as u64);
    }

    fn effective_settings(&self, settings: &Settings) -> EffectiveSettings {
        let profile = self.shared.profiles.get(&settings.agent);
        self.shared.defaults.effective(settings, profile.map(|profile| &**profile))
    }

    /// Commits a step's facts, then performs its effects and publishes it. If the commit fails the
    /// actor stops: its state is not that of the database. It also stops if another commit is under
    /// way, which only a handler that closes the mailbox rules out (see `self_message`): the order
    /// in which the database gets the two would be open (I3).
    fn commit(&mut self, step: Step, at: Now, key: Option<KeyUse>) -> Progress {
        let at = at.wall;
        let Step { facts, effects } = step;
        if facts.is_empty() && key.is_none() {
            return Box::pin(actix::fut::ready(()).map(move |(), group: &mut Self, ctx| {
                group.perform(effects, &[], ctx);
                group.reconcile(ctx);
                Ok(())
            }));
        }
        let blocks = frame::pack(at, &facts);
        let digests = digest::project(&mut self.log.digests, &facts, at);
        let commit = GroupCommit {
            group: self.no,
            epoch: self.epoch,
            at,
            summary: GroupSummary::of(self.id.clone(), &self.log.core),
            facts,
            blocks,
            digests,
            key,
        };
        if std::mem::replace(&mut self.is_committing, true) {
            return Box::pin(actix::fut::ready(()).map(|(), group: &mut Self, ctx| {
                log::error!(
                    target: "greenroom::group", group:% = group.id;
                    "group stops: two commits at once"
                );
                ctx.stop();
                Err(GroupError::Rebuilding)
            }));
        }
        let db = self.shared.db.clone();
        let stored = async move { db.commit(commit).await };
        Box::pin(stored.into_actor(self).map(|stored, group, ctx| match stored {
            Ok(stored) => {
                group.is_committing = false;
                // The agent works while the logs are written.
                group.perform(effects, &stored.blocks, ctx);
                group.reconcile(ctx);
                group.publish(&stored);
                Ok(())
            }
            Err(StoreError::Refused(why)) if group.is_recovering => {
                // Its rows contradict each other, and the next actor would fail the same way.
                Err(group.on_contradiction(&*why))
            }
            Err(err) => {
                log::log!(
                    target: "greenroom::group", err.level(), group:% = group.id,
                    err:% = crate::storage::chain(&err);
                    "group stops: its facts could not be stored"
                );
                group.obituary.recovery = Recovery::Storage;
                ctx.stop();
                Err(GroupError::Storage(err))
            }
        }))
    }

    /// Wakes readers and waiters, counts, and logs.
    fn publish(&mut self, stored: &GroupCommit) {
        feed::publish(&self.feed, &self.id, &stored.blocks, stored.summary.state.last_seq);
        self.shared.metrics.observe(stored, |task| self.log.core.task(task));
        for Recorded { fact, .. } in &stored.facts {
            logging::log_fact(&self.id, fact, stored.at);
            self.rejected_log.log(&self.id, fact, stored.at);
            if let Fact::TaskEnded { task, record, .. } = fact {
                for waiter in self.waiters.remove(task).into_iter().flatten() {
                    // The waiting request may have ended.
                    _ = waiter.send(Task::clone(record));
                }
            }
        }
        if self.status != stored.summary.status {
            let from = std::mem::replace(&mut self.status, stored.summary.status);
            logging::log_status(from, &stored.summary, self.log.core.current());
            if !self.shared.change_gate.count() {
                return;
            }
            self.shared.status.do_send(StatusChanged(Change {
                id: 0,
                at: stored.at,
                group: self.id.clone(),
                from,
                to: self.status,
                blocked_by: stored.summary.blocked_by,
                queue_length: stored.summary.queue_length,
                current_task: stored.summary.current_task,
            }));
        }
    }

    /// Returns a task that is not terminal as the API shows it.
    fn view(&self, id: TaskId) -> Option<TaskView> {
        let task = self.log.core.task(id)?.clone();
        let claimed = self.log.core.current().filter(|task| task.state() != TaskState::Running);
        let position = match claimed {
            Some(claimed) if claimed.id == id => Some(0),
            Some(_) => self.log.core.position(id).map(|ahead| ahead + 1),
            None => self.log.core.position(id),
        };
        let position = position.map(|ahead| ahead as u64);
        let blocked_by = position
            .and_then(|place| Blocked::at(place, claimed.is_some(), self.log.core.blocked_by()));
        Some(TaskView { task, group: self.id.clone(), position, blocked_by })
    }
}

impl Actor for Group {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.recover(ctx);
    }
}

impl From<StoreError> for GroupError {
    fn from(err: StoreError) -> Self {
        Self::Storage(err)
    }
}
