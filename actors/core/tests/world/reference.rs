//! What a database holds of a group, folded from its facts by other code than the rules' own.

use std::collections::BTreeMap;

use greenroom_core::{
    Cause, Compaction, CompactionId, CompactionStatus, Continuity, CutBy, Due, ExitReason, Fold,
    Group, Head, OnInterrupt, Origin, Permission, Run, RunPhase, Settings, Source, StopReason,
    Task, TaskId, TaskKind, TaskState, Timestamp, Turn, Work, Write, lock::Now,
};
use serde::{Deserialize, Serialize};

use super::attempts::left_ms;

/// How long none is ordered by itself after a compaction that was not completed.
const REST_MS: u64 = 600_000;

/// The rows of one group.
pub struct Reference {
    head: Head,
    counted: Counted,
    /// All tasks ever accepted, by ordinal.
    tasks: BTreeMap<u64, Task>,
    /// All compactions ever seen.
    compactions: BTreeMap<CompactionId, Compaction>,
    run: Option<Run>,
    /// The attempt that runs; a database hears it again from the frames.
    turn: Option<Turn>,
    /// Whether that attempt had output.
    heard: bool,
    /// The permissions that nobody answered, in order.
    permissions: Vec<Permission>,
}

/// [`greenroom_core::Compacting`] as it is written down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Counted {
    count: u64,
    last_source: Option<Source>,
    last_started_at: Option<Timestamp>,
    last_completed_at: Option<Timestamp>,
    measured: bool,
    before: Option<u64>,
    streak: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rest: Option<Due>,
}

impl Reference {
    /// A group that nobody stored, with the settings that it would have.
    pub fn new(settings: Settings) -> Self {
        Self {
            head: Head::new(settings),
            counted: Counted::default(),
            tasks: BTreeMap::new(),
            compactions: BTreeMap::new(),
            run: None,
            turn: None,
            heard: false,
            permissions: Vec::new(),
        }
    }

    /// The permissions that nobody answered, in order.
    pub fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    /// What is kept beside tasks and run.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// All tasks ever accepted, in that order.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// All compactions ever seen.
    pub fn compactions(&self) -> impl Iterator<Item = &Compaction> {
        self.compactions.values()
    }

    /// The run that is alive.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// The attempt that runs.
    pub fn turn(&self) -> Option<&Turn> {
        self.turn.as_ref()
    }

    /// I12, HL-14: whether nothing stands against a compaction of the group's own accord.
    pub fn may_compact(&self, now: Now) -> bool {
        let Counted { measured, streak, rest, .. } = self.counted;
        measured && streak < 2 && rest.is_none_or(|rest| left_ms(rest, now) == 0)
    }

    /// The group, with all that was ever stated.
    pub fn restore(&self) -> Group {
        let (run, turn) = (self.run.clone(), self.turn.clone());
        let permissions = self.permissions.clone();
        Group::restore(self.head.clone(), self.open(), run, turn, self.kept(), permissions)
    }

    /// The group as a database gives it back, which keeps of a run only its name, and of an
    /// attempt not its requests' ids.
    pub fn restore_forgetful(&self) -> Group {
        let run = self.run.as_ref().map(|run| Run::new(run.id, RunPhase::Stopping));
        let turn = self.turn.clone().map(|mut turn| {
            (turn.prompt_id, turn.opening) = (0, None);
            turn
        });
        let permissions = self.permissions.clone();
        Group::restore(self.head.clone(), self.open(), run, turn, self.kept(), permissions)
    }

    fn open(&self) -> Vec<Task> {
        self.tasks.values().filter(|task| !task.state.is_terminal()).cloned().collect()
    }

    pub fn kept(&self) -> Vec<Compaction> {
        let current =
            self.tasks.values().find(|task| task.claimed_at.is_some() && !task.state.is_terminal());
        let current = current.map(|task| task.id);
        let kept = self.compactions.values().filter(|own| is_kept(own, current));
        kept.map(as_stored).collect()
    }

