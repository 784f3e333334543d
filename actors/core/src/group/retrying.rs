//! What follows from attempts that came to nothing: made again after a while, given up, or left for
//! somebody to decide (SEEDS DQ-8, I7).

use super::{Current, Group, scene::Scene};
use crate::{
    CutBy, Due, Ending, Exit, Held, OnInterrupt, PromptReply, RunId, StopReason, TaskError, TaskId,
    TaskState, Write,
    retry::{Failure, backoff_ms, crash_wait_ms},
};

impl Scene<'_> {
    /// Has `task` made again whose `attempt` failed so, if it may be. Then it waits in its old
    /// place and holds no slot.
    pub(super) fn retry(
        &mut self,
        task: TaskId,
        attempt: u32,
        failure: Failure,
        error: &TaskError,
    ) -> bool {
        let base_ms = self.terms.patience.retry_base_ms;
        let Some(wait_ms) = backoff_ms(self.terms.retry, failure, attempt, base_ms) else {
            return false;
        };
        if self.group.lock.task() == Some(task) {
            self.release_lock(false);
        }
        let due = Due::after(self.now, wait_ms);
        let error = error.clone();
        self.write(Write::TaskRetrying { task, attempt, error, wait_ms, due });
        true
    }

    /// The agent did not start, and so the prompt of `task` was not sent.
    pub(super) fn retry_unsent(&mut self, task: TaskId, error: TaskError) {
        let Some(record) = self.group.task(task) else { return };
        let attempt = record.attempt + 1;
        if !self.retry(task, attempt, Failure::Undelivered, &error) {
            let error = Some(given_up(error, attempt));
            self.end(task, attempt, TaskState::Failed, Ending { error, ..Ending::default() });
        }
    }

    /// Settles an attempt whose prompt was committed to be sent, and was not. Its task keeps its
    /// place, whatever the retry policy: the agent cannot have acted on what it never got (I7).
    pub(super) fn prompt_withheld(&mut self, run: RunId, id: u64) {
        let Some((task, turn)) = self.running() else { return };
        if turn.run != run || turn.prompt_id != id {
            return;
        }
        let (task, attempt, cut) = (task.id, task.attempt, turn.cut);
        if cut == Some(CutBy::Caller) {
            let cancelled =
                PromptReply::Stopped { stop_reason: StopReason::Cancelled, tokens: None };
            let settled = turn.answered(cancelled);
            return self.settle(settled);
        }
        self.strand();
        self.release_lock(false);
        let stop_reason = StopReason::ServerRestart;
        self.write(Write::TurnSettled { task, stop_reason, tokens: None });
        let error = TaskError {
            code: "server_stopped".into(),
            message: "the server was stopped before it sent the prompt".into(),
        };
        let due = Due::after(self.now, 0);
        self.write(Write::TaskRetrying { task, attempt, error, wait_ms: 0, due });
    }

    pub(super) fn backoff_ended(&mut self, id: TaskId, attempt: u32) {
        let mut waiting = self.group.waiting.iter();
        if waiting.any(|own| own.id == id && own.attempt == attempt && own.retry_at.is_some()) {
            self.write(Write::BackoffEnded { task: id });
        }
    }

    /// The task waited for longer than its caller wants it to.
    pub(super) fn task_expired(&mut self, id: TaskId) {
        if self.group.task(id).and_then(|task| task.start_within(self.now)).is_none() {
            return;
        }
        let message = "it did not start within the time that its caller gave it".into();
        let error = TaskError { code: "expired".into(), message };
        self.end_unsent(id, TaskState::Failed, Some(error));
    }

    /// States that the run is over, and whether the next one has to wait for it (RELIABILITY F8).
    pub(super) fn run_exited(&mut self, run: RunId, exit: Exit) {
        let before = self.group.head.crashes;
        self.write(Write::RunExited { run, exit });
        let runs = self.group.head.crashes;
        if let Some(wait_ms) = crash_wait_ms(runs).filter(|_| runs > before) {
            let due = Due::after(self.now, wait_ms);
            self.write(Write::AgentDegraded { runs, wait_ms, due });
        }
    }

    pub(super) fn launch_allowed(&mut self, crashes: u32) {
        let head = &self.group.head;
        if head.launch_due.is_some() && head.crashes == crashes {
            self.write(Write::LaunchAllowed {});
        }
    }

    /// A turn was cut off: what waits behind it may have to wait for somebody to decide.
    pub(super) fn hold_after_interruption(&mut self) {
        let reason = match self.terms.on_interrupt {
            OnInterrupt::Hold => Held::Interrupted,
            OnInterrupt::Auto if self.group.head.interruptions > 1 => Held::InterruptedTwice,
            OnInterrupt::Auto | OnInterrupt::Continue => return,
        };
        self.hold(reason);
    }

    /// A turn was cut off that began before the group was deleted: in its next life that counts for
    /// nothing. A group that was paused since forgets it when it is resumed.
    pub(super) fn forget_interruption(&mut self) {
        let head = &self.group.head;
        if !head.archived && !head.paused {
            self.write(Write::GroupResumed {});
        }
    }

    /// The agent could not take its session up again: what was cut off, or is about to be made
    /// again, was meant for a context that is gone.
    pub(super) fn hold_after_loss(&mut self) {
        let Group { head, current, .. } = &*self.group;
        let is_again = |own: &Current| own.task.state == TaskState::Retrying;
        let was_cut_off = head.interruptions > 0 || current.as_ref().is_some_and(is_again);
        let holds = self.terms.on_interrupt != OnInterrupt::Continue;
        if was_cut_off && holds {
            self.hold(Held::ContextLost);
        }
    }

    fn hold(&mut self, reason: Held) {
        if self.group.head.held.is_none() && !self.group.head.archived {
            self.write(Write::GroupHeld { reason });
        }
        if let Some(Current { task, turn: None }) = &self.group.current {
            let task = task.id;
            self.write(Write::TaskReleased { task });
        }
    }
}

/// How a task ends whose attempts all came to nothing: nobody has to fear that it was begun.
pub(super) fn exhausted(mut ending: Ending, attempt: u32) -> (TaskState, Ending) {
    ending.interrupted = None;
    ending.error = ending.error.map(|error| given_up(error, attempt));
    (TaskState::Failed, ending)
}

fn given_up(mut error: TaskError, attempt: u32) -> TaskError {
    if attempt > 1 {
        error.message = format!("{}; given up after {attempt} attempts", error.message);
    }
    error
}
