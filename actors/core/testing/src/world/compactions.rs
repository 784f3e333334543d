//! The invariants of segments, compactions and their lock.

use std::collections::BTreeMap;

use greenroom_core::{
    Compaction, CompactionId, CompactionStatus, Continuity, EffectiveSettings, EndReason, Fact,
    Group, GroupState, Origin, Provenance, SessionId, TaskId, TaskKind,
};

use super::{Checked, ensure};

/// The history of a group's segments, compactions and lock.
#[derive(Default)]
pub struct Compactions {
    pub segment: u32,
    segment_open: bool,
    session: Option<SessionId>,
    provenance: Option<Provenance>,
    /// The status of each compaction, and the segment that it opened.
    seen: BTreeMap<CompactionId, (CompactionStatus, Option<u32>)>,
    active: Option<CompactionId>,
    /// The segment that a completed compaction has to open with the next facts.
    next_segment: Option<u32>,
    /// The ended segment whose successor has to start with the next fact.
    needs_successor: Option<u32>,
    lock: Lock,
    /// In this step: whether a compaction that needed the lock was published, and whether the lock
    /// was released with its facts.
    published: bool,
    fenced: bool,
    auto_compact: f64,
    /// Whether a prompt was sent in the session.
    prompted: bool,
    /// Whether the session had a context to lose at the begin of the step, and whether a fact
    /// reports the loss.
    has_context: bool,
    lost: bool,
    /// The summary that the next prompt has to carry.
    pub pending_summary: Option<String>,
}

/// The lock as the facts report it.
#[derive(Debug, Default, PartialEq)]
enum Lock {
    #[default]
    None,
    Held {
        task: TaskId,
        key: SessionId,
    },
    Bypassed(TaskId),
    Lost(TaskId),
}

impl Compactions {
    /// Begins a step.
    pub fn begin(&mut self, settings: &EffectiveSettings) {
        (self.published, self.fenced, self.lost) = (false, false, false);
        self.has_context =
            self.session.is_some() && self.prompted && self.pending_summary.is_none();
        self.auto_compact = if settings.compaction.is_some() { settings.auto_compact } else { 0.0 };
    }

    /// Forgets the lock: the server died.
    pub fn forget_lock(&mut self) {
        self.lock = Lock::None;
    }

    /// Returns the task that holds the lock.
    pub fn lock_holder(&self) -> Option<TaskId> {
        match self.lock {
            Lock::Held { task, .. } => Some(task),
            Lock::None | Lock::Bypassed(_) | Lock::Lost(_) => None,
        }
    }

