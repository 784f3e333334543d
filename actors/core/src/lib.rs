//! greenroom's rules: which events a group accepts, and which facts and effects follow.
//!
//! This crate owns the state machines. It has no clock, socket, row or thread: time and fresh ids
//! are arguments, and a decision is data (a [`Step`]) that an actor carries out.

// One sending of a task's prompt, from START to settlement.
mod attempt;
// The text that a task keeps.
mod bounded_text;
// The states of one compaction, and which signal belongs to which.
mod compaction;
// Summaries of a group, a run and a turn: projections of facts.
pub mod digest;
// What actors do once the facts of a step are durable.
mod effect;
// How a task ended.
mod ending;
// The input of the rules.
mod event;
// What is true since a commit, and its frame in the transcript.
mod fact;
// The group: its state, its decisions, its projection.
mod group;
// Names of tasks, runs, compactions, permissions, groups and sessions.
mod ids;
// JSON that is passed on unchanged, and how answers show it.
pub mod json;
// Which line of a program's stderr says why it ended.
mod last_words;
// The compaction lock: who may compact a session.
pub mod lock;
// Which turn an agent's messages belong to.
mod message_owners;
// An agent's own stop reason.
mod own_word;
// Permissions: who decides, and with which option.
mod permission;
// The places for agents' processes, and who is evicted.
pub mod pool;
// Which content blocks of a prompt an agent takes.
mod prompt_blocks;
// Which attempts are retried, and after which backoff.
mod retry;
// A run: one process of the group's agent.
mod run;
// Which session's messages count.
mod session_cursor;
// Whether the agent moved to another session by itself.
mod session_move;
// What a caller sets for a group.
mod settings;
// What detectors report of a compaction.
mod signal;
// Where a task is: waiting, claimed, running, ended.
mod stage;
// What one event leads to: facts at their places, then effects.
mod step;
// What a caller submits.
mod submission;
// A task: its work, its place in the queue, what it waits for.
mod task;
// Timestamps, monotonic time and deadlines.
mod time;
// What a prompt spent, of an agent that may report totals.
mod token_meter;
// The time that deletions trust.
mod trust;

pub use attempt::{Attempt, CancelReason};
pub use bounded_text::TEXT_BYTES_MAX;
pub use compaction::{Compaction, CompactionEvent, CompactionStatus, UsageAfter};
pub use digest::{Digest, Digests, Tokens};
pub use effect::{Answer, Effect, Stop};
pub use ending::{Cause, Ending, Interrupted, SideEffects, StopReason, TaskError, TaskFindings};
pub use event::{
    Cost, Elsewhere, Event, FrameKind, Kinds, Lines, LockAnswer, OtherSessions, OutputSummary,
    PermissionAsked, PromptReply, Recovery, ToolProgress, ToolResult, ToolUpdate, Usage,
};
pub use fact::{AgentOutput, EndReason, Fact, HoldReason};
pub use group::{
    CompactionHistory, CrashLoop, EffectiveSettings, Existence, Group, GroupState, Hold,
    KNOWN_SESSIONS_MAX, LaunchWait, Limits, Rejected, Session, Status, Timer,
};
pub use ids::{CompactionId, GroupId, InvalidId, PermissionId, RunId, SessionId, TaskId};
pub use json::{Json, Readable};
pub use message_owners::{MessageKey, MessageOwners};
pub use own_word::OwnWord;
pub use permission::{
    Choice, Permission, PermissionOption, PermissionPolicy, PermissionShown, PermissionState,
    Policy, TOOL_KINDS,
};
pub use prompt_blocks::{BlockKind, PromptCapabilities, RefusedBlock};
pub use retry::{ErrorKind, RetryPolicy};
pub use run::{
    Continuity, Exit, ExitReason, FailedStart, Loss, Run, RunHealth, RunPhase, RunProgress,
};
pub use session_cursor::SessionCursor;
pub use settings::{OnInterrupt, Settings, SettingsPatch};
pub use signal::{
    CompactionSignal, Details, Lineage, Provenance, SUMMARY_BYTES_MAX, SignalKind, Source,
};
pub use stage::{End, EndFrame, EndState, Retry, Stage, Start, TaskState};
pub use step::{Place, Recorded, Step};
pub use submission::Submission;
pub use task::{Blocked, CompactionOrder, Origin, Queued, Strategy, Task, TaskKind, Work};
pub use time::{BootId, Deadline, Now, Timestamp, Uptime};
pub use token_meter::{TokenMeter, TokensSpent};
pub use trust::Trust;
