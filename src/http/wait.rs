//! `?wait=`: lets a request wait until its task ends.

use std::time::Duration;

use greenroom_actors::{group::Await, storage::TaskView};
use greenroom_core::Task;
use serde::Deserialize;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{
    error::ApiError,
    state::{AppState, Phase},
};

/// The longest wait, in seconds.
const WAIT_SECONDS_MAX: f64 = 300.0;
/// The pause between two requests to a group whose actor is being rebuilt.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// `?wait=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// How long to wait, in seconds.
    pub wait: Option<f64>,
}

/// Returns the time to wait; zero by default.
///
/// # Errors
///
/// [`ApiError::InvalidQuery`] if it is out of range.
pub fn checked(wait: Option<f64>) -> Result<Duration, ApiError> {
    match wait.unwrap_or_default() {
        seconds if (0.0..=WAIT_SECONDS_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(ApiError::InvalidQuery("wait must be a number of seconds from 0 to 300".into())),
    }
}

/// Returns the task once it is terminal, or as it is after `wait`, or when the server closes.
/// `end` resolves when the task ends, if the request already subscribed to that. The task is
/// durable, so a failing read does not fail the request: the answer is then `view`.
pub async fn for_end(
    state: &AppState,
    view: TaskView,
    end: Option<oneshot::Receiver<Task>>,
    wait: Duration,
) -> TaskView {
    if wait.is_zero() {
        return view;
    }
    follow(state, view.clone(), end, wait).await.unwrap_or(view)
}

async fn follow(
    state: &AppState,
    mut view: TaskView,
    mut end: Option<oneshot::Receiver<Task>>,
    wait: Duration,
) -> Result<TaskView, ApiError> {
    let until = Instant::now() + wait;
    let mut phase = state.phase.clone();
    while !view.task.state().is_terminal() && Instant::now() < until {
        let id = view.task.id;
        // A group whose task has not ended is awake, unless its rows contradict each other: then
        // this wakes it.
        let group = state.owner(view.group.as_str()).await?;
        let subscribed = end.take();
        let ended = async {
            match subscribed {
                Some(end) => Ok(end.await.ok()),
                None => group.addr.send(Await(id)).await,
            }
        };
        let ended = tokio::select! {
            ended = timeout_at(until, ended) => ended,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => break,
        };
        match ended {
            Ok(Ok(Some(task))) => {
                return Ok(TaskView { task, position: None, blocked_by: None, ..view });
            }
            Ok(Ok(None)) => {
                view = state.task(id).await?;
                if !view.task.state().is_terminal() {
                    sleep(RETRY_DELAY).await;
                }
            }
            Ok(Err(_)) => sleep(RETRY_DELAY).await,
            Err(_) => return state.task(id).await,
        }
    }
    if view.task.state().is_terminal() { Ok(view) } else { state.task(view.task.id).await }
}
