//! One group: its queue, its running task, its agent's run. The rules of I1, I7, I8 and I9.
//!
//! [`Group::apply`] decides; [`Group::replay`] alone changes the state, live and at recovery (I13).

mod compacting;
mod conversation;
mod locking;
mod permitting;
mod replay;
mod retrying;
mod scene;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::scene::Scene;
use crate::{
    Blocked, Compaction, CompactionId, CompactionOrder, CutBy, Due, Event, Held, OnInterrupt,
    Permission, PermissionId, PermissionPolicy, Provenance, Retry, Run, RunId, RunPhase, SessionId,
    Settings, Source, Step, Strategy, Task, TaskId, TaskKind, TaskState, Timestamp, Turn, Usage,
    lifecycle::Recent, lock::Now, retry::CRASHES_MAX,
};

/// How long an agent may take to answer a cancel before its process tree is ended.
const CANCEL_MS: u64 = 10_000;
/// How long until a lock that somebody else holds is asked for again.
const LOCK_RETRY_MS: u64 = 1_000;

/// What is kept of a group beside its tasks and its run.
///
/// A log that is cut begins with it: a field that an earlier version did not write needs a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// What callers set.
    pub settings: Settings,
    /// When the group was first made durable; absent: it was not yet.
    pub created_at: Option<Timestamp>,
    /// The last frame's number.
    pub last_seq: u64,
    /// How many tasks were ever accepted.
    pub tasks: u64,
    /// The session in force.
    pub session: Option<SessionId>,
    /// Whether no prompt was sent in that session yet: then nothing is lost with it.
    pub unspoken: bool,
    /// The open segment; 0 before the first session.
    pub segment: u32,
    /// The context usage last reported.
    pub usage: Option<Usage>,
    /// Whether it claims no work until somebody says so.
    pub paused: bool,
    /// Whether it was deleted.
    pub archived: bool,
    /// Whether its rows are to be deleted as well, as soon as nothing of its run is left.
    pub purging: bool,
    /// Which of hermes' sessions is in force: after a restart it is the one to take up.
    pub provenance: Option<Provenance>,
    /// What became of its compactions so far.
    pub compacting: Compacting,
    /// A summary that no prompt carried into its session yet.
    pub lead_in: Option<String>,
    /// Why it claims no work until somebody decided what becomes of it, if so.
    pub held: Option<Held>,
    /// How many turns in a row were cut off.
    pub interruptions: u32,
    /// How many runs in a row ended without settling a turn.
    pub crashes: u32,
    /// Until when the next run waits, as there were too many of them.
    pub launch_due: Option<Due>,
}

impl Head {
    /// A group that nobody has stored yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            created_at: None,
            last_seq: 0,
            tasks: 0,
            session: None,
            unspoken: false,
            segment: 0,
            usage: None,
            paused: false,
            archived: false,
            purging: false,
            provenance: None,
            compacting: Compacting::default(),
            lead_in: None,
            held: None,
            interruptions: 0,
            crashes: 0,
            launch_due: None,
        }
    }
}

/// What became of a group's compactions, kept for its life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compacting {
    /// How many were completed; never falls (SEEDS AM-23).
    pub count: u64,
    /// Who told first of the last one.
    pub last_source: Option<Source>,
    /// When one began last.
    pub last_started_at: Option<Timestamp>,
    /// When one was completed last.
    pub last_completed_at: Option<Timestamp>,
    /// Whether the usage was reported since one was completed last.
    measured: bool,
    /// The tokens in use before the last completed one, until it is known what that freed.
    before: Option<u64>,
    /// How many in a row freed too little (I12).
    streak: u8,
    /// Until when the group orders none by itself, as an ordered one was not completed (SEEDS
    /// HL-14). No frame tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rest: Option<Due>,
    /// When an ordered one failed last: how an earlier version kept the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed_at: Option<Timestamp>,
}

/// A group's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    head: Head,
    waiting: VecDeque<Task>,
    waiting_bytes: usize,
    /// How many of the waiting tasks have to start by a certain time.
    expiring: usize,
    current: Option<Current>,
    run: Option<Run>,
    /// What the run asked for and nobody answered, in order.
    permissions: Vec<Permission>,
    /// What the run told of compactions.
    recent: Recent,
    lock: Lock,
}

