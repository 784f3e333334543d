//! The running prompt: sent, cancelled, interrupted, answered, settled.

use super::{Current, Group, decide::Transition, retry::PROMPT_WITHHELD};
use crate::{
    AgentOutput, Attempt, CancelReason, Cause, CompactionStatus, Deadline, Effect, EndState,
    Ending, Fact, Json, OutputSummary, PromptReply, RetryPolicy, RunHealth, RunId, RunProgress,
    Stop, StopReason, Strategy, Task, TaskError, TaskId, TaskKind, Work,
    attempt::{Settlement, fail_exhausted},
    retry::FailureKind,
};

/// JSON-RPC's code for an error inside the agent.
const INTERNAL_ERROR: i64 = -32603;

impl Transition<'_> {
    /// Starts a task (START): records what must be durable before the prompt's first byte (I7,
    /// AM-2). A compaction takes command and strategy from the profile in force.
    pub(super) fn start(&mut self, task: TaskId) {
        let left = self.group.task(task).and_then(|task| task.start_within(self.now));
        if left == Some(0) {
            return self.task_expired(task);
        }
        let (Some(run), Some(session)) = (&self.group.run, self.group.state.session_id().cloned())
        else {
            return;
        };
        let run = run.id;
        if self.end_if_nothing_to_do(task) {
            return;
        }
        if self.end_if_unsupported(task) {
            return;
        }
        let Some(record) = self.group.task(task) else { return };
        let work = match (&record.work, &self.settings.compaction) {
            (Work::Compaction { focus, .. }, Some(order)) => order.work(focus.clone()),
            (work, _) => work.clone(),
        };
        let strategy = match &work {
            Work::Compaction { strategy, .. } if work != record.work => Some(*strategy),
            _ => None,
        };
        let (attempt, kind, prompt) = (record.attempt + 1, record.kind(), work.prompt().clone());
        self.record(Fact::TaskStarted { task, attempt, run });
        let after_restore = self.group.may_replay();
        self.record(Fact::TurnStarted { task, prompt: prompt.clone(), strategy, after_restore });
        let prompt = match &self.group.state.pending_summary {
            Some(summary) if kind == TaskKind::Turn => with_summary(summary, &prompt),
            Some(_) | None => prompt,
        };
        let id = self.record(Fact::PromptSent { session: session.clone(), prompt });
        self.emit(Effect::Prompt { run, id, session });
        if kind == TaskKind::Compaction {
            self.begin_ordered(task);
        }
    }

    /// Interrupts the running attempt, unless it is being cancelled already.
    pub(super) fn interrupt(&mut self, reason: CancelReason) {
        let Some(task) = self.group.current().map(|task| task.id) else { return };
        if self.group.attempt().is_none_or(|attempt| attempt.cancel_reason.is_some()) {
            return;
        }
        let cause = match reason {
            CancelReason::Deadline => Cause::Deadline,
            CancelReason::Caller | CancelReason::Shutdown => Cause::ServerRestart,
        };
        self.record(Fact::TurnCut { task, cause });
        // An agent that is being stopped must not show as compacting (AM-28).
        self.abandon_compaction();
        self.cancel_prompt();
    }

    /// Asks the agent to stop the running prompt. If it has answered that and is opening another
    /// session, settles the attempt as cancelled instead.
    pub(super) fn cancel_prompt(&mut self) {
        match self.group.attempt() {
            Some(Attempt { opening: Some(_), .. }) => {
                let stopped =
                    PromptReply::Stopped { stop_reason: StopReason::Cancelled, tokens: None };
                if let Some(settled) =
                    self.group.attempt().map(|attempt| attempt.settle_by_reply(stopped))
                {
                    self.settle(settled);
                }
            }
            Some(_) => {
                self.send_cancel();
                self.cancel_permissions();
            }
            None => {}
        }
    }

    /// Sends a cancel. Call it only while a prompt is in flight: not every idle agent survives one.
    pub(super) fn send_cancel(&mut self) {
        if let (Some(run), Some(session)) = (&self.group.run, self.group.state.session_id()) {
            let (run, session) = (run.id, session.clone());
            self.record(Fact::CancelSent { run });
            self.emit(Effect::Cancel { run, session });
        }
    }

    /// Records the agent's response, and settles the attempt by it or continues a rotation. Stops a
    /// wedged agent.
    pub(super) fn prompt_answered(
        &mut self,
        run: RunId,
        id: u64,
        reply: PromptReply,
        response: Option<Json>,
    ) {
        let Some(attempt) = self.group.attempt() else { return };
        if attempt.run != run || attempt.prompt_id != id || attempt.opening.is_some() {
            return;
        }
        let wedged_sign = self.wedged_sign(attempt, &reply);
        let logins = self.group.state.crash_loop.logins();
        if let Some(response) = response {
            self.record(Fact::PromptAnswered(response));
        }
        self.follow_agent(&reply);
        if let Some(sign) = wedged_sign {
            self.record(Fact::AgentWedged { run, sign: sign.into() });
        } else if self.open_rotation(&reply) {
            return;
        }
        let Some(attempt) = self.group.attempt() else { return };
        let mut settled = attempt.settle_by_reply(reply);
        let wants_login =
            settled.wants_login && settled.state == EndState::Failed && wedged_sign.is_none();
        let error = settled.ending.error.as_ref().map(|error| error.message.clone());
        if wedged_sign.is_some() && attempt.cancel_reason.is_none() {
            settled.state = EndState::Failed;
            settled.retryable = attempt.is_retryable();
            settled.ending.error.get_or_insert_with(|| TaskError {
                code: "agent_wedged".into(),
                message: "the agent did not accept the prompt; greenroom restarts it".into(),
            });
        }
        self.settle(settled);
        if wants_login {
            self.wait_for_login(logins + 1, error.unwrap_or_default());
        }
        // A start may find the login. It may not restore what only this run knows.
        if wedged_sign.is_some() || (wants_login && !self.group.is_forgetful()) {
            self.stop(Stop::Gently);
        }
    }

    /// Returns the sign that the agent is wedged after a cancel: only a new run helps then. Only
    /// hermes is known to be, whose detectors a profile names; another agent just failed.
    pub(super) fn wedged_sign(
        &self,
        attempt: &Attempt,
        reply: &PromptReply,
    ) -> Option<&'static str> {
        let run = self.group.run.as_ref()?;
        if !run.has_detectors || run.health != RunHealth::Cancelled {
            return None;
        }
        match reply {
            // The cancelled prompt itself, or the next one.
            PromptReply::Failed { code: INTERNAL_ERROR, .. }
                if attempt.cancel_reason.is_some() || !attempt.has_output() =>
            {
                Some("internal_error_after_cancel")
            }
            PromptReply::Queued { .. } => Some("prompt_queued_after_cancel"),
            // The agent answered before it read the cancel, and will read it while no prompt is in
            // flight. It does not survive that.
            PromptReply::Stopped { stop_reason, .. }
                if attempt.cancel_reason.is_some() && *stop_reason != StopReason::Cancelled =>
            {
                Some("answered_before_cancel")
            }
            PromptReply::Failed { .. }
            | PromptReply::Stopped { .. }
            | PromptReply::Unclear { .. } => None,
        }
    }

    /// Settles the attempt in the order of AM-3, in one step: open permissions, a stranded
    /// compaction, the turn, its task, and an automatic compaction.
    pub(super) fn settle(&mut self, settled: Settlement) {
        let Some(task) = self.running().map(|(task, _)| task.id) else { return };
        self.void_permissions_of(task);
        let Some((task, attempt)) = self.running() else { return };
        // The last words may only repeat why a compaction failed, after the agent's warnings.
        let text = attempt.text().trim();
        let is_failure_report = self.group.recent.of(task.id).any(|compaction| {
            let error = compaction.details.error.as_deref().map(str::trim);
            let ends_with = |error: &str| !error.is_empty() && text.ends_with(error);
            compaction.status == CompactionStatus::Failed && error.is_some_and(ends_with)
        });
        let has_answer = attempt.has_tools() || (attempt.has_answer() && !is_failure_report);
        let is_summary = self.is_answered_by_compaction(task, attempt, &settled);
        let task = task.clone();
        let is_answered_late = self.group.is_answered_late(settled.stop_reason);
        let mut settled = match task.kind() {
            TaskKind::Turn => settled,
            TaskKind::Compaction => self.settle_ordered(&task, settled),
        };
        // An `end_turn` alone is no proof of an answer, and an unclear stop reason is none either.
        let proves_none =
            settled.stop_reason == StopReason::EndTurn || settled.stop_reason.is_unclear();
        let is_empty = proves_none && !has_answer && !is_answered_late;
        if is_answered_late {
            self.group.message_owners.answer(&mut settled.ending);
        }
        if task.kind() == TaskKind::Turn && is_empty && settled.state == EndState::Completed {
            settled.ending.findings.has_empty_answer = true;
        }
        settled.ending.findings.is_answered_by_compaction = is_summary && !is_answered_late;
        self.abandon_compaction();
        self.release_lock(false);
        let Settlement { stop_reason, mut state, mut ending, tokens, retryable, .. } = settled;
        let early_bytes = self.group.message_owners.early_bytes();
        self.record(Fact::TurnSettled { task: task.id, stop_reason, tokens, early_bytes });
        // A compaction is not retried: the agent may have acted on its command without output.
        if retryable
            && task.kind() == TaskKind::Turn
            && let Some(error) = &ending.error
        {
            if self.retry(task.id, task.attempt, FailureKind::NoOutput, error) {
                return;
            }
            if self.settings.retry == RetryPolicy::NoOutput {
                (state, ending) = fail_exhausted(ending, task.attempt);
            }
        }
        let is_archived = self.group.attempt().is_some_and(|attempt| attempt.is_archived);
        self.end(task.id, task.attempt, state, ending);
        if state == EndState::Interrupted && is_archived {
            self.forget_interruption();
        } else if state == EndState::Interrupted {
            self.hold_after_interruption();
        }
        if task.kind() == TaskKind::Turn {
            self.order_auto_compaction();
        }
    }

    /// Whether a turn's only output is the summary of a compaction that was ordered before it and
    /// not completed (RA).
    fn is_answered_by_compaction(
        &self,
        task: &Task,
        attempt: &Attempt,
        settled: &Settlement,
    ) -> bool {
        let ends_well =
            (settled.state, settled.stop_reason) == (EndState::Completed, StopReason::EndTurn);
        let is_plain = task.kind() == TaskKind::Turn && ends_well && !attempt.has_tools();
        let summary = self.group.recent.last_summary();
        let used = settled.ending.usage.as_ref().map(|usage| usage.used);
        let compacting = &self.group.state.compacting;
        is_plain && compacting.is_answered_by_compaction(attempt.text().trim(), summary, used)
    }

    /// Settles an attempt whose prompt was committed and not sent. The task is retried at once
    /// under any retry policy: the agent cannot have acted on a prompt that it never got (I7).
    pub(super) fn prompt_withheld(&mut self, run: RunId, id: u64) {
        let Some((record, attempt)) = self.running() else { return };
        if attempt.run != run || attempt.prompt_id != id {
            return;
        }
        let (task, number) = (record.id, record.attempt);
        // A deadline or the shutdown may have cut the attempt before its caller cancelled it.
        if record.cancel_requested {
            let mut by_caller = attempt.clone();
            by_caller.cancel_reason = Some(CancelReason::Caller);
            let cancelled =
                PromptReply::Stopped { stop_reason: StopReason::Cancelled, tokens: None };
            return self.settle(by_caller.settle_by_reply(cancelled));
        }
        self.abandon_compaction();
        self.release_lock(false);
        let stop_reason = StopReason::ServerRestart;
        self.record(Fact::TurnSettled { task, stop_reason, tokens: None, early_bytes: 0 });
        let error = TaskError {
            code: PROMPT_WITHHELD.into(),
            message: "the server was stopped before it sent the prompt".into(),
        };
        let due = Deadline::after(self.now, 0);
        self.record(Fact::TaskRetrying { task, attempt: number, error, wait_ms: 0, due });
    }
}

