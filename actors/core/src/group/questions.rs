//! Questions to a group that change nothing: its status, and what its next task waits for.

use serde::{Deserialize, Serialize};

use super::{Current, Group, LaunchWait, lock::LockState};
use crate::{
    Attempt, Blocked, Compaction, GroupState, Json, Permission, RefusedBlock, Run, RunId, RunPhase,
    RunProgress, SessionId, Stage, Strategy, Task, TaskId, TaskKind, TaskState, pool::Activity,
    retry::CRASHES_MAX,
};

/// What a group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has no task.
    Idle,
    /// Its agent is being launched for a task.
    Starting,
    /// A turn runs.
    Running,
    /// A compaction task runs, or the agent compacts within a turn.
    Compacting,
    /// A task is queued and blocked.
    Waiting,
    /// A caller paused it.
    Paused,
    /// It claims no task until a caller decides: a turn was interrupted.
    Held,
    /// Its agent is in a crash loop.
    Degraded,
    /// A caller archived it.
    Archived,
}

impl Status {
    /// Whether a group that was stored in this status has tasks to continue with, so that its actor
    /// is started with the server.
    pub fn has_work(self, queue_length: u64) -> bool {
        match self {
            Self::Idle | Self::Archived => false,
            Self::Paused => queue_length > 0,
            Self::Starting
            | Self::Running
            | Self::Compacting
            | Self::Waiting
            | Self::Held
            | Self::Degraded => true,
        }
    }
}

impl Group {
    /// Returns the bytes of the tasks that wait: see
    /// [`Task::queued_bytes`](crate::Task::queued_bytes).
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Returns the number of its pending permissions.
    pub fn pending_permissions(&self) -> usize {
        self.permissions.len()
    }

    /// Returns what is stored of the group beside its tasks and its run.
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// Returns the agent's run, if there is one.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// Returns the number of the next frame.
    pub fn next_seq(&self) -> u64 {
        self.state.last_seq + 1
    }

    /// Returns the task that has the group's slot.
    pub fn current(&self) -> Option<&Task> {
        self.current.as_ref().map(|current| &current.task)
    }

