//! The attempt that is running: what the agent said in it, and who is cutting it off.

use std::collections::BTreeSet;

use crate::{
    Cause, Ending, ExitReason, Fold, Interrupted, PromptReply, RunId, SideEffects, Spent,
    StopReason, TaskError, TaskState, Usage, Write,
};

/// The most text of a turn that is kept joined; the frames keep all of it.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Open tool calls are named up to so many bytes in all (I11).
const OPEN_TOOLS_BYTES_MAX: usize = 64 << 10;

/// One attempt: its prompt was committed to be sent, and it has not settled.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// The run that it was sent to.
    pub run: RunId,
    /// JSON-RPC's id of the prompt: the `seq` of its frame, so that it is unique in the group.
    pub prompt_id: u64,
    /// Who is cutting it off, if anybody.
    pub cut: Option<CutBy>,
    /// The request by which another session is being opened, once the agent summed this one up.
    pub opening: Option<u64>,
    /// Whether the group was deleted since it began, and perhaps revived.
    pub past: bool,
    output: bool,
    answer: bool,
    tools: bool,
    text: String,
    text_truncated: bool,
    usage: Option<Usage>,
    open_tools: BTreeSet<String>,
    open_tools_bytes: usize,
    /// Whether tool calls began that are not among the named ones; whether they ended, nobody
    /// knows.
    unnamed_tools: bool,
}

/// Who cuts a turn off. The first one stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutBy {
    /// Somebody asked for it.
    Caller,
    /// Its time was up.
    Deadline,
    /// The server shuts down.
    Shutdown,
}

/// How a turn is over.
pub(crate) struct Settlement {
    pub stop_reason: StopReason,
    pub state: TaskState,
    pub ending: Ending,
    /// What the agent says that it spent.
    pub tokens: Option<Box<Spent>>,
    /// Whether the attempt may be made again: its end was seen, the agent gave no sign of having
    /// taken the prompt in, and nobody wanted it to end (ARCHITECTURE 4).
    pub repeatable: bool,
}

/// JSON-RPC and ACP errors that another attempt would meet again: a login is needed, or the request
/// itself is refused.
const LASTING_ERRORS: [i64; 4] = [-32000, -32600, -32601, -32602];

impl Turn {
    /// The attempt as it begins.
    pub fn new(run: RunId, prompt_id: u64) -> Self {
        Self {
            run,
            prompt_id,
            cut: None,
            opening: None,
            past: false,
            output: false,
            answer: false,
            tools: false,
            text: String::new(),
            text_truncated: false,
            usage: None,
            open_tools: BTreeSet::new(),
            open_tools_bytes: 0,
            unnamed_tools: false,
        }
    }

    /// Whether the agent gave any sign of having taken the prompt in (ARCHITECTURE 4).
    pub(crate) fn has_output(&self) -> bool {
        self.output
    }

    /// What the agent said was no sign of having taken the prompt in.
    pub(crate) fn unhear(&mut self) {
        self.output = false;
    }

    /// The agent's message text so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the agent said something, or called a tool.
    pub(crate) fn has_answer(&self) -> bool {
        self.answer
    }

    /// Whether the agent called a tool.
    pub(crate) fn has_tools(&self) -> bool {
        self.tools
    }

    /// Takes in a fact that is about it: who cuts it off, or that the group was deleted. Others
    /// mean nothing to it.
    pub fn take(&mut self, write: &Write) {
        match write {
            Write::CancelRequested { .. } => _ = self.cut.get_or_insert(CutBy::Caller),
            Write::TurnCut { cause, .. } => {
                self.cut.get_or_insert(match cause {
                    Cause::Deadline => CutBy::Deadline,
                    Cause::AgentExited
                    | Cause::ServerRestart
                    | Cause::Protocol
                    | Cause::Storage => CutBy::Shutdown,
                });
            }
            Write::GroupArchived {} => self.past = true,
            _ => {}
        }
    }

