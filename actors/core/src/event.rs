//! Events: what may happen to a group, in the rules' words.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Choice, Continuity, Exit, Expiry, Json, PermissionId, PermissionOption, PermissionShown,
    Provenance, RunId, SessionId, Settings, Signal, StopReason, Task, TaskId, Tokens,
};

/// Something that happened to a group.
#[derive(Debug)]
pub enum Event {
    /// Somebody made the group, changed it, or revived it.
    Configured(Settings),
    /// Somebody asked for work. Its `ordinal` and `state` are set by the rules.
    Submitted(Box<Task>),
    /// Somebody wants a task called off.
    CancelRequested(TaskId),
    /// Somebody deleted the group.
    Archived,
    /// Somebody wants nothing of the deleted group kept.
    PurgeOrdered,
    /// Somebody wants it to claim no more work.
    Paused,
    /// Somebody wants it to go on.
    Resumed,
    /// Somebody wants its run ended now.
    Stopped,
    /// One of the server's slots is this group's for one task.
    SlotGranted,
    /// The lock for a compaction was asked for.
    LockAnswered {
        /// The compaction task.
        task: TaskId,
        /// The session whose lock was asked for; another may be in force by now.
        key: SessionId,
        /// Whether it has it.
        answer: LockAnswer,
    },
    /// The lock of a compaction was taken over, or could not be kept.
    LockLost {
        /// The compaction task.
        task: TaskId,
    },
    /// The agent takes prompts now.
    AgentReady {
        /// Which run.
        run: RunId,
        /// Its process.
        pid: u32,
        /// The session that it opened.
        session: SessionId,
        /// What became of the context.
        continuity: Continuity,
        /// Which of hermes' sessions it is.
        provenance: Option<Provenance>,
    },
    /// The agent said something.
    AgentSaid {
        /// Which run.
        run: RunId,
        /// What it said.
        lines: Lines,
        /// What the rules need to know of it.
        fold: Fold,
    },
    /// What the agent just said tells of a compaction.
    Signalled {
        /// Which run.
        run: RunId,
        /// What it tells.
        signal: Box<Signal>,
    },
    /// What the agent just said tells which of hermes' sessions is in force.
    ProvenanceGiven {
        /// Which run.
        run: RunId,
        /// What it tells.
        provenance: Provenance,
    },
    /// What the agent just said is about a session that it was not about before (SEEDS AM-13).
    SessionNamed {
        /// Which run.
        run: RunId,
        /// The session.
        session: SessionId,
    },
    /// The agent wrote a line to stderr that its profile listens to.
    StderrMatched {
        /// Which run.
        run: RunId,
        /// The line.
        line: String,
        /// What it tells of a compaction.
        signal: Box<Signal>,
    },
    /// The agent opened another session, or could not.
    SessionOpened {
        /// Which run.
        run: RunId,
        /// Which request.
        id: u64,
        /// The session, or what is wrong.
        opened: Result<(SessionId, Option<Provenance>), String>,
    },
    /// The agent said something that is no protocol message.
    OutputRejected {
        /// Which run.
        run: RunId,
        /// What is wrong with it.
        reason: String,
        /// The line in base64.
        bytes: String,
    },
    /// The agent asked for something that is refused, and of which readers see the name alone
    /// (SEEDS AM-6).
    RequestRefused {
        /// Which run.
        run: RunId,
        /// What it asked for.
        method: String,
    },
    /// The agent asked for a permission.
    PermissionAsked {
        /// Which run.
        run: RunId,
        /// The request as it came.
        lines: Lines,
        /// What was asked.
        asked: Box<PermissionAsked>,
    },
    /// Somebody answered a permission.
    PermissionAnswered {
        /// Which.
        permission: PermissionId,
        /// With what.
        choice: Choice,
        /// Who.
        by: Cow<'static, str>,
    },
    /// The agent answered a prompt.
    PromptAnswered {
        /// Which run.
        run: RunId,
        /// Which prompt.
        id: u64,
        /// With what.
        reply: PromptReply,
    },
    /// The agent closed its stdout: it says nothing more, and is not to be asked any more.
    AgentClosed(RunId),
    /// The run is over and nothing of its process tree is left.
    AgentExited {
        /// Which run.
        run: RunId,
        /// How.
        exit: Exit,
    },
    /// Something took as long as [`crate::Group::patience`] allows.
    Expired(Expiry),
    /// The server shuts down and cannot wait for the running turn.
    Shutdown,
    /// The server began to shut down before the prompt with this id was written to the run: it is
    /// not written any more.
    PromptWithheld {
        /// Which run.
        run: RunId,
        /// Which prompt.
        id: u64,
    },
    /// The group was read back from the database after its server, or its actor, died; nothing of
    /// its run is alive.
    Recovered(Recovery),
}

