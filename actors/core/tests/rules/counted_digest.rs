//! The digest of a part of a history by a simple count: each sum walks all facts by itself and
//! carries no state but its own.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Compaction, CompactionStatus, Digest, Fact, PermissionState, Recorded, RunId, StopReason,
    TaskId, TaskKind, Timestamp, Tokens, ToolProgress,
    digest::{Compactions, Outcome, Permissions, ToolUse},
};

/// A fact of a history.
#[derive(Clone, Debug)]
pub struct LoggedFact {
    pub recorded: Recorded,
    pub fact: Fact,
    pub at: Timestamp,
    /// Its last frame, or the last frame before it if the fact has none.
    pub seq: u64,
    /// The live run.
    pub run: Option<RunId>,
    /// The started task that the fact belongs to.
    pub turn: Option<TaskId>,
}

/// The fields of a digest that a simple walk can count.
#[derive(Debug, Default, PartialEq)]
pub struct CountedDigest {
    pub watermark_seq: u64,
    pub frame_count: u64,
    pub turn_count: u64,
    pub times: (Option<Timestamp>, Option<Timestamp>),
    pub context: Option<(u64, u64)>,
    pub tokens: Tokens,
    pub by_model: BTreeMap<String, Tokens>,
    pub costs: BTreeMap<String, u64>,
    pub stop_reasons: BTreeMap<StopReason, u64>,
    pub errors: BTreeMap<String, (u64, Vec<u64>)>,
    pub tools: BTreeMap<String, ToolUse>,
    pub permissions: Permissions,
    pub compactions: Compactions,
    pub latency: (u64, u64),
    pub outcomes: BTreeMap<Outcome, u64>,
}

impl From<&Digest> for CountedDigest {
    fn from(digest: &Digest) -> Self {
        let errors = digest.errors.iter();
        Self {
            watermark_seq: digest.watermark_seq,
            frame_count: digest.frame_count,
            turn_count: digest.turn_count,
            times: (digest.first_at, digest.last_at),
            context: digest.context.flatten().map(|context| (context.used, context.size)),
            tokens: digest.tokens,
            by_model: digest.by_model.iter().map(owned).collect(),
            costs: digest.costs.iter().map(owned).collect(),
            stop_reasons: digest.stop_reasons.clone(),
            errors: errors
                .map(|(class, found)| (class.to_owned(), (found.count, found.samples.clone())))
                .collect(),
            tools: digest.tools.iter().map(owned).collect(),
            permissions: digest.permissions,
            compactions: digest.compactions,
            latency: (digest.latency.count(), digest.latency.sum_ms),
            outcomes: digest.outcomes.clone(),
        }
    }
}

fn owned<T: Copy>((name, value): (&str, &T)) -> (String, T) {
    (name.to_owned(), *value)
}

/// Returns each fact of a whole history with its run and turn.
pub fn facts(history: &[(Timestamp, Vec<Recorded>)]) -> Vec<LoggedFact> {
    let facts = history.iter().flat_map(|(at, facts)| facts.iter().map(|fact| (*at, fact)));
    let (mut seq, mut run) = (0, None);
    let mut open: Option<(TaskId, bool)> = None;
    let mut logged = Vec::new();
    for (at, recorded) in facts {
        let fact = &recorded.fact;
        seq += fact.frames();
        match fact {
            Fact::RunStarted { run: started, .. } => run = Some(*started),
            Fact::TaskStarted { task, .. } => open = Some((*task, true)),
            _ => {}
        }
        let named = match fact {
            Fact::AgentOutput(_) => recorded.place.task,
            fact => fact.task().or(open.filter(|(_, runs)| *runs).map(|(task, _)| task)),
        };
        let turn = named.filter(|task| open.is_some_and(|(started, _)| started == *task));
        let recorded = recorded.clone();
        logged.push(LoggedFact { fact: fact.clone(), recorded, at, seq, run, turn });
        match fact {
            Fact::RunExited { .. } => run = None,
            Fact::TaskEnded { .. } if turn.is_some() => open = None,
            Fact::TaskRetrying { .. } if turn.is_some() => {
                open = open.map(|(task, _)| (task, false))
            }
            _ => {}
        }
    }
    logged
}

