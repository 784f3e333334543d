//! The projection of facts onto digests: which fact adds what to which digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Bounded, Compactions, Context, CountedCompaction, Digest, ErrorClass, Finding, FindingKind,
    Findings, Histogram, Outcome, Permissions, SCHEMA_VERSION, count::truncate_name, is_default,
    keep_newest,
};
use crate::{
    Compaction, CompactionStatus, Cost, Exit, Fact, GroupState, OutputSummary, PermissionState,
    Recorded, RunId, SessionId, StopReason, TaskId, TaskKind, Timestamp, TokensSpent, ToolProgress,
    ToolUpdate, Usage, UsageAfter, compaction::RECENT_MAX,
};

/// How many open tool calls are remembered, and how long their ids may be (I11).
const OPEN_TOOLS_MAX: usize = 64;
const TOOL_ID_BYTES_MAX: usize = 128;
/// How many currencies of a session are counted; costs in further ones are not.
const CURRENCIES_MAX: usize = 8;
/// The most tokens of a compaction that are counted: agents report any number, and a sum of these
/// fits.
const TOKENS_MAX: u64 = 1 << 40;
/// The most bytes of an abnormal stop's explanation.
const DETAIL_BYTES_MAX: usize = 200;

/// The digests of a group: its own, that of its last run, and the state that later facts need.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digests {
    /// The group's.
    pub group: Digest,
    /// That of its last run, which may have ended: late frames still belong to it (TD-7).
    pub run: Option<RunDigest>,
    /// What has begun and not ended (TD-5).
    #[serde(rename = "carry")]
    pub open: OpenState,
}

/// A run's digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDigest {
    /// The version of its stored form.
    pub schema_version: u32,
    /// The run.
    pub run: RunId,
    /// The launch profile.
    pub agent: String,
    /// Its summary so far; sealed once it has an outcome.
    pub digest: Digest,
}

/// What has begun and not ended, as far as later facts need it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenState {
    #[serde(skip_serializing_if = "Option::is_none")]
    turn: Option<OpenTurn>,
    /// The compaction task that waits or runs; all other tasks are turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    compaction: Option<TaskId>,
    #[serde(skip_serializing_if = "is_default")]
    archived: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    /// The session's last reported costs by currency: they are counters.
    #[serde(skip_serializing_if = "is_default")]
    counters: BTreeMap<String, u64>,
    /// Tool calls without a result, and their tools.
    #[serde(skip_serializing_if = "is_default")]
    open_tools: BTreeMap<String, String>,
    /// The compactions that ended in this run: later facts may be about them.
    #[serde(rename = "told", skip_serializing_if = "is_default")]
    counted: Vec<CountedCompaction>,
}

/// A started task, over all its attempts to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OpenTurn {
    task: TaskId,
    kind: TaskKind,
    digest: Digest,
    /// When its last attempt began.
    begun_at: Timestamp,
    /// How long that attempt took, once it is settled.
    took_ms: Option<u64>,
    /// Whether an attempt of it runs: facts that name no task then belong to it.
    runs: bool,
}

/// What a fact sealed. Only late frames still change its digest.
#[derive(Clone, Debug, PartialEq)]
pub enum Sealed {
    /// A run that ended, or got a late frame.
    Run(Box<RunDigest>),
    /// A started task that ended.
    Turn(TaskId, Box<Digest>),
}

