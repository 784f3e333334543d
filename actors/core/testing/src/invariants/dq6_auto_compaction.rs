//! DQ-4, DQ-6, I12, HL-14: a settled turn that leaves the context too full orders a compaction,
//! unless one is pending, the session holds only a summary, two in a row freed too little, or one
//! failed less than ten minutes ago; nothing else does.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use greenroom_core::{
    Compaction, CompactionId, CompactionStatus, Deadline, Fact, Now, Origin, Recorded, SessionId,
    Source, Strategy, TaskId, TaskKind, Usage, UsageAfter,
};

use super::{Begun, Checked, Invariant, Played, ensure, left_ms};

/// How long the group orders no compaction by itself after an uncompleted one.
const PAUSE_MS: u64 = 600_000;

/// Only worlds know the settings and the usage.
#[derive(Default)]
pub struct AutoCompaction {
    step: Option<Rc<Begun>>,
    turns: BTreeSet<TaskId>,
    /// The compaction tasks that have not ended.
    pending: BTreeSet<TaskId>,
    session: Option<SessionId>,
    usage: Option<Usage>,
    compactions: BTreeMap<CompactionId, CompactionStatus>,
    /// Whether usage was reported since the last completed compaction, and the tokens in use before
    /// that one, until it is known how many it freed.
    is_measured: bool,
    before: Option<u64>,
    /// How many in a row freed too little.
    in_vain: u8,
    paused_until: Option<Deadline>,
}

impl AutoCompaction {
    fn may_order(&self, now: Now) -> bool {
        let rested = self.paused_until.is_none_or(|due| left_ms(due, now) == 0);
        self.is_measured && self.in_vain < 2 && rested
    }

    fn reset(&mut self) {
        (self.in_vain, self.paused_until) = (0, None);
    }

    /// A compaction helped if it freed at least a tenth.
    fn judge(&mut self, used: u64) {
        if let Some(before) = self.before.take() {
            let helped = u128::from(before.saturating_sub(used)) * 10 >= u128::from(before);
            self.in_vain = if helped { 0 } else { self.in_vain.saturating_add(1) };
        }
    }

    fn in_session(&mut self, session: &SessionId) {
        if self.session.as_ref() != Some(session) {
            self.usage = None;
        }
        self.session = Some(session.clone());
    }

    fn compaction(&mut self, compaction: &Compaction) {
        let was = self.compactions.insert(compaction.id, compaction.status);
        match compaction.status {
            status if was == Some(status) => {}
            CompactionStatus::Completed => {
                let used = self.usage.as_ref().map(|usage| usage.used);
                self.before = compaction.details.tokens_before.or(used);
                (self.is_measured, self.paused_until) = (false, None);
                if let Some(after) = compaction.details.tokens_after {
                    self.judge(after);
                }
                match &compaction.usage_after {
                    Some(UsageAfter::Known(usage)) => self.usage = Some(usage.clone()),
                    Some(UsageAfter::Unknown) => self.usage = None,
                    None => {}
                }
            }
            CompactionStatus::Noop
                if compaction.source == Source::Task && !compaction.is_unstarted =>
            {
                self.in_vain = self.in_vain.saturating_add(1);
            }
            _ => {}
        }
    }

    /// Checks whether the step ordered a compaction, exactly if one was due.
    fn check_order(&self, step: &Played, begun: &Begun) -> Checked {
        let is_new = |id: &TaskId| {
            let queued =
                |it: &Recorded| matches!(it.fact, Fact::TaskQueued { task, .. } if task == *id);
            step.facts.iter().any(queued)
        };
        // One that waited may end after the settlement, as it has nothing left to do.
        let ends =
            |it: &Recorded| matches!(it.fact, Fact::TaskEnded { kind: TaskKind::Compaction, .. });
        let is_pending =
            self.pending.iter().any(|task| !is_new(task)) || step.facts.iter().any(ends);
        let settled = |recorded: &Recorded| match recorded.fact {
            Fact::TurnSettled { task, .. } => self.turns.contains(&task),
            _ => false,
        };
        let retries = |place: &usize| {
            let next = step.facts.get(place + 1).map(|recorded| &recorded.fact);
            matches!(next, Some(Fact::TaskRetrying { .. }))
        };
        let settled = step.facts.iter().position(settled).filter(|place| !retries(place));
        // A hold or a resumption after an interrupted turn is between.
        let decides = |recorded: &Recorded| {
            matches!(recorded.fact, Fact::GroupHeld { .. } | Fact::GroupResumed {})
        };
        let held = step.facts.iter().any(decides);
        let ordered = step.facts.iter().position(|recorded| {
            matches!(
                recorded.fact,
                Fact::TaskQueued { origin: Origin::Auto, kind: TaskKind::Compaction, .. }
            )
        });
        let share = begun.settings.compaction.as_ref().map_or(0.0, |_| begun.settings.auto_compact);
        let is_full = self
            .usage
            .as_ref()
            .is_some_and(|usage| share > 0.0 && usage.used as f64 >= share * usage.size as f64);
        let is_live = !step.group.state().is_archived() && self.session.is_some();
        let is_empty = holds_summary_only(step, begun);
        let may = self.may_order(begun.now) && !is_pending && is_live && !is_empty;
        let due = settled.filter(|_| is_full && may).map(|place| place + 2 + usize::from(held));
        ensure!(ordered == due, "DQ-4, DQ-6: due {due:?}, ordered {ordered:?} ({is_full}, {may})");
        Ok(())
    }
}

impl Invariant for AutoCompaction {
    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::GroupChanged(_) => self.reset(),
            Fact::TaskQueued { task, kind: TaskKind::Turn, .. } => drop(self.turns.insert(*task)),
            Fact::TaskQueued { task, origin, .. } => {
                self.pending.insert(*task);
                if *origin == Origin::Api {
                    self.reset();
                }
            }
            Fact::TaskEnded { task, .. } => drop(self.pending.remove(task)),
            Fact::AgentOutput(output) => {
                if let Some(usage) = &output.summary.usage {
                    self.is_measured = true;
                    self.usage = self.session.as_ref().map(|_| usage.clone());
                }
            }
            Fact::TurnSettled { .. } => {
                if let (true, Some(usage)) = (self.is_measured, &self.usage) {
                    self.judge(usage.used);
                }
            }
            Fact::SegmentStarted { session, .. } => self.in_session(session),
            Fact::RunReady { session, .. } => self.session = Some(session.clone()),
            Fact::ContextLost { .. } => (self.session, self.usage) = (None, None),
            Fact::CompactionStarted(compaction)
            | Fact::CompactionUpdated(compaction)
            | Fact::CompactionEnded(compaction) => self.compaction(compaction),
            Fact::CompactionRests { due, .. } => {
                ensure!(due.ms == PAUSE_MS, "HL-14: a pause of {} ms", due.ms);
                self.paused_until = Some(*due);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let usage = step.group.state().usage();
        ensure!(self.usage.as_ref() == usage, "the usage is {:?}, not {usage:?}", self.usage);
        match &self.step {
            Some(begun) => self.check_order(step, begun),
            None => Ok(()),
        }
    }
}

/// Whether the session holds nothing but the summary that opened it: the agent's own command
/// compacts also a prompt that had no output.
fn holds_summary_only(step: &Played, begun: &Begun) -> bool {
    let state = step.group.state();
    let is_fresh = state.session.as_ref().is_some_and(|session| session.is_fresh);
    let order = begun.settings.compaction.as_ref();
    let rotates = order.is_some_and(|order| order.strategy == Strategy::Rotate);
    state.pending_summary.is_some() && (rotates || is_fresh)
}
