//! How long to wait for a collector that takes nothing.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// The longest that is waited of greenroom's own accord.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The longest that is waited because a collector says so (I12).
const ASKED_MAX: Duration = Duration::from_secs(600);

/// Waits that double from the first one on.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(first: Duration) -> Self {
        Self { first, tries: 0 }
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// One more try failed.
    pub fn failed(&mut self) {
        self.tries = self.tries.saturating_add(1);
    }

    /// How long to wait now; `asked` is what the collector asks for.
    pub fn wait(&self, asked: Option<Duration>) -> Duration {
        // So that servers that lost a collector together do not come back together.
        self.wait_with(asked, (RandomState::new().hash_one(()) % 256) as u32)
    }

    fn wait_with(&self, asked: Option<Duration>, of_256: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.tries.saturating_sub(1).min(16));
        let own = doubled.min(WAIT_MAX);
        let own = own - own / 1024 * of_256;
        asked.map_or(own, |asked| asked.clamp(own, ASKED_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_unless_the_collector_says() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let mut waits = |of_256| {
            backoff.reset();
            let mut next = || {
                backoff.failed();
                backoff.wait_with(None, of_256).as_millis()
            };
            (0..8).map(|_| next()).collect()
        };
        let all: Vec<u128> = waits(0);
        assert_eq!(all, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        let least: Vec<u128> = waits(255);
        assert!(least.iter().zip(&all).all(|(least, most)| (most * 3 / 4..*most).contains(least)));
        let seconds = |asked| {
            let wait = Backoff::new(Duration::from_secs(1)).wait_with(Some(asked), 0);
            wait.as_secs()
        };
        assert_eq!(seconds(Duration::from_secs(90)), 90);
        assert_eq!(seconds(Duration::ZERO), 1, "a collector cannot ask for a flood");
        assert_eq!(seconds(Duration::MAX), 600);
        backoff.tries = u32::MAX;
        backoff.failed();
        assert_eq!(backoff.wait_with(None, 0).as_secs(), 60);
    }
}
