//! One metric for each value of a closed set, all of them there from the first scrape, with zeros.
//!
//! A value that somebody adds to a set does not compile here until it is named. No label has a
//! value that is not one of a few: no ids, no names of groups.

use std::{fmt, sync::Arc};

use greenroom_core::{
    Blocked, CompactionStatus, ExitReason, Origin, Source, Status, StopReason, TaskKind, TaskState,
};
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::MetricType,
};

use crate::{storage::Fault, word::word};

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

/// What can be a label: one of a few words.
pub trait Closed: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The label's name.
    const LABEL: &'static str;
    /// All that there are.
    const ALL: &'static [Self];

    /// The contract's word for it.
    fn word(self) -> String;
}

macro_rules! closed {
    ($kind:ident, $label:literal, $word:expr, [$($variant:ident),* $(,)?]) => {
        impl Closed for $kind {
            const LABEL: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn word(self) -> String {
                // Does not compile while one is missing above.
                match self {
                    $(Self::$variant)|* => $word(&self),
                }
            }
        }
    };
}

closed!(TaskKind, "kind", word, [Turn, Compaction]);
closed!(Origin, "origin", word, [Api, Auto, Acp, Retry]);
closed!(
    TaskState,
    "state",
    word,
    [Queued, Running, Retrying, Completed, Failed, Cancelled, Interrupted, Skipped]
);
closed!(
    StopReason,
    "stop_reason",
    word,
    [
        EndTurn,
        MaxTokens,
        MaxTurnRequests,
        Refusal,
        Cancelled,
        Error,
        ProcessExited,
        ServerRestart,
        Deadline,
        Protocol,
        Storage,
    ]
);
closed!(Source, "source", word, [Acp, HermesMeta, HermesStderr, Task]);
closed!(
    CompactionStatus,
    "status",
    word,
    [InProgress, Completed, Failed, Cancelled, Abandoned, Skipped, Noop]
);
closed!(
    ExitReason,
    "reason",
    word,
    [StartFailed, Exited, Stopped, Protocol, ServerRestart, Storage]
);
closed!(
    Status,
    "status",
    word,
    [Idle, Starting, Running, Compacting, Waiting, Paused, Held, Degraded, Archived]
);
closed!(Blocked, "blocked_by", word, [Turn, Slot, Agent, Backoff, Paused, Held, Lock, Storage]);
closed!(
    Fault,
    "fault",
    |fault: &Self| fault.word().to_owned(),
    [DiskFull, ReadOnly, Locked, Corrupt, Replaced, Unsynced, Io, Other]
);

/// What tells the metrics of one family apart.
pub trait Key: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// All that there are.
    fn all() -> Vec<Self>;

    /// As labels.
    fn labels(self) -> Labels;
}

impl<A: Closed> Key for A {
    fn all() -> Vec<Self> {
        A::ALL.to_vec()
    }

    fn labels(self) -> Labels {
        vec![(A::LABEL, self.word())]
    }
}

impl<A: Closed, B: Closed> Key for (A, B) {
    fn all() -> Vec<Self> {
        A::ALL.iter().flat_map(|one| B::ALL.iter().map(|other| (*one, *other))).collect()
    }

    fn labels(self) -> Labels {
        vec![(A::LABEL, self.0.word()), (B::LABEL, self.1.word())]
    }
}

/// A family: a metric for each key. Clones share them.
#[derive(Debug)]
pub struct Each<K, M>(Arc<[(K, Labels, M)]>);

impl<K, M> Clone for Each<K, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Key, M> Each<K, M> {
    /// One metric for each key.
    pub fn new(metric: impl Fn(K) -> M) -> Self {
        Self::only(|_| true, metric)
    }

    /// One metric for each key that can occur.
    pub fn only(occurs: impl Fn(K) -> bool, metric: impl Fn(K) -> M) -> Self {
        let keys = K::all().into_iter().filter(|key| occurs(*key));
        Self(keys.map(|key| (key, key.labels(), metric(key))).collect())
    }

    /// The metric of this key, if it can occur. Looks through a few words in memory.
    pub fn of(&self, key: K) -> Option<&M> {
        self.0.iter().find(|(own, ..)| *own == key).map(|(.., metric)| metric)
    }
}

impl<K: Key, M: EncodeMetric> EncodeMetric for Each<K, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(_, labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        self.0.first().map_or(MetricType::Unknown, |(.., metric)| metric.metric_type())
    }
}
