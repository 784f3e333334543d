//! The ACP sessions of one run: which of them an update is about.
//!
//! An agent keeps the sessions that it left, and may still send updates about them.

use std::collections::VecDeque;

use greenroom_core::{Fact, OutputSummary, SessionCursor, SessionId};

use crate::acp;

/// The number of sessions remembered.
const KNOWN_MAX: usize = 32;

/// The sessions of one run.
#[derive(Debug, Default)]
pub struct Sessions {
    current: Option<SessionId>,
    /// All that greenroom opened or prompted, and all that the agent moved to.
    known: VecDeque<SessionId>,
    /// The id of the pending request for a new session.
    pending: Option<u64>,
}

/// What an update is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The current session.
    Current,
    /// A former session, or one that is not prompted yet: its updates are stored, and the run reads
    /// nothing from them.
    Other,
    /// An unknown session: the agent moved to it (AM-13).
    MovedTo(SessionId),
}

impl Sessions {
    /// Makes `session` the one that prompts go to.
    pub fn set_current(&mut self, session: SessionId) {
        self.add(session.clone());
        self.current = Some(session);
    }

    /// Adds a session that exists and is not prompted yet.
    pub fn add(&mut self, session: SessionId) {
        if !self.known.contains(&session) {
            if self.known.len() == KNOWN_MAX {
                self.known.pop_front();
            }
            self.known.push_back(session);
        }
    }

    /// Records the request for a new session.
    pub fn expect_new(&mut self, request: u64) {
        self.pending = Some(request);
    }

    /// Whether `request` is the pending request for a new session; it is pending no longer.
    pub fn take_pending(&mut self, request: u64) -> bool {
        self.pending.take_if(|pending| *pending == request).is_some()
    }

    /// Returns the subject of an update that names the session `named`.
    pub fn classify(&mut self, named: Option<&str>) -> Subject {
        let (Some(named), Some(current)) = (named, &self.current) else { return Subject::Current };
        if *current.0 == *named {
            return Subject::Current;
        }
        // An agent may send updates about a new session before the response that names it.
        if self.pending.is_some() || self.known.iter().any(|known| *known.0 == *named) {
            return Subject::Other;
        }
        let session = SessionId(named.into());
        self.set_current(session.clone());
        Subject::MovedTo(session)
    }
}

/// Summarizes the next frame of a stored log, if it is the agent's, as it was summarized live;
/// moves the cursor, if it is a fact (I13).
pub fn summarize(cursor: &mut SessionCursor, kind: &str, payload: &str) -> OutputSummary {
    match Fact::read(kind, payload) {
        Some(Ok(fact)) if fact.is_bare_output() => {
            return OutputSummary { has_output: true, ..OutputSummary::default() };
        }
        Some(Ok(fact)) => cursor.apply(&fact),
        Some(Err(_)) => {}
        None if kind == "session/prompt" => {
            if let Ok((_, session, prompt)) = acp::parse_prompt_line(payload) {
                cursor.apply(&Fact::PromptSent { session, prompt });
            }
        }
        None => {
            let (named, summary) = acp::summarize(payload);
            if cursor.counts(named.as_deref()) {
                return summary;
            }
        }
    }
    OutputSummary::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str) -> SessionId {
        SessionId(id.into())
    }

    #[test]
    fn an_update_is_about_the_session_it_names() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.classify(Some("any")), Subject::Current, "no session is open yet");
        sessions.set_current(session("one"));
        assert_eq!(sessions.classify(Some("one")), Subject::Current);
        assert_eq!(sessions.classify(None), Subject::Current, "an update that names none");
        // A rotation: requested, named early in an update, opened, and prompted only then.
        sessions.expect_new(7);
        assert_eq!(sessions.classify(Some("two")), Subject::Other, "named before the response");
        assert!(!sessions.take_pending(6) && sessions.take_pending(7) && !sessions.take_pending(7));
        sessions.add(session("two"));
        assert_eq!(sessions.classify(Some("two")), Subject::Other, "opened and not prompted");
        assert_eq!(
            sessions.classify(Some("one")),
            Subject::Current,
            "the rotation may yet be given up"
        );
        sessions.set_current(session("two"));
        sessions.set_current(session("three"));
        for left in ["one", "two"] {
            assert_eq!(sessions.classify(Some(left)), Subject::Other, "{left} was left");
        }
        assert_eq!(sessions.classify(Some("new")), Subject::MovedTo(session("new")));
        assert_eq!(sessions.classify(Some("new")), Subject::Current);
        assert_eq!(sessions.classify(Some("three")), Subject::Other);
    }
}
