//! One group's actor: takes a message, asks core for a step, makes its facts durable, and only
//! then carries out its orders.
//!
//! While a commit is under way the mailbox is closed, so nobody is answered from a state that is
//! not durable yet.

mod broken;
mod item;
mod lock;
mod message;
mod news;
mod recovery;
mod report;
mod residency;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler,
    Message, Recipient, SpawnHandle, WrapFuture as _, fut::LocalBoxActorFuture,
};
use greenroom_core::{
    Blocked, Digests, Effect, Event, Expiry, GroupId, Recovery, Rejected, RunId, Settings, Status,
    Step, Task, TaskId, TaskState, Terms, Write, lock::Now,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::item::Item;
pub use self::message::{
    Accepted, Archive, Await, Cancel, Configure, Control, Cut, Decide, Demand, Drain, GroupError,
    Halt, KeyHashes, Patch, Refold, Rouse, Submit,
};
pub use self::news::{Change, Forget, GroupDied, StatusChanged};
use crate::{
    agent::{Agent, AgentReport, Nursery, Order, Start, acp, sessions::Reread},
    awake::{self, Awake},
    changes::Watched,
    clock, digest,
    feed::{self, Feed},
    frames::{self, Place},
    metrics::Metrics,
    profile::{Compacts, Limits, Profile},
    residents::{Needed, Wish},
    storage::{GroupNo, KeyUse, Ledger, Standing, StoreError, TaskView, Unreadable, Writes},
};

/// What all groups of a server share.
#[derive(Debug)]
pub struct Shared {
    /// The database.
    pub ledger: Ledger,
    /// One permit for each task that may run. Whoever has waited longest gets the next one that is
    /// given back (SEEDS DQ-2, DQ-10), and an actor that dies gives back its own.
    pub slots: Arc<Semaphore>,
    /// How agents are started.
    pub nursery: Nursery,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The launch profiles.
    pub profiles: HashMap<String, Arc<Profile>>,
    /// The limits of every group.
    pub limits: Limits,
    /// Where a group's agent works if nobody says where.
    pub work_dir: std::path::PathBuf,
    /// The profile of a group that nobody configured.
    pub default_agent: String,
    /// Hears of each status change, while anybody wants to know.
    pub status: Recipient<StatusChanged>,
    /// Whether a reader of status changes is connected: to wake the supervisor twice a turn without
    /// one costs a tenth of the turn.
    pub watched: Watched,
    /// Whether the server shuts down: set once, before any group hears of it by a message, so that
    /// none claims work or sends a prompt meanwhile (SEEDS DQ-11).
    pub draining: AtomicBool,
    /// Hears of a group's end.
    pub died: Recipient<GroupDied>,
    /// Hears of a group that is no more.
    pub forget: Recipient<Forget>,
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The directory in which a group's agent works if nobody says where.
    pub fn own_dir(&self, no: GroupNo) -> std::path::PathBuf {
        self.work_dir.join(no.to_string())
    }
}

/// One group's actor.
pub struct Group {
    id: GroupId,
    no: GroupNo,
    epoch: u64,
    core: greenroom_core::Group,
    /// What its facts come to.
    digests: Digests,
    /// Whether they were made again because somebody missed a row of them.
    refolded: bool,
    /// What its settings come to; made when it is needed.
    terms: Option<Terms>,
    /// What the next frame belongs to.
    place: Place,
    /// Which session the next one is said in.
    reread: Reread,
    shared: Arc<Shared>,
    feed: Arc<Feed>,
    /// Held exactly while the core has a current task.
    slot: Option<OwnedSemaphorePermit>,
    waits_for_slot: bool,
    /// Keeps the lock that the core holds.
    lease: Option<(u64, SpawnHandle)>,
    agent: Option<(RunId, AgentHandle)>,
    waiters: HashMap<TaskId, Vec<oneshot::Sender<Task>>>,
    halted: Vec<oneshot::Sender<()>>,
    /// Whether a commit of its facts is under way.
    commits: bool,
    /// Whether it still reads itself back, with the commit of what follows from that.
    recovers: bool,
    /// What of its rows cannot be read, if it cannot work for it.
    broken: Option<Unreadable>,
    status: Status,
    /// What is armed, and for when.
    timer: Option<(SpawnHandle, Awake)>,
    /// What is bounded now, and until when.
    due: Vec<(Expiry, Awake)>,
    /// What it reads itself back after.
    recovery: Recovery,
    obituary: Obituary,
}

/// Tells the supervisor when the actor is dropped: also by a panic, which actix says nothing of.
struct Obituary {
    group: GroupId,
    incarnation: u64,
    /// What its successor reads the group back after.
    recovery: Recovery,
    reader: Recipient<GroupDied>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let Self { incarnation, recovery, .. } = *self;
        self.reader.do_send(GroupDied { group: self.group.clone(), incarnation, recovery });
    }
}

