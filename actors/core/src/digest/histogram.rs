//! A histogram of durations, with fixed classes.

use serde::{Deserialize, Serialize};

/// The upper bounds of the classes, milliseconds: each twice the one before, from one millisecond
/// to seventy minutes. A class holds the durations above the bound before it, up to its own. After
/// the last is one more class, without a bound.
pub const BOUNDS_MS: [u64; 23] = {
    let mut bounds = [1; 23];
    let mut at = 1;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1] * 2;
        at += 1;
    }
    bounds
};

/// A histogram over [`BOUNDS_MS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// The count of each class, up to the last that is not empty.
    counts: Vec<u64>,
    /// The sum of all durations, milliseconds.
    pub sum_ms: u64,
}

impl Histogram {
    /// A single duration.
    pub fn one(ms: u64) -> Self {
        let class = BOUNDS_MS.partition_point(|bound| *bound < ms);
        let mut counts = vec![0; class + 1];
        counts[class] = 1;
        Self { counts, sum_ms: ms }
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        let classes = self.counts.len().max(other.counts.len());
        self.counts.resize(classes, 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, more)| *sum += more);
        self.sum_ms = self.sum_ms.saturating_add(other.sum_ms);
    }

    /// Returns the count of each class: one for each of [`BOUNDS_MS`], and the unbounded one.
    pub fn counts(&self) -> impl ExactSizeIterator<Item = u64> {
        (0..BOUNDS_MS.len() + 1).map(|class| self.counts.get(class).copied().unwrap_or_default())
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the percentile, rounded up to its class's bound, which is less than twice the true
    /// value. `None` if there are no durations, or if it is above the last bound.
    pub fn percentile_ms(&self, percent: u64) -> Option<u64> {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut below = 0;
        let class = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        });
        class.and_then(|class| BOUNDS_MS.get(class).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_ends_with_its_bound() {
        #[rustfmt::skip]
        let cases = [
            (0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1024, 10), (1025, 11),
            (4_194_304, 22), (4_194_305, 23), (u64::MAX, 23),
        ];
        for (ms, class) in cases {
            let counts: Vec<u64> = Histogram::one(ms).counts().collect();
            let expected: Vec<u64> = (0..24).map(|other| u64::from(other == class)).collect();
            assert_eq!(counts, expected, "{ms}");
        }
    }

    #[test]
    fn percentiles_are_bounds() {
        let mut all = Histogram::default();
        assert_eq!(all.percentile_ms(50), None);
        for ms in [3, 3, 3, 100, 5_000_000] {
            all.merge(&Histogram::one(ms));
        }
        let found = [1, 50, 60, 61, 80, 81, 100].map(|percent| all.percentile_ms(percent));
        assert_eq!(found, [Some(4), Some(4), Some(4), Some(128), Some(128), None, None]);
        assert_eq!((all.count(), all.sum_ms), (5, 5_000_109));
    }
}
