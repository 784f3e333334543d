//! The messages that a group sends to the supervisor.

use actix::Message;
use greenroom_core::{GroupId, Recovery};

use crate::changes::Change;

/// A group's actor ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct GroupDied {
    /// Its group.
    pub group: GroupId,
    /// The number of the actor: the supervisor numbers all that it starts.
    pub incarnation: u64,
    /// How the actor ended, for its successor.
    pub recovery: Recovery,
}

/// A group was purged.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Forget(pub GroupId);

/// A group's status changed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StatusChanged(pub Change);
