//! Which failed attempts are retried, and after which backoff (DQ-8); when a crash loop waits (F8),
//! and an agent that wants a login (DQ-13).

use serde::{Deserialize, Serialize};

/// The most retries of a task.
pub(crate) const RETRIES_MAX: u32 = 5;
/// This many runs in a row that ended without settling an attempt are a crash loop.
pub(crate) const CRASHES_MAX: u32 = 6;
/// The wait before the next run of a crash loop, doubled up to [`CRASH_WAIT_MS_MAX`].
const CRASH_WAIT_MS: u64 = 1_000;
const CRASH_WAIT_MS_MAX: u64 = 300_000;
/// The wait before the next start of an agent that wants a login, doubled up to
/// [`LOGIN_WAIT_MS_MAX`].
const LOGIN_WAIT_MS: u64 = 60_000;
const LOGIN_WAIT_MS_MAX: u64 = 300_000;

/// Which failed attempts are retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryPolicy {
    /// Attempts without output.
    #[default]
    NoOutput,
    /// Attempts whose prompt was not sent.
    Undelivered,
    /// None.
    Never,
}

/// What an agent's error says about another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Another attempt may succeed, or nothing is known of that.
    Passing,
    /// Another attempt would get it again: the request is invalid, its model is unknown, or it does
    /// not fit into the context.
    Lasting,
    /// Another attempt would get it again until a person has logged in.
    Auth,
}

/// How an attempt failed, as far as a retry depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Its prompt was not sent.
    Undelivered,
    /// Its prompt was sent, greenroom saw its end, and there was no output.
    NoOutput,
}

/// Returns the backoff before the next attempt, or `None` if the task must not be retried.
/// `attempt` is the number of the failed one, from 1.
pub(crate) fn backoff_ms(
    retry: RetryPolicy,
    failure: FailureKind,
    attempt: u32,
    base_ms: u64,
) -> Option<u64> {
    let may = match (retry, failure) {
        (RetryPolicy::NoOutput, _) | (RetryPolicy::Undelivered, FailureKind::Undelivered) => true,
        (RetryPolicy::Undelivered, FailureKind::NoOutput) | (RetryPolicy::Never, _) => false,
    };
    let doublings = attempt.saturating_sub(1);
    (may && attempt <= RETRIES_MAX).then(|| base_ms.saturating_mul(1 << doublings))
}

/// Returns the wait before the next run after `crashes` in a row, or `None` if they are no crash
/// loop.
pub(crate) fn crash_wait_ms(crashes: u32) -> Option<u64> {
    let doublings = crashes.checked_sub(CRASHES_MAX)?.min(16);
    Some((CRASH_WAIT_MS << doublings).min(CRASH_WAIT_MS_MAX))
}

/// Returns the wait before the next start of an agent that wanted a login at its last `starts`.
pub(crate) fn login_wait_ms(starts: u32) -> u64 {
    (LOGIN_WAIT_MS << starts.saturating_sub(1).min(16)).min(LOGIN_WAIT_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_retries_each_after_twice_the_backoff() {
        let waits: Vec<_> = (1..=6)
            .map(|n| backoff_ms(RetryPolicy::NoOutput, FailureKind::NoOutput, n, 5_000))
            .collect();
        let expected = [5_000, 10_000, 20_000, 40_000, 80_000].map(Some);
        assert_eq!(waits[..5], expected);
        assert_eq!(waits[5], None);
    }

    #[test]
    fn the_policy_decides_what_is_retried() {
        use {FailureKind as F, RetryPolicy as R};
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

    /// DQ-13, I12.
    #[test]
    fn an_agent_that_wants_a_login_is_started_after_one_to_five_minutes() {
        let minutes = [1, 2, 3, 4, 100, u32::MAX].map(|starts| login_wait_ms(starts) / 60_000);
        assert_eq!(minutes, [1, 2, 4, 5, 5, 5]);
    }

    /// F8.
    #[test]
    fn a_crash_loop_waits_from_the_sixth_run_on_up_to_five_minutes() {
        let waits = [0, 5, 6, 7, 8, 14, 15, 100, u32::MAX].map(crash_wait_ms);
        let seconds = waits.map(|ms| ms.map(|ms| ms / 1000));
        let expected =
            [None, None, Some(1), Some(2), Some(4), Some(256), Some(300), Some(300), Some(300)];
        assert_eq!(seconds, expected);
    }
}
