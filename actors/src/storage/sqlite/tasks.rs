//! The rows of tasks: how they are written.

use greenroom_core::{Deadline, Ending, Json, Strategy, Task, TaskError, TaskId, Timestamp, Work};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{findings, int, json, key};
use crate::{
    storage::{GroupNo, plan::AttemptStart},
    wire_name::wire_name,
};

/// Stores that a task has claimed its group's slot.
pub fn claim(conn: &Connection, task: TaskId, at: Timestamp) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET claimed_at = ? WHERE id = ?")?
        .execute(params![at.0, task.0.as_bytes()])?;
    Ok(())
}

/// Stores that a task has released its group's slot.
pub fn release(conn: &Connection, task: TaskId) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET claimed_at = NULL WHERE id = ?")?
        .execute(params![task.0.as_bytes()])?;
    Ok(())
}

/// Stores that the caller has requested the task's cancellation.
pub fn request_cancel(conn: &Connection, task: TaskId) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET cancel_requested = 1 WHERE id = ?")?
        .execute(params![task.0.as_bytes()])?;
    Ok(())
}

/// Stores that a task's backoff has ended.
pub fn end_backoff(conn: &Connection, task: TaskId) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET retry_at = NULL WHERE id = ?")?
        .execute(params![task.0.as_bytes()])?;
    Ok(())
}

/// Stores that a task's attempt has started.
pub fn start(
    conn: &Connection,
    task: TaskId,
    start: AttemptStart,
    at: Timestamp,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE tasks SET state = 'running', claimed_at = coalesce(claimed_at, ?1), \
         started_at = ?1, attempt = ?2, run = ?3, segment = ?4, seq_first = ?5, \
         error = NULL WHERE id = ?6",
    )?
    .execute(params![
        at.0,
        start.attempt,
        start.run.0.as_bytes(),
        start.segment,
        int(start.seq),
        task.0.as_bytes()
    ])?;
    Ok(())
}

/// Inserts an accepted task, with its attempt if that started in the same commit.
pub fn accept(
    conn: &Connection,
    group: GroupNo,
    task: &Task,
    start: Option<AttemptStart>,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let (focus, strategy) = match &task.work {
        Work::Turn { .. } => (None, None),
        Work::Compaction { focus, strategy, .. } => (focus.as_deref(), Some(wire_name(strategy))),
    };
    conn.prepare_cached(
        "INSERT INTO tasks (key, id, kind, origin, prompt, focus, metadata, deadline_ms, \
         created_at, state, claimed_at, started_at, attempt, run, segment, seq_first, strategy, \
         expires, retry_of) VALUES \
         (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
    )?
    .execute(params![
        key(group, task.ordinal),
        task.id.0.as_bytes(),
        wire_name(&task.kind()),
        wire_name(&task.origin),
        task.prompt().as_str(),
        focus,
        task.metadata.as_ref().map(|json| json.as_str()),
        task.deadline_ms.map(int),
        task.created_at.0,
        if start.is_some() { "running" } else { "queued" },
        start.map(|_| at.0),
        start.map_or(0, |start| start.attempt),
        start.map(|start| start.run.0.into_bytes()),
        start.map(|start| start.segment),
        start.map(|start| int(start.seq)),
        strategy,
        task.expires.as_ref().map(json),
        task.retry_of.as_ref().map(|id| id.0.as_bytes()),
    ])?;
    Ok(())
}

/// Stores that a compaction runs with another prompt and strategy than it was accepted with.
pub fn change_compaction(
    conn: &Connection,
    task: TaskId,
    prompt: &Json,
    strategy: Strategy,
) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET prompt = ?, strategy = ? WHERE id = ?")?
        .execute(params![prompt.as_str(), wire_name(&strategy), task.0.as_bytes()])?;
    Ok(())
}

/// Stores that an attempt failed without output, and when the task is retried.
pub fn schedule_retry(
    conn: &Connection,
    task: TaskId,
    attempt: u32,
    error: &TaskError,
    due: &Deadline,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE tasks SET state = 'retrying', attempt = ?, claimed_at = NULL, retry_at = ?, \
         error = ? WHERE id = ?",
    )?
    .execute(params![attempt, json(due), json(error), task.0.as_bytes()])?;
    Ok(())
}

/// Stores a task's end by compare and set: a terminal state is never overwritten (I9).
pub fn end(conn: &Connection, task: &Task) -> rusqlite::Result<()> {
    let (frame, ending) = (task.last_frame(), task.ending());
    let changed = conn
        .prepare_cached(
            "UPDATE tasks SET state = ?, ended_at = ?, seq_last = ?, stop_reason = ?, error = ?, \
             interrupted = ?, text = ?, text_truncated = ?, usage = ?, tokens = ?, findings = ?, \
             attempt = ?, retry_at = NULL \
             WHERE id = ? AND state IN ('queued', 'retrying', 'running')",
        )?
        .execute(params![
            wire_name(&task.state()),
            frame.map(|frame| frame.at.0),
            frame.map(|frame| int(frame.seq)),
            ending.stop_reason.as_ref().map(wire_name),
            ending.error.as_ref().map(json),
            ending.interrupted.as_ref().map(json),
            ending.text,
            ending.text_truncated,
            ending.usage.as_ref().map(json),
            ending.tokens.as_ref().map(|json| json.as_str()),
            findings(ending),
            task.attempt,
            task.id.0.as_bytes(),
        ])?;
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

/// Appends message text to that of an ended task, as far as there is room. Retention may have
/// deleted it.
pub fn add_late_text(conn: &Connection, task: TaskId, more: &str) -> rusqlite::Result<()> {
    let row = conn
        .prepare_cached(
            "SELECT text FROM tasks WHERE id = ? AND NOT text_truncated \
             AND state NOT IN ('queued', 'retrying', 'running')",
        )?
        .query_row([task.0.as_bytes()], |row| row.get(0))
        .optional()?;
    let Some(text) = row else { return Ok(()) };
    let mut ending = Ending { text, ..Ending::default() };
    ending.push_late_text(more);
    conn.prepare_cached("UPDATE tasks SET text = ?, text_truncated = ? WHERE id = ?")?
        .execute(params![ending.text, ending.text_truncated, task.0.as_bytes()])?;
    Ok(())
}
