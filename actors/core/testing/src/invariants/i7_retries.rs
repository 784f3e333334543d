//! I7: an attempt is retried only if surely nothing of it happened: the agent failed without
//! output, no caller cancelled it, this server saw its end, and attempts are left; or its agent did
//! not start; or its prompt was withheld, at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use greenroom_core::{
    ErrorKind, ExitReason, Fact, FailedStart, Recorded, RetryPolicy, RunId, StopReason, TaskError,
    TaskId, TaskKind, TaskState,
};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure, proves_receipt};
use crate::world::LIMITS;

/// The most retries of a task. A prompt that was withheld is retried also beyond them.
const RETRIES_MAX: u32 = 5;

#[derive(Default)]
pub struct Retries {
    step: Option<Rc<Begun>>,
    /// The kind of each open task, and the number of its last attempt.
    tasks: BTreeMap<TaskId, (TaskKind, u32)>,
    holder: Option<TaskId>,
    launch: Launch,
    /// The attempt whose prompt was sent.
    running: Option<Running>,
    /// The attempt that settled with the last fact, and what has to follow.
    settled: Option<(TaskId, Next)>,
    /// Runs whose prompt was cancelled.
    cancelled_runs: BTreeSet<RunId>,
}

/// The last launch of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Launch {
    /// Its run was ready, or nothing follows from its end any more.
    #[default]
    Over,
    Pending,
    /// Its run ended before it was ready, with the last facts.
    Failed,
}

struct Running {
    task: TaskId,
    output: bool,
    /// Whether a caller cancelled it, and whether greenroom interrupted it.
    is_cancelled: bool,
    is_cut: bool,
    /// Whether the agent is wedged after a cancel: it only reported that it did not read the
    /// prompt.
    is_wedged: bool,
}

/// What has to follow a settled attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Its task is retried after a backoff.
    Retry,
    /// Its task is retried after a backoff, or ends: a log does not tell the settings.
    RetryOrEnd,
    /// Its task is retried at once: the prompt was withheld.
    RetryAtOnce,
    /// Its task is retried at once, or ends: a log does not tell which server stopped.
    RetryAtOnceOrEnd,
    /// Its task fails: its attempts are used up.
    Fail,
    /// Its task ends.
    End,
}

impl Launch {
    fn after(self, fact: &Fact) -> Self {
        match (self, fact) {
            (_, Fact::RunStarted { .. }) => Self::Pending,
            (Self::Pending, Fact::RunExited { .. })
            | (Self::Failed, Fact::AgentDegraded { .. } | Fact::LockReleased { .. }) => {
                Self::Failed
            }
            (Self::Pending, Fact::RunReady { .. } | Fact::RunStopping { .. })
            | (Self::Failed | Self::Over, _) => Self::Over,
            (Self::Pending, _) => Self::Pending,
        }
    }
}

impl Retries {
    /// Decides whether the settled attempt has to be retried.
    fn settled(&mut self, task: TaskId, stop_reason: StopReason) -> Checked {
        let attempt = self.running.take().filter(|attempt| attempt.task == task);
        let attempt = attempt.ok_or_else(|| format!("AM-3: {task} settles and was not sent"))?;
        let (kind, number) = *self.tasks.get(&task).ok_or("I2: it is not open")?;
        let is_stopped = attempt.is_cancelled || attempt.is_cut;
        let is_free_turn = !attempt.output && !is_stopped && kind == TaskKind::Turn;
        let attempts_left = number <= RETRIES_MAX;
        let may_be_withheld = stop_reason == StopReason::ServerRestart && !attempt.is_cancelled;
        let next = match self.step.as_deref() {
            // What the agent wrote, it wrote before: it never got the prompt.
            None if may_be_withheld => Next::RetryAtOnceOrEnd,
            None if is_free_turn && attempts_left => match stop_reason {
                StopReason::Error | StopReason::ProcessExited => Next::RetryOrEnd,
                StopReason::EndTurn if attempt.is_wedged => Next::RetryOrEnd,
                _ => Next::End,
            },
            Some(Begun { trigger: Trigger::Withheld, .. }) if may_be_withheld => Next::RetryAtOnce,
            Some(Begun { trigger, settings, .. }) if is_free_turn => {
                let failed = match trigger {
                    _ if attempt.is_wedged => true,
                    Trigger::Failed(kind) => *kind == ErrorKind::Passing,
                    Trigger::Exited(_, reason, _) => *reason == ExitReason::Exited,
                    _ => false,
                };
                match failed && settings.retry == RetryPolicy::NoOutput {
                    true if attempts_left => Next::Retry,
                    true => Next::Fail,
                    false => Next::End,
                }
            }
            _ => Next::End,
        };
        self.settled = Some((task, next));
        Ok(())
    }

    fn retrying(&mut self, task: TaskId, attempt: u32, error: &TaskError, wait_ms: u64) -> Checked {
        ensure!(self.holder.take() == Some(task), "I1: {task} had no slot");
        let known = self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is not open"))?;
        known.1 = attempt;
        let (mut is_withheld, code) = (false, &*error.code);
        if let Some((settled, next)) = self.settled.take() {
            is_withheld = matches!(next, Next::RetryAtOnce | Next::RetryAtOnceOrEnd);
            let may = is_withheld || matches!(next, Next::Retry | Next::RetryOrEnd);
            ensure!(settled == task && may, "I7: {task} is retried: {next:?}");
            ensure!(is_withheld == (code == "server_stopped"), "I7: {next:?} after {code}");
        } else {
            self.retrying_unsent(task, code)?;
        }
        let in_time = is_withheld || attempt <= RETRIES_MAX;
        ensure!(in_time, "I7: {task} is retried after {attempt}");
        let expected = match is_withheld {
            true => 0,
            false => LIMITS.retry_base_ms * 2_u64.pow(attempt.saturating_sub(1)),
        };
        // A log does not tell the base.
        let waits = wait_ms == expected || (self.step.is_none() && !is_withheld);
        ensure!(waits, "I7: {task} waits {wait_ms} ms, not {expected}");
        let restarted = self.step.as_ref().is_some_and(|step| step.trigger == Trigger::Recovered);
        ensure!(!restarted, "I7: {task} is retried after a restart");
        Ok(())
    }

