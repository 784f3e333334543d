//! A moment to come that outlives a restart.

use serde::{Deserialize, Serialize};

use crate::{
    Timestamp,
    lock::{Now, Uptime},
};

/// So many milliseconds from a moment on. Counted by the clock that nobody sets, also over a
/// restart of the server (RELIABILITY F27); after a reboot only the wall clock is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// From when.
    pub since: Now,
    /// How many milliseconds.
    pub ms: u64,
}

impl Due {
    /// `ms` milliseconds from `now`.
    pub fn after(now: Now, ms: u64) -> Self {
        Self { since: now, ms }
    }

    /// How many milliseconds of it are left; 0 once it has come. A wall clock that was set back
    /// begins it again at most.
    pub fn left_ms(&self, now: Now) -> u64 {
        let Uptime { boot, ms: since } = self.since.up;
        let passed = if boot == now.up.boot {
            now.up.ms.saturating_sub(since)
        } else {
            u64::try_from(now.wall.0.saturating_sub(self.since.wall.0)).unwrap_or_default()
        };
        self.ms.saturating_sub(passed)
    }

    /// When it comes, by the wall clock as it was: a stamp to show.
    pub fn shown(&self) -> Timestamp {
        Timestamp(self.since.wall.0.saturating_add_unsigned(self.ms))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::lock::BootId;

    fn now(boot: u128, up: u64, wall: i64) -> Now {
        Now { wall: Timestamp(wall), up: Uptime { boot: BootId(Uuid::from_u128(boot)), ms: up } }
    }

    #[test]
    fn only_a_reboot_makes_the_wall_clock_count() {
        let due = Due::after(now(1, 1_000, 50_000), 100);
        #[rustfmt::skip]
        let cases = [
            ("at once",              now(1, 1_000, 50_000),  100),
            ("just before",          now(1, 1_099, 50_099),  1),
            ("just come",            now(1, 1_100, 50_100),  0),
            ("wall clock set on",    now(1, 1_050, 999_999), 50),
            ("wall clock set back",  now(1, 1_050, 0),       50),
            ("rebooted",             now(2, 3,     50_040),  60),
            ("rebooted, long ago",   now(2, 3,     99_999),  0),
            ("rebooted, set back",   now(2, 3,     0),       100),
        ];
        for (name, now, left) in cases {
            assert_eq!(due.left_ms(now), left, "{name}");
        }
    }
}
