//! Runs: lists a group's agent processes, from launch to exit.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::storage::RunRecord;
use greenroom_core::{ExitReason, GroupId, RunId, digest::Outcome};
use serde::{Deserialize, Serialize};

use super::{
    error::ApiError,
    page::{Found, Page, page_limit},
    query::Query,
    state::AppState,
    view::Time,
};

/// Selects the runs of a group.
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
    /// The outcome that its digest is sealed with.
    outcome: Option<Outcome>,
    detail: Option<String>,
    started_at: Time,
    ended_at: Option<Time>,
    stderr_tail: Option<String>,
}

/// Lists a group's runs, the newest first.
pub async fn list(
    state: Data<AppState>,
    group: Path<String>,
    Query(query): Query<RunQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = state.look_up(&group).await?;
    let (no, before) = (group.no, query.cursor);
    let read = state.read_group_page(no, move |store, summary| {
        Ok((summary.current_task.is_some(), store.runs(no, before, limit + 1)?))
    });
    let Found { found: (busy, found), is_cut } = read.await?;
    let page = Page::new(Found { found, is_cut }, limit, |run| run.id.to_string());
    Ok(HttpResponse::Ok().json(page.map(|run| Run::new(run, &group.id, busy))))
}

impl Run {
    /// Shows a run; `busy` is whether its group has a task in it.
    fn new(run: RunRecord, group: &GroupId, busy: bool) -> Self {
        let state = match &run.ended {
            Some((_, exit)) if exit.reason == ExitReason::Stopped || exit.code == Some(0) => {
                "exited"
            }
            Some(_) => "crashed",
            None if run.ready_at.is_none() => "spawning",
            None if busy => "busy",
            None => "ready",
        };
        let (ended_at, exit) = run.ended.map_or((None, None), |(at, exit)| (Some(at), Some(exit)));
        let exit = exit.as_ref();
        Self {
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
            started_at: Time(run.started_at),
            ended_at: ended_at.map(Time),
            stderr_tail: exit.map(|exit| exit.stderr_tail.clone()),
        }
    }
}
