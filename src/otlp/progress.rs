//! The export's progress: which tasks are new, which may be forgotten, and what follows if the
//! clock is set back.
//!
//! Knows no database and no clock. Ended tasks are sorted by wall-clock time, which is not exactly
//! the order in which they become readable. The writer commits in the order of its messages. So if
//! a task becomes readable before another task of an earlier time, its message was sent first, and
//! the two times differ at most by the delay between reading the clock and sending the message,
//! however long a commit takes. That delay is far below [`LATE_MS`]: tasks of the last [`LATE_MS`]
//! are read again, and those already sent are skipped.

use std::collections::BTreeSet;

use greenroom_actors::storage::EndedAt;
use greenroom_core::Timestamp;

/// How long after its end a task may become readable.
const LATE_MS: i64 = 5_000;
/// The additional distance between place and clock: two clocks that run at slightly different
/// speeds must not look like a clock that was set back.
const SLACK_MS: i64 = 1_000;
/// Maximum of tasks remembered as sent (I11). When it is reached, tasks with a time in the future
/// (from before the clock was set back) are skipped: they would be re-sent for ever.
pub const SENT_MAX: usize = 8192;

/// The place up to which every task was sent, and the tasks sent ahead of it.
#[derive(Debug, PartialEq)]
pub struct Progress {
    place: EndedAt,
    sent: BTreeSet<EndedAt>,
    round: Option<Round>,
}

/// A series of pages, of which the first starts at the place.
#[derive(Debug, PartialEq)]
struct Round {
    /// Where the next page starts.
    cursor: EndedAt,
    /// When the first page was read. A task that becomes readable later may lie before the cursor,
    /// so the place only passes tasks that were old enough at this time.
    started: Timestamp,
}

impl Progress {
    /// Resumes at a stored place.
    pub fn resume(place: EndedAt) -> Self {
        Self { place, sent: BTreeSet::new(), round: None }
    }

    /// Starts with the tasks that end after `now`; the caller marks those of shortly before as
    /// sent.
    pub fn from_now(now: Timestamp) -> Self {
        Self::resume(EndedAt { at: Timestamp(now.0 - LATE_MS - SLACK_MS), key: i64::MAX })
    }

    /// Starts with the first task of the database.
    pub fn backfill() -> Self {
        Self::resume(EndedAt { at: Timestamp(i64::MIN), key: i64::MIN })
    }

    /// Returns the place up to which every task was sent.
    pub fn place(&self) -> EndedAt {
        self.place
    }

    /// Compares the place with the clock, `elapsed_ms` after the last call. A task that became
    /// readable since then ended since then, or was late. If the clock was set back, such a task
    /// may lie before the place; the place then moves back. Returns whether it did.
    pub fn observe_clock(&mut self, now: Timestamp, elapsed_ms: u64) -> bool {
        let elapsed_ms = i64::try_from(elapsed_ms).unwrap_or(i64::MAX);
        let earliest = Timestamp(now.0.saturating_sub(elapsed_ms).saturating_sub(LATE_MS));
        let is_set_back = earliest < self.place.at;
        if is_set_back {
            self.place = EndedAt { at: earliest, key: i64::MIN };
            self.round = None;
        }
        is_set_back
    }

    /// Returns where the next page starts. A long round starts again at the place: a round that
    /// never reaches the end would keep the place from advancing.
    pub fn cursor(&mut self, now: Timestamp) -> EndedAt {
        let is_young = |round: &Round| (0..=LATE_MS).contains(&(now.0 - round.started.0));
        self.round = self.round.take().filter(is_young);
        self.round.as_ref().map_or(self.place, |round| round.cursor)
    }

    /// Starts the next page at the place: every task was read, or the collector did not accept a
    /// page.
    pub fn restart_round(&mut self) {
        self.round = None;
    }

    /// Returns the end time before which tasks are read; `None`: no limit.
    pub fn read_before(&self, now: Timestamp) -> Option<Timestamp> {
        (SENT_MAX <= self.sent.len()).then_some(Timestamp(now.0 + 1))
    }

    /// Whether the task is not remembered as sent.
    pub fn is_new(&self, place: EndedAt) -> bool {
        !self.sent.contains(&place)
    }

