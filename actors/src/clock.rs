//! The wall clock and fresh ids: what core may not fetch for itself.

use std::time::{SystemTime, UNIX_EPOCH};

use greenroom_core::{RunId, TaskId, Timestamp};
use jiff::fmt::temporal::DateTimePrinter;
use uuid::Uuid;

/// The wall clock's time.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_millis().try_into().unwrap_or(i64::MAX))
}

/// An id that nobody had, and greater than those before it.
pub fn fresh() -> Uuid {
    Uuid::now_v7()
}

/// A task id that nobody had.
pub fn task_id() -> TaskId {
    TaskId(fresh())
}

/// A run id that nobody had.
pub fn run_id() -> RunId {
    RunId(fresh())
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(at: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let at = jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    PRINTER.timestamp_to_string(&at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds_even_when_they_are_zero() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(1_795_199_999_007)), "2026-11-20T18:39:59.007Z");
    }
}
