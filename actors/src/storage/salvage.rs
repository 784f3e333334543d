//! The types of a repair: the columns that can still be read, and the rebuilt rows.

use std::{collections::BTreeMap, sync::Arc};

use greenroom_core::{
    Compaction, CompactionId, Deadline, Json, LaunchWait, Provenance, Strategy, Task, TaskId,
    Timestamp,
};

use super::{GroupCommit, PermissionRecord, RunRecord, SegmentRecord};

/// The readable columns of a group's rows whose values are in no frame.
#[derive(Clone, Debug, Default)]
pub struct Salvage {
    /// Tasks, by their ordinals.
    pub tasks: BTreeMap<u64, SalvagedTask>,
    /// Permissions, by the frames that opened them.
    pub permissions: BTreeMap<u64, SalvagedPermission>,
    /// The first frame of each compaction.
    pub compactions: BTreeMap<CompactionId, u64>,
    /// Which of hermes' sessions each segment has, which may become known late.
    pub segments: BTreeMap<u32, Provenance>,
    /// The last frame by the group's own row; 0 if that is unreadable.
    pub last_seq: u64,
    /// What the next run waits for.
    pub launch_wait: Option<LaunchWait>,
    /// Which of hermes' sessions is in force.
    pub provenance: Option<Provenance>,
}

/// The readable columns of a task's row.
#[derive(Clone, Debug, Default)]
pub struct SalvagedTask {
    /// The content blocks.
    pub prompt: Option<Json>,
    /// A compaction's focus.
    pub focus: Option<Arc<str>>,
    /// A compaction's strategy.
    pub strategy: Option<Strategy>,
    /// The caller's metadata.
    pub metadata: Option<Json>,
    /// How long one attempt may take, milliseconds.
    pub deadline_ms: Option<u64>,
    /// When it expires unless it has started.
    pub expires: Option<Deadline>,
    /// The task that it retries.
    pub retry_of: Option<TaskId>,
    /// When it was accepted.
    pub created_at: Option<Timestamp>,
    /// The tokens that its agent reported.
    pub tokens: Option<Json>,
    /// Until when its next attempt waits.
    pub retry_at: Option<Deadline>,
    /// The unreadable columns whose values are in no frame.
    pub lost: Vec<&'static str>,
}

impl SalvagedTask {
    /// For a task that has no row.
    pub fn missing() -> Self {
        Self { lost: vec!["the row"], ..Self::default() }
    }
}

/// The readable columns of a permission's row.
#[derive(Clone, Debug, Default)]
pub struct SalvagedPermission {
    /// The tool call, as the agent shows it.
    pub tool_call: Option<Json>,
    /// The options, as the agent shows them.
    pub options: Option<Json>,
    /// By when it had to be answered.
    pub expires_at: Option<Timestamp>,
}

/// All rows of a group, to replace the stored ones.
#[derive(Debug)]
pub struct Rebuilt {
    /// The group's own row and its digests; no facts.
    pub group: GroupCommit,
    /// Its tasks.
    pub tasks: Vec<Task>,
    /// Its runs.
    pub runs: Vec<RunRecord>,
    /// Its segments after the first [`Self::segments_kept`].
    pub segments: Vec<SegmentRecord>,
    /// How many segments ended before the log was truncated; their rows stay.
    pub segments_kept: u32,
    /// Its compactions, each with its first frame.
    pub compactions: Vec<(u64, Compaction)>,
    /// Its permissions, each with the frame that opened it.
    pub permissions: Vec<(u64, PermissionRecord)>,
    /// The facts that the repair adds, stored with it.
    pub facts: Option<GroupCommit>,
}
