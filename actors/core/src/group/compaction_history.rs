//! When a group may order a compaction by itself: not after ineffective or failed ones (HL-14).

use super::{CompactionHistory, Unfinished};
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
        (self.paused_until, self.failed_at, self.lock_held) = (None, None, false);
    }

    /// Pauses automatic compaction until `due`; `lock_held`: because another program has the lock.
    pub(super) fn pause_auto_compact(&mut self, due: Deadline, lock_held: bool) {
        (self.paused_until, self.failed_at, self.lock_held) = (Some(due), None, lock_held);
    }

    /// Copies the pause, which no frame holds.
    pub fn copy_pause(&mut self, other: &Self) {
        (self.paused_until, self.failed_at) = (other.paused_until, other.failed_at);
        self.lock_held = other.lock_held;
    }

    /// Returns until when automatic compaction is paused, and whether because another program had
    /// the lock; `None` if it is not.
    pub fn pause(&self, now: Now) -> Option<(Deadline, bool)> {
        let due = self.paused_until.filter(|due| due.left_ms(now) > 0)?;
        Some((due, self.lock_held))
    }

    /// An ordered compaction was not completed. Of several in a row the first counts that knows the
    /// tokens before it.
    pub(super) fn leave_unfinished(&mut self, tokens_before: Option<u64>) {
        let earlier = self.unfinished.take().and_then(|unfinished| unfinished.before);
        let before = earlier.or(tokens_before.filter(|tokens| *tokens > 0));
        self.unfinished = Some(Unfinished { before, is_completed: false });
    }

    /// A compaction was completed: in a turn it may be the unfinished one, and its summary the
    /// turn's answer.
    pub(super) fn complete_late(&mut self, is_in_turn: bool) {
        let unfinished = self.unfinished.take().filter(|_| is_in_turn);
        self.unfinished = unfinished.map(|known| Unfinished { is_completed: true, ..known });
    }

    /// Whether the agent answered a turn, without a tool call, only with the summary of the
    /// unfinished compaction. It surely did if its text is that of a completed compaction, or none;
    /// or one element that agents put summaries into; or if no detector reported a compaction, and
    /// the context became smaller by so much that there was one.
    pub(super) fn is_answered_by_compaction(
        &self,
        text: &str,
        summary: Option<&str>,
        used: Option<u64>,
    ) -> bool {
        let Some(unfinished) = &self.unfinished else { return false };
        let is_summary = text.is_empty() || summary.map(str::trim) == Some(text);
        let shrank = unfinished.before.zip(used).is_some_and(|(before, used)| {
            let freed = before.saturating_sub(used);
            used > 0 && freed.saturating_mul(FREED_PART) >= before
        });
        is_summary_element(text) || if unfinished.is_completed { is_summary } else { shrank }
    }

    /// A turn was answered, or the context is another one.
    pub(super) fn forget_unfinished(&mut self) {
        self.unfinished = None;
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
        let is_paused = self.pause(now).is_some();
        let since_failure = self.failed_at.map(|failed| now.wall.0.saturating_sub(failed.0));
        let is_paused =
            is_paused || since_failure.is_some_and(|passed| (0..PAUSE_MS as i64).contains(&passed));
        self.measured && self.ineffective_in_a_row < INEFFECTIVE_MAX && !is_paused
    }
}

/// Whether the text is one element that agents put the summary of a conversation into.
fn is_summary_element(text: &str) -> bool {
    ["state_snapshot", "summary"]
        .iter()
        .any(|name| text.starts_with(&format!("<{name}>")) && text.ends_with(&format!("</{name}>")))
}
