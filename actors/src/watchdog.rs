//! Says when an arbiter does not turn: one thread that hangs takes all of its groups with it, and
//! nothing else would show which.
//!
//! Each watched arbiter runs a task that counts its turns. The watchdog's thread compares them once
//! a [`TICK`]; it counts its own ticks, not time, so that a frozen process hangs nowhere.

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

/// How often a watched arbiter turns at least, and how often the watchdog looks.
const TICK: Duration = Duration::from_millis(500);
/// Ticks without a turn that are a stall: a second.
const TICKS_MAX: u32 = 2;

/// The watchdog's thread; it ends with the last arbiter that it watches, and this handle.
#[derive(Clone, Debug)]
pub struct Watchdog {
    watched: Arc<Mutex<Vec<Watched>>>,
}

#[derive(Debug)]
struct Watched {
    name: String,
    turns: Arc<AtomicU64>,
    seen: u64,
    ticks: u32,
}

/// What a look at an arbiter shows.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Turns,
    /// It has just stood still for [`TICKS_MAX`].
    Stalls,
    StillStalls,
    /// It turns after it stood still for this number of ticks.
    TurnsAgain(u32),
}

impl Watchdog {
    /// Starts the thread, which watches nothing yet, and counts in `stalled` the arbiters that do
    /// not turn, in `stalls` how often one stopped.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn start(stalled: Gauge, stalls: Counter) -> std::io::Result<Self> {
        let dog = Self { watched: Arc::default() };
        let watched = Arc::downgrade(&dog.watched);
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || keep_watch(&watched, &stalled, &stalls))?;
        Ok(dog)
    }

    /// Watches an arbiter from now on, under this name.
    pub fn watch(&self, name: impl Into<String>, arbiter: &ArbiterHandle) {
        let turns = Arc::<AtomicU64>::default();
        let (turning, dog) = (turns.clone(), self.clone());
        // If the arbiter has ended, so has whatever it could keep from its work.
        let spawned = arbiter.spawn(async move {
            let _keeps_watching = dog;
            loop {
                turning.fetch_add(1, Ordering::Relaxed);
                sleep(TICK).await;
            }
        });
        if spawned {
            let watched = Watched { name: name.into(), turns, seen: 0, ticks: 0 };
            self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        }
    }
}

fn keep_watch(watched: &Weak<Mutex<Vec<Watched>>>, stalled: &Gauge, stalls: &Counter) {
    loop {
        thread::sleep(TICK);
        let Some(watched) = watched.upgrade() else { return };
        let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        // The task of an arbiter that ended is dropped, and with it this.
        watched.retain(|arbiter| Arc::strong_count(&arbiter.turns) > 1);
        let mut standing = 0;
        for arbiter in watched.iter_mut() {
            let ms = |ticks: u32| u128::from(ticks) * TICK.as_millis();
            let look = arbiter.look();
            standing += i64::from(matches!(look, Look::Stalls | Look::StillStalls));
            match look {
                Look::Turns | Look::StillStalls => {}
                Look::Stalls => {
                    stalls.inc();
                    log::warn!(
                        target: "greenroom", arbiter = arbiter.name, stalled_ms = ms(TICKS_MAX);
                        "thread is blocked; the groups on it wait"
                    );
                }
                Look::TurnsAgain(ticks) => log::warn!(
                    target: "greenroom", arbiter = arbiter.name, stalled_ms = ms(ticks);
                    "thread responds again"
                ),
            }
        }
        stalled.set(standing);
    }
}

impl Watched {
    fn look(&mut self) -> Look {
        let turns = self.turns.load(Ordering::Relaxed);
        if turns != self.seen {
            self.seen = turns;
            let ticks = std::mem::take(&mut self.ticks);
            return if ticks < TICKS_MAX { Look::Turns } else { Look::TurnsAgain(ticks) };
        }
        self.ticks = self.ticks.saturating_add(1);
        match self.ticks {
            TICKS_MAX => Look::Stalls,
            ticks if ticks < TICKS_MAX => Look::Turns,
            _ => Look::StillStalls,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use actix::Arbiter;

    use super::*;

    #[test]
    fn a_stall_is_noticed_once_and_its_end_too() {
        let turns = Arc::<AtomicU64>::default();
        let mut watched =
            Watched { name: "groups-0".into(), turns: turns.clone(), seen: 0, ticks: 0 };
        let looks =
            |watched: &mut Watched, count| (0..count).map(|_| watched.look()).collect::<Vec<_>>();
        turns.fetch_add(1, Ordering::Relaxed);
        assert_eq!(looks(&mut watched, 2), [Look::Turns, Look::Turns]);
        assert_eq!(looks(&mut watched, 3), [Look::Stalls, Look::StillStalls, Look::StillStalls]);
        turns.fetch_add(1, Ordering::Relaxed);
        assert_eq!(looks(&mut watched, 2), [Look::TurnsAgain(4), Look::Turns]);
    }

    #[actix::test]
    async fn an_arbiter_that_blocks_is_counted_until_it_turns() {
        let (stalled, stalls) = (Gauge::default(), Counter::default());
        let dog = Watchdog::start(stalled.clone(), stalls.clone()).expect("start the watchdog");
        let arbiter = Arbiter::new();
        dog.watch("blocks", &arbiter.handle());
        let (go_on, wait) = mpsc::channel::<()>();
        arbiter.spawn(async move { _ = wait.recv() });
        let until = async |count| {
            while stalled.get() != count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), until(1)).await.expect("a stall");
        assert_eq!(stalls.get(), 1);
        go_on.send(()).expect("the arbiter waits for it");
        tokio::time::timeout(Duration::from_secs(30), until(0)).await.expect("its end");
        arbiter.stop();
    }
}
