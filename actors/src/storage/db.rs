//! `Db`: the handle through which the other actors and the HTTP server use the database.

use actix::{Addr, Recipient};
use greenroom_core::{
    Timestamp,
    lock::{Lease, Lock, LockKey},
};
use tokio::sync::oneshot;

use super::{
    Adopt, Commit, DigestRows, EndedAt, GroupCommit, GroupNo, LockAcquire, LockError, LockGrant,
    LockRefresh, LockRelease, LockRequest, LogTruncation, Purge, PutDigests, PutExported,
    PutSealed, Query, ReadFailed, ReadStore, Reader, SealedDigests, StorageHealth, Store,
    StoreError, StoredGroup, Sweep, Swept, TrustedTime, Writer, holder,
};
use crate::clock;

/// The handle of the writer and the readers of any database.
#[derive(Clone, Debug)]
pub struct Db {
    /// The writer.
    pub commit: Recipient<Commit>,
    /// The writer.
    pub adopt: Recipient<Adopt>,
    /// The writer.
    pub put_sealed: Recipient<PutSealed>,
    /// The writer.
    pub put_digests: Recipient<PutDigests>,
    /// The writer.
    pub put_exported: Recipient<PutExported>,
    /// The writer.
    pub purge: Recipient<Purge>,
    /// The writer.
    pub truncate_log: Recipient<LogTruncation>,
    /// The writer.
    pub sweep: Recipient<Sweep>,
    /// The writer.
    pub trusted_time: Recipient<TrustedTime>,
    /// The writer.
    pub lock_acquire: Recipient<LockAcquire>,
    /// The writer.
    pub lock_refresh: Recipient<LockRefresh>,
    /// The writer.
    pub lock_release: Recipient<LockRelease>,
    /// The writer, which reports the failure for all.
    pub read_failed: Recipient<ReadFailed>,
    /// The readers.
    pub query: Recipient<Query>,
    /// Whether the database works.
    pub health: StorageHealth,
}

impl Db {
    /// The handle of a writer and its readers.
    pub fn new<S, A>(
        writer: Addr<Writer<S>>,
        readers: Addr<Reader<A>>,
        health: StorageHealth,
    ) -> Self
    where
        S: Store + Unpin,
        A: ReadStore + Unpin,
    {
        Self {
            commit: writer.clone().recipient(),
            adopt: writer.clone().recipient(),
            put_sealed: writer.clone().recipient(),
            put_digests: writer.clone().recipient(),
            put_exported: writer.clone().recipient(),
            purge: writer.clone().recipient(),
            truncate_log: writer.clone().recipient(),
            sweep: writer.clone().recipient(),
            trusted_time: writer.clone().recipient(),
            lock_acquire: writer.clone().recipient(),
            lock_refresh: writer.clone().recipient(),
            lock_release: writer.clone().recipient(),
            read_failed: writer.recipient(),
            query: readers.recipient(),
            health,
        }
    }

    /// Refuses a request at once while the database fails: the writer may be blocked by it.
    fn refuse_if_failing(&self) -> Result<(), StoreError> {
        match self.health.failing() {
            Some(failing) => Err(StoreError::Unavailable(failing.fault)),
            None => Ok(()),
        }
    }

    /// Stores one group's facts, and returns them once they are durable.
    ///
    /// # Errors
    ///
    /// The reason for which none of them is stored.
    pub async fn commit(&self, commit: GroupCommit) -> Result<GroupCommit, StoreError> {
        self.refuse_if_failing()?;
        let (done, answer) = oneshot::channel();
        self.commit.do_send(Commit { commit, done });
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::adopt`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn adopt(&self, group: GroupNo) -> Result<Option<StoredGroup>, StoreError> {
        self.refuse_if_failing()?;
        self.adopt.send(Adopt(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::put_sealed`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error.
    pub async fn put_sealed(
        &self,
        group: GroupNo,
        epoch: u64,
        rows: SealedDigests,
    ) -> Result<(), StoreError> {
        self.refuse_if_failing()?;
        let put = PutSealed { group, epoch, rows };
        self.put_sealed.send(put).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::put_digests`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error.
    pub async fn put_digests(
        &self,
        group: GroupNo,
        epoch: u64,
        rows: DigestRows,
    ) -> Result<(), StoreError> {
        self.refuse_if_failing()?;
        let put = PutDigests { group, epoch, rows };
        self.put_digests.send(put).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::put_exported`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn put_exported(&self, name: &'static str, place: EndedAt) -> Result<(), StoreError> {
        self.refuse_if_failing()?;
        let put = PutExported { name, place };
        self.put_exported.send(put).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::purge`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn purge(&self, group: GroupNo) -> Result<(), StoreError> {
        self.refuse_if_failing()?;
        self.purge.send(Purge(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::truncate_log`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn truncate_log(&self, truncation: LogTruncation) -> Result<bool, StoreError> {
        self.refuse_if_failing()?;
        self.truncate_log.send(truncation).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::sweep`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn sweep(&self, group: GroupNo) -> Result<Swept, StoreError> {
        self.refuse_if_failing()?;
        self.sweep.send(Sweep(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Returns the time by which transcripts are deleted.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn trusted_time(&self) -> Result<Timestamp, StoreError> {
        self.refuse_if_failing()?;
        self.trusted_time.send(TrustedTime).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::lock_acquire`].
    ///
    /// # Errors
    ///
    /// [`LockError::Conflict`], [`LockError::Absent`], or the database's error.
    pub async fn lock_acquire(&self, request: LockRequest) -> Result<LockGrant, LockError> {
        self.refuse_if_failing()?;
        let acquire = LockAcquire(request);
        self.lock_acquire.send(acquire).await.unwrap_or(Err(StoreError::Stopped.into()))
    }

    /// See [`super::Store::lock_refresh`].
    ///
    /// # Errors
    ///
    /// [`LockError::Conflict`], [`LockError::Lost`], [`LockError::Absent`], or the database's
    /// error.
    pub async fn lock_refresh(&self, lease: Lease) -> Result<Lock, LockError> {
        self.refuse_if_failing()?;
        self.lock_refresh.send(LockRefresh(lease)).await.unwrap_or(Err(StoreError::Stopped.into()))
    }

    /// See [`super::Store::lock_release`].
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`], or the database's error.
    pub async fn lock_release(&self, lease: Lease) -> Result<bool, LockError> {
        self.refuse_if_failing()?;
        self.lock_release.send(LockRelease(lease)).await.unwrap_or(Err(StoreError::Stopped.into()))
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

    /// Calls `read` with the store on a reading thread, and returns its answer.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn read<R: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn ReadStore) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (done, answer) = oneshot::channel();
        let health = self.health.clone();
        self.query.do_send(Query(Box::new(move |store| {
            let answer = store.map_err(StoreError::clone).and_then(|store| {
                let answer = read(store);
                store.left_out().iter().for_each(|row| health.report_unreadable(row));
                answer
            });
            if let Err(StoreError::Unreadable(row)) = &answer {
                health.report_unreadable(row);
            }
            // Fails if the caller has stopped waiting.
            _ = done.send(answer);
        })));
        let answer = answer.await.unwrap_or(Err(StoreError::Stopped));
        if let Err(err @ StoreError::Database { .. }) = &answer {
            self.read_failed.do_send(ReadFailed(err.clone()));
        }
        answer
    }
}
