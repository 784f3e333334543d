//! The statements about attempts, runs that fail, and who holds the queue: I7, I8, I12, RELIABILITY
//! F8.

use std::collections::BTreeMap;

use greenroom_core::{
    Due, Event, ExitReason, Expiry, Group, Held as Reason, OnInterrupt, PromptReply, Retry, RunId,
    StopReason, TaskId, TaskKind, TaskState, Terms, Write, lock::Now,
};

use super::{Held, LIMITS, ensure};

/// As many times as a task is made again, and as many runs in a row may fail before the next waits.
const RETRIES_MAX: u32 = 5;
const FAILURES_MAX: u32 = 5;

/// What led to a step, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Happened {
    Answered,
    Failed(i64),
    Exited(RunId, ExitReason),
    Recovered,
    Expired(Expiry),
    #[default]
    Other,
}

impl From<&Event> for Happened {
    fn from(event: &Event) -> Self {
        match event {
            Event::PromptAnswered { reply: PromptReply::Failed { code, .. }, .. } => {
                Self::Failed(*code)
            }
            Event::PromptAnswered { .. } => Self::Answered,
            Event::AgentExited { run, exit } => Self::Exited(*run, exit.reason),
            Event::Recovered(_) => Self::Recovered,
            Event::Expired(expiry) => Self::Expired(*expiry),
            _ => Self::Other,
        }
    }
}

/// What was seen of a group's attempts so far.
#[derive(Default)]
pub struct Attempts {
    tasks: BTreeMap<TaskId, Own>,
    happened: Happened,
    now: Now,
    terms: Option<Terms>,
    /// The attempt whose prompt was sent.
    sent: Option<Sent>,
    /// The attempt that settled in this step, and whether it is due to be made again.
    settled: Option<(TaskId, Then)>,
    run: Option<Living>,
    held: Option<Reason>,
    /// Why the group has to be held by the end of the step.
    holds: Option<Reason>,
    interruptions: u32,
    failures: u32,
    launch_due: Option<Due>,
    /// The wait that has to be stated right behind the end of the run.
    degraded: Option<(u32, u64)>,
    /// In this step: the agent lost track after a cancel.
    wedged: bool,
    /// In this step: the context was lost.
    lost: bool,
    launches: usize,
    archived: bool,
    paused: bool,
    /// Whether the group was deleted since the attempt that is sent began.
    past: bool,
    /// Whether a resumption is due: what counts in a row ends with the group's life.
    forgets: bool,
    holder: Option<TaskId>,
}

struct Own {
    kind: TaskKind,
    attempts: u32,
    ever_sent: bool,
    retrying: bool,
    backoff: Option<Due>,
    expires: Option<Due>,
}

struct Sent {
    task: TaskId,
    output: bool,
    cut: bool,
}

struct Living {
    run: RunId,
    ready: bool,
    settled: bool,
}

/// Whether an attempt that settled is made again, if its policy lets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Again,
    GivenUp,
    Never,
}

impl Attempts {
    /// A step begins.
    pub fn begin(&mut self, terms: &Terms, happened: Happened, now: Now) {
        (self.happened, self.now) = (happened, now);
        self.terms = Some(terms.clone());
        (self.settled, self.holds) = (None, None);
        (self.wedged, self.lost) = (false, false);
    }

    /// How often an agent was started.
    pub fn launches(&self) -> usize {
        self.launches
    }

    fn terms(&self) -> &Terms {
        self.terms.as_ref().unwrap_or_else(|| unreachable!("a step began"))
    }

