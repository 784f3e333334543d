//! The ACP handshake: from a new process to a session, restored if possible, else a new one.

use std::path::PathBuf;

use greenroom_core::{Continuity, ErrorKind, PromptCapabilities, SessionId};

use crate::acp;

/// The state of a handshake.
#[derive(Debug)]
pub struct Handshake {
    cwd: PathBuf,
    auth_method: Option<String>,
    /// The session to restore.
    to_restore: Option<SessionId>,
    can_load: bool,
    can_resume: bool,
    /// The content blocks that the agent takes.
    prompts: PromptCapabilities,
    /// The last request, and its id.
    pending: Request,
    id: u64,
    /// Whether the agent replayed a part of the transcript.
    replayed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Initialize,
    Authenticate,
    Resume,
    Load,
    New,
}

/// What follows from a response.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Send this request.
    Send(String),
    /// The agent is ready for prompts.
    Ready(SessionId, Continuity),
    /// The agent cannot be used.
    Fail(String),
    /// The agent wants a login first.
    WantLogin(String),
}

impl Handshake {
    /// Starts a handshake; returns it and its first line.
    pub fn new(
        cwd: PathBuf,
        auth_method: Option<String>,
        to_restore: Option<SessionId>,
    ) -> (Self, String) {
        let handshake = Self {
            cwd,
            auth_method,
            to_restore,
            can_load: false,
            can_resume: false,
            prompts: PromptCapabilities::default(),
            pending: Request::Initialize,
            id: 1,
            replayed: false,
        };
        (handshake, acp::initialize_line(1))
    }

    /// Returns the method of the last request.
    pub fn pending_method(&self) -> &'static str {
        match self.pending {
            Request::Initialize => "initialize",
            Request::Authenticate => "authenticate",
            Request::Resume => "session/resume",
            Request::Load => "session/load",
            Request::New => "session/new",
        }
    }

    /// Whether the agent's updates are a replay now: those of a `session/load` are not stored.
    /// Hermes replays on `session/resume` too, against the protocol.
    pub fn is_replay(&mut self) -> bool {
        let replay = matches!(self.pending, Request::Load | Request::Resume);
        self.replayed |= replay;
        replay
    }

    /// Whether the agent can neither load nor resume a session.
    pub fn is_forgetful(&self) -> bool {
        !self.can_load && !self.can_resume
    }

    /// Returns the id of the last request, which is the number of them, too.
    pub fn request(&self) -> u64 {
        self.id
    }

    /// Returns the content blocks that the agent takes.
    pub fn prompts(&self) -> PromptCapabilities {
        self.prompts
    }

    /// Whether the answer to the last request names a new session.
    pub fn opens_session(&self) -> bool {
        self.pending == Request::New
    }

    /// Handles a response; `None` if it is not to the last request.
    pub fn on_response(&mut self, id: u64, outcome: Result<&str, acp::RpcError>) -> Option<Next> {
        if id != self.id {
            return None;
        }
        Some(match (self.pending, outcome) {
            (Request::Initialize, Ok(result)) => match acp::capabilities(result) {
                Ok(capabilities) => {
                    (self.can_resume, self.can_load) = (capabilities.resume, capabilities.load);
                    self.prompts = capabilities.prompts;
                    match self.auth_method.clone() {
                        Some(method) => {
                            let line = acp::authenticate_line(
                                self.next_request(Request::Authenticate),
                                &method,
                            );
                            Next::Send(line)
                        }
                        None => self.request_session(),
                    }
                }
                Err(why) => Next::Fail(why),
            },
            (Request::Initialize, Err(err)) => refused("initialize", &err),
            (Request::Authenticate, Ok(_)) => self.request_session(),
            (Request::Authenticate, Err(err)) => refused("authenticate", &err),
            // The session is not lost: the agent did not look for it.
            (Request::Resume, Err(err)) if err.kind == ErrorKind::Auth => {
                refused("session/resume", &err)
            }
            (Request::Load, Err(err)) if err.kind == ErrorKind::Auth => {
                refused("session/load", &err)
            }
            (pending @ (Request::Resume | Request::Load), outcome) => {
                self.on_restored(pending, outcome)
            }
            (Request::New, Ok(result)) => match acp::opened_session(result) {
                Ok(session) if self.to_restore.is_some() => Next::Ready(session, Continuity::Lost),
                Ok(session) => Next::Ready(session, Continuity::New),
                Err(why) => Next::Fail(why),
            },
            (Request::New, Err(err)) => refused("session/new", &err),
        })
    }

    fn on_restored(&mut self, pending: Request, outcome: Result<&str, acp::RpcError>) -> Next {
        let Some(session) = self.to_restore.clone() else { return self.request_new() };
        let loaded = pending == Request::Load;
        let restored = outcome
            .is_ok_and(|result| acp::session_restored(result, &session, self.replayed, loaded));
        match (restored, loaded) {
            (true, true) => Next::Ready(session, Continuity::Loaded),
            (true, false) => Next::Ready(session, Continuity::Resumed),
            (false, false) if self.can_load => self.request_load(&session),
            (false, _) => self.request_new(),
        }
    }

    fn request_session(&mut self) -> Next {
        match self.to_restore.clone() {
            Some(session) if self.can_resume => {
                let id = self.next_request(Request::Resume);
                Next::Send(acp::resume_session_line(id, &session, &self.cwd))
            }
            Some(session) if self.can_load => self.request_load(&session),
            Some(_) | None => self.request_new(),
        }
    }

    fn request_load(&mut self, session: &SessionId) -> Next {
        let id = self.next_request(Request::Load);
        Next::Send(acp::load_session_line(id, session, &self.cwd))
    }

    fn request_new(&mut self) -> Next {
        let id = self.next_request(Request::New);
        Next::Send(acp::new_session_line(id, &self.cwd))
    }

    fn next_request(&mut self, pending: Request) -> u64 {
        self.pending = pending;
        self.id += 1;
        self.id
    }
}

