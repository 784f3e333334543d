//! The rows of permissions: how they are written and read.

use greenroom_core::{Permission, PermissionId, PermissionState, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    RowsError,
    damage::{LEFT_OUT_MAX, LeftOut, keyed, requested, required},
    rows::{self, json, key},
};
use crate::{
    storage::{GroupNo, PermissionFilter, PermissionRecord},
    wire_name::wire_name,
};

/// The name of a row in reports, followed by its frame.
const NOUN: &str = "permission at frame";

/// Inserts a permission, which the frame `seq` opened.
pub fn open(
    conn: &Connection,
    group: GroupNo,
    seq: u64,
    at: Timestamp,
    permission: &Permission,
) -> rusqlite::Result<()> {
    let shown = permission.shown.as_deref();
    conn.prepare_cached(
        "INSERT INTO permissions (key, id, task, record, tool_call, options, opened_at, \
         expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        key(group, seq),
        permission.permission.0.as_bytes(),
        permission.task.as_ref().map(|id| id.0.as_bytes()),
        json(permission),
        shown.map_or("null", |shown| shown.tool_call.as_str()),
        shown.map_or("[]", |shown| shown.options.as_str()),
        at.0,
        permission.expires_at.0,
    ])?;
    Ok(())
}

/// Stores the decision on a pending permission. A decided one is never overwritten.
pub fn resolve(
    conn: &Connection,
    id: PermissionId,
    at: Timestamp,
    state: PermissionState,
    selected: Option<&str>,
    resolved_by: &str,
) -> rusqlite::Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE permissions SET state = ?, selected = ?, resolved_by = ?, resolved_at = ? \
             WHERE id = ? AND state = 'pending'",
        )?
        .execute(params![wire_name(&state), selected, resolved_by, at.0, id.0.as_bytes()])?;
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

/// Reads the pending permissions of a group, the oldest first.
pub fn pending(conn: &Connection, group: GroupNo) -> Result<Vec<Permission>, RowsError> {
    let sql = format!(
        "SELECT {} FROM permissions WHERE state = 'pending' AND key >= ? AND key < ? ORDER BY key",
        rows::PERMISSION_COLUMNS
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let read = keyed(NOUN, rows::permission);
    let found = statement.query_map([key(group, 0), key(group + 1, 0)], read)?;
    found.map(|found| Ok(required(conn, found)?.1.permission)).collect()
}

/// Reads one permission.
pub fn get(conn: &Connection, id: PermissionId) -> Result<Option<PermissionRecord>, RowsError> {
    let sql = format!("SELECT {} FROM permissions WHERE id = ?", rows::PERMISSION_COLUMNS);
    let mut statement = conn.prepare_cached(&sql)?;
    let read = keyed(NOUN, rows::permission);
    let Some(found) = statement.query_row([id.0.as_bytes()], read).optional()? else {
        return Ok(None);
    };
    Ok(Some(requested(conn, Ok(found))?.1))
}

/// Reads permissions in the order in which they were opened: their ids grow with time.
pub fn list(
    conn: &Connection,
    left_out: &LeftOut,
    filter: &PermissionFilter,
) -> rusqlite::Result<Vec<PermissionRecord>> {
    // The condition of the index of pending ones: they are few, and read often.
    let state = match filter.state {
        Some(PermissionState::Pending) => "state = 'pending' AND ?4 = ?4",
        _ => "(?4 IS NULL OR state = ?4)",
    };
    // Only the keys are sorted: a row has up to a line of an agent.
    let sql = format!(
        "SELECT key FROM permissions WHERE {state} AND +id > ?1 AND key >= ?2 AND key < ?3 \
         ORDER BY id LIMIT ?5",
    );
    let after = filter.after.map_or([0; 16], |id| id.0.into_bytes());
    let (from, to) = match filter.group {
        Some(group) => (key(group, 0), key(group + 1, 0)),
        None => (0, i64::MAX),
    };
    let state = filter.state.as_ref().map(wire_name);
    let mut statement = conn.prepare_cached(&sql)?;
    // SQLite sorts all rows anyway, so some more are read: unreadable ones are left out.
    let limit = filter.limit.saturating_add(LEFT_OUT_MAX) as i64;
    let keys = statement.query_map(params![after, from, to, state, limit], |row| row.get(0))?;
    let keys: Vec<i64> = keys.collect::<rusqlite::Result<_>>()?;
    let sql = format!("SELECT {} FROM permissions WHERE key = ?", rows::PERMISSION_COLUMNS);
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = Vec::new();
    for key in keys {
        if found.len() == filter.limit || left_out.ends_after(found.len()) {
            break;
        }
        let read = |row: &Row<'_>| {
            left_out.count(row);
            keyed(NOUN, rows::permission)(row)
        };
        found.extend(left_out.readable(conn, statement.query_row([key], read))?);
    }
    Ok(found.into_iter().map(|(_, record)| record).collect())
}
