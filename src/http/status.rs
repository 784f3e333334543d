//! The server itself: liveness, readiness, status in numbers, launch profiles.

use std::{ops::Bound, time::Duration};

use actix_web::{HttpResponse, web::Data};
use greenroom_actors::{
    quota::Quota,
    storage::{Failing, Fault, StorageHealth},
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{
    error::ApiError,
    locks,
    page::{Found, Page, page_limit},
    query::{NoParameters, Query},
    state::{AppState, Phase},
    view,
};

/// How long the status waits for the database.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers that the server is alive: 204, without any content (C1).
pub async fn healthz() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

/// Answers whether the server accepts work: storage works, and the server does not shut down.
pub async fn readyz(state: Data<AppState>) -> Result<HttpResponse, ApiError> {
    state.until_settled(None).await;
    state.check_accepts_work()?;
    state.read(|store| store.status_counts(&[])).await?;
    Ok(HttpResponse::Ok().json(json!({ "status": "ready" })))
}

/// Returns what the server does, in numbers.
pub async fn status(
    state: Data<AppState>,
    _: Query<NoParameters>,
) -> Result<HttpResponse, ApiError> {
    let shared = &state.shared;
    // The status of a database that cannot be read is reported, too.
    let health = state.health();
    state.until_settled(None).await;
    let apart = view::CountedApart::new(&state);
    let left_out = apart.groups.clone();
    let counts = state.read(move |store| store.status_counts(&left_out));
    // A disk that hangs may hang for readers, too.
    let counts = timeout(READ_TIMEOUT, counts).await.ok().and_then(Result::ok);
    let (mut groups, queued) = counts.unzip();
    if let Some(groups) = &mut groups {
        apart.add_to(groups);
    }
    let total = shared.capacity.slots();
    let occupancy = shared.launcher.pool.occupancy().await?;
    let phase = match *state.phase.borrow() {
        Phase::Serving => "serving",
        Phase::Draining | Phase::Closing => "draining",
    };
    Ok(HttpResponse::Ok().json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "phase": phase,
        "uptime_ms": u64::try_from(state.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "groups": groups,
        "slots": { "total": total, "used": total - shared.slots.available_permits().min(total) },
        "resident": {
            "count": occupancy.count, "cap": occupancy.max, "waiting": occupancy.waiting,
        },
        "limits": limits(&state).await,
        "queue_depth": queued,
        "storage": storage(health),
    })))
}

/// Returns the limits of the server as a whole, and what counts against them.
async fn limits(state: &AppState) -> serde_json::Value {
    locks::count(state).await;
    let limit =
        |quota: &Quota| (quota.name.to_owned(), json!({ "count": quota.used(), "max": quota.max }));
    state.shared.quotas.all().map(limit).into_iter().collect::<serde_json::Map<_, _>>().into()
}

/// Returns the state of the database. The cause of a failure is one word, without a path (C21).
fn storage(health: &StorageHealth) -> serde_json::Value {
    let (commits, transactions) = health.totals();
    let (failing, stalled, sizes) = (health.failing(), health.stalled(), health.sizes());
    let (state, cause, since) = match (failing, stalled) {
        (Some(Failing { fault, since }), _) => ("failing", Some(fault), Some(since)),
        (None, Some(stall)) => ("stalled", Some(Fault::Stalled), Some(stall.since)),
        (None, None) => ("ok", None, None),
    };
    json!({
        "state": state,
        "cause": cause.map(Fault::wire_name),
        "since": since.map(view::Time),
        "stalled_ms": stalled.map(|stall| stall.ms),
        "commits": commits,
        "transactions": transactions,
        "database_bytes": sizes.database,
        "wal_bytes": sizes.log,
        "last_checkpoint_at": health.last_checkpoint().map(view::Time),
    })
}

/// Selects profiles.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Lists the launch profiles by name, without anything that could be a secret.
pub async fn agents(
    state: Data<AppState>,
    Query(query): Query<AgentQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let shared = &state.shared;
    let after = query.cursor.map_or(Bound::Unbounded, Bound::Excluded);
    let profiles = shared.profiles.range((after, Bound::Unbounded)).take(limit + 1);
    let found = Found { found: profiles.collect(), is_cut: false };
    let page = Page::new(found, limit, |(name, _)| name.to_string());
    let page = page.map(|(_, profile)| {
        json!({
            "name": profile.name,
            "command": profile.command,
            "default": profile.name == shared.defaults.agent,
            "compaction": profile.compaction,
            "sandbox": shared.launcher.sandboxes.kernel.report(profile),
        })
    });
    Ok(HttpResponse::Ok().json(page))
}
