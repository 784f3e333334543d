//! Tasks: the queue and its history.

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::{
    group::{Cancel, Demand, Submit},
    storage::{TaskFilter, TaskView},
};
use greenroom_core::{TaskId, TaskKind, TaskState};
use serde::Deserialize;

use super::{
    Worker,
    body::Body,
    error::ApiError,
    frames::page_limit,
    turns::submit_task,
    view,
    wait::{self, Wait},
};

/// Which tasks of a group.
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
    worker: Data<Worker>,
    group: Path<String>,
    Query(query): Query<TaskQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let no = worker.find(&group, false).await?.no;
    let filter = TaskFilter {
        state: query.state,
        kind: query.kind,
        after: query.cursor.unwrap_or_default(),
        limit: limit + 1,
    };
    let tasks = worker.read_of(no, move |archive, _| archive.tasks(no, &filter)).await?;
    let page = view::Page::cut(tasks, limit, |view| view.task.ordinal.to_string());
    let items = page.items.into_iter().map(|view| worker.shown(view, false)).collect();
    Ok(HttpResponse::Ok().json(view::Page { items, next_cursor: page.next_cursor }))
}

/// One task; with `wait`, as soon as it is terminal.
pub async fn get(
    worker: Data<Worker>,
    task: Path<String>,
    Query(Wait { wait }): Query<Wait>,
) -> Result<HttpResponse, ApiError> {
    let wait = wait::checked(wait)?;
    let view = worker.task(task_id(&task)?).await?;
    let view = worker.wait(view, None, wait).await;
    Ok(HttpResponse::Ok().json(worker.shown(view, false)))
}

/// Calls a task off: at once if it waits, else by asking its agent.
pub async fn cancel(worker: Data<Worker>, task: Path<String>) -> Result<HttpResponse, ApiError> {
    let id = task_id(&task)?;
    let view = worker.task(id).await?;
    worker.can_store()?;
    let group = worker.find(view.group.as_str(), false).await?;
    group.addr.send(Cancel(id)).await??;
    let view = worker.task(id).await?;
    Ok(HttpResponse::Accepted().json(worker.shown(view, false)))
}

/// The body of a request that says nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Makes an ended task again, as a new one at the end of the queue.
pub async fn retry(
    worker: Data<Worker>,
    task: Path<String>,
    Query(Wait { wait }): Query<Wait>,
    body: Body<Nothing>,
) -> Result<HttpResponse, ApiError> {
    let TaskView { task, group, .. } = worker.task(task_id(&task)?).await?;
    match task.state {
        TaskState::Failed | TaskState::Interrupted | TaskState::Cancelled => {}
        TaskState::Queued
        | TaskState::Running
        | TaskState::Retrying
        | TaskState::Completed
        | TaskState::Skipped => return Err(ApiError::NotRetryable),
    }
    let demand = Demand::Again(task.id, task.work);
    let submit = Submit {
        metadata: task.metadata,
        deadline_ms: task.deadline_ms,
        ..Submit::new(demand, body.key)
    };
    submit_task(&worker, group.as_str(), false, wait, submit).await
}

impl Worker {
    /// A task as the contract shows it.
    pub fn shown(&self, mut view: TaskView, deduplicated: bool) -> view::Task {
        view.blocked_by = self.blocked_by(view.blocked_by);
        view::Task::new(view, deduplicated)
    }
}

fn task_id(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(|_| ApiError::NoSuchTask)
}
