//! The fold: which fact adds what to which digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Bounded, Compactions, Context, Digest, ErrorClass, Findings, Flaw, FlawKind, Histogram,
    Outcome, Permissions, SCHEMA_VERSION, Told, count::short, is_default, keep_newest,
};
use crate::{
    Compaction, CompactionStatus, Cost, Exit, Finding, Fold, Head, PermissionState, RunId, Said,
    SessionId, Spent, StopReason, TaskId, TaskKind, Timestamp, ToolNews, ToolStep, Write,
    lifecycle::RECENT_MAX,
};

/// So many tool calls are remembered as open, and none with a longer name (I11).
const OPEN_TOOLS_MAX: usize = 64;
const TOOL_ID_BYTES_MAX: usize = 128;
/// So many currencies of one session are told apart; costs in further ones are not counted.
const CURRENCIES_MAX: usize = 8;
/// No compaction has more tokens: agents tell of them, and a sum of these fits.
const TOKENS_MAX: u64 = 1 << 40;
/// So much is kept of how an abnormal stop is put in words.
const DETAIL_BYTES_MAX: usize = 200;

/// The digests of a group: its own, that of its last run, and what has to be known to fold on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digests {
    /// The group's.
    pub group: Digest,
    /// That of its last run, which may be over: late frames still belong to it (SEEDS TD-7).
    pub run: Option<RunDigest>,
    /// What has begun and is not over (SEEDS TD-5).
    pub carry: Carry,
}

/// A run's digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDigest {
    /// The form in which it is stored.
    pub schema_version: u32,
    /// The run.
    pub run: RunId,
    /// The launch profile.
    pub agent: String,
    /// What it came to so far; sealed once it has an outcome.
    pub digest: Digest,
}

/// What a digest's fold has to know of what came before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Carry {
    #[serde(skip_serializing_if = "Option::is_none")]
    turn: Option<OpenTurn>,
    /// The compaction task that waits or runs: all others are turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    compaction: Option<TaskId>,
    #[serde(skip_serializing_if = "is_default")]
    archived: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    /// What the session had cost when it was last said, by currency: they are counters.
    #[serde(skip_serializing_if = "is_default")]
    counters: BTreeMap<String, u64>,
    /// Tool calls without a result, and which tool each is of.
    #[serde(skip_serializing_if = "is_default")]
    open_tools: BTreeMap<String, String>,
    /// The compactions that ended in this run: more may be told of them.
    #[serde(skip_serializing_if = "is_default")]
    told: Vec<Told>,
}

/// A task from its first START to its end, over all its attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OpenTurn {
    task: TaskId,
    kind: TaskKind,
    digest: Digest,
    /// When its last attempt began.
    begun_at: Timestamp,
    /// How long that took, once it is settled.
    took_ms: Option<u64>,
    /// Whether an attempt of it runs: what names no task is part of it then.
    runs: bool,
}

/// What a fact closed. Its digest is as it stays, but for late frames.
#[derive(Clone, Debug, PartialEq)]
pub enum Closed {
    /// A run is over, or something was added to one that is.
    Run(Box<RunDigest>),
    /// A task that was started is over.
    Turn(TaskId, Box<Digest>),
}

