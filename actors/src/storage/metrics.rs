//! The metrics of the storage writer.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use crate::metrics::histogram::Histogram;

/// Upper bounds of a transaction's duration, seconds.
const COMMIT_SECONDS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Upper bounds of the groups of one transaction.
const GROUPS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// The writer's metrics.
#[derive(Clone, Debug)]
pub struct StorageMetrics {
    /// Durable transactions.
    pub(crate) transactions: Counter,
    /// Groups' commits in them.
    pub(crate) commits: Counter,
    /// The groups' commits in one transaction.
    pub(crate) groups: Histogram,
    /// The duration of a transaction, durable or not.
    pub(crate) seconds: Histogram,
    /// Acquired locks.
    pub(crate) lock_acquisitions: Counter,
    /// Locks acquired from a holder whose process is provably gone.
    pub(crate) lock_reclaims: Counter,
}

impl Default for StorageMetrics {
    fn default() -> Self {
        Self {
            transactions: Counter::default(),
            commits: Counter::default(),
            groups: Histogram::new(GROUPS),
            seconds: Histogram::new(COMMIT_SECONDS),
            lock_acquisitions: Counter::default(),
            lock_reclaims: Counter::default(),
        }
    }
}

impl StorageMetrics {
    /// Registers all metrics, with their names and help texts.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("transactions", "Durable transactions of groups' facts", self.transactions.clone());
        to.register("commits", "Durable commits of groups; a transaction has those of several groups", self.commits.clone());
        to.register("transaction_groups", "Groups' commits in one transaction", self.groups.clone());
        to.register("commit_seconds", "Duration of a transaction of groups' facts, durable or not", self.seconds.clone());
        to.register("lock_acquisitions", "Compaction locks that were acquired, by groups and over HTTP", self.lock_acquisitions.clone());
        to.register("lock_reclaims", "Compaction locks that were acquired from a holder whose process is provably gone", self.lock_reclaims.clone());
    }
}
