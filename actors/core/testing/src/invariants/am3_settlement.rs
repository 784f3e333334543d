//! AM-2, AM-3, F14, HL-14: the facts of a START are adjacent, and those of a settlement; an attempt
//! has at most one response, within the attempt; an ordered
//! compaction that was not completed is followed by the pause of automatic compaction.

use std::rc::Rc;

use greenroom_core::{Fact, Recorded, TaskId, TaskKind, TaskState};

use super::{Begun, Checked, Invariant, Played, ensure};

#[derive(Default)]
pub struct Settlement {
    in_world: bool,
    /// The next fact, if the last one requires one.
    next: Option<Next>,
    /// The task whose prompt is in flight, and whether the agent has answered it.
    in_flight: Option<(TaskId, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    TurnStarted(TaskId),
    PromptSent(TaskId),
    /// The task ends or is retried.
    Ends(TaskId),
    /// An ordered compaction was not completed. No frame shows the pause.
    Rests,
}

impl Settlement {
    fn check_order(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        let Some(next) = self.next.take() else {
            let rests = matches!(fact, Fact::CompactionRests { .. });
            ensure!(!rests, "HL-14: a rest without an uncompleted ordered compaction");
            return Ok(());
        };
        let is_next = match (next, fact) {
            (Next::Rests, Fact::CompactionRests { .. }) => true,
            (Next::TurnStarted(expected), Fact::TurnStarted { task, .. })
            | (Next::Ends(expected), Fact::TaskEnded { task, .. })
            | (Next::Ends(expected), Fact::TaskRetrying { task, .. }) => expected == *task,
            (Next::PromptSent(expected), Fact::PromptSent { .. }) => place.task == Some(expected),
            _ => false,
        };
        ensure!(is_next, "AM-2, AM-3: {fact:?} is where {next:?} should be");
        Ok(())
    }
}

impl Invariant for Settlement {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "task_started", "turn_started", "session/prompt", "prompt_answered", "turn_settled",
            "task_retrying", "task_ended",
        ]
    }

    fn begin(&mut self, _step: &Rc<Begun>) {
        self.in_world = true;
    }

    fn fact(&mut self, recorded: &Recorded) -> Checked {
        self.check_order(recorded)?;
        let task = recorded.place.task;
        match &recorded.fact {
            Fact::PromptSent { .. } => self.in_flight = task.map(|task| (task, false)),
            Fact::PromptAnswered(_) => {
                let is_first =
                    self.in_flight.is_some() && self.in_flight == task.map(|it| (it, false));
                ensure!(
                    is_first,
                    "F14: {task:?} is answered, and in flight is {:?}",
                    self.in_flight
                );
                self.in_flight = task.map(|task| (task, true));
            }
            Fact::TurnSettled { .. } => self.in_flight = None,
            _ => {}
        }
        self.next = match &recorded.fact {
            Fact::TaskStarted { task, .. } => Some(Next::TurnStarted(*task)),
            Fact::TurnStarted { task, .. } => Some(Next::PromptSent(*task)),
            Fact::TurnSettled { task, .. } => Some(Next::Ends(*task)),
            Fact::TaskEnded { kind: TaskKind::Compaction, state, error, .. } if self.in_world => {
                let code = error.as_ref().map(|error| &*error.code);
                let rests = match state {
                    TaskState::Skipped => code.is_some_and(|code| code != "already_compacted"),
                    // A caller's cancel shows nothing about the next one.
                    state => !matches!(state, TaskState::Completed | TaskState::Cancelled),
                };
                rests.then_some(Next::Rests)
            }
            _ => None,
        };
        Ok(())
    }

    fn end(&mut self, _step: &Played) -> Checked {
        ensure!(self.next.is_none(), "AM-2, AM-3: the step ends before {:?}", self.next);
        Ok(())
    }
}
