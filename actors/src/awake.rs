//! The clock of deadlines: it advances only while this process can run.
//!
//! A frozen container, a suspended machine or a stopped process tree stands still, and its agents
//! with it. By the monotonic clock every deadline has passed when it thaws, before anyone had a
//! chance to do anything. By this clock none has: a thread that sleeps for a short time at once
//! counts no more than [`STEP_MAX`] for each of its sleeps, however long it was asleep. On a very
//! busy machine the clock runs late, which is lenient as well.
//!
//! What is promised to callers in wall time (leases, `expires_in_ms`, backoffs) goes by
//! [`crate::clock`].

use std::{
    ops::Add,
    sync::{LazyLock, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::time::sleep;

/// How long the clock's thread sleeps at a time.
const STEP: Duration = Duration::from_millis(250);
/// What one sleep counts at most: a busy machine wakes the thread late, a frozen one much later.
const STEP_MAX: Duration = Duration::from_millis(300);

/// A moment by this clock: how long the process could run until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Awake(Duration);

impl Awake {
    /// How long it is until this moment; zero if it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_sub(now().0)
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

/// What was counted up to a step of the thread, and when that step was.
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

/// The process has one: it can only be frozen as a whole.
static COUNT: LazyLock<Mutex<Count>> = LazyLock::new(|| {
    let started = thread::Builder::new().name("awake-clock".into()).spawn(|| {
        loop {
            thread::sleep(STEP);
            step(Instant::now());
        }
    });
    if let Err(err) = started {
        log::error!(err:%; "the clock of deadlines has no thread; deadlines may come late");
    }
    Mutex::new(Count { counted: Duration::ZERO, stepped: Instant::now() })
});

fn step(now: Instant) -> Awake {
    let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    count.step(now);
    Awake(count.counted)
}

/// This moment.
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

/// Waits for `future`, but no longer than `max`.
///
/// # Errors
///
/// [`Elapsed`] if the time is over first.
pub async fn timeout<F: Future>(max: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(now() + max, future).await
}

/// Waits for `future`, but not past `until`.
///
/// # Errors
///
/// [`Elapsed`] if that moment comes first.
pub async fn timeout_at<F: Future>(until: Awake, future: F) -> Result<F::Output, Elapsed> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = sleep_until(until) => Err(Elapsed),
    }
}

/// The time of a [`timeout`] is over.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the time is over")]
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
