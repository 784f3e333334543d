//! I4, AM-11, AM-12, AM-22: a group's segments are one line; exactly one is open once there is a
//! session; its end and its successor are adjacent facts, right after the compaction that rotates.

use greenroom_core::{Compaction, CompactionStatus, EndReason, Fact, Recorded};

use super::{Checked, Invariant, Played, ensure};

#[derive(Default)]
pub struct NoFork {
    segment: u32,
    is_open: bool,
    has_session: bool,
    /// The segment that a completed compaction has to open with the next facts.
    next: Option<u32>,
    /// The ended segment whose successor has to start with the next fact.
    needs_successor: Option<u32>,
}

impl NoFork {
    fn check_order(&self, fact: &Fact) -> Checked {
        let starts = matches!(fact, Fact::SegmentStarted { .. });
        if self.needs_successor.is_some() {
            ensure!(starts, "AM-12: {fact:?} is between two segments");
        } else if self.next.is_some() {
            let is_next =
                matches!(fact, Fact::SegmentEnded { .. }) || (self.segment == 0 && starts);
            ensure!(is_next, "AM-22: {fact:?} is before the rotation");
        }
        Ok(())
    }

    fn completed(&mut self, compaction: &Compaction) -> Checked {
        if compaction.status != CompactionStatus::Completed {
            ensure!(compaction.to_segment.is_none(), "AM-23: {:?} and rotates", compaction.status);
            return Ok(());
        }
        let due = self.has_session.then_some(self.segment + 1);
        let opened = compaction.to_segment;
        ensure!(opened == due, "AM-22: it opens {opened:?}, not {due:?}");
        self.next = due;
        Ok(())
    }
}

impl Invariant for NoFork {
    fn follows(&self) -> &'static [&'static str] {
        &["segment_ended", "segment_started", "run_ready", "context_lost", "compaction_ended"]
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        self.check_order(fact)?;
        match fact {
            Fact::SegmentEnded { segment, end_reason } => {
                let open = self.is_open && self.segment == *segment;
                ensure!(open, "AM-11: segment {segment} is not the open one");
                let (compacted, due) = (*end_reason == EndReason::Compaction, self.next.is_some());
                ensure!(compacted == due, "AM-22: a segment ends by {end_reason:?}, {due}");
                self.is_open = false;
                self.needs_successor = Some(*segment);
            }
            Fact::SegmentStarted { segment, parent, .. } => {
                ensure!(!self.is_open, "AM-11: segment {} is still open", self.segment);
                ensure!(*segment == self.segment + 1, "I4: {segment} after {}", self.segment);
                let before = Some(self.segment).filter(|before| *before > 0);
                ensure!(*parent == before, "I4: the parent of {segment} is {parent:?}");
                let ended = self.needs_successor.take();
                ensure!(ended == before, "AM-12: {segment} starts without an end before");
                let due = self.next.take();
                let is_due = due.is_none_or(|due| due == *segment);
                ensure!(is_due, "AM-22: {segment} is opened, and not {due:?}");
                (self.segment, self.is_open, self.has_session) = (*segment, true, true);
            }
            Fact::RunReady { session, .. } => {
                ensure!(self.is_open, "AM-11: {session} and no segment");
                self.has_session = true;
            }
            Fact::ContextLost { .. } => self.has_session = false,
            Fact::CompactionStarted(compaction) => {
                let from = compaction.from_segment;
                ensure!(from == self.segment, "AM-22: from segment {from}");
            }
            Fact::CompactionEnded(compaction) => self.completed(compaction)?,
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        ensure!(self.needs_successor.is_none(), "AM-12: the step ends between two segments");
        ensure!(self.next.is_none(), "AM-22: the step ends before the rotation");
        let open = step.group.state().segment;
        ensure!(self.segment == open, "AM-11: {} is open, not {open}", self.segment);
        ensure!(self.is_open == (open > 0), "AM-11: not exactly one is open");
        Ok(())
    }
}
