//! What a group accepts at all: a broken one nothing but its purge; and the purge itself.
//!
//! A group is broken if one of its rows cannot be read. Its actor stays, so that the rows are not
//! read again and again.

use actix::{ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};

use super::{Group, GroupError, notifications::Forget};
use crate::{
    storage::{GROUP_MAX, SEQ_MAX, StoreError, Unreadable},
    transcript::feed,
};

/// Frames reserved for running work once no more work is accepted.
const FRAMES_RESERVED: u64 = 1 << 24;

type Purged = Result<(), StoreError>;

impl Group {
    /// Checks that the group can work: that all of its rows were readable.
    pub(super) fn check_readable(&self) -> Result<(), GroupError> {
        match &self.broken {
            Some(row) => Err(GroupError::Broken(row.clone())),
            None => Ok(()),
        }
    }

    /// Checks that the group accepts work now.
    pub(super) fn check_accepts_work(&self) -> Result<(), GroupError> {
        self.check_readable()?;
        if self.shared.is_draining() {
            return Err(GroupError::Draining);
        }
        let state = self.log.core.state();
        if GROUP_MAX < self.no || SEQ_MAX - FRAMES_RESERVED <= state.last_seq.max(state.tasks) {
            return Err(GroupError::Exhausted);
        }
        Ok(())
    }

    /// Marks the group as broken: its rows contradict each other, as the facts of its recovery
    /// violate the schema.
    pub(super) fn on_contradiction(&mut self, why: &dyn std::error::Error) -> GroupError {
        let row = Unreadable {
            group: self.no,
            name: self.id.to_string(),
            what: format!("its rows contradict each other: {why}"),
            stops: true,
        };
        self.shared.db.health.report_unreadable(&row);
        (self.slot, self.is_committing) = (None, false);
        self.broken = Some(row.clone());
        GroupError::Broken(row)
    }

    pub(super) fn purge(&mut self, ctx: &mut Context<Self>) {
        let purged = self.delete();
        let purged = purged.into_actor(self);
        ctx.wait(purged.map(|purged, group, ctx| _ = group.on_purged(purged, ctx)));
    }

    /// Deletes the group's rows and its own directory. The actor of a broken group may not own it,
    /// as it could not read the rows: it claims the group first.
    pub(super) fn delete(&self) -> impl Future<Output = Purged> + use<> {
        let (db, no) = (self.shared.db.clone(), self.no);
        let epoch = self.broken.is_none().then_some(self.epoch);
        let work_dir = self.shared.work_dir.clone();
        async move {
            let epoch = match epoch {
                Some(epoch) => Some(epoch),
                None => db.write(move |store| store.claim(no)).await?,
            };
            // Before the rows, without which nothing leads to the directory.
            let aside = work_dir.clone();
            _ = tokio::task::spawn_blocking(move || aside.set_aside(no)).await;
            db.purge(no, epoch).await?;
            work_dir.remove_set_aside();
            Ok(())
        }
    }

    pub(super) fn on_purged(
        &mut self,
        purged: Purged,
        ctx: &mut Context<Self>,
    ) -> Result<(), GroupError> {
        ctx.stop();
        match purged {
            Ok(()) => {
                feed::end(&self.feed);
                log::info!(target: "greenroom::group", group:% = self.id; "group purged");
                self.shared.forget.do_send(Forget(self.id.clone()));
                Ok(())
            }
            Err(err) => {
                let (level, cause) = (err.level(), crate::storage::chain(&err));
                if self.broken.is_some() {
                    // A purge order cannot be stored for it.
                    log::log!(
                        target: "greenroom::group", level, group:% = self.id, err:% = cause;
                        "broken group could not be purged; it stays until the next purge request"
                    );
                } else {
                    // Its successor finds the order in the database.
                    log::log!(
                        target: "greenroom::group", level, group:% = self.id, err:% = cause;
                        "group could not be purged; the purge is retried"
                    );
                }
                Err(err.into())
            }
        }
    }
}
