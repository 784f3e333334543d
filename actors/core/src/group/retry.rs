//! After a failed attempt: the retry, the end of retries, and the hold until a caller decides.

use super::{Current, Group, decide::Transition};
use crate::{
    Deadline, EndState, Ending, Fact, HoldReason, OnInterrupt, StopReason, Task, TaskError, TaskId,
    TaskState,
    attempt::with_attempts,
    retry::{FailureKind, backoff_ms},
};

/// The error of an attempt whose prompt was committed and not sent.
pub(super) const PROMPT_WITHHELD: &str = "server_stopped";

impl Transition<'_> {
    /// Schedules a retry of `task` after its `attempt` failed, if the policy allows one. The task
    /// returns to its place and holds no slot. Returns whether it is retried.
    pub(super) fn retry(
        &mut self,
        task: TaskId,
        attempt: u32,
        failure: FailureKind,
        error: &TaskError,
    ) -> bool {
        let base_ms = self.settings.limits.retry_base_ms;
        let Some(wait_ms) = backoff_ms(self.settings.retry, failure, attempt, base_ms) else {
            return false;
        };
        if self.group.lock.task() == Some(task) {
            self.release_lock(false);
        }
        let due = Deadline::after(self.now, wait_ms);
        let error = error.clone();
        self.record(Fact::TaskRetrying { task, attempt, error, wait_ms, due });
        true
    }

    /// Schedules a retry of `task`, whose agent did not start, or fails it if its retries are used
    /// up.
    pub(super) fn retry_unsent(&mut self, task: TaskId, error: TaskError) {
        let Some(record) = self.group.task(task) else { return };
        let attempt = record.attempt + 1;
        if !self.retry(task, attempt, FailureKind::Undelivered, &error) {
            let error = Some(with_attempts(error, attempt));
            self.end(task, attempt, EndState::Failed, Ending { error, ..Ending::default() });
        }
    }

    /// Fails the task that late output belongs to, if it waits for its retry: the agent may have
    /// acted on its prompt after it answered with an error (I7). Call it before the output is
    /// recorded: late words are added to an ended task.
    pub(super) fn end_retry_of(&mut self, late: Option<TaskId>) {
        let Some(task) = late.and_then(|late| self.group.task(late)) else { return };
        if task.state() != TaskState::Retrying || task.start().is_none() {
            return;
        }
        let (id, attempt, error) = (task.id, task.attempt, task.error().cloned());
        let stop_reason = Some(StopReason::Error);
        self.end(id, attempt, EndState::Failed, Ending { stop_reason, error, ..Ending::default() });
    }

    /// Records output that has no summary, which belongs to the running attempt, else to the last.
    pub(super) fn record_bare_output(&mut self, fact: Fact) {
        if fact.is_bare_output() {
            self.end_retry_of(self.group.task_between_attempts());
        }
        self.record(fact);
    }

    /// Ends a task's backoff.
    pub(super) fn backoff_ended(&mut self, id: TaskId, attempt: u32) {
        let backs_off =
            |task: &Task| task.id == id && task.attempt == attempt && task.retry_at().is_some();
        if self.group.waiting.iter().any(backs_off) {
            self.record(Fact::BackoffEnded { task: id });
        }
    }

    /// Puts the group on hold after an interruption, if its settings say so.
    pub(super) fn hold_after_interruption(&mut self) {
        let reason = match self.settings.on_interrupt {
            OnInterrupt::Hold => HoldReason::Interrupted,
            OnInterrupt::Auto if self.group.state.hold.interruptions > 1 => {
                HoldReason::InterruptedTwice
            }
            OnInterrupt::Auto | OnInterrupt::Continue => return,
        };
        self.hold(reason);
    }

    /// Forgets the interruption of a turn that began before the group was archived: it does not
    /// count for the revived group. A group that is paused since forgets it when it is resumed.
    pub(super) fn forget_interruption(&mut self) {
        let state = &self.group.state;
        if !state.is_archived() && !state.paused {
            self.record(Fact::GroupResumed {});
        }
    }

    /// Puts the group on hold if its session was lost, and its settings say so. By default they do
    /// after an interruption, before a retry, and if the session is given up after failed runs:
    /// those prompts were meant for the lost context.
    pub(super) fn hold_after_loss(&mut self, is_given_up: bool) {
        let Group { state, current, .. } = &*self.group;
        let is_retry = |current: &Current| current.task.state() == TaskState::Retrying;
        let needs_decision = match self.settings.on_interrupt {
            OnInterrupt::Hold => true,
            OnInterrupt::Auto => {
                let is_retry = current.as_ref().is_some_and(is_retry);
                is_given_up || is_retry || state.hold.interruptions > 0
            }
            OnInterrupt::Continue => false,
        };
        if needs_decision {
            self.hold(HoldReason::ContextLost);
        }
    }

    /// Puts the group on hold, and releases the claimed task.
    pub(super) fn hold(&mut self, reason: HoldReason) {
        self.record(Fact::GroupHeld { reason });
        if let Some(Current { task, attempt: None }) = &self.group.current {
            let task = task.id;
            self.record(Fact::TaskReleased { task });
        }
    }
}

impl Group {
    /// Returns the task to the queue, to be retried at `due`.
    pub(super) fn apply_retrying(
        &mut self,
        id: TaskId,
        number: u32,
        error: &TaskError,
        due: Deadline,
    ) {
        if error.code == PROMPT_WITHHELD {
            self.message_owners.withhold();
        }
        if let Some(Current { mut task, .. }) = self.current.take() {
            task.attempt = number;
            task.stage.retry(error.clone(), due);
            self.enqueue(task);
        }
        self.forget_lock_of(id);
    }

    /// Ends the task's backoff.
    pub(super) fn apply_backoff_ended(&mut self, id: TaskId) {
        if let Some(task) = self.waiting.iter_mut().find(|task| task.id == id) {
            task.stage.end_backoff();
        }
    }
}
