//! The summary of a group, a run and a turn: one fold over facts, for life, rebuilding and
//! `verify` (I6).
//!
//! Owns what is summed up and how. A fact becomes a small [`Digest`] of its own, and everything
//! else is [`Digest::merge`]: a group's is its runs' and what was between them. It decides nothing:
//! no rule asks a digest.

mod count;
mod fold;
mod histogram;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::{
    count::{Bounded, Tokens, ToolUse},
    fold::{Closed, Digests, RunDigest},
    histogram::{BOUNDS_MS, Histogram},
};
use crate::{CompactionId, Exit, ExitReason, PermissionId, StopReason, TaskId, Timestamp};

/// The form of a stored digest. One of an older form is folded again before it is served
/// (SEEDS TD-6).
pub const SCHEMA_VERSION: u32 = 1;

/// So many frames of each class of error are named, the newest.
const SAMPLES_MAX: usize = 5;
/// So many findings are kept, the newest.
const FINDINGS_MAX: usize = 5;

/// What a stretch of a transcript comes to.
///
/// It is stored: a field that an earlier version did not write needs a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digest {
    /// The last frame that is in it.
    #[serde(skip_serializing_if = "is_default")]
    pub watermark_seq: u64,
    /// How many frames.
    #[serde(skip_serializing_if = "is_default")]
    pub frame_count: u64,
    /// How many turns ended of those that were started (SEEDS TD-8).
    #[serde(skip_serializing_if = "is_default")]
    pub turn_count: u64,
    /// When the first frame was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_at: Option<Timestamp>,
    /// When the last one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
    /// How full the context is, as last reported; `Some(None)`: it is another one since.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub context: Option<Option<Context>>,
    /// What settled prompts say that they spent (SEEDS TD-9).
    #[serde(skip_serializing_if = "is_default")]
    pub tokens: Tokens,
    /// The same by model, from agents that tell.
    #[serde(skip_serializing_if = "is_default")]
    pub by_model: Bounded<Tokens>,
    /// What was paid, by currency, in billionths.
    #[serde(skip_serializing_if = "is_default")]
    pub costs: Bounded<u64>,
    /// Why turns stopped.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_reasons: BTreeMap<StopReason, u64>,
    /// What went wrong, by class: the code of a task's error, or the fact's name.
    #[serde(skip_serializing_if = "is_default")]
    pub errors: Bounded<ErrorClass>,
    /// What tools were called, by name.
    #[serde(skip_serializing_if = "is_default")]
    pub tools: Bounded<ToolUse>,
    /// What became of the permissions that were asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub permissions: Permissions,
    /// How compactions ended.
    #[serde(skip_serializing_if = "is_default")]
    pub compactions: Compactions,
    /// How long turns took.
    #[serde(skip_serializing_if = "is_default")]
    pub latency: Histogram,
    /// How runs ended.
    #[serde(skip_serializing_if = "is_default")]
    pub outcomes: BTreeMap<Outcome, u64>,
    /// How it ended; `Some(None)`: it goes on.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub outcome: Option<Option<Outcome>>,
    /// What a person should look at.
    #[serde(skip_serializing_if = "is_default")]
    pub findings: Findings,
}

impl Digest {
    /// Takes in what came after it, or beside it.
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

    /// How it ended, if it did.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.flatten()
    }
}

/// How full the context is.
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
    /// How many.
    pub count: u64,
    /// The frames of the newest.
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

/// What became of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// How many were asked for.
    pub asked: u64,
    /// One of the options was chosen.
    pub selected: u64,
    /// Answered `cancelled`.
    pub cancelled: u64,
    /// Nobody answered in time.
    pub expired: u64,
    /// Nobody answered, and what it was for is over.
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

/// How compactions ended, and what they freed. A late `done` takes the abandoned one back
/// (SEEDS AM-23), so that what one fact adds may be less than nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compactions {
    /// Done.
    pub completed: i64,
    /// Failed.
    pub failed: i64,
    /// Called off.
    pub cancelled: i64,
    /// Began and never ended.
    pub abandoned: i64,
    /// Left to somebody else.
    pub skipped: i64,
    /// Nothing to compact.
    pub noop: i64,
    /// Tokens before those completed ones of which both numbers are known.
    pub tokens_before: i64,
    /// Tokens after them.
    pub tokens_after: i64,
}

impl Compactions {
    fn add(&mut self, later: &Self) {
        self.apply(later, 1);
    }

    fn apply(&mut self, other: &Self, sign: i64) {
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

/// How a run ended, or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ended by itself and well.
    Exited,
    /// It ended by itself, with another code than 0 or by a signal.
    Crashed,
    /// It could not be started, or was not ready in time.
    StartFailed,
    /// greenroom ended it: somebody asked, or it was idle.
    Stopped,
    /// It broke the protocol.
    Protocol,
    /// Its server died.
    ServerRestart,
    /// What it did could not be stored.
    Storage,
    /// Of a group: it was deleted.
    Deleted,
}

impl Outcome {
    /// Whether a person may want to know why.
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
            ExitReason::StartFailed => Self::StartFailed,
            ExitReason::Stopped => Self::Stopped,
            ExitReason::Protocol => Self::Protocol,
            ExitReason::ServerRestart => Self::ServerRestart,
            ExitReason::Storage => Self::Storage,
        }
    }
}

/// What a person should look at (SEEDS TD-10).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings {
    /// How many there were.
    pub count: u64,
    /// The newest of them.
    pub newest: Vec<Flaw>,
}

impl Findings {
    fn one(flaw: Flaw) -> Self {
        Self { count: 1, newest: vec![flaw] }
    }

    fn merge(&mut self, later: &Self) {
        self.count += later.count;
        self.newest.extend_from_slice(&later.newest);
        keep_newest(&mut self.newest, FINDINGS_MAX);
    }
}

/// One finding, and the frame by which it was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flaw {
    /// The frame's number.
    pub seq: u64,
    /// What it is.
    #[serde(flatten)]
    pub kind: FlawKind,
}

/// What is odd about a stretch of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FlawKind {
    /// A prompt that the agent never answered.
    IncompleteTurn {
        /// Its task.
        task: TaskId,
    },
    /// A turn is completed, and the agent said nothing and called no tool.
    EmptyAnswer {
        /// Its task.
        task: TaskId,
    },
    /// A tool was called, and its run ended without a result.
    ToolWithoutResult {
        /// The agent's name for the call.
        tool_call: String,
        /// The tool.
        tool: String,
    },
    /// A permission that nobody answered before what it was for was over.
    UnansweredPermission {
        /// Which.
        permission: PermissionId,
    },
    /// The run ended as no run should.
    AbnormalStop {
        /// How.
        outcome: Outcome,
        /// In words.
        detail: String,
    },
}

/// A compaction as a fold remembers it, to tell a change from a new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Told {
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

/// Tells `null`, which is said, from nothing.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
