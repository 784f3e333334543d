//! How long a command bears a server that is away: long enough for a restart.

use std::thread;
use std::time::Duration;

use super::ClientError;

/// The first pause between two attempts, doubled up to one of the other values.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_millis(1_500);
const ENDLESS_PAUSE_MAX: Duration = Duration::from_secs(5);

/// So long it lasts, by its pauses: an attempt that takes long is an answer that was waited for.
const LASTS: Duration = Duration::from_secs(30);

/// What is left of it since the server last answered.
#[derive(Debug)]
pub struct Patience {
    pause: Duration,
    pause_max: Duration,
    spent: Duration,
    lasts: Duration,
}

impl Patience {
    /// About half a minute: a restart takes less.
    pub fn bounded() -> Self {
        Self { pause: PAUSE, pause_max: PAUSE_MAX, spent: Duration::ZERO, lasts: LASTS }
    }

    /// As long as it takes.
    pub fn endless() -> Self {
        Self { pause_max: ENDLESS_PAUSE_MAX, lasts: Duration::MAX, ..Self::bounded() }
    }

    /// The server answered; what failed before is forgotten.
    pub fn answered(&mut self) {
        self.spent = Duration::ZERO;
    }

    /// The server told something; the next pause is a short one again.
    pub fn told(&mut self) {
        self.answered();
        self.pause = PAUSE;
    }

    /// Whether nothing failed since the server last answered.
    pub fn is_fresh(&self) -> bool {
        self.spent.is_zero()
    }

    /// Pauses before the next attempt.
    pub fn pause(&mut self) {
        thread::sleep(self.pause);
        self.spent += self.pause;
        self.pause = self.pause_max.min(self.pause * 2);
    }

    /// Pauses after an attempt that failed.
    ///
    /// # Errors
    ///
    /// `error` itself, at once, if another attempt would be answered the same, or if the server has
    /// been away for too long.
    pub fn bear(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_passing() || self.lasts <= self.spent {
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
        ClientError::Problem { status: 502, message: String::new() }
    }

    /// A patience whose pauses are short, and which bears so many of them.
    fn short(lasts: Duration) -> Patience {
        Patience { pause: Duration::from_nanos(1), lasts, ..Patience::bounded() }
    }

    #[test]
    fn patience_ends_and_every_answer_renews_it() {
        let mut patience = short(Duration::from_nanos(7));
        let borne = |patience: &mut Patience| (0..9).find(|_| patience.bear(away()).is_err());
        assert_eq!(borne(&mut patience), Some(3), "1, 2 and 4 ns");
        patience.told();
        patience.pause = Duration::from_nanos(7);
        assert_eq!(borne(&mut patience), Some(1));
        patience.answered();
        patience.bear(away()).unwrap();
        let mut endless = Patience { lasts: Duration::MAX, ..short(Duration::ZERO) };
        assert_eq!(borne(&mut endless), None);
    }

    #[test]
    fn what_does_not_pass_is_not_borne() {
        let mut patience = Patience::endless();
        let refused = ClientError::Problem { status: 404, message: String::new() };
        assert!(patience.bear(refused).is_err() && patience.is_fresh());
    }

    #[test]
    fn it_lasts_for_a_restart() {
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
