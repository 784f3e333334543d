//! The invariants of attempts, failing runs and holds: I7, I8, I12, F8.

use std::collections::BTreeMap;

use greenroom_core::{
    Deadline, EffectiveSettings, Event, ExitReason, Fact, Group, HoldReason, Now, OnInterrupt,
    PromptReply, RetryPolicy, RunId, StopReason, TaskId, TaskKind, TaskState, Timer,
};

use super::{Checked, LIMITS, ensure};

/// The most retries of a task, and the most runs that may fail in a row before the next one waits.
const RETRIES_MAX: u32 = 5;
const FAILURES_MAX: u32 = 5;

/// The event of a step, as far as attempts depend on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Trigger {
    Answered,
    Failed(i64),
    Exited(RunId, ExitReason),
    Recovered,
    Expired(Timer),
    #[default]
    Other,
}

impl From<&Event> for Trigger {
    fn from(event: &Event) -> Self {
        match event {
            Event::PromptAnswered { reply: PromptReply::Failed { code, .. }, .. } => {
                Self::Failed(*code)
            }
            Event::PromptAnswered { .. } => Self::Answered,
            Event::AgentExited { run, exit } => Self::Exited(*run, exit.reason),
            Event::Recovered(_) => Self::Recovered,
            Event::TimerFired(timer) => Self::Expired(*timer),
            _ => Self::Other,
        }
    }
}

/// The history of a group's attempts.
#[derive(Default)]
pub struct Attempts {
    tasks: BTreeMap<TaskId, OpenTask>,
    trigger: Trigger,
    now: Now,
    settings: Option<EffectiveSettings>,
    /// The attempt whose prompt was sent.
    sent: Option<Sent>,
    /// The attempt that settled in this step, and whether it has to be retried.
    settled: Option<(TaskId, Next)>,
    run: Option<LiveRun>,
    held: Option<HoldReason>,
    /// Why the group has to be on hold at the end of the step.
    due_hold: Option<HoldReason>,
    interruptions: u32,
    failures: u32,
    launch_due: Option<Deadline>,
    /// The failures and the backoff that the next fact has to report.
    degraded: Option<(u32, u64)>,
    /// In this step: the agent is wedged after a cancel.
    wedged: bool,
    /// In this step: the context was lost.
    lost: bool,
    launches: usize,
    archived: bool,
    paused: bool,
    /// Whether the group was deleted since the running attempt started.
    deleted_since_start: bool,
    /// Whether a `GroupResumed` is due: a deletion resets the counts in a row.
    must_resume: bool,
    holder: Option<TaskId>,
}

struct OpenTask {
    kind: TaskKind,
    attempts: u32,
    ever_sent: bool,
    retrying: bool,
    backoff: Option<Deadline>,
    expires: Option<Deadline>,
}

struct Sent {
    task: TaskId,
    output: bool,
    cancelled: bool,
}

struct LiveRun {
    run: RunId,
    ready: bool,
    settled: bool,
}

/// What has to follow a settled attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Its task is retried.
    Retry,
    /// Its task fails: its attempts are used up.
    Fail,
    /// Its task ends.
    End,
}

impl Attempts {
    /// Begins a step.
    pub fn begin(&mut self, settings: &EffectiveSettings, trigger: Trigger, now: Now) {
        (self.trigger, self.now) = (trigger, now);
        self.settings = Some(settings.clone());
        (self.settled, self.due_hold) = (None, None);
        (self.wedged, self.lost) = (false, false);
    }

    /// Returns the number of agent starts.
    pub fn launches(&self) -> usize {
        self.launches
    }

    fn settings(&self) -> &EffectiveSettings {
        self.settings.as_ref().unwrap_or_else(|| unreachable!("a step began"))
    }

