//! The one way in to the database for every other actor, and for the HTTP edge.

use actix::{Addr, Recipient};
use greenroom_core::{
    Timestamp,
    lock::{Lease, Lock, LockKey},
};
use tokio::sync::oneshot;

use super::{
    Adopt, Archive, ClosedRows, Commit, Cut, DigestRows, EndedAt, Found, Granted, GroupNo,
    Hydration, LockAcquire, LockAsk, LockError, LockRefresh, LockRelease, Purge, PutClosed,
    PutDigests, PutExported, Query, Reader, Storage, StorageHealth, Store, StoreError, Sweep,
    Swept, Trusted, Writes, holder,
};
use crate::clock;

/// The writer and the readers, whichever database they have.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The one writer.
    pub commit: Recipient<Commit>,
    /// The one writer.
    pub adopt: Recipient<Adopt>,
    /// The one writer.
    pub put_closed: Recipient<PutClosed>,
    /// The one writer.
    pub put_digests: Recipient<PutDigests>,
    /// The one writer.
    pub put_exported: Recipient<PutExported>,
    /// The one writer.
    pub purge: Recipient<Purge>,
    /// The one writer.
    pub cut: Recipient<Cut>,
    /// The one writer.
    pub sweep: Recipient<Sweep>,
    /// The one writer.
    pub trusted: Recipient<Trusted>,
    /// The one writer.
    pub lock_acquire: Recipient<LockAcquire>,
    /// The one writer.
    pub lock_refresh: Recipient<LockRefresh>,
    /// The one writer.
    pub lock_release: Recipient<LockRelease>,
    /// The one writer, who says for all that the database fails.
    pub found: Recipient<Found>,
    /// The readers.
    pub query: Recipient<Query>,
    /// How the writer is.
    pub health: StorageHealth,
}

impl Ledger {
    /// The way in to a writer and its readers.
    pub fn new<S, A>(
        writer: Addr<Storage<S>>,
        readers: Addr<Reader<A>>,
        health: StorageHealth,
    ) -> Self
    where
        S: Store + Unpin,
        A: Archive + Unpin,
    {
        Self {
            commit: writer.clone().recipient(),
            adopt: writer.clone().recipient(),
            put_closed: writer.clone().recipient(),
            put_digests: writer.clone().recipient(),
            put_exported: writer.clone().recipient(),
            purge: writer.clone().recipient(),
            cut: writer.clone().recipient(),
            sweep: writer.clone().recipient(),
            trusted: writer.clone().recipient(),
            lock_acquire: writer.clone().recipient(),
            lock_refresh: writer.clone().recipient(),
            lock_release: writer.clone().recipient(),
            found: writer.recipient(),
            query: readers.recipient(),
            health,
        }
    }

    /// Refuses at once while the database fails: the writer may be waiting for it.
    fn is_open(&self) -> Result<(), StoreError> {
        match self.health.failing() {
            Some(failing) => Err(StoreError::Unavailable(failing.fault)),
            None => Ok(()),
        }
    }

    /// Makes one group's writes durable, and gives them back.
    ///
    /// # Errors
    ///
    /// Whatever kept them from being stored; then none of them is.
    pub async fn commit(&self, writes: Writes) -> Result<Writes, StoreError> {
        self.is_open()?;
        let (done, answer) = oneshot::channel();
        self.commit.do_send(Commit { writes, done });
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::adopt`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn adopt(&self, group: GroupNo) -> Result<Option<Hydration>, StoreError> {
        self.is_open()?;
        self.adopt.send(Adopt(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::put_closed`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error.
    pub async fn put_closed(
        &self,
        group: GroupNo,
        epoch: u64,
        rows: ClosedRows,
    ) -> Result<(), StoreError> {
        self.is_open()?;
        let put = PutClosed { group, epoch, rows };
        self.put_closed.send(put).await.unwrap_or(Err(StoreError::Stopped))
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
        self.is_open()?;
        let put = PutDigests { group, epoch, rows };
        self.put_digests.send(put).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::put_exported`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn put_exported(&self, name: &'static str, place: EndedAt) -> Result<(), StoreError> {
        self.is_open()?;
        let put = PutExported { name, place };
        self.put_exported.send(put).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::purge`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn purge(&self, group: GroupNo) -> Result<(), StoreError> {
        self.is_open()?;
        self.purge.send(Purge(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::cut`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn cut(&self, cut: Cut) -> Result<bool, StoreError> {
        self.is_open()?;
        self.cut.send(cut).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::sweep`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn sweep(&self, group: GroupNo) -> Result<Swept, StoreError> {
        self.is_open()?;
        self.sweep.send(Sweep(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// The time by which transcripts are deleted.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn trusted(&self) -> Result<Timestamp, StoreError> {
        self.is_open()?;
        self.trusted.send(Trusted).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::lock_acquire`].
    ///
    /// # Errors
    ///
    /// [`LockError::Held`], [`LockError::Absent`], or the database's error.
    pub async fn lock_acquire(&self, ask: LockAsk) -> Result<Granted, LockError> {
        self.is_open()?;
        self.lock_acquire.send(LockAcquire(ask)).await.unwrap_or(Err(StoreError::Stopped.into()))
    }

    /// See [`super::Store::lock_refresh`].
    ///
    /// # Errors
    ///
    /// [`LockError::Held`], [`LockError::Lost`], [`LockError::Absent`], or the database's error.
    pub async fn lock_refresh(&self, lease: Lease) -> Result<Lock, LockError> {
        self.is_open()?;
        self.lock_refresh.send(LockRefresh(lease)).await.unwrap_or(Err(StoreError::Stopped.into()))
    }

    /// See [`super::Store::lock_release`].
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`], or the database's error.
    pub async fn lock_release(&self, lease: Lease) -> Result<bool, LockError> {
        self.is_open()?;
        self.lock_release.send(LockRelease(lease)).await.unwrap_or(Err(StoreError::Stopped.into()))
    }

    /// The lock with this key; `None` if whoever asks for it would get it.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`], or the database's error.
    pub async fn lock_get(&self, key: LockKey) -> Result<Option<Lock>, LockError> {
        let found = self.read(move |archive| Ok(archive.lock(&key))).await??;
        let now = clock::moment().up;
        let held = |lock: &Lock| lock.is_live(now) && !holder::is_dead(&lock.lease.holder);
        Ok(found.filter(held))
    }

    /// Asks on a reading thread.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn read<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Archive) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (done, answer) = oneshot::channel();
        let health = self.health.clone();
        self.query.do_send(Query(Box::new(move |archive| {
            let answer = archive.map_err(StoreError::clone).and_then(|archive| {
                let answer = ask(archive);
                archive.left_out().iter().for_each(|row| health.unreadable(row));
                answer
            });
            if let Err(StoreError::Unreadable(row)) = &answer {
                health.unreadable(row);
            }
            // Whoever asked may have left.
            _ = done.send(answer);
        })));
        let answer = answer.await.unwrap_or(Err(StoreError::Stopped));
        if let Err(err @ StoreError::Database { .. }) = &answer {
            self.found.do_send(Found(err.clone()));
        }
        answer
    }
}
