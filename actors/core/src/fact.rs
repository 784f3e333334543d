//! Facts: what is true since a commit.

// How a fact is a frame of the transcript.
mod frame;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    Cause, Compaction, Continuity, Deadline, Exit, Interrupted, Json, Lines, Origin, OutputSummary,
    Permission, PermissionId, PermissionState, PromptCapabilities, Provenance, RunId, SessionId,
    Settings, StopReason, Strategy, Task, TaskError, TaskFindings, TaskId, TaskKind, TaskState,
    TokensSpent,
};

/// A batch of the agent's messages as a fact.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentOutput {
    /// The messages.
    pub lines: Lines,
    /// What the rules need to know of them.
    pub summary: OutputSummary,
    /// The earlier task that they belong to, if they are late: not to the attempt that runs.
    pub late: Option<TaskId>,
}

/// Why a group is on hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// A turn was interrupted, and the agent's session could not be restored.
    ContextLost,
    /// A turn was interrupted, and the group's setting is to hold then.
    Interrupted,
    /// Two turns in a row were interrupted.
    InterruptedTwice,
}

/// Why a segment was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// greenroom loaded another session.
    SessionLoad,
    /// The context was compacted.
    Compaction,
    /// The agent's output named another session.
    AcpSessionIdChanged,
    /// The session could not be restored in the next run.
    AgentRestart,
    /// The agent exchanged its own session under the same ACP id.
    Reset,
}

