//! `GET /metrics`: the counters in memory, and gauges from the database and the system, as
//! OpenMetrics; and the middleware that counts responses.
//!
//! A scrape never waits for the writer; while the database fails, it returns what is in memory.

use std::{path::Path, time::Duration};

use actix_web::{
    Error, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::CONTENT_TYPE,
    middleware::Next,
    web::{self, Data},
};
use greenroom_actors::{
    clock,
    metrics::{Family, LabelKey, LabelValue as _, Labels},
    pool::Occupancy,
    quota::Quota,
    storage::{Fault, GaugeSnapshot, StorageHealth},
};
use greenroom_core::{Blocked, Status, TaskKind, TaskState, Timestamp};
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::ConstCounter,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};
use tokio::time::timeout;

use super::{error::ApiError, locks, meters::RouteCounters, state::AppState, view};
use crate::logs;

/// The content type of the exposition, as OpenMetrics specifies it.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The longest read from the database or the file system; after it, the scrape omits the result.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The middleware that counts responses, by the counters that the route carries.
///
/// # Errors
///
/// The service's error.
pub async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<Data<AppState>>().cloned();
    let result = next.call(request).await;
    let status = match &result {
        Ok(response) => response.status(),
        Err(err) => err.as_response_error().status_code(),
    };
    let route = result.as_ref().ok();
    let route = route.and_then(|response| response.request().app_data::<RouteCounters>());
    let unrouted = state.as_ref().map(|state| &state.meters.unrouted);
    if let Some(counters) = route.or(unrouted) {
        counters.count(status);
    }
    result
}

/// Returns all metrics.
pub async fn get(state: Data<AppState>) -> Result<HttpResponse, ApiError> {
    let shared = &state.shared;
    let health = state.health();
    _ = timeout(READ_TIMEOUT, state.until_settled(None)).await;
    let apart = view::CountedApart::new(&state);
    let left_out = apart.groups.clone();
    let stored = timeout(READ_TIMEOUT, state.read(move |store| store.gauges(&left_out))).await;
    let mut stored = stored.ok().and_then(Result::ok);
    if let Some(stored) = &mut stored {
        apart.add_to(&mut stored.groups);
    }
    let dir = state.data_dir.clone();
    let free = timeout(READ_TIMEOUT, web::block(move || free_bytes(&dir))).await;
    let free = free.ok().and_then(Result::ok).flatten();

    let mut registry = Registry::with_prefix("greenroom");
    let to = &mut registry;
    state.meters.register(to);
    let uptime = state.started.elapsed().as_secs_f64();
    gauge(to, "uptime_seconds", "How long the server has run", uptime);
    shared.metrics.register(to);
    health.metrics().register(to);
    storage_gauges(to, health, stored.is_some());
    let help = "Groups that accept no work, because a stored row cannot be read";
    gauge(to, "groups_broken", help, apart.broken as f64);
    state.spans.register(to);
    let help = "Requests that could not be parsed as HTTP";
    to.register("http_unparsable_requests", help, ConstCounter::new(logs::unparsable_requests()));
    let help = "Log lines dropped because the reader of stderr stood still";
    to.register("log_lines_dropped", help, ConstCounter::new(logs::dropped()));
    if let Some(free) = free {
        gauge(to, "disk_free_bytes", "Free bytes on the disk of the data directory", free);
    }
    locks::count(&state).await;
    limit_gauges(to, &state);
    let pool = &shared.launcher.pool;
    if let Ok(occupancy) = pool.occupancy().await {
        pool_gauges(to, occupancy, pool.evicted().get());
    }
    if let Some(stored) = stored {
        stored_gauges(to, &stored, clock::now());
    }
    let mut exposition = String::with_capacity(64 << 10);
    // Writing to memory does not fail.
    _ = text::encode(&mut exposition, &registry);
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, OPENMETRICS)).body(exposition))
}

fn gauge(to: &mut Registry, name: &str, help: &str, value: f64) {
    to.register(name, help, ConstGauge::new(value));
}

/// Returns the bytes that a program of this user can still write.
fn free_bytes(dir: &Path) -> Option<f64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail as f64 * disk.f_frsize as f64)
}

#[rustfmt::skip]
fn storage_gauges(to: &mut Registry, health: &StorageHealth, is_readable: bool) {
    let stalled = health.stalled();
    let failing = health.failing().map(|failing| failing.fault).or(stalled.map(|_| Fault::Stalled));
    let sizes = health.sizes();
    gauge(to, "storage_up", "Whether the database accepts writes and answers reads", f64::from(failing.is_none() && is_readable));
    to.register("storage_failing", "Why the database accepts no writes; all 0 while it does", Family::new(|fault: Fault| ConstGauge::new(u64::from(failing == Some(fault)))));
    gauge(to, "storage_stalled_seconds", "For how long a write has not returned; 0: none is that late", stalled.map_or(0.0, |stall| stall.ms as f64 / 1000.0));
    gauge(to, "database_bytes", "Size of the database", sizes.database as f64);
    gauge(to, "wal_bytes", "Size of the database's write-ahead log", sizes.log as f64);
}

