//! From a fresh process to a session: what greenroom asks first, and what the answers mean.

use std::path::PathBuf;

use greenroom_core::{Continuity, SessionId};

use super::acp;

/// Where the opening of a session is.
#[derive(Debug)]
pub struct Opening {
    cwd: PathBuf,
    auth_method: Option<String>,
    /// The session to take up again.
    wanted: Option<SessionId>,
    can_load: bool,
    can_resume: bool,
    asked: Asked,
    id: u64,
    /// Whether a transcript is being replayed to us, and whether we saw any of it.
    replayed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Initialize,
    Authenticate,
    Resume,
    Load,
    New,
}

/// What follows from an answer.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Ask this.
    Ask(String),
    /// The agent takes prompts.
    Ready(SessionId, Continuity),
    /// It cannot be used.
    Fail(String),
}

impl Opening {
    /// The opening, and its first line.
    pub fn new(
        cwd: PathBuf,
        auth_method: Option<String>,
        wanted: Option<SessionId>,
    ) -> (Self, String) {
        let opening = Self {
            cwd,
            auth_method,
            wanted,
            can_load: false,
            can_resume: false,
            asked: Asked::Initialize,
            id: 1,
            replayed: false,
        };
        (opening, acp::initialize_line(1))
    }

    /// Whether what the agent says now is old: the replay of a `session/load` is no frame. Hermes
    /// replays on `session/resume` too, against the protocol.
    pub fn is_replay(&mut self) -> bool {
        let replay = matches!(self.asked, Asked::Load | Asked::Resume);
        self.replayed |= replay;
        replay
    }

    /// Takes in an answer; `None` if it answers something else.
    pub fn answered(&mut self, id: u64, outcome: Result<&str, acp::RpcError>) -> Option<Next> {
        if id != self.id {
            return None;
        }
        Some(match (self.asked, outcome) {
            (Asked::Initialize, Ok(result)) => match acp::abilities(result) {
                Ok(abilities) => {
                    (self.can_resume, self.can_load) = (abilities.resume, abilities.load);
                    match self.auth_method.clone() {
                        Some(method) => {
                            let line =
                                acp::authenticate_line(self.turn_to(Asked::Authenticate), &method);
                            Next::Ask(line)
                        }
                        None => self.open(),
                    }
                }
                Err(why) => Next::Fail(why),
            },
            (Asked::Initialize, Err(err)) => Next::Fail(format!("it refused initialize: {err}")),
            (Asked::Authenticate, Ok(_)) => self.open(),
            (Asked::Authenticate, Err(err)) => {
                Next::Fail(format!("it refused authenticate: {err}"))
            }
            (asked @ (Asked::Resume | Asked::Load), outcome) => self.taken_up(asked, outcome),
            (Asked::New, Ok(result)) => match acp::new_session(result) {
                Ok(session) if self.wanted.is_some() => Next::Ready(session, Continuity::Lost),
                Ok(session) => Next::Ready(session, Continuity::New),
                Err(why) => Next::Fail(why),
            },
            (Asked::New, Err(err)) => Next::Fail(format!("it refused session/new: {err}")),
        })
    }

    fn taken_up(&mut self, asked: Asked, outcome: Result<&str, acp::RpcError>) -> Next {
        let Some(session) = self.wanted.clone() else { return self.new_session() };
        let loaded = asked == Asked::Load;
        let took =
            outcome.is_ok_and(|result| acp::took_up(result, &session, self.replayed, loaded));
        match (took, loaded) {
            (true, true) => Next::Ready(session, Continuity::Loaded),
            (true, false) => Next::Ready(session, Continuity::Resumed),
            (false, false) if self.can_load => self.load(&session),
            (false, _) => self.new_session(),
        }
    }

    fn open(&mut self) -> Next {
        match self.wanted.clone() {
            Some(session) if self.can_resume => {
                let id = self.turn_to(Asked::Resume);
                Next::Ask(acp::resume_session_line(id, &session, &self.cwd))
            }
            Some(session) if self.can_load => self.load(&session),
            Some(_) | None => self.new_session(),
        }
    }

    fn load(&mut self, session: &SessionId) -> Next {
        let id = self.turn_to(Asked::Load);
        Next::Ask(acp::load_session_line(id, session, &self.cwd))
    }

