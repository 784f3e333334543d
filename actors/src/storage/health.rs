//! How the database is, for anybody to look at and to wait for.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicI64, AtomicU64, Ordering},
};
use std::{thread::Thread, time::Duration};

use greenroom_core::Timestamp;
use tokio::sync::watch;

use super::{Broken, Failing, Fault, GroupNo, StoreError, Unreadable, unreadable::BrokenGroups};
use crate::{clock, metrics::StorageMetrics};

/// Whether the database works, and what was committed so far; for anybody to look at.
#[derive(Clone, Debug, Default)]
pub struct StorageHealth(Arc<Figures>);

#[derive(Debug, Default)]
struct Figures {
    failing: watch::Sender<Option<Failing>>,
    broken: watch::Sender<BrokenGroups>,
    commits: AtomicU64,
    transactions: AtomicU64,
    metrics: StorageMetrics,
    database_bytes: AtomicU64,
    log_bytes: AtomicU64,
    /// Milliseconds since the epoch; 0 if there was none.
    checkpoint: AtomicI64,
    /// Sleeps while nothing is committed.
    checkpointer: OnceLock<Thread>,
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
    /// Whether the last transaction was durable. While it is not, nothing but a trial write
    /// touches the database, and every other write is refused at once.
    pub fn is_good(&self) -> bool {
        self.0.failing.borrow().is_none()
    }

    /// Since when it fails, and why.
    pub fn failing(&self) -> Option<Failing> {
        *self.0.failing.borrow()
    }

    /// Waits until the database works; returns at once if it does. Cancel safe.
    pub async fn until_good(&self) {
        // An error says that the sender is gone, and `self` holds it.
        _ = self.0.failing.subscribe().wait_for(Option::is_none).await;
    }

    /// The rows of a group that cannot be read, as far as they are known.
    pub fn broken(&self, group: GroupNo) -> Option<Broken> {
        self.0.broken.borrow().0.get(&group).cloned()
    }

    /// The groups that cannot work for it.
    pub fn broken_groups(&self) -> Vec<GroupNo> {
        let broken = self.0.broken.borrow();
        broken.0.iter().filter(|(_, broken)| broken.stops).map(|(no, _)| *no).collect()
    }

    /// Takes in a row that cannot be understood, and names it in the log if it was not known: at
    /// `error` the first of a group, at `warn` those that are found later.
    pub fn unreadable(&self, row: &Unreadable) {
        let mut level = None;
        self.0.broken.send_if_modified(|broken| {
            let known = broken.0.contains_key(&row.group);
            let fresh = broken.take(row);
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

    /// Forgets what was known of a group that is no more.
    pub(super) fn purged(&self, group: GroupNo) {
        self.0.broken.send_if_modified(|broken| broken.0.remove(&group).is_some());
    }

    /// How many groups' commits there were, and in how many transactions.
    pub fn totals(&self) -> (u64, u64) {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        (of(&self.0.commits), of(&self.0.transactions))
    }

    /// What the writer counts.
    pub fn metrics(&self) -> &StorageMetrics {
        &self.0.metrics
    }

    /// How large the files were when they were last looked at, at most a second or so ago.
    pub fn sizes(&self) -> Sizes {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Sizes { database: of(&self.0.database_bytes), log: of(&self.0.log_bytes) }
    }

    /// When all of the write-ahead log was last moved into the database, by the wall clock.
    pub fn last_checkpoint(&self) -> Option<Timestamp> {
        let at = self.0.checkpoint.load(Ordering::Relaxed);
        (at != 0).then_some(Timestamp(at))
    }

    /// Takes in that it fails. True if it did not before: then somebody should say so.
    pub(super) fn fail(&self, fault: Fault) -> bool {
        let failing = Failing { fault, since: clock::now() };
        self.0.failing.send_if_modified(|state| {
            let fresh = state.is_none();
            // One that does not heal stands over one that does.
            if fresh || state.is_some_and(|state| state.fault.heals() && !fault.heals()) {
                *state = Some(failing);
                return true;
            }
            false
        })
    }

    /// Takes in that it works. True if it did not before: then somebody should say so.
    pub(super) fn work(&self) -> bool {
        self.0.failing.send_if_modified(|state| state.take().is_some())
    }

    pub(super) fn committed(&self, groups: u64) {
        self.0.transactions.fetch_add(1, Ordering::Relaxed);
        self.0.commits.fetch_add(groups, Ordering::Relaxed);
        if let Some(checkpointer) = self.0.checkpointer.get() {
            checkpointer.unpark();
        }
    }

    /// Counts a transaction that took so long, and the groups' commits in it that are durable.
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

    /// Counts a lock that was taken; `reclaimed`: from a holder that is provably dead.
    pub(super) fn lock_taken(&self, reclaimed: bool) {
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

    /// Names the thread that is woken by the first commit after a quiet time.
    pub(super) fn wake(&self, checkpointer: Thread) {
        _ = self.0.checkpointer.set(checkpointer);
    }
}
