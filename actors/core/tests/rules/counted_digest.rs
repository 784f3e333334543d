//! The digest of a part of a history by a simple count: each sum walks all facts by itself and
//! carries no state but its own.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Compaction, CompactionStatus, Digest, Fact, PermissionState, Recorded, RunId, TaskId, TaskKind,
    Timestamp, ToolProgress, Usage, UsageAfter,
    digest::{Bounded, Compactions, Context, Histogram, ToolUse},
};

/// A fact of a history.
pub struct LoggedFact {
    pub fact: Fact,
    pub at: Timestamp,
    /// Its last frame, or the last frame before it if the fact has none.
    pub seq: u64,
    /// The live run.
    pub run: Option<RunId>,
    /// The started task that the fact belongs to.
    pub turn: Option<TaskId>,
}

/// Returns each fact of a whole history with its run and turn.
pub fn facts<'a>(history: impl Iterator<Item = (Timestamp, &'a Recorded)>) -> Vec<LoggedFact> {
    let (mut seq, mut run) = (0, None);
    let mut open: Option<(TaskId, bool)> = None;
    let mut logged = Vec::new();
    for (at, recorded) in history {
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
        logged.push(LoggedFact { fact: fact.clone(), at, seq, run, turn });
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

/// Counts the facts of `all` for which `belongs` holds: all but the outcome and the findings.
pub fn count(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> Digest {
    let mut sum = Digest {
        compactions: compactions(all, &belongs),
        costs: costs(all, &belongs),
        tools: tools(all, &belongs),
        ..Digest::default()
    };
    for fact in all.iter().filter(|fact| belongs(fact) && fact.fact.frames() > 0) {
        sum.watermark_seq = fact.seq;
        sum.frame_count += fact.fact.frames();
        sum.first_at = Some(sum.first_at.map_or(fact.at, |first| first.min(fact.at)));
        sum.last_at = sum.last_at.max(Some(fact.at));
        add_fact(&mut sum, fact, all);
    }
    sum
}

fn add_fact(sum: &mut Digest, fact: &LoggedFact, all: &[LoggedFact]) {
    let class = match &fact.fact {
        Fact::TaskRetrying { error, .. } | Fact::TaskEnded { error: Some(error), .. } => {
            Some(&*error.code)
        }
        Fact::AgentOutputRejected { .. }
        | Fact::RequestRefused { .. }
        | Fact::AgentWedged { .. }
        | Fact::LockBypassed { .. }
        | Fact::LockLost { .. }
        | Fact::ContextLost { .. } => fact.fact.kind().strip_prefix("greenroom/"),
        _ => None,
    };
    if let Some(class) = class.map(|class| sum.errors.slot(class)) {
        class.count += 1;
        class.samples.push(fact.seq);
        class.samples = class.samples[class.samples.len().saturating_sub(5)..].to_vec();
    }
    match &fact.fact {
        Fact::TaskEnded { task, stop_reason, .. } if is_turn(*task, all) => {
            let earlier = all.iter().take_while(|other| other.seq < fact.seq);
            let started = earlier.clone().filter_map(|other| match &other.fact {
                Fact::TaskStarted { task: started, .. } if started == task => Some(other.at.0),
                _ => None,
            });
            let Some(started) = started.last() else { return };
            sum.turn_count += 1;
            let Some(reason) = stop_reason else { return };
            *sum.stop_reasons.entry(reason.counted()).or_default() += 1;
            let settled = earlier.filter_map(|other| match &other.fact {
                Fact::TurnSettled { task: settled, .. } if settled == task => Some(other.at.0),
                _ => None,
            });
            let took = settled.last().expect("a turn that stopped is settled") - started;
            sum.latency.merge(&Histogram::one(u64::try_from(took).unwrap_or_default()));
        }
        Fact::AgentOutput(output) => {
            let usage = output.summary.usage.as_ref();
            let context = usage.map(|usage| Context { used: usage.used, size: usage.size });
            sum.context = context.map(Some).or(sum.context);
        }
        Fact::ContextLost { .. } => sum.context = Some(None),
        Fact::CompactionEnded(ended) => {
            let context = ended.usage_after.as_ref().map(|after| match after {
                UsageAfter::Known(Usage { used, size, .. }) => {
                    Some(Context { used: *used, size: *size })
                }
                UsageAfter::Unknown => None,
            });
            sum.context = context.or(sum.context);
        }
        Fact::SegmentStarted { session, .. }
            if session_before(fact, all) != Some(session.0.to_string()) =>
        {
            sum.context = Some(None);
        }
        Fact::TurnSettled { tokens: Some(spent), .. }
        | Fact::SummaryGiven { tokens: Some(spent), .. } => {
            sum.tokens.add(&spent.total);
            let models = spent.by_model.iter();
            models.for_each(|(model, tokens)| sum.by_model.slot(model).add(tokens));
        }
        Fact::PermissionOpened(_) => sum.permissions.asked += 1,
        Fact::PermissionResolved { state, .. } => match state {
            PermissionState::Pending => {}
            PermissionState::Selected => sum.permissions.selected += 1,
            PermissionState::Cancelled => sum.permissions.cancelled += 1,
            PermissionState::Expired => sum.permissions.expired += 1,
            PermissionState::Void => sum.permissions.void += 1,
        },
        Fact::RunExited { exit, .. } => *sum.outcomes.entry(exit.into()).or_default() += 1,
        _ => {}
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
    let earlier = all.iter().take_while(|other| other.seq < fact.seq);
    earlier.filter_map(|earlier| session_after(&earlier.fact)).last().flatten()
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
fn costs(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> Bounded<u64> {
    let mut sums = Bounded::default();
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
            let grew = cost.billionths.checked_sub(before).unwrap_or(cost.billionths);
            if belongs(fact) {
                *sums.slot(&cost.currency) += grew;
            }
        }
    }
    sums
}

/// Counts a call at its start, and a failure at its report.
fn tools(all: &[LoggedFact], belongs: impl Fn(&LoggedFact) -> bool) -> Bounded<ToolUse> {
    let mut sums = Bounded::<ToolUse>::default();
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
            let failed = ended.is_some_and(|result| result.is_failure());
            if belongs(fact) && (begins || failed) {
                sums.slot(&tool).add(&ToolUse { calls: begins.into(), failed: failed.into() });
            }
        }
    }
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