#[rustfmt::skip]
fn limit_gauges(to: &mut Registry, state: &AppState) {
    let shared = &state.shared;
    let (slots, limits) = (shared.capacity.slots(), &shared.defaults.limits);
    let used = slots.saturating_sub(shared.slots.available_permits());
    for (name, help, of) in [
        ("limit", "The limits of the server as a whole", (|quota| quota.max) as fn(&Quota) -> u64),
        ("limit_used", "What counts against each of them", Quota::used),
    ] {
        let family = prometheus_client::metrics::family::Family::<Labels, Gauge>::default();
        for quota in shared.quotas.all() {
            let labels = vec![("limit", quota.name.to_owned())];
            family.get_or_create(&labels).set(of(quota) as i64);
        }
        to.register(name, help, family);
    }
    gauge(to, "slots", "Tasks that may run at once", slots as f64);
    gauge(to, "slots_used", "Slots that are taken", used as f64);
    gauge(to, "turn_timeout_seconds", "The time limit of a turn without a deadline", limits.turn_ms as f64 / 1000.0);
    gauge(to, "compaction_timeout_seconds", "The time limit of a compaction, and of the wait for its lock", limits.compaction_ms as f64 / 1000.0);
}

#[rustfmt::skip]
fn pool_gauges(to: &mut Registry, occupancy: Occupancy, evicted: u64) {
    gauge(to, "agents_resident", "Agents that have a process, or are about to", occupancy.count as f64);
    gauge(to, "agents_resident_limit", "Agents that may have a process at once", occupancy.max as f64);
    gauge(to, "agents_waiting", "Runs that wait for a place in the agent pool", occupancy.waiting as f64);
    to.register("agents_let_go", "Idle agents that were evicted to make room for another", ConstCounter::new(evicted));
}

/// A status as lists show it. Groups are broken only after damage.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ListedStatus {
    Sound(Status),
    Broken,
}

impl ListedStatus {
    fn wire_name(self) -> String {
        match self {
            Self::Sound(status) => status.wire_name(),
            Self::Broken => view::BROKEN.into(),
        }
    }
}

impl LabelKey for ListedStatus {
    fn all() -> Vec<Self> {
        Status::ALL.iter().copied().map(Self::Sound).chain([Self::Broken]).collect()
    }

    fn labels(self) -> Labels {
        vec![(Status::LABEL, self.wire_name())]
    }
}

/// Adds the gauges of stored rows. They are absent while the database cannot be read: a zero would
/// be wrong.
#[rustfmt::skip]
fn stored_gauges(to: &mut Registry, stored: &GaugeSnapshot, now: Timestamp) {
    let age = |since: Option<&Timestamp>| {
        let age_ms = since.map_or(0, |since| now.0.saturating_sub(since.0).max(0));
        ConstGauge::new(age_ms as f64 / 1000.0)
    };
    let is_open = |state: TaskState| !state.is_terminal();
    to.register("groups", "Groups by status", Family::only(|status: ListedStatus| status != ListedStatus::Broken || stored.groups.contains_key(view::BROKEN), |status| ConstGauge::new(stored.groups.get(&status.wire_name()).copied().unwrap_or(0))));
    to.register("tasks", "Tasks that have not ended", Family::only(|(_, state): (TaskKind, TaskState)| is_open(state), |(kind, state)| ConstGauge::new(stored.tasks.get(&(kind.wire_name(), state.wire_name())).copied().unwrap_or(0))));
    gauge(to, "queue_depth", "Tasks that wait, over all groups", stored.queued as f64);
    gauge(to, "slots_waiting", "Groups that wait for a slot, and for nothing else", stored.wait_for_slot as f64);
    to.register("oldest_waiting_task_age_seconds", "Time since the oldest waiting task was accepted, by what blocks the next task of its group; 0: nothing waits for that", Family::new(|blocked: Blocked| age(stored.waiting_since.get(&blocked.wire_name()))));
    to.register("oldest_running_task_age_seconds", "Time since the oldest running attempt was started; 0: none runs", Family::new(|kind: TaskKind| age(stored.running_since.get(&kind.wire_name()))));
    gauge(to, "permissions_pending", "Permissions that wait for an answer", stored.permissions as f64);
    gauge(to, "compactions_open", "Compactions that have begun and not ended", stored.compactions as f64);
}
