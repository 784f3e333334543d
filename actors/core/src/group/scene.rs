//! What each event leads to: the decisions of a group, one method an event.

use uuid::Uuid;

use super::{Current, Expiry, Group, Rejected, Terms, retrying::exhausted};
use crate::{
    Cause, CompactionId, CompactionStatus, CutBy, Effect, Ending, Event, Exit, ExitReason, Finding,
    PromptReply, Recovery, Retry, Run, RunPhase, Said, Settings, Step, Stop, StopReason, Task,
    TaskError, TaskId, TaskKind, TaskState, Turn, Write, lock::Now, retry::Failure,
    turn::Settlement,
};

/// A group while an event is taken in: every fact is replayed as it is stated.
pub(super) struct Scene<'a> {
    pub(super) group: &'a mut Group,
    pub(super) now: Now,
    pub(super) terms: &'a Terms,
    pub(super) fresh: &'a mut dyn FnMut() -> Uuid,
    step: Step,
}

impl<'a> Scene<'a> {
    /// The scene of one event.
    pub(super) fn new(
        group: &'a mut Group,
        now: Now,
        terms: &'a Terms,
        fresh: &'a mut dyn FnMut() -> Uuid,
    ) -> Self {
        Self { group, now, terms, fresh, step: Step::default() }
    }

    /// Takes the event in. One that is rejected changes nothing.
    pub(super) fn take(mut self, event: Event) -> Result<Step, Rejected> {
        match event {
            // What a run says after its end concerns nobody (RELIABILITY 2).
            Event::AgentSaid { run, .. }
            | Event::OutputRejected { run, .. }
            | Event::StderrMatched { run, .. }
            | Event::RequestRefused { run, .. }
            | Event::PermissionAsked { run, .. }
                if !self.group.lives(run) => {}
            Event::Configured(settings) => self.configure(settings)?,
            Event::Submitted(task) => self.submit(*task)?,
            Event::CancelRequested(task) => self.cancel(task)?,
            Event::Archived => self.archive(),
            Event::PurgeOrdered => self.order_purge(),
            Event::Paused => self.pause()?,
            Event::Resumed => self.resume()?,
            Event::Stopped => self.stop_run()?,
            Event::SlotGranted => self.claim(),
            Event::LockAnswered { task, key, answer } => self.lock_answered(task, key, answer),
            Event::LockLost { task } => self.lock_lost(task),
            Event::AgentReady { run, pid, session, continuity, provenance } => {
                self.agent_ready(run, pid, session, continuity, provenance);
            }
            Event::Signalled { run, signal } => self.signalled(run, &signal),
            Event::ProvenanceGiven { run, provenance } => self.provenance_given(run, provenance),
            Event::SessionNamed { run, session } => self.session_named(run, session),
            Event::StderrMatched { run, line, signal } => {
                self.write(Write::StderrMatched { run, line });
                self.signalled(run, &signal);
            }
            Event::SessionOpened { run, id, opened } => self.session_opened(run, id, opened),
            Event::AgentSaid { run, lines, fold } => {
                let task = self.group.turn_of(run);
                self.write(Write::Said(Said { run, task, lines, fold }));
            }
            Event::OutputRejected { run, reason, bytes } => {
                self.write(Write::AgentOutputRejected { run, reason, bytes });
            }
            Event::RequestRefused { run, method } => {
                self.write(Write::RequestRefused { run, method });
            }
            Event::PermissionAsked { run, lines, asked } => {
                self.permission_asked(run, lines, *asked);
            }
            Event::PermissionAnswered { permission, choice, by } => {
                self.permission_answered(permission, choice, by)?;
            }
            Event::PromptAnswered { run, id, reply } => self.answered(run, id, reply),
            Event::AgentClosed(run) => self.agent_closed(run),
            Event::AgentExited { run, exit } => self.agent_exited(run, exit),
            Event::Expired(expiry) => self.expired(expiry),
            Event::Shutdown => {
                self.shut_down();
                return Ok(self.step);
            }
            Event::PromptWithheld { run, id } => self.prompt_withheld(run, id),
            Event::Recovered(recovery) => self.recovered(recovery),
        }
        self.see_to_run();
        self.see_to_lock();
        Ok(self.step)
    }

    pub(super) fn write(&mut self, write: Write) {
        self.group.replay(&write, self.now.wall);
        self.step.writes.push(write);
    }

    pub(super) fn order(&mut self, effect: Effect) {
        self.step.effects.push(effect);
    }

    pub(super) fn compaction_id(&mut self) -> CompactionId {
        CompactionId((self.fresh)())
    }

