//! What detectors report of a compaction: signals, sessions, details.

use serde::{Deserialize, Serialize};

use crate::Json;

/// The source of a report, the most trusted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// ACP's `compaction_update`, or what an agent sends instead.
    Acp,
    /// `_meta.hermes` on an update.
    HermesMeta,
    /// A line of hermes on stderr.
    HermesStderr,
    /// greenroom itself, which ordered it.
    Task,
}

impl Source {
    /// Whether its reports may be late: it is not read in step with the agent's messages.
    pub(crate) fn may_be_late(self) -> bool {
        match self {
            Self::HermesStderr => true,
            Self::Acp | Self::HermesMeta | Self::Task => false,
        }
    }

    /// Whether it reports only the last compaction that a turn completed, at the turn's end.
    pub(crate) fn reports_last_only(self) -> bool {
        match self {
            Self::HermesMeta => true,
            Self::Acp | Self::HermesStderr | Self::Task => false,
        }
    }
}

/// One report of a detector.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionSignal {
    /// The detector.
    pub source: Source,
    /// What happened.
    pub kind: SignalKind,
    /// The agent's own name for the compaction, if it gives one: ACP's `compactionId`.
    pub key: Option<String>,
    /// The agent's own sessions that it names.
    pub lineage: Lineage,
    /// The other details.
    pub details: Details,
}

/// What happened to a compaction, as a detector reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalKind {
    /// It began.
    Started,
    /// It is done, and the context is replaced.
    Completed,
    /// It failed; the context is unchanged.
    Failed,
    /// It was cancelled; the context is unchanged.
    Cancelled,
    /// Another party compacts, or has compacted, this session.
    Skipped,
    /// There was nothing worth compacting.
    Noop,
    /// It continues, and more is known of it.
    Noted,
}

/// The agent's own sessions before and after a compaction, as far as they are named. An agent may
/// exchange them under one ACP session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The session that is compacted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The session that replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// One of the two, unknown which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub either: Option<String>,
    /// The agent's form of `either`: what is given of that session if it is the one after. Not
    /// stored: it matters only in the run that reported it.
    #[serde(skip)]
    pub given: Option<Json>,
}

/// The details of a compaction beside its status.
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
    /// The summary that replaces the context, up to [`SUMMARY_BYTES_MAX`].
    pub summary: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// The most bytes of a summary that are kept.
pub const SUMMARY_BYTES_MAX: usize = 64 << 10;

/// Which of the agent's own sessions an ACP session stands for, as the agent reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The agent's id of the session in force: the one to restore in the next run.
    pub current: String,
    /// The agent's id of the session that it continues.
    pub previous: Option<String>,
    /// Whether a compaction led to it.
    pub compacted: bool,
    /// The whole report, unchanged.
    pub given: Json,
}
