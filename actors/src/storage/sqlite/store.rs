//! The writing side: facts into rows.

use greenroom_core::{
    Compaction, Kinds, Provenance, TaskId, Timestamp, Trust, Write,
    digest::SCHEMA_VERSION,
    lock::{Holder, Lease, Lock, Now, Uptime},
};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::{
    Failure, clock, cuts, digests, exports, failed,
    files::Files,
    flaws::owned,
    hydrate::{hydrate, missing},
    locks, permissions,
    rows::{int, json, key, ms},
    tasks::{Begun, end_task, insert_task, restate_compaction, retry_task, start_task},
    upkeep, write_failed,
};
use crate::{
    frames::Block,
    storage::{
        ClosedRows, Cut, DigestRows, EndedAt, GROUP_MAX, Granted, GroupNo, Hydration, KeyUse,
        LockAsk, LockError, SEQ_MAX, Sizes, Store, StoreError, Swept, Writes,
    },
    word::word,
};

/// The writing side of a SQLite database, the files that it has open, if it looks after them, and
/// the time as of which keys are stored, if that is not the facts' own.
#[derive(Debug)]
pub struct SqliteStore(pub(super) Connection, pub(super) Option<Files>, Option<Timestamp>);

impl SqliteStore {
    pub(super) fn new(conn: Connection, files: Option<Files>) -> Self {
        Self(conn, files, None)
    }

    /// Stores digests that were made again, if the group is still their owner's.
    fn put(
        &mut self,
        put: impl FnOnce(&Connection) -> rusqlite::Result<bool>,
    ) -> Result<(), StoreError> {
        let transaction = self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(write_failed)?;
        let owned = put(&transaction).map_err(failed("stored digests"))?;
        transaction.commit().map_err(write_failed)?;
        if owned { Ok(()) } else { Err(StoreError::Fenced) }
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, batch: &[Writes]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let transaction = self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(write_failed)?;
        let stored: Result<Vec<bool>, Failure> =
            batch.iter().map(|writes| store(&transaction, writes, self.2)).collect();
        let stored = stored?;
        transaction.commit().map_err(write_failed)?;
        let answer = |stored| if stored { Ok(()) } else { Err(StoreError::Fenced) };
        Ok(stored.into_iter().map(answer).collect())
    }

    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<Hydration>, StoreError> {
        let mut adopt = || -> Result<_, Failure> {
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let epoch: Option<i64> = transaction
                .query_row(
                    "UPDATE heads SET epoch = epoch + 1 WHERE no = ? \
                     AND epoch BETWEEN 0 AND 1 << 62 RETURNING epoch",
                    [group],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(epoch) = epoch else { return missing(&transaction, group) };
            locks::forget_group(&transaction, group)?;
            let reopened = locks::reopen_orphan(&transaction, group, now)?;
            let hydration = hydrate(&transaction, group, epoch as u64)?;
            transaction.commit()?;
            if let Some((group, segment)) = reopened {
                log::warn!(group:%, segment; "a closed segment without a successor was reopened");
            }
            Ok(Some(hydration))
        };
        let adopted = adopt();
        adopted.map_err(owned(&self.0, group, "read a group", true))
    }

    fn put_closed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &ClosedRows,
    ) -> Result<(), StoreError> {
        self.put(|conn| digests::put_closed(conn, group, epoch, rows))
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
        exports::put(&self.0, name, place).map_err(failed("stored how far tasks were handed on"))
    }

    fn purge(&mut self, group: GroupNo) -> Result<(), StoreError> {
        let mut delete = || -> Result<_, Failure> {
            let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let (from, to) = (key(group, 0), key(group + 1, 0));
            let turns = transaction.execute(
                "DELETE FROM turns WHERE (ended_at, key) IN \
                 (SELECT ended_at, key FROM tasks WHERE key >= ? AND key < ?)",
                [from, to],
            )?;
            let ended: i64 = transaction.query_row(
                "SELECT count(*) FROM tasks WHERE key >= ? AND key < ? \
                 AND started_at IS NOT NULL AND ended_at IS NOT NULL",
                [from, to],
                |row| row.get(0),
            )?;
            if turns as i64 != ended {
                // Some are at another end than their task's. This reads the whole table.
                let sql = "DELETE FROM turns WHERE key >= ? AND key < ?";
                transaction.execute(sql, [from, to])?;
            }
            transaction.execute(
                "DELETE FROM idempotency WHERE task IN \
                 (SELECT id FROM tasks WHERE key >= ? AND key < ?)",
                [from, to],
            )?;
            for table in ["blocks", "tasks", "compactions", "permissions"] {
                let sql = format!("DELETE FROM {table} WHERE key >= ? AND key < ?");
                transaction.execute(&sql, [from, to])?;
            }
            locks::forget_group(&transaction, group)?;
            for table in ["runs", "segments", "bases", "heads", "groups"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE no = ?"), [group])?;
            }
            Ok(transaction.commit()?)
        };
        let deleted = delete();
        deleted.map_err(owned(&self.0, group, "deleted a group", true))
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
            .map_err(failed("deleted old keys"))
    }