    /// The task whose prompt is in flight.
    pub(super) fn running(&self) -> Option<(&Task, &Turn)> {
        let current = self.group.current.as_ref()?;
        Some((&current.task, current.turn.as_ref()?))
    }

    fn configure(&mut self, settings: Settings) -> Result<(), Rejected> {
        let head = &self.group.head;
        if head.purging {
            return Err(Rejected::Purging);
        }
        if head.created_at.is_none() {
            self.write(Write::GroupCreated(settings));
            return Ok(());
        }
        let is_revived = head.archived;
        if is_revived || head.settings != settings {
            self.write(Write::GroupChanged(settings));
        }
        if is_revived {
            self.go_on();
        }
        Ok(())
    }

    /// Ends a run whose agent or directory is not the group's any more, as soon as no turn runs in
    /// it: also one that is still starting, for a task that then waits for the next run.
    fn see_to_run(&mut self) {
        let is_outdated = self.group.run.as_ref().is_some_and(|run| run.outdated);
        if is_outdated && self.group.turn().is_none() {
            self.stop(Stop::Gently);
        }
    }

    fn order_purge(&mut self) {
        if self.group.head.archived && !self.group.head.purging {
            self.write(Write::PurgeOrdered {});
        }
    }

    fn submit(&mut self, task: Task) -> Result<(), Rejected> {
        let (group, limits) = (&self.group, &self.terms.patience);
        if group.head.archived {
            return Err(Rejected::Archived);
        }
        if task.kind() == TaskKind::Compaction
            && let Some(compaction) = group.compaction()
        {
            return Err(Rejected::AlreadyCompacting(compaction.id));
        }
        let bytes = group.waiting_bytes + task.prompt().as_str().len();
        if group.waiting.len() >= limits.queue_max
            || (bytes > limits.queue_bytes_max && !group.waiting.is_empty())
        {
            return Err(Rejected::QueueFull);
        }
        if group.head.created_at.is_none() {
            let settings = group.head.settings.clone();
            self.write(Write::GroupCreated(settings));
        }
        self.accept(task);
        Ok(())
    }

    pub(super) fn accept(&mut self, task: Task) {
        let record = Box::new(Task {
            ordinal: self.group.head.tasks + 1,
            state: TaskState::Queued,
            created_at: self.now.wall,
            ..task
        });
        let (task, kind, origin) = (record.id, record.kind(), record.origin);
        self.write(Write::TaskQueued { task, kind, origin, record });
    }

    fn cancel(&mut self, id: TaskId) -> Result<(), Rejected> {
        let task = self.group.task(id).ok_or(Rejected::AlreadyTerminal)?;
        match task.state {
            TaskState::Running if task.cancel_requested => {}
            TaskState::Running => {
                let asked = self.group.turn().is_some_and(|turn| turn.cut.is_some());
                self.write(Write::CancelRequested { task: id });
                if !asked {
                    self.call_off();
                }
            }
            _ => self.end_unsent(id, TaskState::Cancelled, None),
        }
        Ok(())
    }

    fn archive(&mut self) {
        if self.group.head.created_at.is_none() {
            return;
        }
        let waiting: Vec<TaskId> = self.group.waiting.iter().map(|task| task.id).collect();
        for task in waiting {
            self.end_unsent(task, TaskState::Cancelled, None);
        }
        self.call_off_current();
        if !self.group.head.archived {
            self.write(Write::GroupArchived {});
        }
        self.stop(Stop::Firmly);
    }

