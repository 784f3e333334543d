//! Digests: the summaries of a group, a run and a turn.
//!
//! They are a projection of facts, the same live, at a rebuild and in `verify` (I6). Each fact
//! becomes a small [`Digest`], and all else is [`Digest::merge`]: a group's digest is its runs'
//! plus what lies between them. No rule reads a digest.

// Sums by name, with a limit on the names.
mod count;
// Durations in fixed classes.
mod histogram;
// Which fact adds what.
mod projection;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::{
    count::{Bounded, Tokens, ToolUse},
    histogram::{BOUNDS_MS, Histogram},
    projection::{Digests, RunDigest, Sealed},
};
use crate::{CompactionId, Exit, ExitReason, PermissionId, StopReason, TaskId, Timestamp};

/// The version of stored digests. One of another version is rebuilt before it is served (TD-6).
pub const SCHEMA_VERSION: u32 = 1;

/// How many frames of each error class are kept, the newest.
const SAMPLES_MAX: usize = 5;
/// How many findings are kept, the newest.
const FINDINGS_MAX: usize = 5;

/// The summary of a stretch of a transcript.
///
/// It is stored: a field that an earlier version did not write needs a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digest {
    /// The last frame that it includes.
    #[serde(skip_serializing_if = "is_default")]
    pub watermark_seq: u64,
    /// The number of frames.
    #[serde(skip_serializing_if = "is_default")]
    pub frame_count: u64,
    /// How many started turns ended (TD-8).
    #[serde(skip_serializing_if = "is_default")]
    pub turn_count: u64,
    /// When the first frame was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_at: Option<Timestamp>,
    /// When the last frame was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
    /// The last reported usage; `Some(None)`: the context has been replaced since.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub context: Option<Option<Context>>,
    /// What the answers to prompts reported as spent (TD-9).
    #[serde(skip_serializing_if = "is_default")]
    pub tokens: Tokens,
    /// The same by model, from agents that report it.
    #[serde(skip_serializing_if = "is_default")]
    pub by_model: Bounded<Tokens>,
    /// The costs by currency, in billionths.
    #[serde(skip_serializing_if = "is_default")]
    pub costs: Bounded<u64>,
    /// Why turns stopped.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_reasons: BTreeMap<StopReason, u64>,
    /// Errors by class: the code of a task's error, or the fact's name.
    #[serde(skip_serializing_if = "is_default")]
    pub errors: Bounded<ErrorClass>,
    /// Tool calls by the tool's name.
    #[serde(skip_serializing_if = "is_default")]
    pub tools: Bounded<ToolUse>,
    /// How permissions were resolved.
    #[serde(skip_serializing_if = "is_default")]
    pub permissions: Permissions,
    /// How compactions ended.
    #[serde(skip_serializing_if = "is_default")]
    pub compactions: Compactions,
    /// The durations of turns.
    #[serde(skip_serializing_if = "is_default")]
    pub latency: Histogram,
    /// How runs ended.
    #[serde(skip_serializing_if = "is_default")]
    pub outcomes: BTreeMap<Outcome, u64>,
    /// How it ended; `Some(None)`: it continues.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub outcome: Option<Option<Outcome>>,
    /// What a person should look at.
    #[serde(skip_serializing_if = "is_default")]
    pub findings: Findings,
}

impl Digest {
    /// Adds a later digest, or one beside it.
    pub fn merge(&mut self, later: &Self) {
        self.watermark_seq = self.watermark_seq.max(later.watermark_seq);
        self.frame_count += later.frame_count;
        self.turn_count += later.turn_count;
        self.first_at = [self.first_at, later.first_at].into_iter().flatten().min();
        self.last_at = self.last_at.max(later.last_at);
        self.context = later.context.or(self.context);
        self.tokens.add(&later.tokens);
        self.by_model.merge(&later.by_model, Tokens::add);
        self.costs.merge(&later.costs, |sum, more| *sum = sum.saturating_add(*more));
        add_all(&mut self.stop_reasons, &later.stop_reasons);
        self.errors.merge(&later.errors, ErrorClass::merge);
        self.tools.merge(&later.tools, ToolUse::add);
        self.permissions.add(&later.permissions);
        self.compactions.add(&later.compactions);
        self.latency.merge(&later.latency);
        add_all(&mut self.outcomes, &later.outcomes);
        self.outcome = later.outcome.or(self.outcome);
        self.findings.merge(&later.findings);
    }

    /// Returns how it ended, if it did.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.flatten()
    }
}

/// The usage of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Tokens in use.
    pub used: u64,
    /// Tokens that fit.
    pub size: u64,
}

/// Errors of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorClass {
    /// The number of errors.
    pub count: u64,
    /// The frames of the newest ones.
    pub samples: Vec<u64>,
}

impl ErrorClass {
    fn at(seq: u64) -> Self {
        Self { count: 1, samples: vec![seq] }
    }

    fn merge(&mut self, later: &Self) {
        self.count += later.count;
        self.samples.extend(&later.samples);
        keep_newest(&mut self.samples, SAMPLES_MAX);
    }
}

