//! `SqliteStore`: the writing store. It writes a group's facts to the rows.

use greenroom_core::{
    Now, Timestamp, Trust, Uptime,
    lock::{Holder, Lease, Lock},
};
use rusqlite::{Connection, TransactionBehavior};

use super::{
    RowsError, clock, compactions,
    damage::store_error,
    digests, exports, failed,
    files::Files,
    frames, groups, keys, locks, permissions,
    rows::key,
    runs, segments,
    stored_group::{load, missing},
    tasks, truncation, upkeep, write_failed,
};
use crate::storage::{
    DigestRows, EndedAt, GROUP_MAX, GroupCommit, GroupNo, LockError, LockGrant, LockRequest,
    LogTruncation, SEQ_MAX, SealedDigests, Sizes, Store, StoreError, StoredGroup, Swept,
    plan::{Plan, RowChange, plan},
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

    fn adopt_all(
        &mut self,
        groups: &[GroupNo],
        now: Uptime,
    ) -> Result<Vec<Option<StoredGroup>>, StoreError> {
        let (mut last, mut reopened) = (0, Vec::new());
        let mut adopt = || -> Result<_, RowsError> {
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut adopted = Vec::with_capacity(groups.len());
            for group in groups.iter().copied() {
                last = group;
                let Some(epoch) = groups::claim(&transaction, group)? else {
                    adopted.push(missing(&transaction, group)?);
                    continue;
                };
                locks::forget_group(&transaction, group)?;
                reopened.extend(locks::reopen_orphan(&transaction, group, now)?);
                adopted.push(Some(load(&transaction, group, epoch)?));
            }
            transaction.commit()?;
            Ok(adopted)
        };
        let adopted = adopt();
        let adopted = adopted.map_err(store_error(&self.0, last, "read a group", true))?;
        for (group, segment) in reopened {
            log::warn!(group:%, segment; "a closed segment without a successor was reopened");
        }
        Ok(adopted)
    }

    fn claim(&mut self, group: GroupNo) -> Result<Option<u64>, StoreError> {
        let mut claim = || {
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let epoch = groups::claim(&transaction, group)?;
            transaction.commit()?;
            Ok(epoch)
        };
        claim().map_err(write_failed)
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

    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError> {
        locks::forget_old(&self.0, now)
    }

    fn truncate_log(&mut self, truncation: &LogTruncation) -> Result<bool, StoreError> {
        let done = truncation::truncate_log(&mut self.0, truncation);
        done.map_err(store_error(&self.0, truncation.group, "truncated a log", false))
    }

    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError> {
        let swept = truncation::sweep(&mut self.0, group);
        swept.map_err(store_error(&self.0, group, "deleted old frames", false))
    }

    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError> {
        exports::put(&self.0, name, place).map_err(failed("stored how far tasks were exported"))
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
    let Plan { created, last_seq_before, changes } = plan(commit);
    if let Some(settings) = created {
        groups::insert(conn, commit, settings)?;
    }
    if !groups::store_head(conn, commit, last_seq_before)? {
        return Ok(false);
    }
    for change in &changes {
        change_row(conn, commit.group, commit.at, change, keys_at)?;
    }
    Ok(true)
}

/// Changes one row of a group, in a commit at `at`.
fn change_row(
    conn: &Connection,
    group: GroupNo,
    at: Timestamp,
    change: &RowChange<'_>,
    keys_at: Option<Timestamp>,
) -> Result<(), RowsError> {
    match *change {
        RowChange::ChangeSettings(settings) => groups::change_settings(conn, group, settings)?,
        RowChange::AcceptTask { task, start } => tasks::accept(conn, group, task, start, at)?,
        RowChange::ClaimTask(task) => tasks::claim(conn, task, at)?,
        RowChange::ReleaseTask(task) => tasks::release(conn, task)?,
        RowChange::StartTask { task, start } => tasks::start(conn, task, start, at)?,
        RowChange::ChangeCompactionTask { task, prompt, strategy } => {
            tasks::change_compaction(conn, task, prompt, strategy)?;
        }
        RowChange::RequestCancel(task) => tasks::request_cancel(conn, task)?,
        RowChange::ScheduleRetry { task, attempt, error, due } => {
            tasks::schedule_retry(conn, task, attempt, error, due)?;
        }
        RowChange::EndBackoff(task) => tasks::end_backoff(conn, task)?,
        RowChange::EndTask(task) => tasks::end(conn, task)?,
        RowChange::AddLateText { task, text } => tasks::add_late_text(conn, task, text)?,
        RowChange::OpenPermission { seq, permission } => {
            permissions::open(conn, group, seq, at, permission)?;
        }
        RowChange::ResolvePermission { permission, state, selected, resolved_by } => {
            permissions::resolve(conn, permission, at, state, selected, resolved_by)?;
        }
        RowChange::StartRun { run, agent } => runs::start(conn, group, run, agent, at)?,
        RowChange::SetRunReady { run, pid, session, continuity } => {
            runs::set_ready(conn, run, pid, session, continuity, at)?;
        }
        RowChange::EndRun { run, exit } => runs::end(conn, run, exit, at)?,
        RowChange::CloseSegment { segment, seq, end_reason } => {
            segments::close(conn, group, segment, end_reason, (seq, at))?;
        }
        RowChange::OpenSegment(ref segment) => segments::insert(conn, group, segment)?,
        RowChange::SetProvenance(provenance) => {
            segments::set_provenance(conn, group, provenance)?;
        }
        RowChange::PutCompaction { seq, compaction } => {
            compactions::store(conn, key(group, seq), compaction)?;
        }
        RowChange::ReleaseLock { key, holder, token, fences } => {
            let released = match locks::release_published(conn, &key.0, holder, token) {
                // The whole table is absent (HL-8).
                Err(err) if locks::is_absent(&err) => true,
                released => released?,
            };
            if fences && !released {
                return Err(RowsError::LeaseLost);
            }
        }
        RowChange::InsertBlock(block) => frames::insert(conn, group, block)?,
        RowChange::SealRun { run, digest } => digests::seal_run(conn, run, digest)?,
        RowChange::SealTurn { task, ordinal, turn } => {
            let key = ordinal.map(|ordinal| key(group, ordinal));
            digests::seal_turn(conn, task, key, turn)?;
        }
        RowChange::UseKey(used) => keys::insert(conn, used, keys_at.unwrap_or(at))?,
    }
    Ok(())
}
