//! How facts change a group: [`Group::replay`] and what it is made of.

use super::{Current, Group, Lock};
use crate::{
    Compaction, CompactionStatus, Continuity, Details, Fold, OnInterrupt, Origin, Run, RunPhase,
    Source, StopReason, Task, TaskId, TaskKind, TaskState, Timestamp, Turn, Work, Write,
};

impl Group {
    /// Takes in one fact: the only place where the state changes (I13).
    pub fn replay(&mut self, write: &Write, at: Timestamp) {
        let first_seq = self.head.last_seq + 1;
        self.head.last_seq += write.frames();
        match write {
            Write::GroupCreated(settings) => {
                self.head.settings = settings.clone();
                self.head.created_at = Some(at);
            }
            Write::GroupChanged(settings) => {
                if let Some(run) = &mut self.run {
                    run.outdated |= settings.moves(&self.head.settings);
                }
                self.head.settings = settings.clone();
                self.head.archived = false;
                self.head.compacting.allow();
                self.let_start();
                if settings.on_interrupt == Some(OnInterrupt::Continue) {
                    self.let_go_on();
                }
            }
            Write::GroupArchived {} => {
                self.take_by_turn(write);
                self.head.archived = true;
                self.let_start();
                self.let_go_on();
            }
            Write::PurgeOrdered {} => self.head.purging = true,
            Write::GroupPaused {} => self.head.paused = true,
            Write::GroupResumed {} => {
                self.head.paused = false;
                self.let_start();
                self.let_go_on();
            }
            Write::GroupHeld { reason } => self.head.held = Some(*reason),
            Write::TaskQueued { record, .. } => {
                self.head.tasks += 1;
                if record.kind() == TaskKind::Compaction && record.origin != Origin::Auto {
                    self.head.compacting.allow();
                }
                self.enqueue(Task::clone(record));
            }
            Write::TaskClaimed { task } => self.replay_claim(*task, at),
            Write::TaskReleased { .. } => {
                if let Some(Current { task, .. }) = self.current.take() {
                    self.enqueue(Task { claimed_at: None, ..task });
                }
            }
            Write::TaskStarted { task, attempt, run } => {
                self.replay_claim(*task, at);
                if let Some(current) = &mut self.current {
                    current.task.state = TaskState::Running;
                    current.task.attempt = *attempt;
                    current.task.started_at = Some(at);
                    current.task.run = Some(*run);
                    current.task.segment = Some(self.head.segment);
                    current.task.seq_first = Some(first_seq);
                }
            }
            Write::TurnStarted { task, prompt, strategy } => {
                if let Some(Current { task: own, .. }) = &mut self.current
                    && own.id == *task
                    && let Work::Compaction { prompt: sent, strategy: by, .. } = &mut own.work
                {
                    sent.clone_from(prompt);
                    *by = strategy.unwrap_or(*by);
                }
            }
            Write::PromptSent { id, .. } => {
                self.head.unspoken = false;
                self.run.iter_mut().for_each(|run| run.fresh = false);
                if let Some(current) = &mut self.current
                    && let Some(run) = &current.task.run
                {
                    current.turn = Some(Turn::new(*run, *id));
                }
                self.recent.pass();
            }
            Write::Said(said) => {
                self.head.compacting.measured |= said.fold.usage.is_some();
                self.head.usage = said.fold.usage.clone().or(self.head.usage.take());
                if said.task.is_some()
                    && let Some(Current { turn: Some(turn), .. }) = &mut self.current
                {
                    turn.hear(&said.fold);
                }
            }
            Write::CancelRequested { .. } => {
                if let Some(Current { task, turn: Some(_) }) = &mut self.current {
                    task.cancel_requested = true;
                }
                self.take_by_turn(write);
            }
            Write::TurnCut { .. } => self.take_by_turn(write),
            Write::CancelSent { run } => {
                let own = self.run.iter_mut().filter(|own| own.id == *run);
                own.for_each(|own| own.cancelled = true);
            }
            Write::TurnSettled { task, stop_reason, .. } => {
                self.replay_settlement(*task, *stop_reason)
            }
            Write::SummaryGiven { .. } => {
                if let Some(Current { turn: Some(turn), .. }) = &mut self.current {
                    turn.opening = Some(first_seq);
                }
            }
            Write::TaskRetrying { task, attempt, due, .. } => {
                if let Some(Current { task, .. }) = self.current.take() {
                    self.enqueue(Task {
                        state: TaskState::Retrying,
                        attempt: *attempt,
                        claimed_at: None,
                        retry_at: Some(*due),
                        ..task
                    });
                }
                if self.lock.task() == Some(*task) {
                    self.lock = Lock::Unasked;
                }
            }
            Write::BackoffEnded { task } => {
                if let Some(task) = self.waiting.iter_mut().find(|own| own.id == *task) {
                    task.retry_at = None;
                }
            }
            Write::AgentDegraded { due, .. } => self.head.launch_due = Some(*due),
            Write::LaunchAllowed {} => self.head.launch_due = None,
            Write::RequestRefused { run, .. } => {
                if let Some(Current { turn: Some(turn), .. }) = &mut self.current
                    && turn.run == *run
                {
                    turn.hear(&Fold { output: true, ..Fold::default() });
                }
            }
            Write::PermissionOpened(permission) => {
                self.permissions.push(crate::Permission::clone(permission));
            }
            Write::PermissionResolved { permission, .. } => {
                self.permissions.retain(|own| own.permission != *permission);
            }
            Write::TaskEnded { task, kind, state, stop_reason, .. } => {
                match (state, stop_reason, kind) {
                    (TaskState::Interrupted, ..) => self.head.interruptions += 1,
                    (_, Some(_), TaskKind::Turn) => self.head.interruptions = 0,
                    (_, Some(_), TaskKind::Compaction) | (_, None, _) => {}
                }
                if self.current.as_ref().is_some_and(|current| current.task.id == *task) {
                    self.current = None;
                } else {
                    self.dequeue(*task);
                }
                if self.lock.task() == Some(*task) {
                    self.lock = Lock::Unasked;
                }
            }
            Write::RunStarted { run, listens, .. } => {
                let run = Run::new(*run, RunPhase::Starting);
                self.run = Some(Run { listens: *listens, ..run });
            }
            Write::RunReady { session, provenance, continuity, .. } => {
                let is_fresh = matches!(continuity, Continuity::New | Continuity::Lost);
                self.run.iter_mut().for_each(|run| run.fresh = is_fresh);
                self.head.session = Some(session.clone());
                if provenance.is_some() {
                    self.head.provenance.clone_from(provenance);
                }
                self.set_phase(RunPhase::Ready);
            }
            Write::RunStopping { .. } => self.set_phase(RunPhase::Stopping),
            Write::RunExited { exit, .. } => {
                let settled = self.run.take().is_some_and(|run| run.settled);
                self.head.crashes += u32::from(!settled && exit.reason.is_crash());
                self.recent.clear();
            }
            Write::SegmentStarted { segment, session, provenance, .. } => {
                if self.head.session.as_ref() != Some(session) {
                    // It was the other session's.
                    self.head.usage = None;
                    self.head.unspoken = true;
                    self.run.iter_mut().for_each(|run| run.fresh = false);
                }
                self.head.segment = *segment;
                self.head.session = Some(session.clone());
                self.head.provenance.clone_from(provenance);
            }
            Write::ProvenanceNoted { provenance } => {
                self.head.provenance = Some(provenance.clone());
            }
            Write::ContextLost { .. } => {
                self.head.session = None;
                self.head.usage = None;
                self.head.provenance = None;
            }
            Write::CompactionStarted(compaction)
            | Write::CompactionUpdated(compaction)
            | Write::CompactionEnded(compaction) => self.replay_compaction(compaction, at),
            Write::CompactionRests { due } => self.head.compacting.begin_rest(*due),
            Write::LockAsked { task } => {
                let (tries, count) = match self.lock {
                    Lock::Refused { task: own, tries, count } if own == *task => (tries + 1, count),
                    _ => (1, self.head.compacting.count),
                };
                self.lock = Lock::Asked { task: *task, tries, count };
            }
            Write::LockRefused { task, .. } => {
                if let Lock::Asked { tries, count, .. } = self.lock {
                    self.lock = Lock::Refused { task: *task, tries, count };
                }
            }
            Write::LockTaken { task, key, holder, token } => {
                let (key, holder) = (key.clone(), holder.clone());
                self.lock = Lock::Held { task: *task, key, holder, token: *token };
            }
            Write::LockBypassed { task, .. } => self.lock = Lock::Bypassed { task: *task },
            Write::LockLost { task } => self.lock = Lock::Lost { task: *task },
            Write::LockReleased { .. } => self.lock = Lock::Unasked,
            Write::AgentWedged { .. } => {
                self.run.iter_mut().for_each(|run| run.wedged = true);
                if let Some(Current { turn: Some(turn), .. }) = &mut self.current {
                    turn.unhear();
                }
            }
            Write::AgentOutputRejected { .. }
            | Write::SegmentEnded { .. }
            | Write::StderrMatched { .. } => {}
        }
    }

