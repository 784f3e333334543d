//! The clocks and new ids, which core may not read itself.

use std::{
    fs,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use greenroom_core::{BootId, Now, RunId, TaskId, Timestamp, Uptime};
use jiff::fmt::temporal::DateTimePrinter;
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

/// Returns the wall clock's time.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_millis().try_into().unwrap_or(i64::MAX))
}

/// Returns the wall clock's time in microseconds.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// Returns a unique id, greater than the earlier ones.
pub fn fresh() -> Uuid {
    Uuid::now_v7()
}

/// Returns this moment on both clocks: the wall clock, and the one since the boot, which cannot be
/// set (F27).
pub fn moment() -> Now {
    let since = clock_gettime(ClockId::Boottime);
    let ms = since.tv_sec.unsigned_abs() * 1000 + since.tv_nsec.unsigned_abs() / 1_000_000;
    Now { wall: now(), up: Uptime { boot: boot(), ms } }
}

/// Returns the machine's boot id; nil if the kernel has none. It is read once, as no process
/// outlives a boot.
pub fn boot() -> BootId {
    static BOOT: LazyLock<BootId> = LazyLock::new(|| {
        let named = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        BootId(Uuid::try_parse(named.trim()).unwrap_or_default())
    });
    *BOOT
}

/// Returns a unique task id.
pub fn task_id() -> TaskId {
    TaskId(fresh())
}

/// Returns a unique run id.
pub fn run_id() -> RunId {
    RunId(fresh())
}

/// Formats a time by RFC 3339, in UTC with milliseconds.
pub fn rfc3339(at: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let at = jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    PRINTER.timestamp_to_string(&at)
}

/// Parses an RFC 3339 time and rounds it up to a millisecond, so that comparisons with stored times
/// give the same result. `None` if the text is not such a time.
pub fn read_rfc3339(text: &str) -> Option<Timestamp> {
    let nanoseconds = text.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
    let milliseconds = nanoseconds.checked_add(999_999)?.div_euclid(1_000_000);
    i64::try_from(milliseconds).ok().map(Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_up_to_the_next_millisecond() {
        #[rustfmt::skip]
        let cases = [
            ("1970-01-01T00:00:00Z",               Some(0)),
            ("1970-01-01T01:00:00.001+01:00",      Some(1)),
            ("1970-01-01T00:00:00.000001Z",        Some(1)),
            ("1970-01-01T00:00:00.001000Z",        Some(1)),
            ("1969-12-31T23:59:59.9999Z",          Some(0)),
            ("2026-11-20T18:39:59.007Z",           Some(1_795_199_999_007)),
            ("2026-11-20",                         None),
            ("2026-11-20T18:39:59",                None),
            ("2026-13-20T18:39:59Z",               None),
            ("1795199999007",                      None),
            ("",                                   None),
        ];
        for (text, expected) in cases {
            assert_eq!(read_rfc3339(text), expected.map(Timestamp), "{text}");
        }
    }

    #[test]
    fn the_clock_of_leases_advances_within_one_boot() {
        let (first, second) = (moment().up, moment().up);
        assert!(first.boot == second.boot && first.boot.0 != Uuid::nil(), "{first:?} {second:?}");
        assert!(0 < first.ms && first.ms <= second.ms, "{first:?} {second:?}");
    }

    #[test]
    fn times_have_milliseconds_even_when_they_are_zero() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(1_795_199_999_007)), "2026-11-20T18:39:59.007Z");
    }
}