impl Digests {
    /// Applies a fact that was stored at `at`. Call it exactly once for each fact, in the order of
    /// the log (TD-4). Returns what the fact sealed.
    pub fn apply(&mut self, recorded: &Recorded, at: Timestamp) -> Option<Sealed> {
        let Recorded { place, fact } = recorded;
        let frames = fact.frames();
        if frames == 0 {
            return None;
        }
        if let Fact::RunStarted { run, agent, .. } = fact {
            let (agent, digest) = (agent.clone(), Digest::default());
            self.run = Some(RunDigest { schema_version: SCHEMA_VERSION, run: *run, agent, digest });
        }
        let owner = run_of(recorded);
        let is_sealed = self.run.as_ref().is_some_and(|run| run.digest.outcome().is_some());
        let is_other = |run: &RunDigest| owner.is_some_and(|owner| owner != run.run);
        // Sealing twice changes nothing, and a late frame changes no outcome (TD-3, TD-7).
        let is_late = owner.is_some() && (is_sealed || self.run.as_ref().is_some_and(is_other));
        let mut deltas = match fact {
            Fact::AgentOutput(output) => self.open.output_deltas(&output.summary, is_late),
            Fact::RunReady { .. } | Fact::RunExited { .. } if is_late => vec![Digest::default()],
            fact => vec![self.open.delta(fact, place.seq, at, self.run.as_ref())],
        };
        if let Some(delta) = deltas.last_mut() {
            delta.watermark_seq = recorded.last_seq();
            delta.frame_count = frames;
            (delta.first_at, delta.last_at) = (Some(at), Some(at));
        }
        self.group.merge_all(&deltas);
        if self.open.archived && matches!(fact, Fact::RunExited { .. }) {
            self.group.outcome = Some(Some(Outcome::Deleted));
        }
        let turn = self.open.add_to_turn(recorded, &deltas);
        let is_owner = |run: &&mut RunDigest| owner.map_or(!is_sealed, |owner| owner == run.run);
        let run = self.run.as_mut().filter(is_owner).and_then(|run| {
            run.digest.merge_all(&deltas);
            run.digest.outcome().map(|_| Sealed::Run(Box::new(run.clone())))
        });
        turn.or(run)
    }

    /// Begins after a truncated stretch of the log whose digests are lost. Only what was alive at
    /// its end is known: a run and its profile, and a waiting compaction task.
    pub fn after_truncation(
        state: &GroupState,
        run: Option<(RunId, &str)>,
        compaction: Option<TaskId>,
    ) -> Self {
        let digest = Digest { watermark_seq: state.last_seq, ..Digest::default() };
        let outcome = match run {
            Some(_) => Some(None),
            None => state.is_archived().then_some(Some(Outcome::Deleted)),
        };
        let run = run.map(|(run, agent)| {
            let (agent, digest) = (agent.to_owned(), digest.clone());
            RunDigest { schema_version: SCHEMA_VERSION, run, agent, digest }
        });
        let (archived, session) = (state.is_archived(), state.session_id().cloned());
        let open = OpenState { compaction, archived, session, ..OpenState::default() };
        Self { group: Digest { outcome, ..digest }, run, open }
    }

    /// Returns the digest of the last run, if that is alive.
    pub fn live_run(&self) -> Option<&RunDigest> {
        self.run.as_ref().filter(|run| run.digest.outcome().is_none())
    }
}

/// Returns the run that wrote the output, or that the fact itself names.
fn run_of(Recorded { place, fact }: &Recorded) -> Option<RunId> {
    match fact {
        // Output outside of a run is late, like that of another run.
        Fact::AgentOutput(_) => Some(place.run.unwrap_or(RunId(Uuid::nil()))),
        Fact::AgentOutputRejected { run, .. }
        | Fact::RequestRefused { run, .. }
        | Fact::RunStarted { run, .. }
        | Fact::RunReady { run, .. }
        | Fact::RunExited { run, .. }
        | Fact::AgentWedged { run, .. }
        | Fact::StderrMatched { run, .. } => Some(*run),
        _ => None,
    }
}

