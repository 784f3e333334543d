//! Quotas: how much of each kind the whole server holds, and how much it may hold (I11).
//!
//! A [`Share`] gives back what it holds when it is dropped, so that no way out leaks any.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The limits of the server as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaMax {
    /// Groups, archived ones too.
    pub groups: u64,
    /// Bytes of waiting prompts and their metadata, over all groups.
    pub queued_bytes: u64,
    /// Requests that wait for the end of a task.
    pub waits: u64,
    /// Open event streams.
    pub streams: u64,
    /// Locks whose lease has not expired.
    pub locks: u64,
    /// Pending permissions, over all groups.
    pub permissions: u64,
    /// Bytes of answers that clients have not read yet.
    pub unread_bytes: u64,
}

impl Default for QuotaMax {
    fn default() -> Self {
        Self {
            groups: 100_000,
            queued_bytes: 256 << 20,
            waits: 10_000,
            streams: 10_000,
            locks: 10_000,
            permissions: 10_000,
            unread_bytes: 64 << 20,
        }
    }
}

/// What the server as a whole holds.
#[derive(Clone, Debug)]
pub struct Quotas {
    /// See [`QuotaMax::groups`].
    pub groups: Arc<Quota>,
    /// See [`QuotaMax::queued_bytes`].
    pub queued_bytes: Arc<Quota>,
    /// See [`QuotaMax::waits`].
    pub waits: Arc<Quota>,
    /// See [`QuotaMax::streams`].
    pub streams: Arc<Quota>,
    /// See [`QuotaMax::locks`].
    pub locks: Arc<Quota>,
    /// See [`QuotaMax::permissions`].
    pub permissions: Arc<Quota>,
    /// See [`QuotaMax::unread_bytes`].
    pub unread_bytes: Arc<Quota>,
}

impl Quotas {
    /// Creates the quotas of a server that holds nothing yet.
    pub fn new(max: QuotaMax) -> Self {
        let quota = |name, max| Arc::new(Quota { name, used: AtomicU64::new(0), max });
        Self {
            groups: quota("groups", max.groups),
            queued_bytes: quota("queued_bytes", max.queued_bytes),
            waits: quota("waits", max.waits),
            streams: quota("streams", max.streams),
            locks: quota("locks", max.locks),
            permissions: quota("permissions", max.permissions),
            unread_bytes: quota("unread_bytes", max.unread_bytes),
        }
    }

    /// Returns all of them.
    pub fn all(&self) -> [&Quota; 7] {
        let Self { groups, queued_bytes, waits, streams, locks, permissions, unread_bytes } = self;
        [groups, queued_bytes, waits, streams, locks, permissions, unread_bytes]
            .map(|quota| &**quota)
    }
}

/// A count with a limit.
#[derive(Debug)]
pub struct Quota {
    /// Its name in answers and metrics.
    pub name: &'static str,
    used: AtomicU64,
    /// The limit.
    pub max: u64,
}

/// A quota has no room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server is at its limit of {name}: {count} of {max}")]
pub struct Full {
    /// The quota's name.
    pub name: &'static str,
    /// What is held.
    pub count: u64,
    /// The limit.
    pub max: u64,
}

impl Quota {
    /// Returns what is held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Sets what is held, of a quota that is counted elsewhere.
    pub fn set(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    /// Checks that there is room for `more`. An empty quota has room for anything.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn check(&self, more: u64) -> Result<(), Full> {
        let count = self.used();
        let is_full = count > 0 && count.saturating_add(more) > self.max;
        if is_full { Err(self.full()) } else { Ok(()) }
    }

    /// Returns the error that it has no room.
    pub fn full(&self) -> Full {
        Full { name: self.name, count: self.used(), max: self.max }
    }

    /// Holds `amount`, if there is room for it.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn take(self: &Arc<Self>, amount: u64) -> Result<Share, Full> {
        let fits = |used: u64| {
            let sum = used.saturating_add(amount);
            (used == 0 || sum <= self.max).then_some(sum)
        };
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Share { quota: self.clone(), amount }),
            Err(count) => Err(Full { name: self.name, count, max: self.max }),
        }
    }

    /// Holds `amount`, whether there is room for it or not.
    pub fn hold(self: &Arc<Self>, amount: u64) -> Share {
        self.used.fetch_add(amount, Ordering::Relaxed);
        Share { quota: self.clone(), amount }
    }
}

/// A part of a quota, until it is dropped.
pub struct Share {
    quota: Arc<Quota>,
    amount: u64,
}

impl Share {
    /// Changes how much it holds.
    pub fn set(&mut self, amount: u64) {
        self.quota.used.fetch_add(amount, Ordering::Relaxed);
        self.quota.used.fetch_sub(self.amount, Ordering::Relaxed);
        self.amount = amount;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.amount, self.quota.name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// I11: a quota refuses what is over its limit, and gets back what is dropped.
    #[test]
    fn a_share_is_given_back() {
        let quotas = Quotas::new(QuotaMax { locks: 3, ..QuotaMax::default() });
        let locks = &quotas.locks;
        let two = locks.take(2).unwrap();
        assert_eq!(locks.check(1), Ok(()));
        let full = Full { name: "locks", count: 2, max: 3 };
        assert_eq!((locks.check(2), locks.take(2).unwrap_err()), (Err(full.clone()), full));
        let mut one = locks.take(1).unwrap();
        one.set(5);
        assert_eq!(locks.used(), 7);
        one.set(0);
        drop(two);
        assert_eq!(locks.used(), 0);
        let over = locks.take(9).unwrap();
        assert_eq!(
            locks.take(1).unwrap_err().to_string(),
            "the server is at its limit of locks: 9 of 3"
        );
        drop((one, over));
        assert_eq!((locks.used(), locks.hold(8).amount), (0, 8));
    }
}
