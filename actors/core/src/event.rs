//! Events: what can happen to a group. They are the input of the rules.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Choice, CompactionSignal, Continuity, ErrorKind, Exit, Json, Loss, MessageKey, PermissionId,
    PermissionOption, PermissionShown, PromptCapabilities, Provenance, RunId, SessionId, Settings,
    StopReason, Task, TaskId, Timer, TokensSpent,
};

/// Something that happened to a group.
#[derive(Debug)]
pub enum Event {
    /// A caller created, changed or revived the group.
    Configured(Settings),
    /// A caller submitted a task. The rules set its `ordinal`, `created_at` and `stage`.
    Submitted(Box<Task>),
    /// A caller asked to cancel a task.
    CancelRequested(TaskId),
    /// A caller archived the group.
    Archived,
    /// A caller ordered the rows of the archived group to be deleted.
    PurgeOrdered,
    /// A caller paused the group.
    Paused,
    /// A caller resumed the group.
    Resumed,
    /// A caller stopped the group's run.
    Stopped,
    /// The server gave the group a slot for one task.
    SlotGranted,
    /// The lock table answered a request for a compaction's lock.
    LockAnswered {
        /// The compaction task.
        task: TaskId,
        /// The session that was to be locked; another session may be in force by now.
        key: SessionId,
        /// Whether the group has the lock.
        answer: LockAnswer,
    },
    /// Another holder took the compaction's lock, or the group could not refresh it.
    LockLost {
        /// The compaction task.
        task: TaskId,
    },
    /// The agent has a session and takes prompts.
    AgentReady {
        /// The run.
        run: RunId,
        /// Its process id.
        pid: u32,
        /// The session that it opened.
        session: SessionId,
        /// Whether the context was restored.
        continuity: Continuity,
        /// Which of the agent's own sessions it is.
        provenance: Option<Provenance>,
        /// Whether the agent can neither load nor resume a session.
        is_forgetful: bool,
        /// The content blocks that the agent takes, if known.
        prompts: Option<PromptCapabilities>,
        /// How the agent did not restore the session before, if it did not.
        loss: Option<Loss>,
    },
    /// The agent wrote protocol messages.
    OutputReceived {
        /// The run.
        run: RunId,
        /// The messages.
        lines: Lines,
        /// What the rules need to know of them.
        summary: OutputSummary,
        /// The session that all messages name whose summary is not empty, if they name one. If all
        /// are empty, it does not matter.
        session: Option<SessionId>,
        /// The id of the last prompt that the agent had been sent when greenroom read the messages.
        after_prompt: Option<u64>,
    },
    /// A detector reported a compaction from the agent's output.
    Signalled {
        /// The run.
        run: RunId,
        /// The report.
        signal: Box<CompactionSignal>,
    },
    /// The agent's output named the session of its own that is in force.
    ProvenanceGiven {
        /// The run.
        run: RunId,
        /// The named session.
        provenance: Provenance,
    },
    /// The agent wrote a line to stderr that its profile's detector recognizes.
    StderrMatched {
        /// The run.
        run: RunId,
        /// The line.
        line: String,
        /// What the detector reports.
        signal: Box<CompactionSignal>,
    },
    /// The agent opened another session, or failed to.
    SessionOpened {
        /// The run.
        run: RunId,
        /// The request's JSON-RPC id.
        id: u64,
        /// The session, or the error.
        opened: Result<(SessionId, Option<Provenance>), String>,
    },
    /// The agent wrote a line that is no protocol message.
    OutputRejected {
        /// The run.
        run: RunId,
        /// What is wrong with it.
        reason: String,
        /// The line in base64.
        bytes: String,
    },
    /// The agent sent a request that greenroom refuses; the transcript shows its method alone
    /// (AM-6).
    RequestRefused {
        /// The run.
        run: RunId,
        /// The method.
        method: String,
    },
    /// The agent asked for a permission.
    PermissionAsked {
        /// The run.
        run: RunId,
        /// The request, unchanged.
        lines: Lines,
        /// Its parsed form.
        asked: Box<PermissionAsked>,
    },
    /// A caller answered a permission.
    PermissionAnswered {
        /// The permission.
        permission: PermissionId,
        /// The answer.
        choice: Choice,
        /// Who answered.
        by: Cow<'static, str>,
    },
    /// The agent answered a prompt.
    PromptAnswered {
        /// The run.
        run: RunId,
        /// The prompt's JSON-RPC id.
        id: u64,
        /// The reply.
        reply: PromptReply,
        /// The response, unchanged; absent if it is no JSON.
        response: Option<Json>,
    },
    /// The agent closed its stdout: it writes nothing more, and gets no further prompt.
    AgentClosed(RunId),
    /// The run ended, and no process of its tree is left.
    AgentExited {
        /// The run.
        run: RunId,
        /// How it ended.
        exit: Exit,
    },
    /// A limit of [`crate::Group::timers`] was reached.
    TimerFired(Timer),
    /// The pool asks for the place of an idle run, as another group's run waits for one.
    Evicted {
        /// The run.
        run: RunId,
    },
    /// The server began to shut down: it starts no work, and waits for the running turn.
    DrainStarted,
    /// The server waits no longer for the running turn.
    DrainTimedOut,
    /// The server ends, and the run with it.
    DrainEnded,
    /// The server began to shut down before it wrote the prompt with this id to the run. It does
    /// not write the prompt.
    PromptWithheld {
        /// The run.
        run: RunId,
        /// The prompt's JSON-RPC id.
        id: u64,
    },
    /// The group was loaded from the database after its server or its actor died. No process of
    /// its run is alive.
    Recovered(Recovery),
}

