//! How long a command retries while the server is away: longer than a restart takes.

use std::thread;
use std::time::Duration;

use super::ClientError;

/// The first pause between two attempts, doubled up to one of the other values.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_millis(1_500);
const ENDLESS_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The sum of pauses after which a command gives up. The attempts themselves do not count: a
/// request may wait for a task's end.
const LASTS: Duration = Duration::from_secs(30);

/// The pauses since the server last answered.
#[derive(Debug)]
pub struct Patience {
    pause: Duration,
    pause_max: Duration,
    spent: Duration,
    lasts: Duration,
}

impl Patience {
    /// Gives up after half a minute.
    pub fn bounded() -> Self {
        Self { pause: PAUSE, pause_max: PAUSE_MAX, spent: Duration::ZERO, lasts: LASTS }
    }

    /// Never gives up.
    pub fn endless() -> Self {
        Self { pause_max: ENDLESS_PAUSE_MAX, lasts: Duration::MAX, ..Self::bounded() }
    }

    /// The server answered: earlier failures no longer count.
    pub fn answered(&mut self) {
        self.spent = Duration::ZERO;
    }

    /// The server sent something new: the next pause is short again, too.
    pub fn progressed(&mut self) {
        self.answered();
        self.pause = PAUSE;
    }

    /// Whether the pauses since the server last answered add up to all that it lasts.
    pub fn is_used_up(&self) -> bool {
        self.lasts <= self.spent
    }

    /// Whether no attempt failed since the server last answered.
    pub fn is_fresh(&self) -> bool {
        self.spent.is_zero()
    }

    /// Pauses before the next attempt.
    pub fn pause(&mut self) {
        thread::sleep(self.pause);
        self.spent += self.pause;
        self.pause = self.pause_max.min(self.pause * 2);
    }

    /// Pauses after a failed attempt.
    ///
    /// # Errors
    ///
    /// `error` itself, at once, if it is final or if the patience is used up.
    pub fn pause_after(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_passing() || self.is_used_up() {
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

    fn away() -> ClientError {
        ClientError::Problem { status: 502, message: String::new(), is_document: false }
    }

    /// A patience with short pauses.
    fn short(lasts: Duration) -> Patience {
        Patience { pause: Duration::from_nanos(1), lasts, ..Patience::bounded() }
    }

    #[test]
    fn patience_ends_and_every_answer_renews_it() {
        let mut patience = short(Duration::from_nanos(7));
        let failed =
            |patience: &mut Patience| (0..9).find(|_| patience.pause_after(away()).is_err());
        assert_eq!(failed(&mut patience), Some(3), "1, 2 and 4 ns");
        patience.progressed();
        patience.pause = Duration::from_nanos(7);
        assert_eq!(failed(&mut patience), Some(1));
        patience.answered();
        patience.pause_after(away()).unwrap();
        let mut endless = Patience { lasts: Duration::MAX, ..short(Duration::ZERO) };
        assert_eq!(failed(&mut endless), None);
    }

    #[test]
    fn a_final_error_is_not_retried() {
        let mut patience = Patience::endless();
        let refused =
            ClientError::Problem { status: 404, message: String::new(), is_document: true };
        assert!(patience.pause_after(refused).is_err() && patience.is_fresh());
    }

    #[test]
    fn it_is_longer_than_a_restart() {
        let mut patience = Patience::bounded();
        let mut pauses = Vec::new();
        while patience.spent < patience.lasts {
            pauses.push(patience.pause.as_millis());
            patience.spent += patience.pause;
            patience.pause = patience.pause_max.min(patience.pause * 2);
        }
        assert_eq!((&pauses[..5], pauses.len()), (&[250, 500, 1000, 1500, 1500][..], 22));
    }
}
