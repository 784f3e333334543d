//! An attempt: its output so far, who cancels it, and how it is settled.

use std::collections::BTreeSet;

use crate::{
    Cause, EndState, Ending, ErrorKind, ExitReason, Fact, Interrupted, OutputSummary, PromptReply,
    RunId, SessionId, SideEffects, StopReason, TaskError, TokensSpent, Usage,
    bounded_text::BoundedText, retry::FailureKind, session_move::SessionMove,
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
    /// How it failed, if it did.
    pub failure: FailureKind,
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

    /// Applies a fact about the attempt: who cancels it, that the group was archived, or that a
    /// line which began as a message could not be read. Ignores other facts.
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
            Fact::AgentOutputRejected { .. } => self.has_unread_output |= fact.is_bare_output(),
            _ => {}
        }
    }

    /// Adds output of the agent.
    pub fn add_output(&mut self, summary: &OutputSummary) {
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
        let (is_lasting, failure) = match &reply {
            PromptReply::Failed { kind: ErrorKind::Auth, .. } => (false, FailureKind::NoLogin),
            PromptReply::Failed { kind: ErrorKind::Passing, .. } => (false, FailureKind::NoOutput),
            PromptReply::Failed { kind: ErrorKind::Lasting, .. }
            | PromptReply::Stopped { .. }
            | PromptReply::Queued { .. }
            | PromptReply::Unclear { .. } => (true, FailureKind::NoOutput),
        };
        let retryable = !is_lasting && self.is_retryable();
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
        Settlement { stop_reason, state, ending, failure, tokens, retryable }
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
        let failure = FailureKind::NoOutput;
        Settlement { stop_reason, state, ending, failure, tokens: None, retryable }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;
    use crate::{TEXT_BYTES_MAX, ToolProgress, ToolResult, ToolUpdate};

    fn attempt(reason: Option<CancelReason>, summary: OutputSummary) -> Attempt {
        let mut attempt = Attempt::new(RunId(Uuid::nil()), 1);
        attempt.cancel_reason = reason;
        attempt.add_output(&summary);
        attempt
    }

    fn update(call: &str, ended: bool) -> ToolUpdate {
        let step = if ended {
            ToolProgress::Ended(ToolResult::Completed)
        } else {
            ToolProgress::Called { tool: "x".into(), ended: None }
        };
        ToolUpdate { call: call.into(), step }
    }

    fn text(text: &str) -> OutputSummary {
        OutputSummary { has_output: true, text: text.into(), ..OutputSummary::default() }
    }

    #[test]
    fn a_success_wins_over_a_late_cancel() {
        use {EndState as T, StopReason as S};
        let stopped = |stop_reason| PromptReply::Stopped { stop_reason, tokens: None };
        let failed =
            PromptReply::Failed { code: -32603, kind: ErrorKind::Passing, message: "x".into() };
        let odd = PromptReply::Unclear { message: "x".into() };
        let own = S::from_agent("_vendor_pause");
        #[rustfmt::skip]
        let cases = [
            ("plain",              None,                   stopped(S::EndTurn),   S::EndTurn,       T::Completed),
            ("refused",            None,                   stopped(S::Refusal),   S::Refusal,       T::Completed),
            ("too late a cancel",  Some(CancelReason::Caller),    stopped(S::EndTurn),   S::EndTurn,       T::Completed),
            ("cancelled",          Some(CancelReason::Caller),    stopped(S::Cancelled), S::Cancelled,     T::Cancelled),
            ("cancelled unasked",  None,                   stopped(S::Cancelled), S::Cancelled,     T::Cancelled),
            ("deadline confirmed", Some(CancelReason::Deadline),  stopped(S::Cancelled), S::Deadline,      T::Interrupted),
            ("too late deadline",  Some(CancelReason::Deadline),  stopped(S::MaxTokens), S::MaxTokens,     T::Completed),
            ("shutdown confirmed", Some(CancelReason::Shutdown),  stopped(S::Cancelled), S::ServerRestart, T::Interrupted),
            ("failed",             None,                   failed.clone(),        S::Error,         T::Failed),
            ("cancel as an error", Some(CancelReason::Caller),    failed,                S::Error,         T::Cancelled),
            ("unclear",            None,                          stopped(S::Unclear),   S::Unclear,       T::Failed),
            ("its own word",       None,                          stopped(own),          own,              T::Failed),
            ("unclear cancel",     Some(CancelReason::Caller),    stopped(own),          own,              T::Cancelled),
            ("unclear deadline",   Some(CancelReason::Deadline),  stopped(S::Unclear),   S::Deadline,      T::Interrupted),
            ("odd error",          None,                          odd.clone(),           S::Error,         T::Failed),
            ("odd cancel",         Some(CancelReason::Caller),    odd,                   S::Error,         T::Cancelled),
        ];
        for (name, reason, reply, stop_reason, state) in cases {
            let settled = attempt(reason, OutputSummary::default()).settle_by_reply(reply);
            assert_eq!((settled.stop_reason, settled.state), (stop_reason, state), "{name}");
            let is_interrupted = state == T::Interrupted;
            assert_eq!(settled.ending.interrupted.is_some(), is_interrupted, "{name}");
        }
    }

    /// what is known of the side effects of an interrupted turn.
    #[test]
    fn an_interrupted_turn_reports_its_possible_side_effects() {
        let tool = |ended: bool| {
            let mut tools = vec![update("t", false)];
            tools.extend(ended.then(|| update("t", true)));
            OutputSummary { has_output: true, tools, ..OutputSummary::default() }
        };
        #[rustfmt::skip]
        let cases = [
            ("prompt maybe sent",   ExitReason::ServerRestart, OutputSummary::default(), SideEffects::Unknown),
            ("spoke",               ExitReason::ServerRestart, text("hi"),      SideEffects::NoneObserved),
            ("tool ended",          ExitReason::ServerRestart, tool(true),      SideEffects::NoneObserved),
            ("tool open",           ExitReason::ServerRestart, tool(false),     SideEffects::Possible),
            ("agent died silent",   ExitReason::Exited,        OutputSummary::default(), SideEffects::NoneObserved),
            ("agent died in tool",  ExitReason::Exited,        tool(false),     SideEffects::Possible),
            ("subagent's tool",     ExitReason::Exited,        tool(true).of_other_session(&SessionId("c".into())), SideEffects::Possible),
        ];
        for (name, reason, summary, side_effects) in cases {
            let settled = attempt(None, summary).settle_by_exit(reason, "");
            assert_eq!(settled.state, EndState::Interrupted, "{name}");
            assert_eq!(settled.ending.interrupted.unwrap().side_effects, side_effects, "{name}");
        }
    }

    #[test]
    fn text_is_truncated_at_its_limit_between_characters() {
        let mut attempt = attempt(None, text(&"x".repeat(TEXT_BYTES_MAX - 1)));
        attempt.add_output(&text("ä"));
        assert_eq!((attempt.text().len(), attempt.text.is_truncated()), (TEXT_BYTES_MAX - 1, true));
        attempt.add_output(&text("y"));
        let ending = attempt.ending_so_far();
        assert_eq!((ending.text.len(), ending.text_truncated), (TEXT_BYTES_MAX - 1, true));
    }

    /// I11: tool calls without number use bounded memory, and their side effects stay possible.
    #[test]
    fn open_tool_calls_are_named_up_to_a_limit() {
        let tool = |number: usize, ended| update(&format!("{number:01024}"), ended);
        let tools = (0..1000).map(|number| tool(number, false)).collect();
        let mut attempt =
            attempt(None, OutputSummary { has_output: true, tools, ..OutputSummary::default() });
        assert_eq!(attempt.interrupted(Cause::AgentExited, true).open_tools.len(), 64);
        let tools = (0..64).map(|number| tool(number, true)).collect();
        attempt.add_output(&OutputSummary { tools, ..OutputSummary::default() });
        let interrupted = attempt.interrupted(Cause::AgentExited, true);
        let found = (interrupted.side_effects, interrupted.open_tools.len());
        assert_eq!(found, (SideEffects::Possible, 0));
        let tools = (1000..1064).map(|number| tool(number, false)).collect();
        attempt.add_output(&OutputSummary { tools, ..OutputSummary::default() });
        let named = attempt.interrupted(Cause::AgentExited, true).open_tools.len();
        assert_eq!(named, 64, "an ended call leaves its room to others");
    }

    /// the end of a call without a readable id cannot be seen.
    #[test]
    fn a_call_without_a_name_stays_open() {
        let tools = vec![update("", false), update("", true)];
        let attempt =
            attempt(None, OutputSummary { has_output: true, tools, ..Default::default() });
        let settled = attempt.settle_by_exit(ExitReason::Exited, "");
        let interrupted = settled.ending.interrupted.unwrap();
        assert_eq!(
            (interrupted.side_effects, interrupted.open_tools.len()),
            (SideEffects::Possible, 0)
        );
    }

    proptest::proptest! {
        /// I13: live, an agent's lines come in batches; at recovery, one by one.
        #[test]
        fn output_adds_up_the_same_in_any_batches(
            room in 0..8_usize,
            lines in proptest::collection::vec("[aä€🦀]{0,3}", 0..6),
        ) {
            let full = text(&"x".repeat(TEXT_BYTES_MAX - room));
            let (mut at_once, mut one_by_one) = (attempt(None, full.clone()), attempt(None, full));
            at_once.add_output(&text(&lines.concat()));
            lines.iter().for_each(|line| one_by_one.add_output(&text(line)));
            proptest::prop_assert_eq!(&at_once.text, &one_by_one.text);
        }
    }
}
