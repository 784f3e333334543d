//! Refreshes a lease while its holder works (HL-6).

use std::time::Duration;

use greenroom_core::lock::{Lease, Ttl};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Db, LockError, chain};

/// Why a lease is no longer refreshed.
#[derive(Clone, Debug)]
pub enum LeaseEnd {
    /// Its holder has lost it.
    Gone(LockError),
    /// The refreshes failed for as long as the lease lasts.
    Unreachable,
    /// It was held for the longest time that is allowed.
    Outlived,
}

/// Refreshes a lease until that is no longer possible, and returns why; until then its holder has
/// it. One failure does not end it; failures in a row for the time to live do. `life_max` limits
/// the whole time, from now on.
///
/// It never releases the lease. If the future is dropped, the refreshes end; one that is then under
/// way is harmless, as a refresh does not restore a released or lost lease.
pub async fn keep(db: Db, lease: Lease, ttl: Ttl, life_max: Duration) -> LeaseEnd {
    timeout(life_max, refresh(&db, &lease, ttl)).await.unwrap_or(LeaseEnd::Outlived)
}

async fn refresh(db: &Db, lease: &Lease, ttl: Ttl) -> LeaseEnd {
    let every = Duration::from_millis(ttl.refresh_ms());
    let mut beat = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.tick().await; // The first tick is immediate, and the lease is fresh.
    let mut failures = 0;
    while failures < ttl.failures_max() {
        beat.tick().await;
        match timeout(every, db.lock_refresh(lease.clone())).await {
            Ok(Ok(_)) => failures = 0,
            Ok(Err(lost @ (LockError::Conflict { .. } | LockError::Lost))) => {
                return LeaseEnd::Gone(lost);
            }
            Ok(Err(err @ (LockError::Absent | LockError::Store(_)))) => {
                failures += 1;
                log::warn!(key:% = lease.key, failures, err:% = chain(&err); "lease not refreshed");
            }
            Err(_) => {
                failures += 1;
                log::warn!(key:% = lease.key, failures; "lease not refreshed: no answer in time");
            }
        }
    }
    LeaseEnd::Unreachable
}
