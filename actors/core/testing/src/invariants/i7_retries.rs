//! I7: an attempt is retried only if surely nothing of it happened: the agent failed without
//! output, no caller cancelled it, this server saw its end, and attempts are left; or its prompt
//! was withheld, at once. Attempts count up.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use greenroom_core::{
    ExitReason, Fact, Recorded, RetryPolicy, RunId, StopReason, TaskId, TaskKind, TaskState,
};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure, record};
use crate::world::LIMITS;

/// The most retries of a task.
const RETRIES_MAX: u32 = 5;

#[derive(Default)]
pub struct Retries {
    step: Option<Rc<Begun>>,
    tasks: BTreeMap<TaskId, OpenTask>,
    holder: Option<TaskId>,
    /// The attempt whose prompt was sent.
    running: Option<Running>,
    /// The attempt that settled with the last fact, and what has to follow.
    settled: Option<(TaskId, Next)>,
    /// Runs whose prompt was cancelled.
    cancelled_runs: BTreeSet<RunId>,
    /// In this step: the agent is wedged after a cancel.
    is_wedged: bool,
}

struct OpenTask {
    kind: TaskKind,
    attempts: u32,
    /// Whether the prompt of its last attempt was sent, and that of any.
    is_sent: bool,
    ever_sent: bool,
    is_retrying: bool,
    /// Attempts whose prompt was withheld: they are beside the limit.
    withheld: u32,
}

struct Running {
    task: TaskId,
    output: bool,
    /// Whether a caller cancelled it, and whether greenroom interrupted it.
    is_cancelled: bool,
    is_cut: bool,
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

impl Retries {
    fn open_task(&mut self, task: TaskId) -> Checked<&mut OpenTask> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is not open"))
    }

    fn started(&mut self, task: TaskId, attempt: u32) -> Checked {
        ensure!(self.running.is_none(), "AM-2: {task} starts beside another");
        self.holder = Some(task);
        let open_task = self.open_task(task)?;
        open_task.attempts += 1;
        (open_task.is_sent, open_task.ever_sent) = (true, true);
        let attempts = open_task.attempts;
        ensure!(attempt == attempts, "I7: attempt {attempt} of {task} is {attempts}");
        let most = RETRIES_MAX + 1 + open_task.withheld;
        ensure!(attempts <= most, "I7: attempt {attempts} of {task}");
        self.running = Some(Running { task, output: false, is_cancelled: false, is_cut: false });
        Ok(())
    }