    /// Takes in what the agent said.
    pub fn hear(&mut self, fold: &Fold) {
        self.output |= fold.output;
        self.answer |= fold.answer;
        self.tools |= !fold.tools.is_empty();
        self.usage = fold.usage.clone().or(self.usage.take());
        for news in &fold.tools {
            let tool = &news.call;
            if !news.is_open() {
                self.open_tools_bytes -= if self.open_tools.remove(tool) { tool.len() } else { 0 };
            } else if self.open_tools_bytes + tool.len() > OPEN_TOOLS_BYTES_MAX {
                self.unnamed_tools |= !self.open_tools.contains(tool);
            } else if self.open_tools.insert(tool.clone()) {
                self.open_tools_bytes += tool.len();
            }
        }
        // Cut once, it stays so: a text with a hole in it would read as if it were whole.
        let room = if self.text_truncated { 0 } else { TEXT_BYTES_MAX - self.text.len() };
        let taken = fold.text.floor_char_boundary(room.min(fold.text.len()));
        self.text.push_str(&fold.text[..taken]);
        self.text_truncated |= taken < fold.text.len();
    }

    /// How the turn is over when the agent answered. What the agent says it did wins over a cut
    /// that came too late to matter (RELIABILITY 2: cancel × response).
    pub(crate) fn answered(&self, reply: PromptReply) -> Settlement {
        let mut ending = self.heard();
        let lasting = match &reply {
            PromptReply::Failed { code, .. } => LASTING_ERRORS.contains(code),
            PromptReply::Stopped { .. } => true,
        };
        let repeatable = !lasting && self.may_repeat();
        let tokens = reply.tokens();
        ending.tokens = tokens.as_ref().and_then(|spent| spent.given.clone());
        let (stop_reason, state) = match (reply, self.cut) {
            (PromptReply::Stopped { stop_reason: StopReason::Cancelled, .. }, cut) => {
                self.called_off(cut, StopReason::Cancelled, true, &mut ending)
            }
            (PromptReply::Stopped { stop_reason, .. }, _) => (stop_reason, TaskState::Completed),
            (PromptReply::Failed { .. }, Some(cut)) => {
                self.called_off(Some(cut), StopReason::Error, true, &mut ending)
            }
            (PromptReply::Failed { code, message }, None) => {
                let message = format!("the agent answered the prompt with error {code}: {message}");
                ending.error = Some(TaskError { code: "agent_error".into(), message });
                (StopReason::Error, TaskState::Failed)
            }
        };
        ending.stop_reason = Some(stop_reason);
        Settlement { stop_reason, state, ending, tokens, repeatable }
    }

    /// Whether nothing but the way it ended stands against making it again.
    pub(crate) fn may_repeat(&self) -> bool {
        self.cut.is_none() && !self.output
    }

    /// How the turn is over when its run ended under it, after everything that the agent said was
    /// read; or when nobody can know that, which [`ExitReason::ServerRestart`] and
    /// [`ExitReason::Storage`] say.
    pub(crate) fn abandoned(&self, reason: ExitReason, detail: &str) -> Settlement {
        let mut ending = self.heard();
        let repeatable = reason == ExitReason::Exited && self.may_repeat();
        let is_seen = !matches!(reason, ExitReason::ServerRestart | ExitReason::Storage);
        let (stop_reason, state) = match self.cut {
            Some(cut) => self.called_off(Some(cut), reason.into(), is_seen, &mut ending),
            None => {
                let (cause, code) = match reason {
                    ExitReason::Protocol => (Cause::Protocol, "protocol_violation"),
                    ExitReason::ServerRestart => (Cause::ServerRestart, "server_restarted"),
                    ExitReason::Storage => (Cause::Storage, "storage_failed"),
                    ExitReason::StartFailed | ExitReason::Exited | ExitReason::Stopped => {
                        (Cause::AgentExited, "agent_exited")
                    }
                };
                let message = if repeatable {
                    format!("the agent ended before it gave any output: {detail}")
                } else {
                    format!("the turn was cut off and is not run again by itself: {detail}")
                };
                ending.error = Some(TaskError { code: code.into(), message });
                ending.interrupted = Some(self.interrupted(cause, is_seen));
                (reason.into(), TaskState::Interrupted)
            }
        };
        ending.stop_reason = Some(stop_reason);
        Settlement { stop_reason, state, ending, tokens: None, repeatable }
    }

