//! A unit of work in a group's queue, and everything that is kept about it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Due, Json, RunId, TaskId, Timestamp, Usage, lock::Now};

/// One unit of work: asked for, queued, and kept for good. What an agent may have begun of it is
/// never begun again.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// Its place in the order of acceptance within the group, from 1.
    pub ordinal: u64,
    /// What is to be done.
    pub work: Work,
    /// Who asked for it.
    pub origin: Origin,
    /// What the caller keeps with it.
    pub metadata: Option<Json>,
    /// How long one attempt may take, in milliseconds; absent: the server's `turn_timeout`.
    pub deadline_ms: Option<u64>,
    /// By when it has to start, if its caller said so.
    pub expires: Option<Due>,
    /// The ended task that somebody wants again with this one.
    pub retry_of: Option<TaskId>,
    /// Where it stands.
    pub state: TaskState,
    /// Which attempt it is at, from 1; 0 before the first. One whose agent did not start counts.
    pub attempt: u32,
    /// Until when its next attempt waits.
    pub retry_at: Option<Due>,
    /// Whether somebody asked to cancel it. A request is not an outcome (I9).
    pub cancel_requested: bool,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it got its slot, if it has one or had one.
    pub claimed_at: Option<Timestamp>,
    /// When its prompt was committed to be sent.
    pub started_at: Option<Timestamp>,
    /// When it reached its terminal state.
    pub ended_at: Option<Timestamp>,
    /// The run that its prompt went to.
    pub run: Option<RunId>,
    /// The segment that it started in.
    pub segment: Option<u32>,
    /// Its first frame.
    pub seq_first: Option<u64>,
    /// Its last frame.
    pub seq_last: Option<u64>,
    /// How it ended.
    pub ending: Ending,
}

impl Task {
    /// A task that nobody accepted yet.
    pub fn new(id: TaskId, work: Work, origin: Origin) -> Self {
        Self {
            id,
            ordinal: 0,
            work,
            origin,
            metadata: None,
            deadline_ms: None,
            expires: None,
            retry_of: None,
            state: TaskState::Queued,
            attempt: 0,
            retry_at: None,
            cancel_requested: false,
            created_at: Timestamp::default(),
            claimed_at: None,
            started_at: None,
            ended_at: None,
            run: None,
            segment: None,
            seq_first: None,
            seq_last: None,
            ending: Ending::default(),
        }
    }

    /// How many milliseconds are left until it has to have started, if it has to and did not.
    pub(crate) fn start_within(&self, now: Now) -> Option<u64> {
        let expires = self.expires.filter(|_| self.started_at.is_none());
        expires.map(|expires| expires.left_ms(now))
    }

    /// The kind that the API names.
    pub fn kind(&self) -> TaskKind {
        match self.work {
            Work::Turn { .. } => TaskKind::Turn,
            Work::Compaction { .. } => TaskKind::Compaction,
        }
    }

    /// The prompt as ACP content blocks.
    pub fn prompt(&self) -> &Json {
        self.work.prompt()
    }
}

/// What a task does.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Sends one prompt and waits until it settles.
    Turn {
        /// ACP content blocks, a JSON array.
        prompt: Json,
    },
    /// Has the context compacted. Prompt and strategy are those of the profile that was in force
    /// when the task was accepted, and from its START on those of the profile in force by then.
    Compaction {
        /// What the summary should keep in view.
        focus: Option<Arc<str>>,
        /// The command, or the request for a summary, as ACP content blocks.
        prompt: Json,
        /// What the agent is made to do.
        strategy: Strategy,
    },
}

impl Work {
    /// The prompt as ACP content blocks.
    pub fn prompt(&self) -> &Json {
        match self {
            Self::Turn { prompt } | Self::Compaction { prompt, .. } => prompt,
        }
    }
}

/// How a compaction that somebody ordered is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The agent compacts by its own command.
    Command,
    /// The agent sums the session up, and goes on with the summary in another one.
    Rotate,
}

/// ACP's content block of plain text.
#[derive(Serialize)]
struct TextBlock<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

/// How a profile has its agent's context compacted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionOrder {
    /// What the agent is made to do.
    pub strategy: Strategy,
    /// The agent's own command, or the request for a summary.
    pub text: String,
}

impl CompactionOrder {
    /// What a compaction task with this focus sends, as ACP content blocks.
    pub fn prompt(&self, focus: Option<&str>) -> Json {
        let text = match (self.strategy, focus) {
            (_, None) => self.text.clone(),
            (Strategy::Command, Some(focus)) => format!("{} {focus}", self.text),
            (Strategy::Rotate, Some(focus)) => {
                format!("{}\nKeep in view above all: {focus}", self.text)
            }
        };
        Json::write(&[TextBlock { kind: "text", text: &text }])
            .unwrap_or_else(|_| unreachable!("text always has a JSON form"))
    }

    /// What a compaction task with this focus does.
    pub fn work(&self, focus: Option<Arc<str>>) -> Work {
        let prompt = self.prompt(focus.as_deref());
        Work::Compaction { focus, prompt, strategy: self.strategy }
    }
}