    /// Marks a page as sent that was read at `now`. The place advances to its last task that was
    /// old enough when the round started.
    pub fn mark_sent(&mut self, page: &[EndedAt], now: Timestamp) {
        let Some(last) = page.last() else { return };
        self.sent.extend(page);
        let started = self.round.as_ref().map_or(now, |round| round.started);
        self.round = Some(Round { cursor: *last, started });
        let old = started.0 - LATE_MS - SLACK_MS;
        let reached = self.sent.range(..=last).rfind(|place| place.at.0 <= old);
        if let Some(reached) = reached.filter(|place| self.place < **place) {
            self.place = *reached;
            let ahead = self.sent.split_off(&self.place);
            self.sent = ahead;
            self.sent.remove(&self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: i64) -> EndedAt {
        EndedAt { at: Timestamp(ms), key: 1 }
    }

    /// Returns the tasks that an export sends of a page of `rows` with at most `limit` tasks.
    fn page(progress: &mut Progress, rows: &[EndedAt], now: i64, limit: usize) -> Vec<i64> {
        let now = Timestamp(now);
        let cursor = progress.cursor(now);
        let mut rows: Vec<EndedAt> = rows.iter().copied().filter(|row| cursor < *row).collect();
        rows.retain(|row| progress.read_before(now).is_none_or(|until| row.at < until));
        rows.sort();
        rows.truncate(limit);
        let new: Vec<EndedAt> = rows.iter().copied().filter(|row| progress.is_new(*row)).collect();
        progress.mark_sent(&rows, now);
        new.iter().map(|row| row.at.0).collect()
    }

    /// Returns the tasks that an export sends of all `rows`, as one round.
    fn round(progress: &mut Progress, rows: &[EndedAt], now: i64) -> Vec<i64> {
        let sent = page(progress, rows, now, usize::MAX);
        progress.restart_round();
        sent
    }

    #[test]
    fn a_late_task_is_sent_and_none_is_sent_twice() {
        let mut progress = Progress::resume(at(0));
        let mut rows = vec![at(100_000), at(100_010)];
        assert_eq!(round(&mut progress, &rows, 100_020), [100_000, 100_010]);
        assert_eq!(progress.place(), at(0), "none of them is old enough");
        rows.push(at(100_005));
        assert!(!progress.observe_clock(Timestamp(102_020), 2_000));
        assert_eq!(round(&mut progress, &rows, 102_020), [100_005]);
        assert!(!progress.observe_clock(Timestamp(106_007), 3_987));
        assert!(round(&mut progress, &rows, 106_007).is_empty());
        assert_eq!((progress.place(), progress.sent.len()), (at(100_005), 1));
        assert!(!progress.observe_clock(Timestamp(200_000), 93_993));
        assert!(round(&mut progress, &rows, 200_000).is_empty());
        assert_eq!((progress.place(), progress.sent.len()), (at(100_010), 0));
    }

    /// Both sides of each boundary: how far the clock is set back, and how late a task ends.
    #[test]
    fn no_task_is_lost_when_the_clock_is_set_back() {
        for set_back in [0, 1, 999, 1_000, 5_000, 6_000, 6_001, 60_000, 3_600_000] {
            for late in [0, 1, 2_500, 5_000] {
                let mut progress = Progress::resume(at(0));
                let before = 10_000_000;
                progress.observe_clock(Timestamp(before), 0);
                let old: Vec<EndedAt> = (0..20).map(|n| at(before - 1_000 * n)).collect();
                assert_eq!(round(&mut progress, &old, before).len(), 20);
                // The clock is set back; a task ends `late` ms later; the next step is at 5 s.
                let now = before - set_back + 5_000;
                let fresh = EndedAt { at: Timestamp(before - set_back + late), key: 2 };
                let all: Vec<EndedAt> = old.iter().copied().chain([fresh]).collect();
                progress.observe_clock(Timestamp(now), 5_000);
                let sent = round(&mut progress, &all, now);
                assert!(sent.contains(&fresh.at.0), "{set_back} ms back, {late} ms late: {sent:?}");
                if set_back == 0 {
                    assert_eq!(sent.len(), 1, "with a steady clock no task is sent twice");
                }
            }
        }
    }

    /// A task that becomes readable after the first page was read, and that ended before the last
    /// task of that page, is sent, however long the second page takes and whether or not that page
    /// is retried.
    #[test]
    fn a_late_task_before_the_cursor_is_sent_however_long_the_next_page_takes() {
        const STARTED: i64 = 100_000;
        for wait in [0, 1, 4_999, 5_000, 5_001, 6_000, 60_000, 600_000] {
            for fails in [false, true] {
                let mut progress = Progress::resume(at(0));
                let mut rows: Vec<EndedAt> = (0..6).map(|n| at(STARTED - 5 + n)).collect();
                let mut sent = page(&mut progress, &rows, STARTED, 4);
                assert_eq!(sent.len(), 4);
                if fails {
                    progress.restart_round();
                }
                rows.push(at(STARTED - 4_000));
                let mut now = STARTED + wait;
                rows.push(at(now));
                loop {
                    let cursor = progress.cursor(Timestamp(now));
                    if !rows.iter().any(|row| cursor < *row) {
                        break;
                    }
                    sent.extend(page(&mut progress, &rows, now, 4));
                }
                progress.restart_round();
                // The next round, and one when every task is old.
                for _ in 0..2 {
                    now += 10_000;
                    sent.extend(round(&mut progress, &rows, now));
                }
                let mut expected: Vec<i64> = rows.iter().map(|row| row.at.0).collect();
                expected.sort_unstable();
                sent.sort_unstable();
                assert_eq!(sent, expected, "waited {wait} ms, failed: {fails}");
                assert_eq!(progress.place(), at(STARTED + wait).max(at(STARTED)));
            }
        }
    }

    /// I11: while pages never end, the round starts again at the place, and the place advances.
    #[test]
    fn the_place_advances_while_pages_are_always_full() {
        let mut progress = Progress::resume(at(0));
        let all: Vec<EndedAt> = (1..2_000_000).step_by(10).map(at).collect();
        let (mut sent, mut now) = (0, 1_000);
        while now < 1_000_000 {
            let known = &all[..all.partition_point(|row| row.at.0 <= now)];
            let cursor = progress.cursor(Timestamp(now));
            let near = known.partition_point(|row| *row <= cursor);
            let near = &known[near..known.len().min(near + 10)];
            sent += page(&mut progress, near, now, 10).len();
            now += 50;
            assert!(progress.sent.len() < 2_000, "{} at {now}", progress.sent.len());
        }
        assert!(sent > 0 && progress.place().at.0 > 0, "{sent} {:?}", progress.place());
    }

    /// Tasks sent ahead of a place that moved back do not hide the tasks between.
    #[test]
    fn the_place_advances_no_further_than_the_tasks_read() {
        let mut progress = Progress::resume(at(0));
        progress.mark_sent(&[at(900_000)], Timestamp(900_001));
        assert_eq!(progress.place(), at(0));
        progress.mark_sent(&[at(500_000)], Timestamp(1_000_000));
        assert_eq!(progress.place(), at(500_000));
        assert!(!progress.is_new(at(900_000)) && progress.is_new(at(600_000)));
    }

    #[test]
    fn tasks_that_ended_before_the_start_are_not_sent() {
        let mut progress = Progress::from_now(Timestamp(100_000));
        let (history, old) = (at(99_000), at(94_000));
        progress.mark_sent(&[history], Timestamp(100_000));
        assert_eq!(round(&mut progress, &[old, history, at(100_001)], 100_100), [100_001]);
        assert_eq!(round(&mut Progress::backfill(), &[old, history], 100_100).len(), 2);
    }

    /// I11: the number of remembered times from the future is bounded.
    #[test]
    fn the_number_of_remembered_tasks_is_bounded() {
        let now = 1_000_000;
        let mut progress = Progress::resume(at(0));
        let future: Vec<EndedAt> =
            (0..SENT_MAX as i64 + 100).map(|n| at(now + 3_600_000 + n)).collect();
        let mut sent = 0;
        for page in future.chunks(256) {
            sent += round(&mut progress, page, now).len();
        }
        assert!((SENT_MAX..SENT_MAX + 256).contains(&progress.sent.len()), "{sent}");
        assert_eq!(round(&mut progress, &[at(now)], now), [now]);
        let later = now + 4_000_000;
        assert!(!round(&mut progress, &future, later).is_empty(), "they are sent in the end");
    }
}