    /// How it is over that `cut` cut off; `is_seen`: after all that the agent said was read.
    fn called_off(
        &self,
        cut: Option<CutBy>,
        seen: StopReason,
        is_seen: bool,
        ending: &mut Ending,
    ) -> (StopReason, TaskState) {
        let (stop_reason, cause, code, message) = match cut {
            None | Some(CutBy::Caller) => return (seen, TaskState::Cancelled),
            Some(CutBy::Deadline) => {
                let message = "the turn took longer than it may";
                (StopReason::Deadline, Cause::Deadline, "deadline", message)
            }
            Some(CutBy::Shutdown) => {
                let message = "the server was stopped and could not wait for the turn";
                (StopReason::ServerRestart, Cause::ServerRestart, "server_restarted", message)
            }
        };
        ending.error = Some(TaskError { code: code.into(), message: message.into() });
        ending.interrupted = Some(self.interrupted(cause, is_seen));
        (stop_reason, TaskState::Interrupted)
    }

    fn interrupted(&self, cause: Cause, is_seen: bool) -> Interrupted {
        let open = self.unnamed_tools || !self.open_tools.is_empty();
        let side_effects = match (open, self.output, cause) {
            (true, _, _) => SideEffects::Possible,
            (false, false, Cause::ServerRestart | Cause::Storage) => SideEffects::Unknown,
            (false, false, _) if !is_seen => SideEffects::Unknown,
            (false, _, _) => SideEffects::NoneObserved,
        };
        Interrupted { cause, side_effects, open_tools: self.open_tools.iter().cloned().collect() }
    }

