//! Frames: lists a group's transcript page by page.

use actix_web::{
    HttpResponse,
    http::header::ContentType,
    web::{Data, Path},
};
use greenroom_actors::{
    storage::FrameFilter,
    transcript::frame::{Block, Frame, FrameWriter},
};
use greenroom_core::{Fact, GroupId, TaskId};
use serde::Deserialize;

use super::{
    error::ApiError,
    page::{Order, PAGE_BYTES_MAX, page_limit},
    query::Query,
    state::AppState,
};

/// What the kinds of greenroom's own frames begin with.
const OWN: &str = "greenroom/";

/// Selects the frames of a group.
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

/// Lists frames, oldest first unless the query says otherwise.
pub async fn list(
    state: Data<AppState>,
    group: Path<String>,
    Query(query): Query<FrameQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = state.look_up_any(&group).await?;
    let no = group.no;
    state.until_settled(Some(no)).await;
    let current = query.segment.as_deref() == Some("current");
    let wanted = filter(query, limit)?;
    let read = state.read_group(no, move |store, _| {
        let view = current.then(|| store.current_view(no)).transpose()?;
        let wanted = FrameFilter { view, ..wanted };
        Ok((store.blocks(no, &wanted)?, wanted))
    });
    let (blocks, wanted) = read.await?;
    let body = page_json(&group.id, &blocks, &wanted, limit);
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(body))
}

fn filter(query: FrameQuery, limit: usize) -> Result<FrameFilter, ApiError> {
    let invalid = |detail: &str| ApiError::InvalidQuery(detail.into());
    let descending = query.order == Some(Order::Desc);
    let task: Option<TaskId> = query
        .task
        .map(|task| task.parse().map_err(|_| invalid("task must be a task id")))
        .transpose()?;
    let segment = match query.segment.as_deref() {
        None | Some("current") => None,
        Some(number) => {
            Some(number.parse().map_err(|_| invalid("segment must be a number or `current`"))?)
        }
    };
    // Any other kind is the name of a method, which an agent may have chosen.
    let kind = query.kind;
    if kind.as_deref().is_some_and(|kind| kind.starts_with(OWN) && !Fact::KINDS.contains(&kind)) {
        let own = Fact::KINDS.iter().filter(|kind| kind.starts_with(OWN));
        let own = own.copied().collect::<Vec<_>>().join("`, `");
        return Err(invalid(&format!("kind: expected the name of a method, or one of `{own}`")));
    }
    let (mut after, mut before) = (query.after.unwrap_or_default(), query.before);
    match query.cursor {
        Some(cursor) if descending => before = Some(before.unwrap_or(u64::MAX).min(cursor)),
        Some(cursor) => after = after.max(cursor),
        None => {}
    }
    Ok(FrameFilter {
        after,
        before,
        kind,
        task,
        segment,
        view: None,
        descending,
        frames_max: limit as u64 + 1,
        bytes_max: PAGE_BYTES_MAX,
    })
}

/// Returns the page as JSON. Payloads are copied as they are stored.
fn page_json(group: &GroupId, blocks: &[Block], wanted: &FrameFilter, limit: usize) -> Vec<u8> {
    let bytes: usize = blocks.iter().map(|block| block.text.len()).sum();
    // Room for all that is sent, so that a growing body is not copied.
    let mut body = Vec::with_capacity(bytes.min(PAGE_BYTES_MAX) + (limit << 9));
    body.extend_from_slice(b"{\"items\":[");
    let mut count = 0;
    let mut last = None;
    let mut is_full = false;
    for block in blocks {
        let writer = FrameWriter::new(group, block);
        let mut frames: Vec<Frame> =
            block.frames().filter(|frame| wanted.takes(block, *frame)).collect();
        if wanted.descending {
            frames.reverse();
        }
        for frame in frames {
            if count == limit || (count > 0 && body.len() > PAGE_BYTES_MAX) {
                is_full = true;
                break;
            }
            if count > 0 {
                body.push(b',');
            }
            writer.json(frame, &mut body);
            count += 1;
            last = Some(frame.seq);
        }
    }
    // The read may have stopped at its limit of bytes, with more frames after it in the database;
    // also if the filter accepts none of the frames that were read.
    let end = |block: &Block| if wanted.descending { block.first_seq } else { block.last_seq() };
    let cursor = match is_full {
        true => last,
        false => blocks.last().map(end).filter(|_| bytes >= PAGE_BYTES_MAX),
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

    /// Pages follow one another to the end, also over megabytes of frames that the filter rejects.
    #[test]
    fn a_page_gives_the_cursor_of_the_next() {
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
            let page = page_json(&"g".parse().unwrap(), &blocks, &wanted, limit);
            let page = String::from_utf8(page).unwrap();
            assert!(page.ends_with(&format!("\"next_cursor\":{cursor}}}")), "{name}: {page}");
        }
    }
}
