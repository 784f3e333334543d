//! Pages of a group's transcript.

use actix_web::{
    HttpResponse,
    http::header::ContentType,
    web::{Data, Path, Query},
};
use greenroom_actors::{
    frames::{Block, Frame, FrameWriter},
    storage::FrameFilter,
};
use greenroom_core::{GroupId, TaskId};
use serde::Deserialize;

use super::{Worker, error::ApiError};

/// A page ends when it holds so many bytes, but holds one frame at least.
const PAGE_BYTES: usize = 8 << 20;

/// Which frames of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameQuery {
    after: Option<u64>,
    before: Option<u64>,
    limit: Option<usize>,
    cursor: Option<u64>,
    kind: Option<String>,
    task: Option<String>,
    segment: Option<String>,
    order: Option<Order>,
}

/// In which order.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The oldest first.
    Asc,
    /// The newest first.
    Desc,
}

/// Checks a list's `limit`.
///
/// # Errors
///
/// [`ApiError::InvalidQuery`] if it is out of range.
pub fn page_limit(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(100) {
        limit @ 1..=1000 => Ok(limit),
        _ => Err(ApiError::InvalidQuery("limit is a number from 1 to 1000".into())),
    }
}

/// Lists frames, oldest first unless the query says otherwise.
pub async fn list(
    worker: Data<Worker>,
    group: Path<String>,
    Query(query): Query<FrameQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = worker.find(&group, false).await?;
    let no = group.no;
    let current = query.segment.as_deref() == Some("current");
    let wanted = filter(query, limit)?;
    let read = worker.read_of(no, move |archive, _| {
        let view = current.then(|| archive.current_view(no)).transpose()?;
        let wanted = FrameFilter { view, ..wanted };
        Ok((archive.blocks(no, &wanted)?, wanted))
    });
    let (blocks, wanted) = read.await?;
    let body = page(&group.id, &blocks, &wanted, limit);
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(body))
}

fn filter(query: FrameQuery, limit: usize) -> Result<FrameFilter, ApiError> {
    let invalid = |what: &str| ApiError::InvalidQuery(what.into());
    let descending = query.order == Some(Order::Desc);
    let task: Option<TaskId> = query
        .task
        .map(|task| task.parse().map_err(|_| invalid("task is a task id")))
        .transpose()?;
    let segment = match query.segment.as_deref() {
        None | Some("current") => None,
        Some(number) => {
            Some(number.parse().map_err(|_| invalid("segment is a number, or `current`"))?)
        }
    };
    let (mut after, mut before) = (query.after.unwrap_or_default(), query.before);
    match query.cursor {
        Some(cursor) if descending => before = Some(before.unwrap_or(u64::MAX).min(cursor)),
        Some(cursor) => after = after.max(cursor),
        None => {}
    }
    Ok(FrameFilter {
        after,
        before,
        kind: query.kind,
        task,
        segment,
        view: None,
        descending,
        frames_max: limit as u64 + 1,
        bytes_max: PAGE_BYTES,
    })
}

/// The page as JSON. The payloads go in as they are stored.
fn page(group: &GroupId, blocks: &[Block], wanted: &FrameFilter, limit: usize) -> Vec<u8> {
    let mut body = b"{\"items\":[".to_vec();
    let mut taken = 0;
    let mut last = None;
    let mut more = false;
    for block in blocks {
        let writer = FrameWriter::new(group, block);
        let mut frames: Vec<Frame> =
            block.frames().filter(|frame| wanted.takes(block, *frame)).collect();
        if wanted.descending {
            frames.reverse();
        }
        for frame in frames {
            if taken == limit || (taken > 0 && body.len() > PAGE_BYTES) {
                more = true;
                break;
            }
            if taken > 0 {
                body.push(b',');
            }
            writer.json(frame, &mut body);
            taken += 1;
            last = Some(frame.seq);
        }
    }
    // What was read may have ended by its bytes, with more behind it in the database; also when no
    // frame of it was wanted.
    let bytes: usize = blocks.iter().map(|block| block.text.len()).sum();
    let edge = |block: &Block| if wanted.descending { block.first_seq } else { block.last_seq() };
    let cursor = match more {
        true => last,
        false => blocks.last().map(edge).filter(|_| bytes >= PAGE_BYTES),
    };
    match cursor {
        Some(seq) => body.extend(format!("],\"next_cursor\":\"{seq}\"}}").bytes()),
        None => body.extend_from_slice(b"],\"next_cursor\":null}"),
    }
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use greenroom_core::{Kinds, Timestamp};

    use super::*;

    fn block(first_seq: u64, kind: &'static str, bytes: usize) -> Block {
        let text = format!("\"{0}\"\n\"{0}\"", "x".repeat(bytes));
        Block {
            first_seq,
            count: 2,
            at: Timestamp(0),
            segment: 1,
            run: None,
            task: None,
            kinds: Kinds::All(kind.into()),
            text: text.into(),
        }
    }

    /// Pages follow one another to the end, also over megabytes of frames that nobody asked for.
    #[test]
    fn a_page_tells_where_the_next_one_begins() {
        let small = [block(1, "k/a", 1), block(3, "k/a", 1)];
        let unwanted = [block(1, "k/ab", 5 << 20)];
        #[rustfmt::skip]
        let cases = [
            ("all of it",        &small[..],    4, false, "null"),
            ("a page",           &small,        3, false, "\"3\""),
            ("a page backwards", &small,        1, true,  "\"4\""),
            ("none, but bytes",  &unwanted,     9, false, "\"2\""),
            ("backwards",        &unwanted,     9, true,  "\"1\""),
        ];
        for (name, blocks, limit, descending, cursor) in cases {
            let kind = Some("k/a".to_owned());
            let wanted = FrameFilter { kind, descending, ..FrameFilter::default() };
            let mut blocks = blocks.to_vec();
            if descending {
                blocks.reverse();
            }
            let page = page(&"g".parse().unwrap(), &blocks, &wanted, limit);
            let page = String::from_utf8(page).unwrap();
            assert!(page.ends_with(&format!("\"next_cursor\":{cursor}}}")), "{name}: {page}");
        }
    }
}
