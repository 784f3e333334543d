//! How long to wait for a collector that accepts no spans.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// The longest wait that greenroom chooses itself.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The longest wait on a collector's request (I12).
const REQUESTED_MAX: Duration = Duration::from_secs(600);

/// Waits that double with every failure.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// Starts again with the first wait.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Records a failed attempt.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Returns the next wait; `requested` is the collector's `Retry-After`.
    pub fn wait(&self, requested: Option<Duration>) -> Duration {
        // Jitter: servers that lost a collector together do not return together.
        self.wait_with(requested, (RandomState::new().hash_one(()) % 256) as u32)
    }

    fn wait_with(&self, requested: Option<Duration>, jitter_256: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        let backoff = doubled.min(WAIT_MAX);
        let backoff = backoff - backoff / 1024 * jitter_256;
        requested.map_or(backoff, |requested| requested.clamp(backoff, REQUESTED_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_unless_the_collector_requests_longer() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let mut waits = |jitter_256| {
            backoff.reset();
            let mut next = || {
                backoff.failed();
                backoff.wait_with(None, jitter_256).as_millis()
            };
            (0..8).map(|_| next()).collect()
        };
        let all: Vec<u128> = waits(0);
        assert_eq!(all, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        let least: Vec<u128> = waits(255);
        assert!(least.iter().zip(&all).all(|(least, most)| (most * 3 / 4..*most).contains(least)));
        let seconds = |requested| {
            let wait = Backoff::new(Duration::from_secs(1)).wait_with(Some(requested), 0);
            wait.as_secs()
        };
        assert_eq!(seconds(Duration::from_secs(90)), 90);
        assert_eq!(seconds(Duration::ZERO), 1, "a collector cannot request a flood");
        assert_eq!(seconds(Duration::MAX), 600);
        backoff.failures = u32::MAX;
        backoff.failed();
        assert_eq!(backoff.wait_with(None, 0).as_secs(), 60);
    }
}