impl Group {
    /// Gives a compaction the prompt and strategy of its START.
    pub(super) fn apply_turn_started(
        &mut self,
        id: TaskId,
        prompt: &Json,
        strategy: Option<Strategy>,
        after_restore: bool,
    ) {
        self.message_owners.expect_replay(after_restore);
        if let Some(Current { task, .. }) = &mut self.current
            && task.id == id
            && let Work::Compaction { prompt: sent, strategy: used, .. } = &mut task.work
        {
            sent.clone_from(prompt);
            *used = strategy.unwrap_or(*used);
        }
    }

    /// Begins the attempt whose prompt is in flight.
    pub(super) fn apply_prompt_sent(&mut self, id: u64) {
        self.state.session.iter_mut().for_each(|session| session.is_fresh = false);
        self.run.iter_mut().for_each(|run| run.progress = run.progress.without_fresh());
        let may_replay = self.message_owners.begin();
        if let Some(current) = &mut self.current
            && let Some(start) = current.task.start()
        {
            let mut attempt = Attempt::new(start.run, id);
            attempt.may_replay = may_replay;
            current.attempt = Some(attempt);
        }
        self.recent.mark_earlier_turn();
    }

    /// Whether the run restored its session and got no prompt since: the agent may replay it yet.
    fn may_replay(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.progress == RunProgress::Unsettled)
    }

    /// Whether the running turn, if it stops so, is answered in the messages of earlier turns.
    fn is_answered_late(&self, stop_reason: StopReason) -> bool {
        let Some(Current { task, attempt: Some(attempt) }) = &self.current else { return false };
        let is_turn = task.kind() == TaskKind::Turn;
        is_turn && self.message_owners.is_answered(attempt, stop_reason)
    }

    /// Returns the ending of the running attempt so far, if it stops so.
    pub fn ending_of_attempt(&self, stop_reason: Option<StopReason>) -> Ending {
        let mut ending = self.attempt().map(Attempt::ending_so_far).unwrap_or_default();
        if stop_reason.is_some_and(|stop_reason| self.is_answered_late(stop_reason)) {
            self.message_owners.answer(&mut ending);
        }
        ending
    }

    /// Adds the agent's output to the attempt, and takes the reported usage.
    pub(super) fn apply_output(&mut self, output: &AgentOutput, task: Option<TaskId>) {
        self.state.compacting.measured |= output.summary.usage.is_some();
        if let (Some(usage), Some(session)) = (&output.summary.usage, &mut self.state.session) {
            session.usage = Some(usage.clone());
            self.recent.note_usage(usage.used);
        }
        let Some(task) = task else { return };
        let running = self.task_of_attempt();
        self.message_owners.add(&output.summary, task, running.is_some_and(|other| other != task));
        if running == Some(task)
            && let Some(Current { attempt: Some(attempt), .. }) = &mut self.current
        {
            attempt.add_output(&output.summary);
        }
    }

    /// Returns the earlier task that output belongs to, if it does not belong to the attempt that
    /// runs, and whether that is sure. `after_prompt`: the last prompt that the agent had been sent
    /// before.
    pub(super) fn earlier_task_of(
        &self,
        summary: &OutputSummary,
        after_prompt: Option<u64>,
    ) -> Option<(TaskId, bool)> {
        let prompt_id = self.attempt().map(|attempt| attempt.prompt_id);
        let running = self.task_of_attempt().zip(prompt_id);
        self.message_owners.earlier(summary, running, after_prompt)
    }

    /// Returns the task whose attempt was settled last in this run, if none runs now.
    pub(super) fn task_between_attempts(&self) -> Option<TaskId> {
        self.message_owners.settled().filter(|_| self.attempt().is_none())
    }

    /// Counts output that has no summary.
    pub(super) fn apply_bare_output(&mut self, run: RunId, fact: &Fact) {
        if let Some(Current { attempt: Some(attempt), .. }) = &mut self.current
            && attempt.run == run
        {
            self.message_owners.drop_continued();
            attempt.add_output(&OutputSummary { has_output: true, ..OutputSummary::default() });
            attempt.apply(fact);
        }
    }

    /// Marks the running task as cancelled by a caller.
    pub(super) fn apply_cancel_requested(&mut self, fact: &Fact) {
        if let Some(Current { task, attempt: Some(_) }) = &mut self.current {
            task.cancel_requested = true;
        }
        self.apply_to_attempt(fact);
    }

    /// Remembers that the run got a cancel.
    pub(super) fn apply_cancel_sent(&mut self, id: RunId) {
        let sent_to = self.run.iter_mut().filter(|run| run.id == id);
        sent_to.for_each(|run| run.health = run.health.after_cancel());
    }

    /// Applies what a settlement shows: an answer ends the crash loop, and output proves that the
    /// prompt carried its summary.
    pub(super) fn apply_settled(&mut self, id: TaskId, stop_reason: StopReason, early_bytes: u64) {
        self.message_owners.forget_early(early_bytes);
        // An agent that answers a later prompt has survived its cancel.
        let is_refused = matches!(stop_reason, StopReason::Error | StopReason::Cancelled);
        let is_answered = stop_reason.is_answer() && !is_refused;
        let survived =
            is_answered && self.attempt().is_some_and(|attempt| attempt.cancel_reason.is_none());
        let usage = self.state.session.as_ref().and_then(|session| session.usage.as_ref());
        self.state.compacting.measure_freed(usage);
        let is_answered_late = self.is_answered_late(stop_reason);
        self.message_owners.settle(id, is_answered_late);
        let carried = self.current.as_ref().is_some_and(|Current { task, attempt }| {
            let has_output = attempt.as_ref().is_some_and(Attempt::has_own_output);
            task.id == id && task.kind() == TaskKind::Turn && has_output
        });
        // Only an answer shows that the agent works.
        if stop_reason.is_answer() {
            self.run.iter_mut().for_each(|run| run.progress = RunProgress::Settled);
            self.clear_launch_backoff();
        }
        if stop_reason.is_answer() && stop_reason != StopReason::Error {
            self.state.session.iter_mut().for_each(|session| session.is_unanswered = false);
        }
        let is_turn = self.current.as_ref().is_some_and(|it| it.task.kind() == TaskKind::Turn);
        if is_answered && is_turn {
            self.state.compacting.forget_unfinished();
        }
        if survived {
            self.run.iter_mut().for_each(|run| run.health = run.health.after_answer());
        }
        // The agent may not have read a prompt without output; the next one carries the summary
        // again.
        if carried {
            self.state.pending_summary = None;
        }
    }

    /// Applies a fact to the running attempt.
    pub(super) fn apply_to_attempt(&mut self, fact: &Fact) {
        if let Some(Current { attempt: Some(attempt), .. }) = &mut self.current {
            attempt.apply(fact);
        }
    }

    /// Remembers the request that opens another session.
    pub(super) fn apply_summary_given(&mut self, request: u64) {
        if let Some(Current { attempt: Some(attempt), .. }) = &mut self.current {
            attempt.opening = Some(request);
        }
    }
}

/// Returns the caller's prompt with a summary before it that the session does not hold yet.
fn with_summary(summary: &str, prompt: &Json) -> Json {
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
