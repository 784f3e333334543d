//! Notices a stalled database: a call of the writer that does not return.
//!
//! A disk that hangs makes a sync or a write wait without an error, for minutes or for ever. The
//! writer is in it and can report nothing, so a thread of its own looks at it. It counts its own
//! ticks instead of time, so that a frozen process shows no stall.

use std::{io, thread, time::Duration};

use super::{Fault, StorageHealth};

/// How often the thread looks.
pub const TICK: Duration = Duration::from_millis(500);
/// The ticks within one call that are a stall: seven seconds. A call may wait five seconds for the
/// lock of another program, and then fails.
pub const TICKS_MAX: u32 = 14;

/// What the thread has seen of the calls.
#[derive(Debug, Default)]
struct Watched {
    seen: u64,
    ticks: u32,
}

/// What one tick shows.
#[derive(Debug, PartialEq, Eq)]
enum Check {
    /// No call is under way, or not for long.
    Works,
    /// One has been under way for this number of ticks, at least [`TICKS_MAX`].
    Stalled(u32),
    /// One that took this number of ticks has ended.
    Ended(u32),
}

impl Watched {
    fn check(&mut self, calls: u64) -> Check {
        if calls != self.seen || calls.is_multiple_of(2) {
            self.seen = calls;
            let ticks = std::mem::take(&mut self.ticks);
            return if ticks < TICKS_MAX { Check::Works } else { Check::Ended(ticks) };
        }
        self.ticks = self.ticks.saturating_add(1);
        if self.ticks < TICKS_MAX { Check::Works } else { Check::Stalled(self.ticks) }
    }
}

/// Starts the thread, which looks once a `tick` ([`TICK`], except in tests) until the process ends.
///
/// # Errors
///
/// The system cannot start a thread.
pub fn watch(health: StorageHealth, tick: Duration) -> io::Result<()> {
    let thread = thread::Builder::new().name("stalls".into());
    thread.spawn(move || run(&health, tick)).map(|_| ())
}

fn run(health: &StorageHealth, tick: Duration) {
    let mut watched = Watched::default();
    let ms = |ticks: u32| u64::try_from((tick * ticks).as_millis()).unwrap_or(u64::MAX);
    loop {
        thread::sleep(tick);
        match watched.check(health.calls().number()) {
            Check::Works => {}
            Check::Stalled(ticks) => {
                if health.set_stalled(ms(ticks)) {
                    log::error!(
                        target: "greenroom::storage", stalled_ms = ms(ticks),
                        remedy = Fault::Stalled.remedy();
                        "storage stalled: a write does not return; changes are refused meanwhile"
                    );
                }
            }
            Check::Ended(ticks) => {
                health.set_moving();
                log::info!(
                    target: "greenroom::storage", stalled_ms = ms(ticks);
                    "storage is no longer stalled"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_call_is_a_stall_and_many_short_ones_are_none() {
        let mut watched = Watched::default();
        let checks = |watched: &mut Watched, calls| watched.check(calls);
        for calls in 0..100 {
            assert_eq!(checks(&mut watched, calls), Check::Works, "busy");
        }
        for _ in 0..100 {
            assert_eq!(checks(&mut watched, 100), Check::Works, "no call");
        }
        assert_eq!(checks(&mut watched, 101), Check::Works, "begun");
        for _ in 1..TICKS_MAX {
            assert_eq!(checks(&mut watched, 101), Check::Works, "not for long");
        }
        assert_eq!(checks(&mut watched, 101), Check::Stalled(TICKS_MAX));
        assert_eq!(checks(&mut watched, 101), Check::Stalled(TICKS_MAX + 1));
        assert_eq!(checks(&mut watched, 103), Check::Ended(TICKS_MAX + 1), "the next is under way");
        assert_eq!(checks(&mut watched, 103), Check::Works);
    }
}