/// The lock of the session, as far as the group's next or running compaction needs it.
#[derive(Clone, Debug, Default, PartialEq)]
enum Lock {
    #[default]
    Unasked,
    /// The `tries`-th request is under way; at the first, `count` compactions were completed.
    Asked { task: TaskId, tries: u64, count: u64 },
    /// Somebody else holds it.
    Refused { task: TaskId, tries: u64, count: u64 },
    /// It is the group's, for the session `key`.
    Held { task: TaskId, key: SessionId, holder: String, token: u64 },
    /// There is none to be had.
    Bypassed { task: TaskId },
    /// It was the group's, and is not any more.
    Lost { task: TaskId },
}

impl Lock {
    /// The task that needs it.
    fn task(&self) -> Option<TaskId> {
        match self {
            Self::Unasked => None,
            Self::Asked { task, .. }
            | Self::Refused { task, .. }
            | Self::Held { task, .. }
            | Self::Bypassed { task }
            | Self::Lost { task } => Some(*task),
        }
    }

    /// Whether `task` may compact `session`.
    fn lets(&self, task: TaskId, session: Option<&SessionId>) -> bool {
        match self {
            Self::Held { task: own, key, .. } => *own == task && Some(key) == session,
            Self::Bypassed { task: own } => *own == task,
            Self::Unasked | Self::Asked { .. } | Self::Refused { .. } | Self::Lost { .. } => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Current {
    task: Task,
    /// Absent while the task is claimed and its prompt was not committed to be sent.
    turn: Option<Turn>,
}

/// An event that a group does not take; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The queue holds as many tasks, or bytes, as it may.
    #[error("the group's queue is full")]
    QueueFull,
    /// The group was deleted.
    #[error("the group was deleted; PUT revives it")]
    Archived,
    /// The group's rows are being deleted.
    #[error("the group is being deleted")]
    Purging,
    /// The task has ended.
    #[error("the task has ended")]
    AlreadyTerminal,
    /// A compaction waits or runs already; it is the one to wait for (SEEDS DQ-3).
    #[error("a compaction of the group waits or runs already")]
    AlreadyCompacting(TaskId),
    /// The permission is decided on.
    #[error("the permission is decided on")]
    NotPending,
    /// The permission does not offer that.
    #[error("the permission has no such option")]
    NoSuchOption,
}

/// What a group is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing to do.
    Idle,
    /// Its agent is being started for a task.
    Starting,
    /// A turn runs.
    Running,
    /// A compaction task runs, or the agent compacts within a turn.
    Compacting,
    /// Work is queued and something stands before it.
    Waiting,
    /// Told to claim no work.
    Paused,
    /// Claims no work until somebody decided: a turn was cut off.
    Held,
    /// Its agent fails again and again.
    Degraded,
    /// Deleted.
    Archived,
}

/// What may take no longer than a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// An attempt.
    Turn(TaskId),
    /// A running task's cancel.
    Cancel(TaskId),
    /// A compaction, whoever ordered it (SEEDS AM-28).
    Compaction(CompactionId),
    /// A lock that somebody else holds, at the so-many-th refusal.
    Lock(TaskId, u64),
    /// A permission that nobody answers.
    Permission(PermissionId),
    /// A task's wait for its next attempt, after this one.
    Backoff(TaskId, u32),
    /// The wait for the next run, after so many in a row that settled no turn.
    Launch(u32),
    /// A task that did not start yet.
    Queued(TaskId),
    /// A resident agent with nothing to do, since the frame with this number.
    Idle(RunId, u64),
}

/// The limits that [`Group::patience`] and [`Group::apply`] go by.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One attempt, milliseconds.
    pub turn_ms: u64,
    /// A compaction, and the wait for its lock, milliseconds.
    pub compaction_ms: u64,
    /// An idle agent, milliseconds.
    pub idle_ms: u64,
    /// A permission that nobody answers, milliseconds.
    pub permission_ms: u64,
    /// Until a failed attempt is made again for the first time, milliseconds.
    pub retry_base_ms: u64,
    /// Waiting tasks.
    pub queue_max: usize,
    /// Bytes of waiting prompts.
    pub queue_bytes_max: usize,
}