/// Why a group was loaded again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Its server or its actor died, or the server was stopped.
    #[default]
    Restart,
    /// A commit of the group failed.
    Storage,
}

/// The answer to a request for a compaction's lock.
#[derive(Clone, Debug, PartialEq)]
pub enum LockAnswer {
    /// The group has it.
    Acquired {
        /// The name that it holds the lock under.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// Another holder has it.
    Busy {
        /// Its name.
        holder: String,
    },
    /// The database has no lock table (HL-8).
    Absent,
    /// The request failed; whether the lock is free is unknown (HL-9).
    Failed,
}

/// A permission as the agent asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct PermissionAsked {
    /// The request's JSON-RPC id.
    pub request: Json,
    /// The kind of the tool, as the agent named it.
    pub tool_kind: Option<String>,
    /// The answers that the agent offers.
    pub options: Vec<PermissionOption>,
    /// What a person needs to see to decide.
    pub shown: PermissionShown,
}

/// How the agent answered a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptReply {
    /// The prompt stopped.
    Stopped {
        /// ACP's reason.
        stop_reason: StopReason,
        /// What it spent, if the agent reports that.
        tokens: Option<Box<TokensSpent>>,
    },
    /// It stopped with ACP's `end_turn`, and the agent's text begins with the words that it queued
    /// the prompt. After a cancel that is a pretense: the agent is wedged. Otherwise it is an
    /// answer as any other.
    Queued {
        /// What it spent, if the agent reports that.
        tokens: Option<Box<TokensSpent>>,
    },
    /// A JSON-RPC error.
    Failed {
        /// JSON-RPC's code.
        code: i64,
        /// What it says about another attempt.
        kind: ErrorKind,
        /// The agent's message.
        message: String,
    },
    /// An error, and greenroom cannot tell which: no retry would be safe.
    Unclear {
        /// What can be shown of it.
        message: String,
    },
}

impl PromptReply {
    /// Returns ACP's reason, if the prompt stopped.
    pub fn stop_reason(&self) -> Option<StopReason> {
        match self {
            Self::Stopped { stop_reason, .. } => Some(*stop_reason),
            Self::Queued { .. } => Some(StopReason::EndTurn),
            Self::Failed { .. } | Self::Unclear { .. } => None,
        }
    }

    /// Returns what the prompt spent, if the agent reports that.
    pub fn tokens(&self) -> Option<Box<TokensSpent>> {
        match self {
            Self::Stopped { tokens, .. } | Self::Queued { tokens } => tokens.clone(),
            Self::Failed { .. } | Self::Unclear { .. } => None,
        }
    }
}

/// The name of a kind of frame: an ACP method, or `greenroom/<fact>`.
pub type FrameKind = Cow<'static, str>;

/// Raw protocol messages, one a line, in the order in which the agent wrote them.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines {
    /// How many.
    pub count: u64,
    /// The kind of each.
    pub kinds: Kinds,
    /// The messages, unchanged, with a line feed between them.
    pub text: Arc<String>,
}

/// The kinds of consecutive frames.
#[derive(Clone, Debug, PartialEq)]
pub enum Kinds {
    /// All have the same kind.
    All(FrameKind),
    /// One kind for each frame.
    Each(Vec<FrameKind>),
}