    fn pause(&mut self) -> Result<(), Rejected> {
        let head = &self.group.head;
        if head.archived {
            return Err(Rejected::Archived);
        }
        if head.created_at.is_some() && !head.paused {
            self.write(Write::GroupPaused {});
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Rejected> {
        if self.group.head.archived {
            return Err(Rejected::Archived);
        }
        self.go_on();
        Ok(())
    }

    /// Nothing stands against the group's work any more but its agent.
    fn go_on(&mut self) {
        let head = &self.group.head;
        let waits = head.paused || head.held.is_some();
        if waits || head.crashes > 0 || head.interruptions > 0 {
            self.write(Write::GroupResumed {});
        }
    }

    /// Ends the run now; what runs in it is cancelled, what waits goes on in the next run.
    fn stop_run(&mut self) -> Result<(), Rejected> {
        if self.group.head.archived {
            return Err(Rejected::Archived);
        }
        self.call_off_current();
        self.stop(Stop::Firmly);
        Ok(())
    }

    /// Cancels the current task, for somebody who ends its run as well.
    fn call_off_current(&mut self) {
        let Some(Current { task, turn }) = &self.group.current else { return };
        let (asked, task, is_sent) = (task.cancel_requested, task.id, turn.is_some());
        if !is_sent {
            self.end_unsent(task, TaskState::Cancelled, None);
        } else if !asked {
            self.write(Write::CancelRequested { task });
            self.cancel_permissions();
        }
    }

    /// Gives the slot to the next task, and starts it if its agent is ready.
    fn claim(&mut self) {
        if !self.group.wants_slot() {
            return;
        }
        let Some(next) = self.group.waiting.front() else { return };
        let task = next.id;
        if next.start_within(self.now) == Some(0) {
            return self.task_expired(task);
        }
        if self.end_if_idle(task) {
            return;
        }
        match &self.group.run {
            Some(Run { phase: RunPhase::Ready, .. }) => self.start(task),
            Some(Run { phase: RunPhase::Starting | RunPhase::Stopping, .. }) => {
                self.write(Write::TaskClaimed { task });
            }
            None => {
                self.write(Write::TaskClaimed { task });
                self.launch();
            }
        }
    }

    fn expired(&mut self, expiry: Expiry) {
        match expiry {
            Expiry::Turn(task) if self.group.current().is_some_and(|own| own.id == task) => {
                self.cut(CutBy::Deadline);
            }
            Expiry::Cancel(task) if self.group.current().is_some_and(|own| own.id == task) => {
                self.stop(Stop::Firmly);
            }
            Expiry::Idle(run, seq)
                if self.group.current.is_none()
                    && self.group.head.last_seq == seq
                    && self.group.run.as_ref().is_some_and(|own| own.id == run) =>
            {
                self.stop(Stop::Gently);
            }
            Expiry::Compaction(id) => self.compaction_expired(id),
            Expiry::Lock(task, tries) => self.lock_expired(task, tries),
            Expiry::Permission(id) => self.permission_expired(id),
            Expiry::Backoff(task, attempt) => self.backoff_ended(task, attempt),
            Expiry::Launch(crashes) => self.launch_allowed(crashes),
            Expiry::Queued(task) => self.task_expired(task),
            Expiry::Turn(_) | Expiry::Cancel(_) | Expiry::Idle(..) => {}
        }
    }

    pub(super) fn cut(&mut self, by: CutBy) {
        let Some(task) = self.group.current().map(|task| task.id) else { return };
        if self.group.turn().is_none_or(|turn| turn.cut.is_some()) {
            return;
        }
        let cause = match by {
            CutBy::Deadline => Cause::Deadline,
            CutBy::Caller | CutBy::Shutdown => Cause::ServerRestart,
        };
        self.write(Write::TurnCut { task, cause });
        // Its silence must not look like work until the ladder has ended it (AM-28).
        self.strand();
        self.call_off();
    }

    /// Has the agent give up the running prompt. If it answered that already and is opening another
    /// session, there is none to give up.
    fn call_off(&mut self) {
        match self.group.turn() {
            Some(Turn { opening: Some(_), .. }) => {
                let stopped =
                    PromptReply::Stopped { stop_reason: StopReason::Cancelled, tokens: None };
                if let Some(settled) = self.group.turn().map(|turn| turn.answered(stopped)) {
                    self.settle(settled);
                }
            }
            Some(_) => {
                self.order_cancel();
                self.cancel_permissions();
            }
            None => {}
        }
    }

    /// A task whose prompt was not sent keeps its place; the running one is cut off.
    fn shut_down(&mut self) {
        match &self.group.current {
            Some(Current { task, turn: None }) => {
                let task = task.id;
                self.write(Write::TaskReleased { task });
                self.stop(Stop::Firmly);
            }
            Some(_) => self.cut(CutBy::Shutdown),
            None => {}
        }
        if self.group.turn().is_none() {
            self.release_lock(false);
        }
    }

    fn recovered(&mut self, recovery: Recovery) {
        let exit = match recovery {
            Recovery::Restart => Exit::unseen(
                ExitReason::ServerRestart,
                "greenroom, or its part for this group, was restarted",
            ),
            Recovery::Storage => {
                Exit::unseen(ExitReason::Storage, "what it did could not be stored")
            }
        };
        self.void_permissions();
        match &self.group.current {
            Some(Current { turn: Some(turn), .. }) => {
                let settled = turn.abandoned(exit.reason, &exit.detail);
                self.settle(settled);
            }
            Some(Current { task, turn: None }) => {
                let task = task.id;
                self.write(Write::TaskReleased { task });
            }
            None => {}
        }
        self.strand();
        if let Some(run) = self.group.run.as_ref().map(|run| run.id) {
            self.run_exited(run, exit);
        }
    }

    /// The order of SEEDS AM-3, in one step: open permissions, a stranded compaction, the turn, its
    /// task, and what the turn calls for.
    pub(super) fn settle(&mut self, settled: Settlement) {
        let Some(task) = self.running().map(|(task, _)| task.id) else { return };
        self.void_permissions_of(task);
        let Some((task, turn)) = self.running() else { return };
        // codex tells of a failed compaction in a message, behind its warnings, and nothing else.
        let text = turn.text().trim();
        let is_excuse = self.group.recent.of(task.id).any(|own| {
            let error = own.details.error.as_deref().map(str::trim);
            let ends_with = |error: &str| !error.is_empty() && text.ends_with(error);
            own.status == CompactionStatus::Failed && error.is_some_and(ends_with)
        });
        let has_answer = turn.has_tools() || (turn.has_answer() && !is_excuse);
        let task = task.clone();
        let mut settled = match task.kind() {
            TaskKind::Turn => settled,
            TaskKind::Compaction => self.settle_ordered(&task, settled),
        };
        // An `end_turn` alone is no proof of an answer.
        let is_empty = settled.stop_reason == StopReason::EndTurn && !has_answer;
        if task.kind() == TaskKind::Turn && is_empty && settled.state == TaskState::Completed {
            settled.ending.findings.push(Finding::EmptyAnswer);
        }
        self.strand();
        self.release_lock(false);
        let Settlement { stop_reason, mut state, mut ending, tokens, repeatable } = settled;
        self.write(Write::TurnSettled { task: task.id, stop_reason, tokens });
        // What an agent did on a command that it answers only in the end, nobody knows.
        if repeatable
            && task.kind() == TaskKind::Turn
            && let Some(error) = &ending.error
        {
            if self.retry(task.id, task.attempt, Failure::NoOutput, error) {
                return;
            }
            if self.terms.retry == Retry::NoOutput {
                (state, ending) = exhausted(ending, task.attempt);
            }
        }
        let is_past = self.group.turn().is_some_and(|turn| turn.past);
        self.end(task.id, task.attempt, state, ending);
        if state == TaskState::Interrupted && is_past {
            self.forget_interruption();
        } else if state == TaskState::Interrupted {
            self.hold_after_interruption();
        }
        if task.kind() == TaskKind::Turn {
            self.order_compaction();
        }
    }

    pub(super) fn end_unsent(&mut self, task: TaskId, state: TaskState, error: Option<TaskError>) {
        let Some(attempt) = self.group.task(task).map(|task| task.attempt) else { return };
        self.end(task, attempt, state, Ending { error, ..Ending::default() });
    }

    pub(super) fn end(&mut self, id: TaskId, attempt: u32, state: TaskState, ending: Ending) {
        if self.group.lock.task() == Some(id) {
            self.release_lock(false);
        }
        let Some(task) = self.group.task(id) else { return };
        let record = Box::new(Task {
            state,
            attempt,
            retry_at: None,
            ended_at: Some(self.now.wall),
            seq_last: Some(self.group.head.last_seq + 1),
            ending,
            ..task.clone()
        });
        let kind = record.kind();
        let error = record.ending.error.as_ref().map(|error| error.code.clone());
        self.write(Write::TaskEnded {
            task: id,
            kind,
            attempt,
            state,
            stop_reason: record.ending.stop_reason,
            error: record.ending.error.clone(),
            interrupted: record.ending.interrupted.clone(),
            findings: record.ending.findings.clone(),
            record,
        });
        if kind == TaskKind::Compaction {
            self.rest_after(state, error.as_deref());
        }
    }

    /// A cancel is only ever sent while a prompt is in flight: an idle hermes does not survive it.
    fn order_cancel(&mut self) {
        if let (Some(run), Some(session)) = (&self.group.run, &self.group.head.session) {
            let (run, session) = (run.id, session.clone());
            self.write(Write::CancelSent { run });
            self.order(Effect::Cancel { run, session });
        }
    }

    pub(super) fn stop(&mut self, how: Stop) {
        if let Some(Run { id: run, phase, .. }) = self.group.run.clone()
            && (phase != RunPhase::Stopping || how == Stop::Firmly)
        {
            self.void_permissions_outside();
            self.write(Write::RunStopping { run });
            self.order(Effect::Stop { run, how });
        }
    }
}
