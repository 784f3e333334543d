//! The types of what a database stores: a group's commit, its tasks, runs, segments, permissions.

use std::collections::VecDeque;

use greenroom_core::{
    Blocked, Compaction, CompactionId, Digests, EndReason, Exit, Fact, Group, GroupId, GroupState,
    Permission, PermissionId, PermissionState, Provenance, Recorded, Run, RunId, SessionId, Status,
    Task, TaskId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{DigestRows, Unreadable};
use crate::transcript::frame::Block;

/// A group's number in the database.
pub type GroupNo = u32;
/// The greatest number of a frame or a task within a group.
pub const SEQ_MAX: u64 = (1 << 36) - 1;
/// The greatest number of a group.
pub const GROUP_MAX: GroupNo = (1 << 27) - 2;

/// One group's facts; all of them are stored in one transaction, or none.
#[derive(Debug)]
pub struct GroupCommit {
    /// The group.
    pub group: GroupNo,
    /// The owner's epoch (I14).
    pub epoch: u64,
    /// The wall clock's time.
    pub at: Timestamp,
    /// The group's row after the facts.
    pub summary: GroupSummary,
    /// The facts.
    pub facts: Vec<Recorded>,
    /// The facts' frames.
    pub blocks: Vec<Block>,
    /// The digests after the facts; absent if no fact is a frame (I6).
    pub digests: Option<DigestRows>,
    /// The caller's idempotency key, if the facts answer a request that has one.
    pub key: Option<KeyUse>,
}

/// A group as lists show it: one row.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSummary {
    /// Its name.
    pub id: GroupId,
    /// Its stored state.
    pub state: GroupState,
    /// Its status.
    pub status: Status,
    /// What its next task waits for.
    pub blocked_by: Option<Blocked>,
    /// How many tasks wait.
    pub queue_length: u64,
    /// The task that has its slot.
    pub current_task: Option<TaskId>,
    /// The run that is alive.
    pub current_run: Option<RunId>,
    /// Whether a compaction may be running.
    pub is_compacting: bool,
}

impl GroupSummary {
    /// Summarizes a group, whose name is `id`.
    pub fn of(id: GroupId, group: &Group) -> Self {
        Self {
            id,
            state: group.state().clone(),
            status: group.status(),
            blocked_by: group.blocked_by(),
            queue_length: group.waiting().len() as u64,
            current_task: group.current().map(|task| task.id),
            current_run: group.run().map(|run| run.id),
            is_compacting: group.active_compaction().is_some(),
        }
    }
}

/// An idempotency key as it is stored: hashes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// SHA-256 of caller, method, path and key.
    pub key: [u8; 32],
    /// SHA-256 of the body.
    pub body: [u8; 32],
    /// The task that the request created.
    pub task: TaskId,
}

/// A group's projected state at one frame, in place of the frames up to it. Only the projection
/// that wrote it knows its form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// The last frame that it covers.
    pub seq: u64,
    /// The state, JSON.
    pub state: String,
}

/// Orders that a group's log is truncated: only the frames after the checkpoint are kept.
#[derive(Clone, Debug)]
pub struct LogTruncation {
    /// The group.
    pub group: GroupNo,
    /// The group's epoch when the truncation was decided. Retention is no owner: it decides by
    /// what it read, which is stale once another owner has adopted the group.
    pub epoch: Option<u64>,
    /// The state at the truncation. Its frame is the last of a block.
    pub checkpoint: StoredCheckpoint,
    /// What ended up to the checkpoint.
    pub ended: Ended,
    /// Idempotency keys from before this moment are deleted first: no key may outlive its task.
    pub keys_before: Timestamp,
}

/// What one transaction deleted of the frames before a checkpoint; see [`super::Store::sweep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// How many frames.
    pub frames: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// Whether more of them may be left.
    pub more: bool,
}

/// Everything that a group's actor needs to continue where the last one stopped.
#[derive(Debug)]
pub struct StoredGroup {
    /// The owner's epoch from now on.
    pub epoch: u64,
    /// The group's stored state.
    pub state: GroupState,
    /// Its tasks that are not terminal, in the order of acceptance.
    pub tasks: Vec<Task>,
    /// The run that was alive.
    pub run: Option<Run>,
    /// The compaction whose end no detector reported, and those that were completed within the
    /// current task.
    pub compactions: Vec<Compaction>,
    /// The pending permissions.
    pub permissions: Vec<Permission>,
    /// The sessions of its last segments, each once, the last one last.
    pub known_sessions: VecDeque<SessionId>,
    /// Its digests. Absent if there are none, if they have another version's form, or if they do
    /// not reach the last frame: then they have to be rebuilt (TD-6).
    pub digests: Option<Digests>,
}