    fn take_by_turn(&mut self, write: &Write) {
        if let Some(Current { turn: Some(turn), .. }) = &mut self.current {
            turn.take(write);
        }
    }

    /// What began goes on first; then a compaction before waiting turns (I8), and a turn that lost
    /// its slot before those that were accepted after it.
    pub(super) fn enqueue(&mut self, task: Task) {
        let rank = |task: &Task| {
            let began = task.state == TaskState::Retrying;
            (!began, task.kind() == TaskKind::Turn, task.ordinal)
        };
        let place = self.waiting.partition_point(|other| rank(other) < rank(&task));
        self.waiting_bytes += task.prompt().as_str().len();
        self.expiring += usize::from(task.expires.is_some());
        self.waiting.insert(place, task);
    }

    /// Somebody acted: the next run need not wait any more.
    fn let_start(&mut self) {
        (self.head.crashes, self.head.launch_due) = (0, None);
    }

    /// Somebody decided: what was cut off does not hold up the queue any more.
    fn let_go_on(&mut self) {
        (self.head.held, self.head.interruptions) = (None, 0);
    }

    fn dequeue(&mut self, id: TaskId) -> Option<Task> {
        let place = self.position(id)?;
        let task = self.waiting.remove(place)?;
        self.waiting_bytes -= task.prompt().as_str().len();
        self.expiring -= usize::from(task.expires.is_some());
        Some(task)
    }

