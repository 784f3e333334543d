//! The clock of deadlines, which advances only while this process can run.
//!
//! In a frozen container, a suspended machine or a stopped process tree, neither the server nor its
//! agents run. By the monotonic clock every deadline would have passed on resumption, before any of
//! them could act. By this clock none has: a thread sleeps for short times, and counts at most
//! `STEP_MAX` for each sleep, however long it took. On a very busy machine the clock is late,
//! which only lengthens deadlines.
//!
//! What the API promises in wall time (leases, `expires_in_ms`, backoffs) uses [`crate::clock`].

use std::{
    ops::Add,
    sync::{LazyLock, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::time::sleep;

/// How long the clock's thread sleeps at a time.
const STEP: Duration = Duration::from_millis(250);
/// The most that one sleep counts: a busy machine wakes the thread late, a frozen one much later.
const STEP_MAX: Duration = Duration::from_millis(300);

/// A moment by this clock: for how long the process could run until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Awake(Duration);

impl Awake {
    /// Returns the time until this moment; zero if it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_sub(now().0)
    }

    /// Returns the time from `earlier` to this moment; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether this moment has passed.
    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }
}

impl Add<Duration> for Awake {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// The time counted up to the thread's last step, and when that step was.
#[derive(Debug)]
struct Count {
    counted: Duration,
    stepped: Instant,
}

impl Count {
    fn at(&self, now: Instant) -> Duration {
        self.counted + now.saturating_duration_since(self.stepped).min(STEP_MAX)
    }

    fn step(&mut self, now: Instant) {
        *self = Self { counted: self.at(now), stepped: now };
    }
}

/// One for the process, which is always frozen as a whole.
static COUNT: LazyLock<Mutex<Count>> = LazyLock::new(|| {
    let started = thread::Builder::new().name("awake-clock".into()).spawn(|| {
        loop {
            thread::sleep(STEP);
            step(Instant::now());
        }
    });
    if let Err(err) = started {
        log::error!(err:%; "the thread of the deadline clock did not start; deadlines may be late");
    }
    Mutex::new(Count { counted: Duration::ZERO, stepped: Instant::now() })
});

fn step(now: Instant) -> Awake {
    let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    count.step(now);
    Awake(count.counted)
}

/// Returns this moment.
pub fn now() -> Awake {
    step(Instant::now())
}

/// Waits until this moment. Cancel safe.
pub async fn sleep_until(at: Awake) {
    loop {
        let left = at.left();
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}

/// Waits for `future` for `max` at most.
///
/// # Errors
///
/// [`Elapsed`] if the time passes first.
pub async fn timeout<F: Future>(max: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(now() + max, future).await
}

/// Waits for `future` until `until` at most.
///
/// # Errors
///
/// [`Elapsed`] if that moment passes first.
pub async fn timeout_at<F: Future>(until: Awake, future: F) -> Result<F::Output, Elapsed> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = sleep_until(until) => Err(Elapsed),
    }
}

/// The time of a [`timeout`] has passed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the time has passed")]
pub struct Elapsed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_counts_as_one_step() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut count = Count { counted: Duration::ZERO, stepped: began };
        #[rustfmt::skip]
        let steps = [
            ("in time",        250,       250),
            ("a little late",  540,       540),
            ("very late",      1_540,     840),
            ("after an hour",  3_601_540, 1_140),
            ("in time again",  3_601_790, 1_390),
        ];
        for (name, real, counted) in steps {
            assert_eq!(count.at(at(real)), Duration::from_millis(counted), "{name}, read");
            count.step(at(real));
            assert_eq!(count.at(at(real)), Duration::from_millis(counted), "{name}, stepped");
        }
    }

    #[tokio::test]
    async fn what_is_ready_wins_over_its_time_limit() {
        assert_eq!(timeout(Duration::ZERO, async { 1 }).await.ok(), Some(1));
        let never = std::future::pending::<()>();
        assert!(timeout(Duration::from_millis(1), never).await.is_err());
    }
}
