//! The gauges that a scrape reads from the database: how many of everything have not ended.

use std::collections::BTreeMap;

use greenroom_core::Timestamp;

/// Numbers at one moment, over all groups. Keys are the API's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GaugeSnapshot {
    /// Groups by status.
    pub groups: BTreeMap<String, u64>,
    /// Tasks that wait for their slot.
    pub queued: u64,
    /// Groups whose next task waits only for a slot.
    pub wait_for_slot: u64,
    /// Tasks that are not terminal, by kind and state.
    pub tasks: BTreeMap<(String, String), u64>,
    /// When the oldest waiting task was accepted, by what its group's next task waits for.
    pub waiting_since: BTreeMap<String, Timestamp>,
    /// When the oldest running attempt was started, by the task's kind.
    pub running_since: BTreeMap<String, Timestamp>,
    /// Pending permissions.
    pub permissions: u64,
    /// Compactions whose end no detector reported.
    pub compactions: u64,
}
