//! The turn index: every turn that was started, what it came to, and where its frames are.

use std::{fmt, str::FromStr};

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::storage::{Archive, GroupNo, StoreError, TurnEntry, TurnFilter};
use greenroom_core::{
    Digest, Origin, RunId, StopReason, TaskError, TaskId, TaskState, Tokens,
    digest::{Bounded, ErrorClass, Flaw, ToolUse},
};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    Worker,
    digest::Costs,
    error::ApiError,
    frames::{Order, page_limit},
    view::{self, Page},
};

/// Which turns of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnQuery {
    limit: Option<usize>,
    order: Option<Order>,
    cursor: Option<Cursor>,
}

/// A place between two turns, and which way to read from there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cursor {
    /// On, behind the turn with this ordinal.
    Next(u64),
    /// Back, before it.
    Prev(u64),
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Next(ordinal) => write!(f, "{ordinal}"),
            Self::Prev(ordinal) => write!(f, "prev-{ordinal}"),
        }
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (number, cursor): (_, fn(u64) -> Self) = match text.strip_prefix("prev-") {
            Some(number) => (number, Self::Prev),
            None => (&*text, Self::Next),
        };
        u64::from_str(number)
            .map(cursor)
            .map_err(|_| de::Error::custom("cursor is one that a page of this list gave"))
    }
}

/// A page that can be left both ways.
#[derive(Serialize)]
struct Leaf<T> {
    #[serde(flatten)]
    page: Page<T>,
    prev_cursor: Option<String>,
}

/// A turn. What it came to is known when it has ended.
#[derive(Serialize)]
struct Turn {
    task: TaskId,
    origin: Origin,
    state: TaskState,
    attempt: u32,
    stop_reason: Option<StopReason>,
    seq_first: Option<u64>,
    seq_last: Option<u64>,
    segment: Option<u32>,
    run: Option<RunId>,
    started_at: Option<view::Time>,
    ended_at: Option<view::Time>,
    duration_ms: Option<u64>,
    tokens: Option<Tokens>,
    #[serde(flatten)]
    costs: Costs,
    tools: Option<Bounded<ToolUse>>,
    errors: Option<Bounded<ErrorClass>>,
    findings: Option<Vec<Flaw>>,
    error: Option<TaskError>,
}

/// Lists the turns of a group that were started, the running one with them, in the order in which
/// they were accepted or the other way round.
pub async fn list(
    worker: Data<Worker>,
    group: Path<String>,
    Query(query): Query<TurnQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let no = worker.find(&group, false).await?.no;
    // Digests of an older form are made again for the group and its turns at once.
    worker.digest(no).await?.ok_or(ApiError::NoSuchGroup)?;
    let descending = query.order == Some(Order::Desc);
    let cursor = query.cursor;
    let read = worker.read_of(no, move |archive, _| leaf(archive, no, cursor, descending, limit));
    let Leaf { page, prev_cursor } = read.await?;
    let items = page.items.into_iter().map(Turn::from).collect();
    let page = Page { items, next_cursor: page.next_cursor };
    Ok(HttpResponse::Ok().json(Leaf { page, prev_cursor }))
}

/// Reads a page, and whether there is anything on the side that it was come from.
fn leaf(
    archive: &dyn Archive,
    no: GroupNo,
    cursor: Option<Cursor>,
    descending: bool,
    limit: usize,
) -> Result<Leaf<TurnEntry>, StoreError> {
    let (back, place) = match cursor {
        None => (false, if descending { u64::MAX } else { 0 }),
        Some(Cursor::Next(ordinal)) => (false, ordinal),
        Some(Cursor::Prev(ordinal)) => (true, ordinal),
    };
    // Whether this page's ordinals grow as it is read.
    let grows = descending == back;
    let found = archive.turns(no, &beyond(place, grows, limit + 1))?;
    // From an empty page, the turn that it was asked for at is to be seen again.
    let here = if grows { place.saturating_add(1) } else { place.saturating_sub(1) };
    let near = found.first().map_or(here, |entry| entry.task.ordinal);
    let left = archive.turns(no, &beyond(near, !grows, 1))?;
    let to = |back| if back { Cursor::Prev } else { Cursor::Next };
    let mut page = Page::cut(found, limit, |entry| to(back)(entry.task.ordinal).to_string());
    let mut prev_cursor = (!left.is_empty()).then(|| to(!back)(near).to_string());
    if back {
        page.items.reverse();
        std::mem::swap(&mut page.next_cursor, &mut prev_cursor);
    }
    Ok(Leaf { page, prev_cursor })
}

/// Turns on one side of a place, those beside it first.
fn beyond(place: u64, grows: bool, limit: usize) -> TurnFilter {
    TurnFilter {
        after: if grows { place } else { 0 },
        before: (!grows).then_some(place),
        descending: !grows,
        limit,
    }
}

impl From<TurnEntry> for Turn {
    fn from(TurnEntry { task, digest }: TurnEntry) -> Self {
        let lasted = task.started_at.zip(task.ended_at).map(|(start, end)| end.0 - start.0);
        let costs = digest.as_ref().map(|digest| Costs::new(&digest.costs)).unwrap_or_default();
        let tokens = digest.as_ref().map(|digest| digest.tokens);
        let (tools, errors, findings) = digest.map_or((None, None, None), |digest| {
            let Digest { tools, errors, findings, .. } = digest;
            (Some(tools), Some(errors), Some(findings.newest))
        });
        Self {
            task: task.id,
            origin: task.origin,
            state: task.state,
            attempt: task.attempt,
            stop_reason: task.ending.stop_reason,
            seq_first: task.seq_first,
            seq_last: task.seq_last,
            segment: task.segment,
            run: task.run,
            started_at: task.started_at.map(view::Time),
            ended_at: task.ended_at.map(view::Time),
            duration_ms: lasted.map(|ms| u64::try_from(ms).unwrap_or_default()),
            tokens,
            costs,
            tools,
            errors,
            findings,
            error: task.ending.error,
        }
    }
}
