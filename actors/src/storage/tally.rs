//! What a scrape asks the database: how much there is of everything that is not over.

use std::collections::BTreeMap;

use greenroom_core::Timestamp;

/// Numbers of one moment, over all groups. Keys are the contract's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Groups by status.
    pub groups: BTreeMap<String, u64>,
    /// Tasks that wait for their slot.
    pub queued: u64,
    /// Groups whose next task waits for a slot, and for nothing else.
    pub wait_for_slot: u64,
    /// Tasks that are not terminal, by kind and state.
    pub tasks: BTreeMap<(String, String), u64>,
    /// When the oldest waiting task was accepted, by what its group's next task waits for.
    pub waiting_since: BTreeMap<String, Timestamp>,
    /// When the oldest running attempt was started, by the task's kind.
    pub running_since: BTreeMap<String, Timestamp>,
    /// Permissions that nobody answered.
    pub permissions: u64,
    /// Compactions that nobody saw to end.
    pub compactions: u64,
}
