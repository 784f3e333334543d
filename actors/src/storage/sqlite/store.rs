//! `SqliteStore`: the writing store. It writes a group's facts to the rows.

use greenroom_core::{
    Fact, Now, Recorded, TaskId, Timestamp, Trust, Uptime,
    lock::{Holder, Lease, Lock},
};
use rusqlite::{Connection, TransactionBehavior, params};

use super::{
    RowsError, clock, compactions,
    damage::store_error,
    digests, exports, failed,
    files::Files,
    frames, groups, locks, permissions,
    rows::key,
    runs, segments,
    stored_group::{load, missing},
    tasks::{self, AttemptStart},
    truncation, upkeep, write_failed,
};
use crate::storage::{
    DigestRows, EndedAt, GROUP_MAX, GroupCommit, GroupNo, KeyUse, LockError, LockGrant,
    LockRequest, LogTruncation, SEQ_MAX, SealedDigests, SegmentRecord, Sizes, Store, StoreError,
    StoredGroup, Swept,
};

/// The writing store of a SQLite database: its connection, the open files if it checks them, and
/// the time under which keys are stored, unless that is the commit's own.
#[derive(Debug)]
pub struct SqliteStore(pub(super) Connection, pub(super) Option<Files>, Option<Timestamp>);

impl SqliteStore {
    pub(super) fn new(conn: Connection, files: Option<Files>) -> Self {
        Self(conn, files, None)
    }

    /// Stores rebuilt digests, if the caller still owns the group.
    fn put(
        &mut self,
        put: impl FnOnce(&Connection) -> rusqlite::Result<bool>,
    ) -> Result<(), StoreError> {
        let transaction = self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(write_failed)?;
        let is_owner = put(&transaction).map_err(failed("stored digests"))?;
        transaction.commit().map_err(write_failed)?;
        if is_owner { Ok(()) } else { Err(StoreError::Fenced) }
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, batch: &[GroupCommit]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let transaction = self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(write_failed)?;
        let stored: Result<Vec<bool>, RowsError> =
            batch.iter().map(|commit| store(&transaction, commit, self.2)).collect();
        let stored = stored?;
        transaction.commit().map_err(write_failed)?;
        let answer = |stored| if stored { Ok(()) } else { Err(StoreError::Fenced) };
        Ok(stored.into_iter().map(answer).collect())
    }

    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<StoredGroup>, StoreError> {
        let mut adopt = || -> Result<_, RowsError> {
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let Some(epoch) = groups::claim(&transaction, group)? else {
                return missing(&transaction, group);
            };
            locks::forget_group(&transaction, group)?;
            let reopened = locks::reopen_orphan(&transaction, group, now)?;
            let stored = load(&transaction, group, epoch)?;
            transaction.commit()?;
            if let Some((group, segment)) = reopened {
                log::warn!(group:%, segment; "a closed segment without a successor was reopened");
            }
            Ok(Some(stored))
        };
        let adopted = adopt();
        adopted.map_err(store_error(&self.0, group, "read a group", true))
    }

    fn claim(&mut self, group: GroupNo) -> Result<Option<u64>, StoreError> {
        groups::claim(&self.0, group).map_err(write_failed)
    }

