//! The sessions of one process: which of them an update is about. An agent keeps those that it was
//! taken out of, and may still speak of them.

use std::collections::VecDeque;

use greenroom_core::{EndReason, Fold, Lines, SessionId, Write};
use serde::{Deserialize, Serialize};

use super::acp;

/// How many are remembered.
const KNOWN_MAX: usize = 32;

/// The sessions of one run.
#[derive(Debug, Default)]
pub struct Sessions {
    in_force: Option<SessionId>,
    /// All that greenroom opened or prompted, and all that the agent moved to.
    known: VecDeque<SessionId>,
    /// The request for another one that is not answered yet.
    asked: Option<u64>,
}

/// What an update is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The session in force.
    Own,
    /// One that is not in force any more, or not yet: what it says is kept, and means nothing.
    Other,
    /// One that nobody spoke of: the agent moved there (SEEDS AM-13).
    Moved(SessionId),
}

impl Sessions {
    /// The one that prompts go to.
    pub fn in_force(&self) -> Option<&SessionId> {
        self.in_force.as_ref()
    }

    /// Prompts go to this one from now on.
    pub fn enter(&mut self, session: SessionId) {
        self.know(session.clone());
        self.in_force = Some(session);
    }

    /// This one is there, and prompts do not go to it yet.
    pub fn know(&mut self, session: SessionId) {
        if !self.known.contains(&session) {
            if self.known.len() == KNOWN_MAX {
                self.known.pop_front();
            }
            self.known.push_back(session);
        }
    }

    /// Another one is asked for.
    pub fn ask(&mut self, request: u64) {
        self.asked = Some(request);
    }

    /// Whether this request for another one is answered now.
    pub fn answered(&mut self, request: u64) -> bool {
        self.asked.take_if(|asked| *asked == request).is_some()
    }

    /// What an update that names `named` is about.
    pub fn about(&mut self, named: Option<&str>) -> About {
        let (Some(named), Some(in_force)) = (named, &self.in_force) else { return About::Own };
        if *in_force.0 == *named {
            return About::Own;
        }
        // While one is being opened, the agent may speak of it before it says its name.
        if self.asked.is_some() || self.known.iter().any(|known| *known.0 == *named) {
            return About::Other;
        }
        let session = SessionId(named.into());
        self.enter(session.clone());
        About::Moved(session)
    }
}

/// Reads a run's frames as [`Sessions`] had them mean when they were said (I13). It is the word that
/// counts: the run may learn of a prompt a moment after it was committed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reread {
    in_force: Option<SessionId>,
    moves: bool,
}

impl Reread {
    /// What the next frame means, if it is one that the agent said.
    pub fn meaning(&mut self, kind: &str, payload: &str) -> Fold {
        match Write::read(kind, payload) {
            Some(Ok(write)) => self.take(&write),
            Some(Err(_)) => {}
            None if kind == "session/prompt" => {
                if let Ok((_, session, _)) = acp::prompt_sent(payload) {
                    self.in_force = Some(session);
                }
            }
            None => return acp::meaning(payload, self.in_force.as_ref()),
        }
        Fold::default()
    }

    /// What all of these messages mean that the agent said.
    pub fn meaning_of(&self, lines: &Lines) -> Fold {
        let mut fold = Fold::default();
        let each = lines.text.split('\n').map(|line| acp::meaning(line, self.in_force.as_ref()));
        each.for_each(|later| fold.join(later));
        fold
    }

    /// Takes in a fact.
    pub fn take(&mut self, write: &Write) {
        match write {
            Write::RunStarted { .. } => self.in_force = None,
            Write::RunReady { session, .. } | Write::PromptSent { session, .. } => {
                self.in_force = Some(session.clone());
            }
            Write::SegmentEnded { end_reason, .. } => {
                self.moves = *end_reason == EndReason::AcpSessionIdChanged;
            }
            Write::SegmentStarted { session, .. } if self.moves => {
                self.in_force = Some(session.clone());
            }
            _ => {}
        }
    }

    /// The session in force.
    pub fn in_force(&self) -> Option<&SessionId> {
        self.in_force.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str) -> SessionId {
        SessionId(id.into())
    }

    #[test]
    fn an_update_is_about_the_session_that_is_prompted() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.about(Some("any")), About::Own, "nothing is opened yet");
        sessions.enter(session("one"));
        assert_eq!(sessions.about(Some("one")), About::Own);
        assert_eq!(sessions.about(None), About::Own, "an update that names none");
        // A rotation: asked for, spoken of early, opened, and prompted only then.
        sessions.ask(7);
        assert_eq!(sessions.about(Some("two")), About::Other, "spoken of before it is told");
        assert!(!sessions.answered(6) && sessions.answered(7) && !sessions.answered(7));
        sessions.know(session("two"));
        assert_eq!(sessions.about(Some("two")), About::Other, "opened and not prompted");
        assert_eq!(sessions.about(Some("one")), About::Own, "the rotation may yet be given up");
        sessions.enter(session("two"));
        sessions.enter(session("three"));
        for left in ["one", "two"] {
            assert_eq!(sessions.about(Some(left)), About::Other, "{left} was left");
        }
        assert_eq!(sessions.about(Some("new")), About::Moved(session("new")));
        assert_eq!(sessions.about(Some("new")), About::Own);
        assert_eq!(sessions.about(Some("three")), About::Other);
    }

    /// I13: what a run read before it learned of a prompt in another session is judged by that one.
    #[test]
    fn what_is_committed_first_decides_what_a_line_means() {
        let said = |session: &str| {
            let update = r#"{"sessionUpdate":"agent_message_chunk","content":{"text":"late"}}"#;
            let params = format!(r#"{{"sessionId":"{session}","update":{update}}}"#);
            format!(r#"{{"jsonrpc":"2.0","method":"session/update","params":{params}}}"#)
        };
        let lines = Lines {
            count: 2,
            kinds: greenroom_core::Kinds::All("session/update".into()),
            text: format!("{}\n{}", said("one"), said("two")).into(),
        };
        let mut reread = Reread::default();
        assert_eq!(reread.meaning_of(&lines).text, "latelate", "nothing is opened yet");
        for (id, own) in [(1, "one"), (2, "two")] {
            let prompt = acp::empty_prompt();
            reread.take(&Write::PromptSent { id, session: session(own), prompt });
            let fold = reread.meaning_of(&lines);
            assert_eq!((&*fold.text, fold.output), ("late", true), "{own}");
        }
    }
}