    /// Decides whether the settled attempt has to be retried.
    fn settled(&mut self, task: TaskId, stop_reason: StopReason) -> Checked {
        let attempt = self.running.take().filter(|attempt| attempt.task == task);
        let attempt = attempt.ok_or_else(|| format!("AM-3: {task} settles and was not sent"))?;
        let (step, is_wedged) = (self.step.clone(), self.is_wedged);
        let open_task = self.open_task(task)?;
        let is_free = !attempt.output && !attempt.is_cancelled;
        let is_free_turn = is_free && !attempt.is_cut && open_task.kind == TaskKind::Turn;
        let attempts_left = open_task.attempts <= RETRIES_MAX;
        let next = match step.as_deref() {
            None if stop_reason == StopReason::ServerRestart && is_free => Next::RetryAtOnceOrEnd,
            None if is_free_turn && attempts_left => Next::RetryOrEnd,
            Some(Begun { trigger: Trigger::Withheld, .. }) if is_free => Next::RetryAtOnce,
            Some(Begun { trigger, settings, .. }) if is_free_turn => {
                let failed = match trigger {
                    // The agent only reported that it did not read the prompt.
                    _ if is_wedged => true,
                    Trigger::Failed(code) => ![-32000, -32600, -32601, -32602].contains(code),
                    Trigger::Exited(_, reason) => *reason == ExitReason::Exited,
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

    fn retrying(&mut self, task: TaskId, attempt: u32, wait_ms: u64) -> Checked {
        ensure!(self.holder.take() == Some(task), "I1: {task} had no slot");
        let step = self.step.clone();
        let mut is_withheld = false;
        if let Some((settled, next)) = self.settled.take() {
            is_withheld = matches!(next, Next::RetryAtOnce | Next::RetryAtOnceOrEnd);
            let may = is_withheld || matches!(next, Next::Retry | Next::RetryOrEnd);
            ensure!(settled == task && may, "I7: {task} is retried: {next:?}");
        } else {
            ensure!(self.running.is_none(), "I7: {task} is retried while its attempt runs");
            self.open_task(task)?.attempts += 1;
            if let Some(Begun { trigger, settings, .. }) = step.as_deref() {
                let exited = matches!(trigger, Trigger::Exited(..));
                ensure!(exited, "I7: {task} is retried after {trigger:?}");
                let never = settings.retry == RetryPolicy::Never;
                ensure!(!never, "I7: {task} is retried under policy `never`");
            }
        }
        let open_task = self.open_task(task)?;
        (open_task.is_retrying, open_task.is_sent) = (true, false);
        open_task.withheld += u32::from(is_withheld);
        let (attempts, most) = (open_task.attempts, RETRIES_MAX + open_task.withheld);
        ensure!(attempt == attempts, "I7: {task} fails at {attempts}, not {attempt}");
        ensure!(attempts <= most, "I7: {task} is retried after {attempts}");
        let expected = match is_withheld {
            true => 0,
            false => LIMITS.retry_base_ms * 2_u64.pow(attempts - 1),
        };
        // A log does not tell the base.
        let waits = wait_ms == expected || (step.is_none() && !is_withheld);
        ensure!(waits, "I7: {task} waits {wait_ms} ms, not {expected}");
        let restarted = step.is_some_and(|step| step.trigger == Trigger::Recovered);
        ensure!(!restarted, "I7: {task} is retried after a restart");
        Ok(())
    }

    fn ended(&mut self, fact: &Fact) -> Checked {
        let Fact::TaskEnded { task, state, error, record: ended, attempt, .. } = fact else {
            return Ok(());
        };
        let has_slot = self.holder == Some(*task);
        self.holder = self.holder.filter(|holder| holder != task);
        let open_task = self.tasks.remove(task).ok_or_else(|| format!("I9: {task} ends twice"))?;
        let code = error.as_ref().map(|error| error.code.as_str());
        if let Some((settled, next)) = self.settled.take() {
            ensure!(settled == *task, "AM-3: {settled} settles, {task} ends");
            let retries = matches!(next, Next::Retry | Next::RetryAtOnce);
            ensure!(!retries, "I7: {task} ends {state:?} and has attempts left");
            let failed = *state == TaskState::Failed;
            ensure!(next != Next::Fail || failed, "I7: {task} fails as {state:?}");
        } else if code == Some("agent_start_failed") {
            let attempts = open_task.attempts + 1;
            let never = |step: &Rc<Begun>| step.settings.retry == RetryPolicy::Never;
            let over = attempts > RETRIES_MAX || self.step.as_ref().is_none_or(never);
            ensure!(has_slot && over, "I7: {task} fails after {attempts} attempts");
            ensure!(*attempt == attempts, "{task} ends as attempt {attempt}");
        }
        let sent_and_expires = code == Some("expired") && open_task.ever_sent;
        ensure!(!sent_and_expires, "I7: {task} was sent and expires");
        let ran = matches!(state, TaskState::Completed | TaskState::Interrupted);
        ensure!(open_task.is_sent || !ran, "I7: {task} was not sent and is {state:?}");
        let recorded = record(*task, ended).map_or(*attempt, |ended| ended.attempt);
        ensure!(*attempt == recorded, "I7: attempt {attempt} of {ended:?}");
        Ok(())
    }
}

impl Invariant for Retries {
    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
        self.is_wedged = false;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskQueued { task, kind, .. } => {
                let open_task = OpenTask {
                    kind: *kind,
                    attempts: 0,
                    is_sent: false,
                    ever_sent: false,
                    is_retrying: false,
                    withheld: 0,
                };
                self.tasks.insert(*task, open_task);
            }
            Fact::TaskClaimed { task } => self.holder = Some(*task),
            Fact::TaskReleased { .. } => self.holder = None,
            Fact::TaskStarted { task, attempt, .. } => self.started(*task, *attempt)?,
            Fact::AgentOutput(output) => {
                self.running.iter_mut().for_each(|it| it.output |= output.summary.has_output);
            }
            Fact::RequestRefused { .. } => {
                self.running.iter_mut().for_each(|it| it.output = true);
            }
            Fact::CancelSent { run } => drop(self.cancelled_runs.insert(*run)),
            Fact::AgentWedged { run, .. } => {
                let cancelled = self.step.is_none() || self.cancelled_runs.contains(run);
                ensure!(cancelled, "{run} is wedged, and no prompt was cancelled");
                self.is_wedged = true;
                self.running.iter_mut().for_each(|it| it.output = false);
            }
            Fact::CancelRequested { .. } => {
                self.running.iter_mut().for_each(|it| it.is_cancelled = true);
            }
            Fact::TurnCut { .. } => self.running.iter_mut().for_each(|it| it.is_cut = true),
            Fact::TurnSettled { task, stop_reason, .. } => self.settled(*task, *stop_reason)?,
            Fact::TaskRetrying { task, attempt, wait_ms, .. } => {
                self.retrying(*task, *attempt, *wait_ms)?;
            }
            Fact::TaskEnded { .. } => self.ended(fact)?,
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        ensure!(self.settled.is_none(), "AM-3: settled without an end: {:?}", self.settled);
        for task in step.group.waiting().chain(step.group.current()) {
            let Some(open_task) = self.tasks.get(&task.id) else { continue };
            let attempts = open_task.attempts;
            ensure!(task.attempt == attempts, "I7: {} is at {attempts}", task.id);
            let is_running = self.running.as_ref().is_some_and(|running| running.task == task.id);
            let expected = match is_running {
                true => TaskState::Running,
                false if open_task.is_retrying => TaskState::Retrying,
                false => TaskState::Queued,
            };
            let state = task.state();
            ensure!(state == expected, "{} is {state:?}, not {expected:?}", task.id);
        }
        Ok(())
    }
}
