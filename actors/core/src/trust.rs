//! The trusted time, by which retention deletes transcripts and storage deletes idempotency keys.
//!
//! A wall clock that is years ahead would make everything old at once. So the trusted time advances
//! by the clock since boot, and adopts the wall clock's time only after the server has run for a
//! day while the wall clock was ahead (F27).

use crate::{Now, Timestamp, Uptime};

/// How long a server has to run while the wall clock is ahead, before the trusted time adopts it.
const CONFIRMED_MS: u64 = 24 * 60 * 60 * 1000;
/// A wall clock that is behind by more than this was set back. Less is drift between two clocks.
const SLACK_MS: i64 = 60_000;

/// The trusted time at a moment, and how far the wall clock is confirmed to differ. It survives
/// restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The trusted time at the moment `up`.
    pub at: Timestamp,
    /// The moment of `at`.
    pub up: Uptime,
    /// The least by which the wall clock has been ahead, milliseconds; 0: it is not ahead.
    pub ahead_ms: i64,
    /// How long a server has run while it was ahead, milliseconds.
    pub confirmed_ms: u64,
}

impl Trust {
    /// The trusted time of a database that has none yet and holds nothing newer than `newest`. An
    /// empty database has nothing to delete, so it starts with the wall clock's time.
    pub fn first(newest: Option<Timestamp>, now: Now) -> Self {
        let at = newest.map_or(now.wall, |newest| newest.min(now.wall));
        Self { at, up: now.up, ahead_ms: 0, confirmed_ms: 0 }
    }

    /// Returns the trusted time, which is never later than the wall clock's.
    pub fn time(&self, now: Now) -> Timestamp {
        self.passed(now).min(now.wall)
    }

    /// Returns how far the wall clock is ahead, milliseconds; negative: behind.
    pub fn doubt_ms(&self, now: Now) -> i64 {
        now.wall.0.saturating_sub(self.passed(now).0)
    }

    /// Advances to `now`. `ran`: this process made the previous call, so the time since then counts
    /// as confirmation. Returns by how many milliseconds the trusted time was set; the caller moves
    /// the stored keys by as much.
    ///
    /// A wall clock that was set back is adopted at once, as that deletes nothing. After a reboot,
    /// or on another machine, the elapsed time is unknown and counts as zero.
    pub fn advance(&mut self, now: Now, ran: bool) -> i64 {
        let elapsed_ms = self.elapsed_ms(now);
        let ahead_ms = self.doubt_ms(now);
        (self.at, self.up) = (self.passed(now), now.up);
        if ahead_ms <= 0 {
            (self.ahead_ms, self.confirmed_ms) = (0, 0);
            if -SLACK_MS <= ahead_ms {
                return 0;
            }
            self.at = now.wall;
            return ahead_ms;
        }
        if self.ahead_ms == 0 {
            (self.ahead_ms, self.confirmed_ms) = (ahead_ms, 0);
            return 0;
        }
        self.ahead_ms = self.ahead_ms.min(ahead_ms);
        self.confirmed_ms += if ran { elapsed_ms } else { 0 };
        if self.confirmed_ms < CONFIRMED_MS {
            return 0;
        }
        let set_ms = self.ahead_ms;
        self.at = Timestamp(self.at.0.saturating_add(set_ms));
        (self.ahead_ms, self.confirmed_ms) = (0, 0);
        set_ms
    }

    fn elapsed_ms(&self, now: Now) -> u64 {
        if self.up.boot == now.up.boot { now.up.ms.saturating_sub(self.up.ms) } else { 0 }
    }

