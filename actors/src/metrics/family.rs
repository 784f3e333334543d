//! Metric families over closed sets of label values, complete from the first scrape, with zeros.
//!
//! A new value of a set does not compile until it is listed here. Labels never have open values,
//! such as ids or names of groups.

use std::{fmt, sync::Arc};

use greenroom_core::{
    Blocked, CompactionStatus, EndState, ExitReason, Origin, Source, Status, StopReason, TaskKind,
    TaskState,
};
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::MetricType,
};

use crate::{storage::Fault, wire_name::wire_name};

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

/// A value of a closed set, which can be a label's value.
pub trait LabelValue: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The label's name.
    const LABEL: &'static str;
    /// All values.
    const ALL: &'static [Self];

    /// Returns the API's word for it.
    fn wire_name(self) -> String;
}

macro_rules! label_values {
    (
        $kind:ident, $label:literal, $word:expr, [$($variant:ident),* $(,)?]
        $(, never $other:pat)?
    ) => {
        impl LabelValue for $kind {
            const LABEL: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn wire_name(self) -> String {
                // Does not compile while a value is missing above.
                match self {
                    $(Self::$variant)|* => $word(&self),
                    $($other => $word(&self),)?
                }
            }
        }
    };
}

label_values!(TaskKind, "kind", wire_name, [Turn, Compaction]);
label_values!(Origin, "origin", wire_name, [Api, Auto, Acp, Retry]);
label_values!(EndState, "state", wire_name, [Completed, Failed, Cancelled, Interrupted, Skipped]);
label_values!(
    TaskState,
    "state",
    wire_name,
    [Queued, Running, Retrying, Completed, Failed, Cancelled, Interrupted, Skipped]
);
label_values!(
    StopReason,
    "stop_reason",
    wire_name,
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
        Unclear,
    ],
    never Self::Other(_)
);
label_values!(Source, "source", wire_name, [Acp, HermesMeta, HermesStderr, Task]);
label_values!(
    CompactionStatus,
    "status",
    wire_name,
    [InProgress, Completed, Failed, Cancelled, Abandoned, Skipped, Noop]
);
label_values!(
    ExitReason,
    "reason",
    wire_name,
    [StartFailed, AgentAuth, Exited, Stopped, Protocol, ServerRestart, Storage]
);
label_values!(
    Status,
    "status",
    wire_name,
    [Idle, Starting, Running, Compacting, Waiting, Paused, Held, Degraded, Archived]
);
label_values!(
    Blocked,
    "blocked_by",
    wire_name,
    [Turn, Slot, Agent, AgentAuth, Backoff, Paused, Held, Lock, Storage]
);
label_values!(
    Fault,
    "fault",
    |fault: &Self| fault.wire_name().to_owned(),
    [DiskFull, ReadOnly, Locked, Corrupt, Replaced, Unsynced, Stalled, Io, Other]
);

/// The labels that distinguish the metrics of one family.
pub trait LabelKey: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// All keys.
    fn all() -> Vec<Self>;

    /// Returns the names and values of the labels.
    fn labels(self) -> Labels;
}

impl<A: LabelValue> LabelKey for A {
    fn all() -> Vec<Self> {
        A::ALL.to_vec()
    }

    fn labels(self) -> Labels {
        vec![(A::LABEL, self.wire_name())]
    }
}

impl<A: LabelValue, B: LabelValue> LabelKey for (A, B) {
    fn all() -> Vec<Self> {
        A::ALL.iter().flat_map(|one| B::ALL.iter().map(|other| (*one, *other))).collect()
    }

    fn labels(self) -> Labels {
        vec![(A::LABEL, self.0.wire_name()), (B::LABEL, self.1.wire_name())]
    }
}

/// A family: one metric for each key. Clones share them.
#[derive(Debug)]
pub struct Family<K, M>(Arc<[(K, Labels, M)]>);

impl<K, M> Clone for Family<K, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: LabelKey, M> Family<K, M> {
    /// One metric for each key.
    pub fn new(metric: impl Fn(K) -> M) -> Self {
        Self::only(|_| true, metric)
    }

    /// One metric for each key that can occur.
    pub fn only(occurs: impl Fn(K) -> bool, metric: impl Fn(K) -> M) -> Self {
        let keys = K::all().into_iter().filter(|key| occurs(*key));
        Self(keys.map(|key| (key, key.labels(), metric(key))).collect())
    }

    /// Returns the metric of this key, if the key can occur. Searches a short list.
    pub fn of(&self, key: K) -> Option<&M> {
        self.0.iter().find(|(known, ..)| *known == key).map(|(.., metric)| metric)
    }
}

impl<K: LabelKey, M: EncodeMetric> EncodeMetric for Family<K, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(_, labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        self.0.first().map_or(MetricType::Unknown, |(.., metric)| metric.metric_type())
    }
}
