//! Compactions that greenroom orders, for a caller or by itself: DQ-3 to DQ-6.

use super::{
    Group,
    compaction_detected::{LOCK_LOST, UNCHANGED},
    compaction_history::PAUSE_MS,
    decide::Transition,
};
use crate::{
    Compaction, CompactionEvent, CompactionStatus, Deadline, Effect, EndReason, EndState, Fact,
    Origin, PromptReply, Provenance, RunId, SUMMARY_BYTES_MAX, SessionId, SignalKind, Source,
    StopReason, Strategy, Task, TaskError, TaskId, TaskKind, Work, attempt::Settlement,
};

/// The error code of a compaction that is skipped because another program has the session's lock.
pub(super) const LOCK_HELD: &str = "lock_held";

/// The error code of a compaction that is skipped because the session was compacted while its task
/// waited for the lock.
pub(super) const ALREADY_COMPACTED: &str = "already_compacted";

impl Transition<'_> {
    /// Whether the running attempt ordered the compaction.
    pub(super) fn is_ordered_by_current(&self, compaction: &Compaction) -> bool {
        self.running().is_some_and(|(task, _)| {
            task.kind() == TaskKind::Compaction && compaction.belongs_to_attempt(task.id)
        })
    }

    /// Whether the compaction that the running attempt ordered ended without success after the
    /// agent's own command.
    pub(super) fn was_commanded(&self, compaction: &Compaction) -> bool {
        use CompactionStatus::{Abandoned, Cancelled, Failed};
        let is_command = self.running().is_some_and(|(task, _)| {
            matches!(task.work, Work::Compaction { strategy: Strategy::Command, .. })
        });
        is_command && matches!(compaction.status, Failed | Cancelled | Abandoned)
    }

    /// Records the start of an ordered compaction, whose prompt was committed.
    pub(super) fn begin_ordered(&mut self, task: TaskId) {
        self.abandon_compaction();
        let (id, segment) = (self.compaction_id(), self.group.state.segment);
        let mut compaction = Compaction::new(id, Source::Task, Some(task), segment, self.now.wall);
        compaction.details.tokens_before = self.tokens_in_use();
        self.record(Fact::CompactionStarted(Box::new(compaction)));
    }

    /// Returns the last reported number of tokens in the context.
    pub(super) fn tokens_in_use(&self) -> Option<u64> {
        self.group.state.usage().map(|usage| usage.used)
    }

    /// Skips a compaction task that has not started.
    pub(super) fn skip(&mut self, task: TaskId, code: &str, why: &str) {
        let message = format!("{why}; greenroom left the session unchanged");
        let error = TaskError { code: code.into(), message };
        self.end_before_start(task, CompactionStatus::Skipped, Some(error));
    }

    /// Ends a compaction task that has nothing to do under the profile in force. Returns whether it
    /// ended the task.
    pub(super) fn end_if_nothing_to_do(&mut self, id: TaskId) -> bool {
        let task = self.group.task(id);
        if task.is_none_or(|task| task.kind() != TaskKind::Compaction) {
            return false;
        }
        match self.settings.compaction.as_ref().map(|order| order.strategy) {
            Some(strategy) if self.group.is_compactable(strategy) => return false,
            None if self.group.state.session.is_some() => {
                let agent = &self.group.state.settings.agent;
                let why = format!("agent {agent:?} has no compaction strategy");
                self.skip(id, "compaction_unsupported", &why);
            }
            Some(_) | None => self.end_before_start(id, CompactionStatus::Noop, None),
        }
        true
    }

    /// Pauses automatic compaction after an ordered one was not completed, so that neither a lock
    /// that another program keeps nor an agent that fails delays turn after turn. One that freed
    /// nothing is counted instead. One that a caller cancelled, or that another program completed,
    /// starts no pause: neither shows that the next one would fail.
    pub(super) fn pause_auto_compact_after(&mut self, state: EndState, error: Option<&str>) {
        let is_pausing = match state {
            EndState::Failed | EndState::Interrupted => true,
            EndState::Skipped => error.is_some_and(|code| code != ALREADY_COMPACTED),
            EndState::Completed | EndState::Cancelled => false,
        };
        if is_pausing {
            let due = Deadline::after(self.now, PAUSE_MS);
            self.record(Fact::CompactionRests { due, lock_held: error == Some(LOCK_HELD) });
        }
    }

    /// Ends a compaction task before START: it has nothing to do, or must not do it.
    pub(super) fn end_before_start(
        &mut self,
        task: TaskId,
        status: CompactionStatus,
        error: Option<TaskError>,
    ) {
        let (id, segment) = (self.compaction_id(), self.group.state.segment);
        let mut compaction = Compaction::new(id, Source::Task, Some(task), segment, self.now.wall);
        (compaction.status, compaction.ended_at) = (status, Some(self.now.wall));
        compaction.is_unstarted = true;
        compaction.details.error = error.as_ref().map(|error| error.message.clone());
        self.record(Fact::CompactionEnded(Box::new(compaction)));
        self.end_unsent(task, EndState::Skipped, error);
    }

    /// Asks the agent to open another session, if its reply is the summary of a rotation. Returns
    /// whether it asked.
    pub(super) fn open_rotation(&mut self, reply: &PromptReply) -> bool {
        let Some((task, attempt)) = self.running() else { return false };
        let rotates = matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
        let is_answer =
            matches!(reply.stop_reason(), Some(StopReason::EndTurn | StopReason::MaxTokens));
        let is_active = self.group.recent.of(task.id).any(Compaction::is_active);
        let has_summary = !attempt.text().trim().is_empty();
        let (id, is_cancelling) = (task.id, attempt.cancel_reason.is_some());
        let Some(run) = self.group.run.as_ref().map(|run| run.id) else { return false };
        if !(rotates && is_answer && is_active && has_summary) || is_cancelling || self.lost_lock()
        {
            return false;
        }
        let request = self.record(Fact::SummaryGiven { task: id, tokens: reply.tokens() });
        self.emit(Effect::OpenSession { run, id: request });
        true
    }

    /// Completes a rotation with the opened session, or fails it.
    pub(super) fn session_opened(
        &mut self,
        run: RunId,
        id: u64,
        opened: Result<(SessionId, Option<Provenance>), String>,
    ) {
        let Some((task, attempt)) =
            self.running().filter(|(_, attempt)| attempt.opening == Some(id))
        else {
            return;
        };
        if !self.group.is_live_run(run) {
            return;
        }
        let settled = attempt.settle_by_reply(PromptReply::Stopped {
            stop_reason: StopReason::EndTurn,
            tokens: None,
        });
        let active = self.group.recent.of(task.id).rfind(|known| known.is_active()).cloned();
        // If the agent has compacted by itself meanwhile, the session in force stays.
        let Some(mut compaction) = active else { return self.settle(settled) };
        let text = attempt.text();
        let summary =
            text[..text.floor_char_boundary(SUMMARY_BYTES_MAX.min(text.len()))].to_owned();
        compaction.details.summary = Some(summary);
        let lost = || String::from(LOCK_LOST);
        match opened.and_then(|opened| if self.lost_lock() { Err(lost()) } else { Ok(opened) }) {
            Ok((session, provenance)) => {
                compaction.carries_summary = true;
                compaction.transition(CompactionEvent::Seen(SignalKind::Completed), self.now.wall);
                self.publish(compaction, Some(session), provenance);
                self.release_lock(true);
            }
            Err(why) => {
                compaction.details.error = Some(why);
                compaction.transition(CompactionEvent::Seen(SignalKind::Failed), self.now.wall);
                self.record_compaction(compaction, None);
            }
        }
        self.settle(settled);
    }

    /// Combines the attempt's settlement with the end of its compaction: what the detectors
    /// reported counts for more than the agent's reply.
    pub(super) fn settle_ordered(&mut self, task: &Task, mut settled: Settlement) -> Settlement {
        self.end_ordered(task, &settled);
        if let Some(attempt) = self.group.attempt() {
            attempt.write_text(&mut settled.ending);
        }
        let all = || self.group.recent.of(task.id);
        let completed = all().rfind(|known| known.status == CompactionStatus::Completed);
        let Some(outcome) = completed.or_else(|| all().next_back()) else {
            return settled;
        };
        if let Some(attempt) = self.group.attempt().filter(|_| completed.is_none()) {
            settled = attempt.settle_cut(settled);
        }
        let Settlement { stop_reason, state, mut ending, wants_login, tokens, retryable } = settled;
        let state = match (outcome.status, state) {
            (CompactionStatus::Completed, _) => {
                (ending.error, ending.interrupted) = (None, None);
                EndState::Completed
            }
            (_, EndState::Cancelled | EndState::Interrupted) => {
                // Only a rotation surely left the session unchanged: the agent's own command may
                // have had an effect.
                let rotates =
                    matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
                if let Some(error) = ending.error.as_mut().filter(|_| rotates) {
                    error.message = format!("{}; {UNCHANGED}", error.message);
                }
                state
            }
            (CompactionStatus::Noop | CompactionStatus::Skipped, _) => EndState::Skipped,
            (CompactionStatus::Cancelled, _) => EndState::Cancelled,
            (
                CompactionStatus::Failed
                | CompactionStatus::Abandoned
                | CompactionStatus::InProgress,
                _,
            ) => {
                let why = outcome
                    .details
                    .error
                    .clone()
                    .or_else(|| ending.error.take().map(|error| error.message));
                let why = why.unwrap_or_else(|| "the agent did not complete the compaction".into());
                let is_complete = why.ends_with(UNCHANGED);
                let message = if is_complete { why } else { format!("{why}; {UNCHANGED}") };
                ending.error = Some(TaskError { code: "compaction_failed".into(), message });
                EndState::Failed
            }
        };
        Settlement { stop_reason, state, ending, wants_login, tokens, retryable }
    }

    /// Ends the ordered compaction, if no detector saw its end. If the agent's command continued in
    /// another session, that begins with the compaction's segment (AM-13).
    pub(super) fn end_ordered(&mut self, task: &Task, settled: &Settlement) {
        let Some(active) = self.group.recent.of(task.id).rfind(|known| known.is_active()) else {
            return;
        };
        let mut compaction = active.clone();
        let (event, error) = self.ordered_end(&compaction, task, settled);
        compaction.details.error = error.or(compaction.details.error);
        compaction.transition(event, self.now.wall);
        let moved = self.session_to_follow(Some(settled.stop_reason));
        match moved {
            Some(session) if compaction.status == CompactionStatus::Completed => {
                self.publish(compaction, Some(session.clone()), None);
                self.release_lock(true);
                self.read_session(session);
            }
            Some(session) => {
                self.record_compaction(compaction, None);
                self.rotate(EndReason::AcpSessionIdChanged, session.clone(), None);
                self.read_session(session);
            }
            None => self.record_compaction(compaction, None),
        }
    }

    /// Returns how an ordered compaction ends whose end no detector saw, by the attempt's
    /// settlement; and why, if it failed.
    fn ordered_end(
        &self,
        compaction: &Compaction,
        task: &Task,
        settled: &Settlement,
    ) -> (CompactionEvent, Option<String>) {
        let seen = CompactionEvent::Seen;
        match settled.state {
            EndState::Completed => {}
            EndState::Cancelled => return (seen(SignalKind::Cancelled), None),
            EndState::Failed => {
                let answer = settled.ending.error.as_ref().map(|error| error.message.clone());
                let error = compaction.details.error.clone().or(answer);
                return (seen(SignalKind::Failed), error);
            }
            EndState::Interrupted | EndState::Skipped => return (CompactionEvent::Stranded, None),
        }
        let failed = |why: &str| (seen(SignalKind::Failed), Some(why.to_owned()));
        let before = compaction.details.tokens_before;
        // No context is empty: an agent that reports usage 0 does not tell what it did.
        let usage = settled.ending.usage.as_ref().map(|usage| usage.used);
        let rotates = matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
        let freed = before.zip(usage).map(|(before, after)| 0 < after && after < before);
        let freed_nothing = before.zip(usage).is_some_and(|(before, after)| after >= before);
        let was_seen = compaction.sources.len() > 1;
        let run = self.group.run.as_ref();
        let would_report = run.is_some_and(|run| run.has_detectors || run.reports_by_acp);
        let is_silent = !(was_seen || would_report || rotates);
        let is_cancelling =
            self.group.attempt().is_some_and(|attempt| attempt.cancel_reason.is_some());
        if is_cancelling && !(is_silent && freed == Some(true)) {
            // An agent may obey a cancel with any stop reason. Only a context that became smaller
            // shows that the cancel came too late; a summary alone is no success.
            return (seen(SignalKind::Cancelled), None);
        }
        match () {
            () if was_seen => (CompactionEvent::Stranded, None),
            () if self.lost_lock() => failed(LOCK_LOST),
            () if rotates => failed("the agent gave no summary"),
            // If a compaction would have been reported and was not, or freed nothing, there was
            // none.
            () if would_report || freed_nothing => (seen(SignalKind::Noop), None),
            () if usage == Some(0) => failed("the agent does not tell what it did"),
            () => (seen(SignalKind::Completed), None),
        }
    }

    /// Orders a compaction ahead of the waiting turns, if the settled turn left the context too
    /// full (DQ-4, DQ-5, DQ-6).
    pub(super) fn order_auto_compaction(&mut self) {
        let Group { state, .. } = &*self.group;
        let Some(order) = &self.settings.compaction else { return };
        let is_full = state.usage().is_some_and(|usage| {
            self.settings.auto_compact > 0.0
                && usage.size > 0
                && usage.used as f64 >= self.settings.auto_compact * usage.size as f64
        });
        let is_allowed = state.compacting.may_auto_compact(self.now)
            && !state.is_archived()
            && self.group.is_compactable(order.strategy);
        if !is_full || !is_allowed || self.group.compaction().is_some() {
            return;
        }
        let (id, work) = (TaskId((self.fresh)()), order.work(None));
        self.accept(Task::new(id, work, Origin::Auto));
    }
}
