//! One group: its queue, its running task, its agent's run. The rules of I1, I7, I8 and I9.
//!
//! [`Group::apply`] decides; [`Group::replay`] alone changes the state, live and at recovery (I13).

mod scene;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use self::scene::Scene;
use crate::{
    Blocked, Cause, CutBy, Event, Run, RunId, RunPhase, SessionId, Settings, Step, Task, TaskId,
    TaskKind, TaskState, Timestamp, Turn, Usage, Write,
};

/// How long an agent may take to answer a cancel before its process tree is ended.
const CANCEL_MS: u64 = 10_000;

/// What is kept of a group beside its tasks and its run.
#[derive(Clone, Debug, PartialEq)]
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
}

/// A group's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    head: Head,
    waiting: VecDeque<Task>,
    waiting_bytes: usize,
    current: Option<Current>,
    run: Option<Run>,
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
    /// A compaction task runs.
    Compacting,
    /// Work is queued and something stands before it.
    Waiting,
    /// Told to claim no work.
    Paused,
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
    /// A resident agent with nothing to do, since the frame with this number.
    Idle(RunId, u64),
}

/// The limits that [`Group::patience`] and [`Group::apply`] go by.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One attempt, milliseconds.
    pub turn_ms: u64,
    /// An idle agent, milliseconds.
    pub idle_ms: u64,
    /// Waiting tasks.
    pub queue_max: usize,
    /// Bytes of waiting prompts.
    pub queue_bytes_max: usize,
}

impl Group {
    /// A group that nobody has stored yet.
    pub fn new(settings: Settings) -> Self {
        let head = Head {
            settings,
            created_at: None,
            last_seq: 0,
            tasks: 0,
            session: None,
            segment: 0,
            usage: None,
            paused: false,
            archived: false,
            purging: false,
        };
        Self { head, waiting: VecDeque::new(), waiting_bytes: 0, current: None, run: None }
    }

    /// A group as it was stored: its `tasks` that are not terminal, in the order of acceptance,
    /// and its `run` and running `turn` if it has them.
    pub fn restore(head: Head, tasks: Vec<Task>, run: Option<Run>, turn: Option<Turn>) -> Self {
        let mut group = Self { head, run, ..Self::new(Settings::default()) };
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

    /// The tasks that have no slot, the next one first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Task> {
        self.waiting.iter()
    }

