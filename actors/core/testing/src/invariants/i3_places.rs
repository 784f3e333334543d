//! I3, AM-11: frames are numbered without a gap, and each belongs to the segment, the run and the
//! task that were there as it was made.

use std::collections::BTreeSet;

use greenroom_core::{Fact, Place, Recorded, RunId, TaskId};

use super::{Checked, Invariant, Played, ensure, record};

#[derive(Default)]
pub struct Places {
    seq: u64,
    segment: u32,
    run: Option<RunId>,
    /// The task between claim and end, and the one whose attempt runs.
    holder: Option<TaskId>,
    running: Option<TaskId>,
    /// The tasks whose attempts were settled in the run: their output may come late.
    settled: BTreeSet<TaskId>,
}

impl Invariant for Places {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "segment_started", "run_started", "run_exited", "task_claimed", "task_released",
            "task_started", "session/prompt", "turn_settled", "task_retrying", "task_ended",
        ]
    }

    fn fact(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        let (run, holder) = (self.run, self.holder);
        match fact {
            Fact::SegmentStarted { segment, .. } => self.segment = *segment,
            Fact::RunStarted { run, .. } => {
                self.run = Some(*run);
                self.settled.clear();
            }
            Fact::RunExited { .. } => self.run = None,
            Fact::TaskClaimed { task } | Fact::TaskStarted { task, .. } => {
                self.holder = Some(*task);
            }
            Fact::PromptSent { .. } => self.running = self.holder,
            Fact::TurnSettled { task, .. } => {
                self.running = None;
                self.settled.insert(*task);
            }
            Fact::TaskReleased { .. } | Fact::TaskRetrying { .. } => self.holder = None,
            Fact::TaskEnded { task, .. } => self.holder = holder.filter(|other| other != task),
            _ => {}
        }
        // A frame is of the run and the task that it begins or ends.
        let task = match fact {
            Fact::AgentOutput(output) => {
                let is_earlier = |task: &TaskId| self.settled.contains(task);
                let late = output.late.filter(is_earlier).filter(|_| self.running != output.late);
                late.or(self.running)
            }
            fact => fact.task().or(holder).or(self.holder),
        };
        let (seq, segment) = (self.seq + 1, self.segment);
        let expected = Place { seq, segment, run: run.or(self.run), task };
        ensure!(*place == expected, "I3, AM-11: {fact:?} is at {place:?}, not at {expected:?}");
        self.seq += fact.frames();
        if let Fact::TaskEnded { task, record: ended, .. } = fact
            && let Some(ended) = record(*task, ended)
        {
            let last = ended.last_frame().map(|last| last.seq);
            ensure!(last == Some(seq), "I3: {task} ends at {seq}, not at {last:?}");
        }
        Ok(())
    }

    fn skip(&mut self) {
        self.seq += 1;
    }

    fn end(&mut self, step: &Played) -> Checked {
        let last = step.group.state().last_seq;
        ensure!(last == self.seq, "I3: {} frames, last_seq {last}", self.seq);
        Ok(())
    }
}
