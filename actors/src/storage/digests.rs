//! What is asked for of digests, and how they come out of the database.

use greenroom_core::{Digest, Task, Timestamp, digest::RunDigest};
use serde::{Deserialize, Serialize};

use super::GroupNo;

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