    /// Checks a retry of a task whose prompt was not sent.
    fn retrying_unsent(&self, task: TaskId, code: &str) -> Checked {
        ensure!(self.running.is_none(), "I7: {task} is retried while its attempt runs");
        let launch = self.launch;
        ensure!(launch == Launch::Failed, "I7: {task} is retried unsent, and its run: {launch:?}");
        ensure!(code == "agent_start_failed", "I7: {task} is retried unsent after {code}");
        if let Some(Begun { trigger, settings, .. }) = self.step.as_deref() {
            let exited = matches!(trigger, Trigger::Exited(..));
            ensure!(exited, "I7: {task} is retried after {trigger:?}");
            let lasts = matches!(trigger, Trigger::Exited(_, _, FailedStart::Lasting));
            ensure!(!lasts, "DQ-8: {task} is retried after an error that lasts");
            let never = settings.retry == RetryPolicy::Never;
            ensure!(!never, "I7: {task} is retried under policy `never`");
        }
        Ok(())
    }

    fn ended(&mut self, task: TaskId, state: TaskState, error: Option<&TaskError>) -> Checked {
        let has_slot = self.holder == Some(task);
        self.holder = self.holder.filter(|holder| *holder != task);
        let known = self.tasks.remove(&task).ok_or_else(|| format!("I9: {task} ends twice"))?;
        let code = error.map(|error| &*error.code);
        if let Some((settled, next)) = self.settled.take() {
            ensure!(settled == task, "AM-3: {settled} settles, {task} ends");
            let retries = matches!(next, Next::Retry | Next::RetryAtOnce);
            ensure!(!retries, "I7: {task} ends {state:?} and has attempts left");
            let failed = state == TaskState::Failed;
            ensure!(next != Next::Fail || failed, "I7: {task} fails as {state:?}");
        } else if code == Some("agent_start_failed") {
            let attempts = known.1 + 1;
            let lasting = |trigger| matches!(trigger, Trigger::Exited(_, _, FailedStart::Lasting));
            let never = |step: &Rc<Begun>| {
                step.settings.retry == RetryPolicy::Never || lasting(step.trigger)
            };
            let over = attempts > RETRIES_MAX || self.step.as_ref().is_none_or(never);
            ensure!(has_slot && over, "I7: {task} fails after {attempts} attempts");
            let launch = self.launch;
            ensure!(launch == Launch::Failed, "I7: no start failed, and {task} did: {launch:?}");
        }
        Ok(())
    }

    fn change_running(&mut self, change: impl FnOnce(&mut Running)) {
        self.running.as_mut().map(change);
    }
}

impl Invariant for Retries {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "task_queued", "task_claimed", "task_released", "task_started", "request_refused",
            "agent_wedged", "cancel_requested", "turn_cut", "turn_settled", "task_retrying",
            "task_ended", "run_started", "run_ready", "run_exited", "agent_degraded",
        ]
    }

    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskQueued { task, kind, .. } => drop(self.tasks.insert(*task, (*kind, 0))),
            Fact::TaskClaimed { task } => self.holder = Some(*task),
            Fact::TaskReleased { .. } => self.holder = None,
            Fact::TaskStarted { task, attempt, .. } => {
                self.holder = Some(*task);
                self.tasks.entry(*task).and_modify(|known| known.1 = *attempt);
                let (task, output, is_wedged) = (*task, false, false);
                let (is_cancelled, is_cut) = (false, false);
                self.running = Some(Running { task, output, is_cancelled, is_cut, is_wedged });
            }
            // The words of an earlier turn say nothing about this one.
            Fact::AgentOutput(output) if output.late.is_none() => {
                self.change_running(|it| it.output |= proves_receipt(&output.summary));
            }
            Fact::RequestRefused { .. } | Fact::AgentOutputRejected { .. } => {
                let is_output = fact.is_bare_output();
                self.change_running(|it| it.output |= is_output);
            }
            Fact::CancelSent { run } => drop(self.cancelled_runs.insert(*run)),
            Fact::AgentWedged { run, .. } => {
                let cancelled = self.step.is_none() || self.cancelled_runs.contains(run);
                ensure!(cancelled, "{run} is wedged, and no prompt was cancelled");
                self.change_running(|it| (it.is_wedged, it.output) = (true, false));
            }
            Fact::CancelRequested { .. } => self.change_running(|it| it.is_cancelled = true),
            Fact::TurnCut { .. } => self.change_running(|it| it.is_cut = true),
            Fact::TurnSettled { task, stop_reason, .. } => self.settled(*task, *stop_reason)?,
            Fact::TaskRetrying { task, attempt, error, wait_ms, .. } => {
                self.retrying(*task, *attempt, error, *wait_ms)?;
            }
            Fact::TaskEnded { task, state, error, .. } => {
                self.ended(*task, *state, error.as_ref())?;
            }
            _ => {}
        }
        self.launch = self.launch.after(fact);
        Ok(())
    }

    fn end(&mut self, _step: &Played) -> Checked {
        ensure!(self.settled.is_none(), "AM-3: settled without an end: {:?}", self.settled);
        Ok(())
    }
}
