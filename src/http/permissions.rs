//! The inbox: what agents want to be allowed, and the answers to it.

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::{
    group::{Decide, GroupError},
    storage::{PermissionFilter, PermissionRecord},
};
use greenroom_core::{
    Choice, GroupId, Json, PermissionId, PermissionState, Rejected, RunId, TaskId,
};
use serde::{Deserialize, Serialize};

use super::{Worker, body::Body, error::ApiError, frames::page_limit, view};

/// Which permissions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermissionQuery {
    group: Option<String>,
    state: Option<PermissionState>,
    limit: Option<usize>,
    cursor: Option<PermissionId>,
}

/// An answer: one of the options, or `cancel`.
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
    tool_call: Option<Json>,
    options: Option<Json>,
    selected: Option<String>,
    opened_at: view::Time,
    expires_at: view::Time,
    resolved_at: Option<view::Time>,
    resolved_by: Option<String>,
}

impl From<PermissionRecord> for Permission {
    fn from(record: PermissionRecord) -> Self {
        let permission = record.permission;
        let shown = permission.shown.map(|shown| (shown.tool_call, shown.options));
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
            opened_at: view::Time(record.opened_at),
            expires_at: view::Time(permission.expires_at),
            resolved_at: record.resolved_at.map(view::Time),
            resolved_by: record.resolved_by,
        }
    }
}

/// Lists permissions, those asked for first first.
pub async fn list(
    worker: Data<Worker>,
    Query(query): Query<PermissionQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let group = match &query.group {
        Some(group) => match worker.find(group, false).await {
            Ok(group) => Some(group.no),
            // Nothing is asked for in a group that is not there.
            Err(ApiError::NoSuchGroup) => return Ok(HttpResponse::Ok().json(nothing())),
            Err(err) => return Err(err),
        },
        None => None,
    };
    let filter =
        PermissionFilter { group, state: query.state, after: query.cursor, limit: limit + 1 };
    let found = worker.edge.shared.ledger.read(move |archive| archive.permissions(&filter)).await?;
    let page = view::Page::cut(found, limit, |own| own.permission.permission.to_string());
    let items = page.items.into_iter().map(Permission::from).collect();
    Ok(HttpResponse::Ok().json(view::Page { items, next_cursor: page.next_cursor }))
}

fn nothing() -> view::Page<Permission> {
    view::Page { items: Vec::new(), next_cursor: None }
}

/// Answers a permission. The first answer wins.
pub async fn answer(
    worker: Data<Worker>,
    permission: Path<String>,
    body: Body<AnswerRequest>,
) -> Result<HttpResponse, ApiError> {
    let id: PermissionId = permission.parse().map_err(|_| ApiError::NoSuchPermission)?;
    let choice = choice(body.value)?;
    let record = worker.permission(id).await?;
    if record.state != PermissionState::Pending {
        return Err(over(record.state));
    }
    worker.can_store()?;
    let group = worker.find(record.group.as_str(), false).await?;
    match group.addr.send(Decide { permission: id, choice, by: "api" }).await? {
        Ok(()) => Ok(HttpResponse::Ok().json(Permission::from(worker.permission(id).await?))),
        Err(GroupError::Rejected(Rejected::NotPending)) => {
            Err(over(worker.permission(id).await?.state))
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

fn over(state: PermissionState) -> ApiError {
    match state {
        PermissionState::Void => ApiError::VoidPermission,
        PermissionState::Pending
        | PermissionState::Selected
        | PermissionState::Cancelled
        | PermissionState::Expired => ApiError::Group(Rejected::NotPending.into()),
    }
}

impl Worker {
    async fn permission(&self, id: PermissionId) -> Result<PermissionRecord, ApiError> {
        let found = self.edge.shared.ledger.read(move |archive| archive.permission(id)).await?;
        found.ok_or(ApiError::NoSuchPermission)
    }
}
