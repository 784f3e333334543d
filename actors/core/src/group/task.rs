//! Tasks: accepted, claimed, cancelled, expired, ended; and the queue's order.

use super::{Current, Group, Rejected, decide::Transition};
use crate::{
    EndFrame, EndState, Ending, Fact, Origin, Place, Run, RunId, RunPhase, Stage, Start,
    StopReason, Task, TaskError, TaskId, TaskKind, TaskState, Timestamp,
};

impl Transition<'_> {
    /// Accepts a caller's task, if the queue has room for it.
    pub(super) fn submit(&mut self, task: Task) -> Result<(), Rejected> {
        let (group, limits) = (&self.group, &self.settings.limits);
        if group.state.is_archived() {
            return Err(Rejected::Archived);
        }
        if task.kind() == TaskKind::Compaction
            && let Some(compaction) = group.compaction()
        {
            return Err(Rejected::AlreadyCompacting(compaction.id));
        }
        if let Some(block) = self.group.refused_block(task.prompt()) {
            return Err(Rejected::PromptNotSupported(block));
        }
        let bytes = group.waiting_bytes + task.queued_bytes();
        if group.waiting.len() >= limits.queue_max
            || (bytes > limits.queue_bytes_max && !group.waiting.is_empty())
        {
            return Err(Rejected::QueueFull);
        }
        if group.state.created_at.is_none() {
            let settings = group.state.settings.clone();
            self.record(Fact::GroupCreated(settings));
        }
        self.accept(task);
        Ok(())
    }

    /// Puts a task into the queue.
    pub(super) fn accept(&mut self, task: Task) {
        let record = Box::new(Task {
            ordinal: self.group.state.tasks + 1,
            stage: Stage::Queued,
            created_at: self.now.wall,
            ..task
        });
        let (task, kind, origin) = (record.id, record.kind(), record.origin);
        self.record(Fact::TaskQueued { task, kind, origin, record });
    }

    /// Ends a waiting task, or asks the agent to stop the running one.
    pub(super) fn cancel(&mut self, id: TaskId) -> Result<(), Rejected> {
        let task = self.group.task(id).ok_or(Rejected::AlreadyTerminal)?;
        match task.state() {
            TaskState::Running if task.cancel_requested => {}
            TaskState::Running => {
                let is_cancelling =
                    self.group.attempt().is_some_and(|attempt| attempt.cancel_reason.is_some());
                self.record(Fact::CancelRequested { task: id });
                if !is_cancelling {
                    self.cancel_prompt();
                }
            }
            _ => self.end_unsent(id, EndState::Cancelled, None),
        }
        Ok(())
    }

    /// Cancels the current task. The caller of this method also stops its run.
    pub(super) fn cancel_current(&mut self) {
        let Some(Current { task, attempt }) = &self.group.current else { return };
        let (is_cancelling, task, is_sent) = (task.cancel_requested, task.id, attempt.is_some());
        if !is_sent {
            self.end_unsent(task, EndState::Cancelled, None);
        } else if !is_cancelling {
            self.record(Fact::CancelRequested { task });
            self.cancel_permissions();
        }
    }

    /// Gives the slot to the next task. Starts it if the agent is ready, else launches the agent.
    pub(super) fn claim(&mut self) {
        if self.settings.is_draining || !self.group.wants_slot() {
            return;
        }
        let Some(next) = self.group.waiting.front() else { return };
        let task = next.id;
        if next.start_within(self.now) == Some(0) {
            return self.task_expired(task);
        }
        if self.end_if_nothing_to_do(task) {
            return;
        }
        match &self.group.run {
            Some(Run { phase: RunPhase::Ready, .. }) => self.start(task),
            Some(Run { phase: RunPhase::Starting | RunPhase::Stopping, .. }) => {
                self.record(Fact::TaskClaimed { task });
            }
            None => {
                self.record(Fact::TaskClaimed { task });
                self.launch();
            }
        }
    }

    /// Fails a task that did not start by its caller's deadline.
    pub(super) fn task_expired(&mut self, id: TaskId) {
        if self.group.task(id).and_then(|task| task.start_within(self.now)).is_none() {
            return;
        }
        let message = "the task did not start by its caller's deadline".into();
        let error = TaskError { code: "expired".into(), message };
        self.end_unsent(id, EndState::Failed, Some(error));
    }

    /// Fails a task whose prompt has a block that the ready agent does not take; returns whether it
    /// did. No other attempt would send it.
    pub(super) fn end_if_unsupported(&mut self, id: TaskId) -> bool {
        let block = self.group.task(id).and_then(|task| self.group.refused_block(task.prompt()));
        let Some(block) = block else { return false };
        let message = format!("{block}; the prompt was not sent");
        let error = TaskError { code: "prompt_not_supported".into(), message };
        self.end_unsent(id, EndState::Failed, Some(error));
        true
    }

    /// Ends a task whose prompt was not sent.
    pub(super) fn end_unsent(&mut self, task: TaskId, state: EndState, error: Option<TaskError>) {
        let Some(attempt) = self.group.task(task).map(|task| task.attempt) else { return };
        self.end(task, attempt, state, Ending { error, ..Ending::default() });
    }

    /// Records the task's terminal state, and releases its lock.
    pub(super) fn end(&mut self, id: TaskId, attempt: u32, state: EndState, ending: Ending) {
        if self.group.lock.task() == Some(id) {
            self.release_lock(false);
        }
        let Some(task) = self.group.task(id) else { return };
        let (kind, seq) = (task.kind(), self.group.next_seq());
        let frame = EndFrame { at: self.now.wall, seq };
        let code = ending.error.as_ref().map(|error| error.code.clone());
        self.record(Fact::task_ended(kind, task.clone().ended(attempt, state, frame, ending)));
        if kind == TaskKind::Compaction {
            self.pause_auto_compact_after(state, code.as_deref());
        }
    }
}