/// What a group was read back after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Its server died, or was stopped, or its actor died.
    #[default]
    Restart,
    /// Something of it could not be stored.
    Storage,
}

/// What came of the wish for a compaction's lock.
#[derive(Clone, Debug, PartialEq)]
pub enum LockAnswer {
    /// The group has it.
    Taken {
        /// Under which name.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// Somebody else has it.
    Held {
        /// Who.
        holder: String,
    },
    /// There is no lock to be had, as the database does not know any (SEEDS HL-8).
    Absent,
    /// Nobody knows whether it is free (SEEDS HL-9).
    Failed,
}

/// A permission as the agent asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct PermissionAsked {
    /// The request's JSON-RPC id.
    pub request: Json,
    /// The kind of the tool, as the agent says.
    pub tool_kind: Option<String>,
    /// The answers that it offers.
    pub options: Vec<PermissionOption>,
    /// What a person needs to see of it.
    pub shown: PermissionShown,
}

/// How the agent answered a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptReply {
    /// It settled.
    Stopped {
        /// ACP's reason.
        stop_reason: StopReason,
        /// What it spent, if the agent tells.
        tokens: Option<Box<Spent>>,
    },
    /// A JSON-RPC error.
    Failed {
        /// JSON-RPC's code.
        code: i64,
        /// The agent's words.
        message: String,
    },
}

impl PromptReply {
    /// What the prompt spent, if the agent tells.
    pub fn tokens(&self) -> Option<Box<Spent>> {
        match self {
            Self::Stopped { tokens, .. } => tokens.clone(),
            Self::Failed { .. } => None,
        }
    }
}

/// The name of a kind of frame: an ACP method, or `greenroom/<fact>`.
pub type FrameKind = Cow<'static, str>;

/// Raw protocol messages, one a line, in the order in which the agent said them.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines {
    /// How many.
    pub count: u64,
    /// What each one is.
    pub kinds: Kinds,
    /// The messages as they came, with a line feed between them.
    pub text: Arc<String>,
}

/// The kind of each of a row of frames.
#[derive(Clone, Debug, PartialEq)]
pub enum Kinds {
    /// All the same.
    All(FrameKind),
    /// One for each.
    Each(Vec<FrameKind>),
}

/// What the rules need to know of a batch of the agent's messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    /// Whether any of them is output of an attempt (ARCHITECTURE 4).
    pub output: bool,
    /// The message text in them, joined.
    pub text: String,
    /// The last usage in them.
    pub usage: Option<Usage>,
    /// What is told of tool calls, in order.
    pub tools: Vec<ToolNews>,
    /// What the session cost each time that this was said.
    pub costs: Vec<Cost>,
    /// Whether any of them is an answer: message text, or a tool call.
    pub answer: bool,
}

impl Fold {
    /// Takes in what is known of the messages behind these.
    pub fn join(&mut self, later: Fold) {
        self.output |= later.output;
        self.answer |= later.answer;
        self.text.push_str(&later.text);
        self.usage = later.usage.or(self.usage.take());
        self.tools.extend(later.tools);
        self.costs.extend(later.costs);
    }
}

/// What a message tells of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolNews {
    /// The agent's name for the call.
    pub call: String,
    /// What it tells.
    pub step: ToolStep,
}

/// How far a tool call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolStep {
    /// The tool was called, and may have given its result at once.
    Called {
        /// The tool.
        tool: String,
        /// The result.
        ended: Option<ToolResult>,
    },
    /// It gave its result.
    Ended(ToolResult),
}

/// What a tool call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolResult {
    /// It did what it is for.
    Completed,
    /// It did not.
    Failed,
}

impl ToolNews {
    /// Whether the call goes on.
    pub fn is_open(&self) -> bool {
        matches!(self.step, ToolStep::Called { ended: None, .. })
    }
}

impl ToolResult {
    /// Whether it failed.
    pub fn is_failure(self) -> bool {
        self == Self::Failed
    }
}

/// An amount of money, as an agent adds it up for its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Its currency, ISO 4217.
    pub currency: String,
    /// How much, in billionths of it: sums are then the same in whatever order they are made.
    pub billionths: u64,
}

/// What a prompt spent, as the agent says when it answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// All of it.
    #[serde(flatten)]
    pub total: Tokens,
    /// What each model spent, where the agent tells.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_model: BTreeMap<String, Tokens>,
    /// The token counts as the agent gave them.
    #[serde(skip)]
    pub given: Option<Json>,
}

/// How full the context is, as the agent reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens in use.
    pub used: u64,
    /// Tokens that fit.
    pub size: u64,
    /// What the session cost so far, as the agent gave it.
    pub cost: Option<Json>,
}
