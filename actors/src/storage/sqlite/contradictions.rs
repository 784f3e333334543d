//! Rows with columns that their state cannot have: no value shows them, so only SQL finds them.

use std::collections::BTreeSet;

use greenroom_core::{PermissionId, RunId, TaskId};
use rusqlite::{Connection, Row, params_from_iter};

use super::rows::{self, key};
use crate::storage::GroupNo;

/// Whether a row of `tasks` has columns that its state cannot have, as SQL. Says nothing of columns
/// that are read as they are in any state, nor of the tokens, which are in no frame.
const TASKS: &str = "\
    (started_at IS NULL) + (run IS NULL) + (segment IS NULL) + (seq_first IS NULL) NOT IN (0, 4) \
    OR (ended_at IS NULL) != (seq_last IS NULL) \
    OR retry_at IS NOT NULL AND (state != 'retrying' OR claimed_at IS NOT NULL) \
    OR state = 'queued' AND started_at IS NOT NULL \
    OR state = 'running' AND claimed_at IS NULL \
    OR state IN ('queued', 'running', 'retrying') AND ended_at IS NOT NULL \
    OR state IN ('queued', 'running') AND error IS NOT NULL \
    OR state IN ('queued', 'running', 'retrying') AND (text != '' OR text_truncated \
    OR coalesce(stop_reason, interrupted, usage, findings) IS NOT NULL)";

/// A live run has no part of an end.
const RUNS: &str = "SELECT id FROM runs WHERE no = ?1 AND ended_at IS NULL \
                    AND coalesce(code, signal, reason, detail, stderr_tail, stderr_dropped) \
                    IS NOT NULL";
/// Nor has an open segment any.
const SEGMENTS: &str = "SELECT segment FROM segments WHERE no = ?1 AND closed_seq IS NULL \
                        AND coalesce(closed_at, end_reason) IS NOT NULL";
/// A pending permission has no answer, and an answer has a time and an author.
const PERMISSIONS: &str = "SELECT id FROM permissions WHERE key >= ?1 AND key < ?2 \
                           AND (state = 'pending' \
                           AND coalesce(selected, resolved_by, resolved_at) IS NOT NULL \
                           OR (resolved_by IS NULL) != (resolved_at IS NULL))";

/// Returns the tasks of a group that have such columns.
pub fn tasks(conn: &Connection, group: GroupNo) -> rusqlite::Result<BTreeSet<TaskId>> {
    let sql = format!("SELECT id FROM tasks WHERE key > ? AND key < ? AND ({TASKS})");
    let mut statement = conn.prepare_cached(&sql)?;
    let ids = statement.query_map([key(group, 0), key(group + 1, 0)], |row| rows::uuid(row, 0))?;
    ids.filter_map(Result::transpose).map(|id| id.map(TaskId)).collect()
}

/// Names the runs, segments and permissions of a group that have such columns. Rows whose own id
/// cannot be read are found when they are read.
pub fn rows(conn: &Connection, group: GroupNo) -> rusqlite::Result<Vec<String>> {
    let (no, keys) = ([i64::from(group)], [key(group, 0), key(group + 1, 0)]);
    let run = |row: &Row<'_>| Ok(format!("run {}", RunId(rows::id(row, 0)?)));
    let segment = |row: &Row<'_>| Ok(format!("segment {}", row.get::<_, u32>(0)?));
    let permission = |row: &Row<'_>| Ok(format!("permission {}", PermissionId(rows::id(row, 0)?)));
    let mut found = named(conn, RUNS, &no, run)?;
    found.extend(named(conn, SEGMENTS, &no, segment)?);
    found.extend(named(conn, PERMISSIONS, &keys, permission)?);
    Ok(found)
}

fn named(
    conn: &Connection,
    sql: &str,
    keys: &[i64],
    name: impl Fn(&Row<'_>) -> rusqlite::Result<String>,
) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare_cached(sql)?;
    let names = statement.query_map(params_from_iter(keys), |row| Ok(name(row).ok()))?;
    names.filter_map(Result::transpose).collect()
}
