//! `SqliteReadStore`: the read store. It reads rows into values.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use greenroom_core::{
    Blocked, Compaction, Digest, GroupId, PermissionId, PermissionState, RunId, TaskId, TaskState,
    Uptime,
    digest::SCHEMA_VERSION,
    lock::{Lock, LockKey},
};
use rusqlite::{Connection, Error, OptionalExtension as _, Row, ToSql, params, types::Type};

use super::{
    RowsError, contradictions,
    damage::{LeftOut, RowResult, group_row, keyed, numbered, requested, required},
    digests, exports, failed, frames, gauges, groups, locks, permissions,
    rows::{self, key},
    truncation,
};
use crate::{
    storage::{
        CurrentView, DigestRows, EndedAt, EndedFilter, EndedTurn, FrameFilter, GaugeSnapshot,
        GroupIndex, GroupNo, GroupSummary, KeyUse, Left, Listed, LockError, PermissionFilter,
        PermissionRecord, ReadStore, RunDigestRow, RunRecord, SegmentRecord, Snapshot, StoreError,
        StoredCheckpoint, TaskFilter, TaskView, TurnEntry, TurnFilter, Unreadable,
    },
    transcript::frame::Block,
    wire_name::wire_name,
};

/// A read store of a SQLite database, and the rows that its lists left out. No read outlives its
/// call: a long one would keep the write-ahead log from restarting.
#[derive(Debug)]
pub struct SqliteReadStore(Connection, LeftOut);

impl SqliteReadStore {
    pub(super) fn new(conn: Connection) -> Self {
        Self(conn, LeftOut::default())
    }

    /// Calls `read` within one transaction, so that all of its reads see one committed state.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub fn at_one_moment<T>(&self, read: impl FnOnce(&Self) -> T) -> Result<T, StoreError> {
        if !self.0.is_autocommit() {
            // A caller has begun the transaction already.
            return Ok(read(self));
        }
        let transaction = self.0.unchecked_transaction().map_err(failed("was read"))?;
        let answer = read(self);
        transaction.finish().map_err(failed("was read"))?;
        Ok(answer)
    }

    /// Returns what SQLite's integrity check reports; empty if the file is sound.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub fn damage(&self) -> Result<Vec<String>, StoreError> {
        let found = self.all("PRAGMA integrity_check", &[], |row| row.get::<_, String>(0))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// Returns rows that belong to no group or contradict themselves, and groups that no list
    /// shows, a sentence each.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub fn strays(&self) -> Result<Vec<String>, StoreError> {
        let text = |row: &Row<'_>| {
            let text = row.get_ref(0)?.as_bytes_or_null()?.unwrap_or_default();
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        let mut strays = self.all(
            "SELECT id || ': has no row in heads' FROM groups LEFT JOIN heads USING (no) \
                      WHERE heads.no IS NULL",
            &[],
            text,
        )?;
        let epochs = "SELECT id || ': its epoch is out of range' FROM groups \
                      JOIN heads USING (no) WHERE epoch NOT BETWEEN 0 AND 1 << 62";
        strays.extend(self.all(epochs, &[], text)?);
        let ids = self.all("SELECT id FROM groups", &[], text)?;
        let nameless = ids.iter().filter(|id| id.parse::<GroupId>().is_err());
        strays.extend(nameless.map(|id| format!("{id:?} is no name of a group")));
        for (table, no) in [
            ("heads", "no"),
            ("runs", "no"),
            ("segments", "no"),
            ("bases", "no"),
            ("turns", "key >> 36"),
            ("tasks", "key >> 36"),
            ("compactions", "key >> 36"),
            ("permissions", "key >> 36"),
            ("blocks", "key >> 36"),
        ] {
            let sql = format!(
                "SELECT '{table} of no group, numbered ' || no FROM \
                 (SELECT DISTINCT {no} AS no FROM {table}) WHERE no NOT IN (SELECT no FROM groups)"
            );
            strays.extend(self.all(&sql, &[], text)?);
        }
        let sql = "SELECT 'turns of no task, or at another end than its own: ' || count(*) \
                   FROM turns LEFT JOIN tasks USING (key) \
                   WHERE tasks.ended_at IS NOT turns.ended_at HAVING count(*) > 0";
        strays.extend(self.all(sql, &[], text)?);
        // The table may be absent (HL-8).
        let locks = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = 'locks'";
        if !self.all(locks, &[], text)?.is_empty() {
            let sql = "SELECT 'lock ' || token || ' of no group, numbered ' || group_no \
                       FROM locks WHERE group_no IS NOT NULL \
                       AND group_no NOT IN (SELECT no FROM groups)";
            strays.extend(self.all(sql, &[], text)?);
        }
        Ok(strays)
    }

    fn all<T>(
        &self,
        sql: &str,
        parameters: &[&dyn ToSql],
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let query = || -> rusqlite::Result<_> {
            let mut statement = self.0.prepare_cached(sql)?;
            let rows = statement.query_map(parameters, read)?;
            rows.collect()
        };
        query().map_err(failed("was read"))
    }

    /// Reads the first `limit` readable rows.
    fn list<T>(
        &self,
        sql: &str,
        parameters: &[&dyn ToSql],
        limit: usize,
        read: impl Fn(&Row<'_>) -> RowResult<T>,
    ) -> Result<Vec<T>, StoreError> {
        let query = || -> rusqlite::Result<_> {
            let mut statement = self.0.prepare_cached(sql)?;
            self.1.keep(&self.0, &mut statement.query(parameters)?, limit, read)
        };
        query().map_err(failed("was read"))
    }
}

