//! What each event leads to: the decisions of a group, one method an event.

use super::{Current, Expiry, Group, Patience, Rejected};
use crate::{
    Answer, Cause, Continuity, CutBy, Effect, Ending, Event, Exit, ExitReason, Fold, Lines,
    Permission, PromptReply, Run, RunId, RunPhase, Said, SessionId, Settings, Step, Stop, Task,
    TaskError, TaskId, TaskKind, TaskState, Timestamp, Write, turn::Settlement,
};

/// A group while an event is taken in: every fact is replayed as it is stated.
pub(super) struct Scene<'a> {
    group: &'a mut Group,
    now: Timestamp,
    step: Step,
}

impl<'a> Scene<'a> {
    /// The scene of one event.
    pub(super) fn new(group: &'a mut Group, now: Timestamp) -> Self {
        Self { group, now, step: Step::default() }
    }

    /// Takes the event in. One that is rejected changes nothing.
    pub(super) fn take(mut self, event: Event, limits: &Patience) -> Result<Step, Rejected> {
        match event {
            // What a run says after its end concerns nobody (RELIABILITY 2).
            Event::AgentSaid { run, .. }
            | Event::OutputRejected { run, .. }
            | Event::PermissionAsked { run, .. }
                if !self.group.lives(run) => {}
            Event::Configured(settings) => self.configure(settings)?,
            Event::Submitted(task) => self.submit(*task, limits)?,
            Event::CancelRequested(task) => self.cancel(task)?,
            Event::Archived => self.archive(),
            Event::PurgeOrdered => self.order_purge(),
            Event::Paused => self.pause(true)?,
            Event::Resumed => self.pause(false)?,
            Event::Stopped => self.stop_run()?,
            Event::SlotGranted { fresh } => self.claim(fresh),
            Event::AgentReady { run, pid, session, continuity } => {
                self.agent_ready(run, pid, session, continuity);
            }
            Event::AgentSaid { run, lines, fold } => {
                let task = self.group.turn_of(run);
                self.write(Write::Said(Said { run, task, lines, fold }));
            }
            Event::OutputRejected { run, reason, bytes } => {
                self.write(Write::AgentOutputRejected { run, reason, bytes });
            }
            Event::PermissionAsked { run, lines, permission } => {
                self.reject_permission(run, lines, permission);
            }
            Event::PromptAnswered { run, id, reply } => self.answered(run, id, reply),
            Event::AgentClosed(run) => self.agent_closed(run),
            Event::AgentExited { run, exit, fresh } => self.agent_exited(run, exit, fresh),
            Event::Expired(expiry) => self.expired(expiry),
            Event::Shutdown => self.shut_down(),
            Event::Recovered => self.recovered(),
        }
        Ok(self.step)
    }

    fn write(&mut self, write: Write) {
        self.group.replay(&write, self.now);
        self.step.writes.push(write);
    }

    fn order(&mut self, effect: Effect) {
        self.step.effects.push(effect);
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
        if head.archived || head.settings != settings {
            self.write(Write::GroupChanged(settings));
        }
        if self.group.current.is_none() && self.group.run.as_ref().is_some_and(|run| run.outdated) {
            self.stop(Stop::Gently);
        }
        Ok(())
    }

    fn order_purge(&mut self) {
        if self.group.head.archived && !self.group.head.purging {
            self.write(Write::PurgeOrdered {});
        }
    }

    fn submit(&mut self, task: Task, limits: &Patience) -> Result<(), Rejected> {
        let group = &self.group;
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
        let record = Box::new(Task {
            ordinal: self.group.head.tasks + 1,
            state: TaskState::Queued,
            created_at: self.now,
            ..task
        });
        let (task, kind, origin) = (record.id, record.kind(), record.origin);
        self.write(Write::TaskQueued { task, kind, origin, record });
        Ok(())
    }

