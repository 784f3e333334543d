//! Compactions that detectors report: AM-20 to AM-31.

use super::{Current, Group, decide::Transition};
use crate::{
    CancelReason, Compaction, CompactionEvent, CompactionId, CompactionSignal, CompactionStatus,
    Details, EndReason, Fact, Provenance, RunId, SessionId, SignalKind, Source, TaskKind,
    Timestamp, Usage, UsageAfter,
};

/// What the error of a failed ordered compaction ends with (DQ-12).
pub(super) const UNCHANGED: &str = "the session is unchanged";

/// The error of a compaction that lost its lock, and so does not count (HL-11).
pub(super) const LOCK_LOST: &str = "greenroom lost the lock";

impl Transition<'_> {
    /// Handles a detector's signal of the present run.
    pub(super) fn signalled(&mut self, run: RunId, signal: &CompactionSignal) {
        if self.group.is_live_run(run) {
            self.handle_signal(signal, None, true);
        }
    }

    /// Adds a signal to the compaction that it belongs to, or opens a new one. Unless `may_be_new`,
    /// it can belong only to one that it names.
    pub(super) fn handle_signal(
        &mut self,
        signal: &CompactionSignal,
        provenance: Option<Provenance>,
        may_be_new: bool,
    ) {
        let known = self.group.recent.find(signal, may_be_new).cloned();
        let needs_lock = known.as_ref().is_none_or(|known| self.is_ordered_by_current(known));
        if signal.kind == SignalKind::Completed && needs_lock && self.lost_lock() {
            let mut failed = CompactionSignal { kind: SignalKind::Failed, ..signal.clone() };
            failed.details.error = Some(LOCK_LOST.into());
            return self.handle_signal(&failed, None, may_be_new);
        }
        if let Some(known) = known {
            let is_trusted = self.trusts(signal, &known.sources);
            let mut compaction = known.clone();
            compaction.add_signal(signal, is_trusted, self.now.wall);
            if compaction != known {
                self.record_compaction(compaction, provenance);
            }
        } else if signal.kind != SignalKind::Noted && may_be_new {
            self.open_compaction(signal, provenance);
        }
    }

    /// Whether a signal decides the status of a compaction that `sources` reported. A run that
    /// reports compactions by ACP reports all of them, and other detectors only add details.
    pub(super) fn trusts(&self, signal: &CompactionSignal, sources: &[Source]) -> bool {
        let reports_by_acp = self.group.run.as_ref().is_some_and(|run| run.reports_by_acp);
        let cannot_contradict =
            signal.kind != SignalKind::Completed && !sources.contains(&Source::Acp);
        signal.source == Source::Acp || !reports_by_acp || cannot_contradict
    }

    /// Opens a compaction by its first signal.
    pub(super) fn open_compaction(
        &mut self,
        signal: &CompactionSignal,
        provenance: Option<Provenance>,
    ) {
        self.abandon_compaction();
        let task = self.running().map(|(task, _)| task.id);
        let (segment, id) = (self.group.state.segment, self.compaction_id());
        let mut compaction = Compaction::new(id, signal.source, task, segment, self.now.wall);
        compaction.add_signal(signal, self.trusts(signal, &[]), self.now.wall);
        if compaction.is_active() {
            compaction.details.tokens_before =
                compaction.details.tokens_before.or_else(|| self.tokens_in_use());
            self.record(Fact::CompactionStarted(Box::new(compaction)));
        } else {
            self.record_compaction(compaction, provenance);
        }
    }

    /// Records a changed compaction and its consequences. Call it only if its status or its details
    /// changed.
    pub(super) fn record_compaction(
        &mut self,
        mut compaction: Compaction,
        provenance: Option<Provenance>,
    ) {
        let before = self.group.recent.status(compaction.id);
        let is_completed = compaction.status == CompactionStatus::Completed;
        let known = self.group.state.provenance().map(|known| &*known.current);
        // A late detector may name a session that was compacted since.
        let is_late = known.is_some_and(|known| self.group.recent.awaits_late_end(known));
        let named = || compaction.continuation().filter(|_| !is_late);
        let provenance = provenance.or_else(named).filter(|given| self.is_new_provenance(given));
        let is_ordered = self.is_ordered_by_current(&compaction);
        if before == Some(compaction.status) {
            self.record(Fact::CompactionUpdated(Box::new(compaction)));
            if let Some(provenance) = provenance.filter(|_| self.group.state.session.is_some()) {
                self.record(Fact::ProvenanceNoted { provenance });
            }
        } else if is_completed {
            let session = self.group.state.session_id().cloned();
            let provenance = provenance.or_else(|| self.group.state.provenance().cloned());
            self.publish(compaction, session, provenance);
            if is_ordered {
                self.release_lock(true);
            }
        } else {
            compaction.may_answer_next = is_ordered && self.was_commanded(&compaction);
            if compaction.status == CompactionStatus::Failed && is_ordered {
                let why = compaction.details.error.take();
                let why = why.unwrap_or_else(|| "the agent gave no reason".into());
                compaction.details.error = Some(format!("{why}; {UNCHANGED}"));
            }
            self.record(Fact::CompactionEnded(Box::new(compaction)));
        }
    }

    /// Records a completed compaction and rotates the segment, in one commit (I4, AM-22).
    pub(super) fn publish(
        &mut self,
        mut compaction: Compaction,
        session: Option<SessionId>,
        provenance: Option<Provenance>,
    ) {
        compaction.to_segment = session.as_ref().map(|_| self.group.state.segment + 1);
        let usage = self.group.state.usage().zip(compaction.details.tokens_after);
        let known = usage.map(|(usage, used)| UsageAfter::Known(Usage { used, ..usage.clone() }));
        compaction.usage_after = Some(known.unwrap_or(UsageAfter::Unknown));
        compaction.may_answer_next = false;
        self.record(Fact::CompactionEnded(Box::new(compaction)));
        if let Some(session) = session {
            self.rotate(EndReason::Compaction, session, provenance);
        }
    }

    /// Takes the first usage that the agent reports after a compaction as the tokens that it left.
    pub(super) fn measure_compaction(&mut self, usage: Option<u64>) {
        let Some(used) = usage.filter(|used| *used > 0) else { return };
        let state = &self.group.state;
        let is_prompted = state.session.as_ref().is_some_and(|session| !session.is_fresh);
        let unmeasured = self.group.recent.unmeasured(state.segment);
        if let Some(compaction) = unmeasured.filter(|_| is_prompted) {
            let mut compaction = compaction.clone();
            compaction.details.tokens_after = Some(used);
            self.record(Fact::CompactionUpdated(Box::new(compaction)));
        }
    }

    /// Abandons the active compaction, whose end can no longer be seen in time (AM-25, AM-28).
    /// Leaves the count and the history as they are.
    pub(super) fn abandon_compaction(&mut self) {
        let Some(active) = self.group.recent.active() else { return };
        let mut compaction = active.clone();
        compaction.transition(CompactionEvent::Stranded, self.now.wall);
        self.record_compaction(compaction, None);
    }

    /// Abandons a compaction that reached its deadline (AM-28). Interrupts the attempt if that
    /// ordered it; a turn in which the agent compacts by itself continues.
    pub(super) fn compaction_expired(&mut self, id: CompactionId) {
        let Some(active) = self.group.recent.active().filter(|active| active.id == id) else {
            return;
        };
        let is_ordered = self.is_ordered_by_current(active);
        self.abandon_compaction();
        if is_ordered {
            self.interrupt(CancelReason::Deadline);
        }
    }
}

