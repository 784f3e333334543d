//! Runs: the incarnations of a group's agent.

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::storage::RunRecord;
use greenroom_core::{ExitReason, GroupId, RunId, digest::Outcome};
use serde::{Deserialize, Serialize};

use super::{Worker, error::ApiError, frames::page_limit, view};

/// Which runs of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunQuery {
    limit: Option<usize>,
    cursor: Option<RunId>,
}

/// A run.
#[derive(Serialize)]
struct Run {
    id: RunId,
    group: GroupId,
    agent: String,
    pid: Option<u32>,
    state: &'static str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    reason: Option<ExitReason>,
    /// What its digest is sealed with.
    outcome: Option<Outcome>,
    detail: Option<String>,
    started_at: view::Time,
    ended_at: Option<view::Time>,
    stderr_tail: Option<String>,
}

/// Lists a group's runs, the newest first.
pub async fn list(
    worker: Data<Worker>,
    group: Path<String>,
    Query(query): Query<RunQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = worker.find(&group, false).await?;
    let (no, before) = (group.no, query.cursor);
    let read = worker.read_of(no, move |archive, standing| {
        Ok((standing.current_task.is_some(), archive.runs(no, before, limit + 1)?))
    });
    let (busy, runs) = read.await?;
    let page = view::Page::cut(runs, limit, |run| run.id.to_string());
    let items = page.items.into_iter().map(|run| show(run, &group.id, busy)).collect();
    Ok(HttpResponse::Ok().json(view::Page { items, next_cursor: page.next_cursor }))
}

fn show(run: RunRecord, group: &GroupId, busy: bool) -> Run {
    let state = match &run.ended {
        Some((_, exit)) if exit.reason == ExitReason::Stopped || exit.code == Some(0) => "exited",
        Some(_) => "crashed",
        None if run.ready_at.is_none() => "spawning",
        None if busy => "busy",
        None => "ready",
    };
    let (ended_at, exit) = run.ended.map_or((None, None), |(at, exit)| (Some(at), Some(exit)));
    let exit = exit.as_ref();
    Run {
        id: run.id,
        group: group.clone(),
        agent: run.agent,
        pid: run.pid,
        state,
        exit_code: exit.and_then(|exit| exit.code),
        signal: exit.and_then(|exit| exit.signal),
        reason: exit.map(|exit| exit.reason),
        outcome: exit.map(Outcome::from),
        detail: exit.map(|exit| exit.detail.clone()),
        started_at: view::Time(run.started_at),
        ended_at: ended_at.map(view::Time),
        stderr_tail: exit.map(|exit| exit.stderr_tail.clone()),
    }
}
