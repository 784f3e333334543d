//! What a database restores of a group: rows and the frames of an attempt, made from what the facts
//! stated.

use std::collections::BTreeMap;

use greenroom_core::{
    AgentOutput, Compaction, CompactionId, CompactionStatus, Event, Fact, Group, Recorded,
    Recovery, Run, RunPhase, Task,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{Checked, World, ensure};

/// The records that facts stated and that outlive the group's own memory of them.
#[derive(Default)]
pub(super) struct Records {
    /// By ordinal.
    ended: BTreeMap<u64, Task>,
    /// Each with its first frame.
    compactions: BTreeMap<CompactionId, (u64, Compaction)>,
}

impl Records {
    pub(super) fn store(&mut self, recorded: &Recorded) {
        match &recorded.fact {
            Fact::TaskEnded { record, .. } => {
                self.ended.insert(record.ordinal, Task::clone(record));
            }
            Fact::AgentOutput(AgentOutput { summary, late: Some(late), .. }) => {
                let late = self.ended.values_mut().find(|task| task.id == *late);
                late.into_iter().for_each(|task| task.push_late_text(&summary.text));
            }
            Fact::CompactionStarted(compaction)
            | Fact::CompactionUpdated(compaction)
            | Fact::CompactionEnded(compaction) => {
                let first = (recorded.place.seq, Compaction::clone(compaction));
                self.compactions.entry(compaction.id).or_insert(first).1.clone_from(compaction);
            }
            _ => {}
        }
    }
}

impl World {
    /// Returns all accepted tasks, in order of acceptance.
    pub fn tasks(&self) -> Vec<Task> {
        let mut tasks = self.records.ended.clone();
        tasks.extend(open(&self.group).map(|task| (task.ordinal, task.clone())));
        tasks.into_values().collect()
    }

    /// Returns all compactions.
    pub fn compactions(&self) -> impl Iterator<Item = &Compaction> {
        self.records.compactions.values().map(|(_, compaction)| compaction)
    }

    /// Returns the compactions that a restored group gets.
    pub fn restorable_compactions(&self) -> Vec<Compaction> {
        let is_kept = |known: &&Compaction| self.is_kept(&self.group, known);
        self.compactions().filter(is_kept).map(as_stored).collect()
    }

    /// Returns the group as a database could restore it at best.
    pub fn restored(&self) -> Group {
        with_compactions(&self.group, self.restorable_compactions())
    }

    /// Returns the group as a database restores it: of a run only its id, of an attempt not the ids
    /// of its requests.
    pub(super) fn restored_forgetfully(&self) -> Group {
        let group = &self.group;
        let run = group.run().map(|run| Run::new(run.id, RunPhase::Stopping));
        let attempt = group.attempt().cloned().map(|mut attempt| {
            (attempt.prompt_id, attempt.opening) = (0, None);
            attempt
        });
        let (tasks, permissions) = (open(group).cloned().collect(), group.permissions().to_vec());
        let compactions = self.restorable_compactions();
        let state = group.state().clone();
        Group::restore(state, tasks, run, attempt, compactions, permissions)
            .with_known_sessions(group.known_sessions().clone())
    }

    /// Checks that the recovered group does not depend on what a database leaves out: a run's phase
    /// and history, a prompt's id, the lock, and the run's ended compactions. No signal of a past
    /// run arrives any more, so none can concern those compactions; and the lock's row ends with
    /// its holder, so that a waiting compaction requests the lock again.
    pub(super) fn check_restore(&self) -> Checked {
        let (stored, live) = (self.restorable(&self.restored()), self.restorable(&self.group));
        ensure!(stored == live, "I13: restored is not live:\n  {stored:?}\n  live {live:?}");
        let live = self.recovered(self.group.clone())?;
        let forgetful = self.recovered(self.restored_forgetfully())?;
        ensure!(
            live == forgetful,
            "I13: what is not stored makes a difference:\n  {forgetful:?}\n  {live:?}"
        );
        Ok(())
    }

    /// Returns what a database can restore of a group: neither its lock, nor the ended compactions
    /// of its run.
    fn restorable(&self, group: &Group) -> Group {
        let kept = group.compactions().filter(|known| self.is_kept(group, known));
        with_compactions(group, kept.map(as_stored).collect())
    }

    /// Whether a restored group gets this compaction: the active one, and those of the running
    /// attempt that were completed.
    fn is_kept(&self, group: &Group, compaction: &Compaction) -> bool {
        let first = self.records.compactions.get(&compaction.id).map(|(first, _)| *first);
        let current = group.current();
        let start = current.and_then(Task::running_start).map(|start| start.seq);
        compaction.is_active()
            || (compaction.status == CompactionStatus::Completed
                && current.is_some_and(|task| compaction.task == Some(task.id))
                && start.is_some_and(|start| first.is_none_or(|first| start < first)))
    }

    /// Returns the group after the recovery of `group`, and what that stated.
    fn recovered(&self, mut group: Group) -> Checked<(Group, Vec<String>)> {
        let mut fresh = || Uuid::from_u128(self.ids + 1);
        let (event, now) = (Event::Recovered(Recovery::Restart), self.moment());
        let step = group.apply(event, now, &self.effective_settings(), &mut fresh);
        let step = step.map_err(|rejected| rejected.to_string())?;
        let outcomes = step.facts.iter().filter_map(|recorded| outcome(&recorded.fact)).collect();
        Ok((self.restorable(&group), outcomes))
    }
}

fn outcome(fact: &Fact) -> Option<String> {
    use CompactionStatus::{Abandoned, Cancelled};
    match fact {
        Fact::TaskEnded { task, state, interrupted, .. } => {
            Some(format!("{task} {state:?} {interrupted:?}"))
        }
        Fact::CompactionEnded(ended) if matches!(ended.status, Cancelled | Abandoned) => {
            Some(format!("{} cut off", ended.id))
        }
        Fact::CompactionEnded(ended) => Some(format!("{} {:?}", ended.id, ended.status)),
        Fact::LockAsked { .. } | Fact::LockReleased { .. } => None,
        other => Some(other.kind().to_owned()),
    }
}

fn open(group: &Group) -> impl Iterator<Item = &Task> {
    group.current().into_iter().chain(group.waiting())
}

fn with_compactions(group: &Group, compactions: Vec<Compaction>) -> Group {
    let (run, attempt) = (group.run().cloned(), group.attempt().cloned());
    let (tasks, permissions) = (open(group).cloned().collect(), group.permissions().to_vec());
    Group::restore(group.state().clone(), tasks, run, attempt, compactions, permissions)
        .with_known_sessions(group.known_sessions().clone())
}

/// Returns a compaction as its row restores it.
fn as_stored(compaction: &Compaction) -> Compaction {
    let mut stored: Compaction = written(compaction);
    (stored.started_at, stored.ended_at) = (compaction.started_at, compaction.ended_at);
    stored
}

fn written<T: DeserializeOwned>(value: &impl Serialize) -> T {
    let text = serde_json::to_string(value).and_then(|text| serde_json::from_str(&text));
    text.unwrap_or_else(|err| unreachable!("rows are written and read back: {err}"))
}