/// The kinds of [`Work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// See [`Work::Turn`].
    Turn,
    /// See [`Work::Compaction`].
    Compaction,
}

/// Who asked for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A caller over HTTP.
    Api,
    /// The group itself.
    Auto,
    /// An ACP client.
    Acp,
    /// A caller who asked for an ended task again.
    Retry,
}

/// Where a task stands. The last five are terminal, and a terminal state never changes (I9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Accepted; waits, or is claimed and waits for its agent.
    Queued,
    /// Its prompt was committed to be sent.
    Running,
    /// Its last attempt came to nothing, and the next one is due in a while.
    Retrying,
    /// The prompt was answered.
    Completed,
    /// The agent answered with an error, or could not be started.
    Failed,
    /// Somebody called it off.
    Cancelled,
    /// Cut off after the agent may have acted; never run again by itself (I7).
    Interrupted,
    /// A compaction that had nothing to do.
    Skipped,
}

impl TaskState {
    /// Whether nothing will change it any more.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Retrying)
    }
}

/// What a task that could not start yet waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// Another task of the group.
    Turn,
    /// One of the server's running slots.
    Slot,
    /// The agent's start.
    Agent,
    /// The wait before its next attempt, or before the next start of an agent that fails again
    /// and again.
    Backoff,
    /// Somebody who paused the group.
    Paused,
    /// Somebody who has to decide, as the context is lost.
    Held,
    /// Somebody else who compacts the session.
    Lock,
    /// The database, which fails.
    Storage,
}

impl Blocked {
    /// What a task waits for that stands behind one which waits for this.
    pub fn behind(self) -> Self {
        match self {
            Self::Held | Self::Paused | Self::Storage => self,
            Self::Turn | Self::Slot | Self::Agent | Self::Backoff | Self::Lock => Self::Turn,
        }
    }
}

/// How a task ended; empty while it has not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// Why the prompt stopped, if one was sent.
    pub stop_reason: Option<StopReason>,
    /// What went wrong.
    pub error: Option<TaskError>,
    /// What is known of a turn that was cut off.
    pub interrupted: Option<Interrupted>,
    /// The agent's message text, joined, up to [`crate::TEXT_BYTES_MAX`].
    pub text: String,
    /// Whether `text` was cut at its limit.
    pub text_truncated: bool,
    /// The context usage that the agent last reported within the task.
    pub usage: Option<Usage>,
    /// The token counts that the agent gave in its answer, as it gave them.
    pub tokens: Option<Json>,
    /// What is odd about it.
    pub findings: Vec<Finding>,
}

/// Something odd about a task that ended all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The turn is completed, and the agent said nothing and called no tool.
    EmptyAnswer,
}

/// What went wrong with a task: a code for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// Stable, `snake_case`.
    pub code: String,
    /// What happened and what is still true.
    pub message: String,
}

/// What is known of a turn that was cut off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interrupted {
    /// What cut it off.
    pub cause: Cause,
    /// What the agent may have done by then.
    pub side_effects: SideEffects,
    /// The tool calls that had begun and not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open_tools: Vec<String>,
}

/// What cut a turn off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The agent's process ended.
    AgentExited,
    /// The server died, or was stopped and could not wait longer.
    ServerRestart,
    /// The turn took longer than it may.
    Deadline,
    /// The agent broke the protocol.
    Protocol,
    /// What it did could not be stored.
    Storage,
}

/// What the agent may have done before it was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideEffects {
    /// Every tool call that it reported had ended.
    NoneObserved,
    /// A tool call was open.
    Possible,
    /// It may have said more than anybody read.
    Unknown,
}

/// Why a prompt stopped: ACP's own reasons, and those that only greenroom can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The agent finished.
    EndTurn,
    /// The model's answer was cut.
    MaxTokens,
    /// The agent asked the model too often.
    MaxTurnRequests,
    /// The agent declined.
    Refusal,
    /// The agent confirmed a cancel.
    Cancelled,
    /// The agent answered with a JSON-RPC error.
    #[serde(rename = "_error")]
    Error,
    /// The agent's process ended first.
    #[serde(rename = "_process_exited")]
    ProcessExited,
    /// The server ended first.
    #[serde(rename = "_server_restart")]
    ServerRestart,
    /// The turn's time was up.
    #[serde(rename = "_deadline")]
    Deadline,
    /// The agent broke the protocol.
    #[serde(rename = "_protocol")]
    Protocol,
    /// What it did could not be stored.
    #[serde(rename = "_storage")]
    Storage,
}

impl StopReason {
    /// Whether it is the agent's answer to the prompt, and not what greenroom saw of its end.
    pub fn is_answer(self) -> bool {
        match self {
            Self::EndTurn
            | Self::MaxTokens
            | Self::MaxTurnRequests
            | Self::Refusal
            | Self::Cancelled
            | Self::Error => true,
            Self::ProcessExited
            | Self::ServerRestart
            | Self::Deadline
            | Self::Protocol
            | Self::Storage => false,
        }
    }
}