/// What the rules need to know of a batch of the agent's messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputSummary {
    /// Whether any of them is output of an attempt.
    pub has_output: bool,
    /// The message text in them, joined.
    pub text: String,
    /// The last usage in them.
    pub usage: Option<Usage>,
    /// The reports of tool calls, in order.
    pub tools: Vec<ToolUpdate>,
    /// The session's reported costs, in order.
    pub costs: Vec<Cost>,
    /// Whether any of them is an answer: message text, or a tool call.
    pub has_answer: bool,
    /// Whether they name their session, and it is the prompted one.
    pub is_named: bool,
    /// The message that they are chunks of, if they name one. All of them name the same.
    pub message: Option<MessageKey>,
    /// Whether they are words of the user, or begin with some: a replay, or an echo of the prompt.
    pub is_users: bool,
    /// Whether they are surely of an earlier turn than the one that runs. Only the rules set it.
    pub is_early: bool,
    /// What they say about other sessions than the prompted one.
    pub other_sessions: Option<Box<OtherSessions>>,
}

/// What an agent's messages say about other sessions than the prompted one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OtherSessions {
    /// The sessions that they show to be those of subagents.
    pub children: Vec<SessionId>,
    /// Output that names another session. The other fields of the summary leave it out.
    pub elsewhere: Option<Elsewhere>,
}

/// Output that names another session than the prompted one: a subagent's, of background work, or
/// of the session to which the agent moved by itself (AM-13).
#[derive(Clone, Debug, PartialEq)]
pub struct Elsewhere {
    /// The session.
    pub session: SessionId,
    /// The message text, joined.
    pub text: String,
    /// Whether any of it is an answer.
    pub has_answer: bool,
    /// Whether a tool was called in it.
    pub has_tools: bool,
}

impl OutputSummary {
    /// Returns what counts of it, if its messages name `session` and another one was prompted. One
    /// that names a further session, such as its parent's, is a subagent's.
    #[must_use]
    pub fn of_other_session(self, session: &SessionId) -> Self {
        let is_child = !self.children().is_empty();
        let Self { has_output, has_answer, text, tools, message, .. } = self;
        if !has_output && !is_child {
            return Self::default();
        }
        let has_tools = !tools.is_empty();
        let elsewhere = Elsewhere { session: session.clone(), text, has_answer, has_tools };
        let others = OtherSessions {
            children: if is_child { vec![session.clone()] } else { Vec::new() },
            elsewhere: has_output.then_some(elsewhere),
        };
        Self { message, other_sessions: Some(Box::new(others)), ..Self::default() }
    }

    /// Returns the sessions that its messages show to be those of subagents.
    pub fn children(&self) -> &[SessionId] {
        self.other_sessions.as_ref().map_or(&[], |others| &others.children)
    }

    /// Returns the output that names another session than the prompted one.
    pub fn elsewhere(&self) -> Option<&Elsewhere> {
        self.other_sessions.as_ref()?.elsewhere.as_ref()
    }

    /// Whether the rules need to know nothing of the messages.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the summary of the messages after these.
    pub fn join(&mut self, later: OutputSummary) {
        self.has_output |= later.has_output;
        self.has_answer |= later.has_answer;
        self.text.push_str(&later.text);
        self.usage = later.usage.or(self.usage.take());
        self.tools.extend(later.tools);
        self.costs.extend(later.costs);
        self.message = later.message.or(self.message);
        self.is_users |= later.is_users;
        if let Some(later) = later.other_sessions {
            let others = self.other_sessions.get_or_insert_default();
            others.children.extend(later.children);
            others.elsewhere = later.elsewhere.or(others.elsewhere.take());
        }
    }
}

/// What a message reports of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolUpdate {
    /// The agent's name for the call.
    pub call: String,
    /// How far the call is.
    pub step: ToolProgress,
}

/// How far a tool call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolProgress {
    /// The agent called the tool; the result may be in the same message.
    Called {
        /// The tool.
        tool: String,
        /// The result.
        ended: Option<ToolResult>,
    },
    /// The call ended.
    Ended(ToolResult),
}

/// How a tool call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolResult {
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
}

impl ToolUpdate {
    /// Whether the call has no result yet.
    pub fn is_open(&self) -> bool {
        matches!(self.step, ToolProgress::Called { ended: None, .. })
    }
}

impl ToolResult {
    /// Whether it failed.
    pub fn is_failure(self) -> bool {
        self == Self::Failed
    }
}

/// What a session cost so far, as the agent reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Its currency, ISO 4217.
    pub currency: String,
    /// The amount in billionths: integers, so that a sum does not depend on the order.
    pub billionths: u64,
}

/// How full the context is, as the agent reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens in use.
    pub used: u64,
    /// Tokens that fit.
    pub size: u64,
    /// What the session cost so far, unchanged.
    pub cost: Option<Json>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch that the rules need to know nothing of joins any other.
    #[test]
    fn a_summary_is_empty_until_it_says_something() {
        assert!(OutputSummary::default().is_empty());
        let silent = OutputSummary { has_output: true, ..OutputSummary::default() };
        assert!(!silent.is_empty());
    }
}
