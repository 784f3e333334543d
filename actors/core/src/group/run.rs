//! The agent's run: launched, ready, stopped, exited, recovered.

use super::{Current, Group, Rejected, Session, decide::Transition};
use crate::{
    CancelReason, Continuity, Deadline, Effect, EndReason, EndState, Ending, Exit, ExitReason,
    Fact, FailedStart, Loss, PromptCapabilities, Provenance, Recovery, Run, RunHealth, RunId,
    RunPhase, RunProgress, SessionId, Stop, TaskError, TaskId, Timer,
    attempt::with_attempts,
    last_words::last_words,
    retry::{FailureKind, RETRIES_MAX, backoff_ms, crash_wait_ms, login_wait_ms},
};

/// The longest cause of a lost context that is stored.
const CAUSE_BYTES_MAX: usize = 4 << 10;

impl Transition<'_> {
    /// Launches an agent. If the provenance is known, it restores the agent's own session: by ACP's
    /// id, the agent would restore the session from before a compaction. The last attempt of a task
    /// does not try a session with which nothing is lost.
    pub(super) fn launch(&mut self) {
        let run = RunId((self.fresh)());
        let state = &self.group.state;
        let (agent, has_detectors) = (state.settings.agent.clone(), self.settings.has_detectors);
        let session = state.session.as_ref().map(|session| match &session.provenance {
            Some(known) => SessionId(known.current.as_str().into()),
            None => session.id.clone(),
        });
        let may_replace = self.gives_session_up();
        let session = session.filter(|_| !may_replace || self.group.has_context());
        self.record(Fact::RunStarted { run, agent, has_detectors });
        self.emit(Effect::Launch { run, session, may_replace });
    }

    /// Whether the session may be given up if the agent does not restore it now: only at the last
    /// attempt of a task, if as many attempts failed before, or runs in a row.
    fn gives_session_up(&self) -> bool {
        let attempts = self.group.current().map_or(0, |task| task.attempt);
        let (policy, base_ms) = (self.settings.retry, self.settings.limits.retry_base_ms);
        let next = backoff_ms(policy, FailureKind::Undelivered, attempts + 1, base_ms);
        let failed = attempts.max(self.group.state.crash_loop.crashes);
        next.is_none() && RETRIES_MAX <= failed
    }

    /// Puts the agent's session in force, and starts the claimed task.
    pub(super) fn agent_ready(
        &mut self,
        id: RunId,
        pid: u32,
        (session, provenance): (SessionId, Option<Provenance>),
        (continuity, loss): (Continuity, Option<Loss>),
        (is_forgetful, prompts): (bool, Option<PromptCapabilities>),
    ) {
        // A run that was stopped before it was ready takes no prompt.
        let is_starting = |run: &Run| run.id == id && run.phase == RunPhase::Starting;
        if !self.group.run.as_ref().is_some_and(is_starting) {
            return;
        }
        let is_given_up = self.gives_session_up();
        // Some agents store a session with its first answer only.
        let was_stored = self.group.state.session.as_ref().is_some_and(|it| !it.is_unanswered)
            || loss.as_ref().is_none_or(|loss| !loss.is_unknown);
        let is_lost = continuity == Continuity::Lost && self.group.has_context() && was_stored;
        if is_lost {
            self.lose_context(loss.map(|loss| loss.cause));
        }
        let state = &self.group.state;
        let known = state.provenance().map(|known| &*known.current);
        let is_same = state.session_id() == Some(&session) || known == Some(&*session.0);
        let given = provenance.as_ref().map(|given| &*given.current);
        let is_reset = known.zip(given).is_some_and(|(known, given)| known != given);
        if !is_same {
            self.rotate(EndReason::AgentRestart, session.clone(), provenance.clone());
        } else if is_reset {
            // AM-13: the agent restored another of its own sessions under the same ACP id.
            self.rotate(EndReason::Reset, session.clone(), provenance.clone());
        }
        self.record(Fact::RunReady {
            run: id,
            pid,
            session,
            continuity,
            provenance,
            is_forgetful,
            prompts,
        });
        if is_lost {
            self.hold_after_loss(is_given_up);
        }
        let Some(Current { task, attempt: None }) = &self.group.current else { return };
        let (task, needs_lock) = (task.id, self.group.needs_lock(task));
        if self.end_if_nothing_to_do(task) {
            return;
        }
        if needs_lock {
            // The run opened another session, which has another lock.
            self.record(Fact::TaskReleased { task });
        } else {
            self.start(task);
        }
    }

    /// Stops sending prompts to a run whose agent closed its stdout.
    pub(super) fn agent_closed(&mut self, id: RunId) {
        let is_ready = |run: &Run| run.id == id && run.phase == RunPhase::Ready;
        if self.group.run.as_ref().is_some_and(is_ready) {
            self.record(Fact::RunStopping { run: id });
        }
    }

    /// Settles the running attempt by the run's exit, or retries the claimed task.
    pub(super) fn agent_exited(&mut self, run: RunId, exit: Exit) {
        let Some(Run { phase, health, .. }) = self.group.run.clone().filter(|live| live.id == run)
        else {
            return;
        };
        let mut exit = exit;
        let failed_start = std::mem::take(&mut exit.failed_start);
        if health == RunHealth::Wedged {
            exit.detail = format!("it was wedged by a cancel: {}", exit.detail);
        }
        self.void_permissions();
        let settled =
            self.group.attempt().map(|attempt| attempt.settle_by_exit(exit.reason, &exit.detail));
        let unsent = self.group.current.as_ref().map(|current| current.task.id);
        if settled.is_none() {
            self.abandon_compaction();
        }
        if phase == RunPhase::Starting && exit.reason == ExitReason::AgentAuth {
            self.login_wanted(run, exit);
        } else if let Some(settled) = settled {
            self.settle(settled);
            self.run_exited(run, exit);
        } else if let Some(task) = unsent {
            match phase {
                RunPhase::Starting => self.start_failed(run, exit, failed_start, task),
                RunPhase::Ready | RunPhase::Stopping => {
                    self.run_exited(run, exit);
                    self.relaunch(task);
                }
            }
        } else {
            self.run_exited(run, exit);
        }
    }

    /// Retries the claimed task, whose agent did not start; or fails it, if each start would fail.
    /// If the last attempt ended while it restored the session, gives the session up and continues
    /// with a new one, as after an error: it is that session on which the agent fails.
    fn start_failed(&mut self, run: RunId, exit: Exit, failed_start: FailedStart, task: TaskId) {
        let error = start_error(&exit);
        let cause = exit.detail.clone();
        let is_given_up = failed_start == FailedStart::InRestore
            && exit.reason.is_crash()
            && self.gives_session_up()
            && self.group.has_context();
        self.run_exited(run, exit);
        if is_given_up {
            self.lose_context(Some(cause));
            self.hold_after_loss(true);
            if self.group.current().is_some_and(|current| current.id == task) {
                self.relaunch(task);
            }
        } else if failed_start == FailedStart::Lasting {
            let attempt = self.group.task(task).map_or(1, |task| task.attempt + 1);
            let error = Some(with_attempts(error, attempt));
            self.end(task, attempt, EndState::Failed, Ending { error, ..Ending::default() });
        } else {
            self.retry_unsent(task, error);
        }
    }

    /// Records that the session in force was lost with its context.
    fn lose_context(&mut self, cause: Option<String>) {
        if let Some(session) = self.group.state.session_id().cloned() {
            let cause = cause.map(|cause| truncated(cause, CAUSE_BYTES_MAX));
            self.record(Fact::ContextLost { session, cause });
        }
    }

    /// Records that the run ended, and the wait before the next run of a crash loop (F8).
    pub(super) fn run_exited(&mut self, run: RunId, exit: Exit) {
        let before = self.group.state.crash_loop.crashes;
        self.record(Fact::RunExited { run, exit });
        let runs = self.group.state.crash_loop.crashes;
        if let Some(wait_ms) = crash_wait_ms(runs).filter(|_| runs > before) {
            let due = Deadline::after(self.now, wait_ms);
            self.record(Fact::AgentDegraded { runs, wait_ms, due });
        }
    }

    /// Launches the next run for a task that waited for the end of the last one. In a crash loop it
    /// releases the task instead.
    pub(super) fn relaunch(&mut self, id: TaskId) {
        if self.group.current().is_some_and(|task| self.group.backs_off(task)) {
            self.record(Fact::TaskReleased { task: id });
        } else {
            self.launch();
        }
    }

    /// Ends the wait before the next run.
    pub(super) fn launch_allowed(&mut self, timer: Timer) {
        let crash_loop = &self.group.state.crash_loop;
        let waits = crash_loop.waits().is_some_and(|wait| match timer {
            Timer::Login(starts) => wait.logins == starts,
            Timer::Launch(crashes) => wait.logins == 0 && crash_loop.crashes == crashes,
            _ => false,
        });
        if waits {
            self.record(Fact::LaunchAllowed {});
        }
    }

    /// Records that the agent wants a login. The claimed task returns to its place, without an
    /// attempt more: the queue waits for the login (DQ-13).
    fn login_wanted(&mut self, run: RunId, exit: Exit) {
        let error = exit.detail.clone();
        self.record(Fact::RunExited { run, exit });
        let Group { state, current, lock, .. } = &*self.group;
        let starts = state.crash_loop.logins().saturating_add(1);
        let task = current.as_ref().map(|current| current.task.id);
        let has_lock = task.is_some() && lock.task() == task;
        self.wait_for_login(starts, error);
        if has_lock {
            self.release_lock(false);
        }
        if let Some(task) = task {
            self.record(Fact::TaskReleased { task });
        }
    }

    /// Lets the queue wait for a login, which the agent wanted at its last `starts`.
    pub(super) fn wait_for_login(&mut self, starts: u32, error: String) {
        let agent = self.group.state.settings.agent.clone();
        let wait_ms = login_wait_ms(starts);
        let due = Deadline::after(self.now, wait_ms);
        self.record(Fact::AgentAuthRequired { agent, starts, error, wait_ms, due });
    }

    /// Stops a run whose agent or directory has changed in the settings, as soon as no attempt runs
    /// in it. A task that waits for it to start then waits for the next run.
    pub(super) fn reconcile_run(&mut self) {
        let is_outdated = self.group.run.as_ref().is_some_and(|run| run.outdated);
        if is_outdated && self.group.attempt().is_none() {
            self.stop(Stop::Gently);
        }
    }

    /// Cancels the current task and stops the run at once. Waiting tasks use the next run.
    pub(super) fn stop_run(&mut self) -> Result<(), Rejected> {
        if self.group.state.is_archived() {
            return Err(Rejected::Archived);
        }
        self.cancel_current();
        self.stop(Stop::Firmly);
        Ok(())
    }

    /// Stops the run. One that is stopping already is only stopped harder.
    pub(super) fn stop(&mut self, how: Stop) {
        if let Some(Run { id: run, phase, .. }) = self.group.run.clone()
            && (phase != RunPhase::Stopping || how != Stop::Gently)
        {
            self.void_permissions_outside();
            self.record(Fact::RunStopping { run });
            self.emit(Effect::Stop { run, how });
        }
    }

    /// Stops a run for which the group has no work.
    pub(super) fn evict(&mut self, run: RunId) {
        if self.group.is_evictable(run) {
            self.stop(Stop::Gently);
        }
    }

    /// Releases a task whose prompt was not sent: it starts after the next start of the server
    /// (DQ-11). The lock of a compaction that did not start becomes free.
    pub(super) fn drain_started(&mut self) {
        if let Some(Current { task, attempt: None }) = &self.group.current {
            let task = task.id;
            self.record(Fact::TaskReleased { task });
            self.stop(Stop::Firmly);
        }
        if self.group.attempt().is_none() {
            self.release_lock(false);
        }
    }

    /// Interrupts the running attempt.
    pub(super) fn drain_timed_out(&mut self) {
        self.drain_started();
        self.interrupt(CancelReason::Shutdown);
        if self.group.attempt().is_none() {
            self.release_lock(false);
        }
    }

    /// Stops the run, whatever it does. That is no fact: the run's exit is one, or its recovery.
    pub(super) fn drain_ended(&mut self) {
        let how = if self.group.current.is_some() { Stop::Firmly } else { Stop::Gently };
        if let Some(run) = self.group.run.as_ref().map(|run| run.id) {
            self.emit(Effect::Stop { run, how });
        }
    }

    /// Settles what ran when the server or the actor died.
    pub(super) fn recovered(&mut self, recovery: Recovery) {
        let exit = match recovery {
            Recovery::Restart => Exit::unseen(
                ExitReason::ServerRestart,
                "greenroom, or its actor for this group, was restarted",
            ),
            Recovery::Storage => {
                Exit::unseen(ExitReason::Storage, "greenroom could not store its output")
            }
        };
        self.void_permissions();
        match &self.group.current {
            Some(Current { attempt: Some(attempt), .. }) => {
                let settled = attempt.settle_by_exit(exit.reason, &exit.detail);
                self.settle(settled);
            }
            Some(Current { task, attempt: None }) => {
                let task = task.id;
                self.record(Fact::TaskReleased { task });
            }
            None => {}
        }
        self.abandon_compaction();
        if let Some(run) = self.group.run.as_ref().map(|run| run.id) {
            self.run_exited(run, exit);
        }
    }
}