    fn own(&mut self, task: TaskId) -> Held<&mut Own> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is not open"))
    }

    /// Whether the task waits for its next attempt, or for the next run.
    pub fn backs_off(&self, task: TaskId) -> bool {
        let own = &self.tasks[&task];
        own.backoff.is_some() || (!own.retrying && self.run.is_none() && self.launch_due.is_some())
    }

    /// Takes in one fact.
    pub fn fact(&mut self, write: &Write) -> Held {
        if let Some((runs, wait_ms)) = self.degraded.take() {
            let stated = matches!(write, Write::AgentDegraded { runs: own, wait_ms: ms, due }
                if (*own, *ms) == (runs, wait_ms) && *due == Due::after(self.now, wait_ms));
            ensure!(stated, "F8: {runs} runs settled no turn, and not {wait_ms} ms but {write:?}");
        } else {
            let degraded = matches!(write, Write::AgentDegraded { .. });
            ensure!(!degraded, "F8: {} runs settled no turn, and {write:?}", self.failures);
        }
        match write {
            Write::GroupArchived {} => {
                self.archived = true;
                self.past |= self.sent.is_some();
                (self.failures, self.launch_due) = (0, None);
                (self.held, self.interruptions) = (None, 0);
            }
            Write::GroupPaused {} => self.paused = true,
            Write::GroupCreated(_) => self.archived = false,
            Write::GroupChanged(settings) => {
                let waits = self.paused || self.held.is_some() || self.interruptions > 0;
                self.forgets |= self.archived && waits;
                self.archived = false;
                (self.failures, self.launch_due) = (0, None);
                if settings.on_interrupt == Some(OnInterrupt::Continue) {
                    (self.held, self.interruptions) = (None, 0);
                    self.forgets &= self.paused;
                }
            }
            Write::GroupResumed {} => {
                self.forgets = false;
                (self.failures, self.launch_due) = (0, None);
                (self.held, self.interruptions, self.paused) = (None, 0, false);
            }
            Write::GroupHeld { reason } => {
                ensure!(self.held.replace(*reason).is_none(), "held twice");
                ensure!(self.holds.take() == Some(*reason), "{reason:?} holds nobody: {write:?}");
            }
            Write::TaskQueued { task, kind, record, .. } => {
                let (attempts, expires) = (0, record.expires);
                let own = Own {
                    kind: *kind,
                    attempts,
                    ever_sent: false,
                    retrying: false,
                    backoff: None,
                    expires,
                };
                self.tasks.insert(*task, own);
            }
            Write::TaskClaimed { task } => self.claimed(*task)?,
            Write::TaskReleased { task } => {
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
            }
            Write::TaskStarted { task, attempt, .. } => {
                if self.holder != Some(*task) {
                    self.claimed(*task)?;
                }
                ensure!(self.held.is_none() && !self.archived, "{task} starts in a held group");
                let late = self.is_late(*task);
                let own = self.own(*task)?;
                ensure!(!late || own.ever_sent, "{task} starts after it expired");
                own.attempts += 1;
                own.ever_sent = true;
                let attempts = own.attempts;
                ensure!(*attempt == attempts, "I7: attempt {attempt} of {task} is {attempts}");
                ensure!(attempts <= RETRIES_MAX + 1, "I7: attempt {attempts} of {task}");
                ensure!(self.sent.is_none(), "AM-2: {task} starts beside another");
                self.past = false;
                self.sent = Some(Sent { task: *task, output: false, cut: false });
            }
            Write::Said(said) => {
                self.sent.iter_mut().for_each(|sent| sent.output |= said.fold.output);
            }
            Write::RequestRefused { .. } => {
                self.sent.iter_mut().for_each(|sent| sent.output = true);
            }
            Write::AgentWedged { .. } => {
                self.wedged = true;
                self.sent.iter_mut().for_each(|sent| sent.output = false);
            }
            Write::CancelRequested { .. } | Write::TurnCut { .. } => {
                self.sent.iter_mut().for_each(|sent| sent.cut = true);
            }
            Write::TurnSettled { task, stop_reason, .. } => self.settled(*task, *stop_reason)?,
            Write::TaskRetrying { task, attempt, wait_ms, due, .. } => {
                self.again(*task, *attempt, *wait_ms)?;
                ensure!(*due == Due::after(self.now, *wait_ms), "I12: {task} waits until {due:?}");
                self.own(*task)?.backoff = Some(*due);
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
            }
            Write::BackoffEnded { task } => {
                let attempt = self.own(*task)?.attempts;
                let timed = self.happened == Happened::Expired(Expiry::Backoff(*task, attempt));
                let waited = self.own(*task)?.backoff.take();
                ensure!(timed && waited.is_some(), "{task} did not wait: {:?}", self.happened);
            }
            Write::TaskEnded { .. } => self.ended(write)?,
            Write::RunStarted { run, .. } => self.launched(*run)?,
            Write::ContextLost { .. } => self.lost = true,
            Write::RunReady { .. } => {
                self.run.iter_mut().for_each(|run| run.ready = true);
                let again = self.holder.is_some_and(|task| self.tasks[&task].retrying);
                let cut_off = self.interruptions > 0 || again;
                if self.lost && cut_off && self.terms().on_interrupt != OnInterrupt::Continue {
                    self.has_to_hold(Reason::ContextLost);
                }
            }
            Write::RunExited { run, exit } => self.exited(*run, exit.reason)?,
            Write::AgentDegraded { due, .. } => self.launch_due = Some(*due),
            Write::LaunchAllowed {} => {
                let timed = matches!(self.happened, Happened::Expired(Expiry::Launch(_)));
                let waited = self.launch_due.take();
                ensure!(timed && waited.is_some(), "no launch waited: {:?}", self.happened);
            }
            Write::LockAsked { task } => {
                let still = self.stands_still() || self.backs_off(*task);
                ensure!(!still, "{task} asks for a lock and may not go on");
            }
            _ => {}
        }
        Ok(())
    }

    fn stands_still(&self) -> bool {
        self.paused || self.archived || self.held.is_some()
    }

    fn has_to_hold(&mut self, reason: Reason) {
        if self.held.is_none() && !self.archived {
            self.holds.get_or_insert(reason);
        }
    }

    fn claimed(&mut self, task: TaskId) -> Held {
        ensure!(!self.stands_still(), "{task} is claimed: paused, held or deleted");
        ensure!(!self.backs_off(task), "I12: {task} is claimed and backs off");
        self.holder = Some(task);
        Ok(())
    }

    /// Whether the time is up within which it has to start.
    fn is_late(&self, task: TaskId) -> bool {
        let due = self.tasks.get(&task).and_then(|own| own.expires);
        due.is_some_and(|due| left_ms(due, self.now) == 0)
    }

    /// I7: which attempts that settled are made again.
    fn settled(&mut self, task: TaskId, stop_reason: StopReason) -> Held {
        let sent = self.sent.take().filter(|sent| sent.task == task);
        let sent = sent.ok_or_else(|| format!("AM-3: {task} settles and was not sent"))?;
        use StopReason::{Cancelled, EndTurn, Error, MaxTokens, MaxTurnRequests, Refusal};
        let answers = [EndTurn, MaxTokens, MaxTurnRequests, Refusal, Cancelled, Error];
        if answers.contains(&stop_reason) {
            self.run.iter_mut().for_each(|run| run.settled = true);
            (self.failures, self.launch_due) = (0, None);
        }
        let failed = match self.happened {
            // It only said that it did not take the prompt.
            _ if self.wedged => true,
            Happened::Failed(code) => ![-32000, -32600, -32601, -32602].contains(&code),
            Happened::Exited(_, reason) => reason == ExitReason::Exited,
            _ => false,
        };
        let policy = self.terms().retry == Retry::NoOutput;
        let own = self.own(task)?;
        let may = failed && !sent.output && !sent.cut && own.kind == TaskKind::Turn && policy;
        let due = match own.attempts {
            _ if !may => Then::Never,
            attempts if attempts > RETRIES_MAX => Then::GivenUp,
            _ => Then::Again,
        };
        self.settled = Some((task, due));
        Ok(())
    }

    fn again(&mut self, task: TaskId, attempt: u32, wait_ms: u64) -> Held {
        ensure!(self.happened != Happened::Recovered, "I7: {task} again after a restart");
        let retry = self.terms().retry;
        if let Some((own, due)) = self.settled.take() {
            ensure!(own == task && due == Then::Again, "I7: {task} again: {due:?}");
        } else {
            ensure!(self.unsent_failed(), "I7: {task} again after {:?}", self.happened);
            ensure!(retry != Retry::Never, "I7: {task} again, and never may it");
            self.own(task)?.attempts += 1;
        }
        let own = self.own(task)?;
        own.retrying = true;
        let attempts = own.attempts;
        ensure!(attempt == attempts, "I7: {task} fails at {attempts}, not {attempt}");
        ensure!(attempts <= RETRIES_MAX, "I7: {task} again after {attempts}");
        let expected = LIMITS.retry_base_ms * 2_u64.pow(attempts - 1);
        ensure!(wait_ms == expected, "{task} waits {wait_ms} ms, not {expected}");
        Ok(())
    }

    /// Whether the run that just ended never took a prompt.
    fn unsent_failed(&self) -> bool {
        matches!(self.happened, Happened::Exited(..)) && self.run.is_none() && self.sent.is_none()
    }

    fn ended(&mut self, write: &Write) -> Held {
        let Write::TaskEnded { task, state, stop_reason, error, record, .. } = write else {
            return Ok(());
        };
        let late = self.is_late(*task);
        let timed = self.happened == Happened::Expired(Expiry::Queued(*task));
        let has_slot = self.holder == Some(*task);
        if has_slot {
            self.holder = None;
        }
        let own = self.tasks.remove(task).ok_or_else(|| format!("I9: {task} ends twice"))?;
        let code = error.as_ref().map(|error| error.code.as_str());
        if code == Some("expired") {
            ensure!(late || timed, "{task} expires in time");
            ensure!(!own.ever_sent, "I7: {task} was sent and expires");
            ensure!(*state == TaskState::Failed, "{task} expires and is {state:?}");
        }
        if let Some((settled, due)) = self.settled.take() {
            ensure!(settled == *task, "AM-3: {settled} settles, {task} ends");
            ensure!(due != Then::Again, "I7: {task} ends {state:?} and has attempts left");
            let failed = *state == TaskState::Failed;
            ensure!(due == Then::Never || failed, "I7: {task} is given up as {state:?}");
        } else if code == Some("agent_start_failed") {
            let (retry, attempts) = (self.terms().retry, own.attempts + 1);
            let over = attempts > RETRIES_MAX || retry == Retry::Never;
            ensure!(has_slot && over, "I7: {task} is given up after {attempts} attempts");
            ensure!(record.attempt == attempts, "{task} ends as attempt {}", record.attempt);
        }
        match (state, stop_reason) {
            (TaskState::Interrupted, _) => {
                self.interruptions += 1;
                match self.terms().on_interrupt {
                    // It began in a life of the group that is over.
                    _ if self.past => self.forgets = !self.archived && !self.paused,
                    OnInterrupt::Hold => self.has_to_hold(Reason::Interrupted),
                    OnInterrupt::Auto if self.interruptions >= 2 => {
                        self.has_to_hold(Reason::InterruptedTwice);
                    }
                    OnInterrupt::Auto | OnInterrupt::Continue => {}
                }
            }
            (_, Some(_)) if own.kind == TaskKind::Turn => self.interruptions = 0,
            (_, Some(_) | None) => {}
        }
        Ok(())
    }

    fn launched(&mut self, run: RunId) -> Held {
        ensure!(!self.archived && self.held.is_none(), "{run} starts: held or deleted");
        let task = self.holder.ok_or_else(|| format!("{run} starts for nobody"))?;
        ensure!(!self.backs_off(task), "F8: {run} starts for {task}, which backs off");
        self.run = Some(Living { run, ready: false, settled: false });
        self.launches += 1;
        Ok(())
    }

    /// F8: so many in a row that ended by themselves without an answer.
    fn exited(&mut self, run: RunId, reason: ExitReason) -> Held {
        let own = self.run.take().filter(|own| own.run == run);
        let own = own.ok_or_else(|| format!("{run} ends and does not live"))?;
        let by_itself =
            matches!(reason, ExitReason::StartFailed | ExitReason::Exited | ExitReason::Protocol);
        if by_itself && !own.settled {
            self.failures += 1;
            if let Some(doublings) = self.failures.checked_sub(FAILURES_MAX + 1) {
                let wait_ms = (0..doublings).fold(1_000, |ms: u64, _| (ms * 2).min(300_000));
                self.degraded = Some((self.failures, wait_ms));
            }
        }
        Ok(())
    }

    /// What holds of a step.
    pub fn step(&self) -> Held {
        ensure!(self.degraded.is_none(), "F8: no wait behind {} failures", self.failures);
        ensure!(self.holds.is_none(), "SEEDS DQ-8: not held, by {:?}", self.holds);
        ensure!(self.settled.is_none(), "AM-3: settled and nothing: {:?}", self.settled);
        ensure!(!self.forgets, "a life that is over counts for the next one");
        Ok(())
    }

    /// What holds between two steps.
    pub fn at_rest(&self, group: &Group) -> Held {
        let head = group.head();
        ensure!(head.held == self.held, "held is {:?}, not {:?}", self.held, head.held);
        let (own, theirs) = (self.interruptions, head.interruptions);
        ensure!(own == theirs, "{own} interruptions in a row, not {theirs}");
        ensure!(head.crashes == self.failures, "F8: {} failures", self.failures);
        ensure!(head.launch_due == self.launch_due, "F8: the next waits {:?}", self.launch_due);
        for task in group.waiting().chain(group.current()) {
            let own = &self.tasks[&task.id];
            ensure!(task.retry_at == own.backoff, "{} backs off: {:?}", task.id, own.backoff);
            ensure!(task.attempt == own.attempts, "I7: {} is at {}", task.id, own.attempts);
            let running = self.sent.as_ref().is_some_and(|sent| sent.task == task.id);
            let state = match running {
                true => TaskState::Running,
                false if own.retrying => TaskState::Retrying,
                false => TaskState::Queued,
            };
            ensure!(task.state == state, "{} is {:?}, not {state:?}", task.id, task.state);
        }
        if let Some(current) = group.current() {
            let waits = self.tasks[&current.id].backoff.is_some();
            ensure!(!waits, "{} backs off and has the slot", current.id);
        }
        Ok(())
    }

    /// I12: every wait that these rules make is bounded, by what is left of it.
    pub fn bounded(&self, bounds: &[(Expiry, u64)], group: &Group, now: Now) -> Held {
        let has = |expiry, due| bounds.contains(&(expiry, left_ms(due, now)));
        for (id, own) in &self.tasks {
            if let Some(due) = own.backoff {
                let bounded = has(Expiry::Backoff(*id, own.attempts), due);
                ensure!(bounded, "I12: {id} backs off for ever: {bounds:?}");
            }
        }
        if let Some(due) = self.launch_due.filter(|_| self.run.is_none()) {
            let bounded = has(Expiry::Launch(self.failures), due);
            ensure!(bounded, "I12: the next run waits for ever: {bounds:?}");
        }
        let unsent = |own: &&Own| !own.ever_sent;
        let dues = self.tasks.values().filter(unsent).filter_map(|own| own.expires);
        let soonest = dues.map(|due| left_ms(due, now)).min();
        let mut told = bounds.iter().filter_map(|(expiry, left)| match expiry {
            Expiry::Queued(task) => Some((*task, *left)),
            _ => None,
        });
        let first = told.next();
        ensure!(soonest == first.map(|(_, left)| left), "I12: {soonest:?} is left, not {first:?}");
        let sent = |task| self.tasks.get(&task).is_none_or(|own| own.ever_sent);
        let wrong = first.filter(|(task, _)| sent(*task) || group.task(*task).is_none());
        ensure!(wrong.is_none(), "I7: {wrong:?} would expire, and was sent");
        for (expiry, _) in bounds {
            let known = match expiry {
                Expiry::Backoff(task, _) => {
                    self.tasks.get(task).is_some_and(|t| t.backoff.is_some())
                }
                Expiry::Launch(_) => self.launch_due.is_some() && self.run.is_none(),
                _ => true,
            };
            ensure!(known, "{expiry:?} bounds nothing");
        }
        Ok(())
    }
}

/// F27: how much of it is left: by the clock that nobody sets, and after a reboot by the other one.
pub fn left_ms(due: Due, now: Now) -> u64 {
    let since = due.since;
    let passed = match since.up.boot == now.up.boot {
        true => now.up.ms as i64 - since.up.ms as i64,
        false => now.wall.0 - since.wall.0,
    };
    (due.ms as i64 - passed.max(0)).max(0) as u64
}
