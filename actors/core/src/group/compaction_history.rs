//! When a group may order a compaction by itself: not after ineffective or failed ones (HL-14).

use super::CompactionHistory;
use crate::{Deadline, Now, Usage};

/// After this many compactions in a row that freed too little, the group orders none (I12).
const INEFFECTIVE_MAX: u8 = 2;

/// A compaction freed too little if it freed less than the context divided by this.
const FREED_PART: u64 = 10;

/// How long automatic compaction is paused after an ordered one was not completed (HL-14).
pub(super) const PAUSE_MS: u64 = 600_000;

impl CompactionHistory {
    /// A caller acted: resets the pause and the count of ineffective compactions.
    pub(super) fn reset_auto_compact(&mut self) {
        self.ineffective_in_a_row = 0;
        self.resume_auto_compact();
    }

    /// Ends the pause of automatic compaction.
    pub(super) fn resume_auto_compact(&mut self) {
        (self.paused_until, self.failed_at) = (None, None);
    }

    /// Pauses automatic compaction until `due`.
    pub(super) fn pause_auto_compact(&mut self, due: Deadline) {
        (self.paused_until, self.failed_at) = (Some(due), None);
    }

    /// Copies the pause, which no frame holds.
    pub fn copy_pause(&mut self, other: &Self) {
        (self.paused_until, self.failed_at) = (other.paused_until, other.failed_at);
    }

    /// Records what the last completed compaction freed, once the agent has reported usage since.
    pub(super) fn measure_freed(&mut self, usage: Option<&Usage>) {
        if self.measured
            && let Some(usage) = usage
        {
            self.record_freed(usage.used);
        }
    }

    /// Records what the last completed compaction freed, unless that is recorded.
    pub(super) fn record_freed(&mut self, tokens_after: u64) {
        let Some(before) = self.before.take() else { return };
        let freed = before.saturating_sub(tokens_after);
        let too_little = freed.saturating_mul(FREED_PART) < before;
        self.ineffective_in_a_row =
            if too_little { self.ineffective_in_a_row.saturating_add(1) } else { 0 };
    }

    /// Whether the group may order a compaction by itself. A pause that an earlier version began is
    /// measured by the wall clock, as nothing else is stored of it. It lasts at most its usual
    /// time, also if that clock was set.
    pub(super) fn may_auto_compact(&self, now: Now) -> bool {
        let is_paused = self.paused_until.is_some_and(|due| due.left_ms(now) > 0);
        let since_failure = self.failed_at.map(|failed| now.wall.0.saturating_sub(failed.0));
        let is_paused =
            is_paused || since_failure.is_some_and(|passed| (0..PAUSE_MS as i64).contains(&passed));
        self.measured && self.ineffective_in_a_row < INEFFECTIVE_MAX && !is_paused
    }
}
