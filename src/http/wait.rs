//! `?wait=`: lets a request wait until its task ends.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use actix_web::{FromRequest, HttpRequest, dev::Payload, web::Data};
use greenroom_actors::{group::Await, quota::Share, storage::TaskView};
use greenroom_core::Task;
use serde::Deserialize;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{
    connection::Connection,
    error::ApiError,
    query,
    state::{AppState, Phase},
};

/// The longest wait, in seconds.
const WAIT_SECONDS_MAX: f64 = 300.0;
/// The pause between two requests to a group whose actor is being rebuilt.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// `?wait=`, in seconds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitQuery {
    wait: Option<f64>,
}

/// How long a request waits; and its client, without which it does not.
pub struct Wait {
    time: Duration,
    client: Connection,
    /// Its place among all waits; `None` if it does not wait.
    _place: Option<Share>,
}

impl Wait {
    /// Whether the request waits at all.
    pub fn is_zero(&self) -> bool {
        self.time.is_zero()
    }
}

impl FromRequest for Wait {
    type Error = ApiError;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(query::parse(request.query_string()).and_then(|WaitQuery { wait }| {
            let seconds = wait.unwrap_or_default();
            if !(0.0..=WAIT_SECONDS_MAX).contains(&seconds) {
                let why = "wait must be a number of seconds from 0 to 300";
                return Err(ApiError::InvalidQuery(why.into()));
            }
            let client = Connection::of(request);
            let time = Duration::from_secs_f64(seconds);
            let state = request.app_data::<Data<AppState>>().filter(|_| !time.is_zero());
            let place = state.map(|state| state.shared.quotas.waits.take(1)).transpose()?;
            Ok(Self { time, client, _place: place })
        }))
    }
}

/// Returns the task once it is terminal, or as it is after `wait`, when the client has closed its
/// connection, or when the server closes.
/// `end` resolves when the task ends, if the request already subscribed to that. The task is
/// durable, so a failing read does not fail the request: the answer is then `view`.
pub async fn for_end(
    state: &AppState,
    view: TaskView,
    end: Option<oneshot::Receiver<Task>>,
    wait: &Wait,
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
    wait: &Wait,
) -> Result<TaskView, ApiError> {
    let until = Instant::now() + wait.time;
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
            () = wait.client.closed() => break,
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
