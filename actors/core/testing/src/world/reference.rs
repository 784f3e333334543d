//! A model of a group's database rows: a projection of the facts by other code than the rules' own.

use std::collections::BTreeMap;

use greenroom_core::{
    Attempt, CancelReason, Cause, Compaction, CompactionId, CompactionStatus, Continuity,
    CrashLoop, Deadline, Existence, ExitReason, Fact, Group, GroupState, Hold, Now, OnInterrupt,
    Origin, OutputSummary, Permission, Retry, Run, RunHealth, RunPhase, RunProgress, Session,
    Settings, Source, Stage, Start, StopReason, Task, TaskId, TaskKind, TaskState, Timestamp, Work,
};
use serde::{Deserialize, Serialize};

use super::attempts::left_ms;

/// How long the group orders no compaction by itself after an uncompleted one.
const REST_MS: u64 = 600_000;

/// The rows of one group.
pub struct ReferenceModel {
    state: GroupState,
    counted: Counted,
    /// All accepted tasks, by ordinal.
    tasks: BTreeMap<u64, Task>,
    /// All compactions.
    compactions: BTreeMap<CompactionId, Compaction>,
    run: Option<Run>,
    /// The running attempt; a database restores it from the frames.
    attempt: Option<Attempt>,
    /// Whether that attempt had output.
    had_output: bool,
    /// The open permissions, in order.
    permissions: Vec<Permission>,
}

/// [`greenroom_core::CompactionHistory`] as it is written down.
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
    rest: Option<Deadline>,
}