impl ReadStore for SqliteReadStore {
    fn left_out(&self) -> Vec<Unreadable> {
        self.1.take()
    }

    fn limit_bytes(&self, bytes: Option<usize>) {
        self.1.limit_bytes(bytes);
    }

    fn is_cut(&self) -> bool {
        self.1.is_cut()
    }

    fn group_index(&self) -> Result<GroupIndex, StoreError> {
        // A purge and digests that have to be rebuilt are work to continue, too.
        let sql = format!(
            "SELECT {}, purging OR digest_version IS NOT ?, \
             current_run IS NOT NULL OR current_task IS NOT NULL OR is_compacting IS NOT 0 \
             FROM groups LEFT JOIN heads USING (no)",
            rows::GROUP_COLUMNS
        );
        let mut groups = Vec::new();
        let mut read = || -> rusqlite::Result<_> {
            let mut statement = self.0.prepare_cached(&sql)?;
            let mut found = statement.query([SCHEMA_VERSION])?;
            while let Some(row) = found.next()? {
                let Some(Listed { no, id, summary }) = self.listed(row)? else { continue };
                if let Err(unreadable) = summary {
                    self.1.put(unreadable);
                }
                let is_left = row.get::<_, Option<bool>>(rows::GROUP_WIDTH)?.unwrap_or(true);
                let left = match row.get::<_, bool>(rows::GROUP_WIDTH + 1)? {
                    true => Left::Unsettled,
                    false if is_left || rows::has_work(row) => Left::Work,
                    false => Left::Nothing,
                };
                groups.push((no, id, left));
            }
            // SQLite stores the greatest number of an AUTOINCREMENT key.
            let sql = "SELECT max(coalesce((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence \
                       WHERE name = 'groups'), 0), coalesce((SELECT max(no) FROM groups), 0))";
            self.0.query_row(sql, [], |row| row.get::<_, i64>(0))
        };
        let last_no = read().map_err(failed("was read"))?;
        Ok(GroupIndex { groups, last_no: GroupNo::try_from(last_no).unwrap_or(GroupNo::MAX) })
    }

    fn group(&self, group: GroupNo) -> Result<Option<GroupSummary>, StoreError> {
        let sql = format!(
            "SELECT {} FROM groups LEFT JOIN heads USING (no) WHERE groups.no = ?",
            rows::GROUP_COLUMNS
        );
        let find = || -> Result<_, RowsError> {
            let mut statement = self.0.prepare_cached(&sql)?;
            let found = statement.query_row([group], group_row(rows::summary)).optional()?;
            found.map(|row| required(&self.0, Ok(row))).transpose()
        };
        let found = find().map_err(RowsError::during("was read"))?;
        Ok(found.map(|(_, summary)| summary))
    }

    fn epoch(&self, group: GroupNo) -> Result<Option<u64>, StoreError> {
        groups::epoch(&self.0, group).map_err(failed("was read"))
    }

