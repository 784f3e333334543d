//! The statements about segments, compactions and their lock.

use std::collections::BTreeMap;

use greenroom_core::{
    Compaction, CompactionId, CompactionStatus, Continuity, EndReason, Group, Head, Origin,
    Provenance, SessionId, TaskId, TaskKind, Terms, Write,
};

use super::{Held, ensure};

/// What was seen of a group's segments, compactions and lock so far.
#[derive(Default)]
pub struct Compactions {
    segment: u32,
    segment_open: bool,
    session: Option<SessionId>,
    provenance: Option<Provenance>,
    /// Of each compaction: where it stands, and the segment that it opened.
    seen: BTreeMap<CompactionId, (CompactionStatus, Option<u32>)>,
    active: Option<CompactionId>,
    /// The completed compaction whose rotation has to be right behind it.
    rotates: Option<u32>,
    /// The segment whose successor has to be right behind it.
    succeeds: Option<u32>,
    lock: Lock,
    /// In this step: a compaction was published that needed the lock, and the lock was given back
    /// with its facts.
    published: bool,
    fenced: bool,
    auto_compact: f64,
    /// Whether a prompt was sent in the session.
    spoken: bool,
    /// Whether there was anything to lose with the session as the step began, and whether it is
    /// said to be lost.
    to_lose: bool,
    lost: bool,
    /// The summary that a prompt has to carry.
    pub lead_in: Option<String>,
}

