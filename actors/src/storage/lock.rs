//! The compaction lock: its requests, answers and errors, and how [`Db`] calls the store for it.

use std::cell::Cell;

use greenroom_core::{
    Timestamp,
    lock::{Holder, Lease, Lock, LockConflict, LockKey, RefreshError, Ttl},
};

use super::{Db, Fault, GroupNo, Store, StoreError, chain, holder};
use crate::clock;

/// A request for a lock.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// The session to compact.
    pub key: LockKey,
    /// The holder.
    pub holder: Holder,
    /// The time to live, from the acquisition or the last refresh.
    pub ttl: Ttl,
    /// The group for which greenroom itself acquires it: it is freed when the group is adopted or
    /// purged.
    pub group: Option<GroupNo>,
}

/// A lock that the caller holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockGrant {
    /// The lock.
    pub lock: Lock,
    /// Whether it was acquired now; otherwise its living holder renewed it and keeps its token.
    pub fresh: bool,
}

/// Why a lock was not acquired, refreshed, released or read. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LockError {
    /// The database has no table of locks: another version wrote it. The caller decides whether to
    /// continue without a lock (HL-8).
    #[error("the database has no table of locks; restart greenroom, or upgrade it")]
    Absent,
    /// Another holder has it, or the same holder under a later token.
    #[error("the lock is held by {holder}")]
    Conflict {
        /// That holder.
        holder: Holder,
        /// When their lease expires unless it is refreshed, by the wall clock.
        expires_at: Timestamp,
    },
    /// The holder has lost the lease, though the lock is free.
    #[error("the lease was released, or has expired and was taken")]
    Lost,
    /// The database failed. Whether the lock is held is unknown (HL-9).
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LockConflict> for LockError {
    fn from(LockConflict { holder, expires_at }: LockConflict) -> Self {
        Self::Conflict { holder, expires_at }
    }
}

impl From<RefreshError> for LockError {
    fn from(lost: RefreshError) -> Self {
        match lost {
            RefreshError::Conflict(conflict) => conflict.into(),
            RefreshError::Free => Self::Lost,
        }
    }
}

impl Db {
    /// See [`Store::lock_acquire`].
    ///
    /// # Errors
    ///
    /// [`LockError::Conflict`], [`LockError::Absent`], or the database's error.
    pub async fn lock_acquire(&self, request: LockRequest) -> Result<LockGrant, LockError> {
        let health = self.health.clone();
        self.write_lock(move |store| {
            let dead = Cell::new(false);
            let is_dead = |holder: &Holder| {
                dead.set(holder::is_dead(holder));
                dead.get()
            };
            let granted = store.lock_acquire(&request, clock::moment(), &is_dead)?;
            if granted.fresh {
                health.lock_acquired(dead.get());
            }
            Ok(granted)
        })
        .await
    }

    /// See [`Store::lock_refresh`].
    ///
    /// # Errors
    ///
    /// [`LockError::Conflict`], [`LockError::Lost`], [`LockError::Absent`], or the database's
    /// error.
    pub async fn lock_refresh(&self, lease: Lease) -> Result<Lock, LockError> {
        self.write_lock(move |store| store.lock_refresh(&lease, clock::moment())).await
    }

    /// See [`Store::lock_release`].
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`], or the database's error.
    pub async fn lock_release(&self, lease: Lease) -> Result<bool, LockError> {
        self.write_lock(move |store| store.lock_release(&lease)).await
    }

    /// Returns the lock with this key; `None` if it is free.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`], or the database's error.
    pub async fn lock_get(&self, key: LockKey) -> Result<Option<Lock>, LockError> {
        let found = self.read(move |store| Ok(store.lock(&key))).await??;
        let now = clock::moment().up;
        let is_held = |lock: &Lock| lock.is_live(now) && !holder::is_dead(&lock.lease.holder);
        Ok(found.filter(is_held))
    }

    /// Calls the store as [`Db::write`] does. The writer learns of a fault of the database only:
    /// an unusable table of locks is no such fault.
    async fn write_lock<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn Store) -> Result<T, LockError> + Send + 'static,
    ) -> Result<T, LockError> {
        self.write(move |store| match call(store) {
            Err(LockError::Store(err)) => match err.fault() {
                Some(Fault::Other) => {
                    log::error!(err:% = chain(&err); "the table of locks could not be used");
                    Ok(Err(err.into()))
                }
                Some(_) => Err(err),
                None => Ok(Err(err.into())),
            },
            answer => Ok(answer),
        })
        .await?
    }
}
