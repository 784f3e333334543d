//! What a repair reads and writes: the columns that can still be read, and whole rows.

use std::{collections::BTreeMap, sync::Arc};

use greenroom_core::{
    Compaction, CompactionId, Due, Json, Provenance, Strategy, Task, TaskId, Timestamp,
};

use super::{PermissionRecord, RunRecord, SegmentRecord, Writes};

/// What can be read of a group's rows, column by column, of all that is in no frame.
#[derive(Clone, Debug, Default)]
pub struct Salvage {
    /// Tasks, by their ordinals.
    pub tasks: BTreeMap<u64, SalvagedTask>,
    /// Permissions, by the frames that opened them.
    pub permissions: BTreeMap<u64, SalvagedPermission>,
    /// The frames that told first of compactions.
    pub compactions: BTreeMap<CompactionId, u64>,
    /// Which of hermes' sessions segments have: that may become known late.
    pub segments: BTreeMap<u32, Provenance>,
    /// The last frame, by the group's own row; 0 if that cannot be read.
    pub last_seq: u64,
    /// Until when the next run waits.
    pub launch_due: Option<Due>,
    /// Which of hermes' sessions is in force.
    pub provenance: Option<Provenance>,
}

/// What can be read of a task's row.
#[derive(Clone, Debug, Default)]
pub struct SalvagedTask {
    /// The content blocks.
    pub prompt: Option<Json>,
    /// Of a compaction.
    pub focus: Option<Arc<str>>,
    /// Of a compaction.
    pub strategy: Option<Strategy>,
    /// What the caller keeps with it.
    pub metadata: Option<Json>,
    /// How long one attempt may take, milliseconds.
    pub deadline_ms: Option<u64>,
    /// By when it has to start.
    pub expires: Option<Due>,
    /// The task that it is again.
    pub retry_of: Option<TaskId>,
    /// When it was accepted.
    pub created_at: Option<Timestamp>,
    /// What its agent says it spent.
    pub tokens: Option<Json>,
    /// Until when its next attempt waits.
    pub retry_at: Option<Due>,
    /// The columns that cannot be read, of those that are in no frame.
    pub lost: Vec<&'static str>,
}

impl SalvagedTask {
    /// A task that has no row.
    pub fn missing() -> Self {
        Self { lost: vec!["the row"], ..Self::default() }
    }
}

/// What can be read of a permission's row.
#[derive(Clone, Debug, Default)]
pub struct SalvagedPermission {
    /// What it was asked for, as the agent shows it.
    pub tool_call: Option<Json>,
    /// The options, as the agent shows them.
    pub options: Option<Json>,
    /// By when it had to be answered.
    pub expires_at: Option<Timestamp>,
}

/// All rows of a group, to be stored in place of those that there are.
#[derive(Debug)]
pub struct Rebuilt {
    /// The group itself and its digests; no facts.
    pub head: Writes,
    /// Its tasks.
    pub tasks: Vec<Task>,
    /// Its runs.
    pub runs: Vec<RunRecord>,
    /// Its segments, but for the first ones.
    pub segments: Vec<SegmentRecord>,
    /// How many segments come before these: the log was cut after them, and their rows stay.
    pub segments_kept: u32,
    /// Its compactions, each with the frame that told first of it.
    pub compactions: Vec<(u64, Compaction)>,
    /// Its permissions, each with the frame that opened it.
    pub permissions: Vec<(u64, PermissionRecord)>,
    /// Facts that follow from the repair, stored with it.
    pub facts: Option<Writes>,
}