impl Group {
    /// Begins a run.
    pub(super) fn apply_run_started(&mut self, id: RunId, has_detectors: bool) {
        self.run = Some(Run { has_detectors, ..Run::new(id, RunPhase::Starting) });
    }

    /// Puts the run's session in force.
    pub(super) fn apply_run_ready(
        &mut self,
        session: &SessionId,
        provenance: Option<&Provenance>,
        continuity: Continuity,
        prompts: Option<PromptCapabilities>,
    ) {
        self.state.prompts = prompts;
        let progress = match continuity {
            Continuity::New | Continuity::Lost => RunProgress::Fresh,
            Continuity::Resumed | Continuity::Loaded => RunProgress::Unsettled,
        };
        self.run.iter_mut().for_each(|run| run.progress = progress);
        let id = session.clone();
        let provenance = provenance.cloned();
        match &mut self.state.session {
            Some(known) => {
                known.id = id;
                known.provenance = provenance.or(known.provenance.take());
            }
            known => {
                let (is_fresh, is_unanswered) = (false, false);
                *known = Some(Session { id, is_fresh, is_unanswered, usage: None, provenance });
            }
        }
        // Earlier versions, whose facts lack the blocks, did not store the mark.
        if matches!(continuity, Continuity::New | Continuity::Lost) && prompts.is_some() {
            self.state.session.iter_mut().for_each(|session| session.is_unanswered = true);
        }
        self.set_phase(RunPhase::Ready);
    }

