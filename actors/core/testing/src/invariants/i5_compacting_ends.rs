//! I5, AM-23, AM-25, AM-28, AM-31: at most one compaction is active, it ends with its turn or its
//! run at the latest, the count is that of the completed ones, and the last one is known.

use std::{collections::BTreeMap, rc::Rc};

use greenroom_core::{
    Compaction, CompactionId, CompactionStatus, Fact, Recorded, Source, Timestamp,
};

use super::{Begun, Checked, Invariant, Played, ensure};

#[derive(Default)]
pub struct CompactingEnds {
    seen: BTreeMap<CompactionId, CompactionStatus>,
    active: Option<CompactionId>,
    /// The time of the step, if it is one of a world.
    now: Option<Timestamp>,
    /// Who first reported the last one, when that began, and when the last completed one ended.
    last_source: Option<Source>,
    last_started_at: Option<Timestamp>,
    last_completed_at: Option<Timestamp>,
}

impl CompactingEnds {
    fn started(&mut self, compaction: &Compaction) -> Checked {
        let id = compaction.id;
        ensure!(compaction.is_active(), "{id} starts {:?}", compaction.status);
        ensure!(self.active.is_none(), "I5: {id} is active beside {:?}", self.active);
        let is_new = self.seen.insert(id, compaction.status).is_none();
        ensure!(is_new, "I9: {id} starts twice");
        self.active = Some(id);
        (self.last_source, self.last_started_at) = (Some(compaction.source), self.now);
        Ok(())
    }

    fn ended(&mut self, compaction: &Compaction) -> Checked {
        let (id, status) = (compaction.id, compaction.status);
        ensure!(!compaction.is_active(), "I9: {id} ends in progress");
        let was = self.seen.insert(id, status);
        let late = (Some(CompactionStatus::Abandoned), CompactionStatus::Completed);
        let may = matches!(was, None | Some(CompactionStatus::InProgress)) || (was, status) == late;
        ensure!(may, "I9, AM-23: {id} was {was:?} and is {status:?}");
        self.active = self.active.filter(|active| *active != id);
        if status == CompactionStatus::Completed {
            (self.last_source, self.last_completed_at) = (Some(compaction.source), self.now);
        }
        Ok(())
    }
}

impl Invariant for CompactingEnds {
    fn follows(&self) -> &'static [&'static str] {
        &["compaction_started", "compaction_ended"]
    }

    fn begin(&mut self, step: &Rc<Begun>) {
        self.now = Some(step.now.wall);
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::CompactionStarted(started) => self.started(started)?,
            Fact::CompactionUpdated(new) => {
                let before = self.seen.get(&new.id);
                ensure!(before == Some(&new.status), "I9: {} was {before:?}: {new:?}", new.id);
            }
            Fact::CompactionEnded(ended) => self.ended(ended)?,
            Fact::TurnSettled { .. } | Fact::RunExited { .. } => {
                let active = self.active;
                ensure!(active.is_none(), "AM-25, AM-28: {active:?} is active at {fact:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let completed = |status: &&CompactionStatus| **status == CompactionStatus::Completed;
        let expected = self.seen.values().filter(completed).count() as u64;
        let known = &step.group.state().compacting;
        let counted = known.count;
        ensure!(expected == counted, "AM-23: {expected} were completed, not {counted}");
        let last = (self.last_source, self.last_started_at, self.last_completed_at);
        let found = (known.last_source, known.last_started_at, known.last_completed_at);
        ensure!(last == found, "AM-31: the last one is {last:?}, not {found:?}");
        let active = step.group.active_compaction().map(|active| active.id);
        ensure!(active == self.active, "I5: {:?} is active, not {active:?}", self.active);
        Ok(())
    }
}
