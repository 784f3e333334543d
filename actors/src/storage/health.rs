//! The shared state of the database: whether it works, its broken groups, sizes and counters.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread::Thread,
    time::Duration,
};

use greenroom_core::Timestamp;
use tokio::sync::watch;

use super::{
    BrokenGroup, Failing, Fault, GroupNo, StorageMetrics, StoreError, Unreadable, calls::Calls,
    unreadable::BrokenGroups,
};
use crate::clock;

/// Whether the database works, and how much was committed. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StorageHealth(Arc<Figures>);

#[derive(Debug, Default)]
struct Figures {
    failing: watch::Sender<Option<Failing>>,
    broken: watch::Sender<BrokenGroups>,
    calls: Calls,
    stalled: watch::Sender<Option<Stall>>,
    commits: AtomicU64,
    transactions: AtomicU64,
    metrics: StorageMetrics,
    database_bytes: AtomicU64,
    log_bytes: AtomicU64,
    /// The last checkpoint, milliseconds since the epoch; 0 if there was none.
    checkpoint: AtomicI64,
    /// Whether the write-ahead log may still hold text that was deleted.
    holds_deleted: AtomicBool,
    /// The checkpointer's thread, which sleeps while nothing is committed.
    checkpointer: OnceLock<Thread>,
}

/// A write that does not return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Since when, by the wall clock.
    pub since: Timestamp,
    /// For how long, in milliseconds.
    pub ms: u64,
}

/// How large the database's files are, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The database itself.
    pub database: u64,
    /// Its write-ahead log.
    pub log: u64,
}

impl StorageHealth {
    /// Whether the database works. While it does not, only a trial write touches it, and every
    /// other write is refused at once.
    pub fn is_good(&self) -> bool {
        self.0.failing.borrow().is_none()
    }

    /// The fault and its beginning, while the database fails.
    pub fn failing(&self) -> Option<Failing> {
        *self.0.failing.borrow()
    }

    /// Refuses a request while the database fails.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`].
    pub fn check_works(&self) -> Result<(), StoreError> {
        match self.failing() {
            Some(failing) => Err(StoreError::Unavailable(failing.fault)),
            None => Ok(()),
        }
    }

    /// Refuses a request from outside while the database fails, or a write does not return.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`].
    pub fn check_answers(&self) -> Result<(), StoreError> {
        self.check_works()?;
        match self.stalled() {
            Some(_) => Err(StoreError::Unavailable(Fault::Stalled)),
            None => Ok(()),
        }
    }

    /// The write that does not return, if there is one.
    pub fn stalled(&self) -> Option<Stall> {
        *self.0.stalled.borrow()
    }

