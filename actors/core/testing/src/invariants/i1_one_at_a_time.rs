//! I1, AM-1: at most one task of a group is between claim and end, and its agent has at most one
//! run, which alone writes.

use std::collections::BTreeSet;

use greenroom_core::{Fact, Recorded, RunId, TaskId};

use super::{Checked, Invariant, Played, ensure};

#[derive(Default)]
pub struct OneAtATime {
    /// The task between claim and end.
    holder: Option<TaskId>,
    /// The task whose prompt was committed and has not settled.
    in_flight: Option<TaskId>,
    run: Option<RunId>,
    runs: BTreeSet<RunId>,
}

impl OneAtATime {
    pub fn in_flight(&self) -> Option<TaskId> {
        self.in_flight
    }

    fn claim(&mut self, task: TaskId) -> Checked {
        let before = self.holder.replace(task);
        ensure!(before.is_none(), "I1, DQ-1: {task} has the slot beside {before:?}");
        Ok(())
    }

    fn release(&mut self, task: TaskId) -> Checked {
        ensure!(self.holder.take() == Some(task), "I1: {task} had no slot");
        ensure!(self.in_flight.is_none(), "I1, AM-3: {task} leaves before its prompt settled");
        Ok(())
    }
}

impl Invariant for OneAtATime {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "task_claimed", "task_released", "task_started", "session/prompt", "turn_settled",
            "task_retrying", "task_ended", "run_started", "run_exited",
        ]
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskClaimed { task } => self.claim(*task)?,
            Fact::TaskReleased { task } | Fact::TaskRetrying { task, .. } => self.release(*task)?,
            Fact::TaskStarted { task, run, .. } => {
                if self.holder != Some(*task) {
                    self.claim(*task)?;
                }
                ensure!(self.in_flight.is_none(), "I1: {task} starts beside another");
                ensure!(self.run == Some(*run), "I7: {task} starts in {run}, which is not live");
            }
            Fact::PromptSent { .. } => {
                ensure!(self.in_flight.is_none(), "I1: a prompt beside {:?}", self.in_flight);
                ensure!(self.holder.is_some(), "I1: a prompt of no task");
                self.in_flight = self.holder;
            }
            Fact::CancelRequested { task }
            | Fact::TurnCut { task, .. }
            | Fact::SummaryGiven { task, .. } => {
                ensure!(self.in_flight == Some(*task), "AM-5: {task} does not run: {fact:?}");
            }
            Fact::TurnSettled { task, .. } => {
                ensure!(self.in_flight.take() == Some(*task), "AM-3: {task} does not run");
            }
            Fact::TaskEnded { task, .. } => {
                ensure!(self.in_flight != Some(*task), "AM-3: {task} ends before its turn settled");
                self.holder = self.holder.filter(|holder| holder != task);
            }
            Fact::RunStarted { run, .. } => {
                ensure!(self.run.replace(*run).is_none(), "AM-1: {run} starts beside another");
                ensure!(self.runs.insert(*run), "AM-1: {run} starts twice");
            }
            Fact::CancelSent { run } => {
                let runs = self.run == Some(*run) && self.in_flight.is_some();
                ensure!(runs, "{run} runs nothing, and is sent a cancel");
            }
            Fact::RunReady { run, .. }
            | Fact::RunStopping { run }
            | Fact::RequestRefused { run, .. }
            | Fact::AgentOutputRejected { run, .. } => {
                ensure!(self.run == Some(*run), "AM-1: {run} is not live: {fact:?}");
            }
            Fact::AgentOutput(_) => {
                ensure!(self.run.is_some(), "AM-1: an agent has output and no run is live");
            }
            Fact::RunExited { run, .. } => {
                ensure!(self.run.take() == Some(*run), "AM-1: {run} ended and was not live");
                ensure!(self.in_flight.is_none(), "AM-3: {run} ended before its turn settled");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let current = step.group.current().map(|task| task.id);
        ensure!(current == self.holder, "I1: {:?} has the slot, not {current:?}", self.holder);
        Ok(())
    }
}
