//! F8: from the sixth run in a row that ended by itself without settling an attempt, the next run
//! waits, longer each time.

use std::rc::Rc;

use greenroom_core::{Deadline, Exit, ExitReason, Fact, Recorded, RunId, Timer};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure, is_answer};

/// The most runs that may fail in a row before the next one waits.
const FAILURES_MAX: u32 = 5;

#[derive(Default)]
pub struct CrashLoop {
    step: Option<Rc<Begun>>,
    /// The live run, and whether an attempt settled in it.
    run: Option<(RunId, bool)>,
    failures: u32,
    launch_due: Option<Deadline>,
    /// The failures and the backoff that the next fact has to report.
    degraded: Option<(u32, u64)>,
    launches: usize,
}

impl CrashLoop {
    /// Returns the number of agent starts.
    pub fn launches(&self) -> usize {
        self.launches
    }

    fn reset(&mut self) {
        (self.failures, self.launch_due) = (0, None);
    }

    fn check_degraded(&mut self, fact: &Fact) -> Checked {
        let expected = self.degraded.take();
        let stated = match fact {
            Fact::AgentDegraded { runs, wait_ms, due } => {
                let now = self.step.as_ref().map(|step| step.now);
                let ends = now.is_none_or(|now| *due == Deadline::after(now, *wait_ms));
                ensure!(ends, "F8: {wait_ms} ms do not end at {due:?}");
                Some((*runs, *wait_ms))
            }
            _ => None,
        };
        ensure!(stated == expected, "F8: expected {expected:?} (runs, ms), not {fact:?}");
        Ok(())
    }

    fn exited(&mut self, run: RunId, exit: &Exit) -> Checked {
        let live = self.run.take().filter(|(live, _)| *live == run);
        let (_, has_settled) = live.ok_or_else(|| format!("{run} ends and is not live"))?;
        let by_itself = matches!(
            exit.reason,
            ExitReason::StartFailed | ExitReason::Exited | ExitReason::Protocol
        );
        if by_itself && !has_settled {
            self.failures += 1;
            if let Some(doublings) = self.failures.checked_sub(FAILURES_MAX + 1) {
                let wait_ms = (0..doublings).fold(1_000, |ms: u64, _| (ms * 2).min(300_000));
                self.degraded = Some((self.failures, wait_ms));
            }
        }
        Ok(())
    }
}

impl Invariant for CrashLoop {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "group_changed", "group_archived", "group_resumed", "run_started", "turn_settled",
            "run_exited", "agent_degraded",
        ]
    }

    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        self.check_degraded(fact)?;
        match fact {
            Fact::GroupArchived {} | Fact::GroupChanged(_) | Fact::GroupResumed {} => self.reset(),
            Fact::RunStarted { run, .. } => {
                self.run = Some((*run, false));
                self.launches += 1;
            }
            Fact::TurnSettled { stop_reason, .. } if is_answer(*stop_reason) => {
                self.reset();
                self.run.iter_mut().for_each(|(_, has_settled)| *has_settled = true);
            }
            Fact::RunExited { run, exit } => self.exited(*run, exit)?,
            Fact::AgentDegraded { due, .. } => self.launch_due = Some(*due),
            Fact::LaunchAllowed {} => {
                let trigger = self.step.as_ref().map(|step| step.trigger);
                let timed = matches!(trigger, Some(Trigger::Expired(Timer::Launch(_))));
                let waited = self.launch_due.take();
                ensure!(timed && waited.is_some(), "F8: no launch waited: {trigger:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        ensure!(self.degraded.is_none(), "F8: no wait after {} failures", self.failures);
        let crash_loop = &step.group.state().crash_loop;
        ensure!(crash_loop.crashes == self.failures, "F8: {} failures", self.failures);
        let (due, found) = (self.launch_due, crash_loop.launch_due);
        ensure!(found == due, "F8: the next run waits {due:?}, not {found:?}");
        Ok(())
    }
}