    fn open_task(&mut self, task: TaskId) -> Checked<&mut OpenTask> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is not open"))
    }

    /// Whether the task waits for its next attempt, or for the next run.
    pub fn backs_off(&self, task: TaskId) -> bool {
        let open_task = &self.tasks[&task];
        let waits_for_run = self.run.is_none() && self.launch_due.is_some();
        open_task.backoff.is_some() || (!open_task.retrying && waits_for_run)
    }

    /// Checks and applies one fact.
    pub fn check_fact(&mut self, fact: &Fact) -> Checked {
        if let Some((runs, wait_ms)) = self.degraded.take() {
            let expected = (runs, wait_ms, Deadline::after(self.now, wait_ms));
            let stated = matches!(fact, Fact::AgentDegraded { runs, wait_ms, due }
                if (*runs, *wait_ms, *due) == expected);
            ensure!(stated, "F8: {runs} runs settled no turn: expected {wait_ms} ms, not {fact:?}");
        } else {
            let degraded = matches!(fact, Fact::AgentDegraded { .. });
            ensure!(!degraded, "F8: {} runs settled no turn, and {fact:?}", self.failures);
        }
        match fact {
            Fact::GroupArchived {} => {
                self.archived = true;
                self.deleted_since_start |= self.sent.is_some();
                (self.failures, self.launch_due) = (0, None);
                (self.held, self.interruptions) = (None, 0);
            }
            Fact::GroupPaused {} => self.paused = true,
            Fact::GroupCreated(_) => self.archived = false,
            Fact::GroupChanged(settings) => {
                let waits = self.paused || self.held.is_some() || self.interruptions > 0;
                self.must_resume |= self.archived && waits;
                self.archived = false;
                (self.failures, self.launch_due) = (0, None);
                if settings.on_interrupt == Some(OnInterrupt::Continue) {
                    (self.held, self.interruptions) = (None, 0);
                    self.must_resume &= self.paused;
                }
            }
            Fact::GroupResumed {} => {
                self.must_resume = false;
                (self.failures, self.launch_due) = (0, None);
                (self.held, self.interruptions, self.paused) = (None, 0, false);
            }
            Fact::GroupHeld { reason } => {
                ensure!(self.held.replace(*reason).is_none(), "held twice");
                ensure!(self.due_hold.take() == Some(*reason), "no reason for this hold: {fact:?}");
            }
            Fact::TaskQueued { task, kind, record, .. } => {
                let (attempts, expires) = (0, record.expires);
                let open_task = OpenTask {
                    kind: *kind,
                    attempts,
                    ever_sent: false,
                    retrying: false,
                    backoff: None,
                    expires,
                };
                self.tasks.insert(*task, open_task);
            }
            Fact::TaskClaimed { task } => self.claimed(*task)?,
            Fact::TaskReleased { task } => {
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
            }
            Fact::TaskStarted { task, attempt, .. } => {
                if self.holder != Some(*task) {
                    self.claimed(*task)?;
                }
                ensure!(self.held.is_none() && !self.archived, "{task} starts in a held group");
                let late = self.is_late(*task);
                let open_task = self.open_task(*task)?;
                ensure!(!late || open_task.ever_sent, "{task} starts after it expired");
                open_task.attempts += 1;
                open_task.ever_sent = true;
                let attempts = open_task.attempts;
                ensure!(*attempt == attempts, "I7: attempt {attempt} of {task} is {attempts}");
                ensure!(attempts <= RETRIES_MAX + 1, "I7: attempt {attempts} of {task}");
                ensure!(self.sent.is_none(), "AM-2: {task} starts beside another");
                self.deleted_since_start = false;
                self.sent = Some(Sent { task: *task, output: false, cancelled: false });
            }
            Fact::AgentOutput(output) => {
                self.sent.iter_mut().for_each(|sent| sent.output |= output.summary.has_output);
            }
            Fact::RequestRefused { .. } => {
                self.sent.iter_mut().for_each(|sent| sent.output = true);
            }
            Fact::AgentWedged { .. } => {
                self.wedged = true;
                self.sent.iter_mut().for_each(|sent| sent.output = false);
            }
            Fact::CancelRequested { .. } | Fact::TurnCut { .. } => {
                self.sent.iter_mut().for_each(|sent| sent.cancelled = true);
            }
            Fact::TurnSettled { task, stop_reason, .. } => self.settled(*task, *stop_reason)?,
            Fact::TaskRetrying { task, attempt, wait_ms, due, .. } => {
                self.retry(*task, *attempt, *wait_ms)?;
                ensure!(
                    *due == Deadline::after(self.now, *wait_ms),
                    "I12: {task} waits until {due:?}"
                );
                self.open_task(*task)?.backoff = Some(*due);
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
            }
            Fact::BackoffEnded { task } => {
                let attempt = self.open_task(*task)?.attempts;
                let timed = self.trigger == Trigger::Expired(Timer::Backoff(*task, attempt));
                let waited = self.open_task(*task)?.backoff.take();
                ensure!(timed && waited.is_some(), "{task} did not wait: {:?}", self.trigger);
            }
            Fact::TaskEnded { .. } => self.ended(fact)?,
            Fact::RunStarted { run, .. } => self.launched(*run)?,
            Fact::ContextLost { .. } => self.lost = true,
            Fact::RunReady { .. } => {
                self.run.iter_mut().for_each(|run| run.ready = true);
                let retries = self.holder.is_some_and(|task| self.tasks[&task].retrying);
                let interrupted = self.interruptions > 0 || retries;
                if self.lost && interrupted && self.settings().on_interrupt != OnInterrupt::Continue
                {
                    self.must_hold(HoldReason::ContextLost);
                }
            }
            Fact::RunExited { run, exit } => self.exited(*run, exit.reason)?,
            Fact::AgentDegraded { due, .. } => self.launch_due = Some(*due),
            Fact::LaunchAllowed {} => {
                let timed = matches!(self.trigger, Trigger::Expired(Timer::Launch(_)));
                let waited = self.launch_due.take();
                ensure!(timed && waited.is_some(), "no launch waited: {:?}", self.trigger);
            }
            Fact::LockAsked { task } => {
                let may_not_start = self.is_stopped() || self.backs_off(*task);
                ensure!(!may_not_start, "{task} requests a lock and may not start");
            }
            _ => {}
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.paused || self.archived || self.held.is_some()
    }

    fn must_hold(&mut self, reason: HoldReason) {
        if self.held.is_none() && !self.archived {
            self.due_hold.get_or_insert(reason);
        }
    }

    fn claimed(&mut self, task: TaskId) -> Checked {
        ensure!(!self.is_stopped(), "{task} is claimed: paused, held or deleted");
        ensure!(!self.backs_off(task), "I12: {task} is claimed and backs off");
        self.holder = Some(task);
        Ok(())
    }

    /// Whether the task's time to start is over.
    fn is_late(&self, task: TaskId) -> bool {
        let due = self.tasks.get(&task).and_then(|open_task| open_task.expires);
        due.is_some_and(|due| left_ms(due, self.now) == 0)
    }

    /// I7: decides whether the settled attempt has to be retried.
    fn settled(&mut self, task: TaskId, stop_reason: StopReason) -> Checked {
        let sent = self.sent.take().filter(|sent| sent.task == task);
        let sent = sent.ok_or_else(|| format!("AM-3: {task} settles and was not sent"))?;
        use StopReason::{Cancelled, EndTurn, Error, MaxTokens, MaxTurnRequests, Refusal};
        let answers = [EndTurn, MaxTokens, MaxTurnRequests, Refusal, Cancelled, Error];
        if answers.contains(&stop_reason) {
            self.run.iter_mut().for_each(|run| run.settled = true);
            (self.failures, self.launch_due) = (0, None);
        }
        let failed = match self.trigger {
            // The agent only reported that it did not read the prompt.
            _ if self.wedged => true,
            Trigger::Failed(code) => ![-32000, -32600, -32601, -32602].contains(&code),
            Trigger::Exited(_, reason) => reason == ExitReason::Exited,
            _ => false,
        };
        let policy = self.settings().retry == RetryPolicy::NoOutput;
        let open_task = self.open_task(task)?;
        let is_turn = open_task.kind == TaskKind::Turn;
        let may_retry = failed && !sent.output && !sent.cancelled && is_turn && policy;
        let next = match open_task.attempts {
            _ if !may_retry => Next::End,
            attempts if attempts > RETRIES_MAX => Next::Fail,
            _ => Next::Retry,
        };
        self.settled = Some((task, next));
        Ok(())
    }

    fn retry(&mut self, task: TaskId, attempt: u32, wait_ms: u64) -> Checked {
        ensure!(self.trigger != Trigger::Recovered, "I7: {task} is retried after a restart");
        let retry = self.settings().retry;
        if let Some((settled, next)) = self.settled.take() {
            ensure!(settled == task && next == Next::Retry, "I7: {task} is retried: {next:?}");
        } else {
            ensure!(self.failed_before_prompt(), "I7: {task} is retried after {:?}", self.trigger);
            ensure!(retry != RetryPolicy::Never, "I7: {task} is retried under policy `never`");
            self.open_task(task)?.attempts += 1;
        }
        let open_task = self.open_task(task)?;
        open_task.retrying = true;
        let attempts = open_task.attempts;
        ensure!(attempt == attempts, "I7: {task} fails at {attempts}, not {attempt}");
        ensure!(attempts <= RETRIES_MAX, "I7: {task} is retried after {attempts}");
        let expected = LIMITS.retry_base_ms * 2_u64.pow(attempts - 1);
        ensure!(wait_ms == expected, "{task} waits {wait_ms} ms, not {expected}");
        Ok(())
    }

    /// Whether the run that just ended got no prompt.
    fn failed_before_prompt(&self) -> bool {
        matches!(self.trigger, Trigger::Exited(..)) && self.run.is_none() && self.sent.is_none()
    }

    fn ended(&mut self, fact: &Fact) -> Checked {
        let Fact::TaskEnded { task, state, stop_reason, error, record, .. } = fact else {
            return Ok(());
        };
        let late = self.is_late(*task);
        let timed = self.trigger == Trigger::Expired(Timer::Queued(*task));
        let has_slot = self.holder == Some(*task);
        if has_slot {
            self.holder = None;
        }
        let open_task = self.tasks.remove(task).ok_or_else(|| format!("I9: {task} ends twice"))?;
        let code = error.as_ref().map(|error| error.code.as_str());
        if code == Some("expired") {
            ensure!(late || timed, "{task} expires too early");
            ensure!(!open_task.ever_sent, "I7: {task} was sent and expires");
            ensure!(*state == TaskState::Failed, "{task} expires and is {state:?}");
        }
        if let Some((settled, next)) = self.settled.take() {
            ensure!(settled == *task, "AM-3: {settled} settles, {task} ends");
            ensure!(next != Next::Retry, "I7: {task} ends {state:?} and has attempts left");
            let failed = *state == TaskState::Failed;
            ensure!(next == Next::End || failed, "I7: {task} fails as {state:?}");
        } else if code == Some("agent_start_failed") {
            let (retry, attempts) = (self.settings().retry, open_task.attempts + 1);
            let over = attempts > RETRIES_MAX || retry == RetryPolicy::Never;
            ensure!(has_slot && over, "I7: {task} fails after {attempts} attempts");
            ensure!(record.attempt == attempts, "{task} ends as attempt {}", record.attempt);
        }
        match (state, stop_reason) {
            (TaskState::Interrupted, _) => {
                self.interruptions += 1;
                match self.settings().on_interrupt {
                    // It started before the group was deleted.
                    _ if self.deleted_since_start => {
                        self.must_resume = !self.archived && !self.paused
                    }
                    OnInterrupt::Hold => self.must_hold(HoldReason::Interrupted),
                    OnInterrupt::Auto if self.interruptions >= 2 => {
                        self.must_hold(HoldReason::InterruptedTwice);
                    }
                    OnInterrupt::Auto | OnInterrupt::Continue => {}
                }
            }
            (_, Some(_)) if open_task.kind == TaskKind::Turn => self.interruptions = 0,
            (_, Some(_) | None) => {}
        }
        Ok(())
    }

    fn launched(&mut self, run: RunId) -> Checked {
        ensure!(!self.archived && self.held.is_none(), "{run} starts: held or deleted");
        let task = self.holder.ok_or_else(|| format!("{run} starts without a task"))?;
        ensure!(!self.backs_off(task), "F8: {run} starts for {task}, which backs off");
        self.run = Some(LiveRun { run, ready: false, settled: false });
        self.launches += 1;
        Ok(())
    }

    /// F8: counts the runs in a row that ended by themselves without an answer.
    fn exited(&mut self, run: RunId, reason: ExitReason) -> Checked {
        let live = self.run.take().filter(|live| live.run == run);
        let live = live.ok_or_else(|| format!("{run} ends and is not live"))?;
        let by_itself =
            matches!(reason, ExitReason::StartFailed | ExitReason::Exited | ExitReason::Protocol);
        if by_itself && !live.settled {
            self.failures += 1;
            if let Some(doublings) = self.failures.checked_sub(FAILURES_MAX + 1) {
                let wait_ms = (0..doublings).fold(1_000, |ms: u64, _| (ms * 2).min(300_000));
                self.degraded = Some((self.failures, wait_ms));
            }
        }
        Ok(())
    }

    /// Checks the invariants of a step.
    pub fn step(&self) -> Checked {
        ensure!(self.degraded.is_none(), "F8: no wait after {} failures", self.failures);
        ensure!(self.due_hold.is_none(), "DQ-8: the group is not on hold for {:?}", self.due_hold);
        ensure!(self.settled.is_none(), "AM-3: settled without an end: {:?}", self.settled);
        ensure!(!self.must_resume, "counts from before the deletion stay");
        Ok(())
    }

    /// Checks the invariants between two steps.
    pub fn at_rest(&self, group: &Group) -> Checked {
        let state = group.state();
        ensure!(
            state.hold.reason == self.held,
            "held is {:?}, not {:?}",
            self.held,
            state.hold.reason
        );
        let (expected, found) = (self.interruptions, state.hold.interruptions);
        ensure!(expected == found, "{expected} interruptions in a row, not {found}");
        ensure!(state.crash_loop.crashes == self.failures, "F8: {} failures", self.failures);
        ensure!(
            state.crash_loop.launch_due == self.launch_due,
            "F8: the next waits {:?}",
            self.launch_due
        );
        for task in group.waiting().chain(group.current()) {
            let open_task = &self.tasks[&task.id];
            ensure!(
                task.retry_at() == open_task.backoff,
                "{} backs off: {:?}",
                task.id,
                open_task.backoff
            );
            ensure!(
                task.attempt == open_task.attempts,
                "I7: {} is at {}",
                task.id,
                open_task.attempts
            );
            let running = self.sent.as_ref().is_some_and(|sent| sent.task == task.id);
            let state = match running {
                true => TaskState::Running,
                false if open_task.retrying => TaskState::Retrying,
                false => TaskState::Queued,
            };
            ensure!(task.state() == state, "{} is {:?}, not {state:?}", task.id, task.state());
        }
        if let Some(current) = group.current() {
            let waits = self.tasks[&current.id].backoff.is_some();
            ensure!(!waits, "{} backs off and has the slot", current.id);
        }
        Ok(())
    }

    /// I12: checks that each wait has a timer with the time left of it.
    pub fn check_timers(&self, timers: &[(Timer, u64)], group: &Group, now: Now) -> Checked {
        let has = |timer, due| timers.contains(&(timer, left_ms(due, now)));
        for (id, open_task) in &self.tasks {
            if let Some(due) = open_task.backoff {
                let bounded = has(Timer::Backoff(*id, open_task.attempts), due);
                ensure!(bounded, "I12: {id} backs off for ever: {timers:?}");
            }
        }
        if let Some(due) = self.launch_due.filter(|_| self.run.is_none()) {
            let bounded = has(Timer::Launch(self.failures), due);
            ensure!(bounded, "I12: the next run waits for ever: {timers:?}");
        }
        let unsent = |open_task: &&OpenTask| !open_task.ever_sent;
        let dues = self.tasks.values().filter(unsent).filter_map(|open_task| open_task.expires);
        let soonest = dues.map(|due| left_ms(due, now)).min();
        let mut queued = timers.iter().filter_map(|(timer, left)| match timer {
            Timer::Queued(task) => Some((*task, *left)),
            _ => None,
        });
        let first = queued.next();
        ensure!(soonest == first.map(|(_, left)| left), "I12: {soonest:?} is left, not {first:?}");
        let sent = |task| self.tasks.get(&task).is_none_or(|open_task| open_task.ever_sent);
        let wrong = first.filter(|(task, _)| sent(*task) || group.task(*task).is_none());
        ensure!(wrong.is_none(), "I7: {wrong:?} would expire, and was sent");
        for (timer, _) in timers {
            let known = match timer {
                Timer::Backoff(task, _) => {
                    self.tasks.get(task).is_some_and(|t| t.backoff.is_some())
                }
                Timer::Launch(_) => self.launch_due.is_some() && self.run.is_none(),
                _ => true,
            };
            ensure!(known, "{timer:?} has no wait");
        }
        Ok(())
    }
}

/// F27: returns the time left of a deadline, by uptime, and after a reboot by the wall clock.
pub fn left_ms(due: Deadline, now: Now) -> u64 {
    let since = due.since;
    let passed = match since.up.boot == now.up.boot {
        true => now.up.ms as i64 - since.up.ms as i64,
        false => now.wall.0 - since.wall.0,
    };
    (due.ms as i64 - passed.max(0)).max(0) as u64
}
