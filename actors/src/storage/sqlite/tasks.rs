//! The rows of tasks: accepted, begun, made again, ended.

use greenroom_core::{Due, Json, RunId, Strategy, Task, TaskId, Timestamp, Work};
use rusqlite::{Connection, params};

use super::rows::{int, json, key, ms};
use crate::{storage::GroupNo, word::word};

/// A task's attempt as it begins.
pub struct Begun {
    pub at: Timestamp,
    pub attempt: u32,
    pub run: RunId,
    pub segment: u32,
    pub first_seq: u64,
}

pub fn start_task(conn: &Connection, task: TaskId, begun: &Begun) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE tasks SET state = 'running', claimed_at = coalesce(claimed_at, ?1), \
         started_at = ?1, attempt = ?2, run = ?3, segment = ?4, seq_first = ?5 WHERE id = ?6",
    )?
    .execute(params![
        begun.at.0,
        begun.attempt,
        begun.run.0.as_bytes(),
        begun.segment,
        int(begun.first_seq),
        task.0.as_bytes()
    ])?;
    Ok(())
}

/// Stores a task that was accepted, if there is one, and its attempt if it began at once.
pub fn insert_task(
    conn: &Connection,
    group: GroupNo,
    task: Option<&Task>,
    begun: Option<&Begun>,
) -> rusqlite::Result<()> {
    let Some(task) = task else { return Ok(()) };
    let (focus, strategy) = match &task.work {
        Work::Turn { .. } => (None, None),
        Work::Compaction { focus, strategy, .. } => (focus.as_deref(), Some(word(strategy))),
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
        word(&task.kind()),
        word(&task.origin),
        task.prompt().as_str(),
        focus,
        task.metadata.as_ref().map(|json| json.as_str()),
        task.deadline_ms.map(int),
        task.created_at.0,
        if begun.is_some() { "running" } else { "queued" },
        begun.map(|begun| begun.at.0),
        begun.map_or(0, |begun| begun.attempt),
        begun.map(|begun| begun.run.0.into_bytes()),
        begun.map(|begun| begun.segment),
        begun.map(|begun| int(begun.first_seq)),
        strategy,
        task.expires.as_ref().map(json),
        task.retry_of.as_ref().map(|id| id.0.as_bytes()),
    ])?;
    Ok(())
}

/// A compaction is done otherwise than it was accepted.
pub fn restate_compaction(
    conn: &Connection,
    task: TaskId,
    prompt: &Json,
    strategy: Strategy,
) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET prompt = ?, strategy = ? WHERE id = ?")?
        .execute(params![prompt.as_str(), word(&strategy), task.0.as_bytes()])?;
    Ok(())
}

/// The attempt came to nothing; the task waits for the next one.
pub fn retry_task(
    conn: &Connection,
    task: TaskId,
    attempt: u32,
    due: &Due,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE tasks SET state = 'retrying', attempt = ?, claimed_at = NULL, retry_at = ? \
         WHERE id = ?",
    )?
    .execute(params![attempt, json(due), task.0.as_bytes()])?;
    Ok(())
}

/// Compare and set: a terminal state is never written over (I9).
pub fn end_task(conn: &Connection, task: &Task) -> rusqlite::Result<()> {
    let ending = &task.ending;
    let changed = conn
        .prepare_cached(
            "UPDATE tasks SET state = ?, ended_at = ?, seq_last = ?, stop_reason = ?, error = ?, \
             interrupted = ?, text = ?, text_truncated = ?, usage = ?, tokens = ?, findings = ?, \
             attempt = ?, retry_at = ? WHERE id = ? AND state IN ('queued', 'retrying', 'running')",
        )?
        .execute(params![
            word(&task.state),
            ms(task.ended_at),
            task.seq_last.map(int),
            ending.stop_reason.as_ref().map(word),
            ending.error.as_ref().map(json),
            ending.interrupted.as_ref().map(json),
            ending.text,
            ending.text_truncated,
            ending.usage.as_ref().map(json),
            ending.tokens.as_ref().map(|json| json.as_str()),
            (!ending.findings.is_empty()).then(|| json(&ending.findings)),
            task.attempt,
            task.retry_at.as_ref().map(json),
            task.id.0.as_bytes(),
        ])?;
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}
