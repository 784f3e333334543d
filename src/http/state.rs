//! What handlers share: the way to groups and to the database, the counters, the server's phase.
//!
//! `serve` makes one [`AppState`] and clones it for each worker; a clone's [`WorkerCache`] is that
//! worker's own and needs no lock. This file finds groups and reads rows; it answers no request.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::Addr;
use greenroom_actors::{
    group::{GroupError, Shared},
    storage::{GroupNo, GroupSummary, ReadStore, StorageHealth, StoreError, TaskView},
    supervisor::{FindOwner, GroupHandle, KnownGroup, LookUp, Supervisor},
};
use greenroom_core::{Blocked, GroupId, TaskId};
use tokio::{sync::watch, time::sleep_until};

use super::{
    error::ApiError,
    hosts::AllowedHosts,
    meters::Meters,
    page::{Found, PAGE_BYTES_MAX},
    unread::Unread,
};
use crate::otlp::Totals;

/// Handles of each kind that a worker keeps; above it, the worker drops them all and finds groups
/// again.
const HANDLES_MAX: usize = 65_536;

/// How long after the start readers wait for a group's recovery.
const SETTLED_AFTER_MAX: Duration = Duration::from_secs(5);

/// The stages of the server's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepts work.
    Serving,
    /// Lets running turns finish, and accepts no work.
    Draining,
    /// Ends every stream and every wait.
    Closing,
}

/// What a worker's handlers share.
#[derive(Clone)]
pub struct AppState {
    /// What all groups share.
    pub shared: Arc<Shared>,
    /// The parent of all groups.
    pub supervisor: Addr<Supervisor>,
    /// The stage of the server's life.
    pub phase: watch::Receiver<Phase>,
    /// When the server was started.
    pub started: Instant,
    /// The directory of the database and of the agents' work.
    pub data_dir: PathBuf,
    /// The largest request body, in bytes.
    pub body_bytes_max: usize,
    /// The host names that the server answers to.
    pub hosts: Arc<AllowedHosts>,
    /// The counters of responses and of open streams.
    pub meters: Meters,
    /// The answers that clients have not read yet.
    pub unread: Unread,
    /// The counters of the export of spans.
    pub spans: Totals,
    /// What this worker alone remembers.
    pub cache: WorkerCache,
}

/// What one worker remembers between requests.
#[derive(Clone, Default)]
pub struct WorkerCache {
    known: RefCell<HashMap<GroupId, KnownGroup>>,
    owners: RefCell<HashMap<GroupId, GroupHandle>>,
    /// Whether every group's digests were seen to have this version's format; they keep it.
    pub(super) digests_current: Cell<bool>,
}

impl AppState {
    /// Looks a group up for a read. Starts no actor: what is read comes from the database, and what
    /// follows from the group's feed.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidGroup`], [`ApiError::NoSuchGroup`], or that the supervisor is gone.
    pub async fn look_up_any(&self, id: &str) -> Result<KnownGroup, ApiError> {
        let group: GroupId = id.parse().map_err(|_| ApiError::InvalidGroup)?;
        let known = &self.cache.known;
        // A purged group's name may have another number by now.
        let is_current = |known: &&KnownGroup| !known.feed.borrow().gone;
        if let Some(known) = known.borrow().get(&group).filter(is_current) {
            return Ok(known.clone());
        }
        let found = self.supervisor.send(LookUp(group.clone())).await?;
        Ok(keep(known, group, found.ok_or(ApiError::NoSuchGroup)?))
    }

    /// Looks a group up for a read of its tasks, runs, compactions or permissions, once they are
    /// this server's: see [`AppState::until_settled`].
    ///
    /// # Errors
    ///
    /// As [`AppState::look_up_any`]; that the database fails, or [`GroupError::Rebuilding`], if the
    /// group's recovery takes too long.
    pub async fn look_up(&self, id: &str) -> Result<KnownGroup, ApiError> {
        let known = self.look_up_any(id).await?;
        self.until_settled(Some(known.no)).await;
        if self.shared.unsettled.contains(known.no) {
            self.check_can_write()?;
            return Err(GroupError::Rebuilding.into());
        }
        Ok(known)
    }

    /// Waits until recovery has ended what an earlier server left of a group, or of all groups:
    /// until then their rows show tasks, runs and compactions that ended with that server. Does not
    /// wait while the database fails, nor for longer than [`SETTLED_AFTER_MAX`] after the start: a
    /// group that hangs must not keep the others from their readers (I15).
    pub async fn until_settled(&self, group: Option<GroupNo>) {
        let unsettled = &self.shared.unsettled;
        if unsettled.is_empty() {
            return;
        }
        tokio::select! {
            () = unsettled.until_settled(group) => {}
            () = self.health().until_failing() => {}
            () = sleep_until((self.started + SETTLED_AFTER_MAX).into()) => {}
        }
    }

    /// Returns the actor that owns a group, for a change of it. Starts the actor of a group that
    /// sleeps, which then has the next epoch.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidGroup`], [`ApiError::NoSuchGroup`], or that the supervisor is gone.
    pub async fn owner(&self, id: &str) -> Result<GroupHandle, ApiError> {
        self.find_owner(id, false).await
    }

