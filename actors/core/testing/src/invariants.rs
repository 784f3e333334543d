//! The invariants of a group's history, one file each, and the [`Checker`] that holds them all.
//!
//! Two ways in. A random world shows the checker every step of the live rules: [`Checker::step`]. A
//! stored log has only its frames: [`check_log`]. What a frame does not hold, and what only the
//! effects or the settings of a step can tell, is checked in worlds alone: an invariant that saw no
//! beginning of a step leaves it out.

mod am13_moves;
mod am2_blocks;
mod am3_settlement;
mod am7_permissions;
mod dq11_drain;
mod dq6_auto_compaction;
mod dq8_hold;
mod f8_crash_loop;
mod hl_lock;
mod i12_effects;
mod i12_timers;
mod i13_run;
mod i16_context;
mod i1_one_at_a_time;
mod i2_accepted_is_kept;
mod i3_places;
mod i4_no_fork;
mod i5_compacting_ends;
mod i7_attempts;
mod i7_prompts;
mod i7_retries;
mod i7_sent_once;
mod i8_order;
mod i9_one_outcome;
mod log;

use std::rc::Rc;

use greenroom_core::{
    Choice, Deadline, Effect, EffectiveSettings, ErrorKind, Event, ExitReason, FailedStart, Group,
    Now, OutputSummary, PermissionId, PermissionOption, PromptReply, Recorded, Rejected, RunId,
    StopReason, Task, TaskId, Timer,
};

pub use self::log::{LogFrame, check_log};
use self::{
    am2_blocks::Blocks, am3_settlement::Settlement, am7_permissions::Permissions,
    am13_moves::Moves, dq6_auto_compaction::AutoCompaction, dq8_hold::Holds, dq11_drain::Drains,
    f8_crash_loop::CrashLoop, hl_lock::Lock, i1_one_at_a_time::OneAtATime,
    i2_accepted_is_kept::AcceptedIsKept, i3_places::Places, i4_no_fork::NoFork,
    i5_compacting_ends::CompactingEnds, i7_attempts::Attempts, i7_prompts::Prompts,
    i7_retries::Retries, i7_sent_once::SentOnce, i8_order::Order, i9_one_outcome::OneOutcome,
    i12_effects::Effects, i12_timers::Timers, i13_run::Runs, i16_context::Context,
};

/// `Err` names the invariant that is broken.
pub type Checked<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// A rule that every history of a group keeps.
trait Invariant {
    /// The kinds of frames, without greenroom's prefix, by which it follows a log. It checks a log
    /// up to an unreadable one of them.
    fn follows(&self) -> &'static [&'static str] {
        &[]
    }

    /// A frame of a log is unreadable, of a kind that it does not follow.
    fn skip(&mut self) {}

    /// A step of the live rules begins.
    fn begin(&mut self, _step: &Rc<Begun>) {}

    /// Checks a fact by those before it, and remembers it.
    fn fact(&mut self, recorded: &Recorded) -> Checked;

    /// Checks what a step led to: its facts are remembered, its effects are not yet performed.
    fn end(&mut self, _step: &Played) -> Checked {
        Ok(())
    }
}

/// A step of a world, to be checked again.
#[derive(Clone)]
pub struct Played {
    pub begun: Begun,
    pub facts: Vec<Recorded>,
    pub effects: Vec<Effect>,
    /// The group after the step, and its timers.
    pub group: Group,
    pub timers: Vec<(Timer, u64)>,
    /// Whether the agent closed its stdout: it is stopped without an order.
    pub stdout_closed: bool,
}

impl Played {
    fn play(&self, invariant: &mut dyn Invariant, begun: &Rc<Begun>) -> Checked {
        invariant.begin(begun);
        self.facts.iter().try_for_each(|recorded| invariant.fact(recorded))?;
        invariant.end(self)
    }
}

/// Checks a history of steps. Returns how each broken invariant is broken first.
pub fn check_steps(steps: &[Played]) -> Vec<String> {
    Checker::violations(|invariant| {
        steps.iter().try_for_each(|step| step.play(invariant, &Rc::new(step.begun.clone())))
    })
}

/// What the rules had before them as a step began.
#[derive(Clone, Debug)]
pub struct Begun {
    pub trigger: Trigger,
    pub now: Now,
    pub settings: EffectiveSettings,
}

/// The event of a step, as far as the invariants depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trigger {
    Answered,
    Failed(ErrorKind),
    Withheld,
    Exited(RunId, ExitReason, FailedStart),
    Recovered,
    Expired(Timer),
    /// A run is ready; whether its agent does not know the session before.
    Ready(bool),
    Other,
}

impl From<&Event> for Trigger {
    fn from(event: &Event) -> Self {
        match event {
            Event::PromptAnswered { reply: PromptReply::Failed { kind, .. }, .. } => {
                Self::Failed(*kind)
            }
            Event::PromptAnswered { .. } => Self::Answered,
            Event::PromptWithheld { .. } => Self::Withheld,
            Event::AgentExited { run, exit } => Self::Exited(*run, exit.reason, exit.failed_start),
            Event::AgentReady { loss, .. } => {
                Self::Ready(loss.as_ref().is_some_and(|loss| loss.is_unknown))
            }
            Event::Recovered(_) => Self::Recovered,
            Event::TimerFired(timer) => Self::Expired(*timer),
            _ => Self::Other,
        }
    }
}

