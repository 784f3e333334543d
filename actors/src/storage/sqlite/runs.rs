//! The rows of runs: how they are written.

use greenroom_core::{Continuity, Exit, RunId, SessionId, Timestamp};
use rusqlite::{Connection, params};

use super::rows::int;
use crate::{storage::GroupNo, wire_name::wire_name};

/// Inserts a run whose start was ordered.
pub fn start(
    conn: &Connection,
    group: GroupNo,
    run: RunId,
    agent: &str,
    at: Timestamp,
) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO runs (id, no, agent, started_at) VALUES (?, ?, ?, ?)")?
        .execute(params![run.0.as_bytes(), group, agent, at.0])?;
    Ok(())
}

/// Stores that a run is ready for prompts.
pub fn set_ready(
    conn: &Connection,
    run: RunId,
    pid: u32,
    session: &SessionId,
    continuity: Continuity,
    at: Timestamp,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE runs SET pid = ?, session = ?, continuity = ?, ready_at = ? WHERE id = ?",
    )?
    .execute(params![pid, &*session.0, wire_name(&continuity), at.0, run.0.as_bytes()])?;
    Ok(())
}

/// Stores when and how a run ended.
pub fn end(conn: &Connection, run: RunId, exit: &Exit, at: Timestamp) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE runs SET ended_at = ?, pid = coalesce(?, pid), code = ?, signal = ?, \
         reason = ?, detail = ?, stderr_tail = ?, stderr_dropped = ? WHERE id = ?",
    )?
    .execute(params![
        at.0,
        exit.pid,
        exit.code,
        exit.signal,
        wire_name(&exit.reason),
        exit.detail,
        exit.stderr_tail,
        int(exit.stderr_dropped),
        run.0.as_bytes()
    ])?;
    Ok(())
}
