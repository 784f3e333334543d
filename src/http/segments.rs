//! Segments: in which session's context each stretch of a transcript was said.

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::storage::SegmentRecord;
use greenroom_core::{EndReason, Json, SessionId};
use serde::{Deserialize, Serialize};

use super::{Worker, error::ApiError, frames::page_limit, view};

/// Which segments of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentQuery {
    limit: Option<usize>,
    cursor: Option<u32>,
}

/// A segment.
#[derive(Serialize)]
pub struct Segment {
    segment: u32,
    parent: Option<u32>,
    session_id: SessionId,
    opened_seq: u64,
    closed_seq: Option<u64>,
    opened_at: view::Time,
    closed_at: Option<view::Time>,
    end_reason: Option<EndReason>,
    provenance: Option<Json>,
}

/// Lists a group's segments in order: one unbranched lineage (I4).
pub async fn list(
    worker: Data<Worker>,
    group: Path<String>,
    Query(query): Query<SegmentQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let no = worker.find(&group, false).await?.no;
    let after = query.cursor.unwrap_or_default();
    let read = worker.read_of(no, move |archive, _| archive.segments(no, after, limit + 1));
    let segments = read.await?;
    let page = view::Page::cut(segments, limit, |segment| segment.segment.to_string());
    let items = page.items.into_iter().map(Segment::from).collect();
    Ok(HttpResponse::Ok().json(view::Page { items, next_cursor: page.next_cursor }))
}

impl From<SegmentRecord> for Segment {
    fn from(record: SegmentRecord) -> Self {
        let (opened_seq, opened_at) = record.opened;
        let (closed_seq, closed_at, end_reason) = match record.closed {
            Some((seq, at, why)) => (Some(seq), Some(view::Time(at)), Some(why)),
            None => (None, None, None),
        };
        Self {
            segment: record.segment,
            parent: record.parent,
            session_id: record.session,
            opened_seq,
            closed_seq,
            opened_at: view::Time(opened_at),
            closed_at,
            end_reason,
            provenance: record.provenance.map(|known| known.given),
        }
    }
}
