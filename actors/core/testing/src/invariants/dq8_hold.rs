//! DQ-8: an interrupted turn holds its group as the settings say, a caller's decision resumes it,
//! and a group that is held, paused or deleted starts nothing.

use std::{collections::BTreeSet, rc::Rc};

use greenroom_core::{
    Exit, ExitReason, Fact, HoldReason, OnInterrupt, Recorded, RetryPolicy, StopReason, TaskId,
    TaskKind, TaskState,
};

use super::{Begun, Checked, Invariant, Played, ensure, is_answer};

/// After this many failed runs in a row, a session may be given up without retries.
const FAILURES_MAX: u32 = 5;

#[derive(Default)]
pub struct Holds {
    step: Option<Rc<Begun>>,
    is_archived: bool,
    is_paused: bool,
    held: Option<HoldReason>,
    /// Why the group has to be on hold at the end of the step.
    due: Option<HoldReason>,
    interruptions: u32,
    /// In this step: the context was lost.
    is_lost: bool,
    /// Whether a `GroupResumed` is due: a deletion resets the counts in a row.
    must_resume: bool,
    holder: Option<TaskId>,
    is_running: bool,
    /// Whether the group was deleted since the running attempt started.
    deleted_since_start: bool,
    /// Tasks of which an attempt failed.
    retrying: BTreeSet<TaskId>,
    /// Whether there is a live run, and whether an attempt settled in it.
    run: Option<bool>,
    /// How many runs in a row failed.
    failures: u32,
}

impl Holds {
    fn on_interrupt(&self) -> Option<OnInterrupt> {
        self.step.as_ref().map(|step| step.settings.on_interrupt)
    }

    fn must_hold(&mut self, reason: HoldReason) {
        if self.held.is_none() && !self.is_archived {
            self.due.get_or_insert(reason);
        }
    }

    fn reset(&mut self) {
        (self.held, self.interruptions, self.failures) = (None, 0, 0);
    }

    fn starts(&self, fact: &Fact) -> Checked {
        let stopped = self.is_archived || self.held.is_some();
        ensure!(!stopped, "DQ-8: {fact:?}: held or deleted");
        Ok(())
    }

    fn ended(&mut self, kind: TaskKind, state: TaskState, stop_reason: Option<StopReason>) {
        match (state, stop_reason) {
            (TaskState::Interrupted, _) => {
                self.interruptions += 1;
                match self.on_interrupt() {
                    // It started before the group was deleted.
                    Some(_) if self.deleted_since_start => {
                        self.must_resume = !self.is_archived && !self.is_paused;
                    }
                    Some(OnInterrupt::Hold) => self.must_hold(HoldReason::Interrupted),
                    Some(OnInterrupt::Auto) if self.interruptions >= 2 => {
                        self.must_hold(HoldReason::InterruptedTwice);
                    }
                    Some(OnInterrupt::Auto | OnInterrupt::Continue) | None => {}
                }
            }
            (_, Some(_)) if kind == TaskKind::Turn => self.interruptions = 0,
            (_, Some(_) | None) => {}
        }
    }

    fn ready(&mut self) {
        let never = |step: &Rc<Begun>| step.settings.retry == RetryPolicy::Never;
        let is_given_up = self.failures >= FAILURES_MAX && self.step.as_ref().is_some_and(never);
        self.hold_after_loss(is_given_up);
    }

    fn exited(&mut self, exit: &Exit) {
        let failed = matches!(
            exit.reason,
            ExitReason::StartFailed | ExitReason::Exited | ExitReason::Protocol
        );
        self.failures += u32::from(failed && self.run.take() == Some(false));
        self.run = None;
    }

    fn hold_after_loss(&mut self, is_given_up: bool) {
        let retries = self.holder.is_some_and(|task| self.retrying.contains(&task));
        let holds = match self.on_interrupt() {
            Some(OnInterrupt::Hold) => true,
            Some(OnInterrupt::Auto) => is_given_up || self.interruptions > 0 || retries,
            Some(OnInterrupt::Continue) | None => false,
        };
        if self.is_lost && holds {
            self.must_hold(HoldReason::ContextLost);
        }
    }
}

