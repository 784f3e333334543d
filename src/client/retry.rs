//! How long a command retries while the server is unreachable: longer than a restart takes.

use std::{thread, time::Duration};

use super::ClientError;

/// The first pause between two attempts; it doubles up to one of the two maxima.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_millis(1_500);
const ENDLESS_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The sum of pauses after which a command gives up. The attempts themselves do not count: a
/// request may wait for the end of a task.
const LIMIT: Duration = Duration::from_secs(30);

/// The pauses between attempts, and their sum since the server last answered.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    pause_max: Duration,
    waited: Duration,
    limit: Duration,
}

impl Backoff {
    /// A backoff that gives up after half a minute.
    pub fn bounded() -> Self {
        Self { pause: PAUSE, pause_max: PAUSE_MAX, waited: Duration::ZERO, limit: LIMIT }
    }

    /// A backoff that never gives up.
    pub fn endless() -> Self {
        Self { pause_max: ENDLESS_PAUSE_MAX, limit: Duration::MAX, ..Self::bounded() }
    }

    /// Records that the server answered: earlier failures no longer count.
    pub fn answered(&mut self) {
        self.waited = Duration::ZERO;
    }

    /// Records that the server sent something new: the next pause is short again, too.
    pub fn progressed(&mut self) {
        self.answered();
        self.pause = PAUSE;
    }

    /// Whether the pauses since the server last answered add up to the limit.
    pub fn is_exhausted(&self) -> bool {
        self.limit <= self.waited
    }

    /// Whether no attempt failed since the server last answered.
    pub fn is_fresh(&self) -> bool {
        self.waited.is_zero()
    }

    /// Pauses before the next attempt.
    pub fn pause(&mut self) {
        thread::sleep(self.pause);
        self.waited += self.pause;
        self.pause = self.pause_max.min(self.pause * 2);
    }

    /// Pauses after a failed attempt.
    ///
    /// # Errors
    ///
    /// `error` itself, at once, if it is final or if the backoff is exhausted.
    pub fn pause_after(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_transient() || self.is_exhausted() {
            return Err(error);
        }
        self.pause();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn unreachable() -> ClientError {
        ClientError::Problem { status: 502, message: String::new(), document: None }
    }

    /// A backoff with pauses of nanoseconds.
    fn short(limit: Duration) -> Backoff {
        Backoff { pause: Duration::from_nanos(1), limit, ..Backoff::bounded() }
    }

    #[test]
    fn bounded_backoff_ends_and_every_answer_renews_it() {
        let mut backoff = short(Duration::from_nanos(7));
        let failed =
            |backoff: &mut Backoff| (0..9).find(|_| backoff.pause_after(unreachable()).is_err());
        assert_eq!(failed(&mut backoff), Some(3), "1, 2 and 4 ns");
        backoff.progressed();
        backoff.pause = Duration::from_nanos(7);
        assert_eq!(failed(&mut backoff), Some(1));
        backoff.answered();
        backoff.pause_after(unreachable()).unwrap();
        let mut endless = Backoff { limit: Duration::MAX, ..short(Duration::ZERO) };
        assert_eq!(failed(&mut endless), None);
    }

    #[test]
    fn a_final_error_is_not_retried() {
        let mut backoff = Backoff::endless();
        let refused = ClientError::Problem { status: 404, message: String::new(), document: None };
        assert!(backoff.pause_after(refused).is_err() && backoff.is_fresh());
    }

    #[test]
    fn bounded_backoff_is_longer_than_a_restart() {
        let mut backoff = Backoff::bounded();
        let mut pauses = Vec::new();
        while backoff.waited < backoff.limit {
            pauses.push(backoff.pause.as_millis());
            backoff.waited += backoff.pause;
            backoff.pause = backoff.pause_max.min(backoff.pause * 2);
        }
        assert_eq!((&pauses[..5], pauses.len()), (&[250, 500, 1000, 1500, 1500][..], 22));
    }
}