/// What ended in a truncated part of a log: no later frame can change it, so its rows are deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Tasks.
    pub tasks: Vec<TaskId>,
    /// Runs.
    pub runs: Vec<RunId>,
    /// Compactions.
    pub compactions: Vec<CompactionId>,
    /// Permissions.
    pub permissions: Vec<PermissionId>,
}

/// A task with its position in the queue.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// The task.
    pub task: Task,
    /// Its group.
    pub group: GroupId,
    /// How many tasks of the group are before it, if it waits.
    pub position: Option<u64>,
    /// What it waits for.
    pub blocked_by: Option<Blocked>,
}

/// What an earlier server left of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing that a start must continue.
    Nothing,
    /// Work that waits.
    Work,
    /// A run, or a task with its slot, which ended with that server: its rows say otherwise until
    /// the group is recovered.
    Unsettled,
}

/// All groups.
#[derive(Clone, Debug, Default)]
pub struct GroupIndex {
    /// Their numbers and names, and what a start finds of them.
    pub groups: Vec<(GroupNo, GroupId, Left)>,
    /// The greatest number that any group ever had. No number is reused, so that nothing of a
    /// deleted group can be taken for another group's.
    pub last_no: GroupNo,
}

/// One run of a group's agent, as it is stored.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// Its name.
    pub id: RunId,
    /// The launch profile.
    pub agent: String,
    /// The agent's process, if it was spawned.
    pub pid: Option<u32>,
    /// When its start was ordered.
    pub started_at: Timestamp,
    /// When it was ready for prompts.
    pub ready_at: Option<Timestamp>,
    /// When and how it ended.
    pub ended: Option<(Timestamp, Exit)>,
}

/// A segment: a part of a transcript in which one context is in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Its number, from 1.
    pub segment: u32,
    /// The segment that it continues.
    pub parent: Option<u32>,
    /// The session in force.
    pub session: SessionId,
    /// Which of hermes' sessions that is.
    pub provenance: Option<Provenance>,
    /// Its first frame, and when that was stored.
    pub opened: (u64, Timestamp),
    /// Its last frame, when that was stored, and why the segment ended.
    pub closed: Option<(u64, Timestamp, EndReason)>,
}

impl SegmentRecord {
    /// Returns the open segment that a fact started; `None` if the fact is another one.
    pub fn opened(fact: &Fact, opened: (u64, Timestamp)) -> Option<Self> {
        let Fact::SegmentStarted { segment, parent, session, provenance } = fact.clone() else {
            return None;
        };
        Some(Self { segment, parent, session, provenance, opened, closed: None })
    }
}

/// A permission as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct PermissionRecord {
    /// The group whose agent asked.
    pub group: GroupId,
    /// What the agent asked for.
    pub permission: Permission,
    /// When it was stored.
    pub opened_at: Timestamp,
    /// Its state.
    pub state: PermissionState,
    /// The option that was chosen.
    pub selected: Option<String>,
    /// Who chose it.
    pub resolved_by: Option<String>,
    /// When it was decided.
    pub resolved_at: Option<Timestamp>,
}

/// A group as a client that joins late needs it, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The group.
    pub summary: GroupSummary,
    /// Its segments, from the first one.
    pub segments: Vec<SegmentRecord>,
    /// The last of these segments, if more follow.
    pub segments_after: Option<u32>,
    /// The task that has its slot.
    pub current_task: Option<TaskView>,
    /// The pending permissions, the oldest first.
    pub permissions: Vec<PermissionRecord>,
    /// The last of these permissions, if more follow.
    pub permissions_after: Option<PermissionId>,
}

/// A group in a list; its own row may be unreadable.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its number.
    pub no: GroupNo,
    /// Its name.
    pub id: GroupId,
    /// Its row.
    pub summary: Result<Box<GroupSummary>, Unreadable>,
}
