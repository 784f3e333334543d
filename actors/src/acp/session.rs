//! The ACP sessions of one run: which of them an update is about.
//!
//! An agent keeps the sessions that it left, and may still send updates about them.

use greenroom_core::{Fact, OutputSummary, SessionCursor, SessionId};
use memchr::memmem;

use crate::acp::{self, bounds::bounded_id};

/// The most sessions that are read from one update.
const NAMED_MAX: usize = 8;

/// The sessions of one run.
#[derive(Debug, Default)]
pub struct Sessions {
    current: Option<SessionId>,
    /// The id of the pending request for a new session.
    pending: Option<u64>,
}

impl Sessions {
    /// Makes `session` the one that prompts go to.
    pub fn set_current(&mut self, session: SessionId) {
        self.current = Some(session);
    }

    /// Records the request for a new session.
    pub fn expect_new(&mut self, request: u64) {
        self.pending = Some(request);
    }

    /// Whether `request` is the pending request for a new session.
    pub fn is_pending(&self, request: u64) -> bool {
        self.pending == Some(request)
    }

    /// Whether `request` is the pending request for a new session; it is pending no longer.
    pub fn take_pending(&mut self, request: u64) -> bool {
        self.pending.take_if(|pending| *pending == request).is_some()
    }

    /// Whether an update that names the session `named` is about another one than the current: a
    /// former one, one that is not prompted yet, a subagent's, or one to which the agent moves. The
    /// run reads nothing from it; whether the agent has moved, the group decides when it settles
    /// the turn (AM-13).
    pub fn is_other(&self, named: Option<&str>) -> bool {
        let current = self.current.as_ref().map(|session| &*session.0);
        named.zip(current).is_some_and(|(named, current)| named != current)
    }
}

/// Returns the sessions that the text of an update names, other than `own`, up to [`NAMED_MAX`]:
/// the values of members whose names end with `essionId`, `essionID` or `ession_id`.
///
/// Agents name the session of a subagent in `_meta` or in the output of the tool that starts it,
/// and that of its parent in the updates of the subagent.
pub fn named_sessions(update: &str, own: Option<&str>) -> Vec<SessionId> {
    let mut named = Vec::new();
    for place in memmem::find_iter(update.as_bytes(), b"ession") {
        let rest = &update[place + "ession".len()..];
        let value = ["Id\"", "ID\"", "_id\""].iter().find_map(|end| rest.strip_prefix(end));
        let value = value.and_then(|rest| rest.trim_start().strip_prefix(':'));
        let text = value.and_then(|rest| rest.trim_start().strip_prefix('"'));
        let id = text.and_then(|text| text.split_once('"')).map(|(id, _)| id);
        let id = id.filter(|id| Some(*id) != own && !id.contains('\\')).and_then(bounded_id);
        named.extend(id.map(|id| SessionId(id.into())));
        if named.len() == NAMED_MAX {
            break;
        }
    }
    named
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
            return cursor.counted(named.as_deref(), summary);
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
        assert!(!sessions.is_other(Some("any")), "no session is open yet");
        sessions.set_current(session("one"));
        assert!(!sessions.is_other(Some("one")));
        assert!(!sessions.is_other(None), "an update that names none");
        // A rotation: requested, named early in an update, opened, and prompted only then.
        sessions.expect_new(7);
        assert!(sessions.is_other(Some("two")));
        assert!(!sessions.take_pending(6) && sessions.take_pending(7) && !sessions.take_pending(7));
        assert!(!sessions.is_other(Some("one")), "it may yet be given up");
        sessions.set_current(session("two"));
        assert!(sessions.is_other(Some("one")), "a former one");
        assert!(!sessions.is_other(Some("two")));
    }

    /// AM-13: which sessions an update names as those of subagents or parents.
    #[test]
    fn an_update_may_name_other_sessions() {
        #[rustfmt::skip]
        let cases: [(&str, &[&str]); 8] = [
            (r#"{"sessionId":"own","update":{}}"#,                                            &[]),
            (r#"{"sessionId":"own","update":{"_meta":{"childSessionId": "c"}}}"#,             &["c"]),
            (r#"{"sessionId":"own","update":{"rawOutput":{"metadata":{"sessionId":"c"}}}}"#,  &["c"]),
            (r#"{"sessionId":"own","update":{"_meta":{"x":{"parent_session_id" :"p"}}}}"#,    &["p"]),
            (r#"{"sessionId":"own","update":{"_meta":{"subSessionID":"c","sessionId":"d"}}}"#, &["c", "d"]),
            (r#"{"sessionId":"own","update":{"_meta":{"sessionId":7,"sessionIdle":"no"}}}"#,  &[]),
            (r#"{"sessionId":"own","update":{"_meta":{"sessionId":"a\"b"}}}"#,                 &[]),
            (r#"{"update":{"title":"the session id"}}"#,                                      &[]),
        ];
        for (update, expected) in cases {
            let named = named_sessions(update, Some("own"));
            let named: Vec<&str> = named.iter().map(|session| &*session.0).collect();
            assert_eq!(named, expected, "{update}");
        }
        let many = r#""sessionId":"x""#.repeat(NAMED_MAX + 1);
        assert_eq!(named_sessions(&many, None).len(), NAMED_MAX);
    }
}
