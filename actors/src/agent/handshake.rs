//! The ACP handshake: from a new process to a session, restored if possible, else a new one.

use std::{path::PathBuf, time::Duration};

use greenroom_core::{Continuity, ErrorKind, FailedStart, Loss, PromptCapabilities, SessionId};

use crate::acp;

/// How long the agent has to be quiet after it restored a session: some agents, such as
/// gemini-cli, replay the session after their answer, and a prompt among that would get its words
/// as its answer. They write it at once; the time is for a machine with much else to do.
const QUIET: Duration = Duration::from_millis(250);
/// How long greenroom waits for the begin of a replay if the answer to a `session/load` is empty:
/// only that shows that the agent knows the session.
const REPLAY_BEGINS: Duration = Duration::from_secs(1);
/// The longest wait for quiet, for an agent that is never quiet.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// The state of a handshake.
#[derive(Debug)]
pub struct Handshake {
    cwd: PathBuf,
    auth_method: Option<String>,
    /// The session to restore.
    to_restore: Option<SessionId>,
    /// Whether a new session may replace it after an error.
    may_replace: bool,
    can_load: bool,
    can_resume: bool,
    /// The content blocks that the agent takes.
    prompts: PromptCapabilities,
    phase: Phase,
    /// The id of the last request.
    id: u64,
    /// Whether the agent replayed a part of the session since the last request.
    replayed: bool,
    /// Whether an answer to a resume says that the session does not exist.
    is_denied: bool,
    /// How the agent did not restore the session, once another one is requested.
    loss: Option<Loss>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The agent was asked, and has not answered.
    Asked(Request),
    /// The agent answered a load with nothing, and may replay the session yet.
    InDoubt,
    /// The agent restored the session, and may still replay it.
    Restored(Continuity),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Initialize,
    Authenticate,
    Resume,
    Load,
    New,
}

/// What follows from a response, or from the end of a replay.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Send this request.
    Send(String),
    /// Call [`Handshake::on_quiet`] once the agent was quiet for [`Handshake::quiet_time`].
    AwaitQuiet,
    /// The agent is ready for prompts.
    Ready(SessionId, Continuity),
    /// The agent cannot be used now.
    Fail(String),
    /// The agent cannot be used, and each start would show that.
    FailAlways(String),
    /// The agent wants a login first.
    WantLogin(String),
}

impl Handshake {
    /// Starts a handshake; returns it and its first line. `may_replace`: a new session may replace
    /// the one to restore if the agent answers with an error, whatever it says.
    pub fn new(
        cwd: PathBuf,
        auth_method: Option<String>,
        to_restore: Option<SessionId>,
        may_replace: bool,
    ) -> (Self, String) {
        let handshake = Self {
            cwd,
            auth_method,
            to_restore,
            may_replace,
            can_load: false,
            can_resume: false,
            prompts: PromptCapabilities::default(),
            phase: Phase::Asked(Request::Initialize),
            id: 1,
            replayed: false,
            is_denied: false,
            loss: None,
        };
        (handshake, acp::initialize_line(1))
    }