impl OpenState {
    /// Returns what the fact adds, without its frames.
    fn delta(&mut self, fact: &Fact, seq: u64, at: Timestamp, run: Option<&RunDigest>) -> Digest {
        let mut delta = Digest::default();
        match fact {
            Fact::TaskQueued { task, kind: TaskKind::Compaction, .. } => {
                self.compaction = Some(*task);
            }
            Fact::TaskStarted { task, .. } => self.open_turn(*task, at),
            Fact::TurnSettled { task, stop_reason, tokens, .. } => {
                delta.add_tokens(tokens.as_deref());
                if let Some(turn) = self.turn.as_mut().filter(|turn| turn.task == *task) {
                    let took_ms = at.0.saturating_sub(turn.begun_at.0);
                    turn.took_ms = Some(u64::try_from(took_ms).unwrap_or_default());
                }
                // A turn that reached its deadline is cancelled, and its stop reason shows that.
                if !stop_reason.is_answer() && *stop_reason != StopReason::Deadline {
                    delta.add_finding(seq, FindingKind::IncompleteTurn { task: *task });
                }
            }
            Fact::SummaryGiven { tokens, .. } => delta.add_tokens(tokens.as_deref()),
            Fact::TaskRetrying { error, .. } => delta.add_error(&error.code, seq),
            Fact::TaskEnded { task, stop_reason, error, findings, .. } => {
                self.end_turn(*task, *stop_reason, &mut delta);
                error.iter().for_each(|error| delta.add_error(&error.code, seq));
                if findings.has_empty_answer {
                    delta.add_finding(seq, FindingKind::EmptyAnswer { task: *task });
                }
                if findings.is_answered_by_compaction {
                    delta.add_finding(seq, FindingKind::AnsweredByCompaction { task: *task });
                }
            }
            Fact::AgentOutputRejected { .. } => delta.add_error("agent_output_rejected", seq),
            Fact::RequestRefused { .. } => delta.add_error("request_refused", seq),
            Fact::AgentWedged { .. } => delta.add_error("agent_wedged", seq),
            Fact::LockBypassed { .. } => delta.add_error("lock_bypassed", seq),
            Fact::LockLost { .. } => delta.add_error("lock_lost", seq),
            Fact::ContextLost { .. } => {
                delta.add_error("context_lost", seq);
                delta.context = Some(None);
                self.set_session(None);
            }
            Fact::PermissionOpened(_) => delta.permissions.asked = 1,
            Fact::PermissionResolved { permission, state, .. } => {
                delta.permissions = permission_counts(*state);
                if *state == PermissionState::Void {
                    let permission = *permission;
                    delta.add_finding(seq, FindingKind::UnansweredPermission { permission });
                }
            }
            Fact::CompactionUpdated(compaction) => {
                self.count_compaction(compaction, false, &mut delta);
            }
            Fact::CompactionEnded(compaction) => {
                self.count_compaction(compaction, true, &mut delta);
                delta.context = compaction.usage_after.as_ref().map(|after| match after {
                    UsageAfter::Known(Usage { used, size, .. }) => {
                        Some(Context { used: *used, size: *size })
                    }
                    UsageAfter::Unknown => None,
                });
            }
            Fact::RunStarted { .. } => delta.outcome = Some(None),
            // A lost or replaced context has its own fact: here the context is the same, also
            // under another id.
            Fact::RunReady { session, .. } => self.session = Some(session.clone()),
            Fact::SegmentStarted { session, .. } => {
                if self.session.as_ref() != Some(session) {
                    delta.context = Some(None);
                }
                self.set_session(Some(session));
            }
            Fact::RunExited { exit, .. } => self.seal(exit, seq, &mut delta),
            Fact::GroupArchived {} => {
                self.archived = true;
                let lives = run.is_some_and(|run| run.digest.outcome().is_none());
                delta.outcome = (!lives).then_some(Some(Outcome::Deleted));
            }
            Fact::GroupChanged(_) if self.archived => {
                self.archived = false;
                delta.outcome = Some(None);
            }
            _ => {}
        }
        delta
    }

    /// Returns what output adds, one digest a report: so the first names are kept if there are too
    /// many, in any batches of lines (TD-5).
    fn output_deltas(&mut self, summary: &OutputSummary, is_late: bool) -> Vec<Digest> {
        let costs: Vec<_> = summary.costs.iter().filter_map(|cost| self.cost(cost)).collect();
        let tools = summary.tools.iter().map(|update| {
            let mut delta = Digest::default();
            // Calls of a late run must not be confused with the present run's.
            let kept = is_late.then(|| std::mem::take(&mut self.open_tools));
            self.tool(update, &mut delta);
            if let Some(kept) = kept {
                self.open_tools = kept;
            }
            delta
        });
        let mut deltas: Vec<_> = costs.into_iter().chain(tools).collect();
        let context =
            summary.usage.as_ref().map(|usage| Context { used: usage.used, size: usage.size });
        if deltas.is_empty() {
            deltas.push(Digest::default());
        }
        if let Some(delta) = deltas.last_mut() {
            delta.context = context.map(Some);
        }
        deltas
    }

