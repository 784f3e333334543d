//! The ACP handshake: from a new process to a session, restored if possible, else a new one.

// The wait for the end of a replay.
pub mod quiet;

use std::path::PathBuf;

use greenroom_core::{Continuity, ErrorKind, FailedStart, Loss, PromptCapabilities, SessionId};

use crate::acp;

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
mod tests;