    /// Waits until a write does not return; returns at once if one does not now. Cancel safe.
    pub async fn until_stalled(&self) {
        // An error would mean that the sender is dropped, and `self` holds it.
        _ = self.0.stalled.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until every write returns; returns at once if all do now. Cancel safe.
    pub async fn until_moving(&self) {
        // An error would mean that the sender is dropped, and `self` holds it.
        _ = self.0.stalled.subscribe().wait_for(Option::is_none).await;
    }

    /// Waits until the database works; returns at once if it does. Cancel safe.
    pub async fn until_good(&self) {
        // An error would mean that the sender is dropped, and `self` holds it.
        _ = self.0.failing.subscribe().wait_for(Option::is_none).await;
    }

    /// Waits until the database fails; returns at once if it does. Cancel safe.
    pub async fn until_failing(&self) {
        // An error would mean that the sender is dropped, and `self` holds it.
        _ = self.0.failing.subscribe().wait_for(Option::is_some).await;
    }

    /// The known unreadable rows of a group.
    pub fn broken(&self, group: GroupNo) -> Option<BrokenGroup> {
        self.0.broken.borrow().0.get(&group).cloned()
    }

    /// The groups that cannot work because of unreadable rows.
    pub fn broken_groups(&self) -> Vec<GroupNo> {
        let broken = self.0.broken.borrow();
        broken.0.iter().filter(|(_, broken)| broken.stops).map(|(no, _)| *no).collect()
    }

    /// Records an unreadable row, and logs it if it was unknown: at `error` the first of a group,
    /// at `warn` the later ones.
    pub fn report_unreadable(&self, row: &Unreadable) {
        let mut level = None;
        self.0.broken.send_if_modified(|broken| {
            let known = broken.0.contains_key(&row.group);
            let fresh = broken.insert(row);
            level = fresh.then_some(if known { log::Level::Warn } else { log::Level::Error });
            true
        });
        if let Some(level) = level {
            log::log!(
                target: "greenroom::storage", level, group:% = row.name, row = row.what,
                stops = row.stops, remedy = row.remedy();
                "a stored row of a group cannot be read; other groups are not affected"
            );
        }
    }

    /// Removes the unreadable rows of a purged group.
    pub(super) fn forget_group(&self, group: GroupNo) {
        self.0.broken.send_if_modified(|broken| broken.0.remove(&group).is_some());
    }

    /// The number of groups' commits so far, and of their transactions.
    pub fn totals(&self) -> (u64, u64) {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        (of(&self.0.commits), of(&self.0.transactions))
    }

    /// The writer's metrics.
    pub fn metrics(&self) -> &StorageMetrics {
        &self.0.metrics
    }

    /// The sizes of the files at the last check, about a second ago at most.
    pub fn sizes(&self) -> Sizes {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Sizes { database: of(&self.0.database_bytes), log: of(&self.0.log_bytes) }
    }

    /// When the whole write-ahead log was last moved into the database, by the wall clock.
    pub fn last_checkpoint(&self) -> Option<Timestamp> {
        let at = self.0.checkpoint.load(Ordering::Relaxed);
        (at != 0).then_some(Timestamp(at))
    }

    /// Records that the database fails. Returns true if it worked before, or if the fault is worse
    /// than the known one: then the caller logs it.
    pub(super) fn set_failing(&self, fault: Fault) -> bool {
        let failing = Failing { fault, since: clock::now() };
        self.0.failing.send_if_modified(|state| {
            let fresh = state.is_none();
            // A fault that does not heal replaces one that does.
            if fresh || state.is_some_and(|state| state.fault.heals() && !fault.heals()) {
                *state = Some(failing);
                return true;
            }
            false
        })
    }

    /// Records that the database works. Returns true if it failed before: then the caller logs it.
    pub(super) fn set_working(&self) -> bool {
        self.0.failing.send_if_modified(|state| state.take().is_some())
    }

    /// The writer's calls of the database.
    pub(super) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// Records for how long a write has not returned. Returns true for the first record of a stall:
    /// then the caller logs it.
    pub(super) fn set_stalled(&self, ms: u64) -> bool {
        let since = Timestamp(clock::now().0.saturating_sub_unsigned(ms));
        let mut fresh = false;
        self.0.stalled.send_modify(|stalled| {
            fresh = stalled.is_none();
            let since = stalled.map_or(since, |stalled| stalled.since);
            *stalled = Some(Stall { since, ms });
        });
        fresh
    }

    /// Records that the write has returned.
    pub(super) fn set_moving(&self) {
        self.0.stalled.send_replace(None);
    }

    /// Counts one transaction with this number of groups' commits, and wakes the checkpointer.
    pub(super) fn committed(&self, groups: u64) {
        self.0.transactions.fetch_add(1, Ordering::Relaxed);
        self.0.commits.fetch_add(groups, Ordering::Relaxed);
        self.wake_checkpointer();
    }

    /// Records that text was deleted, whose pages the write-ahead log still holds, and wakes the
    /// checkpointer to truncate it.
    pub(super) fn deleted(&self) {
        self.0.holds_deleted.store(true, Ordering::Relaxed);
        self.wake_checkpointer();
    }

    /// Returns whether the write-ahead log may hold deleted text, and forgets that.
    pub(super) fn take_deleted(&self) -> bool {
        self.0.holds_deleted.swap(false, Ordering::Relaxed)
    }

    fn wake_checkpointer(&self) {
        if let Some(checkpointer) = self.0.checkpointer.get() {
            checkpointer.unpark();
        }
    }

    /// Observes a transaction's duration, and the groups' commits in it that are durable.
    pub(super) fn transacted(&self, took: Duration, answers: &[Result<(), StoreError>]) {
        let metrics = &self.0.metrics;
        metrics.seconds.observe(took.as_secs_f64());
        let durable = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
        if durable > 0 {
            metrics.transactions.inc();
            metrics.commits.inc_by(durable);
            metrics.groups.observe(durable as f64);
        }
    }

    /// Counts an acquired lock; `reclaimed`: from a holder that is provably dead.
    pub(super) fn lock_acquired(&self, reclaimed: bool) {
        self.0.metrics.lock_acquisitions.inc();
        self.0.metrics.lock_reclaims.inc_by(reclaimed.into());
    }

    pub(super) fn measured(&self, sizes: Sizes) {
        self.0.database_bytes.store(sizes.database, Ordering::Relaxed);
        self.0.log_bytes.store(sizes.log, Ordering::Relaxed);
    }

    pub(super) fn checkpointed(&self) {
        self.0.checkpoint.store(clock::now().0, Ordering::Relaxed);
    }

    /// Sets the thread that the next commit wakes.
    pub(super) fn set_checkpointer(&self, checkpointer: Thread) {
        _ = self.0.checkpointer.set(checkpointer);
    }
}