    fn task(&mut self, id: TaskId) -> &mut Task {
        let task = self.tasks.values_mut().find(|task| task.id == id);
        task.unwrap_or_else(|| panic!("a fact names {id}, which was never queued"))
    }

    /// Takes in one fact.
    pub fn store(&mut self, write: &Write, at: Timestamp) {
        let first_seq = self.head.last_seq + 1;
        self.head.last_seq += write.frames();
        match write {
            Write::GroupCreated(settings) => {
                self.head.settings = settings.clone();
                self.head.created_at = Some(at);
            }
            Write::GroupChanged(settings) => {
                let (old, run) = (&self.head.settings, &mut self.run);
                if (&settings.agent, &settings.cwd) != (&old.agent, &old.cwd) {
                    run.iter_mut().for_each(|run| run.outdated = true);
                }
                self.head.settings = settings.clone();
                self.head.archived = false;
                (self.counted.streak, self.counted.rest) = (0, None);
                self.begins_afresh();
                if settings.on_interrupt == Some(OnInterrupt::Continue) {
                    (self.head.held, self.head.interruptions) = (None, 0);
                }
            }
            Write::GroupArchived {} => {
                self.head.archived = true;
                self.turn.iter_mut().for_each(|turn| turn.past = true);
                self.begins_afresh();
                (self.head.held, self.head.interruptions) = (None, 0);
            }
            Write::PurgeOrdered {} => self.head.purging = true,
            Write::GroupPaused {} => self.head.paused = true,
            Write::GroupResumed {} => {
                self.begins_afresh();
                (self.head.paused, self.head.held, self.head.interruptions) = (false, None, 0);
            }
            Write::GroupHeld { reason } => self.head.held = Some(*reason),
            Write::TaskQueued { kind, origin, record, .. } => {
                self.head.tasks += 1;
                self.tasks.insert(record.ordinal, Task::clone(record));
                if (*kind, *origin) == (TaskKind::Compaction, Origin::Api) {
                    (self.counted.streak, self.counted.rest) = (0, None);
                }
            }
            Write::TaskClaimed { task } => self.task(*task).claimed_at = Some(at),
            Write::TaskReleased { task } => self.task(*task).claimed_at = None,
            Write::TaskStarted { task, attempt, run } => {
                let segment = self.head.segment;
                let task = self.task(*task);
                task.state = TaskState::Running;
                task.claimed_at = task.claimed_at.or(Some(at));
                (task.attempt, task.run) = (*attempt, Some(*run));
                (task.started_at, task.segment) = (Some(at), Some(segment));
                task.seq_first = Some(first_seq);
            }
            Write::TurnStarted { task, prompt: sent, strategy: way } => {
                let task = self.task(*task);
                if let Work::Compaction { prompt, strategy, .. } = &mut task.work {
                    (*prompt, *strategy) = (sent.clone(), way.unwrap_or(*strategy));
                }
            }
            Write::PromptSent { id, .. } => {
                self.head.unspoken = false;
                self.run.iter_mut().for_each(|run| run.fresh = false);
                let run = self.run.as_ref().map(|run| run.id);
                (self.turn, self.heard) = (run.map(|run| Turn::new(run, *id)), false);
            }
            Write::SummaryGiven { .. } => {
                self.turn.iter_mut().for_each(|turn| turn.opening = Some(first_seq));
            }
            Write::Said(said) => {
                if let Some(usage) = &said.fold.usage {
                    (self.head.usage, self.counted.measured) = (Some(usage.clone()), true);
                }
                if let (Some(_), Some(turn)) = (said.task, &mut self.turn) {
                    turn.hear(&said.fold);
                    self.heard |= said.fold.output;
                }
            }
            Write::RequestRefused { run, .. } => {
                if let Some(turn) = self.turn.as_mut().filter(|turn| turn.run == *run) {
                    turn.hear(&Fold { output: true, ..Fold::default() });
                    self.heard = true;
                }
            }
            Write::CancelRequested { task } => {
                self.task(*task).cancel_requested = true;
                self.cut(CutBy::Caller);
            }
            Write::CancelSent { .. } => {
                self.run.iter_mut().for_each(|run| run.cancelled = true);
            }
            Write::TurnCut { cause, .. } => self.cut(match cause {
                Cause::Deadline => CutBy::Deadline,
                _ => CutBy::Shutdown,
            }),
            Write::TurnSettled { task, stop_reason, .. } => {
                self.measure();
                let own_end = matches!(
                    stop_reason,
                    StopReason::ProcessExited
                        | StopReason::ServerRestart
                        | StopReason::Deadline
                        | StopReason::Protocol
                        | StopReason::Storage
                );
                if !own_end {
                    self.run.iter_mut().for_each(|run| run.settled = true);
                    self.begins_afresh();
                }
                // A prompt that was not heard carried nothing over.
                if self.task(*task).kind() == TaskKind::Turn && self.heard {
                    self.head.lead_in = None;
                }
                let borne = !matches!(stop_reason, StopReason::Error | StopReason::Cancelled);
                if borne && self.turn.as_ref().is_some_and(|turn| turn.cut.is_none()) {
                    self.run.iter_mut().for_each(|run| run.cancelled = false);
                }
            }
            Write::TaskRetrying { task, attempt, due, .. } => {
                let task = self.task(*task);
                (task.state, task.attempt) = (TaskState::Retrying, *attempt);
                (task.claimed_at, task.retry_at) = (None, Some(*due));
                self.turn = None;
            }
            Write::BackoffEnded { task } => self.task(*task).retry_at = None,
            Write::TaskEnded { task, record, .. } => {
                if self.task(*task).state == TaskState::Running {
                    self.turn = None;
                }
                if record.state == TaskState::Interrupted {
                    self.head.interruptions += 1;
                } else if record.ending.stop_reason.is_some() && record.kind() == TaskKind::Turn {
                    self.head.interruptions = 0;
                }
                *self.task(*task) = Task::clone(record);
            }
            Write::RunStarted { run, listens, .. } => {
                let run = Run::new(*run, RunPhase::Starting);
                self.run = Some(Run { listens: *listens, ..run });
            }
            Write::RunReady { session, provenance, continuity, .. } => {
                let opened = !matches!(continuity, Continuity::Resumed | Continuity::Loaded);
                self.run.iter_mut().for_each(|run| run.fresh = opened);
                self.head.session = Some(session.clone());
                self.head.provenance = provenance.clone().or(self.head.provenance.take());
                self.phase(RunPhase::Ready);
            }
            Write::RunStopping { .. } => self.phase(RunPhase::Stopping),
            Write::RunExited { exit, .. } => {
                let own_end = matches!(
                    exit.reason,
                    ExitReason::StartFailed | ExitReason::Exited | ExitReason::Protocol
                );
                let settled = self.run.take().is_some_and(|run| run.settled);
                self.head.crashes += u32::from(own_end && !settled);
            }
            Write::AgentDegraded { due, .. } => self.head.launch_due = Some(*due),
            Write::LaunchAllowed {} => self.head.launch_due = None,
            Write::PermissionOpened(own) => self.permissions.push(Permission::clone(own)),
            Write::PermissionResolved { permission, .. } => {
                self.permissions.retain(|own| own.permission != *permission);
            }
            Write::SegmentStarted { segment, session, provenance, .. } => {
                let stays = self.head.session.as_ref() == Some(session);
                self.head.usage = self.head.usage.take().filter(|_| stays);
                self.head.unspoken |= !stays;
                self.run.iter_mut().for_each(|run| run.fresh &= stays);
                self.head.segment = *segment;
                self.head.session = Some(session.clone());
                self.head.provenance = provenance.clone();
            }
            Write::ProvenanceNoted { provenance } => {
                self.head.provenance = Some(provenance.clone());
            }
            Write::ContextLost { .. } => {
                (self.head.session, self.head.usage, self.head.provenance) = (None, None, None);
            }
            Write::CompactionStarted(compaction)
            | Write::CompactionUpdated(compaction)
            | Write::CompactionEnded(compaction) => self.compacted(compaction, at),
            Write::CompactionRests { due } => {
                assert_eq!(due.ms, REST_MS, "HL-14");
                self.counted.rest = Some(*due);
            }
            Write::AgentWedged { .. } => {
                self.heard = false;
                self.run.iter_mut().for_each(|run| run.wedged = true);
            }
            Write::AgentOutputRejected { .. }
            | Write::SegmentEnded { .. }
            | Write::LockAsked { .. }
            | Write::LockRefused { .. }
            | Write::LockTaken { .. }
            | Write::LockBypassed { .. }
            | Write::LockLost { .. }
            | Write::LockReleased { .. }
            | Write::StderrMatched { .. } => {}
        }
        self.head.compacting = written(&self.counted);
    }

