//! Time: wall-clock timestamps, monotonic uptimes, and deadlines.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Milliseconds since the Unix epoch, UTC. For display and storage, never for a deadline: the wall
/// clock may jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// One boot of one machine, by the kernel's id; nil if that is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub Uuid);

/// A moment on the clock since boot, the same for all processes of the machine. A jump of the wall
/// clock does not move it (F27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// The boot. Moments of two boots cannot be compared.
    pub boot: BootId,
    /// Milliseconds since the boot, suspension included (`CLOCK_BOOTTIME`).
    pub ms: u64,
}

/// A moment on both clocks: deadlines and leases use `up`, display uses `wall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// The wall clock.
    pub wall: Timestamp,
    /// The clock since boot.
    pub up: Uptime,
}

/// A number of milliseconds from a moment. It is measured by the clock since boot, also over a
/// restart of the server (F27), and after a reboot by the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The moment that it counts from.
    pub since: Now,
    /// The number of milliseconds.
    pub ms: u64,
}

impl Deadline {
    /// The deadline `ms` milliseconds after `now`.
    pub fn after(now: Now, ms: u64) -> Self {
        Self { since: now, ms }
    }

    /// Returns the milliseconds that are left; 0 once it has passed. After a reboot, a wall clock
    /// that was set back restores at most the whole time.
    pub fn left_ms(&self, now: Now) -> u64 {
        let Uptime { boot, ms: since } = self.since.up;
        let passed = if boot == now.up.boot {
            now.up.ms.saturating_sub(since)
        } else {
            u64::try_from(now.wall.0.saturating_sub(self.since.wall.0)).unwrap_or_default()
        };
        self.ms.saturating_sub(passed)
    }

    /// Returns when it is reached, by the wall clock at its start; for display.
    pub fn at_wall_clock(&self) -> Timestamp {
        Timestamp(self.since.wall.0.saturating_add_unsigned(self.ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(boot: u128, up: u64, wall: i64) -> Now {
        Now { wall: Timestamp(wall), up: Uptime { boot: BootId(Uuid::from_u128(boot)), ms: up } }
    }

    #[test]
    fn the_wall_clock_counts_only_after_a_reboot() {
        let due = Deadline::after(now(1, 1_000, 50_000), 100);
        #[rustfmt::skip]
        let cases = [
            ("at once",              now(1, 1_000, 50_000),  100),
            ("just before",          now(1, 1_099, 50_099),  1),
            ("just reached",         now(1, 1_100, 50_100),  0),
            ("wall clock set on",    now(1, 1_050, 999_999), 50),
            ("wall clock set back",  now(1, 1_050, 0),       50),
            ("rebooted",             now(2, 3,     50_040),  60),
            ("rebooted, long ago",   now(2, 3,     99_999),  0),
            ("rebooted, set back",   now(2, 3,     0),       100),
        ];
        for (name, now, left) in cases {
            assert_eq!(due.left_ms(now), left, "{name}");
        }
        assert_eq!(due.at_wall_clock(), Timestamp(50_100), "for display");
    }
}
