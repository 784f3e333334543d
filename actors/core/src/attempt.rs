//! An attempt: its output so far, who cancels it, and how it is settled.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::{
    Cause, EndState, Ending, ErrorKind, ExitReason, Fact, Interrupted, OutputSummary, PromptReply,
    RunId, SessionId, SideEffects, StopReason, TaskError, TokensSpent, Usage,
    bounded_text::BoundedText, session_move::SessionMove,
};

/// The most names of open tool calls that an attempt keeps, in bytes (I11).
const OPEN_TOOLS_BYTES_MAX: usize = 64 << 10;

/// The running attempt: its prompt is committed, and it is not settled.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The run that gets the prompt.
    pub run: RunId,
    /// JSON-RPC's id of the prompt: the `seq` of its frame, so that it is unique in the group.
    pub prompt_id: u64,
    /// Who cancels it, if it is being cancelled.
    pub cancel_reason: Option<CancelReason>,
    /// The request that opens another session, once the agent has given its summary.
    pub opening: Option<u64>,
    /// Whether the group was archived since it began, and perhaps revived.
    pub is_archived: bool,
    /// Whether the agent may replay its session: what comes before words of the user is history.
    pub(crate) may_replay: bool,
    has_output: bool,
    /// Whether there was output in the prompted session, or in that to which the agent moved.
    has_own_output: bool,
    has_answer: bool,
    has_tools: bool,
    /// Whether output could not be read: any of it may have been a tool call.
    has_unread_output: bool,
    text: BoundedText,
    sessions: SessionMove,
    usage: Option<Usage>,
    open_tools: BTreeSet<String>,
    open_tools_bytes: usize,
    /// Whether tool calls began without a name, or without room for it. Their ends are unknown.
    unnamed_tools: bool,
}

/// Who cancels an attempt. The first one stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// A caller.
    Caller,
    /// Its deadline.
    Deadline,
    /// The server's shutdown.
    Shutdown,
}

/// How an attempt ends.
pub(crate) struct Settlement {
    pub stop_reason: StopReason,
    pub state: EndState,
    pub ending: Ending,
    /// Whether the agent wants a login before it works on any prompt.
    pub wants_login: bool,
    /// What it spent, as the agent reports.
    pub tokens: Option<Box<TokensSpent>>,
    /// Whether the task may be retried: greenroom saw the attempt's end, there was no output, and
    /// nothing cancelled it.
    pub retryable: bool,
}

impl Attempt {
    /// A new attempt, without output.
    pub fn new(run: RunId, prompt_id: u64) -> Self {
        Self {
            run,
            prompt_id,
            cancel_reason: None,
            opening: None,
            is_archived: false,
            may_replay: false,
            has_output: false,
            has_own_output: false,
            has_answer: false,
            has_tools: false,
            has_unread_output: false,
            text: BoundedText::default(),
            sessions: SessionMove::default(),
            usage: None,
            open_tools: BTreeSet::new(),
            open_tools_bytes: 0,
            unnamed_tools: false,
        }
    }

    /// Whether there was output: proof that the agent received the prompt.
    pub(crate) fn has_output(&self) -> bool {
        self.has_output
    }

    /// Whether there was output in the prompted session, or in that to which the agent moved: then
    /// that has read what the prompt carried.
    pub(crate) fn has_own_output(&self) -> bool {
        self.has_own_output
    }

    /// Discards the proof that the agent received the prompt.
    pub(crate) fn discard_output(&mut self) {
        (self.has_output, self.has_own_output) = (false, false);
    }

    /// Returns the agent's message text so far.
    pub(crate) fn text(&self) -> &str {
        self.text.as_str()
    }

    /// Whether the agent wrote message text, or called a tool.
    pub(crate) fn has_answer(&self) -> bool {
        self.has_answer
    }

    /// Whether the agent called a tool.
    pub(crate) fn has_tools(&self) -> bool {
        self.has_tools
    }