    /// Somebody acted, or the agent showed that it works: no launch waits any more.
    fn begins_afresh(&mut self) {
        (self.head.crashes, self.head.launch_due) = (0, None);
    }

    fn compacted(&mut self, compaction: &Compaction, at: Timestamp) {
        let before = self.compactions.insert(compaction.id, compaction.clone());
        if let Some(run) = &mut self.run {
            run.shows_acp |= compaction.sources.contains(&Source::Acp);
            if compaction.leads {
                run.left = self.head.session.clone();
            }
        }
        if before.is_some_and(|before| before.status == compaction.status) {
            return;
        }
        let ordered = compaction.source == Source::Task;
        let counted = &mut self.counted;
        match compaction.status {
            CompactionStatus::InProgress => {
                (counted.last_source, counted.last_started_at) =
                    (Some(compaction.source), Some(at));
            }
            CompactionStatus::Completed => {
                let used = self.head.usage.as_ref().map(|usage| usage.used);
                *counted = Counted {
                    count: counted.count + 1,
                    last_source: Some(compaction.source),
                    last_completed_at: Some(at),
                    measured: false,
                    before: compaction.details.tokens_before.or(used),
                    rest: None,
                    ..counted.clone()
                };
                if let Some(after) = compaction.details.tokens_after {
                    self.weigh(after);
                }
                if compaction.leads {
                    self.head.lead_in = compaction.details.summary.clone();
                }
            }
            CompactionStatus::Noop if ordered => counted.streak = counted.streak.saturating_add(1),
            _ => {}
        }
    }

