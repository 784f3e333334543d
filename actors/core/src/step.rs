//! What comes out of the rules: facts and orders.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Cause, Compaction, Continuity, Exit, ExitReason, Finding, Interrupted, Json, Origin,
    Provenance, RunId, SessionId, Settings, StopReason, Task, TaskError, TaskId, TaskKind,
    TaskState,
};

/// What an event led to: facts to make durable, and then orders to carry out.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Facts in the past tense, in order. Durable before the first effect.
    pub writes: Vec<Write>,
    /// Orders, in order.
    pub effects: Vec<Effect>,
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
    /// Tool calls begun (`true`) and ended (`false`), in order.
    pub tools: Vec<(String, bool)>,
    /// Whether any of them is an answer: message text, or a tool call.
    pub answer: bool,
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

/// A batch of the agent's messages as a fact.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The run that said it.
    pub run: RunId,
    /// The turn within which it was said.
    pub task: Option<TaskId>,
    /// What it said.
    pub lines: Lines,
    /// What the rules know of it.
    pub fold: Fold,
}

/// Why a segment is not the open one any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Another session was loaded.
    SessionLoad,
    /// The context was compacted.
    Compaction,
    /// The agent spoke of another session.
    AcpSessionIdChanged,
    /// The session did not outlive its process.
    AgentRestart,
    /// The agent put another session behind the same id.
    Reset,
}

