//! Counts spans by their result, and whether spans wait: for the metrics and for the last log line.
//! Without an export all values are zero.

use greenroom_actors::metrics::{Family, LabelValue};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// The collector's result for a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanResult {
    /// The collector accepted the span.
    Sent,
    /// The collector refused the whole batch; it is dropped.
    Refused,
    /// The collector accepted the batch without this span.
    Rejected,
}

impl LabelValue for SpanResult {
    const LABEL: &'static str = "result";
    const ALL: &'static [Self] = &[Self::Sent, Self::Refused, Self::Rejected];

    fn wire_name(self) -> String {
        match self {
            Self::Sent => "sent",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
        }
        .to_owned()
    }
}

/// The counts. Clones share them.
#[derive(Clone, Debug)]
pub struct Totals {
    spans: Family<SpanResult, Counter>,
    stalled: Gauge,
}

impl Default for Totals {
    fn default() -> Self {
        Self { spans: Family::new(|_| Counter::default()), stalled: Gauge::default() }
    }
}

impl Totals {
    /// Registers all metrics.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("otlp_spans", "Spans by the collector's result; spans that wait are not counted", self.spans.clone());
        to.register("otlp_stalled", "Whether spans wait because the collector takes none, or because ended tasks cannot be read", self.stalled.clone());
    }

    /// Adds `count` spans.
    pub(super) fn add(&self, result: SpanResult, count: u64) {
        if let Some(spans) = self.spans.of(result) {
            spans.inc_by(count);
        }
    }

    /// Returns the number of spans with this result.
    pub(super) fn of(&self, result: SpanResult) -> u64 {
        self.spans.of(result).map_or(0, Counter::get)
    }

    /// Records whether spans wait.
    pub(super) fn set_stalled(&self, is_stalled: bool) {
        self.stalled.set(i64::from(is_stalled));
    }
}