    fn put_sealed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &SealedDigests,
    ) -> Result<(), StoreError> {
        self.put(|conn| digests::put_sealed(conn, group, epoch, rows))
    }

    fn put_digests(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &DigestRows,
    ) -> Result<(), StoreError> {
        self.put(|conn| digests::put(conn, group, epoch, rows))
    }

    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError> {
        exports::put(&self.0, name, place).map_err(failed("stored how far tasks were exported"))
    }

    fn purge(&mut self, group: GroupNo, epoch: Option<u64>) -> Result<(), StoreError> {
        let deleted = groups::purge(&mut self.0, group, epoch);
        deleted.map_err(store_error(&self.0, group, "deleted a group", true))
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        upkeep::probe(&mut self.0)
    }

    fn check(&mut self) -> Result<Sizes, StoreError> {
        self.1.as_ref().map_or(Ok(Sizes::default()), |files| upkeep::check(&self.0, files))
    }

    fn shrink(&mut self) -> Result<bool, StoreError> {
        upkeep::shrink(&self.0)
    }

    fn file(&self) -> String {
        self.1.as_ref().map_or_else(String::new, |files| files.database().display().to_string())
    }

    fn trust(&mut self) -> Result<Option<Trust>, StoreError> {
        clock::get(&self.0).map_err(failed("read its clock"))
    }

    fn newest(&mut self, until: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        clock::newest(&self.0, until).map_err(failed("read its clock"))
    }

    fn put_trust(&mut self, trust: &Trust, set_ms: i64) -> Result<(), StoreError> {
        clock::put(&mut self.0, trust, set_ms).map_err(failed("stored its clock"))
    }

    fn stamp_keys(&mut self, at: Timestamp) {
        self.2 = Some(at);
    }

    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        self.0
            .execute("DELETE FROM idempotency WHERE at < ?", [before.0])
            .map_err(failed("deleted expired keys"))
    }

    fn truncate_log(&mut self, truncation: &LogTruncation) -> Result<bool, StoreError> {
        let done = truncation::truncate_log(&mut self.0, truncation);
        done.map_err(store_error(&self.0, truncation.group, "truncated a log", false))
    }

    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError> {
        let swept = truncation::sweep(&mut self.0, group);
        swept.map_err(store_error(&self.0, group, "deleted old frames", false))
    }

    fn lock_acquire(
        &mut self,
        request: &LockRequest,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<LockGrant, LockError> {
        locks::acquire(&mut self.0, request, now, is_dead)
    }

    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError> {
        locks::refresh(&mut self.0, lease, now)
    }

    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError> {
        locks::release(&self.0, lease)
    }

    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError> {
        locks::forget_old(&self.0, now)
    }
}

/// Stores one group's facts. Returns `false` if they come from an earlier owner, or if the log does
/// not end where they begin.
pub fn store(
    conn: &Connection,
    commit: &GroupCommit,
    keys_at: Option<Timestamp>,
) -> Result<bool, RowsError> {
    let state = &commit.summary.state;
    if GROUP_MAX < commit.group {
        return Err(RowsError::Exhausted("the database has no number left for another group"));
    }
    if SEQ_MAX < state.last_seq.max(state.tasks) {
        return Err(RowsError::Exhausted("the group has no number left for another frame or task"));
    }
    if let Some(Recorded { fact: Fact::GroupCreated(settings), .. }) = commit.facts.first() {
        groups::insert(conn, commit, settings)?;
    }
    if !groups::store_head(conn, commit, last_seq_before(commit))? {
        return Ok(false);
    }
    let mut accepted = None;
    for Recorded { place, fact } in &commit.facts {
        match fact {
            // Held back: most tasks start in the commit that accepts them, and are then written
            // once.
            Fact::TaskQueued { record, .. } => {
                tasks::accept(conn, commit.group, accepted.replace(record), None)?;
                continue;
            }
            Fact::TaskStarted { task, attempt, run } => {
                let start = AttemptStart {
                    at: commit.at,
                    attempt: *attempt,
                    run: *run,
                    segment: place.segment,
                    first_seq: place.seq,
                };
                let accepted_now = accepted.take_if(|record| record.id == *task);
                match accepted_now {
                    Some(record) => tasks::accept(conn, commit.group, Some(record), Some(&start))?,
                    None => tasks::start(conn, *task, &start)?,
                }
                continue;
            }
            _ => {}
        }
        tasks::accept(conn, commit.group, accepted.take(), None)?;
        store_fact(conn, commit, fact, place.seq)?;
    }
    tasks::accept(conn, commit.group, accepted, None)?;
    for block in &commit.blocks {
        frames::insert(conn, commit.group, block)?;
    }
    if let Some(rows) = &commit.digests {
        let key_of = |task: TaskId| {
            commit.facts.iter().find_map(|recorded| match &recorded.fact {
                Fact::TaskEnded { task: ended, record, .. } if *ended == task => {
                    Some(key(commit.group, record.ordinal))
                }
                _ => None,
            })
        };
        digests::store_sealed(conn, &rows.sealed, key_of)?;
    }
    if let Some(KeyUse { key, body, task }) = &commit.key {
        let at = keys_at.unwrap_or(commit.at);
        // A key whose task was deleted may be reused.
        let stored = conn
            .prepare_cached(
                "INSERT INTO idempotency (key, body, task, at) VALUES (?, ?, ?, ?) \
                 ON CONFLICT (key) DO UPDATE SET body = excluded.body, task = excluded.task, \
                 at = excluded.at \
                 WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = idempotency.task)",
            )?
            .execute(params![key, body, task.0.as_bytes(), at.0])?;
        if stored != 1 {
            return Err(rusqlite::Error::StatementChangedRows(stored).into());
        }
    }
    Ok(true)
}

