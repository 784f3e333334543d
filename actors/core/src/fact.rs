//! Facts: what is made durable, and what the transcript shows.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    Cause, Compaction, Continuity, Due, Exit, Finding, Fold, Interrupted, Json, Lines, Origin,
    Permission, PermissionId, PermissionState, Provenance, RunId, SessionId, Settings, Spent,
    StopReason, Strategy, Task, TaskError, TaskId, TaskKind, TaskState,
};

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

/// Why a group is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// A turn was cut off, and the agent's context could not be restored.
    ContextLost,
    /// A turn was cut off, and the group's owner wants to decide what follows.
    Interrupted,
    /// Two turns in a row were cut off.
    InterruptedTwice,
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
/// and its fields are the frame's payload. The frame's kind is the variant's name in snake case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// The group goes on: paused, held or in a crash loop no more.
    GroupResumed {},
    /// The group claims no more work until somebody decided what becomes of it.
    GroupHeld {
        /// Why.
        reason: Held,
    },
    /// A task was accepted.
    TaskQueued {
        /// The task.
        task: TaskId,
        /// Its kind.
        kind: TaskKind,
        /// Who asked.
        origin: Origin,
        /// All of it.
        #[serde(skip, default = "nobody")]
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
        /// The caller's prompt as content blocks; of a compaction, what the profile in force makes
        /// of it.
        prompt: Json,
        /// How a compaction is done, if it is done otherwise than it was accepted: the profile
        /// changed since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        strategy: Option<Strategy>,
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
    /// What the agent said: kept as it came, and read back by whoever knows its language.
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
    /// The agent asked for something that greenroom does not offer: it had begun.
    RequestRefused {
        /// The run that asked.
        run: RunId,
        /// What for.
        method: String,
    },
    /// The agent wants a permission.
    PermissionOpened(Box<Permission>),
    /// A permission is decided on.
    PermissionResolved {
        /// Which.
        permission: PermissionId,
        /// The request's JSON-RPC id.
        request: Json,
        /// How.
        state: PermissionState,
        /// The option chosen; absent: answered `cancelled`, if at all.
        selected: Option<String>,
        /// Who chose.
        resolved_by: Cow<'static, str>,
    },
    /// Somebody wants the running task called off.
    CancelRequested {
        /// The task.
        task: TaskId,
    },
    /// A cancel was sent to the agent.
    CancelSent {
        /// The run.
        run: RunId,
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
        /// What it spent, if the agent tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<Box<Spent>>,
    },
    /// The task's attempt came to nothing, and another one is made after a while.
    TaskRetrying {
        /// The task.
        task: TaskId,
        /// Which attempt it was, from 1.
        attempt: u32,
        /// What went wrong.
        error: TaskError,
        /// How long until the next one, milliseconds.
        wait_ms: u64,
        /// The same, so that it outlives a restart.
        #[serde(skip)]
        due: Due,
    },
    /// The task waited long enough for its next attempt.
    BackoffEnded {
        /// The task.
        task: TaskId,
    },
    /// The task reached its terminal state.
    TaskEnded {
        /// The task.
        task: TaskId,
        /// Its kind; a frame of an earlier version does not tell it of a compaction.
        #[serde(default = "a_turn", skip_serializing_if = "is_a_turn")]
        kind: TaskKind,
        /// Which attempt was its last, from 1; 0 if there was none, or in a frame that does not
        /// tell.
        #[serde(default)]
        attempt: u32,
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
        #[serde(skip, default = "nobody")]
        record: Box<Task>,
    },
    /// An agent process is being started.
    RunStarted {
        /// Its name.
        run: RunId,
        /// The profile.
        agent: String,
        /// Whether the profile listens to more than ACP.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        listens: bool,
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
        /// Which of hermes' sessions it is, if the agent says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provenance: Option<Provenance>,
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
    /// The agent fails again and again; its next run waits, unless a task's own backoff did.
    AgentDegraded {
        /// How many runs in a row ended without settling a turn.
        runs: u32,
        /// How long the next one waits, milliseconds.
        wait_ms: u64,
        /// The same, so that it outlives a restart.
        #[serde(skip)]
        due: Due,
    },
    /// The next run waited long enough.
    LaunchAllowed {},
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
    /// An ordered compaction was not completed: for a while the group orders none by itself.
    CompactionRests {
        /// Until when.
        due: Due,
    },
    /// The agent gave the summary that was asked for; another session is opened for it.
    SummaryGiven {
        /// The compaction task.
        task: TaskId,
        /// What it spent, if the agent tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<Box<Spent>>,
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
        /// Whether that was said before: once is enough for a transcript.
        #[serde(skip)]
        again: bool,
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
    #[serde(rename = "stderr")]
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

/// What greenroom's own frames are called before the fact's name.
const OWN: &str = "greenroom/";

/// The kind of task that a stored fact is about if it does not tell.
fn a_turn() -> TaskKind {
    TaskKind::Turn
}

fn is_a_turn(kind: &TaskKind) -> bool {
    *kind == TaskKind::Turn
}

/// A record that a stored fact does not hold.
fn nobody() -> Box<Task> {
    let id = TaskId(uuid::Uuid::nil());
    let prompt = Json::parse("[]".into()).unwrap_or_else(|_| unreachable!("it is JSON"));
    Box::new(Task::new(id, crate::Work::Turn { prompt }, Origin::Api))
}

impl Write {
    /// The payload of the frame that the fact is.
    pub fn payload(&self) -> String {
        // Written as an object with one member, named after the fact.
        let mut named = serde_json::to_string(self).unwrap_or_else(|_| r#"{"":null}"#.into());
        let name_bytes = named.find(':').map_or(0, |colon| colon + 1);
        named.pop();
        named.drain(..name_bytes);
        named
    }

    /// The fact that a stored frame is, but for its task's record; `None` for what the agent said,
    /// and for prompts.
    ///
    /// # Errors
    ///
    /// The frame claims to be greenroom's own, and is no fact that this version knows.
    pub fn read(kind: &str, payload: &str) -> Option<Result<Self, serde_json::Error>> {
        let name = kind.strip_prefix(OWN)?;
        Some(serde_json::from_str(&format!("{{{name:?}:{payload}}}")))
    }

    /// How many frames of the transcript the fact is.
    pub fn frames(&self) -> u64 {
        match self {
            Self::Said(said) => said.lines.count,
            Self::RunStopping { .. }
            | Self::CancelSent { .. }
            | Self::CompactionRests { .. }
            | Self::BackoffEnded { .. }
            | Self::LaunchAllowed {}
            | Self::ProvenanceNoted { .. }
            | Self::LockAsked { .. }
            | Self::LockRefused { again: true, .. }
            | Self::LockTaken { .. }
            | Self::LockReleased { .. } => 0,
            _ => 1,
        }
    }

    /// The task that the fact itself names.
    pub fn task(&self) -> Option<TaskId> {
        match self {
            Self::TaskQueued { task, .. }
            | Self::TaskClaimed { task }
            | Self::TaskReleased { task }
            | Self::TaskStarted { task, .. }
            | Self::TurnStarted { task, .. }
            | Self::CancelRequested { task }
            | Self::TurnCut { task, .. }
            | Self::TurnSettled { task, .. }
            | Self::SummaryGiven { task, .. }
            | Self::TaskRetrying { task, .. }
            | Self::LockRefused { task, .. }
            | Self::LockBypassed { task, .. }
            | Self::LockLost { task }
            | Self::TaskEnded { task, .. } => Some(*task),
            Self::PermissionOpened(permission) => permission.task,
            Self::CompactionStarted(compaction)
            | Self::CompactionUpdated(compaction)
            | Self::CompactionEnded(compaction) => compaction.task,
            _ => None,
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
            Self::GroupHeld { .. } => "greenroom/group_held",
            Self::TaskQueued { .. } => "greenroom/task_queued",
            Self::TaskClaimed { .. } => "greenroom/task_claimed",
            Self::TaskReleased { .. } => "greenroom/task_released",
            Self::TaskStarted { .. } => "greenroom/task_started",
            Self::TurnStarted { .. } => "greenroom/turn_started",
            Self::PromptSent { .. } => "session/prompt",
            Self::Said(_) => "session/update",
            Self::AgentOutputRejected { .. } => "greenroom/agent_output_rejected",
            Self::RequestRefused { .. } => "greenroom/request_refused",
            Self::PermissionOpened(_) => "greenroom/permission_opened",
            Self::PermissionResolved { .. } => "greenroom/permission_resolved",
            Self::CancelRequested { .. } => "greenroom/cancel_requested",
            Self::CancelSent { .. } => "greenroom/cancel_sent",
            Self::TurnCut { .. } => "greenroom/turn_cut",
            Self::TurnSettled { .. } => "greenroom/turn_settled",
            Self::TaskRetrying { .. } => "greenroom/task_retrying",
            Self::BackoffEnded { .. } => "greenroom/backoff_ended",
            Self::TaskEnded { .. } => "greenroom/task_ended",
            Self::RunStarted { .. } => "greenroom/run_started",
            Self::RunReady { .. } => "greenroom/run_ready",
            Self::RunStopping { .. } => "greenroom/run_stopping",
            Self::RunExited { .. } => "greenroom/run_exited",
            Self::AgentDegraded { .. } => "greenroom/agent_degraded",
            Self::LaunchAllowed {} => "greenroom/launch_allowed",
            Self::SegmentEnded { .. } => "greenroom/segment_ended",
            Self::SegmentStarted { .. } => "greenroom/segment_started",
            Self::ProvenanceNoted { .. } => "greenroom/provenance_noted",
            Self::CompactionStarted(_) => "greenroom/compaction_started",
            Self::CompactionUpdated(_) => "greenroom/compaction_updated",
            Self::CompactionEnded(_) => "greenroom/compaction_ended",
            Self::CompactionRests { .. } => "greenroom/compaction_rests",
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
