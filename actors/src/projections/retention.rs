//! Retention: once an hour, deletes the transcripts of ended work that are older than configured.
//!
//! For each group it replays the oldest frames as `greenroom verify` does, truncates the log after
//! the last deletable frame, and deletes the rows in small transactions. A log that contradicts
//! itself is kept, as evidence.
//!
//! A crash at any point leaves a consistent database: one transaction stores the checkpoint and
//! deletes the rows that it replaces, and no reader sees the frames before it.

use std::time::{Duration, Instant};

use greenroom_core::Timestamp;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::retention_scan::{RetentionScan, ScanStep};
use crate::storage::{Db, GroupNo, KEY_MS, StoreError, chain};

/// The wait between two passes.
const EVERY: Duration = Duration::from_secs(3600);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How often a pass scans a group again that another owner adopted meanwhile; then it leaves the
/// group to the next pass.
const FENCED_MAX: u32 = 2;

/// What a pass, or a part of it, deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Groups of which something was deleted.
    pub groups: u64,
    /// Tasks.
    pub tasks: u64,
    /// Frames.
    pub frames: u64,
    /// Bytes of those frames.
    pub bytes: u64,
}

/// Runs a pass at once, and then every hour, for transcripts older than `days` days. Never returns.
pub async fn run(db: Db, days: u32) {
    let mut hours = interval(EVERY);
    hours.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        hours.tick().await;
        let started = Instant::now();
        let passed = match db.trusted_time().await {
            Ok(now) => pass(&db, now, days).await,
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
                "old transcripts were not deleted; greenroom retries in an hour"
            ),
        }
    }
}

/// Deletes transcripts of ended work that were older than `days` days at the time `now`. A group
/// whose transcript cannot be deleted does not affect the others.
///
/// # Errors
///
/// The database's error, if it does not work; what was deleted until then stays deleted.
pub async fn pass(db: &Db, now: Timestamp, days: u32) -> Result<Deleted, StoreError> {
    // A repeated key is answered with its task, so no task is deleted before its key.
    let horizon = Timestamp(now.0.saturating_sub((i64::from(days) * DAY_MS).max(KEY_MS)));
    let index = db.read(|store| store.group_index()).await?;
    let (mut deleted, mut failed) = (Deleted::default(), 0);
    for (no, group, _) in index.groups {
        let mut of_group = Deleted::default();
        let truncated = truncate_group(db, no, now, horizon, &mut of_group).await;
        if of_group != Deleted::default() {
            deleted.groups += 1;
            deleted.tasks += of_group.tasks;
            deleted.frames += of_group.frames;
            deleted.bytes += of_group.bytes;
        }
        match truncated {
            Ok(None) => {}
            Ok(Some(difference)) => log::warn!(
                target: "greenroom::retention", group:%, difference;
                "transcript kept: its log contradicts itself; run `greenroom verify`"
            ),
            Err(err) if !db.health.is_good() => return Err(err),
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

/// Truncates one group's log as often as needed. Returns the contradiction, if its log has one.
async fn truncate_group(
    db: &Db,
    no: GroupNo,
    now: Timestamp,
    horizon: Timestamp,
    deleted: &mut Deleted,
) -> Result<Option<String>, StoreError> {
    // An interrupted pass may have left frames to delete.
    sweep(db, no, deleted).await?;
    let (mut last, mut fenced) = (u64::MAX, 0);
    'rescan: loop {
        let scan =
            db.read(move |store| RetentionScan::start(store, no, now, horizon, last)).await?;
        let Some(mut scan) = scan else { return Ok(None) };
        loop {
            match db.read(move |store| scan.next_page(store)).await? {
                ScanStep::Continue(next) => scan = *next,
                ScanStep::Truncate(next, truncation) => {
                    let tasks = truncation.ended.tasks.len() as u64;
                    let started = Instant::now();
                    let truncated = db.write(move |store| {
                        store.forget_keys(truncation.keys_before)?;
                        store.truncate_log(&truncation)
                    });
                    match truncated.await {
                        Ok(true) => {}
                        Ok(false) => return Ok(None),
                        // Another owner has adopted the group since the scan began.
                        Err(StoreError::Fenced) if fenced < FENCED_MAX => {
                            fenced += 1;
                            continue 'rescan;
                        }
                        Err(err) => return Err(err),
                    }
                    sleep(started.elapsed()).await;
                    deleted.tasks += tasks;
                    db.truncate_write_ahead_log();
                    sweep(db, no, deleted).await?;
                    scan = *next;
                }
                ScanStep::Rescan(seq) => {
                    last = seq;
                    continue 'rescan;
                }
                ScanStep::Done => return Ok(None),
                ScanStep::Contradiction(difference) => {
                    // Unless the group was purged meanwhile.
                    let group = db.read(move |store| store.group(no)).await?;
                    return Ok(group.map(|_| difference));
                }
            }
        }
    }
}

/// Deletes the frames before a group's checkpoint. Sleeps as long as each transaction took, so that
/// this work uses at most half of the writer.
async fn sweep(db: &Db, no: GroupNo, deleted: &mut Deleted) -> Result<(), StoreError> {
    loop {
        let started = Instant::now();
        let swept = db.write(move |store| store.sweep(no)).await?;
        deleted.frames += swept.frames;
        deleted.bytes += swept.bytes;
        if 0 < swept.frames {
            db.truncate_write_ahead_log();
        }
        if !swept.more {
            return Ok(());
        }
        sleep(started.elapsed()).await;
    }
}
