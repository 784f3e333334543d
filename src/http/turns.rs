//! Turns: submits one, and lists the turns that were started with their results and frames.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::{
    acp,
    storage::{GroupNo, ReadStore, StoreError, TurnEntry, TurnFilter},
};
use greenroom_core::{
    Digest, Json, Origin, RunId, StopReason, Submission, TaskError, TaskId, TaskState, Tokens,
    digest::{Bounded, ErrorClass, Finding, ToolUse},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    body::Body,
    digest::{self, Costs},
    error::ApiError,
    page::{BiPage, Cursor, Found, Order, Page, page_limit},
    query::Query,
    state::AppState,
    submit::submit_task,
    view::Time,
    wait::Wait,
};

/// The largest `deadline_ms` and `expires_in_ms`: 366 days.
const MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;

/// The body of a request that submits a turn.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnRequest {
    prompt: Prompt,
    metadata: Option<Json>,
    deadline_ms: Option<u64>,
    expires_in_ms: Option<u64>,
}

/// Plain text, or ACP content blocks as they are.
pub struct Prompt(Json);

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        if let Ok(text) = serde_json::from_str::<String>(json.as_str()) {
            return acp::text_prompt(&text).map(Self).map_err(D::Error::custom);
        }
        acp::check_prompt(&json).map_err(D::Error::custom)?;
        Ok(Self(json))
    }
}

/// Submits a turn, and creates its group if it does not exist. Answers 202 once the turn is
/// durable, which is before it runs; 200 if it ended within `wait`.
pub async fn submit(
    state: Data<AppState>,
    group: Path<String>,
    wait: Wait,
    body: Body<TurnRequest>,
) -> Result<HttpResponse, ApiError> {
    let TurnRequest { prompt: Prompt(prompt), metadata, deadline_ms, expires_in_ms } = body.value;
    for (field, ms) in [("deadline_ms", deadline_ms), ("expires_in_ms", expires_in_ms)] {
        if ms.is_some_and(|ms| !(1..=MS_MAX).contains(&ms)) {
            let detail = format!("{field} is from 1 to {MS_MAX}");
            return Err(ApiError::InvalidBody { field: Some(field.into()), detail });
        }
    }
    let mut submission = Submission::turn(prompt);
    submission.metadata = metadata;
    (submission.deadline_ms, submission.expires_in_ms) = (deadline_ms, expires_in_ms);
    state.check_accepts_work()?;
    // Before a group is created for it. A group itself checks a request's key first.
    let is_known = state.look_up_any(&group).await.is_ok();
    if !is_known {
        state.shared.quotas.queued_bytes.check(1)?;
    }
    let group = state.owner_or_create(&group).await?;
    submit_task(&state, &group, &wait, submission, body.key).await
}

/// Selects the turns of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnQuery {
    limit: Option<usize>,
    order: Option<Order>,
    cursor: Option<Cursor>,
}

/// A turn. The fields of its result are null until it has ended.
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
    started_at: Option<Time>,
    ended_at: Option<Time>,
    duration_ms: Option<u64>,
    tokens: Option<Tokens>,
    #[serde(flatten)]
    costs: Costs,
    tools: Option<Bounded<ToolUse>>,
    errors: Option<Bounded<ErrorClass>>,
    findings: Option<Vec<Finding>>,
    error: Option<TaskError>,
}

/// Lists the turns of a group that were started, including the running one, in the order in which
/// they were accepted or in reverse.
pub async fn list(
    state: Data<AppState>,
    group: Path<String>,
    Query(query): Query<TurnQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let no = state.look_up(&group).await?.no;
    // Rebuilds digests of an older format, the group's and its turns' together.
    digest::read_or_rebuild(&state, no).await?.ok_or(ApiError::NoSuchGroup)?;
    let descending = query.order == Some(Order::Desc);
    let cursor = query.cursor;
    let read =
        state.read_group_page(no, move |store, _| read_page(store, no, cursor, descending, limit));
    let BiPage { page, prev_cursor } = read.await?.found;
    Ok(HttpResponse::Ok().json(BiPage { page: page.map(Turn::from), prev_cursor }))
}

/// Reads a page, and whether the list has an item on the side where reading began.
fn read_page(
    store: &dyn ReadStore,
    no: GroupNo,
    cursor: Option<Cursor>,
    descending: bool,
    limit: usize,
) -> Result<BiPage<TurnEntry>, StoreError> {
    let (back, place) = match cursor {
        None => (false, if descending { u64::MAX } else { 0 }),
        Some(Cursor::Next(ordinal)) => (false, ordinal),
        Some(Cursor::Prev(ordinal)) => (true, ordinal),
    };
    // Whether this page's ordinals grow as it is read.
    let grows = descending == back;
    let found = store.turns(no, &beside(place, grows, limit + 1))?;
    let is_cut = store.is_cut();
    // From an empty page, the opposite cursor includes the turn that this cursor named.
    let here = if grows { place.saturating_add(1) } else { place.saturating_sub(1) };
    let near = found.first().map_or(here, |entry| entry.task.ordinal);
    let opposite = store.turns(no, &beside(near, !grows, 1))?;
    let cursor = |back| if back { Cursor::Prev } else { Cursor::Next };
    let found = Found { found, is_cut };
    let mut page = Page::new(found, limit, |entry| cursor(back)(entry.task.ordinal).to_string());
    let mut prev_cursor = (!opposite.is_empty()).then(|| cursor(!back)(near).to_string());
    if back {
        page.items.reverse();
        std::mem::swap(&mut page.next_cursor, &mut prev_cursor);
    }
    Ok(BiPage { page, prev_cursor })
}

/// Selects turns on one side of a place, the nearest first.
fn beside(place: u64, grows: bool, limit: usize) -> TurnFilter {
    TurnFilter {
        after: if grows { place } else { 0 },
        before: (!grows).then_some(place),
        descending: !grows,
        limit,
    }
}

impl From<TurnEntry> for Turn {
    fn from(TurnEntry { task, digest }: TurnEntry) -> Self {
        let (start, end) = (task.start(), task.last_frame());
        let lasted = start.zip(end).map(|(start, end)| end.at.0 - start.at.0);
        let costs = digest.as_ref().map(|digest| Costs::new(&digest.costs)).unwrap_or_default();
        let tokens = digest.as_ref().map(|digest| digest.tokens);
        let (tools, errors, findings) = digest.map_or((None, None, None), |digest| {
            let Digest { tools, errors, findings, .. } = digest;
            (Some(tools), Some(errors), Some(findings.newest))
        });
        Self {
            task: task.id,
            origin: task.origin,
            state: task.state(),
            attempt: task.attempt,
            stop_reason: task.ending().stop_reason,
            seq_first: start.map(|start| start.seq),
            seq_last: end.map(|end| end.seq),
            segment: start.map(|start| start.segment),
            run: start.map(|start| start.run),
            started_at: start.map(|start| Time(start.at)),
            ended_at: end.map(|end| Time(end.at)),
            duration_ms: lasted.map(|ms| u64::try_from(ms).unwrap_or_default()),
            tokens,
            costs,
            tools,
            errors,
            findings,
            error: task.ending().error.clone(),
        }
    }
}
