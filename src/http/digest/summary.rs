//! Digests as JSON: every field is always present.

use std::collections::BTreeMap;

use greenroom_core::{
    Digest, GroupId, RunId, StopReason, Timestamp, Tokens,
    digest::{
        BOUNDS_MS, Bounded, Compactions, ErrorClass, Finding, Histogram, Outcome, Permissions,
        RunDigest, SCHEMA_VERSION, ToolUse,
    },
};
use serde::Serialize;

use super::super::view::Time;

/// The digest of a stretch of one transcript, or of several.
#[derive(Serialize)]
pub struct Summary {
    group: Option<GroupId>,
    run: Option<RunId>,
    agent: Option<String>,
    schema_version: u32,
    watermark_seq: Option<u64>,
    frame_count: u64,
    turn_count: u64,
    first_at: Option<Time>,
    last_at: Option<Time>,
    duration_ms: Option<u64>,
    usage: Usage,
    #[serde(flatten)]
    costs: Costs,
    by_model: Bounded<Tokens>,
    stop_reasons: BTreeMap<StopReason, u64>,
    errors: Bounded<ErrorClass>,
    tools: Bounded<ToolUse>,
    permissions: Permissions,
    compactions: Compactions,
    latency_histogram: Latency,
    outcome: Option<Outcome>,
    outcomes: BTreeMap<Outcome, u64>,
    findings_count: u64,
    findings: Vec<Finding>,
}

/// How full the context is, if that is known, and the tokens spent.
#[derive(Serialize)]
struct Usage {
    used: Option<u64>,
    size: Option<u64>,
    #[serde(flatten)]
    tokens: Tokens,
}

/// The costs by currency; nearly always there is one.
#[derive(Default, Serialize)]
pub struct Costs {
    cost: Option<Cost>,
    more_costs: Vec<Cost>,
}

#[derive(Serialize)]
struct Cost {
    amount: f64,
    currency: String,
}

/// The durations of turns. A percentile is its bucket's upper bound; null above the last bound.
#[derive(Serialize)]
struct Latency {
    bounds_ms: &'static [u64],
    counts: Vec<u64>,
    count: u64,
    sum_ms: u64,
    p50_ms: Option<u64>,
    p90_ms: Option<u64>,
    p99_ms: Option<u64>,
}

/// The digest of several groups.
#[derive(Serialize)]
pub struct Merged {
    #[serde(flatten)]
    summary: Summary,
    groups: usize,
    from: Option<Time>,
    to: Option<Time>,
}

impl Summary {
    /// Shows a group's digest.
    pub fn of_group(group: GroupId, digest: Box<Digest>) -> Self {
        Self { group: Some(group), ..Self::new(*digest) }
    }

    /// Shows a run's digest.
    pub fn of_run(group: GroupId, run: RunDigest) -> Self {
        Self {
            group: Some(group),
            run: Some(run.run),
            agent: Some(run.agent),
            schema_version: run.schema_version,
            ..Self::new(run.digest)
        }
    }

    fn new(digest: Digest) -> Self {
        let context = digest.context.flatten();
        let lasted = digest.first_at.zip(digest.last_at).map(|(first, last)| last.0 - first.0);
        Self {
            group: None,
            run: None,
            agent: None,
            schema_version: SCHEMA_VERSION,
            watermark_seq: Some(digest.watermark_seq),
            frame_count: digest.frame_count,
            turn_count: digest.turn_count,
            first_at: digest.first_at.map(Time),
            last_at: digest.last_at.map(Time),
            duration_ms: lasted.map(|ms| u64::try_from(ms).unwrap_or_default()),
            usage: Usage {
                used: context.map(|context| context.used),
                size: context.map(|context| context.size),
                tokens: digest.tokens,
            },
            costs: Costs::new(&digest.costs),
            by_model: digest.by_model,
            stop_reasons: digest.stop_reasons,
            errors: digest.errors,
            tools: digest.tools,
            permissions: digest.permissions,
            compactions: digest.compactions,
            latency_histogram: Latency::new(&digest.latency),
            outcome: digest.outcome.flatten(),
            outcomes: digest.outcomes,
            findings_count: digest.findings.count,
            findings: digest.findings.newest,
        }
    }
}

impl Costs {
    /// Shows costs that are counted in billionths of their currency.
    pub fn new(costs: &Bounded<u64>) -> Self {
        let mut costs = costs.iter().map(|(currency, billionths)| Cost {
            amount: *billionths as f64 / 1e9,
            currency: currency.to_owned(),
        });
        Self { cost: costs.next(), more_costs: costs.collect() }
    }
}

impl Latency {
    fn new(histogram: &Histogram) -> Self {
        Self {
            bounds_ms: &BOUNDS_MS,
            counts: histogram.counts().collect(),
            count: histogram.count(),
            sum_ms: histogram.sum_ms,
            p50_ms: histogram.percentile_ms(50),
            p90_ms: histogram.percentile_ms(90),
            p99_ms: histogram.percentile_ms(99),
        }
    }
}

impl Merged {
    /// Shows the merged digest without the fields that only make sense for a single group: frame
    /// numbers, the context, the outcome.
    pub fn new(
        mut digest: Digest,
        groups: usize,
        (from, to): (Option<Timestamp>, Option<Timestamp>),
        agent: Option<String>,
    ) -> Self {
        (digest.context, digest.outcome) = (None, None);
        digest.errors.for_each(|class| class.samples.clear());
        digest.findings.newest.clear();
        let summary = Summary { agent, watermark_seq: None, ..Summary::new(digest) };
        Self { summary, groups, from: from.map(Time), to: to.map(Time) }
    }
}