    /// Returns the cost since the session's last report.
    fn cost(&mut self, Cost { currency, billionths }: &Cost) -> Option<Digest> {
        let currency = truncate_name(currency);
        let before = self.counters.get(currency).copied();
        if before.is_none() && self.counters.len() == CURRENCIES_MAX {
            return None;
        }
        self.counters.insert(currency.to_owned(), *billionths);
        // A counter that falls was reset, for example by another process.
        let more = billionths.checked_sub(before.unwrap_or_default()).unwrap_or(*billionths);
        Some(Digest { costs: Bounded::one(currency, more), ..Digest::default() })
    }

    /// Counts a tool call when it begins, and its failure when it ends.
    fn tool(&mut self, ToolUpdate { call, step }: &ToolUpdate, delta: &mut Digest) {
        let mut known = None;
        let ended = match step {
            ToolProgress::Called { tool, ended } => {
                let opened = self.open_tools.get(call);
                let tool = opened.map_or(truncate_name(tool), String::as_str);
                if opened.is_none() {
                    delta.tools.slot(tool).calls += 1;
                }
                known = Some(tool.to_owned());
                *ended
            }
            ToolProgress::Ended(result) => Some(*result),
        };
        let Some(result) = ended else {
            let has_room = self.open_tools.len() < OPEN_TOOLS_MAX;
            if let Some(tool) = known.filter(|_| has_room && call.len() <= TOOL_ID_BYTES_MAX) {
                self.open_tools.insert(call.clone(), tool);
            }
            return;
        };
        let tool = self.open_tools.remove(call).or(known);
        if let Some(tool) = tool.filter(|_| result.is_failure()) {
            delta.tools.slot(&tool).failed += 1;
        }
    }

    /// Begins an attempt of a task.
    fn open_turn(&mut self, task: TaskId, at: Timestamp) {
        let kind =
            if self.compaction == Some(task) { TaskKind::Compaction } else { TaskKind::Turn };
        let earlier = self.turn.take().filter(|turn| turn.task == task).map(|turn| turn.digest);
        let digest = earlier.unwrap_or_default();
        let turn = OpenTurn { task, kind, digest, begun_at: at, took_ms: None, runs: true };
        self.turn = Some(turn);
    }

    /// Counts a turn that ended.
    fn end_turn(&mut self, task: TaskId, stop_reason: Option<StopReason>, delta: &mut Digest) {
        self.compaction.take_if(|id| *id == task);
        let Some(turn) = self.turn.as_ref().filter(|turn| turn.task == task) else { return };
        if turn.kind == TaskKind::Turn {
            delta.turn_count = 1;
            delta.stop_reasons =
                stop_reason.map(|reason| (reason.counted(), 1)).into_iter().collect();
            let took_ms = turn.took_ms.filter(|_| stop_reason.is_some());
            delta.latency = took_ms.map(Histogram::one).unwrap_or_default();
        }
    }

    /// Adds what belongs to the open turn, and seals the turn with its task's end.
    fn add_to_turn(
        &mut self,
        Recorded { place, fact }: &Recorded,
        deltas: &[Digest],
    ) -> Option<Sealed> {
        let turn = self.turn.as_mut()?;
        let belongs = match fact {
            Fact::AgentOutput(_) => place.task == Some(turn.task),
            fact => fact.task().map_or(turn.runs, |task| task == turn.task),
        };
        if !belongs {
            return None;
        }
        turn.digest.merge_all(deltas);
        turn.digest.outcome = None;
        match fact {
            Fact::TaskRetrying { .. } => turn.runs = false,
            Fact::TaskEnded { .. } => {
                return self.turn.take().map(|turn| Sealed::Turn(turn.task, Box::new(turn.digest)));
            }
            _ => {}
        }
        None
    }