/// Returns what follows from the refusal of a request without which there is no session.
fn refused(method: &str, err: &acp::RpcError) -> Next {
    let why = format!("it refused {method}: {err}");
    match err.kind {
        ErrorKind::Auth => Next::WantLogin(why),
        ErrorKind::Passing | ErrorKind::Lasting => Next::Fail(why),
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
        let to_restore = session.map(|id| SessionId(id.into()));
        let (mut handshake, first) = Handshake::new("/tmp".into(), None, to_restore);
        let method = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["method"].as_str().unwrap().to_owned()
        };
        let mut asked = vec![method(&first)];
        for (id, answer) in (1..).zip(answers) {
            assert_eq!(handshake.on_response(99, Ok("{}")), None, "a response to another request");
            let kind = |code| if code == -32000 { ErrorKind::Auth } else { ErrorKind::Passing };
            let error = |code: &i64| acp::RpcError {
                code: Some(*code),
                kind: kind(*code),
                message: "no".into(),
            };
            match handshake.on_response(id, answer.as_ref().copied().map_err(error)).unwrap() {
                Next::Send(line) => asked.push(method(&line)),
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
    fn a_session_is_restored_by_the_best_method_of_the_agent() {
        #[rustfmt::skip]
        let cases: [Case; 6] = [
            ("first",           None,      &[Ok(RESUMES), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::New)),
            ("resume",          Some("s"), &[Ok(RESUMES), Ok("{}")],                       &["initialize", "session/resume"],                               ready("s", Continuity::Resumed)),
            ("load",            Some("s"), &[Ok(LOADS), Ok(r#"{"modes":null,"x":1}"#)],    &["initialize", "session/load"],                                 ready("s", Continuity::Loaded)),
            ("resume fails",    Some("s"), &[Ok(RESUMES), Err(-32603), Ok(r#"{"x":1}"#)],  &["initialize", "session/resume", "session/load"],               ready("s", Continuity::Loaded)),
            ("both fail",       Some("s"), &[Ok(RESUMES), Err(1), Err(-32002), Ok(NEW)],   &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
            ("no method",       Some("s"), &[Ok(NEITHER), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::Lost)),
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
    fn updates_during_a_restore_are_a_replay() {
        let (mut handshake, _) = Handshake::new("/tmp".into(), None, Some(SessionId("s".into())));
        assert!(!handshake.is_replay(), "no restore yet");
        handshake.on_response(1, Ok(RESUMES)).unwrap();
        assert!(handshake.is_replay(), "resume");
        handshake
            .on_response(
                2,
                Err(acp::RpcError {
                    code: Some(-32603),
                    kind: ErrorKind::Passing,
                    message: "no".into(),
                }),
            )
            .unwrap();
        assert!(handshake.is_replay(), "load");
    }

    #[test]
    fn an_unusable_agent_fails_with_the_reason() {
        for (answers, why) in [
            (&[Ok(r#"{"protocolVersion":7}"#)][..], "ACP version 7"),
            (&[Ok("[]")], "no ACP agent"),
            (&[Err(-32603)], "refused initialize"),
            (&[Ok(NEITHER), Err(-32603)], "refused session/new"),
        ] {
            let (_, end) = play(None, answers);
            assert!(matches!(&end, Next::Fail(text) if text.contains(why)), "{end:?}");
        }
    }

    /// The session to restore, the answers, and the reason.
    type Refusal<'a> = (Option<&'a str>, &'a [Result<&'a str, i64>], &'a str);

    /// DQ-13: whichever request the agent refuses, a session to restore is not given up.
    #[test]
    fn an_agent_that_wants_a_login_gets_no_further_request() {
        #[rustfmt::skip]
        let cases: [Refusal<'_>; 5] = [
            (None,      &[Err(-32000)],                                "refused initialize"),
            (None,      &[Ok(NEITHER), Err(-32000)],                   "refused session/new"),
            (Some("s"), &[Ok(LOADS), Err(-32000)],                     "refused session/load"),
            (Some("s"), &[Ok(RESUMES), Err(-32000)],                   "refused session/resume"),
            (Some("s"), &[Ok(RESUMES), Err(-32603), Err(-32000)],      "refused session/load"),
        ];
        for (session, answers, why) in cases {
            let (_, end) = play(session, answers);
            assert!(matches!(&end, Next::WantLogin(text) if text.contains(why)), "{end:?}");
        }
    }
}