    /// Applies a fact about the attempt: who cancels it, that the group was archived, that the
    /// agent may replay its session, or that a line which began as a message could not be read.
    /// Ignores other facts.
    pub fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::CancelRequested { .. } => {
                _ = self.cancel_reason.get_or_insert(CancelReason::Caller)
            }
            Fact::TurnCut { cause, .. } => {
                self.cancel_reason.get_or_insert(match cause {
                    Cause::Deadline => CancelReason::Deadline,
                    Cause::AgentExited
                    | Cause::ServerRestart
                    | Cause::Protocol
                    | Cause::Storage => CancelReason::Shutdown,
                });
            }
            Fact::GroupArchived {} => self.is_archived = true,
            Fact::TurnStarted { after_restore, .. } => self.may_replay = *after_restore,
            Fact::AgentOutputRejected { .. } => self.has_unread_output |= fact.is_bare_output(),
            _ => {}
        }
    }

    /// Adds output of the agent.
    pub fn add_output(&mut self, summary: &OutputSummary) {
        // It is no answer to the prompt; still the agent may have acted.
        if summary.is_users && self.may_replay {
            self.text = BoundedText::default();
            (self.has_answer, self.has_tools) = (false, false);
        }
        self.has_output |= summary.has_output || summary.elsewhere().is_some();
        self.has_own_output |= summary.has_output;
        // How the tools of another session ended is not followed.
        self.unnamed_tools |= summary.elsewhere().is_some_and(|other| other.has_tools);
        self.sessions.add(summary);
        self.has_answer |= summary.has_answer;
        self.has_tools |= !summary.tools.is_empty();
        self.usage = summary.usage.clone().or(self.usage.take());
        for update in &summary.tools {
            let tool = &update.call;
            if update.is_open() && tool.is_empty() {
                self.unnamed_tools = true;
            } else if !update.is_open() {
                self.open_tools_bytes -= if self.open_tools.remove(tool) { tool.len() } else { 0 };
            } else if self.open_tools_bytes + tool.len() > OPEN_TOOLS_BYTES_MAX {
                self.unnamed_tools |= !self.open_tools.contains(tool);
            } else if self.open_tools.insert(tool.clone()) {
                self.open_tools_bytes += tool.len();
            }
        }
        self.text.push(&summary.text);
    }

    /// Returns the session to which the agent moved by itself, if the attempt ends now (AM-13).
    /// While a tool call is open, another session may be that of the subagent which it started.
    pub(crate) fn moved_to(&self) -> Option<&SessionId> {
        self.sessions.target().filter(|_| self.open_tools.is_empty())
    }

    /// Counts the answer that the agent continued in this session, to which it has moved.
    pub(crate) fn follow(&mut self, session: &SessionId) {
        if let Some((text, has_answer)) = self.sessions.take(session) {
            self.text.append(&text);
            self.has_answer |= has_answer;
            self.has_own_output = true;
        }
    }

    /// Returns how the attempt ends by the agent's reply. A response that reports success wins over
    /// a cancel that came too late (R-2: cancel × response).
    pub(crate) fn settle_by_reply(&self, reply: PromptReply) -> Settlement {
        let mut ending = self.ending_so_far();
        let kind = match &reply {
            PromptReply::Failed { kind, .. } => Some(*kind),
            PromptReply::Stopped { .. }
            | PromptReply::Queued { .. }
            | PromptReply::Unclear { .. } => None,
        };
        let retryable = kind == Some(ErrorKind::Passing) && self.is_retryable();
        let wants_login = kind == Some(ErrorKind::Auth);
        let tokens = reply.tokens();
        ending.tokens = tokens.as_ref().and_then(|spent| spent.given.clone());
        let (stop_reason, state) = match (reply, self.cancel_reason) {
            (PromptReply::Stopped { stop_reason: StopReason::Cancelled, .. }, reason) => {
                self.end_early(reason, StopReason::Cancelled, true, &mut ending)
            }
            // No success surely: a cancel that was asked for explains it, output is an answer.
            (PromptReply::Stopped { stop_reason, .. }, Some(reason))
                if stop_reason.is_unclear() =>
            {
                self.end_early(Some(reason), stop_reason, true, &mut ending)
            }
            (PromptReply::Stopped { stop_reason, .. }, None)
                if stop_reason.is_unclear() && !self.has_output =>
            {
                let message = "the agent answered the prompt without output and with no stop \
                               reason of ACP's, so whether it acted is unknown";
                let (code, message) = ("agent_answer_unclear".into(), message.into());
                ending.error = Some(TaskError { code, message });
                (stop_reason, EndState::Failed)
            }
            (PromptReply::Stopped { stop_reason, .. }, _) => (stop_reason, EndState::Completed),
            (PromptReply::Queued { .. }, _) => (StopReason::EndTurn, EndState::Completed),
            (PromptReply::Failed { .. } | PromptReply::Unclear { .. }, Some(reason)) => {
                self.end_early(Some(reason), StopReason::Error, true, &mut ending)
            }
            (PromptReply::Failed { code, message, .. }, None) => {
                let message = format!("the agent answered the prompt with error {code}: {message}");
                ending.error = Some(TaskError { code: "agent_error".into(), message });
                (StopReason::Error, EndState::Failed)
            }
            (PromptReply::Unclear { message }, None) => {
                let message = format!("the agent answered the prompt with an error: {message}");
                ending.error = Some(TaskError { code: "agent_error".into(), message });
                (StopReason::Error, EndState::Failed)
            }
        };
        ending.stop_reason = Some(stop_reason);
        Settlement { stop_reason, state, ending, wants_login, tokens, retryable }
    }

    /// Whether a retry is safe, if the attempt's end allows one: no cancel and no output.
    pub(crate) fn is_retryable(&self) -> bool {
        self.cancel_reason.is_none() && !self.has_output
    }

    /// Returns how the attempt ends by its run's exit. All output was read before, except after
    /// [`ExitReason::ServerRestart`] and [`ExitReason::Storage`].
    pub(crate) fn settle_by_exit(&self, reason: ExitReason, detail: &str) -> Settlement {
        let mut ending = self.ending_so_far();
        let retryable = reason == ExitReason::Exited && self.is_retryable();
        let is_seen = !matches!(reason, ExitReason::ServerRestart | ExitReason::Storage);
        let (stop_reason, state) = match self.cancel_reason {
            Some(by) => self.end_early(Some(by), reason.into(), is_seen, &mut ending),
            None => {
                let (cause, code) = match reason {
                    ExitReason::Protocol => (Cause::Protocol, "protocol_violation"),
                    ExitReason::ServerRestart => (Cause::ServerRestart, "server_restarted"),
                    ExitReason::Storage => (Cause::Storage, "storage_failed"),
                    ExitReason::StartFailed
                    | ExitReason::AgentAuth
                    | ExitReason::Exited
                    | ExitReason::Stopped => (Cause::AgentExited, "agent_exited"),
                };
                let message = if retryable {
                    format!("the agent ended before it gave any output: {detail}")
                } else {
                    format!("the turn was cut off and is not run again by itself: {detail}")
                };
                ending.error = Some(TaskError { code: code.into(), message });
                ending.interrupted = Some(self.interrupted(cause, is_seen));
                (reason.into(), EndState::Interrupted)
            }
        };
        ending.stop_reason = Some(stop_reason);
        Settlement { stop_reason, state, ending, wants_login: false, tokens: None, retryable }
    }

    /// Returns how a cancelled attempt ends. `is_seen`: all output was read before.
    fn end_early(
        &self,
        reason: Option<CancelReason>,
        seen: StopReason,
        is_seen: bool,
        ending: &mut Ending,
    ) -> (StopReason, EndState) {
        let (stop_reason, cause, code, message) = match reason {
            None | Some(CancelReason::Caller) => return (seen, EndState::Cancelled),
            Some(CancelReason::Deadline) => {
                let message = "the turn reached its deadline";
                (StopReason::Deadline, Cause::Deadline, "deadline", message)
            }
            Some(CancelReason::Shutdown) => {
                let message = "the server shut down before the turn ended";
                (StopReason::ServerRestart, Cause::ServerRestart, "server_restarted", message)
            }
        };
        ending.error = Some(TaskError { code: code.into(), message: message.into() });
        ending.interrupted = Some(self.interrupted(cause, is_seen));
        (stop_reason, EndState::Interrupted)
    }

    /// Returns what is known of the interrupted attempt.
    fn interrupted(&self, cause: Cause, is_seen: bool) -> Interrupted {
        let has_open_tools = self.unnamed_tools || !self.open_tools.is_empty();
        let side_effects = match (has_open_tools, self.has_output, cause) {
            (true, _, _) => SideEffects::Possible,
            _ if self.has_unread_output => SideEffects::Unknown,
            (false, false, Cause::ServerRestart | Cause::Storage) => SideEffects::Unknown,
            (false, false, _) if !is_seen => SideEffects::Unknown,
            (false, _, _) => SideEffects::NoneObserved,
        };
        Interrupted { cause, side_effects, open_tools: self.open_tools.iter().cloned().collect() }
    }

    /// Returns the ending with the output so far.
    pub fn ending_so_far(&self) -> Ending {
        let mut ending = Ending { usage: self.usage.clone(), ..Ending::default() };
        self.write_text(&mut ending);
        ending
    }

    /// Writes the agent's message text so far into the ending.
    pub(crate) fn write_text(&self, ending: &mut Ending) {
        self.text.as_str().clone_into(&mut ending.text);
        ending.text_truncated = self.text.is_truncated();
    }

    /// Returns the settlement of an attempt that did not reach its goal, if its deadline or the
    /// shutdown cut it and the agent obeyed with an answer that looks like a success.
    pub(crate) fn settle_cut(&self, settled: Settlement) -> Settlement {
        let by = self.cancel_reason.filter(|by| *by != CancelReason::Caller);
        let Settlement { mut stop_reason, mut state, mut ending, .. } = settled;
        if by.is_some() && state == EndState::Completed {
            (stop_reason, state) = self.end_early(by, stop_reason, true, &mut ending);
            ending.stop_reason = Some(stop_reason);
        }
        Settlement { stop_reason, state, ending, ..settled }
    }
}

/// Returns how a task ends whose retries are used up: no attempt had output, so it is not
/// interrupted.
pub(crate) fn fail_exhausted(mut ending: Ending, attempt: u32) -> (EndState, Ending) {
    ending.interrupted = None;
    ending.error = ending.error.map(|error| with_attempts(error, attempt));
    (EndState::Failed, ending)
}

/// Adds the number of attempts to the error of a task whose retries are used up.
pub(crate) fn with_attempts(mut error: TaskError, attempt: u32) -> TaskError {
    if attempt > 1 {
        error.message = format!("{}; given up after {attempt} attempts", error.message);
    }
    error
}
