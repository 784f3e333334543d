//! Compactions: the history of a group's context, whoever ordered them and whoever saw them.

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_core::{
    Compaction as Record, CompactionId, CompactionStatus, Details, GroupId, Source, TaskId,
};
use serde::{Deserialize, Serialize};

use super::{Worker, error::ApiError, frames::page_limit, view};

/// A page ends when its summaries come to so many bytes.
const PAGE_BYTES: usize = 8 << 20;

/// Which compactions of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactionQuery {
    limit: Option<usize>,
    cursor: Option<u64>,
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
    started_at: view::Time,
    ended_at: Option<view::Time>,
}

/// Lists a group's compactions, the newest first.
pub async fn list(
    worker: Data<Worker>,
    group: Path<String>,
    Query(query): Query<CompactionQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = worker.find(&group, false).await?;
    let (no, before) = (group.no, query.cursor);
    let read = worker.read_of(no, move |archive, _| archive.compactions(no, before, limit + 1));
    let found = read.await?;
    let limit = fitting(&found, limit);
    let page = view::Page::cut(found, limit, |(seq, _)| seq.to_string());
    let items = page.items.into_iter().map(|(_, record)| show(record, &group.id)).collect();
    Ok(HttpResponse::Ok().json(view::Page { items, next_cursor: page.next_cursor }))
}

/// How many go into a page, by number and by the bytes of their summaries; one at least.
fn fitting(found: &[(u64, Record)], limit: usize) -> usize {
    let bytes = found.iter().scan(0, |bytes, (_, record)| {
        *bytes += record.details.summary.as_ref().map_or(0, String::len);
        Some(*bytes)
    });
    bytes.take_while(|bytes| *bytes <= PAGE_BYTES).count().clamp(1, limit)
}

fn show(record: Record, group: &GroupId) -> Compaction {
    Compaction {
        id: record.id,
        group: group.clone(),
        task: record.task,
        status: record.status,
        source: record.source,
        sources: record.sources,
        from_segment: record.from_segment,
        to_segment: record.to_segment,
        details: record.details,
        started_at: view::Time(record.started_at),
        ended_at: record.ended_at.map(view::Time),
    }
}