    /// Returns the method of the last request.
    pub fn pending_method(&self) -> &'static str {
        match self.phase {
            Phase::Asked(Request::Initialize) => "initialize",
            Phase::Asked(Request::Authenticate) => "authenticate",
            Phase::Asked(Request::Resume) | Phase::Restored(Continuity::Resumed) => {
                "session/resume"
            }
            Phase::Asked(Request::Load) | Phase::InDoubt | Phase::Restored(_) => "session/load",
            Phase::Asked(Request::New) => "session/new",
        }
    }

    /// Whether the agent restores a session now, and has not answered.
    pub fn is_restoring(&self) -> bool {
        matches!(self.phase, Phase::Asked(Request::Load | Request::Resume))
    }

    /// Returns what an end of the agent now shows of the next start.
    pub fn failed_start(&self) -> FailedStart {
        match self.phase {
            Phase::Asked(Request::Load | Request::Resume) => FailedStart::InRestore,
            Phase::InDoubt | Phase::Restored(_) => FailedStart::InRestore,
            Phase::Asked(Request::Initialize | Request::Authenticate | Request::New) => {
                FailedStart::Passing
            }
        }
    }

    /// Returns how the agent did not restore the session, if it opened another one.
    pub fn take_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    /// Returns for how long the agent has to be quiet now, if greenroom waits for that.
    pub fn quiet_time(&self) -> Option<Duration> {
        match self.phase {
            Phase::Asked(_) => None,
            Phase::InDoubt => Some(REPLAY_BEGINS),
            Phase::Restored(_) => Some(QUIET),
        }
    }

    /// Whether an update belongs to a replay, which is not stored. While the agent restores the
    /// session that is any update; hermes replays on `session/resume` too, against the protocol.
    /// After the answer it is what an agent does not send unasked (`is_history`).
    pub fn is_replay(&mut self, is_history: bool) -> bool {
        let replay = self.is_restoring() || (self.quiet_time().is_some() && is_history);
        self.replayed |= replay;
        if replay && self.phase == Phase::InDoubt {
            self.phase = Phase::Restored(Continuity::Loaded);
        }
        replay
    }

    /// Whether the agent can neither load nor resume a session.
    pub fn is_forgetful(&self) -> bool {
        !self.can_load && !self.can_resume
    }

    /// Returns the id of the open request, which is the number of them so far, too.
    pub fn request(&self) -> Option<u64> {
        matches!(self.phase, Phase::Asked(_)).then_some(self.id)
    }

    /// Returns the content blocks that the agent takes.
    pub fn prompts(&self) -> PromptCapabilities {
        self.prompts
    }

    /// Whether the answer to the last request names a new session.
    pub fn opens_session(&self) -> bool {
        self.phase == Phase::Asked(Request::New)
    }

    /// Handles a response; `None` if it is not to the last request.
    pub fn on_response(&mut self, id: u64, outcome: Result<&str, acp::RpcError>) -> Option<Next> {
        let Phase::Asked(request) = self.phase else { return None };
        if id != self.id {
            return None;
        }
        Some(match (request, outcome) {
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
            (request @ (Request::Resume | Request::Load), outcome) => {
                self.on_restored(request == Request::Load, outcome)
            }
            (Request::New, Ok(result)) => match acp::opened_session(result) {
                Ok(session) if self.to_restore.is_some() => Next::Ready(session, Continuity::Lost),
                Ok(session) => Next::Ready(session, Continuity::New),
                Err(why) => Next::Fail(why),
            },
            (Request::New, Err(err)) => refused("session/new", &err),
        })
    }

    /// Handles the quiet after a restore: no replay follows any more. An empty answer without one
    /// is as doubtful as an error that may pass.
    pub fn on_quiet(&mut self) -> Next {
        match (self.phase, self.to_restore.clone()) {
            (Phase::Restored(continuity), Some(session)) => Next::Ready(session, continuity),
            (Phase::InDoubt, Some(_)) => {
                let cause = "session/load: its answer is empty, and it replayed nothing".into();
                self.fail_or_replace(Loss { cause, is_unknown: self.is_denied })
            }
            (Phase::Asked(_) | Phase::InDoubt | Phase::Restored(_), _) => self.request_new(),
        }
    }

    /// Requests another session, if the agent does not know the one to restore, or at the last
    /// attempt. Else the session is kept, and another run tries again.
    fn fail_or_replace(&mut self, loss: Loss) -> Next {
        if self.may_replace || loss.is_unknown {
            self.loss = Some(loss);
            return self.request_new();
        }
        Next::Fail(format!("it did not restore its session: {}", loss.cause))
    }

    /// Handles the response to a load, or to a resume. An error that does not say that the session
    /// is gone may pass: the session is kept, and another run tries again.
    fn on_restored(&mut self, loaded: bool, outcome: Result<&str, acp::RpcError>) -> Next {
        let Some(session) = self.to_restore.clone() else { return self.request_new() };
        let method = if loaded { "session/load" } else { "session/resume" };
        match outcome {
            Ok(result) => match acp::restored(result, &session, loaded) {
                Some(true) => {
                    let way = if loaded { Continuity::Loaded } else { Continuity::Resumed };
                    self.await_quiet(Phase::Restored(way))
                }
                None if self.replayed => self.await_quiet(Phase::Restored(Continuity::Loaded)),
                None => self.await_quiet(Phase::InDoubt),
                Some(false) if !loaded && self.can_load => {
                    self.is_denied = true;
                    self.request_load(&session)
                }
                Some(false) => {
                    let cause = format!("{method}: its answer names another session");
                    self.fail_or_replace(Loss { cause, is_unknown: true })
                }
            },
            Err(err) if !loaded && self.can_load => {
                self.is_denied = acp::is_session_gone(&err);
                self.request_load(&session)
            }
            Err(err) => {
                let is_unknown = acp::is_session_gone(&err);
                self.fail_or_replace(Loss { cause: format!("{method}: {err}"), is_unknown })
            }
        }
    }

    fn await_quiet(&mut self, phase: Phase) -> Next {
        self.phase = phase;
        Next::AwaitQuiet
    }

    fn request_session(&mut self) -> Next {
        match self.to_restore.clone() {
            Some(session) if self.can_resume => {
                let id = self.next_request(Request::Resume);
                Next::Send(acp::resume_session_line(id, &session, &self.cwd))
            }
            Some(session) if self.can_load => self.request_load(&session),
            Some(_) => {
                let cause = "the agent can neither load nor resume a session".into();
                self.loss = Some(Loss { cause, is_unknown: false });
                self.request_new()
            }
            None => self.request_new(),
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

    fn next_request(&mut self, request: Request) -> u64 {
        self.phase = Phase::Asked(request);
        self.replayed = false;
        self.id += 1;
        self.id
    }
}

/// Returns what follows from the refusal of a request without which there is no session.
fn refused(method: &str, err: &acp::RpcError) -> Next {
    let why = format!("it refused {method}: {err}");
    match err.kind {
        ErrorKind::Auth => Next::WantLogin(why),
        ErrorKind::Lasting => Next::FailAlways(why),
        ErrorKind::Passing => Next::Fail(why),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RESUMES: &str = r#"{"protocolVersion":1,"agentCapabilities":{"loadSession":true,"sessionCapabilities":{"resume":{}}}}"#;
    const LOADS: &str = r#"{"protocolVersion":1,"agentCapabilities":{"loadSession":true}}"#;
    const RESUME_ONLY: &str =
        r#"{"protocolVersion":1,"agentCapabilities":{"sessionCapabilities":{"resume":{}}}}"#;
    const NEITHER: &str = r#"{"protocolVersion":1}"#;
    const NEW: &str = r#"{"sessionId":"fresh"}"#;
    /// The answer of hermes to the resume of a session that it does not know.
    const ANOTHER: &str =
        r#"{"_meta":{"hermes":{"sessionProvenance":{"acpSessionId":"another"}}}}"#;

    fn error(code: i64, message: &str) -> acp::RpcError {
        let kind = match code {
            -32000 => ErrorKind::Auth,
            -32602 => ErrorKind::Lasting,
            _ => ErrorKind::Passing,
        };
        acp::RpcError { code: Some(code), kind, message: message.into() }
    }

    /// Plays the agent: `answers` in order, `Err` for a JSON-RPC error. It is quiet between them.
    fn play(session: Option<&str>, answers: &[Result<&str, i64>]) -> (Vec<String>, Next) {
        play_restore(session, false, answers)
    }

    fn play_restore(
        session: Option<&str>,
        may_replace: bool,
        answers: &[Result<&str, i64>],
    ) -> (Vec<String>, Next) {
        let to_restore = session.map(|id| SessionId(id.into()));
        let (mut handshake, first) = Handshake::new("/tmp".into(), None, to_restore, may_replace);
        let method = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["method"].as_str().unwrap().to_owned()
        };
        let mut asked = vec![method(&first)];
        for (id, answer) in (1..).zip(answers) {
            assert_eq!(handshake.on_response(99, Ok("{}")), None, "a response to another request");
            let answer = answer.map_err(|code| error(code, "no"));
            let mut next = handshake.on_response(id, answer).unwrap();
            if next == Next::AwaitQuiet {
                assert_eq!(handshake.on_response(id, Ok("{}")), None, "the same response twice");
                next = handshake.on_quiet();
            }
            match next {
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
        let cases: [Case; 9] = [
            ("first",           None,      &[Ok(RESUMES), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::New)),
            ("resume",          Some("s"), &[Ok(RESUMES), Ok("{}")],                       &["initialize", "session/resume"],                               ready("s", Continuity::Resumed)),
            ("load",            Some("s"), &[Ok(LOADS), Ok(r#"{"modes":null,"x":1}"#)],    &["initialize", "session/load"],                                 ready("s", Continuity::Loaded)),
            ("resume fails",    Some("s"), &[Ok(RESUMES), Err(-32603), Ok(r#"{"x":1}"#)],  &["initialize", "session/resume", "session/load"],               ready("s", Continuity::Loaded)),
            ("both fail",       Some("s"), &[Ok(RESUMES), Err(1), Err(-32002), Ok(NEW)],   &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
            ("resume gone",     Some("s"), &[Ok(RESUME_ONLY), Err(-32002), Ok(NEW)],       &["initialize", "session/resume", "session/new"],                ready("fresh", Continuity::Lost)),
            ("gone, and empty", Some("s"), &[Ok(RESUMES), Err(-32002), Ok("{}"), Ok(NEW)], &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
            ("hermes' way",     Some("s"), &[Ok(RESUMES), Ok(ANOTHER), Ok("{}"), Ok(NEW)], &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
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

    type Fails<'a> = (&'a str, &'a [Result<&'a str, i64>], &'a str);

    /// I16: an error that may pass does not throw the session away, until it is the last attempt.
    #[test]
    fn an_error_that_may_pass_keeps_the_session() {
        #[rustfmt::skip]
        let cases: [Fails; 3] = [
            ("load",            &[Ok(LOADS), Err(-32603)],                "session/load"),
            ("resume",          &[Ok(RESUME_ONLY), Err(-32603)],          "session/resume"),
            ("load at last",    &[Ok(RESUMES), Err(-32002), Err(-32603)], "session/load"),
        ];
        for (name, answers, method) in cases {
            let (_, end) = play(Some("s"), answers);
            let why = format!("it did not restore its session: {method}: no (error -32603)");
            assert_eq!(end, Next::Fail(why), "{name}");
            let (_, end) = play_restore(Some("s"), true, &[answers, &[Ok(NEW)]].concat());
            assert_eq!(end, ready("fresh", Continuity::Lost), "{name}");
        }
    }

    /// I16: an empty answer to a load, with no replay after it, is as doubtful as such an error.
    #[test]
    fn an_empty_answer_to_a_load_keeps_the_session() {
        for empty in ["null", "{}"] {
            for answers in [&[Ok(LOADS), Ok(empty)][..], &[Ok(RESUMES), Err(-32603), Ok(empty)]] {
                let (_, end) = play(Some("s"), answers);
                let expected = "it did not restore its session: session/load: its answer is empty";
                let Next::Fail(why) = &end else { panic!("{empty}: {end:?}") };
                assert!(why.starts_with(expected), "{why}");
                let (_, end) = play_restore(Some("s"), true, &[answers, &[Ok(NEW)]].concat());
                assert_eq!(end, ready("fresh", Continuity::Lost), "{empty}, at the last attempt");
            }
        }
    }

    /// A-4: what the agent writes between the request and the quiet after its answer is a replay,
    /// but for what agents send unasked; an empty answer with a replay after it is a success.
    #[test]
    fn updates_of_a_restore_are_a_replay() {
        let begin = || Handshake::new("/tmp".into(), None, Some(SessionId("s".into())), false).0;
        let mut handshake = begin();
        assert!(!handshake.is_replay(true), "no restore yet");
        handshake.on_response(1, Ok(RESUMES)).unwrap();
        assert!(handshake.is_replay(false), "resume");
        handshake.on_response(2, Err(error(-32603, "no"))).unwrap();
        assert!(handshake.is_replay(true), "load");
        assert_eq!(handshake.on_response(3, Ok("{}")), Some(Next::AwaitQuiet));
        assert_eq!(handshake.quiet_time(), Some(QUIET), "it was replayed");
        assert!(handshake.is_replay(true) && !handshake.is_replay(false), "after the answer");
        assert_eq!(handshake.on_quiet(), ready("s", Continuity::Loaded));

        let mut handshake = begin();
        handshake.on_response(1, Ok(LOADS)).unwrap();
        assert_eq!(handshake.on_response(2, Ok("null")), Some(Next::AwaitQuiet));
        assert_eq!(handshake.quiet_time(), Some(REPLAY_BEGINS));
        assert!(!handshake.is_replay(false));
        assert_eq!(handshake.quiet_time(), Some(REPLAY_BEGINS), "sent unasked, it shows nothing");
        assert!(handshake.is_replay(true));
        assert_eq!(handshake.quiet_time(), Some(QUIET), "the session is known");
        assert_eq!(handshake.on_quiet(), ready("s", Continuity::Loaded));
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

    /// DQ-8: a request without which there is no session, and whose error lasts, is not repeated;
    /// an error on a load may pass for the next session.
    #[test]
    fn an_error_that_lasts_ends_each_start() {
        #[rustfmt::skip]
        let cases: [(&[Result<&str, i64>], &str); 2] = [
            (&[Err(-32602)],              "it refused initialize"),
            (&[Ok(NEITHER), Err(-32602)], "it refused session/new"),
        ];
        for (answers, why) in cases {
            let (_, end) = play(None, answers);
            assert!(matches!(&end, Next::FailAlways(text) if text.starts_with(why)), "{end:?}");
        }
        let (_, end) = play(Some("s"), &[Ok(LOADS), Err(-32602)]);
        assert!(matches!(&end, Next::Fail(_)), "{end:?}");
    }

    /// I16: which answers show how a session was lost.
    #[test]
    fn the_loss_of_a_session_has_its_cause() {
        type Case<'a> = (&'a [Result<&'a str, i64>], &'a str, bool);
        #[rustfmt::skip]
        let cases: [Case<'_>; 5] = [
            (&[Ok(NEITHER)],                       "the agent can neither load nor resume a session", false),
            (&[Ok(LOADS), Err(-32002)],            "session/load: no (error -32002)", true),
            (&[Ok(LOADS), Err(-32603)],            "session/load: no (error -32603)", false),
            (&[Ok(RESUME_ONLY), Ok(ANOTHER)],      "session/resume: its answer names another session", true),
            (&[Ok(LOADS), Ok("{}")],               "session/load: its answer is empty, and it replayed nothing", false),
        ];
        for (answers, cause, is_unknown) in cases {
            let (mut handshake, _) =
                Handshake::new("/tmp".into(), None, Some(SessionId("s".into())), true);
            for (id, answer) in (1..).zip(answers) {
                let next = handshake.on_response(id, answer.map_err(|code| error(code, "no")));
                if next == Some(Next::AwaitQuiet) {
                    handshake.on_quiet();
                }
            }
            let expected = Loss { cause: cause.into(), is_unknown };
            assert_eq!(handshake.take_loss(), Some(expected), "{answers:?}");
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