/// A run's actor. Dropping the handle has its process tree killed, so that none outlives its group.
struct AgentHandle {
    agent: Addr<Agent>,
    needed: Needed,
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.agent.do_send(Order::Kill);
    }
}

type Progress = LocalBoxActorFuture<Group, Result<(), GroupError>>;

impl Group {
    /// The actor of a group, which reads itself back from the database when it starts, after its
    /// last one ended by `recovery`.
    pub fn new(
        id: GroupId,
        no: GroupNo,
        (incarnation, recovery): (u64, Recovery),
        shared: Arc<Shared>,
        feed: Arc<Feed>,
    ) -> Self {
        let obituary =
            Obituary { group: id.clone(), incarnation, recovery, reader: shared.died.clone() };
        let core = greenroom_core::Group::new(Settings {
            agent: shared.default_agent.clone(),
            ..Settings::default()
        });
        Self {
            id,
            no,
            epoch: 1,
            core,
            digests: Digests::default(),
            refolded: false,
            terms: None,
            place: Place::default(),
            reread: Reread::default(),
            shared,
            feed,
            slot: None,
            waits_for_slot: false,
            lease: None,
            agent: None,
            waiters: HashMap::new(),
            halted: Vec::new(),
            commits: false,
            recovers: true,
            broken: None,
            status: Status::Idle,
            timer: None,
            due: Vec::new(),
            recovery,
            obituary,
        }
    }