/// A fact. Each is a frame of the transcript (but those that [`Write::frames`] counts otherwise),
/// and its fields are the frame's payload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Write {
    /// The group exists.
    GroupCreated(Settings),
    /// The group's settings changed, or it was revived.
    GroupChanged(Settings),
    /// The group was deleted, and stays readable.
    GroupArchived {},
    /// The group's rows are to be deleted as soon as nothing of its run is left.
    PurgeOrdered {},
    /// The group claims no more work.
    GroupPaused {},
    /// The group goes on.
    GroupResumed {},
    /// A task was accepted.
    TaskQueued {
        /// The task.
        task: TaskId,
        /// Its kind.
        kind: TaskKind,
        /// Who asked.
        origin: Origin,
        /// All of it.
        #[serde(skip)]
        record: Box<Task>,
    },
    /// The task has its slot and waits for its agent.
    TaskClaimed {
        /// The task.
        task: TaskId,
    },
    /// The task lost its slot before its prompt was sent, and waits in its old place again.
    TaskReleased {
        /// The task.
        task: TaskId,
    },
    /// The task's attempt begins.
    TaskStarted {
        /// The task.
        task: TaskId,
        /// Which attempt, from 1.
        attempt: u32,
        /// The run it goes to.
        run: RunId,
    },
    /// The turn begins: before the first byte of its prompt is sent (SEEDS AM-2).
    TurnStarted {
        /// The task.
        task: TaskId,
        /// The caller's prompt as content blocks.
        prompt: Json,
    },
    /// The prompt, as it is sent to the agent.
    PromptSent {
        /// JSON-RPC's id.
        id: u64,
        /// The session it goes to.
        session: SessionId,
        /// The content blocks.
        prompt: Json,
    },
    /// What the agent said.
    #[serde(skip)]
    Said(Said),
    /// A line of the agent that is no protocol message.
    AgentOutputRejected {
        /// The run that wrote it.
        run: RunId,
        /// What is wrong with it.
        reason: String,
        /// The line in base64.
        bytes: String,
    },
    /// A permission request was answered.
    PermissionResolved {
        /// The request's JSON-RPC id.
        request: Json,
        /// The option chosen; absent: answered `cancelled`.
        selected: Option<String>,
        /// Who chose.
        resolved_by: Cow<'static, str>,
    },
    /// Somebody wants the running task called off.
    CancelRequested {
        /// The task.
        task: TaskId,
    },
    /// The running turn is being cut off by greenroom.
    TurnCut {
        /// The task.
        task: TaskId,
        /// Why.
        cause: Cause,
    },
    /// The turn is over.
    TurnSettled {
        /// The task.
        task: TaskId,
        /// Why the prompt stopped.
        stop_reason: StopReason,
    },
    /// The task reached its terminal state.
    TaskEnded {
        /// The task.
        task: TaskId,
        /// Which.
        state: TaskState,
        /// Why the prompt stopped, if one was sent.
        stop_reason: Option<StopReason>,
        /// What went wrong.
        error: Option<TaskError>,
        /// What is known of a turn that was cut off.
        interrupted: Option<Interrupted>,
        /// What is odd about it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<Finding>,
        /// All of it, as it stays.
        #[serde(skip)]
        record: Box<Task>,
    },
    /// An agent process is being started.
    RunStarted {
        /// Its name.
        run: RunId,
        /// The profile.
        agent: String,
    },
    /// The agent takes prompts.
    RunReady {
        /// Which run.
        run: RunId,
        /// Its process.
        pid: u32,
        /// Its session.
        session: SessionId,
        /// What became of the context.
        continuity: Continuity,
    },
    /// The agent was told to end.
    RunStopping {
        /// Which run.
        run: RunId,
    },
    /// The run is over.
    RunExited {
        /// Which run.
        run: RunId,
        /// How.
        #[serde(flatten)]
        exit: Exit,
    },
    /// The segment is closed for good.
    SegmentEnded {
        /// Its number.
        segment: u32,
        /// Why.
        end_reason: EndReason,
    },
    /// A segment is opened.
    SegmentStarted {
        /// Its number.
        segment: u32,
        /// The one that it continues.
        parent: Option<u32>,
        /// The session whose context is in force in it.
        session: SessionId,
        /// Which of hermes' sessions that is.
        provenance: Option<Provenance>,
    },
    /// More is known of the open segment (SEEDS AM-13: that is no frame).
    ProvenanceNoted {
        /// Which of hermes' sessions is in force.
        provenance: Provenance,
    },
    /// A compaction began.
    CompactionStarted(Box<Compaction>),
    /// More is known of a compaction.
    CompactionUpdated(Box<Compaction>),
    /// A compaction is over.
    CompactionEnded(Box<Compaction>),
    /// The agent gave the summary that was asked for; another session is opened for it.
    SummaryGiven {
        /// The compaction task.
        task: TaskId,
    },
    /// The lock of the session is asked for.
    LockAsked {
        /// The compaction task.
        task: TaskId,
    },
    /// Somebody else holds the lock.
    LockRefused {
        /// The compaction task.
        task: TaskId,
        /// Who holds it.
        holder: String,
    },
    /// The compaction has its lock.
    LockTaken {
        /// The compaction task.
        task: TaskId,
        /// The session.
        key: SessionId,
        /// Under which name.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// The compaction goes on without a lock, as there is none to be had (SEEDS HL-8).
    LockBypassed {
        /// The compaction task.
        task: TaskId,
        /// What somebody should do about it.
        remedy: Cow<'static, str>,
    },
    /// The compaction's lock was taken over, or could not be kept.
    LockLost {
        /// The compaction task.
        task: TaskId,
    },
    /// The compaction's lock is given back.
    LockReleased {
        /// The session.
        key: SessionId,
        /// Whose it was.
        holder: String,
        /// The fencing token.
        token: u64,
        /// Whether the facts beside this one hold only if the lock was still the group's (HL-11).
        fences: bool,
    },
    /// The agent does not take prompts any more and pretends that it does; its run is ended.
    AgentWedged {
        /// Which run.
        run: RunId,
        /// By what it was recognised.
        sign: Cow<'static, str>,
    },
    /// The agent wrote a line to stderr that its profile listens to.
    StderrMatched {
        /// Which run.
        run: RunId,
        /// The line.
        line: String,
    },
    /// The agent's context could not be restored.
    ContextLost {
        /// The session that is gone.
        session: SessionId,
    },
}

impl Write {
    /// How many frames of the transcript the fact is.
    pub fn frames(&self) -> u64 {
        match self {
            Self::Said(said) => said.lines.count,
            Self::RunStopping { .. }
            | Self::ProvenanceNoted { .. }
            | Self::LockAsked { .. }
            | Self::LockTaken { .. }
            | Self::LockReleased { .. } => 0,
            _ => 1,
        }
    }

