//! Compactions: submits one, and lists a group's, by whatever source greenroom learned of them.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_core::{
    Compaction as Record, CompactionId, CompactionStatus, Details, GroupId, Source, Submission,
    TaskId,
};
use serde::{Deserialize, Serialize};

use super::{
    body::Body,
    error::ApiError,
    page::{Page, page_limit},
    query::Query,
    state::AppState,
    submit::submit_task,
    view::Time,
    wait::Wait,
};

/// Selects the compactions of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactionQuery {
    limit: Option<usize>,
    cursor: Option<u64>,
}

/// The body of a request that submits a compaction.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactionRequest {
    focus: Option<String>,
}

/// A compaction.
#[derive(Serialize)]
struct Compaction {
    id: CompactionId,
    group: GroupId,
    task: Option<TaskId>,
    status: CompactionStatus,
    source: Source,
    sources: Vec<Source>,
    from_segment: u32,
    to_segment: Option<u32>,
    #[serde(flatten)]
    details: Details,
    started_at: Time,
    ended_at: Option<Time>,
}

/// Lists a group's compactions, the newest first.
pub async fn list(
    state: Data<AppState>,
    group: Path<String>,
    Query(query): Query<CompactionQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = state.look_up(&group).await?;
    let (no, before) = (group.no, query.cursor);
    let read = state.read_group_page(no, move |store, _| store.compactions(no, before, limit + 1));
    let page = Page::new(read.await?, limit, |(seq, _)| seq.to_string());
    Ok(HttpResponse::Ok().json(page.map(|(_, record)| Compaction::new(record, &group.id))))
}

/// Submits a compaction. Answers 202 once it is durable, with the compaction that already waits or
/// runs if there is one.
pub async fn submit(
    state: Data<AppState>,
    group: Path<String>,
    wait: Wait,
    body: Body<CompactionRequest>,
) -> Result<HttpResponse, ApiError> {
    let submission = Submission::compaction(body.value.focus);
    state.check_accepts_work()?;
    let group = state.owner(&group).await?;
    submit_task(&state, &group, &wait, submission, body.key).await
}

impl Compaction {
    fn new(record: Record, group: &GroupId) -> Self {
        Self {
            id: record.id,
            group: group.clone(),
            task: record.task,
            status: record.status,
            source: record.source,
            sources: record.sources,
            from_segment: record.from_segment,
            to_segment: record.to_segment,
            details: record.details,
            started_at: Time(record.started_at),
            ended_at: record.ended_at.map(Time),
        }
    }
}