impl Digests {
    /// Takes in one fact that was stored at `at`: each exactly once, in the order of the log
    /// (SEEDS TD-4).
    pub fn take(&mut self, write: &Write, at: Timestamp) -> Option<Closed> {
        let frames = write.frames();
        if frames == 0 {
            return None;
        }
        let first_seq = self.group.watermark_seq + 1;
        if let Write::RunStarted { run, agent, .. } = write {
            let (agent, digest) = (agent.clone(), Digest::default());
            self.run = Some(RunDigest { schema_version: SCHEMA_VERSION, run: *run, agent, digest });
        }
        let owner = run_of(write);
        let is_sealed = self.run.as_ref().is_some_and(|own| own.digest.outcome().is_some());
        let is_other = |own: &RunDigest| owner.is_some_and(|owner| owner != own.run);
        // The hook is idempotent, and what is sealed stays so (SEEDS TD-3, TD-7).
        let is_late = owner.is_some() && (is_sealed || self.run.as_ref().is_some_and(is_other));
        let mut deltas = match write {
            Write::Said(said) => self.carry.said(&said.fold, is_late),
            Write::RunReady { .. } | Write::RunExited { .. } if is_late => vec![Digest::default()],
            fact => vec![self.carry.delta(fact, first_seq, at, self.run.as_ref())],
        };
        if let Some(delta) = deltas.last_mut() {
            delta.watermark_seq = self.group.watermark_seq + frames;
            delta.frame_count = frames;
            (delta.first_at, delta.last_at) = (Some(at), Some(at));
        }
        self.group.merge_all(&deltas);
        if self.carry.archived && matches!(write, Write::RunExited { .. }) {
            self.group.outcome = Some(Some(Outcome::Deleted));
        }
        let turn = self.carry.add_to_turn(write, &deltas);
        let own = |own: &&mut RunDigest| owner.map_or(!is_sealed, |owner| owner == own.run);
        let run = self.run.as_mut().filter(own).and_then(|own| {
            own.digest.merge_all(&deltas);
            own.digest.outcome().map(|_| Closed::Run(Box::new(own.clone())))
        });
        turn.or(run)
    }

    /// Begins behind a stretch of the log of which no digests are left: nothing is known of it but
    /// what was alive at its end, which is a run by a profile, and a compaction task that waited.
    pub fn behind(head: &Head, run: Option<(RunId, &str)>, compaction: Option<TaskId>) -> Self {
        let digest = Digest { watermark_seq: head.last_seq, ..Digest::default() };
        let outcome = match run {
            Some(_) => Some(None),
            None => head.archived.then_some(Some(Outcome::Deleted)),
        };
        let run = run.map(|(run, agent)| {
            let (agent, digest) = (agent.to_owned(), digest.clone());
            RunDigest { schema_version: SCHEMA_VERSION, run, agent, digest }
        });
        let (archived, session) = (head.archived, head.session.clone());
        let carry = Carry { compaction, archived, session, ..Carry::default() };
        Self { group: Digest { outcome, ..digest }, run, carry }
    }

    /// That of its last run, while that is alive.
    pub fn live_run(&self) -> Option<&RunDigest> {
        self.run.as_ref().filter(|own| own.digest.outcome().is_none())
    }
}

/// The run that a fact is about by its own words.
fn run_of(write: &Write) -> Option<RunId> {
    match write {
        Write::Said(Said { run, .. })
        | Write::AgentOutputRejected { run, .. }
        | Write::RequestRefused { run, .. }
        | Write::RunStarted { run, .. }
        | Write::RunReady { run, .. }
        | Write::RunExited { run, .. }
        | Write::AgentWedged { run, .. }
        | Write::StderrMatched { run, .. } => Some(*run),
        _ => None,
    }
}

