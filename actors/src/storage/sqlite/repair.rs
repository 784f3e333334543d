//! The rows of a repair: reads the readable columns of a group, and replaces all of its rows.

use std::collections::BTreeSet;

use greenroom_core::{CompactionId, Digest, Task, Work};
use rusqlite::{Connection, TransactionBehavior, params};

use super::{
    RowsError, compactions, digests, groups,
    rows::{self, findings, int, json, key, ms, seq},
    segments,
    store::{self, SqliteStore},
    write_failed,
};
use crate::{
    storage::{GroupNo, PermissionRecord, Rebuilt, RunRecord, Salvage, StoreError},
    wire_name::wire_name,
};

impl SqliteStore {
    /// Reads the readable columns of a group's rows.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub fn salvage(&self, group: GroupNo) -> Result<Salvage, StoreError> {
        salvage(&self.0, group).map_err(super::failed("read a group"))
    }

    /// Replaces all rows of a group, in the next epoch.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was changed.
    pub fn rebuild(&mut self, rows: Rebuilt) -> Result<(), StoreError> {
        let transaction = self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(write_failed)?;
        rebuild(&transaction, rows)?;
        transaction.commit().map_err(write_failed)
    }
}

fn salvage(conn: &Connection, group: GroupNo) -> rusqlite::Result<Salvage> {
    let mut found = Salvage::default();
    let range = [key(group, 0), key(group + 1, 0)];
    let all = |table: &str, columns: &str| {
        conn.prepare(&format!("SELECT {columns} FROM {table} WHERE key >= ? AND key < ?"))
    };
    let mut statement = all("tasks", rows::TASK_COLUMNS)?;
    let mut tasks = statement.query(range)?;
    while let Some(row) = tasks.next()? {
        found.tasks.insert(seq(row.get(0)?), rows::salvage_task(row));
    }
    let mut statement = all("permissions", rows::PERMISSION_COLUMNS)?;
    let mut permissions = statement.query(range)?;
    while let Some(row) = permissions.next()? {
        found.permissions.insert(seq(row.get(0)?), rows::salvage_permission(row));
    }
    let mut statement = all("compactions", "key, id")?;
    let mut compactions = statement.query(range)?;
    while let Some(row) = compactions.next()? {
        if let Ok(id) = rows::id(row, 1) {
            found.compactions.insert(CompactionId(id), seq(row.get(0)?));
        }
    }
    let mut statement = conn.prepare("SELECT segment, provenance FROM segments WHERE no = ?")?;
    let mut segments = statement.query([group])?;
    while let Some(row) = segments.next()? {
        if let (Ok(segment), Ok(Some(provenance))) = (row.get(0), rows::from_json(row, 1)) {
            found.segments.insert(segment, provenance);
        }
    }
    let mut statement =
        conn.prepare("SELECT launch_due, provenance, digest, last_seq FROM heads WHERE no = ?")?;
    let mut heads = statement.query([group])?;
    if let Some(row) = heads.next()? {
        // Two columns hold it. The digest's is preferred, as commits do not depend on it.
        let digest = rows::from_json::<Digest>(row, 2).ok().flatten();
        let last_seq = digest.map(|digest| digest.watermark_seq).or(rows::last_seq(row, 3).ok());
        found.last_seq = last_seq.unwrap_or_default();
        found.launch_wait = rows::from_json(row, 0).ok().flatten();
        found.provenance = rows::from_json(row, 1).ok().flatten();
    }
    Ok(found)
}

fn rebuild(conn: &Connection, rebuilt: Rebuilt) -> Result<(), RowsError> {
    let Rebuilt { mut group, tasks, runs, segments, compactions, permissions, .. } = rebuilt;
    let no = group.group;
    let range = [key(no, 0), key(no + 1, 0)];
    for table in ["turns", "tasks", "compactions", "permissions"] {
        let sql = format!("DELETE FROM {table} WHERE key >= ? AND key < ?");
        conn.execute(&sql, range)?;
    }
    for task in &tasks {
        insert_task(conn, no, task)?;
    }
    for (seq, compaction) in &compactions {
        compactions::store(conn, key(no, *seq), compaction)?;
    }
    for (seq, permission) in &permissions {
        insert_permission(conn, key(no, *seq), permission)?;
    }
    store_runs(conn, no, &runs)?;
    let sql = "DELETE FROM segments WHERE no = ? AND segment > ?";
    conn.execute(sql, params![no, rebuilt.segments_kept])?;
    for segment in &segments {
        segments::insert(conn, no, segment)?;
    }
    let settings = &group.summary.state.settings;
    let created_at = group.summary.state.created_at.unwrap_or_default();
    conn.execute(
        "UPDATE groups SET settings = ?, created_at = ? WHERE no = ?",
        params![json(settings), created_at.0, no],
    )?;
    conn.execute(
        "INSERT OR IGNORE INTO heads (no, epoch, last_seq, tasks, segment, paused, archived, \
         status, queue_length) VALUES (?, 0, 0, 0, 0, 0, 0, 'idle', 0)",
        [no],
    )?;
    // The next commit must follow the log's end (I3).
    let last_seq = int(group.summary.state.last_seq);
    let sql = "UPDATE heads SET run_digest = NULL, last_seq = ?, epoch = \
               CASE WHEN 0 <= epoch AND epoch < 1 << 62 THEN epoch + 1 ELSE 1 END \
               WHERE no = ? RETURNING epoch";
    let epoch = conn.query_row(sql, params![last_seq, no], |row| row.get::<_, i64>(0))? as u64;
    group.epoch = epoch;
    groups::store_head(conn, &group, group.summary.state.last_seq)?;
    if let Some(rows) = &group.digests {
        digests::store_sealed(conn, &rows.sealed)?;
    }
    if let Some(mut facts) = rebuilt.facts {
        facts.epoch = epoch;
        store::store(conn, &facts, None)?;
    }
    Ok(())
}