    fn cancel(&mut self, id: TaskId) -> Result<(), Rejected> {
        let task = self.group.task(id).ok_or(Rejected::AlreadyTerminal)?;
        match task.state {
            TaskState::Running if task.cancel_requested => {}
            TaskState::Running => {
                let asked = self.group.turn_of_current().is_some_and(|turn| turn.cut.is_some());
                self.write(Write::CancelRequested { task: id });
                if !asked {
                    self.order_cancel();
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

    fn pause(&mut self, paused: bool) -> Result<(), Rejected> {
        if self.group.head.archived {
            return Err(Rejected::Archived);
        }
        let head = &self.group.head;
        if head.created_at.is_some() && head.paused != paused {
            self.write(if paused { Write::GroupPaused {} } else { Write::GroupResumed {} });
        }
        Ok(())
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
        }
    }

    /// Gives the slot to the next task, and starts it if its agent is ready.
    fn claim(&mut self, fresh: RunId) {
        if !self.group.wants_slot() {
            return;
        }
        let Some(next) = self.group.waiting.front() else { return };
        let task = next.id;
        if next.kind() == TaskKind::Compaction && self.group.head.session.is_none() {
            return self.end_unsent(task, TaskState::Skipped, None);
        }
        match &self.group.run {
            Some(Run { outdated: true, .. }) => {
                self.write(Write::TaskClaimed { task });
                self.stop(Stop::Gently);
            }
            Some(Run { phase: RunPhase::Ready, .. }) => self.start(task),
            Some(Run { phase: RunPhase::Starting | RunPhase::Stopping, .. }) => {
                self.write(Write::TaskClaimed { task });
            }
            None => {
                self.write(Write::TaskClaimed { task });
                self.launch(fresh);
            }
        }
    }

    fn launch(&mut self, run: RunId) {
        let agent = self.group.head.settings.agent.clone();
        self.write(Write::RunStarted { run, agent });
        self.order(Effect::Launch { run, session: self.group.head.session.clone() });
    }

    /// START: everything that must be durable before the prompt's first byte (I7, SEEDS AM-2).
    fn start(&mut self, task: TaskId) {
        let (Some(run), Some(session)) = (&self.group.run, self.group.head.session.clone()) else {
            return;
        };
        let run = run.id;
        let Some(record) = self.group.task(task) else { return };
        let (attempt, prompt) = (record.attempt + 1, record.prompt().clone());
        self.write(Write::TaskStarted { task, attempt, run });
        self.write(Write::TurnStarted { task, prompt: prompt.clone() });
        let id = self.group.head.last_seq + 1;
        let sent = Write::PromptSent { id, session: session.clone(), prompt: prompt.clone() };
        self.write(sent);
        self.order(Effect::Prompt { run, id, session, prompt });
    }

    fn agent_ready(&mut self, run: RunId, pid: u32, session: SessionId, continuity: Continuity) {
        // A run that was told to end as it started takes no prompt any more.
        let starting = |own: &Run| own.id == run && own.phase == RunPhase::Starting;
        if !self.group.run.as_ref().is_some_and(starting) {
            return;
        }
        if continuity == Continuity::Lost
            && let Some(lost) = self.group.head.session.clone()
        {
            self.write(Write::ContextLost { session: lost });
        }
        if self.group.head.session.as_ref() != Some(&session) {
            let segment = self.group.head.segment;
            if segment > 0 {
                self.write(Write::SegmentEnded { segment, end_reason: "agent_restart" });
            }
            self.write(Write::SegmentStarted { segment: segment + 1, session: session.clone() });
        }
        self.write(Write::RunReady { run, pid, session, continuity });
        if let Some(Current { task, turn: None }) = &self.group.current {
            let task = task.id;
            self.start(task);
        }
    }

    fn reject_permission(&mut self, run: RunId, lines: Lines, permission: Permission) {
        let task = self.group.turn_of(run);
        let fold = Fold { output: true, ..Fold::default() };
        self.write(Write::Said(Said { run, task, lines, fold }));
        // A turn that is being cut off is answered as ACP says, not by the policy.
        let cut = self.group.turn_of_current().is_some_and(|turn| turn.cut.is_some());
        let (request, selected) = (permission.id, permission.reject.filter(|_| !cut));
        self.write(Write::PermissionResolved {
            request: request.clone(),
            selected: selected.clone(),
            resolved_by: "policy",
        });
        self.order(Effect::Answer { run, answer: Answer { request, selected } });
    }

    fn answered(&mut self, run: RunId, id: u64, reply: PromptReply) {
        let settled = self
            .group
            .turn_of_current()
            .filter(|turn| turn.run == run && turn.prompt_id == id)
            .map(|turn| turn.answered(reply));
        if let Some(settled) = settled {
            self.settle(settled);
        }
    }

    fn agent_closed(&mut self, run: RunId) {
        let ready = |own: &Run| own.id == run && own.phase == RunPhase::Ready;
        if self.group.run.as_ref().is_some_and(ready) {
            self.write(Write::RunStopping { run });
        }
    }

    fn agent_exited(&mut self, run: RunId, exit: Exit, fresh: RunId) {
        let Some(Run { phase, .. }) = self.group.run.clone().filter(|own| own.id == run) else {
            return;
        };
        let settled =
            self.group.turn_of_current().map(|turn| turn.abandoned(exit.reason, &exit.detail));
        let unsent = self.group.current.as_ref().map(|current| current.task.id);
        if let Some(settled) = settled {
            self.settle(settled);
            self.write(Write::RunExited { run, exit });
        } else if let Some(task) = unsent {
            match phase {
                RunPhase::Starting => {
                    let error = start_failed(&exit);
                    self.write(Write::RunExited { run, exit });
                    self.end_unsent(task, TaskState::Failed, Some(error));
                }
                RunPhase::Ready | RunPhase::Stopping => {
                    self.write(Write::RunExited { run, exit });
                    self.launch(fresh);
                }
            }
        } else {
            self.write(Write::RunExited { run, exit });
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
            Expiry::Turn(_) | Expiry::Cancel(_) | Expiry::Idle(..) => {}
        }
    }

    fn cut(&mut self, by: CutBy) {
        let Some(task) = self.group.current().map(|task| task.id) else { return };
        if self.group.turn_of_current().is_none_or(|turn| turn.cut.is_some()) {
            return;
        }
        let cause = match by {
            CutBy::Deadline => Cause::Deadline,
            CutBy::Caller | CutBy::Shutdown => Cause::ServerRestart,
        };
        self.write(Write::TurnCut { task, cause });
        self.order_cancel();
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
    }

    fn recovered(&mut self) {
        let exit = Exit::unseen(
            ExitReason::ServerRestart,
            "greenroom, or its part for this group, was restarted",
        );
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
        if let Some(run) = self.group.run.as_ref().map(|run| run.id) {
            self.write(Write::RunExited { run, exit });
        }
    }

    /// The order of SEEDS AM-3, in one step: the turn, then its task.
    fn settle(&mut self, settled: Settlement) {
        let Some(task) = self.group.current().map(|task| task.id) else { return };
        let Settlement { stop_reason, state, ending } = settled;
        self.write(Write::TurnSettled { task, stop_reason });
        self.end(task, state, ending);
    }

    fn end_unsent(&mut self, task: TaskId, state: TaskState, error: Option<TaskError>) {
        self.end(task, state, Ending { error, ..Ending::default() });
    }

    fn end(&mut self, id: TaskId, state: TaskState, ending: Ending) {
        let Some(task) = self.group.task(id) else { return };
        let record = Box::new(Task {
            state,
            ended_at: Some(self.now),
            seq_last: Some(self.group.head.last_seq + 1),
            ending,
            ..task.clone()
        });
        self.write(Write::TaskEnded {
            task: id,
            state,
            stop_reason: record.ending.stop_reason,
            error: record.ending.error.clone(),
            interrupted: record.ending.interrupted.clone(),
            record,
        });
    }

    /// A cancel is only ever sent while a prompt is in flight: an idle hermes does not survive it.
    fn order_cancel(&mut self) {
        if let (Some(run), Some(session)) = (&self.group.run, &self.group.head.session) {
            let (run, session) = (run.id, session.clone());
            self.order(Effect::Cancel { run, session });
        }
    }

    fn stop(&mut self, how: Stop) {
        if let Some(Run { id: run, phase, .. }) = self.group.run.clone()
            && (phase != RunPhase::Stopping || how == Stop::Firmly)
        {
            self.write(Write::RunStopping { run });
            self.order(Effect::Stop { run, how });
        }
    }
}

fn start_failed(exit: &Exit) -> TaskError {
    let stderr = exit.stderr_tail.lines().last().unwrap_or_default();
    let mut message = format!("the agent could not be started: {}", exit.detail);
    if !stderr.is_empty() {
        message.push_str("; its last words on stderr: ");
        message.push_str(stderr);
    }
    TaskError { code: "agent_start_failed".into(), message }
}