    /// I12: a compaction helped if at least a tenth was freed, as the usage tells that was reported
    /// since.
    fn measure(&mut self) {
        let used = self.head.usage.as_ref().map(|usage| usage.used);
        if let (true, Some(used)) = (self.counted.measured, used) {
            self.weigh(used);
        }
    }

    fn weigh(&mut self, used: u64) {
        if let Some(before) = self.counted.before.take() {
            let helped = u128::from(before.saturating_sub(used)) * 10 >= u128::from(before);
            self.counted.streak = if helped { 0 } else { self.counted.streak.saturating_add(1) };
        }
    }

    fn cut(&mut self, by: CutBy) {
        if let Some(turn) = &mut self.turn {
            turn.cut = turn.cut.or(Some(by));
        }
    }

    fn phase(&mut self, phase: RunPhase) {
        self.run.iter_mut().for_each(|run| run.phase = phase);
    }
}

/// Whether a restored group is given this compaction: the active one, and what the current task
/// was seen to complete.
pub fn is_kept(compaction: &Compaction, current: Option<TaskId>) -> bool {
    let completed = compaction.status == CompactionStatus::Completed;
    compaction.is_active() || (completed && current.is_some() && compaction.task == current)
}

/// A compaction as its row gives it back.
pub fn as_stored(compaction: &Compaction) -> Compaction {
    let mut stored: Compaction = written(compaction);
    (stored.started_at, stored.ended_at) = (compaction.started_at, compaction.ended_at);
    stored
}

fn written<T: for<'a> Deserialize<'a>>(value: &impl Serialize) -> T {
    let text = serde_json::to_string(value).and_then(|text| serde_json::from_str(&text));
    text.unwrap_or_else(|err| unreachable!("rows are written and read back: {err}"))
}