fn insert_task(conn: &Connection, no: GroupNo, task: &Task) -> rusqlite::Result<()> {
    let (focus, strategy) = match &task.work {
        Work::Turn { .. } => (None, None),
        Work::Compaction { focus, strategy, .. } => (focus.as_deref(), Some(wire_name(strategy))),
    };
    let (start, frame, ending) = (task.start(), task.last_frame(), task.ending());
    let sql = format!(
        "INSERT INTO tasks ({}) VALUES ({})",
        rows::TASK_COLUMNS,
        vec!["?"; rows::TASK_WIDTH].join(",")
    );
    conn.prepare_cached(&sql)?.execute(params![
        key(no, task.ordinal),
        task.id.0.as_bytes(),
        wire_name(&task.kind()),
        wire_name(&task.origin),
        task.prompt().as_str(),
        focus,
        task.metadata.as_ref().map(|json| json.as_str()),
        task.deadline_ms.map(int),
        task.created_at.0,
        wire_name(&task.state()),
        ms(task.stage.claimed_at()),
        task.attempt,
        task.cancel_requested,
        start.map(|start| start.at.0),
        frame.map(|frame| frame.at.0),
        start.map(|start| start.run.0.into_bytes()),
        start.map(|start| start.segment),
        start.map(|start| int(start.seq)),
        frame.map(|frame| int(frame.seq)),
        ending.stop_reason.as_ref().map(wire_name),
        task.error().map(json),
        ending.interrupted.as_ref().map(json),
        ending.text,
        ending.text_truncated,
        ending.usage.as_ref().map(json),
        ending.tokens.as_ref().map(|json| json.as_str()),
        strategy,
        findings(ending),
        task.expires.as_ref().map(json),
        task.retry_at().as_ref().map(json),
        task.retry_of.as_ref().map(|id| id.0.as_bytes()),
    ])?;
    Ok(())
}

fn insert_permission(
    conn: &Connection,
    key: i64,
    record: &PermissionRecord,
) -> rusqlite::Result<()> {
    let permission = &record.permission;
    let shown = permission.shown.as_deref();
    conn.prepare_cached(
        "INSERT INTO permissions (key, id, task, record, tool_call, options, opened_at, \
         expires_at, state, selected, resolved_by, resolved_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        key,
        permission.permission.0.as_bytes(),
        permission.task.as_ref().map(|id| id.0.as_bytes()),
        json(permission),
        shown.map_or("null", |shown| shown.tool_call.as_str()),
        shown.map_or("[]", |shown| shown.options.as_str()),
        record.opened_at.0,
        permission.expires_at.0,
        wire_name(&record.state),
        record.selected,
        record.resolved_by,
        ms(record.resolved_at),
    ])?;
    Ok(())
}

/// Inserts or updates runs. Columns that are in no frame stay, if the row's id is readable.
fn store_runs(conn: &Connection, no: GroupNo, runs: &[RunRecord]) -> rusqlite::Result<()> {
    let known: BTreeSet<[u8; 16]> = runs.iter().map(|run| *run.id.0.as_bytes()).collect();
    let mut found = conn.prepare("SELECT id FROM runs WHERE no = ?")?;
    let found = found.query_map([no], |row| row.get::<_, Vec<u8>>(0))?;
    for id in found.collect::<rusqlite::Result<Vec<_>>>()? {
        if !known.iter().any(|run| run[..] == id[..]) {
            conn.execute("DELETE FROM runs WHERE id = ?", [id])?;
        }
    }
    // At most one run is alive: the ended ones are stored first.
    let living = |run: &&RunRecord| run.ended.is_none();
    for run in runs.iter().filter(|run| !living(run)).chain(runs.iter().filter(living)) {
        let (at, exit) = run.ended.as_ref().map(|(at, exit)| (at.0, exit)).unzip();
        conn.prepare_cached(
            "INSERT INTO runs (id, no, agent, pid, started_at, ready_at, ended_at, code, signal, \
             reason, detail, stderr_tail, stderr_dropped) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) \
             ON CONFLICT (id) DO UPDATE SET agent = ?3, pid = ?4, started_at = ?5, ready_at = ?6, \
             ended_at = ?7, code = ?8, signal = ?9, reason = ?10, detail = ?11, \
             stderr_tail = ?12, stderr_dropped = ?13, digest = NULL",
        )?
        .execute(params![
            run.id.0.as_bytes(),
            no,
            run.agent,
            run.pid,
            run.started_at.0,
            ms(run.ready_at),
            at,
            exit.map(|exit| exit.code),
            exit.map(|exit| exit.signal),
            exit.map(|exit| wire_name(&exit.reason)),
            exit.map(|exit| &exit.detail),
            exit.map(|exit| &exit.stderr_tail),
            exit.map(|exit| int(exit.stderr_dropped)),
        ])?;
    }
    Ok(())
}