    /// Returns the actor that owns a group. A group that is not stored yet is created with its
    /// first fact.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidGroup`], or that the supervisor is gone.
    pub async fn owner_or_create(&self, id: &str) -> Result<GroupHandle, ApiError> {
        self.find_owner(id, true).await
    }

    async fn find_owner(&self, id: &str, create: bool) -> Result<GroupHandle, ApiError> {
        let group: GroupId = id.parse().map_err(|_| ApiError::InvalidGroup)?;
        let owners = &self.cache.owners;
        if let Some(owner) = owners.borrow().get(&group).filter(|known| known.addr.connected()) {
            return Ok(owner.clone());
        }
        let found = self.supervisor.send(FindOwner { group: group.clone(), create }).await??;
        Ok(keep(owners, group, found.ok_or(ApiError::NoSuchGroup)?))
    }

    /// Runs `query` on a reading thread, in one snapshot of the database.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn read<R: Send + 'static>(
        &self,
        query: impl FnOnce(&dyn ReadStore) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, ApiError> {
        Ok(self.shared.db.read(query).await?)
    }

    /// Reads a group, and by `query` something of it, in one snapshot of the database.
    ///
    /// # Errors
    ///
    /// [`ApiError::NoSuchGroup`], or the database's error.
    pub async fn read_group<R: Send + 'static>(
        &self,
        no: GroupNo,
        query: impl FnOnce(&dyn ReadStore, GroupSummary) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, ApiError> {
        let read = self.read(move |store| match store.group(no)? {
            Some(summary) => query(store, summary).map(Some),
            None => Ok(None),
        });
        read.await?.ok_or(ApiError::NoSuchGroup)
    }

    /// Reads a page of a list: [`AppState::read`], with a limit of bytes.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub async fn read_page<T: Send + 'static>(
        &self,
        query: impl FnOnce(&dyn ReadStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Found<T>, ApiError> {
        self.read(move |store| bounded(store, query)).await
    }

    /// Reads a page of a list of a group: [`AppState::read_group`], with a limit of bytes.
    ///
    /// # Errors
    ///
    /// [`ApiError::NoSuchGroup`], or the database's error.
    pub async fn read_group_page<T: Send + 'static>(
        &self,
        no: GroupNo,
        query: impl FnOnce(&dyn ReadStore, GroupSummary) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Found<T>, ApiError> {
        self.read_group(no, move |store, summary| bounded(store, |store| query(store, summary)))
            .await
    }

    /// Reads a task.
    ///
    /// # Errors
    ///
    /// [`ApiError::NoSuchTask`], the database's error, or an error of [`AppState::look_up`].
    pub async fn task(&self, id: TaskId) -> Result<TaskView, ApiError> {
        // Asked before the rows are read, which are then those of the recovery or later ones.
        let all_settled = self.shared.unsettled.is_empty();
        let read =
            async || self.read(move |store| store.task(id)).await?.ok_or(ApiError::NoSuchTask);
        let view = read().await?;
        if all_settled {
            return Ok(view);
        }
        self.look_up(view.group.as_str()).await?;
        read().await
    }

    /// Returns the state of the database.
    pub fn health(&self) -> &StorageHealth {
        &self.shared.db.health
    }

    /// Returns what a waiting task waits for: the database, while it fails, before all else.
    pub fn blocked_by(&self, blocked_by: Option<Blocked>) -> Option<Blocked> {
        let is_failing = self.health().check_answers().is_err();
        blocked_by.map(|blocked_by| if is_failing { Blocked::Storage } else { blocked_by })
    }

    /// Refuses new work while the server shuts down, or cannot store it.
    ///
    /// # Errors
    ///
    /// [`ApiError::Draining`], or that the database fails.
    pub fn check_accepts_work(&self) -> Result<(), ApiError> {
        if *self.phase.borrow() != Phase::Serving {
            return Err(ApiError::Draining);
        }
        self.check_can_write()
    }

    /// Refuses a change while the database fails or stalls; the group's actor may be gone, too.
    ///
    /// # Errors
    ///
    /// That the database fails or stalls.
    pub fn check_can_write(&self) -> Result<(), ApiError> {
        Ok(self.health().check_answers()?)
    }

    /// Waits for the answer to a change, but not for a write that does not return.
    ///
    /// A change that its actor has not begun is dropped with `change`. One that is being stored may
    /// be stored yet, so that the answer is neither that it was nor that it was not.
    ///
    /// # Errors
    ///
    /// [`ApiError::Unanswered`].
    pub async fn answer_to<T>(&self, change: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            answer = change => Ok(answer),
            () = self.health().until_stalled() => Err(ApiError::Unanswered),
        }
    }
}

/// Calls `query` with a limit of bytes to its lists.
fn bounded<T>(
    store: &dyn ReadStore,
    query: impl FnOnce(&dyn ReadStore) -> Result<T, StoreError>,
) -> Result<Found<T>, StoreError> {
    store.limit_bytes(Some(PAGE_BYTES_MAX));
    let found = query(store);
    let is_cut = store.is_cut();
    // The next query of this thread has none.
    store.limit_bytes(None);
    Ok(Found { found: found?, is_cut })
}

fn keep<T: Clone>(kept: &RefCell<HashMap<GroupId, T>>, group: GroupId, found: T) -> T {
    let mut kept = kept.borrow_mut();
    if kept.len() >= HANDLES_MAX {
        kept.clear();
    }
    kept.insert(group, found.clone());
    found
}
