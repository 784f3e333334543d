//! I2, I11, I13: an accepted task is there until it ended; a deleted group accepts none; the queue
//! is bounded; the group exists, with the settings, as the facts say.

use std::collections::BTreeSet;

use greenroom_core::{Existence, Fact, Recorded, Settings, TaskId};

use super::{Checked, Invariant, Played, ensure};
use crate::world::LIMITS;

#[derive(Default)]
pub struct AcceptedIsKept {
    accepted: BTreeSet<TaskId>,
    open: BTreeSet<TaskId>,
    is_archived: bool,
    is_purging: bool,
    settings: Option<Settings>,
}

impl AcceptedIsKept {
    pub fn all_ended(&self) -> Checked {
        ensure!(self.open.is_empty(), "I2: {} tasks never ended", self.open.len());
        Ok(())
    }
}

impl Invariant for AcceptedIsKept {
    fn follows(&self) -> &'static [&'static str] {
        &["group_created", "group_changed", "group_archived", "task_queued", "task_ended"]
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::GroupArchived {} => self.is_archived = true,
            Fact::GroupCreated(settings) | Fact::GroupChanged(settings) => {
                ensure!(!self.is_purging, "I13: a group that is to be purged is revived");
                self.is_archived = false;
                self.settings = Some(settings.clone());
            }
            Fact::PurgeOrdered {} => {
                ensure!(self.is_archived, "a group in use is purged");
                self.is_purging = true;
            }
            Fact::TaskQueued { task, .. } => {
                ensure!(!self.is_archived, "{task} was accepted by a deleted group");
                ensure!(self.accepted.insert(*task), "I2: {task} was accepted twice");
                self.open.insert(*task);
            }
            Fact::TaskClaimed { task } | Fact::TaskStarted { task, .. } => {
                ensure!(!self.is_archived, "{task} starts in a deleted group");
            }
            Fact::TaskEnded { task, .. } => drop(self.open.remove(task)),
            _ => {}
        }
        let unknown = fact.task().filter(|task| !self.accepted.contains(task));
        ensure!(unknown.is_none(), "I2: {unknown:?} was never accepted: {fact:?}");
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let (group, accepted) = (&step.group, self.accepted.len() as u64);
        let counted = group.state().tasks;
        ensure!(counted == accepted, "I2: {accepted} tasks accepted, not {counted}");
        let held = group.current().into_iter().chain(group.waiting()).map(|task| task.id);
        let held: Vec<TaskId> = held.collect();
        ensure!(
            held.len() == self.open.len() && held.iter().all(|id| self.open.contains(id)),
            "I2: open are {:?}, held are {held:?}",
            self.open
        );
        // One task may have returned from its claim.
        let waiting = group.waiting().len();
        ensure!(waiting <= LIMITS.queue_max + 1, "I11: {waiting} wait");
        ensure!(!self.is_archived || waiting == 0, "a deleted group has work waiting");
        let existence = match (self.is_archived, self.is_purging) {
            (_, true) => Existence::Purging,
            (true, false) => Existence::Archived,
            (false, false) => Existence::Live,
        };
        let found = group.state().existence;
        ensure!(found == existence, "I13: the group is {found:?}, not {existence:?}");
        let (given, found) = (&self.settings, &group.state().settings);
        let is_same = given.as_ref().is_none_or(|given| given == found);
        ensure!(is_same, "I13: the settings are {found:?}, not {given:?}");
        let created = group.state().created_at.is_some();
        ensure!(created || group.state().last_seq == 0, "a group without creation has facts");
        Ok(())
    }
}