    fn groups(
        &self,
        status: Option<&str>,
        after: GroupNo,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let sql = format!(
            "SELECT {} FROM groups LEFT JOIN heads USING (no) \
             WHERE groups.no > ?1 AND (?2 IS NULL OR status = ?2) ORDER BY groups.no",
            rows::GROUP_COLUMNS
        );
        let read = || -> rusqlite::Result<_> {
            let mut statement = self.0.prepare_cached(&sql)?;
            let mut found = statement.query(params![after, status])?;
            let mut groups = Vec::new();
            while groups.len() < limit && !self.1.ends_after(groups.len()) {
                let Some(row) = found.next()? else { break };
                self.1.count(row);
                groups.extend(self.listed(row)?);
            }
            Ok(groups)
        };
        read().map_err(failed("was read"))
    }

    fn status_counts(
        &self,
        broken: &[GroupNo],
    ) -> Result<(BTreeMap<String, u64>, u64), StoreError> {
        gauges::status_counts(&self.0, broken).map_err(failed("was read"))
    }

    fn gauges(&self, broken: &[GroupNo]) -> Result<GaugeSnapshot, StoreError> {
        self.at_one_moment(|this| gauges::read(&this.0, broken).map_err(failed("was read")))?
    }

    fn task(&self, task: TaskId) -> Result<Option<TaskView>, StoreError> {
        let find = || -> Result<_, RowsError> {
            let sql = format!("SELECT {} FROM tasks WHERE id = ?", rows::TASK_COLUMNS);
            let mut statement = self.0.prepare_cached(&sql)?;
            let read = keyed("task", |row| Ok((row.get::<_, i64>(0)?, rows::task(row)?)));
            let found = statement.query_row([task.0.as_bytes()], read).optional()?;
            found.map(|row| requested(&self.0, Ok(row))).transpose()
        };
        let found = find().map_err(RowsError::during("was read"))?;
        let Some((at, task)) = found else { return Ok(None) };
        let group = (at >> 36) as GroupNo;
        let Some(summary) = self.group(group)? else { return Ok(None) };
        self.view(group, &summary, task).map(Some)
    }

