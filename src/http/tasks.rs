//! Tasks: lists a group's queue and its history, reads, cancels and retries one.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::{
    group::{Cancel, GroupError},
    storage::{TaskFilter, TaskView},
};
use greenroom_core::{Submission, TaskId, TaskKind, TaskState};
use serde::Deserialize;

use super::{
    body::{Body, Empty},
    error::ApiError,
    page::{Page, page_limit},
    query::{NoParameters, Query},
    state::AppState,
    submit::submit_task,
    view::Task,
    wait::{self, Wait},
};

/// Selects the tasks of a group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    state: Option<TaskState>,
    kind: Option<TaskKind>,
    limit: Option<usize>,
    cursor: Option<u64>,
}

/// Lists a group's tasks in the order in which they were accepted.
pub async fn list(
    state: Data<AppState>,
    group: Path<String>,
    Query(query): Query<TaskQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let no = state.look_up(&group).await?.no;
    let filter = TaskFilter {
        state: query.state,
        kind: query.kind,
        after: query.cursor.unwrap_or_default(),
        limit: limit + 1,
    };
    let tasks = state.read_group_page(no, move |store, _| store.tasks(no, &filter)).await?;
    let page = Page::new(tasks, limit, |view| view.task.ordinal.to_string());
    Ok(HttpResponse::Ok().json(page.map(|view| Task::new(&state, view, false))))
}

/// Returns a task; with `wait`, as soon as it is terminal.
pub async fn get(
    state: Data<AppState>,
    task: Path<String>,
    wait: Wait,
) -> Result<HttpResponse, ApiError> {
    let view = state.task(task_id(&task)?).await?;
    let view = wait::for_end(&state, view, None, &wait).await;
    Ok(HttpResponse::Ok().json(Task::new(&state, view, false)))
}

/// Cancels a task: at once if it waits, else by asking its agent.
pub async fn cancel(
    state: Data<AppState>,
    task: Path<String>,
    _: Query<NoParameters>,
    _: Body<Empty>,
) -> Result<HttpResponse, ApiError> {
    let id = task_id(&task)?;
    let view = state.task(id).await?;
    state.check_can_write()?;
    let group = state.owner(view.group.as_str()).await?;
    state.answer_to(group.addr.send(Cancel(id))).await???;
    let view = state.task(id).await?;
    Ok(HttpResponse::Accepted().json(Task::new(&state, view, false)))
}

/// Retries an ended task, as a new one at the end of the queue.
pub async fn retry(
    state: Data<AppState>,
    task: Path<String>,
    wait: Wait,
    body: Body<Empty>,
) -> Result<HttpResponse, ApiError> {
    let TaskView { task, group, .. } = state.task(task_id(&task)?).await?;
    let submission = Submission::retry(task).map_err(GroupError::from)?;
    state.check_accepts_work()?;
    let group = state.owner(group.as_str()).await?;
    submit_task(&state, &group, &wait, submission, body.key).await
}

fn task_id(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(|_| ApiError::NoSuchTask)
}