/// The lock as the facts tell it.
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
    /// A step begins.
    pub fn begin(&mut self, terms: &Terms) {
        (self.published, self.fenced, self.lost) = (false, false, false);
        self.to_lose = self.session.is_some() && self.spoken && self.lead_in.is_none();
        self.auto_compact = if terms.compaction.is_some() { terms.auto_compact } else { 0.0 };
    }

    /// The server died, and its lock with it.
    pub fn forget_lock(&mut self) {
        self.lock = Lock::None;
    }

    /// The task that holds the lock.
    pub fn lock_holder(&self) -> Option<TaskId> {
        match self.lock {
            Lock::Held { task, .. } => Some(task),
            Lock::None | Lock::Bypassed(_) | Lock::Lost(_) => None,
        }
    }

    /// Takes in one fact; `compacting` is the compaction task whose prompt is in flight.
    pub fn fact(&mut self, write: &Write, compacting: Option<TaskId>) -> Held {
        self.follows(write)?;
        match write {
            Write::SegmentEnded { segment, end_reason } => {
                let open = self.segment_open && self.segment == *segment;
                ensure!(open, "AM-11: segment {segment} is not the open one");
                let compacted = *end_reason == EndReason::Compaction;
                let due = self.rotates.is_some();
                ensure!(compacted == due, "AM-22: a segment ends by {end_reason:?}, {due}");
                self.segment_open = false;
                self.succeeds = Some(*segment);
            }
            Write::SegmentStarted { segment, parent, session, provenance } => {
                ensure!(!self.segment_open, "AM-11: segment {} is still open", self.segment);
                ensure!(*segment == self.segment + 1, "I4: {segment} after {}", self.segment);
                let before = Some(self.segment).filter(|before| *before > 0);
                ensure!(*parent == before, "I4: the parent of {segment} is {parent:?}");
                ensure!(self.succeeds.take() == before, "AM-12: {segment} begins alone");
                if let Some(due) = self.rotates.take() {
                    ensure!(due == *segment, "AM-22: {segment} is opened, and not {due}");
                }
                (self.segment, self.segment_open) = (*segment, true);
                self.spoken &= self.session.as_ref() == Some(session);
                self.session = Some(session.clone());
                self.provenance.clone_from(provenance);
            }
            Write::ProvenanceNoted { provenance } => {
                let news = self.provenance.as_ref() != Some(provenance);
                ensure!(news, "AM-13: {:?} is noted twice", self.provenance);
                self.provenance = Some(provenance.clone());
            }
            Write::PromptSent { .. } => self.spoken = true,
            Write::RunReady { session, provenance, continuity, .. } => {
                let lost = *continuity == Continuity::Lost && self.to_lose;
                ensure!(
                    lost == self.lost,
                    "I16: {session} is new: lost {}, said {lost}",
                    self.lost
                );
                self.session = Some(session.clone());
                if let Some(provenance) = provenance {
                    self.provenance = Some(provenance.clone());
                }
                ensure!(self.segment_open, "AM-11: a session and no segment");
            }
            Write::ContextLost { .. } => {
                (self.session, self.provenance, self.lost) = (None, None, true);
            }
            Write::CompactionStarted(own) => self.started(own)?,
            Write::CompactionUpdated(own) => {
                let before = self.seen.get(&own.id).map(|(status, _)| *status);
                ensure!(before == Some(own.status), "I9: {} was {before:?}: {own:?}", own.id);
            }
            Write::CompactionEnded(own) => self.ended(own, compacting)?,
            Write::TurnSettled { task, .. } => {
                ensure!(self.active.is_none(), "AM-25: {task} settled and one is active");
            }
            Write::RunExited { run, .. } => {
                ensure!(self.active.is_none(), "AM-28: {run} is over and one is active");
            }
            Write::TaskEnded { task, .. } | Write::TaskRetrying { task, .. } => {
                ensure!(self.lock_holder() != Some(*task), "HL-7: {task} ended with its lock");
                if matches!(self.lock, Lock::Bypassed(own) | Lock::Lost(own) if own == *task) {
                    self.lock = Lock::None;
                }
            }
            Write::LockTaken { task, key, .. } => {
                ensure!(
                    self.lock == Lock::None,
                    "HL-3: {task} takes a lock beside {:?}",
                    self.lock
                );
                self.lock = Lock::Held { task: *task, key: key.clone() };
            }
            Write::LockBypassed { task, .. } => self.lock = Lock::Bypassed(*task),
            Write::LockLost { task } => {
                ensure!(self.lock_holder() == Some(*task), "HL-4: {task} loses what it had not");
                self.lock = Lock::Lost(*task);
            }
            Write::LockReleased { key, fences, .. } => {
                let own = matches!(&self.lock, Lock::Held { key: own, .. } if own == key);
                ensure!(own, "HL-4: {key} is given back, held is {:?}", self.lock);
                self.lock = Lock::None;
                ensure!(!self.fenced, "HL-11: one step, two fences");
                self.fenced = *fences;
            }
            _ => {}
        }
        Ok(())
    }

    /// AM-12, AM-22: a rotation is said in one breath, and right behind what led to it.
    fn follows(&self, write: &Write) -> Held {
        if self.succeeds.is_some() {
            let so = matches!(write, Write::SegmentStarted { .. });
            ensure!(so, "AM-12: nothing is between two segments, and there is {write:?}");
        } else if self.rotates.is_some() {
            let first = self.segment == 0 && matches!(write, Write::SegmentStarted { .. });
            let so = first || matches!(write, Write::SegmentEnded { .. });
            ensure!(so, "AM-22: a completed compaction rotates at once, and not {write:?}");
        }
        Ok(())
    }

    fn started(&mut self, own: &Compaction) -> Held {
        ensure!(own.is_active(), "{} starts {:?}", own.id, own.status);
        ensure!(self.active.is_none(), "I5: {} is active beside {:?}", own.id, self.active);
        ensure!(own.from_segment == self.segment, "AM-22: from segment {}", own.from_segment);
        let new = self.seen.insert(own.id, (own.status, None)).is_none();
        ensure!(new, "I9: {} starts twice", own.id);
        self.active = Some(own.id);
        Ok(())
    }

    fn ended(&mut self, own: &Compaction, compacting: Option<TaskId>) -> Held {
        ensure!(!own.is_active(), "I9: {} ends in progress", own.id);
        let before = self.seen.insert(own.id, (own.status, own.to_segment));
        let was = before.map(|(status, _)| status);
        let late = (Some(CompactionStatus::Abandoned), CompactionStatus::Completed);
        let may =
            matches!(was, None | Some(CompactionStatus::InProgress)) || (was, own.status) == late;
        ensure!(may, "I9, AM-23: {} was {was:?} and is {:?}", own.id, own.status);
        if self.active == Some(own.id) {
            self.active = None;
        }
        if own.status != CompactionStatus::Completed {
            ensure!(own.to_segment.is_none(), "AM-23: {:?} and rotates", own.status);
            return Ok(());
        }
        let due = self.session.as_ref().map(|_| self.segment + 1);
        ensure!(own.to_segment == due, "AM-22: it opens {:?}, not {due:?}", own.to_segment);
        self.rotates = due;
        let ordered = own.task.is_some() && own.task == compacting;
        if ordered {
            let lost = matches!(self.lock, Lock::Lost(_));
            ensure!(!lost, "HL-11: {} is published without its lock", own.id);
            self.published |= self.lock_holder() == own.task;
        }
        if own.leads {
            ensure!(ordered, "{} leads and nobody ordered it", own.id);
            self.lead_in.clone_from(&own.details.summary);
            ensure!(self.lead_in.is_some(), "I7: {} leads with nothing", own.id);
        }
        Ok(())
    }

    /// HL-2: a compaction that has a session to work on starts with that session's lock only.
    pub fn starts(&self, task: TaskId) -> Held {
        let Some(session) = &self.session else { return Ok(()) };
        let held =
            matches!(&self.lock, Lock::Held { task: own, key } if (own, key) == (&task, session));
        let bypassed = self.lock == Lock::Bypassed(task);
        ensure!(held || bypassed, "HL-2: {task} starts in {session} with {:?}", self.lock);
        Ok(())
    }

    /// What holds of a step.
    pub fn step(&self) -> Held {
        ensure!(self.succeeds.is_none(), "AM-12: the step ends between two segments");
        ensure!(self.rotates.is_none(), "AM-22: the step ends before the rotation");
        let (published, fenced) = (self.published, self.fenced);
        ensure!(published == fenced, "HL-11: published {published}, fenced {fenced}");
        Ok(())
    }

    /// DQ-3 to DQ-6, I12: a settled turn that leaves the context too full calls for a compaction,
    /// unless something stands against it (`rested`, `pending`); and nothing else does.
    pub fn ordered_by_itself(
        &self,
        writes: &[Write],
        head: &Head,
        rested: bool,
        pending: bool,
        turn: impl Fn(TaskId) -> bool,
    ) -> Held {
        let settled =
            |write: &Write| matches!(write, Write::TurnSettled { task, .. } if turn(*task));
        let again = |place: &usize| matches!(writes[place + 1], Write::TaskRetrying { .. });
        let settled = writes.iter().position(settled).filter(|place| !again(place));
        // What the end of a cut-off turn leads to stands between.
        let decides =
            |write: &Write| matches!(write, Write::GroupHeld { .. } | Write::GroupResumed {});
        let held = writes.iter().any(decides);
        let auto = writes.iter().position(|write| {
            matches!(
                write,
                Write::TaskQueued { origin: Origin::Auto, kind: TaskKind::Compaction, .. }
            )
        });
        let full = head.usage.as_ref().is_some_and(|usage| {
            self.auto_compact > 0.0 && usage.used as f64 >= self.auto_compact * usage.size as f64
        });
        let may = rested && !pending && !head.archived && head.session.is_some();
        let due = settled.filter(|_| full && may).map(|settled| settled + 2 + usize::from(held));
        ensure!(auto == due, "DQ-4, DQ-6: due is {due:?}, ordered {auto:?} ({full}, {may})");
        Ok(())
    }

    /// What holds between two steps.
    pub fn at_rest(&self, group: &Group) -> Held {
        let head = group.head();
        ensure!(self.segment == head.segment, "AM-11: {} is open", self.segment);
        ensure!(self.segment_open == (self.segment > 0), "AM-11: not exactly one is open");
        ensure!(self.session == head.session, "AM-11: {:?} is in force", self.session);
        let unspoken = head.session.is_some() && head.unspoken;
        ensure!(
            unspoken == (head.session.is_some() && !self.spoken),
            "I16: spoken {}",
            self.spoken
        );
        ensure!(self.provenance == head.provenance, "AM-13: {:?} is known", self.provenance);
        let completed = |status: &&(CompactionStatus, _)| status.0 == CompactionStatus::Completed;
        let count = self.seen.values().filter(completed).count() as u64;
        ensure!(count == head.compacting.count, "AM-23: {count}, not {}", head.compacting.count);
        let active = group.active_compaction().map(|active| active.id);
        ensure!(active == self.active, "I5: {:?} is active, not {active:?}", self.active);
        ensure!(self.lead_in == head.lead_in, "I7: {:?} is to be carried", self.lead_in);
        Ok(())
    }
}
