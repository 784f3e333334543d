//! F8: from the sixth run in a row that ended by itself without settling an attempt, the next run
//! waits, longer each time.

use std::rc::Rc;

use greenroom_core::{Deadline, ErrorKind, Exit, ExitReason, Fact, Recorded, RunId, Timer};

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
    /// How many starts in a row found that the agent wants a login.
    logins: u32,
    /// The wait that the next fact has to report: an agent that wants a login was started.
    login: Option<(u32, u64)>,
    /// Likewise, and the step has to report it: it refused a prompt.
    prompt_login: Option<(u32, u64)>,
    /// Whether the running attempt is being cancelled.
    is_cancelled: bool,
    /// The failures and the backoff that the next fact has to report.
    degraded: Option<(u32, u64)>,
    launches: usize,
    /// Whether the live run is neither ready nor stopping.
    is_starting: bool,
}

impl CrashLoop {
    /// Returns the number of agent starts.
    pub fn launches(&self) -> usize {
        self.launches
    }

    /// The last start failed for another reason.
    fn forget_login(&mut self) {
        if std::mem::take(&mut self.logins) > 0 {
            self.launch_due = None;
        }
    }

    fn reset(&mut self) {
        (self.failures, self.launch_due, self.logins) = (0, None, 0);
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

    fn check_login(&mut self, fact: &Fact) -> Checked {
        let is_wait = matches!(fact, Fact::AgentAuthRequired { .. });
        if let Fact::AgentAuthRequired { starts, .. } = fact
            && self.step.is_none()
            && self.login.is_none()
        {
            // A log does not show why a prompt was refused.
            self.logins = *starts;
            return Ok(());
        }
        let of_prompt = self.prompt_login.take_if(|_| is_wait && self.login.is_none());
        let expected = of_prompt.or(self.login.take());
        let stated = match fact {
            Fact::AgentAuthRequired { starts, wait_ms, due, .. } => {
                let now = self.step.as_ref().map(|step| step.now);
                let ends = now.is_none_or(|now| *due == Deadline::after(now, *wait_ms));
                ensure!(ends, "DQ-13: {wait_ms} ms do not end at {due:?}");
                Some((*starts, *wait_ms))
            }
            _ => None,
        };
        // A log does not show whether the run was being stopped.
        if self.step.is_none() && stated.is_none() && expected.is_some() {
            self.logins -= 1;
            return Ok(());
        }
        ensure!(stated == expected, "DQ-13: expected {expected:?} (starts, ms), not {fact:?}");
        Ok(())
    }

    fn exited(&mut self, run: RunId, exit: &Exit) -> Checked {
        let live = self.run.take().filter(|(live, _)| *live == run);
        let (_, has_settled) = live.ok_or_else(|| format!("{run} ends and is not live"))?;
        let is_starting = std::mem::take(&mut self.is_starting);
        if exit.reason != ExitReason::AgentAuth {
            // The run may be stopped for the wait that began.
            if self.launch_due.is_none() {
                self.forget_login();
            }
        } else if is_starting {
            self.logins += 1;
            let wait_ms = [60_000, 120_000, 240_000, 300_000][self.logins.min(4) as usize - 1];
            self.login = Some((self.logins, wait_ms));
        }
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
            "task_started", "run_exited", "run_ready", "run_stopping", "agent_degraded", "agent_auth_required",
            "launch_allowed",
        ]
    }

    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        self.check_degraded(fact)?;
        self.check_login(fact)?;
        match fact {
            Fact::GroupArchived {} | Fact::GroupChanged(_) | Fact::GroupResumed {} => self.reset(),
            Fact::RunStarted { run, .. } => {
                self.run = Some((*run, false));
                self.launches += 1;
                self.is_starting = true;
            }
            Fact::TaskStarted { .. } => self.is_cancelled = false,
            Fact::CancelRequested { .. } | Fact::TurnCut { .. } | Fact::AgentWedged { .. } => {
                self.is_cancelled = true;
            }
            Fact::TurnSettled { stop_reason, .. } if is_answer(*stop_reason) => {
                let logins = self.logins + 1;
                self.reset();
                let refused = Trigger::Failed(ErrorKind::Auth);
                let is_refused = self.step.as_ref().is_some_and(|step| step.trigger == refused);
                if is_refused && !self.is_cancelled {
                    self.logins = logins;
                    let wait_ms = [60_000, 120_000, 240_000, 300_000][logins.min(4) as usize - 1];
                    self.prompt_login = Some((logins, wait_ms));
                }
                self.run.iter_mut().for_each(|(_, has_settled)| *has_settled = true);
            }
            Fact::RunExited { run, exit } => self.exited(*run, exit)?,
            Fact::RunReady { .. } => self.is_starting = false,
            Fact::RunStopping { .. } => self.is_starting = false,
            Fact::AgentDegraded { due, .. } | Fact::AgentAuthRequired { due, .. } => {
                self.launch_due = Some(*due);
            }
            Fact::LaunchAllowed {} => {
                let trigger = self.step.as_ref().map(|step| step.trigger);
                let timed =
                    matches!(trigger, Some(Trigger::Expired(Timer::Launch(_) | Timer::Login(_))));
                let waited = self.launch_due.take();
                ensure!(timed && waited.is_some(), "F8: no launch waited: {trigger:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        ensure!(self.degraded.is_none(), "F8: no wait after {} failures", self.failures);
        ensure!(self.prompt_login.is_none(), "DQ-13: a refused prompt starts no wait");
        ensure!(self.login.is_none(), "DQ-13: no wait for a login: {:?}", self.login);
        let crash_loop = &step.group.state().crash_loop;
        ensure!(crash_loop.crashes == self.failures, "F8: {} failures", self.failures);
        let (due, found) = (self.launch_due, crash_loop.waits().map(|wait| wait.due));
        ensure!(found == due, "F8: the next run waits {due:?}, not {found:?}");
        Ok(())
    }
}
