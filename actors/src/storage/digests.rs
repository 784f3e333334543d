//! The types of stored digests, and the filters of their lists.

use std::collections::BTreeMap;

use greenroom_core::{Digest, RunId, Task, TaskId, Timestamp, digest::RunDigest};
use serde::{Deserialize, Serialize};

use super::GroupNo;

/// A group's digests as they are stored after some facts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DigestRows {
    /// The group's own, JSON.
    pub group: String,
    /// Its last run's, if it had one.
    pub run: Option<String>,
    /// The projection's open state: what it needs to continue.
    pub open: String,
    /// The digests that the facts sealed.
    pub sealed: SealedDigests,
}

/// Sealed digests: they do not change any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SealedDigests {
    /// Of ended runs, JSON.
    pub runs: BTreeMap<RunId, String>,
    /// Of tasks that were started and have ended.
    pub turns: BTreeMap<TaskId, TurnRow>,
}

/// The digest of a task that was started and has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnRow {
    /// When it ended.
    pub ended_at: Timestamp,
    /// The launch profile of the group's last run.
    pub agent: Option<String>,
    /// Its digest, JSON.
    pub digest: String,
}

/// A run's digest, found by the run's id.
#[derive(Clone, Debug)]
pub struct RunDigestRow {
    /// The run's group.
    pub group: GroupNo,
    /// The digest; absent if it has to be rebuilt first.
    pub digest: Option<RunDigest>,
}

/// A task that was started, in the order of acceptance.
#[derive(Clone, Debug)]
pub struct TurnEntry {
    /// The task.
    pub task: Task,
    /// Its digest, once it has ended.
    pub digest: Option<Digest>,
}

/// A task that was started and has ended, in the order of the ends.
#[derive(Clone, Debug)]
pub struct EndedTurn {
    /// Its place in that order.
    pub place: EndedAt,
    /// The group.
    pub group: GroupNo,
    /// The task's place in the group's order of acceptance.
    pub ordinal: u64,
    /// The launch profile.
    pub agent: Option<String>,
    /// Its digest.
    pub digest: Digest,
}

/// A place in the order in which tasks ended: by the wall clock at the end, then by group and order
/// of acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndedAt {
    /// When the task ended.
    pub at: Timestamp,
    /// The task's key, for tasks that ended in the same millisecond.
    pub key: i64,
}

/// Which turns of a group to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct TurnFilter {
    /// Only those after this ordinal.
    pub after: u64,
    /// Only those before this ordinal.
    pub before: Option<u64>,
    /// The newest first.
    pub descending: bool,
    /// At most this many.
    pub limit: usize,
}

/// Which ended tasks of all groups to list.
#[derive(Clone, Debug)]
pub struct EndedFilter {
    /// Only those that ended then or later.
    pub from: Option<Timestamp>,
    /// Only those that ended before.
    pub to: Option<Timestamp>,
    /// Only those after this place.
    pub after: Option<EndedAt>,
    /// At most this many.
    pub limit: usize,
}
