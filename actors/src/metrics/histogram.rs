//! A histogram of atomics: the library's own takes a lock for each observation.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::Counter},
};

/// Counts of values by size. Clones share it.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds, inclusive, in order. Greater values have the last count.
    bounds: &'static [f64],
    /// One more than the bounds.
    counts: Arc<[AtomicU64]>,
    sum: Counter<f64, AtomicU64>,
}

impl Histogram {
    /// An empty histogram with these upper bounds, in order.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: Counter::default() }
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        // At most the number of bounds, and there is one more count.
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.inc_by(value);
    }

    /// Counts the seconds between two moments; 0 if the clock was set back.
    pub fn observe_ms(&self, from_ms: i64, to_ms: i64) {
        self.observe(to_ms.saturating_sub(from_ms).max(0) as f64 / 1000.0);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // From the counts just read, so that it equals the last bucket.
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum.get(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    /// Both sides of each bound; a bound is in its own bucket.
    #[test]
    fn values_fall_into_their_buckets() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.0, 1.0, 1.5, 2.0, 2.5] {
            histogram.observe(value);
        }
        histogram.observe_ms(5000, 2000);
        let mut registry = Registry::default();
        registry.register("h", "help", histogram);
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        let expected = "h_sum 7.0\nh_count 6\nh_bucket{le=\"1.0\"} 3\nh_bucket{le=\"2.0\"} 5\n\
                        h_bucket{le=\"+Inf\"} 6\n# EOF\n";
        assert!(text.ends_with(expected), "{text}");
    }
}
