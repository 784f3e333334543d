//! I5, AM-23, AM-25, AM-28: at most one compaction is active, it ends with its turn or its run at
//! the latest, and the count is that of the completed ones.

use std::collections::BTreeMap;

use greenroom_core::{Compaction, CompactionId, CompactionStatus, Fact, Recorded};

use super::{Checked, Invariant, Played, ensure};

#[derive(Default)]
pub struct CompactingEnds {
    seen: BTreeMap<CompactionId, CompactionStatus>,
    active: Option<CompactionId>,
}

impl CompactingEnds {
    fn started(&mut self, compaction: &Compaction) -> Checked {
        let id = compaction.id;
        ensure!(compaction.is_active(), "{id} starts {:?}", compaction.status);
        ensure!(self.active.is_none(), "I5: {id} is active beside {:?}", self.active);
        let is_new = self.seen.insert(id, compaction.status).is_none();
        ensure!(is_new, "I9: {id} starts twice");
        self.active = Some(id);
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
        Ok(())
    }
}

impl Invariant for CompactingEnds {
    fn follows(&self) -> &'static [&'static str] {
        &["compaction_started", "compaction_ended"]
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
        let counted = step.group.state().compacting.count;
        ensure!(expected == counted, "AM-23: {expected}, not {counted}");
        let active = step.group.active_compaction().map(|active| active.id);
        ensure!(active == self.active, "I5: {:?} is active, not {active:?}", self.active);
        Ok(())
    }
}
