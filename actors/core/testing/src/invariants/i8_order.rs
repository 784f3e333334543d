//! I8, DQ-3, DQ-4: tasks start in the order of acceptance, a compaction before the waiting turns,
//! an attempt's retry before both; at most one compaction waits or runs.

use std::collections::BTreeMap;

use greenroom_core::{Fact, Recorded, TaskId, TaskKind};

use super::{Checked, Invariant, Played, ensure, record};

#[derive(Default)]
pub struct Order {
    accepted: u64,
    open: BTreeMap<TaskId, Waiting>,
    holder: Option<TaskId>,
}

struct Waiting {
    ordinal: u64,
    kind: TaskKind,
    /// Whether an attempt of it failed.
    is_retried: bool,
}

impl Waiting {
    fn rank(&self) -> (bool, bool, u64) {
        (!self.is_retried, self.kind != TaskKind::Compaction, self.ordinal)
    }
}

impl Order {
    fn claimed(&mut self, task: TaskId) -> Checked {
        if self.holder.replace(task) == Some(task) {
            return Ok(());
        }
        let claimed = self.open.get(&task).ok_or_else(|| format!("I2: {task} is not open"))?;
        let earlier = self.open.values().find(|other| other.rank() < claimed.rank());
        let earlier = earlier.map(|other| other.ordinal);
        let number = claimed.ordinal;
        ensure!(earlier.is_none(), "I8, DQ-4: {number} starts before {earlier:?}");
        Ok(())
    }
}

impl Invariant for Order {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "task_queued", "task_claimed", "task_released", "task_started", "task_retrying",
            "task_ended",
        ]
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskQueued { task, kind, record: accepted, .. } => {
                self.accepted += 1;
                let ordinal = self.accepted;
                let given = record(*task, accepted).map_or(ordinal, |it| it.ordinal);
                ensure!(given == ordinal, "I8: {task} is number {given}, not {ordinal}");
                let compacts = |it: &Waiting| it.kind == TaskKind::Compaction;
                let second = *kind == TaskKind::Compaction && self.open.values().any(compacts);
                ensure!(!second, "DQ-3: {task} is a second compaction that waits or runs");
                self.open.insert(*task, Waiting { ordinal, kind: *kind, is_retried: false });
            }
            Fact::TaskClaimed { task } | Fact::TaskStarted { task, .. } => self.claimed(*task)?,
            Fact::TaskReleased { .. } => self.holder = None,
            Fact::TaskRetrying { task, .. } => {
                self.holder = None;
                self.open.entry(*task).and_modify(|it| it.is_retried = true);
            }
            Fact::TaskEnded { task, record: ended, .. } => {
                self.holder = self.holder.filter(|holder| holder != task);
                let known = self.open.remove(task).map(|it| it.ordinal);
                let ordinal = record(*task, ended).map(|it| it.ordinal);
                let stays = ordinal.is_none() || ordinal == known;
                ensure!(stays, "I8: {task} was number {known:?}, is {ordinal:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let compacts = |task: &&greenroom_core::Task| task.kind() == TaskKind::Compaction;
        let waiting = step.group.waiting().filter(compacts).count();
        ensure!(waiting <= 1, "I8: {waiting} compactions wait");
        Ok(())
    }
}