impl Group {
    /// Stores the compaction, and updates the history by its new status.
    pub(super) fn apply_compaction(&mut self, compaction: &Compaction, at: Timestamp) {
        let before = self.recent.status(compaction.id);
        if let Some(run) = &mut self.run {
            run.reports_by_acp |= compaction.sources.contains(&Source::Acp);
        }
        let in_use = self.state.usage().map(|usage| usage.used);
        let is_in_turn = self.current.as_ref().is_some_and(|Current { task, attempt }| {
            attempt.is_some() && task.kind() == TaskKind::Turn
        });
        let compacting = &mut self.state.compacting;
        match compaction.status {
            status if before == Some(status) => {}
            CompactionStatus::InProgress => {
                compacting.last_source = Some(compaction.source);
                compacting.last_started_at = Some(at);
            }
            CompactionStatus::Completed => {
                compacting.count += 1;
                compacting.last_source = Some(compaction.source);
                compacting.last_completed_at = Some(at);
                compacting.measured = false;
                compacting.resume_auto_compact();
                compacting.complete_late(is_in_turn);
                let Details { tokens_before, tokens_after, .. } = compaction.details;
                compacting.before = tokens_before.or(in_use);
                if let Some(after) = tokens_after {
                    compacting.record_freed(after);
                }
                if compaction.carries_summary {
                    self.state.pending_summary.clone_from(&compaction.details.summary);
                }
                if let (Some(after), Some(session)) =
                    (&compaction.usage_after, &mut self.state.session)
                {
                    session.usage = match after {
                        UsageAfter::Known(usage) => Some(usage.clone()),
                        UsageAfter::Unknown => None,
                    };
                }
            }
            CompactionStatus::Noop
                if compaction.source == Source::Task && !compaction.is_unstarted =>
            {
                compacting.ineffective_in_a_row = compacting.ineffective_in_a_row.saturating_add(1);
            }
            CompactionStatus::Failed
            | CompactionStatus::Cancelled
            | CompactionStatus::Abandoned
                if compaction.may_answer_next =>
            {
                compacting.leave_unfinished(compaction.details.tokens_before);
            }
            CompactionStatus::Failed
            | CompactionStatus::Cancelled
            | CompactionStatus::Abandoned
            | CompactionStatus::Skipped
            | CompactionStatus::Noop => {}
        }
        self.recent.upsert(compaction.clone());
    }
}