impl Carry {
    /// What the fact adds, but for its frames.
    fn delta(&mut self, write: &Write, seq: u64, at: Timestamp, run: Option<&RunDigest>) -> Digest {
        let mut delta = Digest::default();
        match write {
            Write::TaskQueued { task, kind: TaskKind::Compaction, .. } => {
                self.compaction = Some(*task);
            }
            Write::TaskStarted { task, .. } => self.open_turn(*task, at),
            Write::TurnSettled { task, stop_reason, tokens } => {
                delta.spend(tokens.as_deref());
                if let Some(turn) = self.turn.as_mut().filter(|own| own.task == *task) {
                    let took_ms = at.0.saturating_sub(turn.begun_at.0);
                    turn.took_ms = Some(u64::try_from(took_ms).unwrap_or_default());
                }
                // One that ran out of its time is called off, and told of as that.
                if !stop_reason.is_answer() && *stop_reason != StopReason::Deadline {
                    delta.find(seq, FlawKind::IncompleteTurn { task: *task });
                }
            }
            Write::SummaryGiven { tokens, .. } => delta.spend(tokens.as_deref()),
            Write::TaskRetrying { error, .. } => delta.err(&error.code, seq),
            Write::TaskEnded { task, stop_reason, error, findings, .. } => {
                self.end_turn(*task, *stop_reason, &mut delta);
                error.iter().for_each(|error| delta.err(&error.code, seq));
                for finding in findings {
                    delta.find(
                        seq,
                        match finding {
                            Finding::EmptyAnswer => FlawKind::EmptyAnswer { task: *task },
                        },
                    );
                }
            }
            Write::AgentOutputRejected { .. } => delta.err("agent_output_rejected", seq),
            Write::RequestRefused { .. } => delta.err("request_refused", seq),
            Write::AgentWedged { .. } => delta.err("agent_wedged", seq),
            Write::LockBypassed { .. } => delta.err("lock_bypassed", seq),
            Write::LockLost { .. } => delta.err("lock_lost", seq),
            Write::ContextLost { .. } => {
                delta.err("context_lost", seq);
                delta.context = Some(None);
                self.enter(None);
            }
            Write::PermissionOpened(_) => delta.permissions.asked = 1,
            Write::PermissionResolved { permission, state, .. } => {
                delta.permissions = resolved(*state);
                if *state == PermissionState::Void {
                    let permission = *permission;
                    delta.find(seq, FlawKind::UnansweredPermission { permission });
                }
            }
            Write::CompactionUpdated(compaction) => self.told(compaction, false, &mut delta),
            Write::CompactionEnded(compaction) => self.told(compaction, true, &mut delta),
            Write::RunStarted { .. } => delta.outcome = Some(None),
            // Another context was told of before: this is the same one, under whatever name.
            Write::RunReady { session, .. } => self.session = Some(session.clone()),
            Write::SegmentStarted { session, .. } => {
                if self.session.as_ref() != Some(session) {
                    delta.context = Some(None);
                }
                self.enter(Some(session));
            }
            Write::RunExited { exit, .. } => self.seal(exit, seq, &mut delta),
            Write::GroupArchived {} => {
                self.archived = true;
                let lives = run.is_some_and(|run| run.digest.outcome().is_none());
                delta.outcome = (!lives).then_some(Some(Outcome::Deleted));
            }
            Write::GroupChanged(_) if self.archived => {
                self.archived = false;
                delta.outcome = Some(None);
            }
            _ => {}
        }
        delta
    }

    /// What was said, one thing after the other: if there are more names than are told
    /// apart, the first are, whatever lines came together (SEEDS TD-5).
    fn said(&mut self, fold: &Fold, is_late: bool) -> Vec<Digest> {
        let costs: Vec<_> = fold.costs.iter().filter_map(|cost| self.cost(cost)).collect();
        let tools = fold.tools.iter().map(|news| {
            let mut delta = Digest::default();
            // A run's names for calls are its own: the next one's are not to be taken for them.
            let kept = is_late.then(|| std::mem::take(&mut self.open_tools));
            self.tool(news, &mut delta);
            if let Some(kept) = kept {
                self.open_tools = kept;
            }
            delta
        });
        let mut deltas: Vec<_> = costs.into_iter().chain(tools).collect();
        let context =
            fold.usage.as_ref().map(|usage| Context { used: usage.used, size: usage.size });
        if deltas.is_empty() {
            deltas.push(Digest::default());
        }
        if let Some(delta) = deltas.last_mut() {
            delta.context = context.map(Some);
        }
        deltas
    }

    fn cost(&mut self, Cost { currency, billionths }: &Cost) -> Option<Digest> {
        let currency = short(currency);
        let before = self.counters.get(currency).copied();
        if before.is_none() && self.counters.len() == CURRENCIES_MAX {
            return None;
        }
        self.counters.insert(currency.to_owned(), *billionths);
        // A counter that falls began anew: with another process, say.
        let more = billionths.checked_sub(before.unwrap_or_default()).unwrap_or(*billionths);
        Some(Digest { costs: Bounded::one(currency, more), ..Digest::default() })
    }

