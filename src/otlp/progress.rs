//! How far spans were sent: what is new, what may be forgotten, and what a clock that is set back
//! means.
//!
//! Knows no database and no clock. Ended tasks are in the order of the wall clock's times, and that
//! is not quite the order in which they can be read. The writer stores what it is told in the order
//! in which it is told. So if a task can be read before another one of an earlier time, it was told
//! before it, and the times differ by no more than passes between a look at the clock and the
//! message to the writer, however long a commit takes. That is far below [`LATE_MS`]: so far back
//! tasks are read again, and those that were sent are left out.

use std::collections::BTreeSet;

use greenroom_actors::storage::EndedAt;
use greenroom_core::Timestamp;

/// So far behind the clock a task may still turn up.
const LATE_MS: i64 = 5_000;
/// So much more the place stays behind, so that two clocks that do not run quite alike do not look
/// like one that was set back.
const SLACK_MS: i64 = 1_000;
/// So many are remembered as sent (I11). Above it nothing from the future is read: times from
/// before the clock was set back, which would be read again and again.
pub const SENT_MAX: usize = 8192;

/// A place behind which everything was sent, and what was sent ahead of it.
#[derive(Debug, PartialEq)]
pub struct Progress {
    place: EndedAt,
    sent: BTreeSet<EndedAt>,
    round: Option<Round>,
}

/// Pages that are read one after the other, the first of them from the place on.
#[derive(Debug, PartialEq)]
struct Round {
    /// Where the next page begins.
    cursor: EndedAt,
    /// When the first page was read. A task that can be read only later may lie before the cursor,
    /// so the place passes only what was old enough at that time.
    began: Timestamp,
}

impl Progress {
    /// Goes on from a stored place.
    pub fn resume(place: EndedAt) -> Self {
        Self { place, sent: BTreeSet::new(), round: None }
    }

    /// Begins with what ends after `now`; what ended shortly before has to be settled.
    pub fn begin(now: Timestamp) -> Self {
        Self::resume(EndedAt { at: Timestamp(now.0 - LATE_MS - SLACK_MS), key: i64::MAX })
    }

    /// Begins with everything that there is.
    pub fn backfill() -> Self {
        Self::resume(EndedAt { at: Timestamp(i64::MIN), key: i64::MIN })
    }

    /// Behind which everything was sent.
    pub fn place(&self) -> EndedAt {
        self.place
    }

    /// A look at the clock: whatever can be read now for the first time ended since the last look,
    /// `passed_ms` ago, or was late then. If the clock was set back, that may be before the place,
    /// which then goes back, too; whether it did.
    pub fn look(&mut self, now: Timestamp, passed_ms: u64) -> bool {
        let passed_ms = i64::try_from(passed_ms).unwrap_or(i64::MAX);
        let earliest = Timestamp(now.0.saturating_sub(passed_ms).saturating_sub(LATE_MS));
        let goes_back = earliest < self.place.at;
        if goes_back {
            self.place = EndedAt { at: earliest, key: i64::MIN };
            self.round = None;
        }
        goes_back
    }

    /// Where the next page begins. A round that takes long starts again at the place: otherwise a
    /// round that never reaches the end would keep the place from moving.
    pub fn cursor(&mut self, now: Timestamp) -> EndedAt {
        let is_young = |round: &Round| (0..=LATE_MS).contains(&(now.0 - round.began.0));
        self.round = self.round.take().filter(is_young);
        self.round.as_ref().map_or(self.place, |round| round.cursor)
    }

    /// Lets the next page begin at the place: all was read, or the collector did not take a page.
    pub fn restart(&mut self) {
        self.round = None;
    }

