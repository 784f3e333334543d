//! Waiting for a task's end.

use std::time::Duration;

use greenroom_actors::{group::Await, storage::TaskView};
use greenroom_core::{Task, TaskId};
use serde::Deserialize;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{Phase, Worker, error::ApiError};

/// The longest that a caller may wait, seconds.
const WAIT_MAX: f64 = 300.0;
/// Before asking again when a group's actor is being rebuilt.
const AGAIN: Duration = Duration::from_millis(50);

/// `?wait=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// Seconds.
    pub wait: Option<f64>,
}

/// Checks a `wait` of so many seconds.
///
/// # Errors
///
/// [`ApiError::InvalidQuery`] if it is out of range.
pub fn checked(wait: Option<f64>) -> Result<Duration, ApiError> {
    match wait.unwrap_or_default() {
        seconds if (0.0..=WAIT_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(ApiError::InvalidQuery("wait is a number of seconds from 0 to 300".into())),
    }
}

impl Worker {
    /// A task as it is stored.
    pub async fn task(&self, id: TaskId) -> Result<TaskView, ApiError> {
        let found = self.edge.shared.ledger.read(move |archive| archive.task(id)).await?;
        found.ok_or(ApiError::NoSuchTask)
    }

    /// The task once it is terminal, or as it is after `wait`, or when the server closes. `end`
    /// tells of its end, if its group was asked to already. The task is durable: that it cannot be
    /// read again is no reason to say otherwise.
    pub async fn wait(
        &self,
        view: TaskView,
        end: Option<oneshot::Receiver<Task>>,
        wait: Duration,
    ) -> TaskView {
        if wait.is_zero() {
            return view;
        }
        self.follow(view.clone(), end, wait).await.unwrap_or(view)
    }

    async fn follow(
        &self,
        mut view: TaskView,
        mut end: Option<oneshot::Receiver<Task>>,
        wait: Duration,
    ) -> Result<TaskView, ApiError> {
        let until = Instant::now() + wait;
        let mut phase = self.edge.phase.clone();
        while !view.task.state.is_terminal() && Instant::now() < until {
            let id = view.task.id;
            let group = self.find(view.group.as_str(), false).await?;
            let told = end.take();
            let ended = async {
                match told {
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
                    view = self.task(id).await?;
                    if !view.task.state.is_terminal() {
                        sleep(AGAIN).await;
                    }
                }
                Ok(Err(_)) => sleep(AGAIN).await,
                Err(_) => return self.task(id).await,
            }
        }
        if view.task.state.is_terminal() { Ok(view) } else { self.task(view.task.id).await }
    }
}
