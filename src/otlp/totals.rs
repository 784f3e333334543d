//! What became of spans since the start, and whether they wait: for the last line of the log, and
//! for whoever scrapes. Without an export it is all zeros.

use greenroom_actors::metrics::{Closed, Each};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// What a collector did with a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It took it.
    Sent,
    /// It refused the whole batch, which is left out.
    Refused,
    /// It took the batch without this one.
    Rejected,
}

impl Closed for Fate {
    const LABEL: &'static str = "result";
    const ALL: &'static [Self] = &[Self::Sent, Self::Refused, Self::Rejected];

    fn word(self) -> String {
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
    spans: Each<Fate, Counter>,
    stalled: Gauge,
}

impl Default for Totals {
    fn default() -> Self {
        Self { spans: Each::new(|_| Counter::default()), stalled: Gauge::default() }
    }
}

impl Totals {
    /// Names all of it.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("otlp_spans", "Spans by what the collector did with them; those that it did not take yet are none of these", self.spans.clone());
        to.register("otlp_stalled", "Whether spans wait because the collector takes none, or because what ended cannot be read", self.stalled.clone());
    }

    /// So many more.
    pub(super) fn add(&self, fate: Fate, count: u64) {
        if let Some(spans) = self.spans.of(fate) {
            spans.inc_by(count);
        }
    }

    /// How many by now.
    pub(super) fn of(&self, fate: Fate) -> u64 {
        self.spans.of(fate).map_or(0, Counter::get)
    }

    /// Whether they go on.
    pub(super) fn stall(&self, is_stalled: bool) {
        self.stalled.set(i64::from(is_stalled));
    }
}
