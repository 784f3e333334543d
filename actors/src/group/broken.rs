//! A group that cannot work, as one of its rows cannot be read: it takes nothing, is not read again
//! and again, and can be purged. Also the purge itself, and what a group takes at all.

use actix::{ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};

use super::{Group, GroupError, news::Forget};
use crate::{
    feed,
    storage::{GROUP_MAX, SEQ_MAX, StoreError, Unreadable},
};

/// Frames that are kept for what runs when no more work is taken.
const FRAMES_KEPT: u64 = 1 << 24;

type Purged = Result<std::io::Result<()>, StoreError>;

impl Group {
    /// Why it takes no change at all.
    pub(super) fn cannot_work(&self) -> Result<(), GroupError> {
        match &self.broken {
            Some(row) => Err(GroupError::Broken(row.clone())),
            None => Ok(()),
        }
    }

    /// Why it takes no work, if so.
    pub(super) fn takes_work(&self) -> Result<(), GroupError> {
        self.cannot_work()?;
        if self.shared.is_draining() {
            return Err(GroupError::Draining);
        }
        let head = self.core.head();
        if GROUP_MAX < self.no || SEQ_MAX - FRAMES_KEPT <= head.last_seq.max(head.tasks) {
            return Err(GroupError::Exhausted);
        }
        Ok(())
    }

    /// Takes note that its rows contradict each other: what follows from them breaks the schema.
    pub(super) fn contradicts(&mut self, why: &dyn std::error::Error) -> GroupError {
        let row = Unreadable {
            group: self.no,
            name: self.id.to_string(),
            what: format!("its rows contradict each other: {why}"),
            stops: true,
        };
        self.shared.ledger.health.unreadable(&row);
        (self.slot, self.commits) = (None, false);
        self.broken = Some(row.clone());
        GroupError::Broken(row)
    }

    pub(super) fn purge(&mut self, ctx: &mut Context<Self>) {
        let purged = self.delete();
        ctx.wait(purged.into_actor(self).map(|purged, group, ctx| _ = group.purged(purged, ctx)));
    }

    /// Deletes its rows, and the directory of its own.
    pub(super) fn delete(&self) -> impl Future<Output = Purged> + use<> {
        let (ledger, no) = (self.shared.ledger.clone(), self.no);
        let own_dir = self.shared.own_dir(no);
        async move {
            ledger.purge(no).await?;
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(own_dir));
            Ok(removed.await.unwrap_or_else(|err| Err(err.into())))
        }
    }

    pub(super) fn purged(
        &mut self,
        purged: Purged,
        ctx: &mut Context<Self>,
    ) -> Result<(), GroupError> {
        ctx.stop();
        match purged {
            Ok(removed) => {
                if let Err(err) = removed
                    && err.kind() != std::io::ErrorKind::NotFound
                {
                    log::warn!(
                        target: "greenroom::group", group:% = self.id, err:%;
                        "the purged group's own directory could not be removed"
                    );
                }
                feed::end(&self.feed);
                log::info!(target: "greenroom::group", group:% = self.id; "group purged");
                self.shared.forget.do_send(Forget(self.id.clone()));
                Ok(())
            }
            Err(err) => {
                let (level, cause) = (err.level(), crate::storage::chain(&err));
                if self.broken.is_some() {
                    // No order to purge it could be stored.
                    log::log!(
                        target: "greenroom::group", level, group:% = self.id, err:% = cause;
                        "broken group could not be purged; it stays until it is purged again"
                    );
                } else {
                    // Its successor finds the order in the database.
                    log::log!(
                        target: "greenroom::group", level, group:% = self.id, err:% = cause;
                        "group could not be purged; it is tried again"
                    );
                }
                Err(err.into())
            }
        }
    }
}
