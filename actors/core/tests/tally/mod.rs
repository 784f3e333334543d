//! What a stretch of a history comes to, counted once more by simple code: each sum by a walk of
//! its own over all facts, with nothing carried from one to the next but what the sum is about.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Compaction, CompactionStatus, Digest, PermissionState, RunId, StopReason, TaskId, TaskKind,
    Timestamp, Tokens, ToolStep, Write,
    digest::{Compactions, Outcome, Permissions, ToolUse},
};

/// A fact of a history.
#[derive(Clone, Debug)]
pub struct Fact {
    pub write: Write,
    pub at: Timestamp,
    /// Its last frame, or the last one before it if it is none.
    pub seq: u64,
    /// The run that lives then.
    pub run: Option<RunId>,
    /// The started task that it is part of.
    pub turn: Option<TaskId>,
}

/// The counts of a digest that a simple walk can find.
#[derive(Debug, Default, PartialEq)]
pub struct Tally {
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

impl From<&Digest> for Tally {
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
                .map(|(class, own)| (class.to_owned(), (own.count, own.samples.clone())))
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

/// Tells each fact's run and turn: `facts` is a whole history.
pub fn facts(history: &[(Timestamp, Vec<Write>)]) -> Vec<Fact> {
    let writes = history.iter().flat_map(|(at, writes)| writes.iter().map(|own| (*at, own)));
    let (mut seq, mut run) = (0, None);
    let mut open: Option<(TaskId, bool)> = None;
    let mut told = Vec::new();
    for (at, write) in writes {
        seq += write.frames();
        match write {
            Write::RunStarted { run: own, .. } => run = Some(*own),
            Write::TaskStarted { task, .. } => open = Some((*task, true)),
            _ => {}
        }
        let named = match write {
            Write::Said(said) => said.task,
            fact => fact.task().or(open.filter(|(_, runs)| *runs).map(|(task, _)| task)),
        };
        let turn = named.filter(|task| open.is_some_and(|(own, _)| own == *task));
        told.push(Fact { write: write.clone(), at, seq, run, turn });
        match write {
            Write::RunExited { .. } => run = None,
            Write::TaskEnded { .. } if turn.is_some() => open = None,
            Write::TaskRetrying { .. } if turn.is_some() => {
                open = open.map(|(own, _)| (own, false))
            }
            _ => {}
        }
    }
    told
}

/// Sums up those of `all` that `belong`.
pub fn tally(all: &[Fact], belongs: impl Fn(&Fact) -> bool) -> Tally {
    let own: Vec<&Fact> =
        all.iter().filter(|fact| belongs(fact) && fact.write.frames() > 0).collect();
    let mut tally = Tally {
        watermark_seq: own.last().map_or(0, |fact| fact.seq),
        frame_count: own.iter().map(|fact| fact.write.frames()).sum(),
        times: (own.iter().map(|fact| fact.at).min(), own.iter().map(|fact| fact.at).max()),
        compactions: compactions(all, &belongs),
        costs: costs(all, &belongs),
        tools: tools(all, &belongs),
        ..Tally::default()
    };
    for fact in &own {
        tally.count(fact, all);
    }
    tally
}

impl Tally {
    fn count(&mut self, fact: &Fact, all: &[Fact]) {
        let mut wrong = |class: &str| {
            let (count, samples) = self.errors.entry(class.to_owned()).or_default();
            *count += 1;
            samples.push(fact.seq);
            *samples = samples[samples.len().saturating_sub(5)..].to_vec();
        };
        match &fact.write {
            Write::TaskRetrying { error, .. } => wrong(&error.code),
            Write::TaskEnded { error: Some(error), .. } => wrong(&error.code),
            Write::AgentOutputRejected { .. }
            | Write::RequestRefused { .. }
            | Write::AgentWedged { .. }
            | Write::LockBypassed { .. }
            | Write::LockLost { .. }
            | Write::ContextLost { .. } => {
                wrong(fact.write.kind().trim_start_matches("greenroom/"))
            }
            _ => {}
        }
        match &fact.write {
            Write::TaskEnded { task, stop_reason, .. } if is_turn(*task, all) => {
                let mine = all.iter().take_while(|own| own.seq < fact.seq);
                let started = |own: &Fact| {
                    matches!(&own.write, Write::TaskStarted { task: own, .. } if own == task)
                        .then_some(own.at.0)
                };
                let Some(started) = mine.clone().filter_map(started).last() else { return };
                self.turn_count += 1;
                let Some(reason) = stop_reason else { return };
                *self.stop_reasons.entry(*reason).or_default() += 1;
                let settled = |own: &Fact| {
                    matches!(&own.write, Write::TurnSettled { task: own, .. } if own == task)
                        .then_some(own.at.0)
                };
                let settled =
                    mine.filter_map(settled).last().expect("a turn that stopped is settled");
                self.latency.0 += 1;
                self.latency.1 += u64::try_from(settled - started).unwrap_or_default();
            }
            Write::Said(said) => {
                if let Some(usage) = &said.fold.usage {
                    self.context = Some((usage.used, usage.size));
                }
            }
            Write::ContextLost { .. } => self.context = None,
            Write::SegmentStarted { session, .. }
                if session_before(fact, all) != Some(session.0.to_string()) =>
            {
                self.context = None;
            }
            Write::TurnSettled { tokens: Some(spent), .. }
            | Write::SummaryGiven { tokens: Some(spent), .. } => {
                self.tokens.add(&spent.total);
                for (model, tokens) in &spent.by_model {
                    self.by_model.entry(model.clone()).or_default().add(tokens);
                }
            }
            Write::PermissionOpened(_) => self.permissions.asked += 1,
            Write::PermissionResolved { state, .. } => match state {
                PermissionState::Pending => {}
                PermissionState::Selected => self.permissions.selected += 1,
                PermissionState::Cancelled => self.permissions.cancelled += 1,
                PermissionState::Expired => self.permissions.expired += 1,
                PermissionState::Void => self.permissions.void += 1,
            },
            Write::RunExited { exit, .. } => *self.outcomes.entry(exit.into()).or_default() += 1,
            _ => {}
        }
    }
}

fn is_turn(task: TaskId, all: &[Fact]) -> bool {
    all.iter().any(|fact| {
        matches!(&fact.write, Write::TaskQueued { task: own, kind, .. }
            if *own == task && *kind == TaskKind::Turn)
    })
}

/// The session in force before the fact.
fn session_before(fact: &Fact, all: &[Fact]) -> Option<String> {
    let mut session = None;
    for own in all.iter().take_while(|own| own.seq < fact.seq) {
        session = entered(&own.write).unwrap_or(session);
    }
    session
}

/// The session that is in force from the fact on, if that is changed by it.
fn entered(write: &Write) -> Option<Option<String>> {
    match write {
        Write::RunReady { session, .. } | Write::SegmentStarted { session, .. } => {
            Some(Some(session.0.to_string()))
        }
        Write::ContextLost { .. } => Some(None),
        _ => None,
    }
}

/// What each session's counters grew by within the stretch; one that falls began anew.
fn costs(all: &[Fact], belongs: impl Fn(&Fact) -> bool) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::<String, u64>::new();
    let mut counters = BTreeMap::<String, u64>::new();
    let mut session = None;
    for fact in all {
        if let Some(next) = entered(&fact.write)
            && next != session
        {
            session = next;
            // A run that is ready goes on with the session that was there, under whatever name.
            if !matches!(fact.write, Write::RunReady { .. }) {
                counters.clear();
            }
        }
        let Write::Said(said) = &fact.write else { continue };
        for cost in &said.fold.costs {
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

/// A call is counted where it begins, and a failure where it is told.
fn tools(all: &[Fact], belongs: impl Fn(&Fact) -> bool) -> BTreeMap<String, ToolUse> {
    let mut sums = BTreeMap::<String, ToolUse>::new();
    let mut open = BTreeMap::<String, String>::new();
    for fact in all {
        if matches!(fact.write, Write::RunExited { .. }) {
            open.clear();
        }
        let Write::Said(said) = &fact.write else { continue };
        for news in &said.fold.tools {
            let (begins, ended) = match &news.step {
                ToolStep::Called { tool, ended } => {
                    let begins = !open.contains_key(&news.call);
                    open.entry(news.call.clone()).or_insert(tool.clone());
                    (begins, *ended)
                }
                ToolStep::Ended(result) => (false, Some(*result)),
            };
            let Some(tool) = open.get(&news.call).cloned() else { continue };
            if ended.is_some() {
                open.remove(&news.call);
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

/// How each compaction that ever ended is told last, less how it was told before the stretch.
fn compactions(all: &[Fact], belongs: impl Fn(&Fact) -> bool) -> Compactions {
    let mut sums = Compactions::default();
    let mut ended = BTreeSet::new();
    let mut told = BTreeMap::new();
    for fact in all {
        let compaction = match &fact.write {
            Write::CompactionEnded(compaction) => {
                ended.insert(compaction.id);
                compaction
            }
            Write::CompactionUpdated(compaction) if ended.contains(&compaction.id) => compaction,
            _ => continue,
        };
        let before = told.insert(compaction.id, (**compaction).clone());
        if belongs(fact) {
            before.iter().for_each(|own| add(&mut sums, own, -1));
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