    /// What the agent said in it so far.
    pub fn heard(&self) -> Ending {
        Ending {
            text: self.text.clone(),
            text_truncated: self.text_truncated,
            usage: self.usage.clone(),
            ..Ending::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;
    use crate::{ToolNews, ToolResult, ToolStep};

    fn turn(cut: Option<CutBy>, fold: Fold) -> Turn {
        let mut turn = Turn::new(RunId(Uuid::nil()), 1);
        turn.cut = cut;
        turn.hear(&fold);
        turn
    }

    fn news(call: &str, ended: bool) -> ToolNews {
        let step = if ended {
            ToolStep::Ended(ToolResult::Completed)
        } else {
            ToolStep::Called { tool: "x".into(), ended: None }
        };
        ToolNews { call: call.into(), step }
    }

    fn said(text: &str) -> Fold {
        Fold { output: true, text: text.into(), ..Fold::default() }
    }

    #[test]
    fn what_the_agent_says_it_did_wins_over_a_late_cut() {
        use {StopReason as S, TaskState as T};
        let stopped = |stop_reason| PromptReply::Stopped { stop_reason, tokens: None };
        let failed = PromptReply::Failed { code: -32603, message: "x".into() };
        #[rustfmt::skip]
        let cases = [
            ("plain",              None,                   stopped(S::EndTurn),   S::EndTurn,       T::Completed),
            ("refused",            None,                   stopped(S::Refusal),   S::Refusal,       T::Completed),
            ("too late a cancel",  Some(CutBy::Caller),    stopped(S::EndTurn),   S::EndTurn,       T::Completed),
            ("cancelled",          Some(CutBy::Caller),    stopped(S::Cancelled), S::Cancelled,     T::Cancelled),
            ("cancelled unasked",  None,                   stopped(S::Cancelled), S::Cancelled,     T::Cancelled),
            ("deadline confirmed", Some(CutBy::Deadline),  stopped(S::Cancelled), S::Deadline,      T::Interrupted),
            ("too late deadline",  Some(CutBy::Deadline),  stopped(S::MaxTokens), S::MaxTokens,     T::Completed),
            ("shutdown confirmed", Some(CutBy::Shutdown),  stopped(S::Cancelled), S::ServerRestart, T::Interrupted),
            ("failed",             None,                   failed.clone(),        S::Error,         T::Failed),
            ("cancel as an error", Some(CutBy::Caller),    failed,                S::Error,         T::Cancelled),
        ];
        for (name, cut, reply, stop_reason, state) in cases {
            let settled = turn(cut, Fold::default()).answered(reply);
            assert_eq!((settled.stop_reason, settled.state), (stop_reason, state), "{name}");
            let cut_off = state == T::Interrupted;
            assert_eq!(settled.ending.interrupted.is_some(), cut_off, "{name}");
        }
    }

    /// RELIABILITY 1: what is known of the side effects of a turn that was cut off.
    #[test]
    fn a_cut_off_turn_tells_what_may_have_happened() {
        let tool = |ended: bool| {
            let mut tools = vec![news("t", false)];
            tools.extend(ended.then(|| news("t", true)));
            Fold { output: true, tools, ..Fold::default() }
        };
        #[rustfmt::skip]
        let cases = [
            ("prompt maybe sent",   ExitReason::ServerRestart, Fold::default(), SideEffects::Unknown),
            ("spoke",               ExitReason::ServerRestart, said("hi"),      SideEffects::NoneObserved),
            ("tool ended",          ExitReason::ServerRestart, tool(true),      SideEffects::NoneObserved),
            ("tool open",           ExitReason::ServerRestart, tool(false),     SideEffects::Possible),
            ("agent died silent",   ExitReason::Exited,        Fold::default(), SideEffects::NoneObserved),
            ("agent died in tool",  ExitReason::Exited,        tool(false),     SideEffects::Possible),
        ];
        for (name, reason, fold, side_effects) in cases {
            let settled = turn(None, fold).abandoned(reason, "");
            assert_eq!(settled.state, TaskState::Interrupted, "{name}");
            assert_eq!(settled.ending.interrupted.unwrap().side_effects, side_effects, "{name}");
        }
    }

    #[test]
    fn text_is_cut_at_its_limit_between_characters() {
        let mut turn = turn(None, said(&"x".repeat(TEXT_BYTES_MAX - 1)));
        turn.hear(&said("ä"));
        assert_eq!((turn.text.len(), turn.text_truncated), (TEXT_BYTES_MAX - 1, true));
        turn.hear(&said("y"));
        assert_eq!(turn.text.len(), TEXT_BYTES_MAX - 1);
    }

    /// I11: an agent that begins tool calls without end fills no memory, and is still believed
    /// capable of anything.
    #[test]
    fn open_tool_calls_are_named_up_to_a_limit() {
        let tool = |number: usize, ended| news(&format!("{number:01024}"), ended);
        let tools = (0..1000).map(|number| tool(number, false)).collect();
        let mut turn = turn(None, Fold { output: true, tools, ..Fold::default() });
        assert_eq!(turn.interrupted(Cause::AgentExited, true).open_tools.len(), 64);
        let tools = (0..64).map(|number| tool(number, true)).collect();
        turn.hear(&Fold { tools, ..Fold::default() });
        let told = turn.interrupted(Cause::AgentExited, true);
        assert_eq!((told.side_effects, told.open_tools.len()), (SideEffects::Possible, 0));
    }

    proptest::proptest! {
        /// I13: live, an agent's lines come in batches; at recovery, one by one.
        #[test]
        fn lines_mean_the_same_in_whatever_batches_they_come(
            room in 0..8_usize,
            lines in proptest::collection::vec("[aä€🦀]{0,3}", 0..6),
        ) {
            let full = said(&"x".repeat(TEXT_BYTES_MAX - room));
            let (mut at_once, mut one_by_one) = (turn(None, full.clone()), turn(None, full));
            at_once.hear(&said(&lines.concat()));
            lines.iter().for_each(|line| one_by_one.hear(&said(line)));
            proptest::prop_assert_eq!(&at_once.text, &one_by_one.text);
            proptest::prop_assert_eq!(at_once.text_truncated, one_by_one.text_truncated);
        }
    }
}
