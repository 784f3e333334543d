//! What is known of a context compaction, whoever ordered it and whoever saw it.

use serde::{Deserialize, Serialize};

/// Who saw something of a compaction, the most trusted first (ARCHITECTURE 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// ACP's `compaction_update`, or what an agent sends in its place.
    Acp,
    /// `_meta.hermes` on an update.
    HermesMeta,
    /// A line that hermes wrote to stderr.
    HermesStderr,
    /// greenroom itself, which ordered it.
    Task,
}

/// One thing that a detector saw of a compaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// The detector.
    pub source: Source,
    /// What it saw.
    pub sign: Sign,
    /// The agent's own name for the compaction, if it gives one: ACP's `compactionId`.
    pub key: Option<String>,
    /// Which of hermes' sessions it is about.
    pub lineage: Lineage,
    /// What else it says.
    pub details: Details,
}

/// What happened to a compaction, in the words of whoever saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It began.
    Started,
    /// It is done, and the context is another.
    Completed,
    /// It failed; the context is unchanged.
    Failed,
    /// It was called off; the context is unchanged.
    Cancelled,
    /// Somebody else compacts, or has compacted, this session.
    Skipped,
    /// It made no progress: nothing was worth compacting.
    Noop,
    /// More is known of it, and it goes on.
    Noted,
}

/// The hermes sessions that a compaction leads from and to, as far as a signal names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The session that is compacted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The session that goes on in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// One of the two, nobody says which: the `session=` of hermes' `done` line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub either: Option<String>,
}

/// What a signal says of a compaction beside its lifecycle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Messages in the context before it.
    pub messages_before: Option<u64>,
    /// Messages in the context after it.
    pub messages_after: Option<u64>,
    /// Tokens in the context before it.
    pub tokens_before: Option<u64>,
    /// Tokens in the context after it.
    pub tokens_after: Option<u64>,
    /// The summary that stands for what was compacted, up to [`SUMMARY_BYTES_MAX`].
    pub summary: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// The most that is kept of a summary.
pub const SUMMARY_BYTES_MAX: usize = 64 << 10;

/// Which hermes session is in force behind an ACP session, as the agent tells in `_meta.hermes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// hermes' own id of the session in force: the one to load after a restart.
    pub current: String,
    /// hermes' own id of the session that it continues.
    pub previous: Option<String>,
    /// Whether a compaction led to it (`reason: "compression"`, `lastMode: "session_split"`).
    pub compacted: bool,
    /// All of it, as the agent gave it.
    pub given: crate::Json,
}
