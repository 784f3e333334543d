//! The status changes of all groups: their numbers, the newest ones, and what a reader missed.
//!
//! While no reader is connected, a change is only counted, which costs one atomic addition. This
//! module uses no clock and no actor.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use greenroom_core::{Blocked, GroupId, Status, TaskId, Timestamp};

/// Changes that are kept for readers.
pub const KEPT_MAX: usize = 1024;

/// A group's change of status.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its number among the changes of all groups, which grows even over a restart. The supervisor
    /// sets it.
    pub id: u64,
    /// When it happened.
    pub at: Timestamp,
    /// The group.
    pub group: GroupId,
    /// The status before.
    pub from: Status,
    /// The status after.
    pub to: Status,
    /// What its next task waits for.
    pub blocked_by: Option<Blocked>,
    /// How many tasks wait.
    pub queue_length: u64,
    /// The task that has its slot.
    pub current_task: Option<TaskId>,
}

/// Open while a reader is connected: then changes are sent. While it is closed they are counted.
///
/// One atomic holds both, so that each change is either sent or counted: the lowest bit is set
/// while a reader is connected, the others count.
#[derive(Debug, Default)]
pub struct ChangeGate(AtomicU64);

const IS_WATCHED: u64 = 1;
const ONE_CHANGE: u64 = 2;

impl ChangeGate {
    /// Counts a change. Returns whether the change has to be sent as well.
    pub fn count(&self) -> bool {
        self.0.fetch_add(ONE_CHANGE, Ordering::Relaxed) & IS_WATCHED != 0
    }

    /// Opens the gate. Returns how many changes were only counted since [`Self::close`]; `None` if
    /// it was open.
    pub fn open(&self) -> Option<u64> {
        let before = self.0.fetch_or(IS_WATCHED, Ordering::Relaxed);
        (before & IS_WATCHED == 0).then_some(before / ONE_CHANGE)
    }

    /// Closes the gate.
    pub fn close(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The newest changes, with consecutive numbers.
#[derive(Debug)]
pub struct RecentChanges {
    kept: VecDeque<Arc<Change>>,
    last: u64,
}

/// What a reader gets first.
#[derive(Debug)]
pub struct Backlog {
    /// The number of the first change that the reader gets. Present if changes after its cursor are
    /// not kept, or if its cursor is a number that no change has had.
    pub gap: Option<u64>,
    /// The changes that are kept.
    pub past: Vec<Arc<Change>>,
}

impl RecentChanges {
    /// No changes yet; the first one gets the number after `last`.
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

    /// Skips the numbers of `count` changes that were only counted, and drops the kept ones, as
    /// they no longer reach the last.
    pub fn skip(&mut self, count: u64) {
        if count > 0 {
            self.kept.clear();
            self.last += count;
        }
    }

    /// Returns what a reader gets first whose last change is `cursor`; 0 means all that are kept.
    pub fn after(&self, cursor: u64) -> Backlog {
        let earliest = self.kept.front().map_or(self.last + 1, |first| first.id);
        let is_of_the_future = cursor > self.last;
        let misses = cursor > 0 && (is_of_the_future || cursor + 1 < earliest);
        let cursor = if is_of_the_future { 0 } else { cursor };
        let past = self.kept.iter().filter(|change| change.id > cursor).cloned().collect();
        Backlog { gap: misses.then_some(earliest), past }
    }
}

#[cfg(test)]
mod tests {

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

    fn replay(recent: &RecentChanges, cursor: u64) -> (Option<u64>, Vec<u64>) {
        let Backlog { gap, past } = recent.after(cursor);
        (gap, past.iter().map(|change| change.id).collect())
    }

    #[test]
    fn a_cursor_misses_what_is_not_kept_and_nothing_else() {
        let mut recent = RecentChanges::new(1_000);
        let replays = |recent: &RecentChanges, cases: &[(u64, Option<u64>, &[u64])]| {
            for (cursor, gap, past) in cases {
                assert_eq!(replay(recent, *cursor), (*gap, past.to_vec()), "{cursor}");
            }
        };
        replays(
            &recent,
            &[
                (0, None, &[]),
                (999, Some(1_001), &[]),
                (1_000, None, &[]),
                (1_001, Some(1_001), &[]),
                (u64::MAX, Some(1_001), &[]),
            ],
        );
        assert_eq!((recent.push(change()).id, recent.push(change()).id), (1_001, 1_002));
        replays(
            &recent,
            &[
                (0, None, &[1_001, 1_002]),
                (999, Some(1_001), &[1_001, 1_002]),
                (1_000, None, &[1_001, 1_002]),
                (1_001, None, &[1_002]),
                (1_002, None, &[]),
                (1_003, Some(1_001), &[1_001, 1_002]),
            ],
        );
        recent.skip(0);
        assert_eq!(replay(&recent, 1_001), (None, vec![1_002]), "nothing was missed");
        recent.skip(3);
        replays(
            &recent,
            &[
                (0, None, &[]),
                (1_002, Some(1_006), &[]),
                (1_005, None, &[]),
                (1_006, Some(1_006), &[]),
            ],
        );
        assert_eq!(recent.push(change()).id, 1_006, "as the gap said");
        replays(&recent, &[(1_002, Some(1_006), &[1_006]), (1_005, None, &[1_006])]);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut recent = RecentChanges::new(0);
        let count = KEPT_MAX as u64 + 5;
        (0..count).for_each(|_| _ = recent.push(change()));
        assert_eq!((recent.after(5).gap, recent.after(5).past.len()), (None, KEPT_MAX));
        assert_eq!((recent.after(4).gap, recent.after(4).past.len()), (Some(6), KEPT_MAX));
    }

    /// A change that arrives after the last reader left hides none of those that are only counted.
    #[test]
    fn a_change_that_arrives_late_hides_none_that_was_only_counted() {
        let (gate, mut recent) = (ChangeGate::default(), RecentChanges::new(10));
        assert!(!gate.count(), "no reader is connected");
        assert_eq!(gate.open(), Some(1));
        recent.skip(1);
        assert_eq!((gate.count(), gate.open()), (true, None));
        assert_eq!(recent.push(change()).id, 12);
        let arrives_late = gate.count();
        gate.close();
        assert!(arrives_late && recent.push(change()).id == 13);
        assert!(!gate.count() && !gate.count());
        recent.skip(gate.open().unwrap_or_default());
        assert_eq!(replay(&recent, 12), (Some(16), vec![]));
        assert_eq!(replay(&recent, 13), (Some(16), vec![]));
        assert_eq!(recent.push(change()).id, 16);
    }

    /// Each change is either sent or counted, also while readers come and go.
    #[test]
    fn no_change_is_lost_between_readers() {
        const CHANGES: u64 = 20_000;
        let gate = ChangeGate::default();
        let (mut counted, mut sent) = (0, 0);
        std::thread::scope(|scope| {
            let groups = (0..3)
                .map(|_| scope.spawn(|| (0..CHANGES).filter(|_| gate.count()).count() as u64));
            let groups: Vec<_> = groups.collect();
            while groups.iter().any(|group| !group.is_finished()) {
                counted += gate.open().unwrap_or_default();
                gate.close();
            }
            sent = groups.into_iter().map(|group| group.join().unwrap_or_default()).sum();
        });
        counted += gate.open().unwrap_or_default();
        assert_eq!(counted + sent, 3 * CHANGES);
    }
}