    /// Takes in events, one commit for all that follows from them. An event that the core rejects
    /// ends the row; what the earlier ones led to is stored all the same.
    fn advance(&mut self, events: Vec<Event>, ctx: &mut Context<Self>) -> Progress {
        if let Err(refused) = self.cannot_work() {
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
        self.use_slot(&mut step, at, ctx);
        let stored = self.store(step, at, None);
        Box::pin(stored.map(|stored, _, _| stored.and(refused)))
    }

    /// Takes in one event. All that one commit stores has one time, `at`: live and in the database
    /// (I13).
    fn apply(&mut self, event: Event, at: Now) -> Result<Step, Rejected> {
        let configures = matches!(event, Event::Configured(_));
        let terms = match &event {
            // What follows from a change is decided by what is in force after it.
            Event::Configured(settings) => self.new_terms(settings),
            _ => self.terms.take().unwrap_or_else(|| self.new_terms(&self.core.head().settings)),
        };
        let step = self.core.apply(event, at, &terms, &mut clock::fresh);
        step.iter().flat_map(|step| &step.writes).for_each(|write| self.reread.take(write));
        let changes =
            |write: &Write| matches!(write, Write::GroupCreated(_) | Write::GroupChanged(_));
        let stale = configures || step.as_ref().is_ok_and(|step| step.writes.iter().any(changes));
        self.terms = Some(terms).filter(|_| !stale);
        step
    }

    /// What these settings and their agent's profile come to.
    fn new_terms(&self, settings: &Settings) -> Terms {
        let limits = &self.shared.limits;
        let profile = self.shared.profiles.get(&settings.agent);
        let of_profile = profile.and_then(|profile| profile.auto_compact);
        // What waits under a profile that is not configured fails at its launch, and not before.
        let compacts = profile.map_or(&Compacts::ByRotation, |profile| &profile.compaction);
        Terms {
            patience: limits.patience,
            auto_compact: settings.auto_compact.or(of_profile).unwrap_or(limits.auto_compact),
            retry: limits.retry,
            on_interrupt: settings.on_interrupt.unwrap_or(limits.on_interrupt),
            permissions: settings
                .permission_policy
                .clone()
                .unwrap_or_else(|| limits.permissions.clone()),
            compaction: compacts.order(),
            listens: profile.is_some_and(|profile| profile.signals.any()),
        }
    }

    /// Gives the slot back after each task, takes one if one is free, and else stands in line.
    fn use_slot(&mut self, step: &mut Step, at: Now, ctx: &mut Context<Self>) {
        loop {
            if self.core.current().is_none() {
                self.slot = None;
            }
            if self.shared.is_draining() || self.waits_for_slot || !self.core.wants_slot() {
                return;
            }
            match self.shared.slots.clone().try_acquire_owned() {
                Ok(slot) => {
                    self.slot = Some(slot);
                    step.extend(self.apply(Event::SlotGranted, at).unwrap_or_default());
                }
                Err(_) => return self.stand_in_line(ctx),
            }
        }
    }

    fn stand_in_line(&mut self, ctx: &mut Context<Self>) {
        self.waits_for_slot = true;
        let slot = self.shared.slots.clone().acquire_owned();
        ctx.spawn(slot.into_actor(self).map(|slot, group, ctx| match slot {
            Ok(slot) => ctx.address().do_send(Item::Slot(slot)),
            Err(_) => group.waits_for_slot = false,
        }));
    }

    fn take_slot(&mut self, slot: OwnedSemaphorePermit) -> Vec<Event> {
        self.waits_for_slot = false;
        if self.shared.is_draining() || !self.core.wants_slot() {
            return Vec::new();
        }
        self.slot = Some(slot);
        vec![Event::SlotGranted]
    }

    /// Makes a step's facts durable, and then carries out its orders and shows it. If they cannot
    /// be stored the actor stops: what it believes is not what the database knows. It stops as well
    /// if another commit is under way, of which only a handler that closes the mailbox can be sure
    /// (see `item`): nobody could say which of the two the database gets first (I3).
    fn store(&mut self, step: Step, at: Now, key: Option<KeyUse>) -> Progress {
        let at = at.wall;
        let Step { writes, effects } = step;
        if writes.is_empty() && key.is_none() {
            return Box::pin(actix::fut::ready(()).map(move |(), group: &mut Self, ctx| {
                group.settle(effects, ctx);
                Ok(())
            }));
        }
        let blocks = frames::pack(&mut self.place, at, &writes);
        let digests = digest::fold(&mut self.digests, &writes, at);
        let writes = Writes {
            group: self.no,
            epoch: self.epoch,
            at,
            standing: self.standing(),
            writes,
            blocks,
            digests,
            key,
        };
        if std::mem::replace(&mut self.commits, true) {
            return Box::pin(actix::fut::ready(()).map(|(), group: &mut Self, ctx| {
                log::error!(
                    target: "greenroom::group", group:% = group.id;
                    "group stops: two commits at once"
                );
                ctx.stop();
                Err(GroupError::Rebuilding)
            }));
        }
        let ledger = self.shared.ledger.clone();
        let stored = async move { ledger.commit(writes).await };
        Box::pin(stored.into_actor(self).map(|stored, group, ctx| match stored {
            Ok(stored) => {
                group.commits = false;
                // The agent works while the logs are written.
                group.settle(effects, ctx);
                group.show(&stored);
                Ok(())
            }
            Err(StoreError::Refused(why)) if group.recovers => {
                // Its rows contradict each other, and the next actor would meet the same.
                Err(group.contradicts(&*why))
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

    /// What lists show of the group.
    fn standing(&self) -> Standing {
        Standing {
            id: self.id.clone(),
            head: self.core.head().clone(),
            status: self.core.status(),
            blocked_by: self.core.blocked_by(),
            queue_length: self.core.waiting().len() as u64,
            current_task: self.core.current().map(|task| task.id),
            current_run: self.core.run().map(|run| run.id),
            is_compacting: self.core.active_compaction().is_some(),
        }
    }

    /// Wakes readers and waiters, and tells the logs.
    fn show(&mut self, stored: &Writes) {
        feed::publish(&self.feed, &self.id, &stored.blocks, stored.standing.head.last_seq);
        self.shared.metrics.observe(stored, |task| self.core.task(task));
        for write in &stored.writes {
            report::tell(&self.id, write, stored.at);
            if let Write::TaskEnded { task, record, .. } = write {
                for waiter in self.waiters.remove(task).into_iter().flatten() {
                    // Whoever waited may have left.
                    _ = waiter.send(Task::clone(record));
                }
            }
        }
        if self.status != stored.standing.status {
            let from = std::mem::replace(&mut self.status, stored.standing.status);
            report::tell_status(from, &stored.standing, self.core.current());
            if !self.shared.watched.count() {
                return;
            }
            self.shared.status.do_send(StatusChanged(Change {
                id: 0,
                at: stored.at,
                group: self.id.clone(),
                from,
                to: self.status,
                blocked_by: stored.standing.blocked_by,
                queue_length: stored.standing.queue_length,
                current_task: stored.standing.current_task,
            }));
        }
    }

    /// Carries out orders, and what else follows from the state that is durable now.
    fn settle(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            self.perform(effect, ctx);
        }
        if self.core.run().is_none() {
            self.agent = None;
            self.halted.drain(..).for_each(|waiter| _ = waiter.send(()));
            if self.core.head().purging && self.core.current().is_none() {
                self.purge(ctx);
            }
        }
        self.see_to_residency();
        self.see_to_lease(ctx);
        self.set_timer(ctx);
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let (run, order) = match effect {
            Effect::Launch { run, session } => return self.launch(run, session, ctx),
            Effect::Prompt { run, id, .. } if self.shared.is_draining() => {
                let withheld = Event::PromptWithheld { run, id };
                return ctx.address().do_send(Item::Event(withheld));
            }
            Effect::Prompt { run, id, session, prompt } => {
                (run, Order::Prompt(acp::prompt_line(id, &session, &prompt), session))
            }
            Effect::Cancel { run, session } => (run, Order::Send(acp::cancel_line(&session))),
            Effect::OpenSession { run, id } => (run, Order::OpenSession(id)),
            Effect::TakeLock { task, key } => return self.take_lock(task, &key, ctx),
            Effect::DropLock { key, holder, token } => {
                return self.drop_lock(&key, &holder, token);
            }
            Effect::Answer { run, answer } => (run, Order::Send(acp::answer_line(&answer))),
            Effect::Stop { run, how } => (run, Order::Stop(how)),
        };
        if let Some((own, agent)) = &self.agent
            && *own == run
        {
            agent.agent.do_send(order);
        }
    }

    fn launch(
        &mut self,
        run: RunId,
        session: Option<greenroom_core::SessionId>,
        ctx: &mut Context<Self>,
    ) {
        let settings = &self.core.head().settings;
        let Some(profile) = self.shared.profiles.get(&settings.agent).cloned() else {
            let detail = format!("the configuration has no agent {:?}", settings.agent);
            let exit =
                greenroom_core::Exit::unseen(greenroom_core::ExitReason::StartFailed, detail);
            let exited = Event::AgentExited { run, exit };
            return ctx.address().do_send(AgentReport::of(exited));
        };
        let own_dir = self.shared.own_dir(self.no);
        let (lives, died) = oneshot::channel();
        let start = Start {
            run,
            group: self.id.clone(),
            profile,
            own_dir,
            cwd: settings.cwd.clone().map(Into::into),
            session,
            lives,
        };
        let own = ctx.address();
        ctx.spawn(died.into_actor(self).map(move |_, _, _| own.do_send(AgentDied(run))));
        let needed = Needed::default();
        let wish = Wish { needed: needed.clone(), group: ctx.address().recipient() };
        let nursery = self.shared.nursery.clone();
        let agent = Agent::new(start, nursery, wish, ctx.address().recipient()).start();
        self.agent = Some((run, AgentHandle { agent, needed }));
    }

    /// One timer for whatever is bounded now, for the earliest of it. One that is armed for an
    /// earlier moment stays: a turn that settles in time costs none.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let now = clock::moment();
        let bounds = self.core.patience(&self.shared.limits.patience, now).map(|(expiry, ms)| {
            // These were promised in real time, of which a freeze is a part.
            let is_promised =
                matches!(expiry, Expiry::Launch(_) | Expiry::Backoff(..) | Expiry::Queued(_));
            let known = self.due.iter().find(|(same, _)| *same == expiry && !is_promised);
            known.copied().unwrap_or_else(|| (expiry, awake::now() + Duration::from_millis(ms)))
        });
        self.due = bounds.collect();
        let Some(due) = self.due.iter().map(|(_, due)| *due).min() else { return };
        match self.timer {
            Some((_, armed_for)) if armed_for <= due => return,
            Some((timer, _)) => _ = ctx.cancel_future(timer),
            None => {}
        }
        let ring = |_: &mut Self, ctx: &mut Context<Self>| ctx.address().do_send(Item::Timer);
        self.timer = Some((ctx.run_later(due.left(), ring), due));
    }

    /// What is due; called when the timer went off.
    fn expired(&mut self, ctx: &mut Context<Self>) -> Vec<Event> {
        self.timer = None;
        let now = awake::now();
        let expired =
            |(expiry, due): &(Expiry, Awake)| (*due <= now).then_some(Event::Expired(*expiry));
        let events: Vec<Event> = self.due.iter().filter_map(expired).collect();
        if events.is_empty() {
            self.set_timer(ctx);
        }
        self.due.retain(|(_, due)| *due > now);
        events
    }

    /// A task that is not terminal, as the API shows it.
    fn view(&self, id: TaskId) -> Option<TaskView> {
        let task = self.core.task(id)?.clone();
        let claimed = self.core.current().filter(|task| task.state != TaskState::Running);
        let position = match claimed {
            Some(claimed) if claimed.id == id => Some(0),
            Some(_) => self.core.position(id).map(|place| place + 1),
            None => self.core.position(id),
        };
        let blocked_by = match position {
            Some(0) if claimed.is_some() => Some(Blocked::Agent),
            Some(0) => self.core.blocked_by(),
            Some(_) => self.core.blocked_by().map(Blocked::behind),
            None => None,
        };
        let position = position.map(|place| place as u64);
        Some(TaskView { task, group: self.id.clone(), position, blocked_by })
    }
}

/// A run's actor ended. By a message, so that what it told before is taken in before.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct AgentDied(RunId);

impl Handler<AgentDied> for Group {
    type Result = ();

    /// If it told nothing of how the run ended, the group is rebuilt from the database, which looks
    /// for what is left of the run (I15).
    fn handle(&mut self, AgentDied(run): AgentDied, ctx: &mut Context<Self>) {
        if self.agent.as_ref().is_some_and(|(own, _)| *own == run) {
            log::error!(
                target: "greenroom::run", group:% = self.id, run:%;
                "the run's actor panicked; its group is rebuilt from the database"
            );
            ctx.stop();
        }
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
