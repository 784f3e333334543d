//! Permissions: lists what agents ask permission for, and answers one.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::{
    group::{AnswerPermission, GroupError},
    storage::{PermissionFilter, PermissionRecord},
};
use greenroom_core::{
    Choice, GroupId, PermissionId, PermissionState, Readable, Rejected, RunId, TaskId,
};
use serde::{Deserialize, Serialize};

use super::{
    body::Body,
    error::ApiError,
    page::{Page, page_limit},
    query::{NoParameters, Query},
    state::AppState,
    view::Time,
};

/// Selects permissions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermissionQuery {
    group: Option<String>,
    state: Option<PermissionState>,
    limit: Option<usize>,
    cursor: Option<PermissionId>,
}

/// The body of a request that answers a permission: one of the options, or `cancel`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRequest {
    option_id: Option<String>,
    cancel: Option<bool>,
}

/// A permission.
#[derive(Serialize)]
pub struct Permission {
    id: PermissionId,
    group: GroupId,
    run: RunId,
    task: Option<TaskId>,
    state: PermissionState,
    tool_call: Option<Readable>,
    options: Option<Readable>,
    selected: Option<String>,
    opened_at: Time,
    expires_at: Time,
    resolved_at: Option<Time>,
    resolved_by: Option<String>,
}

impl From<PermissionRecord> for Permission {
    fn from(record: PermissionRecord) -> Self {
        let permission = record.permission;
        let shown = permission.shown.map(|shown| (shown.tool_call.into(), shown.options.into()));
        let (tool_call, options) = shown.unzip();
        Self {
            id: permission.permission,
            group: record.group,
            run: permission.run,
            task: permission.task,
            state: record.state,
            tool_call,
            options,
            selected: record.selected,
            opened_at: Time(record.opened_at),
            expires_at: Time(permission.expires_at),
            resolved_at: record.resolved_at.map(Time),
            resolved_by: record.resolved_by,
        }
    }
}

/// Lists permissions in the order in which the agents asked for them.
pub async fn list(
    state: Data<AppState>,
    Query(query): Query<PermissionQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = match &query.group {
        Some(group) => match state.look_up(group).await {
            Ok(group) => Some(group.no),
            Err(ApiError::NoSuchGroup) => {
                let none: Page<Permission> = Page { items: Vec::new(), next_cursor: None };
                return Ok(HttpResponse::Ok().json(none));
            }
            Err(err) => return Err(err),
        },
        None => {
            state.until_settled(None).await;
            None
        }
    };
    let filter =
        PermissionFilter { group, state: query.state, after: query.cursor, limit: limit + 1 };
    let found = state.read_page(move |store| store.permissions(&filter)).await?;
    let page = Page::new(found, limit, |record| record.permission.permission.to_string());
    Ok(HttpResponse::Ok().json(page.map(Permission::from)))
}

/// Answers a permission. The first answer wins.
pub async fn answer(
    state: Data<AppState>,
    permission: Path<String>,
    _: Query<NoParameters>,
    body: Body<AnswerRequest>,
) -> Result<HttpResponse, ApiError> {
    let id: PermissionId = permission.parse().map_err(|_| ApiError::NoSuchPermission)?;
    let choice = choice(body.value)?;
    let record = read(&state, id).await?;
    if record.state != PermissionState::Pending {
        return Err(resolved(record.state));
    }
    state.check_can_write()?;
    let group = state.owner(record.group.as_str()).await?;
    let answer = AnswerPermission { permission: id, choice, by: "api" };
    match state.answer_to(group.addr.send(answer)).await?? {
        Ok(()) => Ok(HttpResponse::Ok().json(Permission::from(read(&state, id).await?))),
        Err(GroupError::Rejected(Rejected::NotPending)) => {
            Err(resolved(read(&state, id).await?.state))
        }
        Err(err) => Err(err.into()),
    }
}

fn choice(answer: AnswerRequest) -> Result<Choice, ApiError> {
    let invalid = |field: &str, detail: &str| ApiError::InvalidBody {
        field: Some(field.into()),
        detail: detail.into(),
    };
    match (answer.option_id, answer.cancel) {
        (Some(option), None) => Ok(Choice::Select(option)),
        (None, Some(true)) => Ok(Choice::Cancel),
        (None, Some(false)) => Err(invalid("cancel", "cancel can only be true")),
        (Some(_), Some(_)) => Err(invalid("cancel", "an answer is option_id or cancel, not both")),
        (None, None) => Err(invalid("option_id", "an answer is option_id or cancel")),
    }
}

/// Returns the error of an answer that arrives when the permission is in `state`.
fn resolved(state: PermissionState) -> ApiError {
    match state {
        PermissionState::Void => ApiError::VoidPermission,
        PermissionState::Pending
        | PermissionState::Selected
        | PermissionState::Cancelled
        | PermissionState::Expired => ApiError::Group(Rejected::NotPending.into()),
    }
}

async fn read(state: &AppState, id: PermissionId) -> Result<PermissionRecord, ApiError> {
    state.read(move |store| store.permission(id)).await?.ok_or(ApiError::NoSuchPermission)
}
