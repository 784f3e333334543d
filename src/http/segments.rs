//! Segments: lists the stretches of a group's transcript, each under one session's context.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::storage::SegmentRecord;
use greenroom_core::{EndReason, Readable, SessionId};
use serde::{Deserialize, Serialize};

use super::{
    error::ApiError,
    page::{Page, page_limit},
    query::Query,
    state::AppState,
    view::Time,
};

/// Selects the segments of a group.
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
    opened_at: Time,
    closed_at: Option<Time>,
    end_reason: Option<EndReason>,
    provenance: Option<Readable>,
}

/// Lists a group's segments in order: one unbranched lineage (I4).
pub async fn list(
    state: Data<AppState>,
    group: Path<String>,
    Query(query): Query<SegmentQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let no = state.look_up_any(&group).await?.no;
    state.until_settled(Some(no)).await;
    let after = query.cursor.unwrap_or_default();
    let read = state.read_group_page(no, move |store, _| store.segments(no, after, limit + 1));
    let page = Page::new(read.await?, limit, |segment| segment.segment.to_string());
    Ok(HttpResponse::Ok().json(page.map(Segment::from)))
}

impl From<SegmentRecord> for Segment {
    fn from(record: SegmentRecord) -> Self {
        let (opened_seq, opened_at) = record.opened;
        let (closed_seq, closed_at, end_reason) = match record.closed {
            Some((seq, at, reason)) => (Some(seq), Some(Time(at)), Some(reason)),
            None => (None, None, None),
        };
        Self {
            segment: record.segment,
            parent: record.parent,
            session_id: record.session,
            opened_seq,
            closed_seq,
            opened_at: Time(opened_at),
            closed_at,
            end_reason,
            provenance: record.provenance.map(|known| known.given.into()),
        }
    }
}
