//! greenroom's rules: what may happen to a group, and what follows from it.
//!
//! This crate owns the state machines. It refuses to know a clock, a socket, a row or a thread:
//! time and fresh ids are arguments, and a decision is data (a [`Step`]) that an actor carries out.

mod compaction;
pub mod digest;
mod due;
mod event;
mod fact;
mod group;
mod ids;
mod json;
mod lifecycle;
pub mod lock;
mod permission;
pub mod residents;
mod retry;
mod run;
mod settings;
mod step;
mod task;
mod trust;
mod turn;

pub use compaction::{Details, Lineage, Provenance, SUMMARY_BYTES_MAX, Sign, Signal, Source};
pub use digest::{Digest, Digests, Tokens};
pub use due::Due;
pub use event::{
    Cost, Event, Fold, FrameKind, Kinds, Lines, LockAnswer, PermissionAsked, PromptReply, Recovery,
    Spent, ToolNews, ToolResult, ToolStep, Usage,
};
pub use fact::{EndReason, Held, Said, Write};
pub use group::{Compacting, Expiry, Group, Head, Patience, Rejected, Status, Terms};
pub use ids::{
    CompactionId, GroupId, InvalidId, PermissionId, RunId, SessionId, TaskId, Timestamp,
};
pub use json::Json;
pub use lifecycle::{Compaction, CompactionStatus, Fate};
pub use permission::{
    Choice, Permission, PermissionOption, PermissionPolicy, PermissionShown, PermissionState,
    Policy, TOOL_KINDS,
};
pub use retry::Retry;
pub use run::{Continuity, Exit, ExitReason, Run, RunPhase};
pub use settings::{OnInterrupt, Settings};
pub use step::{Answer, Effect, Step, Stop};
pub use task::{
    Blocked, Cause, CompactionOrder, Ending, Finding, Interrupted, Origin, SideEffects, StopReason,
    Strategy, Task, TaskError, TaskKind, TaskState, Work,
};
pub use trust::Trust;
pub use turn::{CutBy, TEXT_BYTES_MAX, Turn};
