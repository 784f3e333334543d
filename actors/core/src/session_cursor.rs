//! Which session an agent's messages have to name, so that their summary counts.

use serde::{Deserialize, Serialize};

use crate::{EndReason, Fact, OutputSummary, SessionId};

/// Follows the session that prompts go to through a group's facts, so that a replay of the log
/// counts the same messages as the live group did (I13). The order of the facts decides: a run may
/// learn of a prompt a moment after its commit.
///
/// It is not the session in force of [`crate::GroupState`]: a rotation puts the next session in
/// force before its first prompt. Until then the usage that the prompted session reports is not the
/// group's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionCursor {
    #[serde(rename = "in_force")]
    prompted: Option<SessionId>,
    /// The session in force, whose usage is the group's; `None` if it is not known.
    #[serde(default, rename = "session", skip_serializing_if = "Option::is_none")]
    in_force: Option<SessionId>,
    /// Whether the last segment ended because the agent moved to another session.
    moves: bool,
}

impl SessionCursor {
    /// The cursor of a group without a run.
    pub fn between_runs(in_force: Option<SessionId>) -> Self {
        Self { in_force, ..Self::default() }
    }

    /// Returns the cursor of a group whose session in force is `session`: one that an earlier
    /// version stored does not have it.
    #[must_use]
    pub fn in_session(self, session: Option<&SessionId>) -> Self {
        Self { in_force: session.cloned(), ..self }
    }

    /// Applies a fact.
    pub fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::RunStarted { .. } => self.prompted = None,
            Fact::RunReady { session, .. } | Fact::PromptSent { session, .. } => {
                self.prompted = Some(session.clone());
                self.in_force = Some(session.clone());
            }
            Fact::SegmentEnded { end_reason, .. } => {
                self.moves = *end_reason == EndReason::AcpSessionIdChanged;
            }
            Fact::SegmentStarted { session, .. } => {
                self.in_force = Some(session.clone());
                if self.moves {
                    self.prompted = Some(session.clone());
                }
            }
            Fact::ContextLost { .. } => self.in_force = None,
            _ => {}
        }
    }

    /// Whether messages that name the session `named` are about the prompted one.
    pub fn counts(&self, named: Option<&str>) -> bool {
        let (Some(named), Some(prompted)) = (named, &self.prompted) else { return true };
        *prompted.0 == *named
    }

    /// Whether messages of the prompted session that name `named` are about the one in force.
    fn is_in_force(&self, named: Option<&str>) -> bool {
        let of = named.or(self.prompted.as_ref().map(|prompted| &*prompted.0));
        self.in_force.as_ref().zip(of).is_none_or(|(in_force, of)| *in_force.0 == *of)
    }

    /// Returns what counts of the summary of messages that name the session `named`. Usage does
    /// only if it is that of the session in force.
    pub fn counted(&self, named: Option<&str>, summary: OutputSummary) -> OutputSummary {
        match named.filter(|_| !self.counts(named)) {
            Some(named) => summary.of_other_session(&SessionId(named.into())),
            None => {
                let usage = summary.usage.filter(|_| self.is_in_force(named));
                OutputSummary { is_named: named.is_some(), usage, ..summary }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{Json, RunId, Usage};

    /// I13: the session of the last committed prompt decides, also about lines that the run read
    /// before it got that prompt.
    #[test]
    fn a_message_counts_for_the_session_that_was_prompted_before_it() {
        let mut cursor = SessionCursor::default();
        assert!(cursor.counts(Some("one")), "no session is open yet");
        for (prompted, other) in [("one", "two"), ("two", "one")] {
            let prompt = Json::write(&[(); 0]).expect("an empty array is JSON");
            cursor.apply(&Fact::PromptSent { session: SessionId(prompted.into()), prompt });
            assert!(cursor.counts(Some(prompted)) && !cursor.counts(Some(other)), "{prompted}");
            assert!(cursor.counts(None), "it names none");
        }
        let moved = |end_reason| {
            let session = SessionId("three".into());
            let ended = Fact::SegmentEnded { segment: 1, end_reason };
            [ended, Fact::SegmentStarted { segment: 2, parent: None, session, provenance: None }]
        };
        moved(EndReason::Compaction).iter().for_each(|fact| cursor.apply(fact));
        assert!(cursor.counts(Some("two")), "a rotation counts from its first prompt on");
        let usage = Some(Usage { used: 9, size: 10, cost: None });
        let summary = OutputSummary { has_output: true, usage, ..OutputSummary::default() };
        let counted = cursor.counted(Some("two"), summary);
        assert_eq!((counted.has_output, counted.usage), (true, None), "of the session before");
        moved(EndReason::AcpSessionIdChanged).iter().for_each(|fact| cursor.apply(fact));
        assert!(cursor.counts(Some("three")), "the agent moved by itself (AM-13)");
        let run = RunId(Uuid::nil());
        cursor.apply(&Fact::RunStarted { run, agent: "a".into(), has_detectors: false });
        assert!(cursor.counts(Some("any")), "no session of the next run is open yet");
    }
}
