//! `Db`: the handle through which the other actors and the HTTP server use the database.

use actix::{Addr, Recipient};
use greenroom_core::Timestamp;
use tokio::sync::oneshot;

use super::{
    Adopt, Commit, GroupCommit, GroupNo, Query, ReadFailed, ReadStore, Reader, StorageHealth,
    Store, StoreError, StoredGroup, TrustedTime, Write, Writer,
};

/// The handle of the writer and the readers of any database.
#[derive(Clone, Debug)]
pub struct Db {
    /// The writer.
    pub commit: Recipient<Commit>,
    /// The writer.
    pub adopt: Recipient<Adopt>,
    /// The writer.
    pub write: Recipient<Write>,
    /// The writer.
    pub trusted_time: Recipient<TrustedTime>,
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
            write: writer.clone().recipient(),
            trusted_time: writer.clone().recipient(),
            read_failed: writer.recipient(),
            query: readers.recipient(),
            health,
        }
    }

    /// Stores one group's facts, and returns them once they are durable.
    ///
    /// # Errors
    ///
    /// The reason for which none of them is stored.
    pub async fn commit(&self, commit: GroupCommit) -> Result<GroupCommit, StoreError> {
        self.health.check_works()?;
        let (done, answer) = oneshot::channel();
        self.commit.do_send(Commit { commit, done });
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Calls `write` with the store on the writer's thread, after the commits that wait, and
    /// returns its answer. Drops `write` uncalled if the caller stops waiting before.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn write<R: Send + 'static>(
        &self,
        write: impl FnOnce(&mut dyn Store) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        // At once: the writer may be blocked by the database.
        self.health.check_works()?;
        let (done, answer) = oneshot::channel();
        let write = Write(Box::new(move |store| {
            // Fails if the caller has stopped waiting.
            _ = done.send(write(store)?);
            Ok(())
        }));
        self.write.send(write).await.unwrap_or(Err(StoreError::Stopped))?;
        answer.await.map_err(|_| StoreError::Stopped)
    }

    /// Makes the caller the group's only owner after the commits that wait, and returns its rows:
    /// see [`Store::adopt_all`]. Changes no owner if the caller stops waiting before.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn adopt(&self, group: GroupNo) -> Result<Option<StoredGroup>, StoreError> {
        self.health.check_works()?;
        let (done, answer) = oneshot::channel();
        self.adopt.do_send(Adopt { group, done });
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`Store::purge`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error.
    pub async fn purge(&self, group: GroupNo, epoch: Option<u64>) -> Result<(), StoreError> {
        let health = self.health.clone();
        self.write(move |store| {
            store.purge(group, epoch)?;
            health.forget_group(group);
            health.deleted();
            Ok(())
        })
        .await
    }

    /// Has the write-ahead log truncated soon, because text was deleted that it still holds.
    pub fn truncate_write_ahead_log(&self) {
        self.health.deleted();
    }

    /// Returns the time by which transcripts are deleted.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn trusted_time(&self) -> Result<Timestamp, StoreError> {
        self.health.check_works()?;
        self.trusted_time.send(TrustedTime).await.unwrap_or(Err(StoreError::Stopped))
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