impl Invariant for Holds {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "group_created", "group_changed", "group_archived", "group_paused", "group_resumed",
            "group_held", "task_claimed", "task_released", "task_started", "task_retrying",
            "task_ended", "run_started",
        ]
    }

    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
        (self.due, self.is_lost) = (None, false);
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::GroupArchived {} => {
                self.is_archived = true;
                self.deleted_since_start |= self.is_running;
                self.reset();
            }
            Fact::GroupPaused {} => self.is_paused = true,
            Fact::GroupCreated(_) => self.is_archived = false,
            Fact::GroupChanged(settings) => {
                let waits = self.is_paused || self.held.is_some() || self.interruptions > 0;
                self.must_resume |= self.is_archived && waits;
                (self.is_archived, self.failures) = (false, 0);
                if settings.on_interrupt == Some(OnInterrupt::Continue) {
                    self.reset();
                    self.must_resume &= self.is_paused;
                }
            }
            Fact::GroupResumed {} => {
                self.reset();
                (self.must_resume, self.is_paused) = (false, false);
            }
            Fact::GroupHeld { reason } => {
                ensure!(self.held.replace(*reason).is_none(), "DQ-8: held twice");
                let is_due = self.step.is_none() || self.due.take() == Some(*reason);
                ensure!(is_due, "DQ-8: no reason for this hold: {fact:?}");
            }
            Fact::TaskClaimed { task } => {
                self.starts(fact)?;
                ensure!(!self.is_paused, "DQ-8: {task} is claimed in a paused group");
                self.holder = Some(*task);
            }
            Fact::TaskStarted { task, .. } => {
                self.starts(fact)?;
                let is_claimed = self.holder.replace(*task) == Some(*task);
                ensure!(is_claimed || !self.is_paused, "DQ-8: {task} starts in a paused group");
                (self.is_running, self.deleted_since_start) = (true, false);
            }
            Fact::RunStarted { .. } => {
                self.starts(fact)?;
                self.run = Some(false);
            }
            Fact::RunExited { exit, .. } => self.exited(exit),
            Fact::LockAsked { .. } => {
                self.starts(fact)?;
                ensure!(!self.is_paused, "DQ-8: {fact:?} in a paused group");
            }
            Fact::ContextLost { .. } => {
                self.is_lost = true;
                if self.run.is_none() {
                    self.hold_after_loss(true);
                }
            }
            Fact::RunReady { .. } => self.ready(),
            Fact::TurnSettled { stop_reason, .. } => {
                self.is_running = false;
                if is_answer(*stop_reason) {
                    self.failures = 0;
                    self.run.iter_mut().for_each(|has_settled| *has_settled = true);
                }
            }
            Fact::TaskReleased { .. } => self.holder = None,
            Fact::TaskRetrying { task, .. } => {
                self.holder = None;
                self.retrying.insert(*task);
            }
            Fact::TaskEnded { task, kind, state, stop_reason, .. } => {
                self.holder = self.holder.filter(|holder| holder != task);
                self.ended(*kind, *state, *stop_reason);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        ensure!(self.due.is_none(), "DQ-8: the group is not on hold for {:?}", self.due);
        ensure!(!self.must_resume, "DQ-8: counts from before the deletion stay");
        let hold = &step.group.state().hold;
        ensure!(hold.reason == self.held, "DQ-8: held by {:?}, not {hold:?}", self.held);
        let paused = step.group.state().paused;
        ensure!(paused == self.is_paused, "DQ-8: paused is {paused}, not {}", self.is_paused);
        let expected = self.interruptions;
        ensure!(hold.interruptions == expected, "DQ-8: {expected} in a row, not {hold:?}");
        Ok(())
    }
}
