//! The server itself: alive, ready, and what it does.

use actix_web::{HttpResponse, web::Data};
use greenroom_actors::{profile::Compacts, storage::StorageHealth};
use serde_json::json;

use super::{Phase, Worker, error::ApiError, view};

/// Alive: no content, and nothing else either (RELIABILITY C1).
pub async fn healthz() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

/// Ready to take work: storage works, and the server does not shut down.
pub async fn readyz(worker: Data<Worker>) -> Result<HttpResponse, ApiError> {
    worker.take_work()?;
    worker.edge.shared.ledger.read(|archive| archive.census(&[])).await?;
    Ok(HttpResponse::Ok().json(json!({ "status": "ready" })))
}

/// What the server does, in numbers.
pub async fn status(worker: Data<Worker>) -> Result<HttpResponse, ApiError> {
    let shared = &worker.edge.shared;
    // A database that cannot be read is shown, too.
    let broken = shared.ledger.health.broken_groups();
    let count = broken.len() as u64;
    let census = shared.ledger.read(move |archive| archive.census(&broken)).await.ok();
    let (mut groups, queued) = census.unzip();
    if let Some(groups) = groups.as_mut().filter(|_| count > 0) {
        groups.insert(view::BROKEN.into(), count);
    }
    let total = shared.limits.running_groups;
    let health = &shared.ledger.health;
    let resident = shared.nursery.residents.census().await?;
    let phase = match *worker.edge.phase.borrow() {
        Phase::Serving => "serving",
        Phase::Draining | Phase::Closing => "draining",
    };
    Ok(HttpResponse::Ok().json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "phase": phase,
        "uptime_ms": u64::try_from(worker.edge.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "groups": groups,
        "slots": { "total": total, "used": total - shared.slots.available_permits().min(total) },
        "resident": {
            "count": resident.count, "cap": resident.max, "waiting": resident.waiting,
        },
        "queue_depth": queued,
        "storage": storage(health),
    })))
}

/// How the database is. Why it fails is one word, without a path (RELIABILITY C21).
fn storage(health: &StorageHealth) -> serde_json::Value {
    let (commits, transactions) = health.totals();
    let (failing, sizes) = (health.failing(), health.sizes());
    json!({
        "state": if failing.is_some() { "failing" } else { "ok" },
        "cause": failing.map(|failing| failing.fault.word()),
        "since": failing.map(|failing| view::Time(failing.since)),
        "commits": commits,
        "transactions": transactions,
        "database_bytes": sizes.database,
        "wal_bytes": sizes.log,
        "last_checkpoint_at": health.last_checkpoint().map(view::Time),
    })
}

/// The launch profiles, without anything that could be a secret.
pub async fn agents(worker: Data<Worker>) -> HttpResponse {
    let shared = &worker.edge.shared;
    let mut profiles: Vec<_> = shared.profiles.values().collect();
    profiles.sort_by(|one, other| one.name.cmp(&other.name));
    let items: Vec<_> = profiles
        .into_iter()
        .map(|profile| {
            let compaction = match &profile.compaction {
                Compacts::ByCommand(command) => json!({"strategy": "command", "command": command}),
                Compacts::ByRotation => json!({"strategy": "rotate"}),
                Compacts::Not => json!({"strategy": "none"}),
            };
            json!({
                "name": profile.name,
                "command": profile.command,
                "default": profile.name == shared.default_agent,
                "compaction": compaction,
            })
        })
        .collect();
    HttpResponse::Ok().json(json!({ "items": items, "next_cursor": null }))
}