/// Counts of permissions by their resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// How many the agent asked for.
    pub asked: u64,
    /// An option was selected.
    pub selected: u64,
    /// The answer was `cancelled`.
    pub cancelled: u64,
    /// They reached their deadline.
    pub expired: u64,
    /// They ended with their turn or run.
    pub void: u64,
}

impl Permissions {
    fn add(&mut self, later: &Self) {
        self.asked += later.asked;
        self.selected += later.selected;
        self.cancelled += later.cancelled;
        self.expired += later.expired;
        self.void += later.void;
    }
}

/// Counts of compactions by their end, and what they freed. A late completion takes back the
/// abandoned one (AM-23), so a fact may add negative numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compactions {
    /// Completed.
    pub completed: i64,
    /// Failed.
    pub failed: i64,
    /// Cancelled.
    pub cancelled: i64,
    /// Abandoned: the end was not seen in time.
    pub abandoned: i64,
    /// Skipped: they had no lock or no strategy.
    pub skipped: i64,
    /// There was nothing to compact.
    pub noop: i64,
    /// The tokens before the completed ones, of those with both numbers known.
    pub tokens_before: i64,
    /// The tokens after them.
    pub tokens_after: i64,
}

impl Compactions {
    fn add(&mut self, later: &Self) {
        self.add_times(later, 1);
    }

    fn subtract(&mut self, earlier: &Self) {
        self.add_times(earlier, -1);
    }

    fn add_times(&mut self, other: &Self, sign: i64) {
        self.completed += sign * other.completed;
        self.failed += sign * other.failed;
        self.cancelled += sign * other.cancelled;
        self.abandoned += sign * other.abandoned;
        self.skipped += sign * other.skipped;
        self.noop += sign * other.noop;
        self.tokens_before += sign * other.tokens_before;
        self.tokens_after += sign * other.tokens_after;
    }
}

/// How a run or a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It exited with code 0.
    Exited,
    /// It exited with another code, or by a signal.
    Crashed,
    /// It did not start, or was not ready in time.
    StartFailed,
    /// greenroom stopped it: for a caller, or because it was idle or evicted.
    Stopped,
    /// It broke the protocol.
    Protocol,
    /// Its server, or its group's actor, died.
    ServerRestart,
    /// greenroom could not store its output.
    Storage,
    /// The group was archived.
    Deleted,
}

impl Outcome {
    /// Whether it is a finding.
    pub fn is_abnormal(self) -> bool {
        match self {
            Self::Exited | Self::Stopped | Self::Deleted => false,
            Self::Crashed
            | Self::StartFailed
            | Self::Protocol
            | Self::ServerRestart
            | Self::Storage => true,
        }
    }
}

impl From<&Exit> for Outcome {
    fn from(exit: &Exit) -> Self {
        match exit.reason {
            ExitReason::Exited if exit.code == Some(0) => Self::Exited,
            ExitReason::Exited => Self::Crashed,
            ExitReason::StartFailed | ExitReason::AgentAuth => Self::StartFailed,
            ExitReason::Stopped => Self::Stopped,
            ExitReason::Protocol => Self::Protocol,
            ExitReason::ServerRestart => Self::ServerRestart,
            ExitReason::Storage => Self::Storage,
        }
    }
}

/// Findings: what a person should look at (TD-10).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings {
    /// The number of findings.
    pub count: u64,
    /// The newest of them.
    pub newest: Vec<Finding>,
}

impl Findings {
    fn one(finding: Finding) -> Self {
        Self { count: 1, newest: vec![finding] }
    }

    fn merge(&mut self, later: &Self) {
        self.count += later.count;
        self.newest.extend_from_slice(&later.newest);
        keep_newest(&mut self.newest, FINDINGS_MAX);
    }
}

/// A finding, and its frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The frame's number.
    pub seq: u64,
    /// What was found.
    #[serde(flatten)]
    pub kind: FindingKind,
}

/// The kinds of findings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FindingKind {
    /// A prompt that the agent never answered.
    IncompleteTurn {
        /// Its task.
        task: TaskId,
    },
    /// A turn was completed without message text and without a tool call.
    EmptyAnswer {
        /// Its task.
        task: TaskId,
    },
    /// The only output of a turn is the summary of a compaction that was ordered before it.
    AnsweredByCompaction {
        /// Its task.
        task: TaskId,
    },
    /// A tool call had no result when its run ended.
    ToolWithoutResult {
        /// The agent's name for the call.
        tool_call: String,
        /// The tool.
        tool: String,
    },
    /// A permission ended unanswered with its turn or run.
    UnansweredPermission {
        /// The permission.
        permission: PermissionId,
    },
    /// A run ended abnormally.
    AbnormalStop {
        /// How it ended.
        outcome: Outcome,
        /// The explanation.
        detail: String,
    },
}

/// A compaction that is counted, and as what: a later fact about it replaces that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CountedCompaction {
    compaction: CompactionId,
    counted: Compactions,
}

fn add_all<K: Ord + Copy>(sums: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (key, count) in more {
        *sums.entry(*key).or_default() += count;
    }
}

fn keep_newest<T>(list: &mut Vec<T>, max: usize) {
    let excess = list.len().saturating_sub(max);
    list.drain(..excess);
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Deserializes a present `null` to `Some(None)`; an absent field stays `None`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