    /// Returns the running attempt.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.current.as_ref()?.attempt.as_ref()
    }

    /// Returns the tasks without a slot, the next one first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Task> {
        self.waiting.iter()
    }

    /// Returns a task that is not terminal.
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        let current = self.current().filter(|task| task.id == id);
        current.or_else(|| self.waiting.get(self.position(id)?))
    }

    /// Whether the run must not be evicted: it has a task, or the agent compacts by itself. A
    /// permission that the agent asks for outside of a turn does not prevent eviction: it becomes
    /// void with the run.
    pub fn needs_run(&self) -> bool {
        self.current.is_some() || self.recent.active().is_some()
    }

    /// Whether it is the group's run, and the group has no work for it.
    pub(super) fn is_evictable(&self, run: RunId) -> bool {
        self.is_live_run(run) && self.activity().is_some_and(Activity::is_idle)
    }

    /// Returns how the group uses its run, if it has one.
    pub fn activity(&self) -> Option<Activity> {
        Some(match self.run.as_ref()?.phase {
            RunPhase::Stopping => Activity::Stopping,
            RunPhase::Starting | RunPhase::Ready => match (self.needs_run(), self.is_forgetful()) {
                (true, false) => Activity::Busy,
                (true, true) => Activity::BusyForgetful,
                (false, false) => Activity::Idle,
                (false, true) => Activity::IdleForgetful,
            },
        })
    }

    /// Whether there is a context to lose: a session that never got a prompt holds none; nor does
    /// one that holds only a summary, which the next prompt carries again.
    pub(super) fn has_context(&self) -> bool {
        let is_used = self.state.session.as_ref().is_some_and(|session| !session.is_fresh);
        is_used && self.state.pending_summary.is_none()
    }

    /// Whether a context would be lost with its run: the agent can restore no session, and the
    /// session in force got a prompt, and was not summed up for the next prompt.
    pub(super) fn is_forgetful(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_forgetful) && self.has_context()
    }

    /// Whether everything that began has ended: [`Group::restore`] then needs nothing else, and the
    /// log may be truncated there. A run may be resident, and tasks may wait that never started.
    pub fn is_between_tasks(&self) -> bool {
        let untouched = |task: &Task| task.stage == Stage::Queued;
        self.current.is_none()
            && self.recent.active().is_none()
            && self.lock == LockState::Unasked
            && self.permissions.is_empty()
            && self.waiting.iter().all(untouched)
    }

    /// Returns how many tasks are before a waiting one. Checks the newest first: it was probably
    /// just submitted, and the queue may be long.
    pub fn position(&self, id: TaskId) -> Option<usize> {
        match self.waiting.back() {
            Some(newest) if newest.id == id => Some(self.waiting.len() - 1),
            _ => self.waiting.iter().position(|task| task.id == id),
        }
    }

    /// Whether a task could use a slot now.
    pub fn wants_slot(&self) -> bool {
        let may_go = |next| !self.backs_off(next) && !self.needs_lock(next);
        self.current.is_none() && !self.is_suspended() && self.waiting.front().is_some_and(may_go)
    }

    /// Returns the first block of a prompt that the group's agent is known not to take.
    pub fn refused_block(&self, prompt: &Json) -> Option<RefusedBlock> {
        self.state.prompts.as_ref()?.refused(prompt)
    }

    /// Whether it claims no task: it is paused, archived or on hold.
    pub(super) fn is_suspended(&self) -> bool {
        self.state.paused || self.state.is_archived() || self.state.hold.reason.is_some()
    }

    /// Whether the next task could start once it has a lock and a slot.
    pub(super) fn may_request_lock(&self) -> bool {
        !self.is_suspended() && self.waiting.front().is_some_and(|next| !self.backs_off(next))
    }

    /// Whether `task` waits for its retry, or for the next launch. A retried task has its own
    /// backoff only, unless the agent wants a login.
    pub(super) fn backs_off(&self, task: &Task) -> bool {
        let is_retrying = task.state() == TaskState::Retrying;
        let waits = |wait: LaunchWait| wait.logins > 0 || (self.run.is_none() && !is_retrying);
        task.retry_at().is_some() || self.state.crash_loop.waits().is_some_and(waits)
    }

    /// Returns the unanswered permissions, the oldest first.
    pub fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    /// Whether `task` needs the session's lock and lacks it. A compaction with nothing to do ends
    /// before it requests one.
    pub(super) fn needs_lock(&self, task: &Task) -> bool {
        let session = self.state.session_id();
        session.is_some()
            && task.kind() == TaskKind::Compaction
            && !self.lock.may_compact(task.id, session)
    }

    /// Whether there is anything to compact: the session must hold more than the summary that
    /// opened it.
    pub(super) fn is_compactable(&self, strategy: Strategy) -> bool {
        let state = &self.state;
        let Some(session) = &state.session else { return false };
        let is_fresh = self.run.as_ref().is_some_and(|run| run.progress == RunProgress::Fresh);
        let holds_summary_only = match strategy {
            Strategy::Command => state.pending_summary.is_some() && session.is_fresh,
            Strategy::Rotate => state.pending_summary.is_some(),
        };
        !is_fresh && !holds_summary_only
    }

    /// Returns the active compaction.
    pub fn active_compaction(&self) -> Option<&Compaction> {
        self.recent.active()
    }

    /// Returns the compaction task that the lock is for.
    pub fn locking_task(&self) -> Option<TaskId> {
        self.lock.task()
    }

    /// Returns the compactions that its run reported, the oldest first, as far as they are
    /// remembered.
    pub fn compactions(&self) -> impl Iterator<Item = &Compaction> {
        self.recent.iter()
    }

    /// Returns the lock that the group holds: session, holder and fencing token.
    pub fn lease(&self) -> Option<(&SessionId, &str, u64)> {
        match &self.lock {
            LockState::Held { key, holder, token, .. } => Some((key, holder, *token)),
            LockState::Unasked
            | LockState::Asked { .. }
            | LockState::Refused { .. }
            | LockState::Bypassed { .. }
            | LockState::Lost { .. } => None,
        }
    }

    /// Returns what the group is doing.
    pub fn status(&self) -> Status {
        match &self.current {
            _ if self.state.is_archived() => Status::Archived,
            Some(Current { attempt: None, .. }) => Status::Starting,
            Some(Current { task, .. }) if task.kind() == TaskKind::Compaction => Status::Compacting,
            Some(_) if self.recent.active().is_some() => Status::Compacting,
            Some(_) => Status::Running,
            None if self.state.hold.reason.is_some() => Status::Held,
            None if self.state.paused => Status::Paused,
            None if self.state.crash_loop.crashes >= CRASHES_MAX => Status::Degraded,
            None if self.waiting.is_empty() => Status::Idle,
            None => Status::Waiting,
        }
    }

    /// Returns what the next task waits for, if a task waits.
    pub fn blocked_by(&self) -> Option<Blocked> {
        let Some(next) = self.waiting.front() else {
            let starts = self.current.as_ref().is_some_and(|current| current.attempt.is_none());
            return starts.then_some(Blocked::Agent);
        };
        Some(match &self.current {
            Some(Current { attempt: None, .. }) => Blocked::Agent,
            Some(_) => Blocked::Turn,
            None if self.state.hold.reason.is_some() => Blocked::Held,
            None if self.state.paused => Blocked::Paused,
            None if self.state.crash_loop.wants_login() => Blocked::AgentAuth,
            None if self.backs_off(next) => Blocked::Backoff,
            None if self.needs_lock(next) => Blocked::Lock,
            None => Blocked::Slot,
        })
    }

    /// Returns the compaction task that waits or runs.
    pub(super) fn compaction(&self) -> Option<&Task> {
        self.current()
            .into_iter()
            .chain(&self.waiting)
            .find(|task| task.kind() == TaskKind::Compaction && !task.state().is_terminal())
    }

    /// Whether the group's present run is the one with this id.
    pub(super) fn is_live_run(&self, id: RunId) -> bool {
        self.run.as_ref().is_some_and(|run| run.id == id)
    }

    /// Returns the task whose attempt runs in the live run.
    pub(super) fn task_of_attempt(&self) -> Option<TaskId> {
        let (current, run) = (self.current.as_ref()?, self.run.as_ref()?);
        current.attempt.as_ref().filter(|attempt| attempt.run == run.id).map(|_| current.task.id)
    }
}
