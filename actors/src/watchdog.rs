//! The watchdog: logs and counts arbiters (actor threads) that are blocked.
//!
//! A blocked thread stops all of its groups, and nothing else would show which one it is.
//!
//! Each watched arbiter runs a task that counts its wakeups. The watchdog's thread compares the
//! counts once a `TICK`. It counts its own ticks instead of time, so that a frozen process shows
//! no stall.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use actix::ArbiterHandle;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::sleep;

/// How often a free arbiter wakes up, and how often the watchdog checks.
const TICK: Duration = Duration::from_millis(500);
/// The ticks without a wakeup that are a stall: a second.
const TICKS_MAX: u32 = 2;

/// The handle of the watchdog's thread, which ends with the last watched arbiter and the last
/// handle.
#[derive(Clone, Debug)]
pub struct Watchdog {
    watched: Arc<Mutex<Vec<WatchedArbiter>>>,
}

#[derive(Debug)]
struct WatchedArbiter {
    name: String,
    wakeups: Arc<AtomicU64>,
    seen: u64,
    ticks: u32,
}

/// The result of one check of an arbiter.
#[derive(Debug, PartialEq, Eq)]
enum Check {
    Runs,
    /// It has been blocked for [`TICKS_MAX`] now.
    Stalled,
    StillStalled,
    /// It runs again after it was blocked for this number of ticks.
    Recovered(u32),
}

impl Watchdog {
    /// Starts the thread, without watched arbiters. It sets `stalled` to the number of blocked
    /// arbiters, and counts the stalls in `stalls`.
    ///
    /// # Errors
    ///
    /// The system cannot start a thread.
    pub fn start(stalled: Gauge, stalls: Counter) -> std::io::Result<Self> {
        let watchdog = Self { watched: Arc::default() };
        let watched = Arc::downgrade(&watchdog.watched);
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || run(&watched, &stalled, &stalls))?;
        Ok(watchdog)
    }

    /// Begins to watch an arbiter, under this name.
    pub fn watch(&self, name: impl Into<String>, arbiter: &ArbiterHandle) {
        let wakeups = Arc::<AtomicU64>::default();
        let (counter, watchdog) = (wakeups.clone(), self.clone());
        // An arbiter that has ended has nothing to watch.
        let spawned = arbiter.spawn(async move {
            let _keeps_watching = watchdog;
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                sleep(TICK).await;
            }
        });
        if spawned {
            let watched = WatchedArbiter { name: name.into(), wakeups, seen: 0, ticks: 0 };
            self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        }
    }
}

fn run(watched: &Weak<Mutex<Vec<WatchedArbiter>>>, stalled: &Gauge, stalls: &Counter) {
    loop {
        thread::sleep(TICK);
        let Some(watched) = watched.upgrade() else { return };
        let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        // The task of an ended arbiter is dropped, with its reference.
        watched.retain(|arbiter| Arc::strong_count(&arbiter.wakeups) > 1);
        let mut stalled_count = 0;
        for arbiter in watched.iter_mut() {
            let ms = |ticks: u32| u128::from(ticks) * TICK.as_millis();
            let check = arbiter.check();
            stalled_count += i64::from(matches!(check, Check::Stalled | Check::StillStalled));
            match check {
                Check::Runs | Check::StillStalled => {}
                Check::Stalled => {
                    stalls.inc();
                    log::warn!(
                        target: "greenroom", arbiter = arbiter.name, stalled_ms = ms(TICKS_MAX);
                        "thread is blocked; the groups on it wait"
                    );
                }
                Check::Recovered(ticks) => log::warn!(
                    target: "greenroom", arbiter = arbiter.name, stalled_ms = ms(ticks);
                    "thread responds again"
                ),
            }
        }
        stalled.set(stalled_count);
    }
}

impl WatchedArbiter {
    fn check(&mut self) -> Check {
        let wakeups = self.wakeups.load(Ordering::Relaxed);
        if wakeups != self.seen {
            self.seen = wakeups;
            let ticks = std::mem::take(&mut self.ticks);
            return if ticks < TICKS_MAX { Check::Runs } else { Check::Recovered(ticks) };
        }
        self.ticks = self.ticks.saturating_add(1);
        match self.ticks {
            TICKS_MAX => Check::Stalled,
            ticks if ticks < TICKS_MAX => Check::Runs,
            _ => Check::StillStalled,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use actix::Arbiter;

    use super::*;

    #[test]
    fn a_stall_and_its_end_are_each_reported_once() {
        let wakeups = Arc::<AtomicU64>::default();
        let mut watched =
            WatchedArbiter { name: "groups-0".into(), wakeups: wakeups.clone(), seen: 0, ticks: 0 };
        let checks = |watched: &mut WatchedArbiter, count| {
            (0..count).map(|_| watched.check()).collect::<Vec<_>>()
        };
        wakeups.fetch_add(1, Ordering::Relaxed);
        assert_eq!(checks(&mut watched, 2), [Check::Runs, Check::Runs]);
        assert_eq!(
            checks(&mut watched, 3),
            [Check::Stalled, Check::StillStalled, Check::StillStalled]
        );
        wakeups.fetch_add(1, Ordering::Relaxed);
        assert_eq!(checks(&mut watched, 2), [Check::Recovered(4), Check::Runs]);
    }

    #[actix::test]
    async fn a_blocked_arbiter_is_counted_until_it_runs_again() {
        let (stalled, stalls) = (Gauge::default(), Counter::default());
        let watchdog =
            Watchdog::start(stalled.clone(), stalls.clone()).expect("start the watchdog");
        let arbiter = Arbiter::new();
        watchdog.watch("blocks", &arbiter.handle());
        let (unblock, blocked) = mpsc::channel::<()>();
        arbiter.spawn(async move { _ = blocked.recv() });
        let until = async |count| {
            while stalled.get() != count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), until(1)).await.expect("a stall");
        assert_eq!(stalls.get(), 1);
        unblock.send(()).expect("the arbiter waits for it");
        tokio::time::timeout(Duration::from_secs(30), until(0)).await.expect("its end");
        arbiter.stop();
    }
}