    fn cut(&mut self, cut: &Cut) -> Result<bool, StoreError> {
        let done = cuts::cut(&mut self.0, cut).map_err(Failure::from);
        done.map_err(owned(&self.0, cut.group, "cut a log", false))
    }

    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError> {
        let swept = cuts::sweep(&mut self.0, group);
        swept.map_err(owned(&self.0, group, "deleted old frames", false))
    }

    fn lock_acquire(
        &mut self,
        ask: &LockAsk,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<Granted, LockError> {
        locks::acquire(&mut self.0, ask, now, is_dead)
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

/// Stores one group's facts; `false` if they come from an owner that is none any more, or do not
/// follow what the log ends with.
pub fn store(
    conn: &Connection,
    writes: &Writes,
    keys_at: Option<Timestamp>,
) -> Result<bool, Failure> {
    let head = &writes.standing.head;
    if GROUP_MAX < writes.group {
        return Err(Failure::Exhausted("the database has no number left for another group"));
    }
    if SEQ_MAX < head.last_seq.max(head.tasks) {
        return Err(Failure::Exhausted("the group has no number left for another frame or task"));
    }
    if let Some(Write::GroupCreated(settings)) = writes.writes.first() {
        let id = writes.standing.id.as_str();
        conn.prepare_cached(
            "INSERT INTO groups (no, id, settings, created_at) VALUES (?, ?, ?, ?)",
        )?
        .execute(params![writes.group, id, json(settings), writes.at.0])?;
        conn.prepare_cached(
            "INSERT INTO heads (no, epoch, last_seq, tasks, segment, paused, archived, status, \
             queue_length) VALUES (?, ?, 0, 0, 0, 0, 0, 'idle', 0)",
        )?
        .execute(params![writes.group, int(writes.epoch)])?;
    }
    if !store_head(conn, writes)? {
        return Ok(false);
    }
    let mut seq = last_seq_before(writes);
    let mut segment = first_segment(writes);
    let mut accepted = None;
    for write in &writes.writes {
        let first_seq = seq + 1;
        seq += write.frames();
        match write {
            // Kept back: most tasks start in the commit that accepts them, and are one row then.
            Write::TaskQueued { record, .. } => {
                insert_task(conn, writes.group, accepted.replace(record), None)?;
                continue;
            }
            Write::TaskStarted { task, attempt, run } => {
                let begun =
                    Begun { at: writes.at, attempt: *attempt, run: *run, segment, first_seq };
                let fresh = accepted.take_if(|record| record.id == *task);
                match fresh {
                    Some(record) => insert_task(conn, writes.group, Some(record), Some(&begun))?,
                    None => start_task(conn, *task, &begun)?,
                }
                continue;
            }
            Write::SegmentStarted { segment: opened, .. } => segment = *opened,
            _ => {}
        }
        insert_task(conn, writes.group, accepted.take(), None)?;
        store_fact(conn, writes, write, first_seq)?;
    }
    insert_task(conn, writes.group, accepted, None)?;
    for block in &writes.blocks {
        store_block(conn, writes.group, block)?;
    }
    if let Some(rows) = &writes.digests {
        let ended = |task: TaskId| {
            writes.writes.iter().find_map(|write| match write {
                Write::TaskEnded { task: own, record, .. } if *own == task => {
                    Some(key(writes.group, record.ordinal))
                }
                _ => None,
            })
        };
        digests::store_closed(conn, &rows.closed, ended)?;
    }
    if let Some(KeyUse { key, body, task }) = &writes.key {
        let at = keys_at.unwrap_or(writes.at);
        // One whose task is gone may be used again.
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

/// The last frame before those of the facts. A log that ends elsewhere does not take them: it would
/// have a gap for ever (I3).
fn last_seq_before(writes: &Writes) -> u64 {
    writes.standing.head.last_seq - writes.writes.iter().map(Write::frames).sum::<u64>()
}

/// The segment that was open before the facts: segments are numbered without a gap.
fn first_segment(writes: &Writes) -> u32 {
    let opened = writes.writes.iter().find_map(|write| match write {
        Write::SegmentStarted { segment, .. } => Some(segment - 1),
        _ => None,
    });
    opened.unwrap_or(writes.standing.head.segment)
}

pub fn store_head(conn: &Connection, writes: &Writes) -> rusqlite::Result<bool> {
    let (standing, digests) = (&writes.standing, writes.digests.as_ref());
    let head = &standing.head;
    let changed = conn
        .prepare_cached(
            "UPDATE heads SET last_seq = ?, tasks = ?, session = ?, segment = ?, usage = ?, \
             paused = ?, archived = ?, purging = ?, provenance = ?, compacting = ?, lead_in = ?, \
             held = ?, interruptions = ?, crashes = ?, launch_due = ?, unspoken = ?, \
             digest_version = coalesce(?, digest_version), digest = coalesce(?, digest), \
             run_digest = coalesce(?, run_digest), carry = coalesce(?, carry), \
             status = ?, blocked_by = ?, queue_length = ?, current_task = ?, current_run = ?, \
             is_compacting = ? WHERE no = ? AND epoch = ? AND last_seq = ?",
        )?
        .execute(params![
            int(head.last_seq),
            int(head.tasks),
            head.session.as_ref().map(|session| &*session.0),
            head.segment,
            head.usage.as_ref().map(json),
            head.paused,
            head.archived,
            head.purging,
            head.provenance.as_ref().map(json),
            json(&head.compacting),
            head.lead_in,
            head.held.as_ref().map(word),
            head.interruptions,
            head.crashes,
            head.launch_due.as_ref().map(json),
            head.unspoken,
            digests.map(|_| SCHEMA_VERSION),
            digests.map(|rows| &rows.group),
            digests.and_then(|rows| rows.run.as_ref()),
            digests.map(|rows| &rows.carry),
            word(&standing.status),
            standing.blocked_by.as_ref().map(word),
            int(standing.queue_length),
            standing.current_task.as_ref().map(|id| id.0.as_bytes()),
            standing.current_run.as_ref().map(|id| id.0.as_bytes()),
            standing.is_compacting,
            writes.group,
            int(writes.epoch),
            int(last_seq_before(writes)),
        ])?;
    Ok(changed == 1)
}

fn store_fact(
    conn: &Connection,
    writes: &Writes,
    write: &Write,
    first_seq: u64,
) -> Result<(), Failure> {
    let (group, at) = (writes.group, writes.at.0);
    match write {
        Write::GroupChanged(settings) => {
            conn.prepare_cached("UPDATE groups SET settings = ? WHERE no = ?")?
                .execute(params![json(settings), group])?;
        }
        Write::TaskClaimed { task } => {
            conn.prepare_cached("UPDATE tasks SET claimed_at = ? WHERE id = ?")?
                .execute(params![at, task.0.as_bytes()])?;
        }
        Write::TaskReleased { task } => {
            conn.prepare_cached("UPDATE tasks SET claimed_at = NULL WHERE id = ?")?
                .execute(params![task.0.as_bytes()])?;
        }
        Write::CancelRequested { task } => {
            conn.prepare_cached("UPDATE tasks SET cancel_requested = 1 WHERE id = ?")?
                .execute(params![task.0.as_bytes()])?;
        }
        Write::TurnStarted { task, prompt, strategy: Some(strategy) } => {
            restate_compaction(conn, *task, prompt, *strategy)?;
        }
        Write::TaskRetrying { task, attempt, due, .. } => {
            retry_task(conn, *task, *attempt, due)?;
        }
        Write::BackoffEnded { task } => {
            conn.prepare_cached("UPDATE tasks SET retry_at = NULL WHERE id = ?")?
                .execute(params![task.0.as_bytes()])?;
        }
        Write::TaskEnded { record, .. } => end_task(conn, record)?,
        Write::PermissionOpened(permission) => {
            permissions::open(conn, group, first_seq, writes.at, permission)?;
        }
        Write::PermissionResolved { permission, state, selected, resolved_by, .. } => {
            let selected = selected.as_deref();
            permissions::resolve(conn, *permission, writes.at, *state, selected, resolved_by)?;
        }
        Write::RunStarted { run, agent, .. } => {
            conn.prepare_cached(
                "INSERT INTO runs (id, no, agent, started_at) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![run.0.as_bytes(), group, agent, at])?;
        }
        Write::RunReady { run, pid, session, continuity, provenance } => {
            conn.prepare_cached(
                "UPDATE runs SET pid = ?, session = ?, continuity = ?, ready_at = ? WHERE id = ?",
            )?
            .execute(params![
                pid,
                &*session.0,
                word(continuity),
                at,
                run.0.as_bytes()
            ])?;
            if let Some(provenance) = provenance {
                note_provenance(conn, group, provenance)?;
            }
        }
        Write::RunExited { run, exit } => {
            conn.prepare_cached(
                "UPDATE runs SET ended_at = ?, pid = coalesce(?, pid), code = ?, signal = ?, \
                 reason = ?, detail = ?, stderr_tail = ?, stderr_dropped = ? WHERE id = ?",
            )?
            .execute(params![
                at,
                exit.pid,
                exit.code,
                exit.signal,
                word(&exit.reason),
                exit.detail,
                exit.stderr_tail,
                int(exit.stderr_dropped),
                run.0.as_bytes()
            ])?;
        }
        Write::SegmentEnded { segment, end_reason } => {
            conn.prepare_cached(
                "UPDATE segments SET closed_seq = ?, closed_at = ?, end_reason = ? \
                 WHERE no = ? AND segment = ?",
            )?
            .execute(params![int(first_seq), at, word(end_reason), group, segment])?;
        }
        Write::SegmentStarted { segment, parent, session, provenance } => {
            conn.prepare_cached(
                "INSERT INTO segments (no, segment, parent, session, provenance, opened_seq, \
                 opened_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                group,
                segment,
                parent,
                &*session.0,
                provenance.as_ref().map(json),
                int(first_seq),
                at
            ])?;
        }
        Write::ProvenanceNoted { provenance } => note_provenance(conn, group, provenance)?,
        Write::LockReleased { key, holder, token, fences } => {
            let held = match locks::release_published(conn, &key.0, holder, *token) {
                // It is gone with all others (SEEDS HL-8).
                Err(err) if locks::is_absent(&err) => true,
                held => held?,
            };
            if *fences && !held {
                return Err(Failure::LeaseLost);
            }
        }
        Write::CompactionStarted(compaction)
        | Write::CompactionUpdated(compaction)
        | Write::CompactionEnded(compaction) => {
            store_compaction(conn, key(group, first_seq), compaction)?;
        }
        // Stored with what comes behind them; see `store`.
        Write::TaskQueued { .. } | Write::TaskStarted { .. } => {}
        Write::GroupCreated(_)
        | Write::GroupArchived {}
        | Write::PurgeOrdered {}
        | Write::GroupPaused {}
        | Write::GroupResumed {}
        | Write::GroupHeld { .. }
        | Write::AgentDegraded { .. }
        | Write::LaunchAllowed {}
        | Write::TurnStarted { strategy: None, .. }
        | Write::CancelSent { .. }
        | Write::CompactionRests { .. }
        | Write::PromptSent { .. }
        | Write::Said(_)
        | Write::AgentOutputRejected { .. }
        | Write::RequestRefused { .. }
        | Write::TurnCut { .. }
        | Write::TurnSettled { .. }
        | Write::RunStopping { .. }
        | Write::SummaryGiven { .. }
        | Write::LockAsked { .. }
        | Write::LockRefused { .. }
        | Write::LockTaken { .. }
        | Write::LockBypassed { .. }
        | Write::LockLost { .. }
        | Write::AgentWedged { .. }
        | Write::StderrMatched { .. }
        | Write::ContextLost { .. } => {}
    }
    Ok(())
}

/// Stores which of hermes' sessions is in force in the open segment.
fn note_provenance(
    conn: &Connection,
    group: GroupNo,
    provenance: &Provenance,
) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE segments SET provenance = ? WHERE no = ? AND closed_seq IS NULL")?
        .execute(params![json(provenance), group])?;
    Ok(())
}

/// Stores what is known of a compaction; the row keeps the place of its first frame.
pub fn store_compaction(
    conn: &Connection,
    key: i64,
    compaction: &Compaction,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO compactions (key, id, status, started_at, ended_at, record) \
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET status = excluded.status, \
         ended_at = excluded.ended_at, record = excluded.record",
    )?
    .execute(params![
        key,
        compaction.id.0.as_bytes(),
        word(&compaction.status),
        compaction.started_at.0,
        ms(compaction.ended_at),
        json(compaction)
    ])?;
    Ok(())
}

fn store_block(conn: &Connection, group: GroupNo, block: &Block) -> rusqlite::Result<()> {
    let joined;
    let kinds: &str = match &block.kinds {
        Kinds::All(kind) => kind,
        Kinds::Each(kinds) => {
            joined = kinds.join("\n");
            &joined
        }
    };
    conn.prepare_cached(
        "INSERT INTO blocks (key, count, at, segment, run, task, kinds, text) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        key(group, block.first_seq),
        int(block.count),
        block.at.0,
        block.segment,
        block.run.as_ref().map(|id| id.0.as_bytes()),
        block.task.as_ref().map(|id| id.0.as_bytes()),
        kinds,
        &*block.text,
    ])?;
    Ok(())
}
