//! What a run does with each message of its agent.

use greenroom_core::{Event, ExitReason, FailedStart, Json, OutputSummary, Provenance, SessionId};

use super::RunLoop;
use crate::{
    acp::{self, Notification},
    agent::{
        batch::single,
        check::Answered,
        compaction_detector::Detected,
        handshake::{Handshake, Next},
    },
};

impl RunLoop {
    /// Reports what a message is to the group, or answers it.
    pub(super) fn on_message(&mut self, line: &str, message: acp::Message<'_>) {
        match message {
            acp::Message::Notification(notification) => {
                let is_update = notification.kind == "session/update";
                if let Some(handshake) = self.handshake.as_mut().filter(|_| is_update) {
                    if handshake.is_replay(notification.summary.has_output) {
                        return;
                    }
                    if handshake.quiet_time().is_some() {
                        return self.hold_back(line);
                    }
                }
                self.on_notification(line, notification);
            }
            acp::Message::Permission { mut asked, tool } => {
                let known = tool.as_deref().and_then(|tool| self.tools.kind(tool));
                asked.tool_kind = asked.tool_kind.or_else(|| known.map(str::to_owned));
                let lines = single(line, "session/request_permission".into());
                self.batch.push(Event::PermissionAsked { run: self.run, lines, asked });
            }
            acp::Message::Request { id, kind, private } => {
                self.stdin.send(acp::refusal_line(id));
                if private {
                    let (run, method) = (self.run, kind.into_owned());
                    log::warn!(run:%, method; "agent request refused");
                    self.batch.push(Event::RequestRefused { run, method });
                } else {
                    let summary = OutputSummary { has_output: true, ..OutputSummary::default() };
                    self.batch.push_line(line, kind, None, summary);
                }
            }
            acp::Message::Response { id, outcome } => match &mut self.handshake {
                Some(handshake) => {
                    if let Some(observer) = &self.observer {
                        let method = handshake.pending_method();
                        let outcome = outcome.clone().map(str::to_owned);
                        // The observer may be gone.
                        _ = observer.send(Answered { method, outcome });
                    }
                    let provenance =
                        outcome.as_ref().ok().and_then(|result| self.detector.provenance(result));
                    if let Some(next) = handshake.on_response(id, outcome) {
                        self.provenance = provenance;
                        self.on_handshake(next);
                    }
                }
                None if self.sessions.take_pending(id) => {
                    let opened = self.opened_session(outcome);
                    self.batch.push(Event::SessionOpened { run: self.run, id, opened });
                }
                None => {
                    if let Some((_, line)) = self.prompt.take_if(|(prompt, _)| *prompt == id) {
                        self.answered = line;
                    }
                    self.drain_stderr();
                    let reply = self.tokens.read(acp::prompt_reply(outcome));
                    let reply = self.answer.interpret(reply);
                    let (run, response) = (self.run, Json::parse(line.to_owned()).ok());
                    let event = Event::PromptAnswered { run, id, reply, response };
                    self.batch.push_sized(event, line.len());
                }
            },
        }
    }

    /// Returns the id of the open request, if an answer without an id can be to nothing else: no
    /// other line was sent since, such as a cancel or the answer to a permission. An agent that
    /// does not know a cancel may answer it after its turn, when it reads the next line; it has
    /// read it once it has answered a later prompt, or answered something without an id.
    ///
    /// `is_of_unknown`: the answer is one to a request that the agent does not know.
    pub(super) fn only_request(&mut self, is_of_unknown: bool) -> Option<u64> {
        let (sent, cancel) = (self.stdin.sent(), self.stdin.cancel());
        let is_cancel_open = is_of_unknown && cancel > self.answered;
        if is_of_unknown {
            self.answered = self.answered.max(cancel);
        }
        match &self.handshake {
            Some(handshake) => handshake.request().filter(|id| *id == sent),
            None if is_cancel_open => None,
            None => self.prompt.filter(|(_, line)| *line == sent).map(|(id, _)| id),
        }
    }

    /// Whether the answer to this request names a new session.
    pub(super) fn opens_session(&self, request: u64) -> bool {
        self.handshake.as_ref().is_some_and(Handshake::opens_session)
            || self.sessions.is_pending(request)
    }

    /// Reports a notification first, and then what it reports about the context, so that its frame
    /// belongs to the segment that the boundary closes. The run reads nothing from one about
    /// another session.
    fn on_notification(&mut self, line: &str, notification: Notification<'_>) {
        let run = self.run;
        let Notification { kind, summary, session, tool_kind, context } = notification;
        let is_other = self.sessions.is_other(session.as_deref());
        if !is_other {
            self.answer.add(&summary);
            summary.usage.iter().for_each(|usage| self.tokens.on_usage(usage.used));
        }
        self.batch.push_line(line, kind, session.as_deref(), summary);
        if is_other {
            return;
        }
        if let Some((tool, kind)) = tool_kind.map(|tool_kind| *tool_kind) {
            self.tools.insert(tool, kind);
        }
        let Some(context) = context else { return };
        let Detected { signal, provenance } = self.detector.update(*context);
        if let Some(signal) = signal {
            self.batch.push(Event::Signalled { run, signal: signal.into() });
        }
        if let Some(provenance) = provenance {
            self.batch.push(Event::ProvenanceGiven { run, provenance });
        }
    }

    /// Parses the response to the request for a new session.
    fn opened_session(
        &mut self,
        outcome: Result<&str, acp::RpcError>,
    ) -> Result<(SessionId, Option<Provenance>), String> {
        let result = outcome.map_err(|err| format!("the agent refused another session: {err}"))?;
        let session = acp::opened_session(result)?;
        Ok((session, self.detector.provenance(result)))
    }

    pub(super) fn on_handshake(&mut self, next: Next) {
        match next {
            Next::Send(line) => self.stdin.send(line),
            Next::AwaitQuiet => self.await_quiet(),
            Next::Ready(session, continuity) => {
                let handshake = self.handshake.take();
                let is_forgetful = handshake.as_ref().is_some_and(Handshake::is_forgetful);
                let prompts = handshake.as_ref().map(Handshake::prompts);
                let loss = handshake.and_then(|mut handshake| handshake.take_loss());
                self.termination.on_ready();
                self.sessions.set_current(session.clone());
                let (run, pid) = (self.run, self.pid.unwrap_or_default());
                let provenance = self.provenance.take();
                self.batch.push(Event::AgentReady {
                    run,
                    pid,
                    session,
                    continuity,
                    provenance,
                    is_forgetful,
                    prompts,
                    loss,
                });
            }
            Next::Fail(why) => self.termination.kill(ExitReason::StartFailed, &why),
            Next::FailAlways(why) => {
                self.failed_start = Some(FailedStart::Lasting);
                self.termination.kill(ExitReason::StartFailed, &why);
            }
            Next::WantLogin(why) => {
                let command = self.profile.command.display();
                let why = format!("{command} wants a login: {why}");
                self.termination.kill(ExitReason::AgentAuth, &why);
            }
        }
    }
}
