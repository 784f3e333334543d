//! The compaction lock's requests, answers and errors, and how the writer handles them.

use std::cell::Cell;

use actix::{Handler, Message};
use greenroom_core::{
    Timestamp,
    lock::{Holder, Lease, Lock, LockConflict, LockKey, RefreshError, Ttl},
};

use super::{Fault, GroupNo, Store, StoreError, Writer, chain, holder};
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

/// See [`Store::lock_acquire`].
#[derive(Debug, Message)]
#[rtype(result = "Result<LockGrant, LockError>")]
pub struct LockAcquire(pub LockRequest);

/// See [`Store::lock_refresh`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Lock, LockError>")]
pub struct LockRefresh(pub Lease);

/// See [`Store::lock_release`].
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, LockError>")]
pub struct LockRelease(pub Lease);

impl<S: Store + Unpin> Writer<S> {
    /// Calls the store if the database works, and records a fault of the database. An unusable
    /// table of locks is no such fault.
    fn call_locks<T>(
        &mut self,
        ctx: &mut actix::Context<Self>,
        call: impl FnOnce(&mut S) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        self.refusal()?;
        let answer = call(&mut self.store);
        if let Err(LockError::Store(err)) = &answer {
            if err.fault() == Some(Fault::Other) {
                log::error!(err:% = chain(err); "the table of locks could not be used");
            } else {
                self.note_database(Some(err), ctx);
            }
        }
        answer
    }
}

impl<S: Store + Unpin> Handler<LockAcquire> for Writer<S> {
    type Result = Result<LockGrant, LockError>;

    fn handle(
        &mut self,
        LockAcquire(request): LockAcquire,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let dead = Cell::new(false);
        let is_dead = |holder: &Holder| {
            dead.set(holder::is_dead(holder));
            dead.get()
        };
        let granted =
            self.call_locks(ctx, |store| store.lock_acquire(&request, clock::moment(), &is_dead))?;
        if granted.fresh {
            self.health.lock_acquired(dead.get());
        }
        Ok(granted)
    }
}

impl<S: Store + Unpin> Handler<LockRefresh> for Writer<S> {
    type Result = Result<Lock, LockError>;

    fn handle(&mut self, LockRefresh(lease): LockRefresh, ctx: &mut Self::Context) -> Self::Result {
        self.call_locks(ctx, |store| store.lock_refresh(&lease, clock::moment()))
    }
}

impl<S: Store + Unpin> Handler<LockRelease> for Writer<S> {
    type Result = Result<bool, LockError>;

    fn handle(&mut self, LockRelease(lease): LockRelease, ctx: &mut Self::Context) -> Self::Result {
        self.call_locks(ctx, |store| store.lock_release(&lease))
    }
}
