//! How turns, tasks and runs end: each exactly once, by whatever comes first (I9, SEEDS AM-3).

use super::{Current, scene::Scene};
use crate::{
    Cause, CutBy, Ending, Exit, ExitReason, Finding, PromptReply, Run, RunId, RunPhase, Stop,
    StopReason, Task, TaskError, TaskId, TaskKind, TaskState, Turn, Write, turn::Settlement,
};

/// JSON-RPC's code for an error inside the agent.
const INTERNAL_ERROR: i64 = -32603;
/// What a hermes that lost track answers to every prompt.
const WEDGED_ANSWER: &str = "Queued for the next turn";

impl Scene<'_> {
    pub(super) fn answered(&mut self, run: RunId, id: u64, reply: PromptReply) {
        let Some(turn) = self.group.turn() else { return };
        if turn.run != run || turn.prompt_id != id || turn.opening.is_some() {
            return;
        }
        let wedged = self.wedged(turn, &reply);
        if let Some(sign) = wedged {
            self.write(Write::AgentWedged { run, sign: sign.into() });
        } else if self.open_rotation(&reply) {
            return;
        }
        let Some(turn) = self.group.turn() else { return };
        let mut settled = turn.answered(reply);
        if wedged.is_some() {
            settled.state = TaskState::Failed;
            settled.ending.error.get_or_insert_with(|| TaskError {
                code: "agent_wedged".into(),
                message: "the agent did not take the prompt, and is being restarted; send it again"
                    .into(),
            });
        }
        self.settle(settled);
        if wedged.is_some() {
            self.stop(Stop::Gently);
        }
    }

    /// By what a hermes shows that it lost track after a cancel: only another process cures that.
    fn wedged(&self, turn: &Turn, reply: &PromptReply) -> Option<&'static str> {
        let cancelled = self.group.run.as_ref().is_some_and(|run| run.cancelled);
        if !cancelled || turn.cut.is_some() {
            return None;
        }
        match reply {
            PromptReply::Failed { code: INTERNAL_ERROR, .. } if !turn.has_output() => {
                Some("internal_error_after_cancel")
            }
            PromptReply::Stopped { stop_reason: StopReason::EndTurn, .. }
                if !turn.has_tools() && turn.text().trim_start().starts_with(WEDGED_ANSWER) =>
            {
                Some("prompt_queued_after_cancel")
            }
            PromptReply::Failed { .. } | PromptReply::Stopped { .. } => None,
        }
    }

    pub(super) fn agent_closed(&mut self, run: RunId) {
        let ready = |own: &Run| own.id == run && own.phase == RunPhase::Ready;
        if self.group.run.as_ref().is_some_and(ready) {
            self.write(Write::RunStopping { run });
        }
    }

    pub(super) fn agent_exited(&mut self, run: RunId, exit: Exit) {
        let Some(Run { phase, .. }) = self.group.run.clone().filter(|own| own.id == run) else {
            return;
        };
        let settled = self.group.turn().map(|turn| turn.abandoned(exit.reason, &exit.detail));
        let unsent = self.group.current.as_ref().map(|current| current.task.id);
        if settled.is_none() {
            self.strand();
        }
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
                    self.launch();
                }
            }
        } else {
            self.write(Write::RunExited { run, exit });
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
    pub(super) fn call_off(&mut self) {
        match self.group.turn() {
            Some(Turn { opening: Some(_), .. }) => {
                let stopped =
                    PromptReply::Stopped { stop_reason: StopReason::Cancelled, tokens: None };
                if let Some(settled) = self.group.turn().map(|turn| turn.answered(stopped)) {
                    self.settle(settled);
                }
            }
            Some(_) => self.order_cancel(),
            None => {}
        }
    }

    /// A task whose prompt was not sent keeps its place; the running one is cut off.
    pub(super) fn shut_down(&mut self) {
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

    pub(super) fn recovered(&mut self) {
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
        self.strand();
        if let Some(run) = self.group.run.as_ref().map(|run| run.id) {
            self.write(Write::RunExited { run, exit });
        }
    }

    /// The order of SEEDS AM-3, in one step: a stranded compaction, the turn, its task, and what
    /// the turn calls for.
    pub(super) fn settle(&mut self, settled: Settlement) {
        let Some((task, turn)) = self.running() else { return };
        let (task, has_answer) = (task.clone(), turn.has_answer());
        let mut settled = match task.kind() {
            TaskKind::Turn => settled,
            TaskKind::Compaction => self.settle_ordered(&task, settled),
        };
        let is_empty = settled.state == TaskState::Completed && !has_answer;
        if task.kind() == TaskKind::Turn && is_empty {
            settled.ending.findings.push(Finding::EmptyAnswer);
        }
        self.strand();
        self.release_lock(false);
        let Settlement { stop_reason, state, ending } = settled;
        self.write(Write::TurnSettled { task: task.id, stop_reason });
        self.end(task.id, state, ending);
        if task.kind() == TaskKind::Turn {
            self.order_compaction();
        }
    }

    pub(super) fn end_unsent(&mut self, task: TaskId, state: TaskState, error: Option<TaskError>) {
        self.end(task, state, Ending { error, ..Ending::default() });
    }

    fn end(&mut self, id: TaskId, state: TaskState, ending: Ending) {
        if self.group.lock.task() == Some(id) {
            self.release_lock(false);
        }
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
            findings: record.ending.findings.clone(),
            record,
        });
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