    fn passed(&self, now: Now) -> Timestamp {
        Timestamp(self.at.0.saturating_add_unsigned(self.elapsed_ms(now)))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::BootId;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    const YEARS: i64 = 3650 * DAY;
    /// The wall clock's time at the test's start.
    const START: i64 = 20_000 * DAY;

    /// The moment `after` the start, by a wall clock that is wrong by `wrong`.
    fn now(boot: u128, after: i64, wrong: i64) -> Now {
        let up = Uptime { boot: BootId(Uuid::from_u128(boot)), ms: after.unsigned_abs() };
        Now { wall: Timestamp(START + after + wrong), up }
    }

    fn trust() -> Trust {
        Trust::first(None, now(1, 0, 0))
    }

    /// Returns by how much the trusted time is wrong at that moment.
    fn wrong_by(trust: &Trust, at: Now, after: i64) -> i64 {
        trust.time(at).0 - START - after
    }

    #[test]
    fn a_clock_that_is_ahead_is_adopted_after_a_day_of_running() {
        let mut trust = trust();
        for hour in 1..=24 {
            let at = now(1, hour * HOUR, YEARS);
            assert_eq!(trust.advance(at, true), 0, "hour {hour}");
            assert_eq!(wrong_by(&trust, at, hour * HOUR), 0, "hour {hour}");
        }
        let at = now(1, 25 * HOUR, YEARS);
        assert_eq!((trust.advance(at, true), wrong_by(&trust, at, 25 * HOUR)), (YEARS, YEARS));
        let right = now(1, 26 * HOUR, 0);
        assert_eq!(wrong_by(&trust, right, 26 * HOUR), 0, "set back: at once");
        assert_eq!(trust.advance(right, true), -YEARS);
        assert_eq!(wrong_by(&trust, right, 26 * HOUR), 0);
    }

    /// What counts as confirmed: time that a server ran, over restarts, without a break.
    #[test]
    fn only_running_under_the_same_clock_confirms_it() {
        // The hour, the wall clock's error, whether this process looked before; then the error.
        type Step = (i64, i64, bool);
        #[rustfmt::skip]
        let cases: [(&str, u128, &[Step], i64); 8] = [
            ("a day, with a restart",          1, &[(1, YEARS, true), (13, YEARS, true), (14, YEARS, false), (26, YEARS, true)],  YEARS),
            ("a day but an hour",              1, &[(1, YEARS, true), (13, YEARS, true), (14, YEARS, false), (24, YEARS, true)],  0),
            ("no server ran for days",         1, &[(1, YEARS, true), (99, YEARS, false), (199, YEARS, false)],                  0),
            ("right in between",               1, &[(1, YEARS, true), (20, YEARS, true), (21, 0, true), (22, YEARS, true), (40, YEARS, true)], 0),
            ("the least of it",                1, &[(1, YEARS, true), (2, DAY, true), (25, YEARS, true)],                        DAY),
            ("a jump at the last moment",      1, &[(1, 5, true), (24, 5, true), (25, YEARS, true)],                             5),
            ("rebooted, and off for long",     2, &[(1, 0, false), (2, 0, true)],                                                -HOUR),
            ("rebooted, a day ago",            2, &[(1, 0, false), (26, 0, true)],                                               0),
        ];
        for (name, boot, steps, expected) in cases {
            let mut trust = trust();
            let mut last = (now(1, 0, 0), 0);
            for (hour, wrong, ran) in steps {
                last = (now(boot, hour * HOUR, *wrong), hour * HOUR);
                trust.advance(last.0, *ran);
            }
            assert_eq!(wrong_by(&trust, last.0, last.1), expected, "{name}");
        }
    }

    #[test]
    fn a_first_start_trusts_the_stored_time_and_not_the_clock() {
        let newest = Some(Timestamp(START));
        let late = now(1, 0, YEARS);
        assert_eq!(wrong_by(&Trust::first(newest, late), late, 0), 0);
        assert_eq!(wrong_by(&Trust::first(None, late), late, 0), YEARS);
        let early = now(1, 0, -YEARS);
        assert_eq!(wrong_by(&Trust::first(newest, early), early, 0), -YEARS);
    }

    #[test]
    fn drift_between_two_clocks_changes_nothing() {
        let mut trust = trust();
        for hour in 1..100 {
            let at = now(1, hour * HOUR, if hour % 2 == 0 { 900 } else { -900 });
            assert_eq!(trust.advance(at, true), 0, "hour {hour}");
            assert!(wrong_by(&trust, at, hour * HOUR).abs() <= 900, "hour {hour}");
        }
        assert_eq!(trust.advance(now(1, 100 * HOUR, -SLACK_MS - 1), true), -SLACK_MS - 1);
    }
}