    /// A task that is not terminal.
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        let current = self.current().filter(|task| task.id == id);
        current.or_else(|| self.waiting.get(self.position(id)?))
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
        let stands_still = self.head.paused || self.head.archived;
        self.current.is_none() && !self.waiting.is_empty() && !stands_still
    }

    /// What the group is doing.
    pub fn status(&self) -> Status {
        match &self.current {
            _ if self.head.archived => Status::Archived,
            Some(Current { turn: None, .. }) => Status::Starting,
            Some(Current { task, .. }) if task.kind() == TaskKind::Compaction => Status::Compacting,
            Some(_) => Status::Running,
            None if self.head.paused => Status::Paused,
            None if self.waiting.is_empty() => Status::Idle,
            None => Status::Waiting,
        }
    }

    /// What the next task waits for, if any task waits.
    pub fn blocked_by(&self) -> Option<Blocked> {
        match &self.current {
            Some(Current { turn: None, .. }) => Some(Blocked::Agent),
            Some(_) if !self.waiting.is_empty() => Some(Blocked::Turn),
            None if !self.waiting.is_empty() && self.head.paused => Some(Blocked::Paused),
            None if !self.waiting.is_empty() => Some(Blocked::Slot),
            Some(_) | None => None,
        }
    }

    /// What is now bounded in time, and by how many milliseconds from the moment it became so.
    pub fn patience(&self, limits: &Patience) -> Option<(Expiry, u64)> {
        let run = self.run.as_ref().filter(|run| run.phase == RunPhase::Ready)?;
        match &self.current {
            Some(Current { task, turn: Some(Turn { cut: Some(_), .. }) }) => {
                Some((Expiry::Cancel(task.id), CANCEL_MS))
            }
            Some(Current { task, turn: Some(_) }) => {
                Some((Expiry::Turn(task.id), task.deadline_ms.unwrap_or(limits.turn_ms)))
            }
            Some(Current { turn: None, .. }) => None,
            None => Some((Expiry::Idle(run.id, self.head.last_seq), limits.idle_ms)),
        }
    }

    /// Decides what `event` leads to, and takes it in.
    ///
    /// # Errors
    ///
    /// [`Rejected`] if the group does not take the event; then nothing changed.
    pub fn apply(
        &mut self,
        event: Event,
        now: Timestamp,
        limits: &Patience,
    ) -> Result<Step, Rejected> {
        Scene::new(self, now).take(event, limits)
    }

    /// Takes in one fact: the only place where the state changes (I13).
    pub fn replay(&mut self, write: &Write, at: Timestamp) {
        let first_seq = self.head.last_seq + 1;
        self.head.last_seq += write.frames();
        match write {
            Write::GroupCreated(settings) => {
                self.head.settings = settings.clone();
                self.head.created_at = Some(at);
            }
            Write::GroupChanged(settings) => {
                if let Some(run) = &mut self.run {
                    run.outdated |= settings.moves(&self.head.settings);
                }
                self.head.settings = settings.clone();
                self.head.archived = false;
            }
            Write::GroupArchived {} => self.head.archived = true,
            Write::PurgeOrdered {} => self.head.purging = true,
            Write::GroupPaused {} => self.head.paused = true,
            Write::GroupResumed {} => self.head.paused = false,
            Write::TaskQueued { record, .. } => {
                self.head.tasks += 1;
                self.enqueue(Task::clone(record));
            }
            Write::TaskClaimed { task } => self.replay_claim(*task, at),
            Write::TaskReleased { .. } => {
                if let Some(Current { task, .. }) = self.current.take() {
                    self.enqueue(Task { claimed_at: None, ..task });
                }
            }
            Write::TaskStarted { task, attempt, run } => {
                self.replay_claim(*task, at);
                if let Some(current) = &mut self.current {
                    current.task.state = TaskState::Running;
                    current.task.attempt = *attempt;
                    current.task.started_at = Some(at);
                    current.task.run = Some(*run);
                    current.task.segment = Some(self.head.segment);
                    current.task.seq_first = Some(first_seq);
                }
            }
            Write::PromptSent { id, .. } => {
                if let Some(current) = &mut self.current
                    && let Some(run) = &current.task.run
                {
                    current.turn = Some(Turn::new(*run, *id));
                }
            }
            Write::Said(said) => {
                self.head.usage = said.fold.usage.clone().or(self.head.usage.take());
                if said.task.is_some()
                    && let Some(Current { turn: Some(turn), .. }) = &mut self.current
                {
                    turn.hear(&said.fold);
                }
            }
            Write::CancelRequested { .. } => {
                if let Some(Current { task, turn: Some(turn) }) = &mut self.current {
                    task.cancel_requested = true;
                    turn.cut.get_or_insert(CutBy::Caller);
                }
            }
            Write::TurnCut { cause, .. } => {
                if let Some(Current { turn: Some(turn), .. }) = &mut self.current {
                    turn.cut.get_or_insert(match cause {
                        Cause::Deadline => CutBy::Deadline,
                        Cause::AgentExited | Cause::ServerRestart | Cause::Protocol => {
                            CutBy::Shutdown
                        }
                    });
                }
            }
            Write::TaskEnded { task, .. } => {
                if self.current.as_ref().is_some_and(|current| current.task.id == *task) {
                    self.current = None;
                } else {
                    self.dequeue(*task);
                }
            }
            Write::RunStarted { run, .. } => {
                self.run = Some(Run { id: *run, phase: RunPhase::Starting, outdated: false });
            }
            Write::RunReady { .. } => self.set_phase(RunPhase::Ready),
            Write::RunStopping { .. } => self.set_phase(RunPhase::Stopping),
            Write::RunExited { .. } => self.run = None,
            Write::SegmentStarted { segment, session } => {
                self.head.segment = *segment;
                self.head.session = Some(session.clone());
            }
            Write::ContextLost { .. } => {
                self.head.session = None;
                self.head.usage = None;
            }
            Write::TurnStarted { .. }
            | Write::AgentOutputRejected { .. }
            | Write::PermissionResolved { .. }
            | Write::TurnSettled { .. }
            | Write::SegmentEnded { .. } => {}
        }
    }

    /// A compaction goes before waiting turns (I8), and a turn that lost its slot before those
    /// that were accepted after it.
    fn enqueue(&mut self, task: Task) {
        let rank = |task: &Task| (task.kind() == TaskKind::Turn, task.ordinal);
        let place = self.waiting.partition_point(|other| rank(other) < rank(&task));
        self.waiting_bytes += task.prompt().as_str().len();
        self.waiting.insert(place, task);
    }

    fn dequeue(&mut self, id: TaskId) -> Option<Task> {
        let place = self.position(id)?;
        let task = self.waiting.remove(place)?;
        self.waiting_bytes -= task.prompt().as_str().len();
        Some(task)
    }

    fn replay_claim(&mut self, id: TaskId, at: Timestamp) {
        if let Some(task) = self.dequeue(id) {
            self.current =
                Some(Current { task: Task { claimed_at: Some(at), ..task }, turn: None });
        }
    }

    fn set_phase(&mut self, phase: RunPhase) {
        if let Some(run) = &mut self.run {
            run.phase = phase;
        }
    }

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

    fn turn_of_current(&self) -> Option<&Turn> {
        self.current.as_ref()?.turn.as_ref()
    }
}
