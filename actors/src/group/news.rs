//! What a group tells its parent.

use actix::Message;
use greenroom_core::{Blocked, GroupId, Recovery, Status, TaskId, Timestamp};

/// A group's actor ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct GroupDied {
    /// Its group.
    pub group: GroupId,
    /// Which of the group's actors it was.
    pub incarnation: u64,
    /// What its successor reads the group back after.
    pub recovery: Recovery,
}

/// A group is no more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Forget(pub GroupId);

/// A group does something else now.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StatusChanged(pub Change);

/// A group's change of status.
#[derive(Clone, Debug)]
pub struct Change {
    /// Numbers all changes of all groups, upwards, also over a restart. Set by the supervisor.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub group: GroupId,
    /// What it did.
    pub from: Status,
    /// What it does.
    pub to: Status,
    /// What its next task waits for.
    pub blocked_by: Option<Blocked>,
    /// How many tasks wait.
    pub queue_length: u64,
    /// The task that has its slot.
    pub current_task: Option<TaskId>,
}