    /// Checks and applies one fact; `compacting` is the compaction task whose prompt is in flight.
    pub fn check_fact(&mut self, fact: &Fact, compacting: Option<TaskId>) -> Checked {
        self.check_order(fact)?;
        match fact {
            Fact::SegmentEnded { segment, end_reason } => {
                let open = self.segment_open && self.segment == *segment;
                ensure!(open, "AM-11: segment {segment} is not the open one");
                let compacted = *end_reason == EndReason::Compaction;
                let due = self.next_segment.is_some();
                ensure!(compacted == due, "AM-22: a segment ends by {end_reason:?}, {due}");
                self.segment_open = false;
                self.needs_successor = Some(*segment);
            }
            Fact::SegmentStarted { segment, parent, session, provenance } => {
                ensure!(!self.segment_open, "AM-11: segment {} is still open", self.segment);
                ensure!(*segment == self.segment + 1, "I4: {segment} after {}", self.segment);
                let before = Some(self.segment).filter(|before| *before > 0);
                ensure!(*parent == before, "I4: the parent of {segment} is {parent:?}");
                ensure!(
                    self.needs_successor.take() == before,
                    "AM-12: {segment} starts without an end before"
                );
                if let Some(due) = self.next_segment.take() {
                    ensure!(due == *segment, "AM-22: {segment} is opened, and not {due}");
                }
                (self.segment, self.segment_open) = (*segment, true);
                self.prompted &= self.session.as_ref() == Some(session);
                self.session = Some(session.clone());
                self.provenance.clone_from(provenance);
            }
            Fact::ProvenanceNoted { provenance } => {
                let is_new = self.provenance.as_ref() != Some(provenance);
                ensure!(is_new, "AM-13: {:?} is noted twice", self.provenance);
                self.provenance = Some(provenance.clone());
            }
            Fact::PromptSent { .. } => self.prompted = true,
            Fact::RunReady { session, provenance, continuity, .. } => {
                let lost = *continuity == Continuity::Lost && self.has_context;
                ensure!(
                    lost == self.lost,
                    "I16: {session} is new: reported lost {}, lost {lost}",
                    self.lost
                );
                self.session = Some(session.clone());
                if let Some(provenance) = provenance {
                    self.provenance = Some(provenance.clone());
                }
                ensure!(self.segment_open, "AM-11: a session and no segment");
            }
            Fact::ContextLost { .. } => {
                (self.session, self.provenance, self.lost) = (None, None, true);
            }
            Fact::CompactionStarted(started) => self.started(started)?,
            Fact::CompactionUpdated(new) => {
                let before = self.seen.get(&new.id).map(|(status, _)| *status);
                ensure!(before == Some(new.status), "I9: {} was {before:?}: {new:?}", new.id);
            }
            Fact::CompactionEnded(ended) => self.ended(ended, compacting)?,
            Fact::TurnSettled { task, .. } => {
                ensure!(self.active.is_none(), "AM-25: {task} settled and one is active");
            }
            Fact::RunExited { run, .. } => {
                ensure!(self.active.is_none(), "AM-28: {run} is over and one is active");
            }
            Fact::TaskEnded { task, .. } | Fact::TaskRetrying { task, .. } => {
                ensure!(self.lock_holder() != Some(*task), "HL-7: {task} ended with its lock");
                let ended = *task;
                if matches!(self.lock, Lock::Bypassed(task) | Lock::Lost(task) if task == ended) {
                    self.lock = Lock::None;
                }
            }
            Fact::LockTaken { task, key, .. } => {
                ensure!(
                    self.lock == Lock::None,
                    "HL-3: {task} takes a lock beside {:?}",
                    self.lock
                );
                self.lock = Lock::Held { task: *task, key: key.clone() };
            }
            Fact::LockBypassed { task, .. } => self.lock = Lock::Bypassed(*task),
            Fact::LockLost { task } => {
                ensure!(
                    self.lock_holder() == Some(*task),
                    "HL-4: {task} loses a lock that it did not hold"
                );
                self.lock = Lock::Lost(*task);
            }
            Fact::LockReleased { key, fences, .. } => {
                let held = matches!(&self.lock, Lock::Held { key: held, .. } if held == key);
                ensure!(held, "HL-4: {key} is released, held is {:?}", self.lock);
                self.lock = Lock::None;
                ensure!(!self.fenced, "HL-11: one step, two fences");
                self.fenced = *fences;
            }
            _ => {}
        }
        Ok(())
    }

    /// AM-12, AM-22: a rotation is two adjacent facts, right after their cause.
    fn check_order(&self, fact: &Fact) -> Checked {
        if self.needs_successor.is_some() {
            let is_next = matches!(fact, Fact::SegmentStarted { .. });
            ensure!(is_next, "AM-12: {fact:?} comes between two segments");
        } else if self.next_segment.is_some() {
            let first = self.segment == 0 && matches!(fact, Fact::SegmentStarted { .. });
            let is_next = first || matches!(fact, Fact::SegmentEnded { .. });
            ensure!(is_next, "AM-22: {fact:?} comes before the rotation");
        }
        Ok(())
    }

    fn started(&mut self, compaction: &Compaction) -> Checked {
        ensure!(compaction.is_active(), "{} starts {:?}", compaction.id, compaction.status);
        ensure!(self.active.is_none(), "I5: {} is active beside {:?}", compaction.id, self.active);
        ensure!(
            compaction.from_segment == self.segment,
            "AM-22: from segment {}",
            compaction.from_segment
        );
        let new = self.seen.insert(compaction.id, (compaction.status, None)).is_none();
        ensure!(new, "I9: {} starts twice", compaction.id);
        self.active = Some(compaction.id);
        Ok(())
    }

    fn ended(&mut self, compaction: &Compaction, compacting: Option<TaskId>) -> Checked {
        ensure!(!compaction.is_active(), "I9: {} ends in progress", compaction.id);
        let before = self.seen.insert(compaction.id, (compaction.status, compaction.to_segment));
        let was = before.map(|(status, _)| status);
        let late = (Some(CompactionStatus::Abandoned), CompactionStatus::Completed);
        let may = matches!(was, None | Some(CompactionStatus::InProgress))
            || (was, compaction.status) == late;
        ensure!(may, "I9, AM-23: {} was {was:?} and is {:?}", compaction.id, compaction.status);
        if self.active == Some(compaction.id) {
            self.active = None;
        }
        if compaction.status != CompactionStatus::Completed {
            ensure!(compaction.to_segment.is_none(), "AM-23: {:?} and rotates", compaction.status);
            return Ok(());
        }
        let due = self.session.as_ref().map(|_| self.segment + 1);
        ensure!(
            compaction.to_segment == due,
            "AM-22: it opens {:?}, not {due:?}",
            compaction.to_segment
        );
        self.next_segment = due;
        let ordered = compaction.task.is_some() && compaction.task == compacting;
        if ordered {
            let lost = matches!(self.lock, Lock::Lost(_));
            ensure!(!lost, "HL-11: {} is published without its lock", compaction.id);
            self.published |= self.lock_holder() == compaction.task;
        }
        if compaction.carries_summary {
            ensure!(ordered, "{} carries a summary and was not ordered", compaction.id);
            self.pending_summary.clone_from(&compaction.details.summary);
            ensure!(self.pending_summary.is_some(), "I7: {} carries no summary", compaction.id);
        }
        Ok(())
    }