/// What a group's settings and its agent's profile come to.
///
/// They are given with each event, and a decision goes by those of its moment. What an attempt
/// keeps to its end is in its [`Task`] (deadline, prompt, strategy) and in its [`Run`] (agent,
/// directory, what is listened to).
#[derive(Clone, Debug)]
pub struct Terms {
    /// The limits of every group.
    pub patience: Patience,
    /// The share of the context window at which a compaction is ordered; 0: never.
    pub auto_compact: f64,
    /// Which failed attempts are made again.
    pub retry: Retry,
    /// What becomes of the queue after a turn was cut off.
    pub on_interrupt: OnInterrupt,
    /// Who decides on what the agent asks for.
    pub permissions: PermissionPolicy,
    /// How a compaction is ordered; `None`: not at all.
    pub compaction: Option<CompactionOrder>,
    /// Whether the profile listens to more than ACP: a run that starts now keeps that.
    pub listens: bool,
}

impl Group {
    /// A group that nobody has stored yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            head: Head::new(settings),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            expiring: 0,
            current: None,
            run: None,
            permissions: Vec::new(),
            recent: Recent::default(),
            lock: Lock::Unasked,
        }
    }

    /// A group as it was stored: its `tasks` that are not terminal, in the order of acceptance,
    /// its `run` and running `turn` if it has them, of its `compactions` the active one and those
    /// that were completed within the running turn, and the `permissions` that nobody answered.
    pub fn restore(
        head: Head,
        tasks: Vec<Task>,
        run: Option<Run>,
        turn: Option<Turn>,
        compactions: impl IntoIterator<Item = Compaction>,
        permissions: Vec<Permission>,
    ) -> Self {
        let mut group = Self { head, run, permissions, ..Self::new(Settings::default()) };
        compactions.into_iter().for_each(|compaction| group.recent.put(compaction));
        for task in tasks {
            if task.claimed_at.is_some() {
                let mut turn = turn.clone();
                if let Some(turn) = turn.as_mut().filter(|_| task.cancel_requested) {
                    turn.cut.get_or_insert(CutBy::Caller);
                }
                group.current = Some(Current { task, turn });
            } else {
                group.enqueue(task);
            }
        }
        group
    }

    /// What is kept of the group beside its tasks and its run.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The agent process, if there is one.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// The task that has the group's slot.
    pub fn current(&self) -> Option<&Task> {
        self.current.as_ref().map(|current| &current.task)
    }

    /// The attempt that runs.
    pub fn turn(&self) -> Option<&Turn> {
        self.current.as_ref()?.turn.as_ref()
    }

    /// The tasks that have no slot, the next one first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Task> {
        self.waiting.iter()
    }

    /// A task that is not terminal.
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        let current = self.current().filter(|task| task.id == id);
        current.or_else(|| self.waiting.get(self.position(id)?))
    }

    /// Whether the run has to stay: for a task, or for a compaction that the agent makes by itself.
    /// A permission that it asks for outside of a turn keeps no place from other groups: it becomes
    /// void with the run.
    pub fn needs_run(&self) -> bool {
        self.current.is_some() || self.recent.active().is_some()
    }

    /// Whether nothing has begun that is not over: the state is then all that [`Group::restore`]
    /// takes, and a log may be cut there. An agent may be resident, and tasks may wait that have
    /// not been started.
    pub fn is_between_tasks(&self) -> bool {
        let untouched = |task: &Task| task.state == TaskState::Queued && task.started_at.is_none();
        self.current.is_none()
            && self.recent.active().is_none()
            && self.lock == Lock::Unasked
            && self.permissions.is_empty()
            && self.waiting.iter().all(untouched)
    }

    /// How many tasks stand before a waiting one. The newest is looked at first: it is the one that
    /// somebody just asked for, and the queue may be long.
    pub fn position(&self, id: TaskId) -> Option<usize> {
        match self.waiting.back() {
            Some(newest) if newest.id == id => Some(self.waiting.len() - 1),
            _ => self.waiting.iter().position(|task| task.id == id),
        }
    }

    /// Whether a slot would let a task go on.
    pub fn wants_slot(&self) -> bool {
        let may_go = |next| !self.backs_off(next) && !self.needs_lock(next);
        self.current.is_none() && !self.stands_still() && self.waiting.front().is_some_and(may_go)
    }

    /// Whether it claims no work until somebody says so.
    fn stands_still(&self) -> bool {
        self.head.paused || self.head.archived || self.head.held.is_some()
    }

    /// Whether the next task would use a lock soon.
    fn may_lock(&self) -> bool {
        !self.stands_still() && self.waiting.front().is_some_and(|next| !self.backs_off(next))
    }

    /// Whether `task` waits for its next attempt, or for the next run. Of the two waits, a task
    /// that is made again has only its own (ARCHITECTURE 4).
    fn backs_off(&self, task: &Task) -> bool {
        let launches = self.run.is_none() && task.state != TaskState::Retrying;
        task.retry_at.is_some() || (launches && self.head.launch_due.is_some())
    }

    /// The permissions that nobody answered yet, the oldest first.
    pub fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    /// Whether `task` waits for the session's lock. A compaction with nothing to do is ended before
    /// it asks for one.
    fn needs_lock(&self, task: &Task) -> bool {
        let session = self.head.session.as_ref();
        session.is_some()
            && task.kind() == TaskKind::Compaction
            && !self.lock.lets(task.id, session)
    }

    /// Whether there is anything that a compaction could do: it needs a session with more in it
    /// than the summary that opened it.
    fn is_compactable(&self, strategy: Strategy) -> bool {
        let head = &self.head;
        let is_fresh = self.run.as_ref().is_some_and(|run| run.fresh);
        let is_led = match strategy {
            Strategy::Command => head.lead_in.is_some() && head.unspoken,
            Strategy::Rotate => head.lead_in.is_some(),
        };
        head.session.is_some() && !is_fresh && !is_led
    }

    /// The compaction that may be going on.
    pub fn active_compaction(&self) -> Option<&Compaction> {
        self.recent.active()
    }

    /// The compaction task that needs the session's lock.
    pub fn locking_task(&self) -> Option<TaskId> {
        self.lock.task()
    }

    /// The compactions that its run told of, the oldest first, as far as they are remembered.
    pub fn compactions(&self) -> impl Iterator<Item = &Compaction> {
        self.recent.iter()
    }

    /// The lock that the group holds: session, holder and fencing token.
    pub fn lease(&self) -> Option<(&SessionId, &str, u64)> {
        match &self.lock {
            Lock::Held { key, holder, token, .. } => Some((key, holder, *token)),
            Lock::Unasked
            | Lock::Asked { .. }
            | Lock::Refused { .. }
            | Lock::Bypassed { .. }
            | Lock::Lost { .. } => None,
        }
    }

    /// What the group is doing.
    pub fn status(&self) -> Status {
        match &self.current {
            _ if self.head.archived => Status::Archived,
            Some(Current { turn: None, .. }) => Status::Starting,
            Some(Current { task, .. }) if task.kind() == TaskKind::Compaction => Status::Compacting,
            Some(_) if self.recent.active().is_some() => Status::Compacting,
            Some(_) => Status::Running,
            None if self.head.held.is_some() => Status::Held,
            None if self.head.paused => Status::Paused,
            None if self.head.crashes >= CRASHES_MAX => Status::Degraded,
            None if self.waiting.is_empty() => Status::Idle,
            None => Status::Waiting,
        }
    }

    /// What the next task waits for, if any task waits.
    pub fn blocked_by(&self) -> Option<Blocked> {
        let Some(next) = self.waiting.front() else {
            let starts = self.current.as_ref().is_some_and(|current| current.turn.is_none());
            return starts.then_some(Blocked::Agent);
        };
        Some(match &self.current {
            Some(Current { turn: None, .. }) => Blocked::Agent,
            Some(_) => Blocked::Turn,
            None if self.head.held.is_some() => Blocked::Held,
            None if self.head.paused => Blocked::Paused,
            None if self.backs_off(next) => Blocked::Backoff,
            None if self.needs_lock(next) => Blocked::Lock,
            None => Blocked::Slot,
        })
    }

    /// What is now bounded in time, and by how many milliseconds from the moment it became so.
    pub fn patience(&self, limits: &Patience, now: Now) -> impl Iterator<Item = (Expiry, u64)> {
        let ready = self.run.as_ref().filter(|run| run.phase == RunPhase::Ready);
        let active = self.recent.active().map(|active| active.id);
        let task = ready.and(self.current.as_ref()).and_then(|Current { task, turn }| {
            let turn = turn.as_ref()?;
            if turn.cut.is_some() {
                return Some((Expiry::Cancel(task.id), CANCEL_MS));
            }
            let limit = match task.kind() {
                TaskKind::Turn => limits.turn_ms,
                TaskKind::Compaction => limits.compaction_ms,
            };
            Some((Expiry::Turn(task.id), task.deadline_ms.unwrap_or(limit)))
        });
        let idle = ready
            .filter(|_| self.current.is_none() && active.is_none() && self.permissions.is_empty())
            .map(|run| (Expiry::Idle(run.id, self.head.last_seq), limits.idle_ms));
        let lock = match self.lock {
            Lock::Refused { task, tries, .. } if self.may_lock() => {
                Some((Expiry::Lock(task, tries), LOCK_RETRY_MS))
            }
            _ => None,
        };
        let compaction = active.map(|id| (Expiry::Compaction(id), limits.compaction_ms));
        let launch = self.head.launch_due.filter(|_| self.run.is_none());
        let launch = launch.map(|due| (Expiry::Launch(self.head.crashes), due.left_ms(now)));
        // What is made again goes first, and nothing else begins before it.
        let backoff = self.waiting.front().and_then(|task| {
            Some((Expiry::Backoff(task.id, task.attempt), task.retry_at?.left_ms(now)))
        });
        let permission_ms = limits.permission_ms;
        let permissions = self
            .permissions
            .iter()
            .map(move |own| (Expiry::Permission(own.permission), permission_ms));
        let bounds = [compaction, task, idle, lock, launch, backoff, self.next_to_expire(now)];
        bounds.into_iter().flatten().chain(permissions)
    }

    /// The task that has to start next, and in how many milliseconds.
    fn next_to_expire(&self, now: Now) -> Option<(Expiry, u64)> {
        let unsent = self.current.iter().filter(|own| own.turn.is_none()).map(|own| &own.task);
        let waiting = self.waiting.iter().take(if self.expiring > 0 { usize::MAX } else { 0 });
        let left = |task: &Task| Some((Expiry::Queued(task.id), task.start_within(now)?));
        unsent.chain(waiting).filter_map(left).min_by_key(|(_, left)| *left)
    }

    /// Decides what `event` leads to, and takes it in. `fresh` names what it brings into being.
    ///
    /// # Errors
    ///
    /// [`Rejected`] if the group does not take the event; then nothing changed.
    pub fn apply(
        &mut self,
        event: Event,
        now: Now,
        terms: &Terms,
        fresh: &mut dyn FnMut() -> Uuid,
    ) -> Result<Step, Rejected> {
        Scene::new(self, now, terms, fresh).take(event)
    }

    /// The compaction task that waits or runs.
    fn compaction(&self) -> Option<&Task> {
        self.current()
            .into_iter()
            .chain(&self.waiting)
            .find(|task| task.kind() == TaskKind::Compaction && !task.state.is_terminal())
    }

    fn lives(&self, run: RunId) -> bool {
        self.run.as_ref().is_some_and(|own| own.id == run)
    }

    /// The task whose turn runs in `run`.
    fn turn_of(&self, run: RunId) -> Option<TaskId> {
        let current = self.current.as_ref()?;
        current.turn.as_ref().filter(|turn| turn.run == run).map(|_| current.task.id)
    }
}
