//! Enqueueing work: turns and compactions.

use actix_web::{
    HttpResponse,
    http::header,
    web::{Data, Path, Query},
};
use greenroom_actors::{
    agent::acp,
    group::{Accepted, Demand, Submit},
};
use greenroom_core::Json;
use serde::Deserialize;

use super::{
    Worker,
    body::Body,
    error::ApiError,
    wait::{self, Wait},
};

/// The longest that a caller may give a task: 366 days.
const MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;

/// A turn to enqueue.
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
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let json = Json::deserialize(deserializer)?;
        if let Ok(text) = serde_json::from_str::<String>(json.as_str()) {
            return acp::text_prompt(&text).map(Self).map_err(D::Error::custom);
        }
        acp::check_prompt(&json).map_err(D::Error::custom)?;
        Ok(Self(json))
    }
}

/// A compaction to enqueue.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactionRequest {
    focus: Option<String>,
}

/// Answers 202 once the turn is durable, which is before it has run; 200 if it ended within
/// `wait`.
pub async fn submit_turn(
    worker: Data<Worker>,
    group: Path<String>,
    Query(Wait { wait }): Query<Wait>,
    body: Body<TurnRequest>,
) -> Result<HttpResponse, ApiError> {
    let TurnRequest { prompt: Prompt(prompt), metadata, deadline_ms, expires_in_ms } = body.value;
    for (field, ms) in [("deadline_ms", deadline_ms), ("expires_in_ms", expires_in_ms)] {
        if ms.is_some_and(|ms| !(1..=MS_MAX).contains(&ms)) {
            let detail = format!("{field} is from 1 to {MS_MAX}");
            return Err(ApiError::InvalidBody { field: Some(field.into()), detail });
        }
    }
    let demand = Demand::Turn(prompt);
    let submit = Submit { metadata, deadline_ms, expires_in_ms, ..Submit::new(demand, body.key) };
    submit_task(&worker, &group, true, wait, submit).await
}

/// Answers 202 once the compaction is durable; the one that waits or runs already, if there is one.
pub async fn submit_compaction(
    worker: Data<Worker>,
    group: Path<String>,
    Query(Wait { wait }): Query<Wait>,
    body: Body<CompactionRequest>,
) -> Result<HttpResponse, ApiError> {
    let demand = Demand::Compaction(body.value.focus);
    let submit = Submit::new(demand, body.key);
    submit_task(&worker, &group, false, wait, submit).await
}

/// Hands a task to its group.
pub async fn submit_task(
    worker: &Worker,
    group: &str,
    create: bool,
    wait: Option<f64>,
    submit: Submit,
) -> Result<HttpResponse, ApiError> {
    let wait = wait::checked(wait)?;
    worker.take_work()?;
    let group = worker.find(group, create).await?;
    let submit = Submit { wait: !wait.is_zero(), ..submit };
    let Accepted { view, deduplicated, end } = group.addr.send(submit).await??;
    let view = worker.wait(view, end, wait).await;
    let mut answer = if view.task.state.is_terminal() && !wait.is_zero() {
        HttpResponse::Ok()
    } else {
        HttpResponse::Accepted()
    };
    answer.insert_header((header::LOCATION, format!("/v1/tasks/{}", view.task.id)));
    Ok(answer.json(worker.shown(view, deduplicated)))
}