/// Counts the facts of `all` for which `belongs` holds.
pub fn count(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> CountedDigest {
    let part: Vec<&LoggedFact> =
        all.iter().filter(|fact| belongs(fact) && fact.fact.frames() > 0).collect();
    let mut count = CountedDigest {
        watermark_seq: part.last().map_or(0, |fact| fact.seq),
        frame_count: part.iter().map(|fact| fact.fact.frames()).sum(),
        times: (part.iter().map(|fact| fact.at).min(), part.iter().map(|fact| fact.at).max()),
        compactions: compactions(all, &belongs),
        costs: costs(all, &belongs),
        tools: tools(all, &belongs),
        ..CountedDigest::default()
    };
    for fact in &part {
        count.add(fact, all);
    }
    count
}

impl CountedDigest {
    fn add(&mut self, fact: &LoggedFact, all: &[LoggedFact]) {
        let mut wrong = |class: &str| {
            let (count, samples) = self.errors.entry(class.to_owned()).or_default();
            *count += 1;
            samples.push(fact.seq);
            *samples = samples[samples.len().saturating_sub(5)..].to_vec();
        };
        match &fact.fact {
            Fact::TaskRetrying { error, .. } => wrong(&error.code),
            Fact::TaskEnded { error: Some(error), .. } => wrong(&error.code),
            Fact::AgentOutputRejected { .. }
            | Fact::RequestRefused { .. }
            | Fact::AgentWedged { .. }
            | Fact::LockBypassed { .. }
            | Fact::LockLost { .. }
            | Fact::ContextLost { .. } => wrong(fact.fact.kind().trim_start_matches("greenroom/")),
            _ => {}
        }
        match &fact.fact {
            Fact::TaskEnded { task, stop_reason, .. } if is_turn(*task, all) => {
                let earlier = all.iter().take_while(|other| other.seq < fact.seq);
                let started = |other: &LoggedFact| {
                    matches!(&other.fact, Fact::TaskStarted { task: other, .. } if other == task)
                        .then_some(other.at.0)
                };
                let Some(started) = earlier.clone().filter_map(started).last() else { return };
                self.turn_count += 1;
                let Some(reason) = stop_reason else { return };
                *self.stop_reasons.entry(*reason).or_default() += 1;
                let settled = |other: &LoggedFact| {
                    matches!(&other.fact, Fact::TurnSettled { task: other, .. } if other == task)
                        .then_some(other.at.0)
                };
                let settled =
                    earlier.filter_map(settled).last().expect("a turn that stopped is settled");
                self.latency.0 += 1;
                self.latency.1 += u64::try_from(settled - started).unwrap_or_default();
            }
            Fact::AgentOutput(output) => {
                if let Some(usage) = &output.summary.usage {
                    self.context = Some((usage.used, usage.size));
                }
            }
            Fact::ContextLost { .. } => self.context = None,
            Fact::SegmentStarted { session, .. }
                if session_before(fact, all) != Some(session.0.to_string()) =>
            {
                self.context = None;
            }
            Fact::TurnSettled { tokens: Some(spent), .. }
            | Fact::SummaryGiven { tokens: Some(spent), .. } => {
                self.tokens.add(&spent.total);
                for (model, tokens) in &spent.by_model {
                    self.by_model.entry(model.clone()).or_default().add(tokens);
                }
            }
            Fact::PermissionOpened(_) => self.permissions.asked += 1,
            Fact::PermissionResolved { state, .. } => match state {
                PermissionState::Pending => {}
                PermissionState::Selected => self.permissions.selected += 1,
                PermissionState::Cancelled => self.permissions.cancelled += 1,
                PermissionState::Expired => self.permissions.expired += 1,
                PermissionState::Void => self.permissions.void += 1,
            },
            Fact::RunExited { exit, .. } => *self.outcomes.entry(exit.into()).or_default() += 1,
            _ => {}
        }
    }
}

fn is_turn(task: TaskId, all: &[LoggedFact]) -> bool {
    all.iter().any(|fact| {
        matches!(&fact.fact, Fact::TaskQueued { task: queued, kind, .. }
            if *queued == task && *kind == TaskKind::Turn)
    })
}

/// The session in force before the fact.
fn session_before(fact: &LoggedFact, all: &[LoggedFact]) -> Option<String> {
    let mut session = None;
    for earlier in all.iter().take_while(|other| other.seq < fact.seq) {
        session = session_after(&earlier.fact).unwrap_or(session);
    }
    session
}

/// Returns the session in force after the fact, if the fact changes it.
fn session_after(fact: &Fact) -> Option<Option<String>> {
    match fact {
        Fact::RunReady { session, .. } | Fact::SegmentStarted { session, .. } => {
            Some(Some(session.0.to_string()))
        }
        Fact::ContextLost { .. } => Some(None),
        _ => None,
    }
}

/// Sums the growth of each session's cost counters within the part; a counter that falls has
/// restarted.
fn costs(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::<String, u64>::new();
    let mut counters = BTreeMap::<String, u64>::new();
    let mut session = None;
    for fact in all {
        if let Some(next) = session_after(&fact.fact)
            && next != session
        {
            session = next;
            // A ready run continues the session in force, under any name.
            if !matches!(fact.fact, Fact::RunReady { .. }) {
                counters.clear();
            }
        }
        let Fact::AgentOutput(output) = &fact.fact else { continue };
        for cost in &output.summary.costs {
            let before = counters.insert(cost.currency.clone(), cost.billionths).unwrap_or(0);
            let grew =
                if cost.billionths < before { cost.billionths } else { cost.billionths - before };
            if belongs(fact) {
                *sums.entry(cost.currency.clone()).or_default() += grew;
            }
        }
    }
    sums
}

/// Counts a call at its start, and a failure at its report.
fn tools(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> BTreeMap<String, ToolUse> {
    let mut sums = BTreeMap::<String, ToolUse>::new();
    let mut open = BTreeMap::<String, String>::new();
    for fact in all {
        if matches!(fact.fact, Fact::RunExited { .. }) {
            open.clear();
        }
        let Fact::AgentOutput(output) = &fact.fact else { continue };
        for update in &output.summary.tools {
            let (begins, ended) = match &update.step {
                ToolProgress::Called { tool, ended } => {
                    let begins = !open.contains_key(&update.call);
                    open.entry(update.call.clone()).or_insert(tool.clone());
                    (begins, *ended)
                }
                ToolProgress::Ended(result) => (false, Some(*result)),
            };
            let Some(tool) = open.get(&update.call).cloned() else { continue };
            if ended.is_some() {
                open.remove(&update.call);
            }
            if belongs(fact) {
                let sum = sums.entry(tool).or_default();
                sum.calls += u64::from(begins);
                sum.failed += u64::from(ended.is_some_and(|result| result.is_failure()));
            }
        }
    }
    sums.retain(|_, sum| *sum != ToolUse::default());
    sums
}

/// Counts each ended compaction by its last state, less its state before the part.
fn compactions(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> Compactions {
    let mut sums = Compactions::default();
    let mut ended = BTreeSet::new();
    let mut last = BTreeMap::new();
    for fact in all {
        let compaction = match &fact.fact {
            Fact::CompactionEnded(compaction) => {
                ended.insert(compaction.id);
                compaction
            }
            Fact::CompactionUpdated(compaction) if ended.contains(&compaction.id) => compaction,
            _ => continue,
        };
        let before = last.insert(compaction.id, (**compaction).clone());
        if belongs(fact) {
            before.iter().for_each(|earlier| add(&mut sums, earlier, -1));
            add(&mut sums, compaction, 1);
        }
    }
    sums
}

fn add(sums: &mut Compactions, compaction: &Compaction, sign: i64) {
    let details = &compaction.details;
    match compaction.status {
        CompactionStatus::InProgress => {}
        CompactionStatus::Completed => {
            sums.completed += sign;
            if let (Some(before), Some(after)) = (details.tokens_before, details.tokens_after) {
                sums.tokens_before += sign * before as i64;
                sums.tokens_after += sign * after as i64;
            }
        }
        CompactionStatus::Failed => sums.failed += sign,
        CompactionStatus::Cancelled => sums.cancelled += sign,
        CompactionStatus::Abandoned => sums.abandoned += sign,
        CompactionStatus::Skipped => sums.skipped += sign,
        CompactionStatus::Noop => sums.noop += sign,
    }
}