    /// Counts a compaction once; a later fact about it replaces its count (AM-23).
    fn count_compaction(&mut self, compaction: &Compaction, has_ended: bool, delta: &mut Digest) {
        let counted = compaction_counts(compaction);
        match self.counted.iter_mut().find(|known| known.compaction == compaction.id) {
            Some(known) => {
                delta.compactions = counted;
                delta.compactions.subtract(&known.counted);
                known.counted = counted;
            }
            None if has_ended => {
                delta.compactions = counted;
                self.counted.push(CountedCompaction { compaction: compaction.id, counted });
                keep_newest(&mut self.counted, RECENT_MAX);
            }
            None => {}
        }
    }

    /// Changes the session, whose cost counters begin at 0.
    fn set_session(&mut self, session: Option<&SessionId>) {
        if self.session.as_ref() != session {
            self.session = session.cloned();
            self.counters.clear();
        }
    }

    /// Seals the run.
    fn seal(&mut self, exit: &Exit, seq: u64, delta: &mut Digest) {
        let outcome = Outcome::from(exit);
        delta.outcome = Some(Some(outcome));
        delta.outcomes = BTreeMap::from([(outcome, 1)]);
        // The group forgets a run's compactions here, too.
        self.counted.clear();
        for (tool_call, tool) in std::mem::take(&mut self.open_tools) {
            delta.add_finding(seq, FindingKind::ToolWithoutResult { tool_call, tool });
        }
        if outcome.is_abnormal() {
            let kept = exit.detail.floor_char_boundary(DETAIL_BYTES_MAX);
            let detail = exit.detail[..kept].to_owned();
            delta.add_finding(seq, FindingKind::AbnormalStop { outcome, detail });
        }
    }
}

impl Digest {
    fn merge_all(&mut self, deltas: &[Self]) {
        deltas.iter().for_each(|delta| self.merge(delta));
    }

    fn add_error(&mut self, class: &str, seq: u64) {
        self.errors = Bounded::one(class, ErrorClass::at(seq));
    }

    fn add_finding(&mut self, seq: u64, kind: FindingKind) {
        self.findings.merge(&Findings::one(Finding { seq, kind }));
    }

    fn add_tokens(&mut self, spent: Option<&TokensSpent>) {
        let Some(TokensSpent { total, by_model, .. }) = spent else { return };
        self.tokens = *total;
        for (model, tokens) in by_model {
            self.by_model.slot(model).add(tokens);
        }
    }
}

/// Returns the count of one resolved permission.
fn permission_counts(state: PermissionState) -> Permissions {
    let mut permissions = Permissions::default();
    match state {
        PermissionState::Pending => {}
        PermissionState::Selected => permissions.selected = 1,
        PermissionState::Cancelled => permissions.cancelled = 1,
        PermissionState::Expired => permissions.expired = 1,
        PermissionState::Void => permissions.void = 1,
    }
    permissions
}

/// Returns the counts of one compaction in its present status.
fn compaction_counts(compaction: &Compaction) -> Compactions {
    let mut counted = Compactions::default();
    let count = |tokens: u64| tokens.min(TOKENS_MAX) as i64;
    match compaction.status {
        CompactionStatus::InProgress => {}
        CompactionStatus::Completed => {
            counted.completed = 1;
            let details = &compaction.details;
            if let (Some(before), Some(after)) = (details.tokens_before, details.tokens_after) {
                (counted.tokens_before, counted.tokens_after) = (count(before), count(after));
            }
        }
        CompactionStatus::Failed => counted.failed = 1,
        CompactionStatus::Cancelled => counted.cancelled = 1,
        CompactionStatus::Abandoned => counted.abandoned = 1,
        CompactionStatus::Skipped => counted.skipped = 1,
        CompactionStatus::Noop => counted.noop = 1,
    }
    counted
}