impl ReferenceModel {
    /// Returns a group without facts, with these default settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            state: GroupState::new(settings),
            counted: Counted::default(),
            tasks: BTreeMap::new(),
            compactions: BTreeMap::new(),
            run: None,
            attempt: None,
            had_output: false,
            permissions: Vec::new(),
        }
    }

    /// The open permissions, in order.
    pub fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    /// Returns the state beside tasks and run.
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// Returns all accepted tasks, in order of acceptance.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// All compactions.
    pub fn compactions(&self) -> impl Iterator<Item = &Compaction> {
        self.compactions.values()
    }

    /// Returns the live run.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// Returns the running attempt.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    /// I12, HL-14: whether the group may order a compaction by itself.
    pub fn may_compact(&self, now: Now) -> bool {
        let Counted { measured, streak, rest, .. } = self.counted;
        measured && streak < 2 && rest.is_none_or(|rest| left_ms(rest, now) == 0)
    }

    /// Returns the group, restored from all facts.
    pub fn restore(&self) -> Group {
        let (run, attempt) = (self.run.clone(), self.attempt.clone());
        let permissions = self.permissions.clone();
        let compactions = self.restorable_compactions();
        Group::restore(self.state.clone(), self.open(), run, attempt, compactions, permissions)
    }

    /// Returns the group as a database restores it: of a run only its id, of an attempt not the ids
    /// of its requests.
    pub fn restore_forgetful(&self) -> Group {
        let run = self.run.as_ref().map(|run| Run::new(run.id, RunPhase::Stopping));
        let attempt = self.attempt.clone().map(|mut attempt| {
            (attempt.prompt_id, attempt.opening) = (0, None);
            attempt
        });
        let permissions = self.permissions.clone();
        let compactions = self.restorable_compactions();
        Group::restore(self.state.clone(), self.open(), run, attempt, compactions, permissions)
    }

    fn open(&self) -> Vec<Task> {
        self.tasks.values().filter(|task| !task.state().is_terminal()).cloned().collect()
    }

    pub fn restorable_compactions(&self) -> Vec<Compaction> {
        let current = self.tasks.values().find(|task| task.has_slot());
        let current = current.map(|task| task.id);
        let kept = self.compactions.values().filter(|known| is_kept(known, current));
        kept.map(as_stored).collect()
    }

    fn task(&mut self, id: TaskId) -> &mut Task {
        let task = self.tasks.values_mut().find(|task| task.id == id);
        task.unwrap_or_else(|| panic!("a fact names {id}, which was never queued"))
    }

    /// Applies one fact.
    pub fn store(&mut self, fact: &Fact, at: Timestamp) {
        let first_seq = self.state.last_seq + 1;
        self.state.last_seq += fact.frames();
        match fact {
            Fact::GroupCreated(settings) => {
                self.state.settings = settings.clone();
                self.state.created_at = Some(at);
            }
            Fact::GroupChanged(settings) => {
                let (old, run) = (&self.state.settings, &mut self.run);
                if (&settings.agent, &settings.cwd) != (&old.agent, &old.cwd) {
                    run.iter_mut().for_each(|run| run.outdated = true);
                }
                self.state.settings = settings.clone();
                self.state.existence = Existence::Live;
                (self.counted.streak, self.counted.rest) = (0, None);
                self.clear_launch_backoff();
                if settings.on_interrupt == Some(OnInterrupt::Continue) {
                    self.state.hold = Hold { reason: None, interruptions: 0 };
                }
            }
            Fact::GroupArchived {} => {
                self.state.existence = Existence::Archived;
                self.attempt.iter_mut().for_each(|attempt| attempt.is_archived = true);
                self.clear_launch_backoff();
                self.state.hold = Hold { reason: None, interruptions: 0 };
            }
            Fact::PurgeOrdered {} => self.state.existence = Existence::Purging,
            Fact::GroupPaused {} => self.state.paused = true,
            Fact::GroupResumed {} => {
                self.clear_launch_backoff();
                self.state.paused = false;
                self.state.hold = Hold { reason: None, interruptions: 0 };
            }
            Fact::GroupHeld { reason } => self.state.hold.reason = Some(*reason),
            Fact::TaskQueued { kind, origin, record, .. } => {
                self.state.tasks += 1;
                self.tasks.insert(record.ordinal, Task::clone(record));
                if (*kind, *origin) == (TaskKind::Compaction, Origin::Api) {
                    (self.counted.streak, self.counted.rest) = (0, None);
                }
            }
            Fact::TaskClaimed { task } => {
                let task = self.task(*task);
                task.stage = Stage::Claimed { at, retry: retry(task) };
            }
            Fact::TaskReleased { task } => {
                let task = self.task(*task);
                task.stage = match retry(task) {
                    None => Stage::Queued,
                    Some(retry) => Stage::Retrying { retry, due: None },
                };
            }
            Fact::TaskStarted { task, attempt, run } => {
                let segment = self.state.segment;
                let task = self.task(*task);
                let claimed_at = task.stage.claimed_at().unwrap_or(at);
                let start = Start { at, run: *run, segment, seq: first_seq };
                task.attempt = *attempt;
                task.stage = Stage::Running { claimed_at, start };
            }
            Fact::TurnStarted { task, prompt: sent, strategy: way } => {
                let task = self.task(*task);
                if let Work::Compaction { prompt, strategy, .. } = &mut task.work {
                    (*prompt, *strategy) = (sent.clone(), way.unwrap_or(*strategy));
                }
            }
            Fact::PromptSent { .. } => {
                self.session(|session| session.is_fresh = false);
                self.not_fresh();
                let run = self.run.as_ref().map(|run| run.id);
                (self.attempt, self.had_output) =
                    (run.map(|run| Attempt::new(run, first_seq)), false);
            }
            Fact::SummaryGiven { .. } => {
                self.attempt.iter_mut().for_each(|attempt| attempt.opening = Some(first_seq));
            }
            Fact::AgentOutput(output) => {
                if let Some(usage) = &output.summary.usage {
                    self.counted.measured = true;
                    self.session(|session| session.usage = Some(usage.clone()));
                }
                if let Some(attempt) = &mut self.attempt {
                    attempt.add_output(&output.summary);
                    self.had_output |= output.summary.has_output;
                }
            }
            Fact::RequestRefused { run, .. } => {
                if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.run == *run) {
                    attempt.add_output(&OutputSummary {
                        has_output: true,
                        ..OutputSummary::default()
                    });
                    self.had_output = true;
                }
            }
            Fact::CancelRequested { task } => {
                self.task(*task).cancel_requested = true;
                self.cancel(CancelReason::Caller);
            }
            Fact::CancelSent { .. } => {
                let run = self.run.iter_mut().filter(|run| run.health == RunHealth::Sound);
                run.for_each(|run| run.health = RunHealth::Cancelled);
            }
            Fact::TurnCut { cause, .. } => self.cancel(match cause {
                Cause::Deadline => CancelReason::Deadline,
                _ => CancelReason::Shutdown,
            }),
            Fact::TurnSettled { task, stop_reason, .. } => {
                self.measure();
                let without_answer = matches!(
                    stop_reason,
                    StopReason::ProcessExited
                        | StopReason::ServerRestart
                        | StopReason::Deadline
                        | StopReason::Protocol
                        | StopReason::Storage
                );
                if !without_answer {
                    self.run.iter_mut().for_each(|run| run.progress = RunProgress::Settled);
                    self.clear_launch_backoff();
                }
                // An unanswered prompt carried no summary over.
                if self.task(*task).kind() == TaskKind::Turn && self.had_output {
                    self.state.pending_summary = None;
                }
                let survived = !matches!(stop_reason, StopReason::Error | StopReason::Cancelled);
                if survived
                    && self.attempt.as_ref().is_some_and(|attempt| attempt.cancel_reason.is_none())
                {
                    let run = self.run.iter_mut().filter(|run| run.health != RunHealth::Wedged);
                    run.for_each(|run| run.health = RunHealth::Sound);
                }
            }
            Fact::TaskRetrying { task, attempt, due, .. } => {
                let task = self.task(*task);
                let retry = Retry { start: task.start() };
                task.attempt = *attempt;
                task.stage = Stage::Retrying { retry, due: Some(*due) };
                self.attempt = None;
            }
            Fact::BackoffEnded { task } => {
                let task = self.task(*task);
                let retry = retry(task).unwrap_or_else(|| panic!("{} has no backoff", task.id));
                task.stage = Stage::Retrying { retry, due: None };
            }
            Fact::TaskEnded { task, record, .. } => {
                if self.task(*task).state() == TaskState::Running {
                    self.attempt = None;
                }
                if record.state() == TaskState::Interrupted {
                    self.state.hold.interruptions += 1;
                } else if record.ending().stop_reason.is_some() && record.kind() == TaskKind::Turn {
                    self.state.hold.interruptions = 0;
                }
                *self.task(*task) = Task::clone(record);
            }
            Fact::RunStarted { run, has_detectors, .. } => {
                let run = Run::new(*run, RunPhase::Starting);
                self.run = Some(Run { has_detectors: *has_detectors, ..run });
            }
            Fact::RunReady { session, provenance, continuity, .. } => {
                if !matches!(continuity, Continuity::Resumed | Continuity::Loaded) {
                    self.run.iter_mut().for_each(|run| run.progress = RunProgress::Fresh);
                }
                self.session(|known| {
                    known.id = session.clone();
                    known.provenance = provenance.clone().or(known.provenance.take());
                });
                self.phase(RunPhase::Ready);
            }
            Fact::RunStopping { .. } => self.phase(RunPhase::Stopping),
            Fact::RunExited { exit, .. } => {
                let by_itself = matches!(
                    exit.reason,
                    ExitReason::StartFailed | ExitReason::Exited | ExitReason::Protocol
                );
                let settled =
                    self.run.take().is_some_and(|run| run.progress == RunProgress::Settled);
                self.state.crash_loop.crashes += u32::from(by_itself && !settled);
            }
            Fact::AgentDegraded { due, .. } => self.state.crash_loop.launch_due = Some(*due),
            Fact::LaunchAllowed {} => self.state.crash_loop.launch_due = None,
            Fact::PermissionOpened(opened) => self.permissions.push(Permission::clone(opened)),
            Fact::PermissionResolved { permission, .. } => {
                self.permissions.retain(|open| open.permission != *permission);
            }
            Fact::SegmentStarted { segment, session, provenance, .. } => {
                let known = self.state.session.take().filter(|known| known.id == *session);
                if known.is_none() {
                    self.not_fresh();
                }
                self.state.segment = *segment;
                self.state.session = Some(Session {
                    id: session.clone(),
                    is_fresh: known.as_ref().is_none_or(|known| known.is_fresh),
                    usage: known.and_then(|known| known.usage),
                    provenance: provenance.clone(),
                });
            }
            Fact::ProvenanceNoted { provenance } => {
                self.session(|session| session.provenance = Some(provenance.clone()));
            }
            Fact::ContextLost { .. } => self.state.session = None,
            Fact::CompactionStarted(compaction)
            | Fact::CompactionUpdated(compaction)
            | Fact::CompactionEnded(compaction) => self.compacted(compaction, at),
            Fact::CompactionRests { due } => {
                assert_eq!(due.ms, REST_MS, "HL-14");
                self.counted.rest = Some(*due);
            }
            Fact::AgentWedged { .. } => {
                self.had_output = false;
                self.run.iter_mut().for_each(|run| run.health = RunHealth::Wedged);
            }
            Fact::AgentOutputRejected { .. }
            | Fact::SegmentEnded { .. }
            | Fact::LockAsked { .. }
            | Fact::LockRefused { .. }
            | Fact::LockTaken { .. }
            | Fact::LockBypassed { .. }
            | Fact::LockLost { .. }
            | Fact::LockReleased { .. }
            | Fact::StderrMatched { .. } => {}
        }
        self.state.compacting = written(&self.counted);
    }

    /// A caller acted, or the agent works: the next launch waits no longer.
    fn clear_launch_backoff(&mut self) {
        self.state.crash_loop = CrashLoop { crashes: 0, launch_due: None };
    }

    fn compacted(&mut self, compaction: &Compaction, at: Timestamp) {
        let before = self.compactions.insert(compaction.id, compaction.clone());
        if let Some(run) = &mut self.run {
            run.reports_by_acp |= compaction.sources.contains(&Source::Acp);
            if compaction.carries_summary {
                run.left_session = self.state.session_id().cloned();
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
                let used = self.state.usage().map(|usage| usage.used);
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
                    self.judge(after);
                }
                if compaction.carries_summary {
                    self.state.pending_summary = compaction.details.summary.clone();
                }
            }
            CompactionStatus::Noop if ordered => counted.streak = counted.streak.saturating_add(1),
            _ => {}
        }
    }

    /// I12: a compaction was effective if it freed at least a tenth, by the usage reported since.
    fn measure(&mut self) {
        let used = self.state.usage().map(|usage| usage.used);
        if let (true, Some(used)) = (self.counted.measured, used) {
            self.judge(used);
        }
    }

    fn judge(&mut self, used: u64) {
        if let Some(before) = self.counted.before.take() {
            let helped = u128::from(before.saturating_sub(used)) * 10 >= u128::from(before);
            self.counted.streak = if helped { 0 } else { self.counted.streak.saturating_add(1) };
        }
    }

    /// The run got a prompt, or has another session than the new one that it opened.
    fn not_fresh(&mut self) {
        let fresh = self.run.iter_mut().filter(|run| run.progress == RunProgress::Fresh);
        fresh.for_each(|run| run.progress = RunProgress::Unsettled);
    }

    /// Changes the session in force, if there is one.
    fn session(&mut self, change: impl FnOnce(&mut Session)) {
        self.state.session.as_mut().map(change);
    }

    fn cancel(&mut self, by: CancelReason) {
        if let Some(attempt) = &mut self.attempt {
            attempt.cancel_reason = attempt.cancel_reason.or(Some(by));
        }
    }

    fn phase(&mut self, phase: RunPhase) {
        self.run.iter_mut().for_each(|run| run.phase = phase);
    }
}

/// Whether a restored group gets this compaction: the active one, and those that the current task
/// completed.
pub fn is_kept(compaction: &Compaction, current: Option<TaskId>) -> bool {
    let completed = compaction.status == CompactionStatus::Completed;
    compaction.is_active() || (completed && current.is_some() && compaction.task == current)
}

/// Returns a compaction as its row restores it.
pub fn as_stored(compaction: &Compaction) -> Compaction {
    let mut stored: Compaction = written(compaction);
    (stored.started_at, stored.ended_at) = (compaction.started_at, compaction.ended_at);
    stored
}

/// What is left of the attempts before: a task that had one is retried.
fn retry(task: &Task) -> Option<Retry> {
    (task.attempt > 0).then(|| Retry { start: task.start() })
}

fn written<T: for<'a> Deserialize<'a>>(value: &impl Serialize) -> T {
    let text = serde_json::to_string(value).and_then(|text| serde_json::from_str(&text));
    text.unwrap_or_else(|err| unreachable!("rows are written and read back: {err}"))
}