    fn tasks(&self, group: GroupNo, filter: &TaskFilter) -> Result<Vec<TaskView>, StoreError> {
        let Some(summary) = self.group(group)? else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT {} FROM tasks WHERE key > ?1 AND key < ?2 AND (?3 IS NULL OR state = ?3) \
             AND (?4 IS NULL OR kind = ?4) ORDER BY key",
            rows::TASK_COLUMNS
        );
        let tasks = self.list(
            &sql,
            &[
                &key(group, filter.after),
                &key(group + 1, 0),
                &filter.state.as_ref().map(wire_name),
                &filter.kind.as_ref().map(wire_name),
            ],
            filter.limit,
            keyed("task", rows::task),
        )?;
        let queue = if tasks.iter().any(waits) { self.queue(group)? } else { HashMap::new() };
        Ok(tasks.into_iter().map(|task| view(group, &summary, &queue, task)).collect())
    }

    fn contradictory_tasks(&self, group: GroupNo) -> Result<BTreeSet<TaskId>, StoreError> {
        contradictions::tasks(&self.0, group).map_err(failed("was read"))
    }

    fn contradictory_rows(&self, group: GroupNo) -> Result<Vec<String>, StoreError> {
        contradictions::rows(&self.0, group).map_err(failed("was read"))
    }

    fn runs(
        &self,
        group: GroupNo,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunRecord>, StoreError> {
        // Ids grow with time.
        let sql = format!(
            "SELECT {} FROM runs WHERE no = ?1 AND (?2 IS NULL OR id < ?2) ORDER BY id DESC",
            rows::RUN_COLUMNS
        );
        let before = before.map(|run| *run.0.as_bytes());
        self.list(&sql, &[&group, &before], limit, numbered("run", group, "id", rows::run))
    }

    fn segments(
        &self,
        group: GroupNo,
        after: u32,
        limit: usize,
    ) -> Result<Vec<SegmentRecord>, StoreError> {
        let sql = format!(
            "SELECT {} FROM segments WHERE no = ?1 AND segment > ?2 ORDER BY segment",
            rows::SEGMENT_COLUMNS
        );
        let read = numbered("segment", group, "segment", rows::segment);
        self.list(&sql, &[&group, &after], limit, read)
    }

    fn compactions(
        &self,
        group: GroupNo,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Compaction)>, StoreError> {
        let sql = format!(
            "SELECT {} FROM compactions WHERE key >= ?1 AND key < ?2 ORDER BY key DESC",
            rows::COMPACTION_COLUMNS
        );
        let to = before.map_or(key(group + 1, 0), |before| key(group, before));
        let read = keyed("compaction at frame", rows::compaction);
        self.list(&sql, &[&key(group, 0), &to], limit, read)
    }

    fn permission(&self, id: PermissionId) -> Result<Option<PermissionRecord>, StoreError> {
        permissions::get(&self.0, id).map_err(RowsError::during("was read"))
    }

    fn permissions(&self, filter: &PermissionFilter) -> Result<Vec<PermissionRecord>, StoreError> {
        permissions::list(&self.0, &self.1, filter).map_err(failed("was read"))
    }

    fn digest(&self, group: GroupNo) -> Result<Option<Digest>, StoreError> {
        digests::digest(&self.0, group).map_err(failed("was read"))
    }

    fn run_digest(&self, run: RunId) -> Result<Option<RunDigestRow>, StoreError> {
        digests::run_digest(&self.0, run).map_err(failed("was read"))
    }

    fn digest_rows(&self, group: GroupNo) -> Result<Option<DigestRows>, StoreError> {
        digests::digest_rows(&self.0, &self.1, group).map_err(failed("was read"))
    }

    fn turns(&self, group: GroupNo, filter: &TurnFilter) -> Result<Vec<TurnEntry>, StoreError> {
        digests::turns(&self.0, &self.1, group, filter).map_err(failed("was read"))
    }

    fn ended_turns(&self, filter: &EndedFilter) -> Result<Vec<EndedTurn>, StoreError> {
        digests::ended_turns(&self.0, &self.1, filter).map_err(failed("was read"))
    }

    fn exported(&self, name: &str) -> Result<Option<EndedAt>, StoreError> {
        exports::get(&self.0, name).map_err(failed("was read"))
    }

    fn snapshot(&self, group: GroupNo) -> Result<Option<Snapshot>, StoreError> {
        self.at_one_moment(|this| {
            let Some(summary) = this.group(group)? else { return Ok(None) };
            let segments = this.segments(group, 0, SNAPSHOT_MAX)?;
            let last = segments.last().map(|segment| segment.segment);
            let segments_after = last.filter(|last| *last < summary.state.segment);
            let current_task = summary.current_task.map(|task| this.task(task)).transpose()?;
            let pending = |after, limit| PermissionFilter {
                group: Some(group),
                state: Some(PermissionState::Pending),
                after,
                limit,
            };
            let permissions = this.permissions(&pending(None, SNAPSHOT_MAX))?;
            let last = permissions.last().map(|record| record.permission.permission);
            let more = last.map(|last| this.permissions(&pending(Some(last), 1))).transpose()?;
            let permissions_after = last.filter(|_| more.is_some_and(|more| !more.is_empty()));
            let current_task = current_task.flatten();
            Ok(Some(Snapshot {
                summary,
                segments,
                segments_after,
                current_task,
                permissions,
                permissions_after,
            }))
        })?
    }

    fn current_view(&self, group: GroupNo) -> Result<CurrentView, StoreError> {
        // The block that opens a segment belongs to the task that ran then. If it was deleted with
        // a truncated log, so was that task.
        let sql = "SELECT segment, opened_seq, \
                   (SELECT opened_seq FROM segments AS first \
                    WHERE first.no = ?1 ORDER BY segment LIMIT 1), \
                   (SELECT task FROM blocks WHERE blocks.key <= (?1 << 36 | opened_seq) \
                    AND blocks.key > (?1 << 36 | coalesce((SELECT seq FROM bases \
                    WHERE bases.no = ?1), 0)) ORDER BY blocks.key DESC LIMIT 1) \
                   FROM segments WHERE no = ?1 AND closed_seq IS NULL";
        let open = self.all(sql, &[&group], |row| {
            let task = row.get::<_, Option<[u8; 16]>>(3)?.map(|id| TaskId(from_bytes(id)));
            let (from, first_opened) = (row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64);
            Ok(CurrentView { segment: row.get(0)?, task, first_opened, from })
        })?;
        let nothing = CurrentView { segment: 0, task: None, first_opened: u64::MAX, from: 0 };
        let Some(view) = open.first().copied() else { return Ok(nothing) };
        let task = view.task.map(|task| self.task(task)).transpose()?.flatten();
        let began = task.and_then(|view| view.task.start()).map(|start| start.seq);
        Ok(CurrentView { from: began.map_or(view.from, |began| began.min(view.from)), ..view })
    }

    fn blocks(&self, group: GroupNo, filter: &FrameFilter) -> Result<Vec<Block>, StoreError> {
        frames::blocks(&self.0, &self.1, group, filter).map_err(failed("read frames"))
    }

    fn checkpoint(&self, group: GroupNo) -> Result<Option<StoredCheckpoint>, StoreError> {
        truncation::checkpoint(&self.0, group).map_err(RowsError::during("was read"))
    }

    fn earliest_seq(&self, group: GroupNo) -> Result<u64, StoreError> {
        let truncated = truncation::seq(&self.0, group).map_err(failed("was read"))?;
        Ok(truncated.unwrap_or_default() + 1)
    }

    fn key(&self, key: &[u8; 32]) -> Result<Option<KeyUse>, StoreError> {
        let sql = "SELECT body, task FROM idempotency WHERE key = ?";
        let found = self
            .all(sql, &[key], |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, [u8; 16]>(1)?)))?;
        let use_of = |(body, task)| KeyUse { key: *key, body, task: TaskId(from_bytes(task)) };
        Ok(found.into_iter().next().map(use_of))
    }

    fn in_one_snapshot(&self, read: &mut dyn FnMut(&dyn ReadStore)) -> Result<(), StoreError> {
        self.at_one_moment(|this| read(this))
    }

    fn lock(&self, key: &LockKey) -> Result<Option<Lock>, LockError> {
        locks::get(&self.0, key)
    }

    fn lock_count(&self, now: Uptime) -> Result<u64, LockError> {
        locks::count(&self.0, now)
    }
}