/// A fact, in the past tense. Each is one frame of the transcript, except where [`Fact::frames`]
/// counts otherwise. Its fields are the frame's payload, and the variant's name in snake case is
/// the frame's kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The group was created.
    GroupCreated(Settings),
    /// The group's settings changed, or it was revived.
    GroupChanged(Settings),
    /// The group was archived: it accepts no work and stays readable.
    GroupArchived {},
    /// A caller ordered the group's rows to be deleted, as soon as its run is over.
    PurgeOrdered {},
    /// A caller paused the group: it claims no task.
    GroupPaused {},
    /// The group was resumed: pause, hold and crash loop are over.
    GroupResumed {},
    /// The group is on hold: it claims no task until a caller decides.
    GroupHeld {
        /// Why.
        reason: HoldReason,
    },
    /// A task was accepted.
    TaskQueued {
        /// The task.
        task: TaskId,
        /// Its kind.
        kind: TaskKind,
        /// Who submitted it.
        origin: Origin,
        /// Its whole record.
        #[serde(skip, default = "empty_record")]
        record: Box<Task>,
    },
    /// The task has its slot and waits for its agent.
    TaskClaimed {
        /// The task.
        task: TaskId,
    },
    /// The task lost its slot before its prompt was sent, and returned to its place in the queue.
    TaskReleased {
        /// The task.
        task: TaskId,
    },
    /// An attempt of the task began (START).
    TaskStarted {
        /// The task.
        task: TaskId,
        /// The attempt's number, from 1.
        attempt: u32,
        /// The run that gets the prompt.
        run: RunId,
    },
    /// The turn began. Committed before the first byte of its prompt is sent (AM-2).
    TurnStarted {
        /// The task.
        task: TaskId,
        /// The caller's prompt as content blocks; for a compaction, the prompt that the profile in
        /// force makes.
        prompt: Json,
        /// The strategy of a compaction, if it differs from that at acceptance: the profile changed
        /// since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        strategy: Option<Strategy>,
        /// Whether it is the first one in a run that restored its session: the agent may replay
        /// that yet.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        after_restore: bool,
    },
    /// The prompt was committed, as it is sent to the agent: JSON-RPC's id is the frame's number.
    PromptSent {
        /// The session that gets the prompt.
        session: SessionId,
        /// The content blocks.
        prompt: Json,
    },
    /// The agent of the run at the fact's place wrote protocol messages, which belong to the task
    /// there, if there is one: to its attempt, or late to one that was settled. They are stored
    /// unchanged; `acp` parses them again.
    #[serde(skip)]
    AgentOutput(AgentOutput),
    /// The agent wrote a line that is no protocol message. If it begins as one does, it counts as
    /// output.
    AgentOutputRejected {
        /// The run that wrote it.
        run: RunId,
        /// What is wrong with it.
        reason: String,
        /// The line in base64.
        bytes: String,
    },
    /// The agent sent a request that greenroom refuses. It counts as output.
    RequestRefused {
        /// The run that sent it.
        run: RunId,
        /// The method.
        method: String,
    },
    /// The agent asked for a permission.
    PermissionOpened(Box<Permission>),
    /// A permission was resolved.
    PermissionResolved {
        /// The permission.
        permission: PermissionId,
        /// The request's JSON-RPC id.
        request: Json,
        /// How it was resolved.
        state: PermissionState,
        /// The selected option; absent: the answer was `cancelled`, or there was none.
        selected: Option<String>,
        /// Who resolved it.
        resolved_by: Cow<'static, str>,
    },
    /// A caller asked to cancel the running task.
    CancelRequested {
        /// The task.
        task: TaskId,
    },
    /// greenroom sent `session/cancel` to the agent.
    CancelSent {
        /// The run.
        run: RunId,
    },
    /// greenroom began to interrupt the running turn.
    TurnCut {
        /// The task.
        task: TaskId,
        /// Why.
        cause: Cause,
    },
    /// The agent answered the prompt: the response, unchanged.
    PromptAnswered(#[serde(deserialize_with = "frame::response")] Json),
    /// The attempt was settled.
    TurnSettled {
        /// The task.
        task: TaskId,
        /// Why the prompt stopped.
        stop_reason: StopReason,
        /// What it spent, if the agent reports that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<Box<TokensSpent>>,
        /// How many bytes of text the agent wrote in messages of earlier turns before it got the
        /// prompt: no answer, whatever follows in those messages.
        #[serde(default, skip_serializing_if = "is_zero")]
        early_bytes: u64,
    },
    /// The attempt failed, and the task is retried after a backoff.
    TaskRetrying {
        /// The task.
        task: TaskId,
        /// The number of the failed attempt, from 1.
        attempt: u32,
        /// The attempt's error.
        error: TaskError,
        /// The backoff, milliseconds.
        wait_ms: u64,
        /// The backoff's end, which survives a restart.
        #[serde(skip)]
        due: Deadline,
    },
    /// The task's backoff ended.
    BackoffEnded {
        /// The task.
        task: TaskId,
    },
    /// The task reached its terminal state; see [`Fact::task_ended`].
    TaskEnded {
        /// The task.
        task: TaskId,
        /// Its kind; a frame of an earlier version lacks it, also for a compaction.
        #[serde(default = "default_kind", skip_serializing_if = "is_turn")]
        kind: TaskKind,
        /// The number of its last attempt, from 1; 0 if there was none, or if the frame lacks it.
        #[serde(default)]
        attempt: u32,
        /// The terminal state, as a word: a damaged frame may have another one.
        state: TaskState,
        /// Why the prompt stopped, if one was sent.
        stop_reason: Option<StopReason>,
        /// The error, if it has one.
        error: Option<TaskError>,
        /// What is known of an interrupted turn.
        interrupted: Option<Interrupted>,
        /// What is odd about it.
        #[serde(default, skip_serializing_if = "TaskFindings::is_empty")]
        findings: TaskFindings,
        /// Its whole record, in its final form.
        #[serde(skip, default = "empty_record")]
        record: Box<Task>,
    },
    /// greenroom began to launch an agent process.
    RunStarted {
        /// The run's id.
        run: RunId,
        /// The launch profile.
        agent: String,
        /// Whether the profile has detectors beyond ACP.
        #[serde(rename = "listens", default, skip_serializing_if = "std::ops::Not::not")]
        has_detectors: bool,
    },
    /// The agent has a session and takes prompts.
    RunReady {
        /// The run.
        run: RunId,
        /// Its process id.
        pid: u32,
        /// Its session.
        session: SessionId,
        /// Whether the context was restored.
        continuity: Continuity,
        /// Which of the agent's own sessions it is, if the agent reports that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provenance: Option<Provenance>,
        /// Whether the agent can neither load nor resume a session: the context ends with the run.
        #[serde(rename = "forgetful", default, skip_serializing_if = "std::ops::Not::not")]
        is_forgetful: bool,
        /// The content blocks that it takes, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prompts: Option<PromptCapabilities>,
    },
    /// The run is being stopped, or its agent closed stdout.
    RunStopping {
        /// The run.
        run: RunId,
    },
    /// The run ended.
    RunExited {
        /// The run.
        run: RunId,
        /// How it ended.
        #[serde(flatten)]
        exit: Exit,
    },
    /// The agent is in a crash loop: its next run waits, unless it is for a retry.
    AgentDegraded {
        /// How many runs in a row ended without settling an attempt.
        runs: u32,
        /// How long the next run waits, milliseconds.
        wait_ms: u64,
        /// The end of the wait, which survives a restart.
        #[serde(skip)]
        due: Deadline,
    },
    /// The agent wants a login: its next run waits, and the queue with it.
    AgentAuthRequired {
        /// The launch profile.
        agent: String,
        /// How many starts in a row found that, as they opened the session or with their prompt.
        starts: u32,
        /// What the agent answered.
        error: String,
        /// How long the next run waits, milliseconds.
        wait_ms: u64,
        /// The end of the wait, which survives a restart.
        #[serde(skip)]
        due: Deadline,
    },
    /// The wait before the next run ended.
    LaunchAllowed {},
    /// A segment was closed.
    SegmentEnded {
        /// Its number.
        segment: u32,
        /// Why it was closed.
        end_reason: EndReason,
    },
    /// A segment was opened.
    SegmentStarted {
        /// Its number.
        segment: u32,
        /// The segment that it continues.
        parent: Option<u32>,
        /// The session that is in force in it.
        session: SessionId,
        /// Which of the agent's own sessions that is.
        provenance: Option<Provenance>,
    },
    /// The provenance of the open segment was noted. It is no frame (AM-13).
    ProvenanceNoted {
        /// The agent's own session that is in force.
        provenance: Provenance,
    },
    /// A compaction began.
    CompactionStarted(Box<Compaction>),
    /// More became known of a compaction.
    CompactionUpdated(Box<Compaction>),
    /// A compaction ended.
    CompactionEnded(Box<Compaction>),
    /// An ordered compaction was not completed: automatic compaction is paused (HL-14).
    CompactionRests {
        /// The end of the pause.
        due: Deadline,
        /// Whether another program had the session's lock.
        lock_held: bool,
    },
    /// The agent answered with a summary; greenroom asks it to open another session.
    SummaryGiven {
        /// The compaction task.
        task: TaskId,
        /// What the summary spent, if the agent reports that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<Box<TokensSpent>>,
    },
    /// The group requested the session's lock.
    LockAsked {
        /// The compaction task.
        task: TaskId,
    },
    /// Another holder has the lock.
    LockRefused {
        /// The compaction task.
        task: TaskId,
        /// The holder's name.
        holder: String,
        /// Whether an earlier request of the task was refused: the transcript shows the first only.
        #[serde(skip)]
        again: bool,
    },
    /// The group acquired the lock for the compaction.
    LockTaken {
        /// The compaction task.
        task: TaskId,
        /// The session.
        key: SessionId,
        /// The name that it holds the lock under.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// The compaction proceeds without a lock: the database has no lock table (HL-8).
    LockBypassed {
        /// The compaction task.
        task: TaskId,
        /// What an operator should do about it.
        remedy: Cow<'static, str>,
    },
    /// Another holder took the compaction's lock, or the group could not refresh it.
    LockLost {
        /// The compaction task.
        task: TaskId,
    },
    /// The group released the compaction's lock.
    LockReleased {
        /// The session.
        key: SessionId,
        /// The name that it held the lock under.
        holder: String,
        /// The fencing token.
        token: u64,
        /// Whether the commit of this fact succeeds only if the group still had the lock (HL-11).
        fences: bool,
    },
    /// The agent is wedged: it pretends to take prompts. greenroom ends its run.
    AgentWedged {
        /// The run.
        run: RunId,
        /// What showed it.
        sign: Cow<'static, str>,
    },
    /// The agent wrote a line to stderr that its profile's detector recognizes.
    #[serde(rename = "stderr")]
    StderrMatched {
        /// The run.
        run: RunId,
        /// The line.
        line: String,
    },
    /// The agent's session could not be restored.
    ContextLost {
        /// The lost session.
        session: SessionId,
        /// Why; a frame of an earlier version lacks it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
}

/// The kind of task that a stored fact without a kind is about.
fn default_kind() -> TaskKind {
    TaskKind::Turn
}

fn is_turn(kind: &TaskKind) -> bool {
    *kind == TaskKind::Turn
}

/// The record of a fact that is read from a frame, which does not hold it.
fn empty_record() -> Box<Task> {
    let id = TaskId(uuid::Uuid::nil());
    let prompt = Json::parse("[]".into()).unwrap_or_else(|_| unreachable!("it is JSON"));
    Box::new(Task::new(id, crate::Work::Turn { prompt }, Origin::Api))
}

/// Whether bytes in base64 begin with `{`, whose 8 bits are in the first two characters.
fn begins_object(bytes: &str) -> bool {
    matches!(bytes.as_bytes(), [b'e', b'w'..=b'z' | b'0'..=b'9' | b'+' | b'/', ..])
}

impl Fact {
    /// Creates the fact that a task ended, from its record in its final form ([`Task::ended`]).
    /// `kind` is the task's, but for a compaction whose stored frame lacks it.
    pub fn task_ended(kind: TaskKind, record: Task) -> Self {
        let ending = record.ending().clone();
        Self::TaskEnded {
            task: record.id,
            kind,
            attempt: record.attempt,
            state: record.state(),
            stop_reason: ending.stop_reason,
            error: ending.error,
            interrupted: ending.interrupted,
            findings: ending.findings,
            record: Box::new(record),
        }
    }

    /// Whether it shows output that has no summary: a refused request, or a line that begins
    /// as a message does and cannot be read.
    pub fn is_bare_output(&self) -> bool {
        match self {
            Self::RequestRefused { .. } => true,
            Self::AgentOutputRejected { bytes, .. } => begins_object(bytes),
            _ => false,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
