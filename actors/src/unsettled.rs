//! The groups whose rows still show the work of an earlier server: until recovery has settled them,
//! no reader may take that work for this server's (I5, AM-27).
//!
//! The supervisor adds groups at the boot, before anything is served, and a group's actor removes
//! its own once its recovery is durable. The set only shrinks; who reads rows asks first, and then
//! reads.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::storage::GroupNo;

/// The unsettled groups of a server, each with whether its recovery has begun.
#[derive(Debug, Default)]
pub struct UnsettledGroups(watch::Sender<BTreeMap<GroupNo, bool>>);

impl UnsettledGroups {
    /// Adds the groups that an earlier server left in the middle of something.
    pub(crate) fn found(&self, groups: impl IntoIterator<Item = GroupNo>) {
        let found = groups.into_iter().map(|group| (group, false));
        self.0.send_modify(|unsettled| unsettled.extend(found));
    }

    /// Notes that a recovery of this group begins. Returns whether it is the first one of an
    /// unsettled group: since the boot ended all processes of earlier servers, it has started none.
    pub(crate) fn begins(&self, group: GroupNo) -> bool {
        let mut is_first = false;
        self.0.send_if_modified(|unsettled| {
            if let Some(has_begun) = unsettled.get_mut(&group) {
                is_first = !std::mem::replace(has_begun, true);
            }
            // Of no interest to those that wait.
            false
        });
        is_first
    }

    /// Removes a group: its recovery is durable, or a row of it cannot be read.
    pub(crate) fn settled(&self, group: GroupNo) {
        self.0.send_if_modified(|unsettled| unsettled.remove(&group).is_some());
    }

    /// Whether no group is unsettled.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Whether this group is unsettled.
    pub fn contains(&self, group: GroupNo) -> bool {
        self.0.borrow().contains_key(&group)
    }

    /// The unsettled groups.
    pub fn all(&self) -> Vec<GroupNo> {
        self.0.borrow().keys().copied().collect()
    }

    /// Waits until `group` is settled, or all groups if it is `None`. Cancel safe.
    pub async fn until_settled(&self, group: Option<GroupNo>) {
        let is_settled = |unsettled: &BTreeMap<GroupNo, bool>| match group {
            Some(group) => !unsettled.contains_key(&group),
            None => unsettled.is_empty(),
        };
        // An error would mean that the sender is dropped, and `self` holds it.
        _ = self.0.subscribe().wait_for(is_settled).await;
    }
}
