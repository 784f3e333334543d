//! Digests as the database has them, and what is asked for of them.

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
    /// What has to be known to fold on.
    pub carry: String,
    /// What the facts closed.
    pub closed: ClosedRows,
}

/// Digests that stay as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClosedRows {
    /// Runs that are over.
    pub runs: BTreeMap<RunId, String>,
    /// Tasks that were started and are over.
    pub turns: BTreeMap<TaskId, TurnRow>,
}

/// The digest of a task that was started and is over.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnRow {
    /// When it ended.
    pub ended_at: Timestamp,
    /// The launch profile of the group's last run.
    pub agent: Option<String>,
    /// Its digest, JSON.
    pub digest: String,
}

/// A run's digest where it is asked for by name.
#[derive(Clone, Debug)]
pub struct RunStanding {
    /// The run's group.
    pub group: GroupNo,
    /// The digest; absent if it has to be made again first.
    pub digest: Option<RunDigest>,
}

/// A task that was started, in the order of acceptance.
#[derive(Clone, Debug)]
pub struct TurnEntry {
    /// The task.
    pub task: Task,
    /// What it came to, once it ended.
    pub digest: Option<Digest>,
}

/// A task that was started and is over, in the order of the ends.
#[derive(Clone, Debug)]
pub struct EndedTurn {
    /// Where it is in that order.
    pub place: EndedAt,
    /// The group.
    pub group: GroupNo,
    /// The task's place in the group's order of acceptance.
    pub ordinal: u64,
    /// The launch profile.
    pub agent: Option<String>,
    /// What it came to.
    pub digest: Digest,
}

/// A place in the order in which tasks ended: by the wall clock as it was then, and by group and
/// order of acceptance among those of one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndedAt {
    /// When.
    pub at: Timestamp,
    /// Which of that moment.
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
    /// At most so many.
    pub limit: usize,
}

/// Which ended tasks of all groups to list.
#[derive(Clone, Debug)]
pub struct EndedFilter {
    /// Only those that ended then or later.
    pub from: Option<Timestamp>,
    /// Only those that ended before.
    pub to: Option<Timestamp>,
    /// Only those behind this place.
    pub after: Option<EndedAt>,
    /// At most so many.
    pub limit: usize,
}
