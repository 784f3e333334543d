//! I7, AM-9: no prompt is sent again after output that belongs to it, also if that came after its
//! attempt was settled.

use std::collections::BTreeSet;

use greenroom_core::{Fact, Recorded, TaskId};

use super::{Checked, Invariant, Played, ensure, proves_receipt};

#[derive(Default)]
pub struct SentOnce {
    /// The task whose prompt is in flight.
    running: Option<TaskId>,
    /// The task of this run whose attempt was settled last, and the one before it.
    settled: Option<TaskId>,
    before: Option<TaskId>,
    /// The tasks of which output came after their attempt was settled.
    acted: BTreeSet<TaskId>,
}

impl SentOnce {
    /// Counts output that names no task: it belongs to the running attempt, else to the last one.
    fn unnamed(&mut self) {
        let last = self.settled.filter(|_| self.running.is_none());
        self.acted.extend(last);
    }
}

impl Invariant for SentOnce {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "run_started", "task_started", "session/prompt", "request_refused", "turn_settled",
            "task_retrying", "task_ended",
        ]
    }

    fn fact(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        match fact {
            Fact::RunStarted { .. } => (self.settled, self.before) = (None, None),
            Fact::TaskStarted { task, .. } => {
                let acted = self.acted.contains(task);
                ensure!(!acted, "I7: {task} is sent again after its late output");
            }
            Fact::PromptSent { .. } => self.running = place.task,
            Fact::TurnSettled { task, .. } => {
                self.running = None;
                self.before = self.settled.replace(*task);
            }
            // The agent never got the prompt: output is that of the attempt before.
            Fact::TaskRetrying { error, .. } if error.code == "server_stopped" => {
                self.settled = self.before;
            }
            Fact::TaskEnded { task, .. } => _ = self.acted.remove(task),
            Fact::AgentOutput(output) if proves_receipt(&output.summary) => match output.late {
                Some(late) => _ = self.acted.insert(late),
                None => self.unnamed(),
            },
            fact if fact.is_bare_output() => self.unnamed(),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let mut waiting = step.group.waiting().chain(step.group.current());
        let acted = waiting.find(|task| self.acted.contains(&task.id)).map(|task| task.id);
        ensure!(acted.is_none(), "I7: {acted:?} waits for a retry after its late output");
        Ok(())
    }
}
