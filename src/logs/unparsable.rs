//! Requests that are no HTTP: counts them, and logs one a minute.
//!
//! actix-http logs each as an error of its own, which is all that shows it; and any program that
//! can connect could fill the log with them.

use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, Record};

/// The target of the lines of actix-http that are meant here.
const TARGET: &str = "actix_http::h1";
/// How the line about such a request begins.
const UNPARSABLE: &str = "stream error: ";
/// How a line begins that precedes it, if the request's head is too large.
const TOO_LARGE: &str = "MAX_BUFFER_SIZE ";
/// The time from one line to the next, in milliseconds.
const INTERVAL_MS: u64 = 60_000;

/// Counts requests that cannot be parsed.
#[derive(Debug)]
pub struct Unparsable {
    count: AtomicU64,
    /// The count at the last line.
    logged: AtomicU64,
    /// When the next line may be logged, in the caller's milliseconds.
    next_at_ms: AtomicU64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It is about something else.
    Other,
    /// It is dropped.
    Drop,
    /// It is replaced by one that says why the request could not be parsed, and how many there were
    /// since the last such line, this one included.
    Log {
        /// What actix-http says.
        why: String,
        /// The number of requests.
        requests: u64,
    },
}

impl Unparsable {
    /// None so far.
    pub const fn new() -> Self {
        Self { count: AtomicU64::new(0), logged: AtomicU64::new(0), next_at_ms: AtomicU64::new(0) }
    }

    /// How many requests could not be parsed.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether records of this target and level have to reach [`Unparsable::judge`], whatever the
    /// filter.
    pub fn concerns(level: Level, target: &str) -> bool {
        level == Level::Error && target.starts_with(TARGET)
    }

    /// Counts the request that the record is about, if it is about one that cannot be parsed.
    pub fn judge(&self, record: &Record<'_>, now_ms: u64) -> Verdict {
        if !Self::concerns(record.level(), record.target()) {
            return Verdict::Other;
        }
        let message = record.args().to_string();
        let Some(why) = message.strip_prefix(UNPARSABLE) else {
            return if message.starts_with(TOO_LARGE) { Verdict::Drop } else { Verdict::Other };
        };
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let due = self.next_at_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
            (at <= now_ms).then_some(now_ms + INTERVAL_MS)
        });
        if due.is_err() {
            return Verdict::Drop;
        }
        let before = self.logged.swap(count, Ordering::Relaxed);
        Verdict::Log { why: why.to_owned(), requests: count.saturating_sub(before) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// API-7, I11: one line a minute says how many there were; other lines are left alone.
    #[test]
    fn a_flood_of_requests_that_are_no_http_is_one_line_a_minute() {
        let seen = Unparsable::new();
        let judge = |target, level, message, now_ms| {
            let mut record = Record::builder();
            record.target(target).level(level);
            seen.judge(&record.args(format_args!("{message}")).build(), now_ms)
        };
        let unparsable =
            |now_ms| judge("actix_http::h1::dispatcher", Level::Error, "stream error: why", now_ms);
        let logged = |requests| Verdict::Log { why: "why".into(), requests };
        assert_eq!(unparsable(5), logged(1));
        assert_eq!(unparsable(6), Verdict::Drop);
        assert_eq!(unparsable(5 + INTERVAL_MS - 1), Verdict::Drop);
        assert_eq!(unparsable(5 + INTERVAL_MS), logged(3));
        assert_eq!(unparsable(6 + INTERVAL_MS), Verdict::Drop);
        let decoder = "actix_http::h1::decoder";
        let too_large = "MAX_BUFFER_SIZE unprocessed data reached, closing";
        assert_eq!(judge(decoder, Level::Error, too_large, 0), Verdict::Drop);
        assert_eq!(judge(decoder, Level::Error, "write zero; closing", 0), Verdict::Other);
        assert_eq!(judge("greenroom", Level::Error, "stream error: why", 0), Verdict::Other);
        assert_eq!(judge(decoder, Level::Trace, "stream error: why", 0), Verdict::Other);
        assert_eq!(seen.count(), 5);
    }
}
