//! What each event of an agent's run leads to: from its launch over its answers to its end.

use super::{Current, scene::Scene};
use crate::{
    Continuity, Effect, EndReason, Exit, Json, PromptReply, Provenance, Run, RunId, RunPhase,
    SessionId, Stop, StopReason, TaskError, TaskId, TaskKind, TaskState, Turn, Work, Write,
};

/// JSON-RPC's code for an error inside the agent.
const INTERNAL_ERROR: i64 = -32603;
/// What a hermes that lost track answers to every prompt.
const WEDGED_ANSWER: &str = "Queued for the next turn";

impl Scene<'_> {
    /// Starts an agent. After a compaction hermes restores what it compacted under the id that ACP
    /// knows, and what goes on under its own.
    pub(super) fn launch(&mut self) {
        let run = RunId((self.fresh)());
        let head = &self.group.head;
        let (agent, listens) = (head.settings.agent.clone(), self.terms.listens);
        let own = head.provenance.as_ref().map(|known| SessionId(known.current.as_str().into()));
        let session = head.session.clone().map(|session| own.unwrap_or(session));
        self.write(Write::RunStarted { run, agent, listens });
        self.order(Effect::Launch { run, session });
    }

    /// START: everything that must be durable before the prompt's first byte (I7, SEEDS AM-2). A
    /// compaction takes command and strategy from the profile in force.
    pub(super) fn start(&mut self, task: TaskId) {
        let left = self.group.task(task).and_then(|task| task.start_within(self.now));
        if left == Some(0) {
            return self.task_expired(task);
        }
        let (Some(run), Some(session)) = (&self.group.run, self.group.head.session.clone()) else {
            return;
        };
        let run = run.id;
        if self.end_if_idle(task) {
            return;
        }
        let Some(record) = self.group.task(task) else { return };
        let work = match (&record.work, &self.terms.compaction) {
            (Work::Compaction { focus, .. }, Some(order)) => order.work(focus.clone()),
            (work, _) => work.clone(),
        };
        let strategy = match &work {
            Work::Compaction { strategy, .. } if work != record.work => Some(*strategy),
            _ => None,
        };
        let (attempt, kind, prompt) = (record.attempt + 1, record.kind(), work.prompt().clone());
        self.write(Write::TaskStarted { task, attempt, run });
        self.write(Write::TurnStarted { task, prompt: prompt.clone(), strategy });
        let prompt = match &self.group.head.lead_in {
            Some(summary) if kind == TaskKind::Turn => led(summary, &prompt),
            Some(_) | None => prompt,
        };
        let id = self.group.head.last_seq + 1;
        let sent = Write::PromptSent { id, session: session.clone(), prompt: prompt.clone() };
        self.write(sent);
        self.order(Effect::Prompt { run, id, session, prompt });
        if kind == TaskKind::Compaction {
            self.begin_ordered(task);
        }
    }

    pub(super) fn agent_ready(
        &mut self,
        run: RunId,
        pid: u32,
        session: SessionId,
        continuity: Continuity,
        provenance: Option<Provenance>,
    ) {
        // A run that was told to end as it started takes no prompt any more.
        let starting = |own: &Run| own.id == run && own.phase == RunPhase::Starting;
        if !self.group.run.as_ref().is_some_and(starting) {
            return;
        }
        let head = &self.group.head;
        // A session in which nothing was said yet, but for a summary at most that is said again,
        // has nothing to lose.
        let lost = head
            .session
            .clone()
            .filter(|_| continuity == Continuity::Lost && head.lead_in.is_none() && !head.unspoken);
        let is_lost = lost.is_some();
        if let Some(session) = lost {
            self.write(Write::ContextLost { session });
        }
        let head = &self.group.head;
        let known = head.provenance.as_ref().map(|known| &*known.current);
        let is_same = head.session.as_ref() == Some(&session) || known == Some(&*session.0);
        let given = provenance.as_ref().map(|given| &*given.current);
        let is_reset = known.zip(given).is_some_and(|(known, given)| known != given);
        if !is_same {
            self.rotate(EndReason::AgentRestart, session.clone(), provenance.clone());
        } else if is_reset {
            // AM-13: hermes restored what it compacted, under the id that ACP knows.
            self.rotate(EndReason::Reset, session.clone(), provenance.clone());
        }
        self.write(Write::RunReady { run, pid, session, continuity, provenance });
        if is_lost {
            self.hold_after_loss();
        }
        let Some(Current { task, turn: None }) = &self.group.current else { return };
        let (task, needs_lock) = (task.id, self.group.needs_lock(task));
        if self.end_if_idle(task) {
            return;
        }
        if needs_lock {
            // The session is another, and so is its lock.
            self.write(Write::TaskReleased { task });
        } else {
            self.start(task);
        }
    }

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
        if wedged.is_some() && turn.cut.is_none() {
            settled.state = TaskState::Failed;
            settled.repeatable = turn.may_repeat();
            settled.ending.error.get_or_insert_with(|| TaskError {
                code: "agent_wedged".into(),
                message: "the agent did not take the prompt, and is being restarted".into(),
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
        if !cancelled {
            return None;
        }
        match reply {
            // The cancelled prompt itself, or the next one.
            PromptReply::Failed { code: INTERNAL_ERROR, .. }
                if turn.cut.is_some() || !turn.has_output() =>
            {
                Some("internal_error_after_cancel")
            }
            PromptReply::Stopped { stop_reason: StopReason::EndTurn, .. }
                if !turn.has_tools() && turn.text().trim_start().starts_with(WEDGED_ANSWER) =>
            {
                Some("prompt_queued_after_cancel")
            }
            // It answered before it read the cancel, and will read it with no prompt in flight:
            // hermes does not survive that.
            PromptReply::Stopped { stop_reason, .. }
                if self.group.run.as_ref().is_some_and(|run| run.listens)
                    && turn.cut.is_some()
                    && *stop_reason != StopReason::Cancelled =>
            {
                Some("answered_before_cancel")
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
        let Some(Run { phase, wedged, .. }) = self.group.run.clone().filter(|own| own.id == run)
        else {
            return;
        };
        let mut exit = exit;
        if wedged {
            exit.detail = format!("it was wedged by a cancel: {}", exit.detail);
        }
        self.void_permissions();
        let settled = self.group.turn().map(|turn| turn.abandoned(exit.reason, &exit.detail));
        let unsent = self.group.current.as_ref().map(|current| current.task.id);
        if settled.is_none() {
            self.strand();
        }
        if let Some(settled) = settled {
            self.settle(settled);
            self.run_exited(run, exit);
        } else if let Some(task) = unsent {
            match phase {
                RunPhase::Starting => {
                    let error = start_failed(&exit);
                    self.run_exited(run, exit);
                    self.retry_unsent(task, error);
                }
                RunPhase::Ready | RunPhase::Stopping => {
                    self.run_exited(run, exit);
                    self.launch_again(task);
                }
            }
        } else {
            self.run_exited(run, exit);
        }
    }

    /// Starts the next run for a task that waited for the end of the last one; unless there were
    /// too many of them: then it waits in its old place.
    fn launch_again(&mut self, id: TaskId) {
        if self.group.current().is_some_and(|task| self.group.backs_off(task)) {
            self.write(Write::TaskReleased { task: id });
        } else {
            self.launch();
        }
    }
}

/// The caller's prompt with the summary before it that the session does not know yet.
fn led(summary: &str, prompt: &Json) -> Json {
    let text = format!(
        "This session continues an earlier one, which was summed up as follows:\n\n{summary}\n\n\
         Go on from there with what comes next."
    );
    let Ok(blocks) = serde_json::from_str::<Vec<Json>>(prompt.as_str()) else {
        return prompt.clone();
    };
    let Ok(lead) = Json::write(&serde_json::json!({ "type": "text", "text": text })) else {
        return prompt.clone();
    };
    let blocks: Vec<Json> = std::iter::once(lead).chain(blocks).collect();
    Json::write(&blocks).unwrap_or_else(|_| prompt.clone())
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