/// Returns the last frame before those of the commit. A log that ends elsewhere refuses the commit,
/// as it would have a gap for ever (I3).
fn last_seq_before(commit: &GroupCommit) -> u64 {
    commit.facts.first().map_or(commit.summary.state.last_seq, |first| first.place.seq - 1)
}

fn store_fact(
    conn: &Connection,
    commit: &GroupCommit,
    fact: &Fact,
    first_seq: u64,
) -> Result<(), RowsError> {
    let (group, at) = (commit.group, commit.at);
    match fact {
        Fact::GroupChanged(settings) => {
            groups::change_settings(conn, group, settings)?;
        }
        Fact::TaskClaimed { task } => tasks::claim(conn, *task, at)?,
        Fact::TaskReleased { task } => tasks::release(conn, *task)?,
        Fact::CancelRequested { task } => tasks::request_cancel(conn, *task)?,
        Fact::TurnStarted { task, prompt, strategy: Some(strategy) } => {
            tasks::change_compaction(conn, *task, prompt, *strategy)?;
        }
        Fact::TaskRetrying { task, attempt, due, .. } => {
            tasks::schedule_retry(conn, *task, *attempt, due)?;
        }
        Fact::BackoffEnded { task } => tasks::end_backoff(conn, *task)?,
        Fact::TaskEnded { record, .. } => tasks::end(conn, record)?,
        Fact::PermissionOpened(permission) => {
            permissions::open(conn, group, first_seq, at, permission)?;
        }
        Fact::PermissionResolved { permission, state, selected, resolved_by, .. } => {
            let selected = selected.as_deref();
            permissions::resolve(conn, *permission, at, *state, selected, resolved_by)?;
        }
        Fact::RunStarted { run, agent, .. } => {
            runs::start(conn, group, *run, agent, at)?;
        }
        Fact::RunReady { run, pid, session, continuity, provenance } => {
            runs::set_ready(conn, *run, *pid, session, *continuity, at)?;
            if let Some(provenance) = provenance {
                segments::set_provenance(conn, group, provenance)?;
            }
        }
        Fact::RunExited { run, exit } => runs::end(conn, *run, exit, at)?,
        Fact::SegmentEnded { segment, end_reason } => {
            segments::close(conn, group, *segment, *end_reason, (first_seq, at))?;
        }
        Fact::SegmentStarted { segment, parent, session, provenance } => {
            let record = SegmentRecord {
                segment: *segment,
                parent: *parent,
                session: session.clone(),
                provenance: provenance.clone(),
                opened: (first_seq, at),
                closed: None,
            };
            segments::insert(conn, group, &record)?;
        }
        Fact::ProvenanceNoted { provenance } => {
            segments::set_provenance(conn, group, provenance)?;
        }
        Fact::LockReleased { key, holder, token, fences } => {
            let released = match locks::release_published(conn, &key.0, holder, *token) {
                // The whole table is absent (HL-8).
                Err(err) if locks::is_absent(&err) => true,
                released => released?,
            };
            if *fences && !released {
                return Err(RowsError::LeaseLost);
            }
        }
        Fact::CompactionStarted(compaction)
        | Fact::CompactionUpdated(compaction)
        | Fact::CompactionEnded(compaction) => {
            compactions::store(conn, key(group, first_seq), compaction)?;
        }
        // Stored by `store`.
        Fact::TaskQueued { .. } | Fact::TaskStarted { .. } => {}
        Fact::GroupCreated(_)
        | Fact::GroupArchived {}
        | Fact::PurgeOrdered {}
        | Fact::GroupPaused {}
        | Fact::GroupResumed {}
        | Fact::GroupHeld { .. }
        | Fact::AgentDegraded { .. }
        | Fact::LaunchAllowed {}
        | Fact::TurnStarted { strategy: None, .. }
        | Fact::CancelSent { .. }
        | Fact::CompactionRests { .. }
        | Fact::PromptSent { .. }
        | Fact::AgentOutput(_)
        | Fact::AgentOutputRejected { .. }
        | Fact::RequestRefused { .. }
        | Fact::TurnCut { .. }
        | Fact::TurnSettled { .. }
        | Fact::RunStopping { .. }
        | Fact::SummaryGiven { .. }
        | Fact::LockAsked { .. }
        | Fact::LockRefused { .. }
        | Fact::LockTaken { .. }
        | Fact::LockBypassed { .. }
        | Fact::LockLost { .. }
        | Fact::AgentWedged { .. }
        | Fact::StderrMatched { .. }
        | Fact::ContextLost { .. } => {}
    }
    Ok(())
}
