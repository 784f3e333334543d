//! How long transcripts are kept: what is older than asked, and over, is deleted.
//!
//! Owns the pass over all groups: it folds a group's oldest frames as `greenroom verify` does, cuts
//! the log behind the last one that may go, and has the rows deleted in small transactions. A log
//! that contradicts itself is not cut: what could tell why would be gone.
//!
//! Whatever ends the server in between leaves a database that says the same: a base and the rows
//! that it makes needless change in one transaction, and frames below it are seen by nobody.

pub mod fold;

use std::time::{Duration, Instant};

use greenroom_core::Timestamp;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::fold::{Fold, Found};
use crate::storage::{GroupNo, KEY_MS, Ledger, StoreError, chain};

/// From one pass to the next.
const EVERY: Duration = Duration::from_secs(3600);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What a pass, or a part of one, deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Groups that anything was deleted of.
    pub groups: u64,
    /// Tasks.
    pub tasks: u64,
    /// Frames.
    pub frames: u64,
    /// Bytes of those frames.
    pub bytes: u64,
}

/// Deletes, now and then every hour, what is older than `days` days; never returns.
pub async fn keep(ledger: Ledger, days: u32) {
    let mut hours = interval(EVERY);
    hours.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        hours.tick().await;
        let started = Instant::now();
        let passed = match ledger.trusted().await {
            Ok(now) => pass(&ledger, now, days).await,
            Err(err) => Err(err),
        };
        match passed {
            Ok(Deleted { groups, tasks, frames, bytes }) => log::info!(
                target: "greenroom::retention",
                groups, tasks, frames, bytes, ms = started.elapsed().as_millis();
                "old transcripts deleted"
            ),
            Err(err) => log::warn!(
                target: "greenroom::retention", err:% = chain(&err);
                "old transcripts are kept until the next try"
            ),
        }
    }
}

/// Deletes what was more than `days` days old at the time `now`. What keeps one group's transcript
/// from being deleted keeps no other's.
///
/// # Errors
///
/// The database's error, if it does not work; whatever was deleted until then stays so.
pub async fn pass(ledger: &Ledger, now: Timestamp, days: u32) -> Result<Deleted, StoreError> {
    // A key is answered with its task, so no task is deleted before its key is forgotten.
    let horizon = Timestamp(now.0.saturating_sub((i64::from(days) * DAY_MS).max(KEY_MS)));
    let index = ledger.read(|archive| archive.group_index()).await?;
    let (mut deleted, mut failed) = (Deleted::default(), 0);
    for (no, group, _) in index.groups {
        let mut of_group = Deleted::default();
        let cut = cut_group(ledger, no, now, horizon, &mut of_group).await;
        if of_group != Deleted::default() {
            deleted.groups += 1;
            deleted.tasks += of_group.tasks;
            deleted.frames += of_group.frames;
            deleted.bytes += of_group.bytes;
        }
        match cut {
            Ok(None) => {}
            Ok(Some(difference)) => log::warn!(
                target: "greenroom::retention", group:%, difference;
                "transcript kept: its log contradicts itself; see `greenroom verify`"
            ),
            Err(err) if !ledger.health.is_good() => return Err(err),
            Err(err) => {
                failed += 1;
                log::log!(
                    target: "greenroom::retention", err.level(), group:%, err:% = chain(&err);
                    "transcript kept: it could not be read or deleted"
                );
            }
        }
    }
    if failed > 0 {
        log::warn!(
            target: "greenroom::retention", groups = failed;
            "transcripts of some groups are kept until the next try"
        );
    }
    Ok(deleted)
}

/// Cuts one group's log as often as it takes; gives how the log contradicts itself, if it does.
async fn cut_group(
    ledger: &Ledger,
    no: GroupNo,
    now: Timestamp,
    horizon: Timestamp,
    deleted: &mut Deleted,
) -> Result<Option<String>, StoreError> {
    // What a server that was killed left to delete.
    sweep(ledger, no, deleted).await?;
    let mut last = u64::MAX;
    'again: loop {
        let begun =
            ledger.read(move |archive| Fold::begin(archive, no, now, horizon, last)).await?;
        let Some(mut fold) = begun else { return Ok(None) };
        loop {
            match ledger.read(move |archive| fold.go_on(archive)).await? {
                Found::More(next) => fold = *next,
                Found::Cut(next, cut) => {
                    let tasks = cut.ended.tasks.len() as u64;
                    let started = Instant::now();
                    if !ledger.cut(cut).await? {
                        return Ok(None);
                    }
                    sleep(started.elapsed()).await;
                    deleted.tasks += tasks;
                    sweep(ledger, no, deleted).await?;
                    fold = *next;
                }
                Found::Beyond(seq) => {
                    last = seq;
                    continue 'again;
                }
                Found::Nothing => return Ok(None),
                Found::Differs(difference) => {
                    // A group that is purged meanwhile is no contradiction.
                    let group = ledger.read(move |archive| archive.group(no)).await?;
                    return Ok(group.map(|_| difference));
                }
            }
        }
    }
}

/// Deletes what is left below a group's base. The writer is the commits' for as long as it took
/// after each transaction.
async fn sweep(ledger: &Ledger, no: GroupNo, deleted: &mut Deleted) -> Result<(), StoreError> {
    loop {
        let started = Instant::now();
        let swept = ledger.sweep(no).await?;
        deleted.frames += swept.frames;
        deleted.bytes += swept.bytes;
        if !swept.more {
            return Ok(());
        }
        sleep(started.elapsed()).await;
    }
}