    /// Before when tasks have to have ended to be read; `None`: all are.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        (SENT_MAX <= self.sent.len()).then_some(Timestamp(now.0 + 1))
    }

    /// Whether it was not sent yet, as far as is remembered.
    pub fn is_new(&self, place: EndedAt) -> bool {
        !self.sent.contains(&place)
    }

    /// Marks a page as sent that was read at `now`. The place moves up to the last of its tasks
    /// that was old enough when the round began.
    pub fn settle(&mut self, page: &[EndedAt], now: Timestamp) {
        let Some(last) = page.last() else { return };
        self.sent.extend(page);
        let began = self.round.as_ref().map_or(now, |round| round.began);
        self.round = Some(Round { cursor: *last, began });
        let old = began.0 - LATE_MS - SLACK_MS;
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

    /// What a reader would send of a page of `rows` no longer than `limit`.
    fn page(progress: &mut Progress, rows: &[EndedAt], now: i64, limit: usize) -> Vec<i64> {
        let now = Timestamp(now);
        let cursor = progress.cursor(now);
        let mut rows: Vec<EndedAt> = rows.iter().copied().filter(|row| cursor < *row).collect();
        rows.retain(|row| progress.until(now).is_none_or(|until| row.at < until));
        rows.sort();
        rows.truncate(limit);
        let new: Vec<EndedAt> = rows.iter().copied().filter(|row| progress.is_new(*row)).collect();
        progress.settle(&rows, now);
        new.iter().map(|row| row.at.0).collect()
    }

    /// What a reader of all `rows` would send, and what it then knows.
    fn round(progress: &mut Progress, rows: &[EndedAt], now: i64) -> Vec<i64> {
        let sent = page(progress, rows, now, usize::MAX);
        progress.restart();
        sent
    }

    #[test]
    fn what_turns_up_late_is_sent_and_nothing_twice() {
        let mut progress = Progress::resume(at(0));
        let mut rows = vec![at(100_000), at(100_010)];
        assert_eq!(round(&mut progress, &rows, 100_020), [100_000, 100_010]);
        assert_eq!(progress.place(), at(0), "none of them is old enough");
        rows.push(at(100_005));
        assert!(!progress.look(Timestamp(102_020), 2_000));
        assert_eq!(round(&mut progress, &rows, 102_020), [100_005]);
        assert!(!progress.look(Timestamp(106_007), 3_987));
        assert!(round(&mut progress, &rows, 106_007).is_empty());
        assert_eq!((progress.place(), progress.sent.len()), (at(100_005), 1));
        assert!(!progress.look(Timestamp(200_000), 93_993));
        assert!(round(&mut progress, &rows, 200_000).is_empty());
        assert_eq!((progress.place(), progress.sent.len()), (at(100_010), 0));
    }

    /// Both sides of each boundary: how far the clock is set back, and what has ended since.
    #[test]
    fn a_clock_that_is_set_back_silences_nothing() {
        for set_back in [0, 1, 999, 1_000, 5_000, 6_000, 6_001, 60_000, 3_600_000] {
            for late in [0, 1, 2_500, 5_000] {
                let mut progress = Progress::resume(at(0));
                let before = 10_000_000;
                progress.look(Timestamp(before), 0);
                let old: Vec<EndedAt> = (0..20).map(|n| at(before - 1_000 * n)).collect();
                assert_eq!(round(&mut progress, &old, before).len(), 20);
                // The clock is set at once; something ends `late` after that; a look at 5 s.
                let now = before - set_back + 5_000;
                let fresh = EndedAt { at: Timestamp(before - set_back + late), key: 2 };
                let all: Vec<EndedAt> = old.iter().copied().chain([fresh]).collect();
                progress.look(Timestamp(now), 5_000);
                let sent = round(&mut progress, &all, now);
                assert!(sent.contains(&fresh.at.0), "{set_back} ms back, {late} ms late: {sent:?}");
                if set_back == 0 {
                    assert_eq!(sent.len(), 1, "a clock that was not set makes nothing go twice");
                }
            }
        }
    }

    /// A task that can be read only after the first page was, and that ended before the last task
    /// of that page, is sent, however long the second page takes and whether or not it has to be
    /// sent again.
    #[test]
    fn a_late_task_behind_a_page_is_sent_however_long_the_next_page_takes() {
        const BEGAN: i64 = 100_000;
        for wait in [0, 1, 4_999, 5_000, 5_001, 6_000, 60_000, 600_000] {
            for fails in [false, true] {
                let mut progress = Progress::resume(at(0));
                let mut rows: Vec<EndedAt> = (0..6).map(|n| at(BEGAN - 5 + n)).collect();
                let mut sent = page(&mut progress, &rows, BEGAN, 4);
                assert_eq!(sent.len(), 4);
                if fails {
                    progress.restart();
                }
                rows.push(at(BEGAN - 4_000));
                let mut now = BEGAN + wait;
                rows.push(at(now));
                loop {
                    let cursor = progress.cursor(Timestamp(now));
                    if !rows.iter().any(|row| cursor < *row) {
                        break;
                    }
                    sent.extend(page(&mut progress, &rows, now, 4));
                }
                progress.restart();
                // The next round, and one after everything is old.
                for _ in 0..2 {
                    now += 10_000;
                    sent.extend(round(&mut progress, &rows, now));
                }
                let mut expected: Vec<i64> = rows.iter().map(|row| row.at.0).collect();
                expected.sort_unstable();
                sent.sort_unstable();
                assert_eq!(sent, expected, "waited {wait} ms, failed: {fails}");
                assert_eq!(progress.place(), at(BEGAN + wait).max(at(BEGAN)));
            }
        }
    }

    /// I11: while pages never end, the round starts again at the place, and the place moves.
    #[test]
    fn a_place_moves_on_while_pages_are_always_full() {
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

    /// What was sent ahead of a place that went back does not hide what lies between.
    #[test]
    fn a_place_moves_no_further_than_what_was_read() {
        let mut progress = Progress::resume(at(0));
        progress.settle(&[at(900_000)], Timestamp(900_001));
        assert_eq!(progress.place(), at(0));
        progress.settle(&[at(500_000)], Timestamp(1_000_000));
        assert_eq!(progress.place(), at(500_000));
        assert!(!progress.is_new(at(900_000)) && progress.is_new(at(600_000)));
    }

    #[test]
    fn what_ended_before_the_beginning_is_not_sent() {
        let mut progress = Progress::begin(Timestamp(100_000));
        let (history, old) = (at(99_000), at(94_000));
        progress.settle(&[history], Timestamp(100_000));
        assert_eq!(round(&mut progress, &[old, history, at(100_001)], 100_100), [100_001]);
        assert_eq!(round(&mut Progress::backfill(), &[old, history], 100_100).len(), 2);
    }

    /// I11: times from the future are not collected without end.
    #[test]
    fn only_so_many_are_remembered() {
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
