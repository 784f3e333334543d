//! How a group's actor recovers the group from the database, after a restart or after a panic.

use std::{sync::Arc, time::Instant};

use actix::{
    ActorContext as _, ActorFutureExt as _, AsyncContext as _, AtomicResponse, Context, Handler,
    WrapFuture as _, fut::ready,
};
use greenroom_core::{
    Attempt, Digests, Event, Fact, Recovery, Run, SessionCursor, Stage, Start, TaskId,
};

use super::{Group, GroupError, RebuildDigests, Shared, log_cursor::LogCursor};
use crate::{
    acp::session,
    failpoint,
    process::{
        proc::Marker,
        sweep::{SweepError, sweep_run},
    },
    projections::digest,
    storage::{Db, FrameFilter, GroupNo, StoreError, StoredGroup, Unreadable},
    transcript::feed,
};

/// A group as the database has it.
struct Recovered {
    stored: StoredGroup,
    /// The attempt that was running, replayed from its frames.
    attempt: Option<Attempt>,
}

impl Group {
    /// Recovers the group before it answers any message. Leftover processes of its last run are
    /// killed first.
    pub(super) fn recover(&mut self, ctx: &mut Context<Self>) {
        let loaded = load(self.shared.clone(), self.no);
        ctx.wait(loaded.into_actor(self).then(|loaded, group, ctx| {
            failpoint::pass("recovery", &group.id);
            let is_loaded = loaded.is_ok();
            let events = match loaded {
                Ok(recovered) => group.restore(recovered),
                // To read it again would fail again: the actor stays, and refuses all changes.
                Err(LoadError::Store(StoreError::Unreadable(row))) => {
                    // The reader that found the damage may not have needed the row.
                    let (no, name) = (group.no, group.id.to_string());
                    let row = Unreadable { group: no, name, stops: true, ..row };
                    group.shared.db.health.report_unreadable(&row);
                    group.broken = Some(row);
                    Vec::new()
                }
                Err(err) => {
                    let level = match &err {
                        LoadError::Store(err) => err.level(),
                        LoadError::Sweep(_) | LoadError::Task(_) => log::Level::Error,
                    };
                    log::log!(
                        target: "greenroom::group", level, group:% = group.id,
                        err:% = crate::storage::chain(&err); "group could not be read"
                    );
                    ctx.stop();
                    Vec::new()
                }
            };
            group.advance(events, ctx).map(move |done, group, _| {
                group.is_recovering = false;
                if (is_loaded && done.is_ok()) || group.broken.is_some() {
                    group.shared.unsettled.settled(group.no);
                }
                if done.is_ok() {
                    group.obituary.recovery = Recovery::Restart;
                }
            })
        }));
    }

    fn restore(&mut self, recovered: Option<Recovered>) -> Vec<Event> {
        let Some(Recovered { stored, attempt }) = recovered else { return Vec::new() };
        self.epoch = stored.epoch;
        self.log = LogCursor::restore(stored, attempt);
        self.effective = None;
        // The last actor may have died between a commit and its publication.
        feed::publish(&self.feed, &self.id, &[], self.log.core.state().last_seq);
        self.status = self.log.core.status();
        vec![Event::Recovered(self.recovery)]
    }
}

/// Why a group could not be recovered.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot search for processes of its last run")]
    Sweep(#[source] SweepError),
    #[error("the search for processes of its last run panicked")]
    Task(#[source] tokio::task::JoinError),
}

async fn load(shared: Arc<Shared>, no: GroupNo) -> Result<Option<Recovered>, LoadError> {
    let db = &shared.db;
    let Some(mut stored) = db.adopt(no).await? else { return Ok(None) };
    if stored.digests.is_none() {
        let last_seq = stored.state.last_seq;
        stored.digests = Some(rebuild(db, no, stored.epoch, last_seq).await?);
    }
    // One search through all processes at the boot, and not one for each group.
    if let Some(Run { id, .. }) = stored.run
        && !shared.unsettled.begins(no)
    {
        let mark = Marker::run(id);
        let swept = tokio::task::spawn_blocking(move || sweep_run(&mark)).await;
        // A failed search is an error: two agents must never work on one session.
        let pids = swept.map_err(LoadError::Task)?.map_err(LoadError::Sweep)?;
        shared.metrics.ends.reaped.inc_by(pids.len() as u64);
        if !pids.is_empty() {
            log::warn!(target: "greenroom::run", run:% = id, pids:?; "leftover processes killed");
        }
    }
    let running = stored.tasks.iter().find_map(|task| match task.stage {
        Stage::Running { start, .. } => Some((task.id, start)),
        Stage::Queued | Stage::Claimed { .. } | Stage::Retrying { .. } | Stage::Ended(_) => None,
    });
    let attempt = match running {
        Some((task, start)) => Some(replay_attempt(db, no, task, start).await?),
        None => None,
    };
    Ok(Some(Recovered { stored, attempt }))
}

impl Handler<RebuildDigests> for Group {
    /// Atomic: the rebuild projects the whole log, which must not grow meanwhile.
    type Result = AtomicResponse<Self, Result<(), GroupError>>;

    fn handle(&mut self, _: RebuildDigests, _: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.check_readable() {
            return AtomicResponse::new(Box::pin(ready(Err(refused))));
        }
        if self.digests_rebuilt {
            return AtomicResponse::new(Box::pin(ready(Ok(()))));
        }
        let (shared, no, epoch) = (self.shared.clone(), self.no, self.epoch);
        let last_seq = self.log.core.state().last_seq;
        let rebuilt = async move { rebuild(&shared.db, no, epoch, last_seq).await };
        AtomicResponse::new(Box::pin(rebuilt.into_actor(self).map(|rebuilt, group, _| {
            group.log.digests = rebuilt?;
            group.digests_rebuilt = true;
            Ok(())
        })))
    }
}

/// Rebuilds the digests and stores them: they were of an earlier version, damaged, or absent
/// (TD-6).
async fn rebuild(db: &Db, no: GroupNo, epoch: u64, last_seq: u64) -> Result<Digests, StoreError> {
    let started = Instant::now();
    let digests = digest::rebuild(db, no, epoch, last_seq).await?;
    log::info!(
        target: "greenroom::group",
        no, frames = digests.group.frame_count, ms = started.elapsed().as_millis();
        "digests rebuilt"
    );
    Ok(digests)
}

/// Replays the running attempt from its durable frames, which are all that readers saw of it.
async fn replay_attempt(
    db: &Db,
    no: GroupNo,
    task: TaskId,
    start: Start,
) -> Result<Attempt, StoreError> {
    let (mut attempt, mut session_cursor) = (Attempt::new(start.run, 0), SessionCursor::default());
    let mut after = start.seq.saturating_sub(1);
    loop {
        let filter = FrameFilter {
            after,
            task: Some(task),
            frames_max: 10_000,
            bytes_max: 4 << 20,
            ..FrameFilter::default()
        };
        let blocks = db.read(move |store| store.blocks(no, &filter)).await?;
        let Some(last) = blocks.last() else { return Ok(attempt) };
        let seen = after;
        after = last.last_seq();
        for frame in blocks.iter().flat_map(|block| block.frames()) {
            if frame.seq > seen {
                let summary = session::summarize(&mut session_cursor, frame.kind, frame.payload);
                attempt.add_output(&summary);
                // The fact that cancels it is not the agent's output, and survives a restart too.
                if let Some(Ok(fact)) = Fact::read(frame.kind, frame.payload) {
                    attempt.apply(&fact);
                }
            }
        }
        if after <= seen {
            return Ok(attempt);
        }
    }
}
