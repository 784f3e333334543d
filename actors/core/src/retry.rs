//! Which attempts that came to nothing are made again, and after how long (SEEDS DQ-8).

use serde::{Deserialize, Serialize};

/// How often a task is made again at most.
const RETRIES_MAX: u32 = 5;
/// So many runs in a row that ended without settling a turn are a crash loop.
pub(crate) const CRASHES_MAX: u32 = 6;
/// The wait before the next run of a crash loop, doubled up to [`CRASH_WAIT_MS_MAX`].
const CRASH_WAIT_MS: u64 = 1_000;
const CRASH_WAIT_MS_MAX: u64 = 300_000;

/// Which attempts are made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// Those in which the agent gave no sign of having taken the prompt in.
    #[default]
    NoOutput,
    /// Those whose prompt was not sent.
    Undelivered,
    /// None.
    Never,
}

/// How an attempt failed, as far as it may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Its prompt was not sent.
    Undelivered,
    /// Its prompt was sent, its end was seen, and there was no output.
    NoOutput,
}

/// How long to wait until a task is made again whose `attempt`, counted from 1, failed so; `None`
/// if it is not.
pub(crate) fn backoff_ms(
    retry: Retry,
    failure: Failure,
    attempt: u32,
    base_ms: u64,
) -> Option<u64> {
    let may = match (retry, failure) {
        (Retry::NoOutput, _) | (Retry::Undelivered, Failure::Undelivered) => true,
        (Retry::Undelivered, Failure::NoOutput) | (Retry::Never, _) => false,
    };
    let doublings = attempt.saturating_sub(1);
    (may && attempt <= RETRIES_MAX).then(|| base_ms.saturating_mul(1 << doublings))
}

/// How long to wait with the next run after so many in a row that settled no turn; `None` if that
/// is no crash loop yet.
pub(crate) fn crash_wait_ms(crashes: u32) -> Option<u64> {
    let doublings = crashes.checked_sub(CRASHES_MAX)?.min(16);
    Some((CRASH_WAIT_MS << doublings).min(CRASH_WAIT_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_times_and_each_wait_is_twice_the_last() {
        let waits: Vec<_> =
            (1..=6).map(|n| backoff_ms(Retry::NoOutput, Failure::NoOutput, n, 5_000)).collect();
        let expected = [5_000, 10_000, 20_000, 40_000, 80_000].map(Some);
        assert_eq!(waits[..5], expected);
        assert_eq!(waits[5], None);
    }

    #[test]
    fn the_policy_says_what_may_be_made_again() {
        use {Failure as F, Retry as R};
        #[rustfmt::skip]
        let cases = [
            (R::NoOutput,    F::NoOutput,    true),
            (R::NoOutput,    F::Undelivered, true),
            (R::Undelivered, F::NoOutput,    false),
            (R::Undelivered, F::Undelivered, true),
            (R::Never,       F::NoOutput,    false),
            (R::Never,       F::Undelivered, false),
        ];
        for (retry, failure, may) in cases {
            assert_eq!(backoff_ms(retry, failure, 1, 1).is_some(), may, "{retry:?} {failure:?}");
        }
    }

    /// RELIABILITY F8.
    #[test]
    fn a_crash_loop_waits_from_the_sixth_run_on_up_to_five_minutes() {
        let waits = [0, 5, 6, 7, 8, 14, 15, 100, u32::MAX].map(crash_wait_ms);
        let seconds = waits.map(|ms| ms.map(|ms| ms / 1000));
        let expected =
            [None, None, Some(1), Some(2), Some(4), Some(256), Some(300), Some(300), Some(300)];
        assert_eq!(seconds, expected);
    }
}
