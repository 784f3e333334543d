//! How a group's actor goes on where the last one stopped, whether that was minutes ago in another
//! process or just now by a panic.

use std::{sync::Arc, time::Instant};

use actix::{
    ActorContext as _, ActorFutureExt as _, AsyncContext as _, AtomicResponse, Context, Handler,
    WrapFuture as _, fut::ready,
};
use greenroom_core::{Digests, Event, Recovery, Run, Task, TaskState, Turn, Write};

use super::{Group, GroupError, Refold, Shared};
use crate::{
    agent::{sessions::Reread, tree},
    digest, feed,
    frames::Place,
    storage::{FrameFilter, GroupNo, Hydration, Ledger, StoreError, Unreadable},
};

/// What was read back.
struct Found {
    hydration: Hydration,
    /// The attempt that was running, heard again from its frames.
    turn: Option<Turn>,
}

impl Group {
    /// Reads the group back before it answers anybody; whatever was alive of it is killed first.
    pub(super) fn recover(&mut self, ctx: &mut Context<Self>) {
        let found = find(self.shared.clone(), self.no);
        ctx.wait(found.into_actor(self).then(|found, group, ctx| {
            let events = match found {
                Ok(found) => group.take_up(found),
                // It would be read again in vain: it stays, and says so to everybody.
                Err(NotFound::Store(StoreError::Unreadable(row))) => {
                    // The reader that met the flaw may not have needed the row.
                    let (no, name) = (group.no, group.id.to_string());
                    let row = Unreadable { group: no, name, stops: true, ..row };
                    group.shared.ledger.health.unreadable(&row);
                    group.broken = Some(row);
                    Vec::new()
                }
                Err(err) => {
                    let level = match &err {
                        NotFound::Store(err) => err.level(),
                        NotFound::Sweep(_) | NotFound::Task(_) => log::Level::Error,
                    };
                    log::log!(
                        target: "greenroom::group", level, group:% = group.id,
                        err:% = crate::storage::chain(&err); "group could not be read"
                    );
                    ctx.stop();
                    Vec::new()
                }
            };
            group.advance(events, ctx).map(|done, group, _| {
                group.recovers = false;
                if done.is_ok() {
                    group.obituary.recovery = Recovery::Restart;
                }
            })
        }));
    }

    fn take_up(&mut self, found: Option<Found>) -> Vec<Event> {
        let Some(Found { hydration, turn }) = found else { return Vec::new() };
        let Hydration { epoch, head, tasks, run, compactions, permissions, digests } = hydration;
        self.epoch = epoch;
        self.digests = digests.unwrap_or_default();
        self.place = Place {
            last_seq: head.last_seq,
            segment: head.segment,
            run: run.as_ref().map(|run| run.id),
            task: tasks.iter().find(|task| task.claimed_at.is_some()).map(|task| task.id),
        };
        self.terms = None;
        // The last actor may have died between a commit and its publication.
        feed::publish(&self.feed, &self.id, &[], head.last_seq);
        self.core =
            greenroom_core::Group::restore(head, tasks, run, turn, compactions, permissions);
        self.status = self.core.status();
        vec![Event::Recovered(self.recovery)]
    }
}

/// Why a group could not be read back.
#[derive(Debug, thiserror::Error)]
enum NotFound {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("processes of its last run could not be looked for")]
    Sweep(#[source] tree::SweepError),
    #[error("the search for processes of its last run panicked")]
    Task(#[source] tokio::task::JoinError),
}

async fn find(shared: Arc<Shared>, no: GroupNo) -> Result<Option<Found>, NotFound> {
    let ledger = &shared.ledger;
    let Some(mut hydration) = ledger.adopt(no).await? else { return Ok(None) };
    if hydration.digests.is_none() {
        let last_seq = hydration.head.last_seq;
        hydration.digests = Some(rebuild(ledger, no, hydration.epoch, last_seq).await?);
    }
    if let Some(Run { id, .. }) = hydration.run {
        let mark = tree::Marker::run(id);
        let swept = tokio::task::spawn_blocking(move || tree::sweep_run(&mark)).await;
        // Whoever cannot look must not believe that nothing is left: two agents on one session.
        let pids = swept.map_err(NotFound::Task)?.map_err(NotFound::Sweep)?;
        shared.metrics.orphans_reaped.inc_by(pids.len() as u64);
        if !pids.is_empty() {
            log::warn!(target: "greenroom::run", run:% = id, pids:?; "leftover processes killed");
        }
    }
    let running = hydration.tasks.iter().find(|task| task.state == TaskState::Running);
    let turn = match running.cloned() {
        Some(task) => hear_again(ledger, no, &task).await?,
        None => None,
    };
    Ok(Some(Found { hydration, turn }))
}

impl Handler<Refold> for Group {
    /// Atomic: what is folded again is the whole log, and nothing is added to it meanwhile.
    type Result = AtomicResponse<Self, Result<(), GroupError>>;

    fn handle(&mut self, _: Refold, _: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.cannot_work() {
            return AtomicResponse::new(Box::pin(ready(Err(refused))));
        }
        if self.refolded {
            return AtomicResponse::new(Box::pin(ready(Ok(()))));
        }
        let (shared, no, epoch) = (self.shared.clone(), self.no, self.epoch);
        let last_seq = self.core.head().last_seq;
        let again = async move { rebuild(&shared.ledger, no, epoch, last_seq).await };
        AtomicResponse::new(Box::pin(again.into_actor(self).map(|again, group, _| {
            group.digests = again?;
            group.refolded = true;
            Ok(())
        })))
    }
}

/// The digests made again, and stored: they were of an earlier version, damaged, or none (SEEDS
/// TD-6).
async fn rebuild(
    ledger: &Ledger,
    no: GroupNo,
    epoch: u64,
    last_seq: u64,
) -> Result<Digests, StoreError> {
    let started = Instant::now();
    let digests = digest::rebuild(ledger, no, epoch, last_seq).await?;
    log::info!(
        target: "greenroom::group",
        no, frames = digests.group.frame_count, ms = started.elapsed().as_millis();
        "digests made again"
    );
    Ok(digests)
}

/// The running attempt, heard again from the frames that are durable: all that anybody saw of it.
async fn hear_again(ledger: &Ledger, no: GroupNo, task: &Task) -> Result<Option<Turn>, StoreError> {
    let (Some(run), Some(first)) = (task.run, task.seq_first) else { return Ok(None) };
    let (mut turn, mut reread) = (Turn::new(run, 0), Reread::default());
    let mut after = first.saturating_sub(1);
    loop {
        let filter = FrameFilter {
            after,
            task: Some(task.id),
            frames_max: 10_000,
            bytes_max: 4 << 20,
            ..FrameFilter::default()
        };
        let blocks = ledger.read(move |archive| archive.blocks(no, &filter)).await?;
        let Some(last) = blocks.last() else { return Ok(Some(turn)) };
        let seen = after;
        after = last.last_seq();
        for frame in blocks.iter().flat_map(|block| block.frames()) {
            if frame.seq > seen {
                turn.hear(&reread.meaning(frame.kind, frame.payload));
                // What cuts it off is no word of its agent's, and outlives the server all the same.
                if let Some(Ok(fact)) = Write::read(frame.kind, frame.payload) {
                    turn.take(&fact);
                }
            }
        }
        if after <= seen {
            return Ok(Some(turn));
        }
    }
}