    fn new_session(&mut self) -> Next {
        let id = self.turn_to(Asked::New);
        Next::Ask(acp::new_session_line(id, &self.cwd))
    }

    fn turn_to(&mut self, asked: Asked) -> u64 {
        self.asked = asked;
        self.id += 1;
        self.id
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RESUMES: &str = r#"{"protocolVersion":1,"agentCapabilities":{"loadSession":true,"sessionCapabilities":{"resume":{}}}}"#;
    const LOADS: &str = r#"{"protocolVersion":1,"agentCapabilities":{"loadSession":true}}"#;
    const NEITHER: &str = r#"{"protocolVersion":1}"#;
    const NEW: &str = r#"{"sessionId":"fresh"}"#;

    /// Plays the agent: `answers` in order, `Err` for a JSON-RPC error.
    fn play(session: Option<&str>, answers: &[Result<&str, i64>]) -> (Vec<String>, Next) {
        let wanted = session.map(|id| SessionId(id.into()));
        let (mut opening, first) = Opening::new("/tmp".into(), None, wanted);
        let method = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["method"].as_str().unwrap().to_owned()
        };
        let mut asked = vec![method(&first)];
        for (id, answer) in (1..).zip(answers) {
            assert_eq!(opening.answered(99, Ok("{}")), None, "an answer to something else");
            let error = |code: &i64| acp::RpcError { code: *code, message: "no".into() };
            match opening.answered(id, answer.as_ref().copied().map_err(error)).unwrap() {
                Next::Ask(line) => asked.push(method(&line)),
                end => return (asked, end),
            }
        }
        panic!("no end after {asked:?}");
    }

    fn ready(id: &str, continuity: Continuity) -> Next {
        Next::Ready(SessionId(id.into()), continuity)
    }

    type Case<'a> = (&'a str, Option<&'a str>, &'a [Result<&'a str, i64>], &'a [&'a str], Next);

    #[test]
    fn a_session_is_taken_up_by_the_best_way_that_the_agent_has() {
        #[rustfmt::skip]
        let cases: [Case; 6] = [
            ("first",           None,      &[Ok(RESUMES), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::New)),
            ("resume",          Some("s"), &[Ok(RESUMES), Ok("{}")],                       &["initialize", "session/resume"],                               ready("s", Continuity::Resumed)),
            ("load",            Some("s"), &[Ok(LOADS), Ok(r#"{"modes":null,"x":1}"#)],    &["initialize", "session/load"],                                 ready("s", Continuity::Loaded)),
            ("resume fails",    Some("s"), &[Ok(RESUMES), Err(-32603), Ok(r#"{"x":1}"#)],  &["initialize", "session/resume", "session/load"],               ready("s", Continuity::Loaded)),
            ("both fail",       Some("s"), &[Ok(RESUMES), Err(1), Err(-32002), Ok(NEW)],   &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
            ("it has no way",   Some("s"), &[Ok(NEITHER), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::Lost)),
        ];
        for (name, session, answers, methods, end) in cases {
            let (asked, ended) = play(session, answers);
            assert_eq!(
                (asked, ended),
                (methods.iter().map(|m| (*m).to_owned()).collect(), end),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_said_while_a_session_is_taken_up_is_old() {
        let (mut opening, _) = Opening::new("/tmp".into(), None, Some(SessionId("s".into())));
        assert!(!opening.is_replay(), "not taken up yet");
        opening.answered(1, Ok(RESUMES)).unwrap();
        assert!(opening.is_replay(), "resume");
        opening.answered(2, Err(acp::RpcError { code: -32603, message: "no".into() })).unwrap();
        assert!(opening.is_replay(), "load");
    }

    #[test]
    fn an_agent_that_cannot_be_used_says_why() {
        for (answers, why) in [
            (&[Ok(r#"{"protocolVersion":7}"#)][..], "ACP version 7"),
            (&[Ok("[]")], "no ACP agent"),
            (&[Err(-32000)], "refused initialize"),
            (&[Ok(NEITHER), Err(-32000)], "refused session/new"),
        ] {
            let (_, end) = play(None, answers);
            assert!(matches!(&end, Next::Fail(text) if text.contains(why)), "{end:?}");
        }
    }
}