    fn replay_claim(&mut self, id: TaskId, at: Timestamp) {
        if let Some(task) = self.dequeue(id) {
            self.current =
                Some(Current { task: Task { claimed_at: Some(at), ..task }, turn: None });
        }
    }

    fn replay_settlement(&mut self, task: TaskId, stop_reason: StopReason) {
        // It was cancelled once, and bore it.
        let answered = !matches!(stop_reason, StopReason::Error | StopReason::Cancelled);
        let is_well = answered && self.turn().is_some_and(|turn| turn.cut.is_none());
        self.head.compacting.measure(self.head.usage.as_ref());
        let carried = self.current.as_ref().is_some_and(|Current { task: own, turn }| {
            let heard = turn.as_ref().is_some_and(Turn::has_output);
            own.id == task && own.kind() == TaskKind::Turn && heard
        });
        // By its answer: how else a turn ends says nothing of what its agent can do.
        if stop_reason.is_answer() {
            self.run.iter_mut().for_each(|run| run.settled = true);
            self.let_start();
        }
        if is_well {
            self.run.iter_mut().for_each(|run| run.cancelled = false);
        }
        // A prompt that led nowhere may not have been read; the next one carries it again.
        if carried {
            self.head.lead_in = None;
        }
    }

    fn replay_compaction(&mut self, compaction: &Compaction, at: Timestamp) {
        let before = self.recent.status(compaction.id);
        if let Some(run) = &mut self.run {
            run.shows_acp |= compaction.sources.contains(&Source::Acp);
            if compaction.leads {
                run.left.clone_from(&self.head.session);
            }
        }
        let compacting = &mut self.head.compacting;
        match compaction.status {
            status if before == Some(status) => {}
            CompactionStatus::InProgress => {
                compacting.last_source = Some(compaction.source);
                compacting.last_started_at = Some(at);
            }
            CompactionStatus::Completed => {
                let in_use = self.head.usage.as_ref().map(|usage| usage.used);
                compacting.count += 1;
                compacting.last_source = Some(compaction.source);
                compacting.last_completed_at = Some(at);
                compacting.measured = false;
                compacting.end_rest();
                let Details { tokens_before, tokens_after, .. } = compaction.details;
                compacting.before = tokens_before.or(in_use);
                if let Some(after) = tokens_after {
                    compacting.weigh(after);
                }
                if compaction.leads {
                    self.head.lead_in.clone_from(&compaction.details.summary);
                }
            }
            CompactionStatus::Noop if compaction.source == Source::Task => {
                compacting.streak = compacting.streak.saturating_add(1);
            }
            CompactionStatus::Failed
            | CompactionStatus::Cancelled
            | CompactionStatus::Abandoned
            | CompactionStatus::Skipped
            | CompactionStatus::Noop => {}
        }
        self.recent.put(compaction.clone());
    }

    fn set_phase(&mut self, phase: RunPhase) {
        if let Some(run) = &mut self.run {
            run.phase = phase;
        }
    }
}