    /// Removes the run, and counts crashes in a row.
    pub(super) fn apply_run_exited(&mut self, exit: &Exit) {
        let settled = self.run.take().is_some_and(|run| run.progress == RunProgress::Settled);
        self.state.crash_loop.crashes += u32::from(!settled && exit.reason.is_crash());
        // The run may be stopped for the wait that begins.
        if exit.reason != ExitReason::AgentAuth && !self.state.crash_loop.wants_login() {
            self.state.crash_loop.forget_login();
        }
        self.recent.clear();
    }

    /// Marks the run as wedged: what it wrote in the attempt is no output.
    pub(super) fn apply_wedged(&mut self) {
        self.run.iter_mut().for_each(|run| run.health = RunHealth::Wedged);
        if let Some(Current { attempt: Some(attempt), .. }) = &mut self.current {
            attempt.discard_output();
        }
    }

    /// Sets the run's phase.
    pub(super) fn set_phase(&mut self, phase: RunPhase) {
        if let Some(run) = &mut self.run {
            run.phase = phase;
        }
    }
}

/// Returns the error of a task whose agent did not start.
fn start_error(exit: &Exit) -> TaskError {
    let mut message = format!("the agent could not be started: {}", exit.detail);
    if let Some(stderr) = last_words(&exit.stderr_tail) {
        message.push_str("; the last line of its stderr: ");
        message.push_str(stderr);
    }
    TaskError { code: "agent_start_failed".into(), message }
}

/// Returns a text of at most `bytes_max` bytes.
fn truncated(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}