    /// HL-2: a compaction of a session starts only with that session's lock.
    pub fn starts(&self, task: TaskId) -> Checked {
        let Some(session) = &self.session else { return Ok(()) };
        let held = match &self.lock {
            Lock::Held { task: holder, key } => (holder, key) == (&task, session),
            Lock::None | Lock::Bypassed(_) | Lock::Lost(_) => false,
        };
        let bypassed = self.lock == Lock::Bypassed(task);
        ensure!(held || bypassed, "HL-2: {task} starts in {session} with {:?}", self.lock);
        Ok(())
    }

    /// Checks the invariants of a step.
    pub fn step(&self) -> Checked {
        ensure!(self.needs_successor.is_none(), "AM-12: the step ends between two segments");
        ensure!(self.next_segment.is_none(), "AM-22: the step ends before the rotation");
        let (published, fenced) = (self.published, self.fenced);
        ensure!(published == fenced, "HL-11: published {published}, fenced {fenced}");
        Ok(())
    }

    /// DQ-3 to DQ-6, I12: a settled turn that leaves the context too full orders a compaction,
    /// unless the group rests (`rested` is false) or one is `pending`; nothing else does.
    pub fn check_automatic(
        &self,
        facts: &[Fact],
        state: &GroupState,
        rested: bool,
        pending: bool,
        is_turn: impl Fn(TaskId) -> bool,
    ) -> Checked {
        let settled =
            |fact: &Fact| matches!(fact, Fact::TurnSettled { task, .. } if is_turn(*task));
        let retries = |place: &usize| matches!(facts[place + 1], Fact::TaskRetrying { .. });
        let settled = facts.iter().position(settled).filter(|place| !retries(place));
        // A hold or a resumption after an interrupted turn comes between.
        let decides = |fact: &Fact| matches!(fact, Fact::GroupHeld { .. } | Fact::GroupResumed {});
        let held = facts.iter().any(decides);
        let auto = facts.iter().position(|fact| {
            matches!(
                fact,
                Fact::TaskQueued { origin: Origin::Auto, kind: TaskKind::Compaction, .. }
            )
        });
        let full = state.usage().is_some_and(|usage| {
            self.auto_compact > 0.0 && usage.used as f64 >= self.auto_compact * usage.size as f64
        });
        let may = rested && !pending && !state.is_archived() && state.session.is_some();
        let due = settled.filter(|_| full && may).map(|settled| settled + 2 + usize::from(held));
        ensure!(auto == due, "DQ-4, DQ-6: due is {due:?}, ordered {auto:?} ({full}, {may})");
        Ok(())
    }

    /// Checks the invariants between two steps.
    pub fn at_rest(&self, group: &Group) -> Checked {
        let state = group.state();
        ensure!(self.segment == state.segment, "AM-11: {} is open", self.segment);
        ensure!(self.segment_open == (self.segment > 0), "AM-11: not exactly one is open");
        ensure!(
            self.session.as_ref() == state.session_id(),
            "AM-11: {:?} is in force",
            self.session
        );
        let is_fresh_session = state.session.as_ref().is_some_and(|session| session.is_fresh);
        ensure!(
            is_fresh_session == (state.session.is_some() && !self.prompted),
            "I16: prompted {}",
            self.prompted
        );
        ensure!(
            self.provenance.as_ref() == state.provenance(),
            "AM-13: {:?} is known",
            self.provenance
        );
        let completed = |status: &&(CompactionStatus, _)| status.0 == CompactionStatus::Completed;
        let count = self.seen.values().filter(completed).count() as u64;
        ensure!(count == state.compacting.count, "AM-23: {count}, not {}", state.compacting.count);
        let active = group.active_compaction().map(|active| active.id);
        ensure!(active == self.active, "I5: {:?} is active, not {active:?}", self.active);
        ensure!(
            self.pending_summary == state.pending_summary,
            "I7: {:?} is pending",
            self.pending_summary
        );
        Ok(())
    }
}
