//! How a task ended: why its prompt stopped, its text, its error, what is known of an
//! interrupted turn.

use serde::{Deserialize, Serialize};

use crate::{Json, OwnWord, Usage, bounded_text::BoundedText};

/// How a task ended; empty while it has not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// Why the prompt stopped, if one was sent.
    pub stop_reason: Option<StopReason>,
    /// The error, if it has one.
    pub error: Option<TaskError>,
    /// What is known of an interrupted turn.
    pub interrupted: Option<Interrupted>,
    /// The agent's message text, joined, up to [`crate::TEXT_BYTES_MAX`].
    pub text: String,
    /// Whether `text` was truncated at its limit.
    pub text_truncated: bool,
    /// The usage that the agent last reported within the attempt.
    pub usage: Option<Usage>,
    /// The token counts in the agent's answer, unchanged.
    pub tokens: Option<Json>,
    /// What is odd about it.
    pub findings: TaskFindings,
}

impl Ending {
    /// The ending of a task that has not ended.
    pub(crate) const NONE: &Self = &Self {
        stop_reason: None,
        error: None,
        interrupted: None,
        text: String::new(),
        text_truncated: false,
        usage: None,
        tokens: None,
        findings: TaskFindings { has_empty_answer: false, is_answered_by_compaction: false },
    };

    /// Appends message text that the agent wrote after its answer, as far as there is room.
    pub fn push_late_text(&mut self, more: &str) {
        let text = std::mem::take(&mut self.text);
        let mut text = BoundedText::new(text, self.text_truncated);
        text.push(more);
        (self.text, self.text_truncated) = text.into_parts();
    }
}

/// What is odd about a completed turn. Frames, rows and the API have it as a list of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<FindingName>", into = "Vec<FindingName>")]
pub struct TaskFindings {
    /// It has neither message text nor a tool call.
    pub has_empty_answer: bool,
    /// The agent completed an earlier compaction in it, and did not answer: its only output is that
    /// compaction's summary (RA).
    pub is_answered_by_compaction: bool,
}

/// The name of a finding.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FindingName {
    EmptyAnswer,
    AnsweredByCompaction,
}

impl TaskFindings {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Vec<FindingName>> for TaskFindings {
    fn from(names: Vec<FindingName>) -> Self {
        Self {
            has_empty_answer: names.contains(&FindingName::EmptyAnswer),
            is_answered_by_compaction: names.contains(&FindingName::AnsweredByCompaction),
        }
    }
}

impl From<TaskFindings> for Vec<FindingName> {
    fn from(findings: TaskFindings) -> Self {
        let empty = findings.has_empty_answer.then_some(FindingName::EmptyAnswer);
        let compaction =
            findings.is_answered_by_compaction.then_some(FindingName::AnsweredByCompaction);
        empty.into_iter().chain(compaction).collect()
    }
}

/// The error of a task: a code for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// A stable word in snake case.
    pub code: String,
    /// What happened, and what is unchanged.
    pub message: String,
}

/// What is known of an interrupted turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interrupted {
    /// What interrupted it.
    pub cause: Cause,
    /// What the agent may have done before.
    pub side_effects: SideEffects,
    /// The tool calls that had begun and not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open_tools: Vec<String>,
}

/// What interrupted a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The agent's process ended.
    AgentExited,
    /// The server died, or shut down before the turn ended.
    ServerRestart,
    /// The turn reached its deadline.
    Deadline,
    /// The agent broke the protocol.
    Protocol,
    /// greenroom could not store its output.
    Storage,
}

/// What the agent may have done before it was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideEffects {
    /// Every tool call that it reported had ended.
    NoneObserved,
    /// A tool call was open.
    Possible,
    /// The agent may have written more than greenroom read, or wrote a message that greenroom could
    /// not read.
    Unknown,
}

/// Why a prompt stopped: ACP's own reasons, greenroom's, which begin with `_`, and the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The agent finished.
    EndTurn,
    /// The model reached its token limit.
    MaxTokens,
    /// The agent reached its limit of model requests.
    MaxTurnRequests,
    /// The agent declined.
    Refusal,
    /// The agent confirmed a cancel.
    Cancelled,
    /// The agent answered with a JSON-RPC error.
    #[serde(rename = "_error")]
    Error,
    /// The agent's process exited first.
    #[serde(rename = "_process_exited")]
    ProcessExited,
    /// The server ended first.
    #[serde(rename = "_server_restart")]
    ServerRestart,
    /// The turn reached its deadline.
    #[serde(rename = "_deadline")]
    Deadline,
    /// The agent broke the protocol.
    #[serde(rename = "_protocol")]
    Protocol,
    /// greenroom could not store its output.
    #[serde(rename = "_storage")]
    Storage,
    /// The agent answered, and greenroom cannot tell why it stopped.
    #[serde(rename = "_unclear")]
    Unclear,
    /// The same, with the agent's own word.
    #[serde(untagged)]
    Other(OwnWord),
}

impl StopReason {
    /// The words of all but the agent's own.
    pub(crate) const KNOWN_WORDS: [&str; 12] = [
        "end_turn",
        "max_tokens",
        "max_turn_requests",
        "refusal",
        "cancelled",
        "_error",
        "_process_exited",
        "_server_restart",
        "_deadline",
        "_protocol",
        "_storage",
        "_unclear",
    ];

    /// Returns the stop reason that the agent's answer names.
    pub fn from_agent(word: &str) -> Self {
        match word {
            "end_turn" => Self::EndTurn,
            "max_tokens" => Self::MaxTokens,
            "max_turn_requests" => Self::MaxTurnRequests,
            "refusal" => Self::Refusal,
            "cancelled" => Self::Cancelled,
            word => OwnWord::new(word).map_or(Self::Unclear, Self::Other),
        }
    }

    /// Returns it as one of a closed set, for counts: without the agent's own word.
    pub fn counted(self) -> Self {
        if let Self::Other(_) = self { Self::Unclear } else { self }
    }

    /// Whether the agent answered in a way that does not show whether it did its work.
    pub fn is_unclear(self) -> bool {
        matches!(self, Self::Unclear | Self::Other(_))
    }

    /// Whether the agent's own answer stopped the prompt, and nothing cut it short.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::EndTurn | Self::MaxTokens | Self::MaxTurnRequests | Self::Refusal)
    }

    /// Whether the agent's own answer stopped the prompt.
    pub fn is_answer(self) -> bool {
        match self {
            Self::EndTurn
            | Self::MaxTokens
            | Self::MaxTurnRequests
            | Self::Refusal
            | Self::Cancelled
            | Self::Error
            | Self::Unclear
            | Self::Other(_) => true,
            Self::ProcessExited
            | Self::ServerRestart
            | Self::Deadline
            | Self::Protocol
            | Self::Storage => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TEXT_BYTES_MAX;

    /// AM-9, I11: late words are cut at the limit between characters, and nothing follows the cut.
    #[test]
    fn late_text_is_cut_at_the_limit() {
        let mut ending = Ending { text: "head ".into(), ..Ending::default() };
        ending.push_late_text("tail");
        assert_eq!((&*ending.text, ending.text_truncated), ("head tail", false));
        for (late, is_cut) in [("x", false), ("ä", true), ("y", true)] {
            let room = (TEXT_BYTES_MAX - 1).saturating_sub(ending.text.len());
            ending.push_late_text(&if is_cut { late.to_owned() } else { late.repeat(room) });
            assert_eq!((ending.text.len(), ending.text_truncated), (TEXT_BYTES_MAX - 1, is_cut));
        }
        assert!(ending.text.ends_with('x'));
    }
}
