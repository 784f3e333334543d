//! Segments: which session is in force, and what rotates to another.

use std::collections::BTreeMap;

use super::{Current, Group, Session, decide::Transition, state::KNOWN_SESSIONS_MAX};
use crate::{
    Compaction, CompactionSignal, Details, Effect, EndReason, Fact, Lineage, PromptReply,
    Provenance, RunId, SessionId, SignalKind, Source, StopReason, Strategy, Work,
};

impl Transition<'_> {
    /// Closes the segment and opens the next, with one frame in each (AM-12).
    pub(super) fn rotate(
        &mut self,
        end_reason: EndReason,
        session: SessionId,
        provenance: Option<Provenance>,
    ) {
        let segment = self.group.state.segment;
        let parent = (segment > 0).then_some(segment);
        if parent.is_some() {
            self.record(Fact::SegmentEnded { segment, end_reason });
        }
        let segment = segment + 1;
        self.record(Fact::SegmentStarted { segment, parent, session, provenance });
    }

    /// Handles a session of the agent's own that the output named. Another one is another context,
    /// and counts only if a compaction led to it (AM-13, AM-23).
    pub(super) fn provenance_given(&mut self, run: RunId, given: Provenance) {
        if !self.group.is_live_run(run) {
            return;
        }
        let is_new = self.is_new_provenance(&given);
        let known = self.group.state.provenance().map(|known| known.current.clone());
        if given.compacted {
            // It may continue the session of the turn's start, although another detector reported a
            // later one since.
            let is_replaced =
                |session: &String| self.group.recent.iter().any(|past| past.replaced(session));
            let previous = given.previous.clone().filter(|previous| !is_replaced(previous));
            let before = previous.or(known.filter(|_| is_new));
            let signal = CompactionSignal {
                source: Source::HermesMeta,
                kind: SignalKind::Completed,
                key: None,
                lineage: Lineage {
                    before,
                    after: Some(given.current.clone()),
                    ..Lineage::default()
                },
                details: Details::default(),
            };
            self.handle_signal(&signal, Some(given.clone()), is_new);
        } else if is_new
            && known.is_some()
            && let Some(session) = self.group.state.session_id().cloned()
        {
            self.rotate(EndReason::Reset, session, Some(given.clone()));
        }
        let adds = self.is_new_provenance(&given) || self.is_fuller_provenance(&given);
        if adds && self.group.state.session.is_some() {
            self.record(Fact::ProvenanceNoted { provenance: given });
        }
    }

    /// Rotates to the session in which the agent continued its answer, if it did. If an ordered
    /// compaction is still active, its end does that.
    pub(super) fn follow_agent(&mut self, reply: &PromptReply) {
        let active = self.group.recent.active();
        if active.is_some_and(|active| self.is_ordered_by_current(active)) {
            return;
        }
        if let Some(session) = self.session_to_follow(reply.stop_reason()) {
            self.rotate(EndReason::AcpSessionIdChanged, session.clone(), None);
            self.read_session(session);
        }
    }

    /// Orders the run to read the session to which its agent moved.
    pub(super) fn read_session(&mut self, session: SessionId) {
        if let Some(run) = self.group.run.as_ref().map(|run| run.id) {
            self.emit(Effect::FollowSession { run, session });
        }
    }

    /// Returns the session in which the agent continued the running attempt, if it did (AM-13). Not
    /// one of the last segments: that may be late output. An answer that was cut short shows
    /// nothing, and a rotation opens its own session.
    pub(super) fn session_to_follow(&self, stop_reason: Option<StopReason>) -> Option<SessionId> {
        let (task, attempt) = self.running()?;
        let rotates = matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
        let is_whole =
            attempt.cancel_reason.is_none() && stop_reason.is_some_and(StopReason::is_whole);
        let is_new = |session: &&SessionId| !self.group.known_sessions.contains(session);
        attempt.moved_to().filter(is_new).filter(|_| is_whole && !rotates).cloned()
    }

    /// Whether it names another session than is known, and not one that a compaction has replaced:
    /// stdout and stderr are not read in step.
    pub(super) fn is_new_provenance(&self, given: &Provenance) -> bool {
        let known = self.group.state.provenance();
        let is_past = self.group.recent.iter().any(|past| past.replaced(&given.current));
        known.is_none_or(|known| known.current != given.current) && !is_past
    }

    /// Whether it adds to what is known of the session in force: a detector may give its name only.
    pub(super) fn is_fuller_provenance(&self, given: &Provenance) -> bool {
        let known = self.group.state.provenance();
        known.is_some_and(|known| {
            known.current == given.current && known.is_name_only() && !given.is_name_only()
        })
    }
}

impl Group {
    /// Puts the segment's session in force.
    pub(super) fn apply_segment_started(
        &mut self,
        segment: u32,
        session: &SessionId,
        provenance: Option<&Provenance>,
    ) {
        self.state.segment = segment;
        self.known_sessions.retain(|known| known != session);
        self.known_sessions.push_back(session.clone());
        if self.known_sessions.len() > KNOWN_SESSIONS_MAX {
            self.known_sessions.pop_front();
        }
        let provenance = provenance.cloned();
        if let Some(known) = self.state.session.as_mut().filter(|known| known.id == *session) {
            known.provenance = provenance;
            return;
        }
        self.state.compacting.forget_unfinished();
        let id = session.clone();
        let (is_fresh, is_unanswered) = (true, false);
        self.state.session = Some(Session { id, is_fresh, is_unanswered, usage: None, provenance });
        self.run.iter_mut().for_each(|run| run.progress = run.progress.without_fresh());
        if let Some(Current { attempt: Some(attempt), .. }) = &mut self.current {
            attempt.follow(session);
        }
    }

    /// Notes that the agent wrote something, which would be lost with its session.
    pub(super) fn note_output(&mut self, fact: &Fact) {
        let is_output = match fact {
            Fact::AgentOutput(output) => output.summary.has_output,
            Fact::PermissionOpened(_) => true,
            fact => fact.is_bare_output(),
        };
        if is_output {
            self.state.session.iter_mut().for_each(|session| session.is_unanswered = false);
        }
    }

    /// Notes which of the agent's own sessions is in force.
    pub(super) fn apply_provenance(&mut self, provenance: &Provenance) {
        if let Some(session) = &mut self.state.session {
            session.provenance = Some(provenance.clone());
        }
    }
}

impl Compaction {
    /// Returns the session of the agent's own that continues after it, if the signal that names it
    /// is no provenance itself.
    pub(super) fn continuation(&self) -> Option<Provenance> {
        let Lineage { before, after, either, given } = self.lineage.clone();
        let given = given.filter(|_| after == either)?;
        Some(Provenance { current: after?, previous: before, compacted: true, given })
    }
}

impl Provenance {
    /// Whether only its name was given: an object whose one member is that.
    fn is_name_only(&self) -> bool {
        let members = serde_json::from_str::<BTreeMap<String, String>>(self.given.as_str());
        members.is_ok_and(|members| members.values().eq([&self.current]))
    }
}
