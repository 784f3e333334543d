//! The one way in to the database for every other actor, and for the HTTP edge.

use actix::Recipient;
use tokio::sync::oneshot;

use super::{
    Adopt, Archive, Commit, GroupNo, Hydration, Purge, Query, StorageHealth, StoreError, Writes,
};

/// The writer and the readers, whichever database they have.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The one writer.
    pub commit: Recipient<Commit>,
    /// The one writer.
    pub adopt: Recipient<Adopt>,
    /// The one writer.
    pub purge: Recipient<Purge>,
    /// The readers.
    pub query: Recipient<Query>,
    /// How the writer is.
    pub health: StorageHealth,
}

impl Ledger {
    /// Makes one group's writes durable, and gives them back.
    ///
    /// # Errors
    ///
    /// Whatever kept them from being stored; then none of them is.
    pub async fn commit(&self, writes: Writes) -> Result<Writes, StoreError> {
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
        self.adopt.send(Adopt(group)).await.unwrap_or(Err(StoreError::Stopped))
    }

    /// See [`super::Store::purge`].
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn purge(&self, group: GroupNo) -> Result<(), StoreError> {
        self.purge.send(Purge(group)).await.unwrap_or(Err(StoreError::Stopped))
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
        self.query.do_send(Query(Box::new(move |archive| {
            // Whoever asked may have left.
            _ = done.send(archive.map_err(StoreError::clone).and_then(ask));
        })));
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }
}
