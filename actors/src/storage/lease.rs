//! Keeping a lease while its holder works (SEEDS HL-6).

use std::time::Duration;

use greenroom_core::lock::{Lease, Ttl};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Ledger, LockError, chain};

/// Why a lease is kept no longer.
#[derive(Clone, Debug)]
pub enum Lost {
    /// It is not its holder's any more: another has the lock, or nobody.
    Gone(LockError),
    /// It could not be refreshed for as long as it lasts.
    Unreachable,
    /// It was held for as long as anybody may, refreshed or not.
    Outlived,
}

/// Refreshes a lease until that is no longer possible, and says why; until then the lease is its
/// holder's. A failure does not end it, so many in a row that the time to live has passed do.
/// `life_max` is the cap on the whole, from now on.
///
/// It releases nothing. Dropped, it refreshes no more; a refresh that is under way then does no
/// harm, as it brings no released or lost lease back.
pub async fn keep(ledger: Ledger, lease: Lease, ttl: Ttl, life_max: Duration) -> Lost {
    timeout(life_max, refresh(&ledger, &lease, ttl)).await.unwrap_or(Lost::Outlived)
}

async fn refresh(ledger: &Ledger, lease: &Lease, ttl: Ttl) -> Lost {
    let every = Duration::from_millis(ttl.refresh_ms());
    let mut beat = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.tick().await; // The first one is at once, and the lease is new.
    let mut failures = 0;
    while failures < ttl.failures_max() {
        beat.tick().await;
        match timeout(every, ledger.lock_refresh(lease.clone())).await {
            Ok(Ok(_)) => failures = 0,
            Ok(Err(lost @ (LockError::Held { .. } | LockError::Lost))) => return Lost::Gone(lost),
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
    Lost::Unreachable
}
