//! The compaction lock in the database's words: what is asked of it, and what it answers.

use std::cell::Cell;

use actix::{Handler, Message};
use greenroom_core::{
    Timestamp,
    lock::{Held, Holder, Lease, Lock, LockKey, Lost, Ttl},
};

use super::{Fault, GroupNo, Storage, Store, StoreError, chain, holder};
use crate::clock;

/// Who wants which lock.
#[derive(Clone, Debug)]
pub struct LockAsk {
    /// The session that is to be compacted.
    pub key: LockKey,
    /// Who wants to.
    pub holder: Holder,
    /// For how long, unless it is refreshed.
    pub ttl: Ttl,
    /// The group that greenroom itself takes it for: it goes when the group is adopted or purged.
    pub group: Option<GroupNo>,
}

/// A lock that the asker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lock.
    pub lock: Lock,
    /// Whether it was taken just now; else its living holder asked again, and keeps its token.
    pub fresh: bool,
}

/// Why a lock was not given, refreshed, released or read. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LockError {
    /// The database has no locks: it was written by another version. Whether to go on without one
    /// is the caller's decision (SEEDS HL-8).
    #[error("the database has no table of locks; restart greenroom, or upgrade it")]
    Absent,
    /// Another holds it, or the same holder by a later token.
    #[error("the lock is held by {holder}")]
    Held {
        /// Who.
        holder: Holder,
        /// Until when, by the wall clock, unless they refresh it.
        expires_at: Timestamp,
    },
    /// The lease is its holder's no more, though nobody else holds the lock.
    #[error("the lease was released, or has expired and was taken")]
    Lost,
    /// The database failed. Whether anybody holds the lock is not known (SEEDS HL-9).
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Held> for LockError {
    fn from(Held { holder, expires_at }: Held) -> Self {
        Self::Held { holder, expires_at }
    }
}

impl From<Lost> for LockError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Held(held) => held.into(),
            Lost::Free => Self::Lost,
        }
    }
}

/// See [`Store::lock_acquire`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Granted, LockError>")]
pub struct LockAcquire(pub LockAsk);

/// See [`Store::lock_refresh`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Lock, LockError>")]
pub struct LockRefresh(pub Lease);

/// See [`Store::lock_release`].
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, LockError>")]
pub struct LockRelease(pub Lease);

impl<S: Store + Unpin> Storage<S> {
    /// Asks the store if it works, and keeps in mind whether it does. A table of locks that cannot
    /// be used says nothing about the rest.
    fn ask<T>(
        &mut self,
        ctx: &mut actix::Context<Self>,
        ask: impl FnOnce(&mut S) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        self.refusal()?;
        let answer = ask(&mut self.store);
        if let Err(LockError::Store(err)) = &answer {
            if err.fault() == Some(Fault::Other) {
                log::error!(err:% = chain(err); "a lock could not be used");
            } else {
                self.note(Some(err), ctx);
            }
        }
        answer
    }
}

impl<S: Store + Unpin> Handler<LockAcquire> for Storage<S> {
    type Result = Result<Granted, LockError>;

    fn handle(&mut self, LockAcquire(ask): LockAcquire, ctx: &mut Self::Context) -> Self::Result {
        let dead = Cell::new(false);
        let is_dead = |holder: &Holder| {
            dead.set(holder::is_dead(holder));
            dead.get()
        };
        let granted = self.ask(ctx, |store| store.lock_acquire(&ask, clock::moment(), &is_dead))?;
        if granted.fresh {
            self.health.lock_taken(dead.get());
        }
        Ok(granted)
    }
}

impl<S: Store + Unpin> Handler<LockRefresh> for Storage<S> {
    type Result = Result<Lock, LockError>;

    fn handle(&mut self, LockRefresh(lease): LockRefresh, ctx: &mut Self::Context) -> Self::Result {
        self.ask(ctx, |store| store.lock_refresh(&lease, clock::moment()))
    }
}

impl<S: Store + Unpin> Handler<LockRelease> for Storage<S> {
    type Result = Result<bool, LockError>;

    fn handle(&mut self, LockRelease(lease): LockRelease, ctx: &mut Self::Context) -> Self::Result {
        self.ask(ctx, |store| store.lock_release(&lease))
    }
}