    fn tool(&mut self, ToolNews { call, step }: &ToolNews, delta: &mut Digest) {
        let mut known = None;
        let ended = match step {
            ToolStep::Called { tool, ended } => {
                let opened = self.open_tools.get(call);
                let tool = opened.map_or(short(tool), String::as_str);
                if opened.is_none() {
                    delta.tools.slot(tool).calls += 1;
                }
                known = Some(tool.to_owned());
                *ended
            }
            ToolStep::Ended(result) => Some(*result),
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

    fn open_turn(&mut self, task: TaskId, at: Timestamp) {
        let kind =
            if self.compaction == Some(task) { TaskKind::Compaction } else { TaskKind::Turn };
        let again = self.turn.take().filter(|own| own.task == task).map(|own| own.digest);
        let digest = again.unwrap_or_default();
        let turn = OpenTurn { task, kind, digest, begun_at: at, took_ms: None, runs: true };
        self.turn = Some(turn);
    }

    fn end_turn(&mut self, task: TaskId, stop_reason: Option<StopReason>, delta: &mut Digest) {
        self.compaction.take_if(|own| *own == task);
        let Some(turn) = self.turn.as_ref().filter(|own| own.task == task) else { return };
        if turn.kind == TaskKind::Turn {
            delta.turn_count = 1;
            delta.stop_reasons = stop_reason.map(|reason| (reason, 1)).into_iter().collect();
            let took_ms = turn.took_ms.filter(|_| stop_reason.is_some());
            delta.latency = took_ms.map(Histogram::one).unwrap_or_default();
        }
    }

    /// Adds what belongs to the open turn, and closes that with its task's end.
    fn add_to_turn(&mut self, write: &Write, deltas: &[Digest]) -> Option<Closed> {
        let turn = self.turn.as_mut()?;
        let is_own = match write {
            Write::Said(said) => said.task == Some(turn.task),
            fact => fact.task().map_or(turn.runs, |task| task == turn.task),
        };
        if !is_own {
            return None;
        }
        turn.digest.merge_all(deltas);
        turn.digest.outcome = None;
        match write {
            Write::TaskRetrying { .. } => turn.runs = false,
            Write::TaskEnded { .. } => {
                return self.turn.take().map(|own| Closed::Turn(own.task, Box::new(own.digest)));
            }
            _ => {}
        }
        None
    }

    /// Counts a compaction once, whatever is told of it later (SEEDS AM-23).
    fn told(&mut self, compaction: &Compaction, has_ended: bool, delta: &mut Digest) {
        let counted = counted(compaction);
        match self.told.iter_mut().find(|own| own.compaction == compaction.id) {
            Some(told) => {
                delta.compactions = counted;
                delta.compactions.apply(&told.counted, -1);
                told.counted = counted;
            }
            None if has_ended => {
                delta.compactions = counted;
                self.told.push(Told { compaction: compaction.id, counted });
                keep_newest(&mut self.told, RECENT_MAX);
            }
            None => {}
        }
    }

    fn enter(&mut self, session: Option<&SessionId>) {
        if self.session.as_ref() != session {
            self.session = session.cloned();
            self.counters.clear();
        }
    }

    fn seal(&mut self, exit: &Exit, seq: u64, delta: &mut Digest) {
        let outcome = Outcome::from(exit);
        delta.outcome = Some(Some(outcome));
        delta.outcomes = BTreeMap::from([(outcome, 1)]);
        // The rules forget them here, too.
        self.told.clear();
        for (tool_call, tool) in std::mem::take(&mut self.open_tools) {
            delta.find(seq, FlawKind::ToolWithoutResult { tool_call, tool });
        }
        if outcome.is_abnormal() {
            let cut = exit.detail.floor_char_boundary(DETAIL_BYTES_MAX);
            let detail = exit.detail[..cut].to_owned();
            delta.find(seq, FlawKind::AbnormalStop { outcome, detail });
        }
    }
}

impl Digest {
    fn merge_all(&mut self, deltas: &[Self]) {
        deltas.iter().for_each(|delta| self.merge(delta));
    }

    fn err(&mut self, class: &str, seq: u64) {
        self.errors = Bounded::one(class, ErrorClass::at(seq));
    }

    fn find(&mut self, seq: u64, kind: FlawKind) {
        self.findings.merge(&Findings::one(Flaw { seq, kind }));
    }

    fn spend(&mut self, spent: Option<&Spent>) {
        let Some(Spent { total, by_model, .. }) = spent else { return };
        self.tokens = *total;
        for (model, tokens) in by_model {
            self.by_model.slot(model).add(tokens);
        }
    }
}

fn resolved(state: PermissionState) -> Permissions {
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

fn counted(compaction: &Compaction) -> Compactions {
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