    /// The kind of the frame that the fact is; for [`Write::Said`] the lines tell themselves.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::GroupCreated(_) => "greenroom/group_created",
            Self::GroupChanged(_) => "greenroom/group_changed",
            Self::GroupArchived {} => "greenroom/group_archived",
            Self::PurgeOrdered {} => "greenroom/purge_ordered",
            Self::GroupPaused {} => "greenroom/group_paused",
            Self::GroupResumed {} => "greenroom/group_resumed",
            Self::TaskQueued { .. } => "greenroom/task_queued",
            Self::TaskClaimed { .. } => "greenroom/task_claimed",
            Self::TaskReleased { .. } => "greenroom/task_released",
            Self::TaskStarted { .. } => "greenroom/task_started",
            Self::TurnStarted { .. } => "greenroom/turn_started",
            Self::PromptSent { .. } => "session/prompt",
            Self::Said(_) => "session/update",
            Self::AgentOutputRejected { .. } => "greenroom/agent_output_rejected",
            Self::PermissionResolved { .. } => "greenroom/permission_resolved",
            Self::CancelRequested { .. } => "greenroom/cancel_requested",
            Self::TurnCut { .. } => "greenroom/turn_cut",
            Self::TurnSettled { .. } => "greenroom/turn_settled",
            Self::TaskEnded { .. } => "greenroom/task_ended",
            Self::RunStarted { .. } => "greenroom/run_started",
            Self::RunReady { .. } => "greenroom/run_ready",
            Self::RunStopping { .. } => "greenroom/run_stopping",
            Self::RunExited { .. } => "greenroom/run_exited",
            Self::SegmentEnded { .. } => "greenroom/segment_ended",
            Self::SegmentStarted { .. } => "greenroom/segment_started",
            Self::ProvenanceNoted { .. } => "greenroom/provenance_noted",
            Self::CompactionStarted(_) => "greenroom/compaction_started",
            Self::CompactionUpdated(_) => "greenroom/compaction_updated",
            Self::CompactionEnded(_) => "greenroom/compaction_ended",
            Self::SummaryGiven { .. } => "greenroom/summary_given",
            Self::LockAsked { .. } => "greenroom/lock_asked",
            Self::LockRefused { .. } => "greenroom/lock_refused",
            Self::LockTaken { .. } => "greenroom/lock_taken",
            Self::LockBypassed { .. } => "greenroom/lock_bypassed",
            Self::LockLost { .. } => "greenroom/lock_lost",
            Self::LockReleased { .. } => "greenroom/lock_released",
            Self::AgentWedged { .. } => "greenroom/agent_wedged",
            Self::StderrMatched { .. } => "greenroom/stderr",
            Self::ContextLost { .. } => "greenroom/context_lost",
        }
    }
}

/// An order to an actor, carried out only once the step's facts are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start an agent process, and take up `session` in it if there is one.
    Launch {
        /// The run's name.
        run: RunId,
        /// The session to take up again.
        session: Option<SessionId>,
    },
    /// Send a prompt.
    Prompt {
        /// To which run.
        run: RunId,
        /// JSON-RPC's id.
        id: u64,
        /// The session.
        session: SessionId,
        /// The content blocks.
        prompt: Json,
    },
    /// Have the agent open another session.
    OpenSession {
        /// Which run.
        run: RunId,
        /// JSON-RPC's id.
        id: u64,
    },
    /// Ask for the lock of a session.
    TakeLock {
        /// The compaction task.
        task: TaskId,
        /// The session.
        key: SessionId,
    },
    /// Give a lock back that nobody wants any more.
    DropLock {
        /// The session.
        key: SessionId,
        /// Whose it is.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// Send `session/cancel`.
    Cancel {
        /// To which run.
        run: RunId,
        /// The session.
        session: SessionId,
    },
    /// Answer a permission request.
    Answer {
        /// To which run.
        run: RunId,
        /// The answer.
        answer: Answer,
    },
    /// End the agent's process tree.
    Stop {
        /// Which run.
        run: RunId,
        /// How.
        how: Stop,
    },
}

/// An answer to a permission request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request's JSON-RPC id.
    pub request: Json,
    /// The option chosen; absent: `cancelled`.
    pub selected: Option<String>,
}

/// How to end a process tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Close its stdin; 2 s later TERM; 5 s later KILL.
    Gently,
    /// TERM at once; 5 s later KILL.
    Firmly,
}

impl Step {
    /// Takes another step's facts and orders behind this one's.
    pub fn extend(&mut self, later: Step) {
        self.writes.extend(later.writes);
        self.effects.extend(later.effects);
    }
}

impl From<ExitReason> for StopReason {
    fn from(reason: ExitReason) -> Self {
        match reason {
            ExitReason::Protocol => Self::Protocol,
            ExitReason::ServerRestart => Self::ServerRestart,
            ExitReason::StartFailed | ExitReason::Exited | ExitReason::Stopped => {
                Self::ProcessExited
            }
        }
    }
}
