//! I9, AM-5: a task ends once and for good; a request to cancel it is not its outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use greenroom_core::{Fact, Recorded, StopReason, TaskId, TaskKind, TaskState};

use super::{Begun, Checked, Invariant, ensure, record};

#[derive(Default)]
pub struct OneOutcome {
    in_world: bool,
    kinds: BTreeMap<TaskId, TaskKind>,
    ended: BTreeSet<TaskId>,
    cancel_requested: BTreeSet<TaskId>,
    /// Whether any output of the prompt in flight is an answer.
    has_answer: bool,
}

impl OneOutcome {
    fn ended(&mut self, fact: &Fact) -> Checked {
        let Fact::TaskEnded { task, state, stop_reason, has_empty_answer, .. } = fact else {
            return Ok(());
        };
        ensure!(self.ended.insert(*task), "I9: {task} ends twice");
        ensure!(state.is_terminal(), "I9: {task} ends {state:?}");
        let is_turn = self.kinds.get(task) == Some(&TaskKind::Turn);
        let skipped = *state == TaskState::Skipped;
        ensure!(!skipped || !is_turn, "DQ-3: {task} is a turn and was skipped");
        let completed = *state == TaskState::Completed && *stop_reason == Some(StopReason::EndTurn);
        let is_empty = is_turn && completed && !self.has_answer;
        let found = *has_empty_answer;
        ensure!(!self.in_world || found == is_empty, "{task}: a finding {found}, {is_empty}");
        Ok(())
    }
}

impl Invariant for OneOutcome {
    fn begin(&mut self, _step: &Rc<Begun>) {
        self.in_world = true;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskQueued { task, kind, .. } => drop(self.kinds.insert(*task, *kind)),
            Fact::TaskClaimed { task }
            | Fact::TaskReleased { task }
            | Fact::TaskStarted { task, .. }
            | Fact::TurnStarted { task, .. }
            | Fact::TaskRetrying { task, .. }
            | Fact::TurnSettled { task, .. } => {
                ensure!(!self.ended.contains(task), "I9: {task} ended before {fact:?}");
            }
            Fact::PromptSent { .. } => self.has_answer = false,
            Fact::AgentOutput(output) => self.has_answer |= output.summary.has_answer,
            Fact::CancelRequested { task } => {
                let is_first = self.cancel_requested.insert(*task);
                ensure!(is_first, "AM-5: {task} is cancelled twice");
            }
            Fact::TaskEnded { task, state, record: ended, .. } => {
                self.ended(fact)?;
                if let Some(ended) = record(*task, ended) {
                    ensure!(*state == ended.state(), "I9: {task} ends {state:?}: {ended:?}");
                    let requested = self.cancel_requested.contains(task);
                    ensure!(ended.cancel_requested == requested, "AM-5: {ended:?}");
                }
            }
            _ => {}
        }
        Ok(())
    }
}