/// The most segments, and the most permissions, of a snapshot.
const SNAPSHOT_MAX: usize = 1000;

fn from_bytes(bytes: [u8; 16]) -> uuid::Uuid {
    uuid::Uuid::from_bytes(bytes)
}

impl SqliteReadStore {
    fn view(
        &self,
        group: GroupNo,
        summary: &GroupSummary,
        task: greenroom_core::Task,
    ) -> Result<TaskView, StoreError> {
        let queue = if waits(&task) { self.queue(group)? } else { HashMap::new() };
        Ok(view(group, summary, &queue, task))
    }

    /// Returns the position of each task that has not started, by its key. Read once for a whole
    /// page, as the queue may be long.
    fn queue(&self, group: GroupNo) -> Result<HashMap<i64, u64>, StoreError> {
        let sql = "SELECT key, claimed_at IS NOT NULL, state = 'retrying', kind IS 'compaction' \
                   FROM tasks WHERE key >= ? AND key < ? AND state IN ('queued', 'retrying') \
                   ORDER BY key";
        let mut queue = self.all(sql, &[&key(group, 0), &key(group + 1, 0)], rows::queued)?;
        queue.sort_by_cached_key(|(_, queued)| queued.rank());
        Ok(queue.into_iter().zip(0..).map(|((key, _), place)| (key, place)).collect())
    }
}

impl SqliteReadStore {
    /// Reads a group of a list; `None` if its name is unreadable.
    fn listed(&self, row: &Row<'_>) -> rusqlite::Result<Option<Listed>> {
        let named = group_row(|row| {
            let id = row.get::<_, String>(1)?.parse::<GroupId>();
            let id = id.map_err(|err| Error::FromSqlConversionFailure(1, Type::Text, err.into()));
            Ok((row.get::<_, GroupNo>(0)?, id?))
        });
        let (no, id) = match named(row)? {
            Ok(named) => named,
            Err(damage) => {
                self.1.put(damage.named(&self.0, true));
                return Ok(None);
            }
        };
        let summary = match group_row(rows::summary)(row)? {
            Ok((_, summary)) => Ok(Box::new(summary)),
            Err(damage) => Err(damage.named(&self.0, true)),
        };
        Ok(Some(Listed { no, id, summary }))
    }
}

fn waits(task: &greenroom_core::Task) -> bool {
    matches!(task.state(), TaskState::Queued | TaskState::Retrying)
}

fn view(
    group: GroupNo,
    summary: &GroupSummary,
    queue: &HashMap<i64, u64>,
    task: greenroom_core::Task,
) -> TaskView {
    let position = queue.get(&key(group, task.ordinal)).copied();
    let blocked_by =
        position.and_then(|place| Blocked::at(place, task.has_slot(), summary.blocked_by));
    TaskView { task, group: summary.id.clone(), position, blocked_by }
}
