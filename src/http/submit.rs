//! Submits a task to its group, whatever its kind, and answers with the stored task.

use actix_web::{HttpResponse, http::header};
use greenroom_actors::{
    group::{Accepted, KeyHashes, Submit},
    supervisor::GroupHandle,
};
use greenroom_core::Submission;

use super::{
    error::ApiError,
    state::AppState,
    view::Task,
    wait::{self, Wait},
};

/// Submits a task to a group. Answers 202 once the task is durable, or 200 if it ended within
/// `wait`.
pub async fn submit_task(
    state: &AppState,
    group: &GroupHandle,
    wait: &Wait,
    submission: Submission,
    key: Option<KeyHashes>,
) -> Result<HttpResponse, ApiError> {
    let submit = Submit { submission, key, wait: !wait.is_zero() };
    let Accepted { view, deduplicated, end } = state.answer_to(group.addr.send(submit)).await???;
    let view = wait::for_end(state, view, end, wait).await;
    let mut response = if view.task.state().is_terminal() && !wait.is_zero() {
        HttpResponse::Ok()
    } else {
        HttpResponse::Accepted()
    };
    response.insert_header((header::LOCATION, format!("/v1/tasks/{}", view.task.id)));
    Ok(response.json(Task::new(state, view, deduplicated)))
}