/// All invariants, and what each knows of the history so far.
#[derive(Default)]
pub struct Checker {
    one_at_a_time: OneAtATime,
    accepted: AcceptedIsKept,
    places: Places,
    no_fork: NoFork,
    compacting: CompactingEnds,
    attempts: Attempts,
    prompts: Prompts,
    blocks: Blocks,
    retries: Retries,
    sent_once: SentOnce,
    order: Order,
    outcome: OneOutcome,
    effects: Effects,
    timers: Timers,
    runs: Runs,
    context: Context,
    settlement: Settlement,
    moves: Moves,
    permissions: Permissions,
    auto_compaction: AutoCompaction,
    holds: Holds,
    crash_loop: CrashLoop,
    lock: Lock,
    drains: Drains,
}

impl Checker {
    fn invariants(&mut self) -> [&mut dyn Invariant; 24] {
        [
            &mut self.one_at_a_time,
            &mut self.accepted,
            &mut self.places,
            &mut self.no_fork,
            &mut self.compacting,
            &mut self.attempts,
            &mut self.prompts,
            &mut self.blocks,
            &mut self.retries,
            &mut self.sent_once,
            &mut self.order,
            &mut self.outcome,
            &mut self.effects,
            &mut self.timers,
            &mut self.runs,
            &mut self.context,
            &mut self.settlement,
            &mut self.moves,
            &mut self.permissions,
            &mut self.auto_compaction,
            &mut self.holds,
            &mut self.crash_loop,
            &mut self.lock,
            &mut self.drains,
        ]
    }

    /// Checks a step of the live rules: its facts one by one, then what it led to.
    ///
    /// # Errors
    ///
    /// It breaks an invariant.
    pub fn step(&mut self, step: &Played) -> Checked {
        let begun = Rc::new(step.begun.clone());
        self.invariants().into_iter().try_for_each(|invariant| step.play(invariant, &begun))
    }

    /// Returns how each invariant that `check` finds broken is broken first.
    fn violations(check: impl Fn(&mut dyn Invariant) -> Checked) -> Vec<String> {
        let mut all = Self::default();
        all.invariants().into_iter().filter_map(|invariant| check(invariant).err()).collect()
    }

    /// Checks whether the answer to a permission was rightly accepted or rejected.
    ///
    /// # Errors
    ///
    /// See [`Permissions::check_answer`].
    pub fn check_answer(
        &self,
        permission: PermissionId,
        choice: &Choice,
        rejected: Option<Rejected>,
    ) -> Checked {
        self.permissions.check_answer(permission, choice, rejected)
    }

    /// Checks that every accepted task ended (I2).
    ///
    /// # Errors
    ///
    /// One is open.
    pub fn all_ended(&self) -> Checked {
        self.accepted.all_ended()
    }

    /// Returns the task whose prompt is in flight.
    pub fn in_flight(&self) -> Option<TaskId> {
        self.one_at_a_time.in_flight()
    }

    /// Returns the task that holds the lock.
    pub fn lock_holder(&self) -> Option<TaskId> {
        self.lock.holder()
    }

    /// Returns the number of agent starts.
    pub fn launches(&self) -> usize {
        self.crash_loop.launches()
    }

    /// Whether the task waits for its next attempt, or for the next run.
    pub fn backs_off(&self, task: TaskId) -> bool {
        self.timers.backs_off(task)
    }

    /// Whether the next run waits for a login.
    pub fn wants_login(&self) -> bool {
        self.timers.wants_login()
    }

    /// Returns the permission that was opened `back` before the last.
    pub fn permission(&self, back: usize) -> Option<(PermissionId, &[PermissionOption])> {
        self.permissions.nth_last(back)
    }
}

/// Returns the record of a task, unless the fact was read from a frame, which does not hold it.
fn record(task: TaskId, record: &Task) -> Option<&Task> {
    (record.id == task).then_some(record)
}

/// Whether output proves that the agent got its prompt: also that of another session.
fn proves_receipt(summary: &OutputSummary) -> bool {
    summary.has_output || summary.elsewhere().is_some()
}

/// Whether the agent itself ended the prompt.
fn is_answer(stop_reason: StopReason) -> bool {
    use StopReason::{Cancelled, EndTurn, Error, MaxTokens, MaxTurnRequests, Refusal};
    let words = [EndTurn, MaxTokens, MaxTurnRequests, Refusal, Cancelled, Error];
    words.contains(&stop_reason) || stop_reason.is_unclear()
}

/// F27: returns the time left of a deadline, by uptime, and after a reboot by the wall clock.
fn left_ms(due: Deadline, now: Now) -> u64 {
    let since = due.since;
    let passed = match since.up.boot == now.up.boot {
        true => now.up.ms as i64 - since.up.ms as i64,
        false => now.wall.0 - since.wall.0,
    };
    (due.ms as i64 - passed.max(0)).max(0) as u64
}