impl Group {
    /// Puts an accepted task into the queue.
    pub(super) fn apply_queued(&mut self, record: &Task) {
        self.state.tasks += 1;
        if record.kind() == TaskKind::Compaction && record.origin != Origin::Auto {
            self.state.compacting.reset_auto_compact();
        }
        self.enqueue(record.clone());
    }

    /// Gives the slot to a waiting task.
    pub(super) fn apply_claimed(&mut self, id: TaskId, at: Timestamp) {
        if let Some(mut task) = self.dequeue(id) {
            task.stage.claim(at);
            self.current = Some(Current { task, attempt: None });
        }
    }

    /// Returns the claimed task to its place.
    pub(super) fn apply_released(&mut self) {
        if let Some(Current { mut task, .. }) = self.current.take() {
            task.stage.release();
            self.enqueue(task);
        }
    }

    /// Begins an attempt of the task.
    pub(super) fn apply_started(
        &mut self,
        id: TaskId,
        number: u32,
        run: RunId,
        (place, at): (&Place, Timestamp),
    ) {
        self.apply_claimed(id, at);
        if let Some(Current { task, .. }) = &mut self.current {
            task.attempt = number;
            task.stage.run(Start { at, run, segment: place.segment, seq: place.seq });
        }
    }

    /// Removes an ended task, and counts interruptions in a row.
    pub(super) fn apply_ended(
        &mut self,
        id: TaskId,
        kind: TaskKind,
        state: TaskState,
        stop_reason: Option<StopReason>,
    ) {
        match (state, stop_reason, kind) {
            (TaskState::Interrupted, ..) => self.state.hold.interruptions += 1,
            (_, Some(_), TaskKind::Turn) => self.state.hold.interruptions = 0,
            (_, Some(_), TaskKind::Compaction) | (_, None, _) => {}
        }
        if self.current.as_ref().is_some_and(|current| current.task.id == id) {
            self.current = None;
        } else {
            self.dequeue(id);
        }
        self.forget_lock_of(id);
    }

    /// Puts a task into its place, see [`Queued::rank`](crate::Queued::rank).
    pub(super) fn enqueue(&mut self, task: Task) {
        let rank = task.queued().rank();
        let place = self.waiting.partition_point(|other| other.queued().rank() < rank);
        self.waiting_bytes += task.queued_bytes();
        self.expiring += usize::from(task.expires.is_some());
        self.waiting.insert(place, task);
    }

    /// Takes a task out of the queue.
    pub(super) fn dequeue(&mut self, id: TaskId) -> Option<Task> {
        let place = self.position(id)?;
        let task = self.waiting.remove(place)?;
        self.waiting_bytes -= task.queued_bytes();
        self.expiring -= usize::from(task.expires.is_some());
        Some(task)
    }
}
