//! The numbers of the status changes of all groups, which changes are kept, and which ones a reader
//! missed.
//!
//! Every change has a number. While no reader is connected, a change is only counted, which costs
//! one atomic addition. Knows no clock and no actor.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::group::Change;

/// Changes that are kept for readers.
pub const KEPT_MAX: usize = 1024;

/// Whether a reader is connected, and how many changes there were while none was.
///
/// One atomic holds both, so that each change is either sent or counted: the lowest bit says
/// whether a reader is connected, the others count.
#[derive(Debug, Default)]
pub struct Watched(AtomicU64);

const IS_WATCHED: u64 = 1;
const ONE_CHANGE: u64 = 2;

impl Watched {
    /// Counts a change. Returns whether the change has to be sent as well.
    pub fn count(&self) -> bool {
        self.0.fetch_add(ONE_CHANGE, Ordering::Relaxed) & IS_WATCHED != 0
    }

    /// Has changes sent from now on. Returns how many were only counted since [`Self::end`]; `None`
    /// if changes are sent already.
    pub fn begin(&self) -> Option<u64> {
        let before = self.0.fetch_or(IS_WATCHED, Ordering::Relaxed);
        (before & IS_WATCHED == 0).then_some(before / ONE_CHANGE)
    }

    /// Has changes only counted from now on.
    pub fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The newest changes, with consecutive numbers.
#[derive(Debug)]
pub struct History {
    kept: VecDeque<Arc<Change>>,
    last: u64,
}

/// What a reader gets first.
#[derive(Debug)]
pub struct Replay {
    /// The number of the first change that the reader gets. Present if changes after its cursor are
    /// not kept, or if its cursor is a number that no change has had.
    pub gap: Option<u64>,
    /// The changes that are kept.
    pub past: Vec<Arc<Change>>,
}

impl History {
    /// An empty history whose first change gets the number after `last`.
    pub fn new(last: u64) -> Self {
        Self { kept: VecDeque::new(), last }
    }

    /// Numbers a change and keeps it.
    pub fn push(&mut self, change: Change) -> Arc<Change> {
        self.last += 1;
        let change = Arc::new(Change { id: self.last, ..change });
        self.kept.push_back(change.clone());
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
        change
    }

    /// Adds `count` changes that were only counted: the kept ones no longer reach up to the last.
    pub fn skip(&mut self, count: u64) {
        if count > 0 {
            self.kept.clear();
            self.last += count;
        }
    }

    /// What a reader gets first whose last change is `cursor`; 0 asks for all that are kept.
    pub fn after(&self, cursor: u64) -> Replay {
        let earliest = self.kept.front().map_or(self.last + 1, |first| first.id);
        let is_of_the_future = cursor > self.last;
        let misses = cursor > 0 && (is_of_the_future || cursor + 1 < earliest);
        let cursor = if is_of_the_future { 0 } else { cursor };
        let past = self.kept.iter().filter(|change| change.id > cursor).cloned().collect();
        Replay { gap: misses.then_some(earliest), past }
    }
}

#[cfg(test)]
mod tests {
    use greenroom_core::{Status, Timestamp};

    use super::*;

    fn change() -> Change {
        Change {
            id: 0,
            at: Timestamp(0),
            group: "work".parse().unwrap_or_else(|_| unreachable!()),
            from: Status::Idle,
            to: Status::Running,
            blocked_by: None,
            queue_length: 0,
            current_task: None,
        }
    }

    fn replay(history: &History, cursor: u64) -> (Option<u64>, Vec<u64>) {
        let Replay { gap, past } = history.after(cursor);
        (gap, past.iter().map(|change| change.id).collect())
    }

    #[test]
    fn a_cursor_misses_what_is_not_kept_and_nothing_else() {
        let mut history = History::new(1_000);
        let replays = |history: &History, cases: &[(u64, Option<u64>, &[u64])]| {
            for (cursor, gap, past) in cases {
                assert_eq!(replay(history, *cursor), (*gap, past.to_vec()), "{cursor}");
            }
        };
        replays(
            &history,
            &[
                (0, None, &[]),
                (999, Some(1_001), &[]),
                (1_000, None, &[]),
                (1_001, Some(1_001), &[]),
                (u64::MAX, Some(1_001), &[]),
            ],
        );
        assert_eq!((history.push(change()).id, history.push(change()).id), (1_001, 1_002));
        replays(
            &history,
            &[
                (0, None, &[1_001, 1_002]),
                (999, Some(1_001), &[1_001, 1_002]),
                (1_000, None, &[1_001, 1_002]),
                (1_001, None, &[1_002]),
                (1_002, None, &[]),
                (1_003, Some(1_001), &[1_001, 1_002]),
            ],
        );
        history.skip(0);
        assert_eq!(replay(&history, 1_001), (None, vec![1_002]), "nothing was missed");
        history.skip(3);
        replays(
            &history,
            &[
                (0, None, &[]),
                (1_002, Some(1_006), &[]),
                (1_005, None, &[]),
                (1_006, Some(1_006), &[]),
            ],
        );
        assert_eq!(history.push(change()).id, 1_006, "as the gap said");
        replays(&history, &[(1_002, Some(1_006), &[1_006]), (1_005, None, &[1_006])]);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut history = History::new(0);
        let count = KEPT_MAX as u64 + 5;
        (0..count).for_each(|_| _ = history.push(change()));
        assert_eq!((history.after(5).gap, history.after(5).past.len()), (None, KEPT_MAX));
        assert_eq!((history.after(4).gap, history.after(4).past.len()), (Some(6), KEPT_MAX));
    }

    /// A change that arrives after the last reader left hides none of those that are only counted.
    #[test]
    fn a_change_that_arrives_late_hides_none_that_was_only_counted() {
        let (watched, mut history) = (Watched::default(), History::new(10));
        assert!(!watched.count(), "no reader is connected");
        assert_eq!(watched.begin(), Some(1));
        history.skip(1);
        assert_eq!((watched.count(), watched.begin()), (true, None));
        assert_eq!(history.push(change()).id, 12);
        let arrives_late = watched.count();
        watched.end();
        assert!(arrives_late && history.push(change()).id == 13);
        assert!(!watched.count() && !watched.count());
        history.skip(watched.begin().unwrap_or_default());
        assert_eq!(replay(&history, 12), (Some(16), vec![]));
        assert_eq!(replay(&history, 13), (Some(16), vec![]));
        assert_eq!(history.push(change()).id, 16);
    }

    /// Each change is either sent or counted, also while readers come and go.
    #[test]
    fn no_change_is_lost_between_readers() {
        const CHANGES: u64 = 20_000;
        let watched = Watched::default();
        let (mut counted, mut sent) = (0, 0);
        std::thread::scope(|scope| {
            let groups = (0..3)
                .map(|_| scope.spawn(|| (0..CHANGES).filter(|_| watched.count()).count() as u64));
            let groups: Vec<_> = groups.collect();
            while groups.iter().any(|group| !group.is_finished()) {
                counted += watched.begin().unwrap_or_default();
                watched.end();
            }
            sent = groups.into_iter().map(|group| group.join().unwrap_or_default()).sum();
        });
        counted += watched.begin().unwrap_or_default();
        assert_eq!(counted + sent, 3 * CHANGES);
    }
}
