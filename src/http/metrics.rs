//! `GET /metrics`: what was counted, and what the database and the system know, as OpenMetrics.
//!
//! A scrape never waits for the writer, and answers with what is in memory when the database fails.
//! Here is also what the edge itself counts: answers by route, and open streams.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use actix_web::{
    Error, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::Next,
    web::{self, Data},
};
use greenroom_actors::{
    clock,
    metrics::{Closed as _, Each, Key, Labels},
    residents::Census,
    storage::{Fault, StorageHealth, Tally},
};
use greenroom_core::{Blocked, Status, TaskKind, TaskState, Timestamp};
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::Registry,
};
use tokio::time::timeout;

use super::{Worker, error::ApiError, view};

/// What the exposition is, in the words of its specification.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What the database or the file system may take; then the scrape goes without.
const READ_MAX: Duration = Duration::from_secs(2);
/// The route of what was refused before routing, or has none.
const NO_ROUTE: &str = "none";
/// The classes of statuses that greenroom answers with.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// What the edge counts, over all workers.
#[derive(Clone, Debug)]
pub struct Meters {
    responses: Family<Labels, Counter>,
    unrouted: Answers,
    streams: Family<Labels, Gauge>,
    started_at: Timestamp,
    data_dir: PathBuf,
}

/// The answers of one route, by class.
#[derive(Clone, Debug)]
pub struct Answers([Counter; CLASSES.len()]);

impl Answers {
    fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = class.checked_sub(2).and_then(|place| self.0.get(place)) {
            counter.inc();
        }
    }
}

/// One open stream. Dropping it is its end.
#[derive(Debug)]
pub struct Subscriber(Gauge);

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The streams that one may subscribe to.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// A group's frames.
    Group,
    /// The status changes of all groups.
    All,
}

impl Stream {
    fn labels(self) -> Labels {
        let word = match self {
            Self::Group => "group",
            Self::All => "all",
        };
        vec![("stream", word.to_owned())]
    }
}

impl Meters {
    /// Nothing counted yet, of a server that starts now and keeps its files in `data_dir`.
    pub fn new(data_dir: PathBuf) -> Self {
        let (responses, streams) = (Family::default(), Family::<Labels, Gauge>::default());
        let unrouted = answers(&responses, NO_ROUTE);
        for stream in [Stream::Group, Stream::All] {
            drop(streams.get_or_create(&stream.labels()));
        }
        Self { responses, unrouted, streams, started_at: clock::now(), data_dir }
    }

    /// The counters of a route, all workers' together; called once a worker.
    pub fn route(&self, pattern: &str) -> Answers {
        answers(&self.responses, pattern)
    }

    /// Counts a stream for as long as what is returned lives.
    pub fn subscribe(&self, to: Stream) -> Subscriber {
        let gauge = self.streams.get_or_create_owned(&to.labels());
        gauge.inc();
        Subscriber(gauge)
    }

    #[rustfmt::skip]
    fn register(&self, to: &mut Registry) {
        to.register("http_responses", "Answers by route and class of status; route none: refused before routing, or no path of the API", self.responses.clone());
        to.register("subscribers", "Event streams that are open", self.streams.clone());
        to.register("build", "The running version", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        to.register("process_start_time_seconds", "When the server was started, since the Unix epoch", ConstGauge::new(self.started_at.0 as f64 / 1000.0));
    }
}

fn answers(family: &Family<Labels, Counter>, route: &str) -> Answers {
    Answers(CLASSES.map(|class| {
        let labels = vec![("route", route.to_owned()), ("class", class.to_owned())];
        family.get_or_create_owned(&labels)
    }))
}

/// The middleware that counts what is answered, by the counters that the route carries.
///
/// # Errors
///
/// What the service answers.
pub async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let worker = request.app_data::<Data<Worker>>().cloned();
    let answered = next.call(request).await;
    let status = match &answered {
        Ok(response) => response.status(),
        Err(err) => err.as_response_error().status_code(),
    };
    let route =
        answered.as_ref().ok().and_then(|response| response.request().app_data::<Answers>());
    let unrouted = worker.as_ref().map(|worker| &worker.edge.meters.unrouted);
    if let Some(answers) = route.or(unrouted) {
        answers.count(status);
    }
    answered
}

/// All that is known now.
pub async fn get(worker: Data<Worker>) -> Result<HttpResponse, ApiError> {
    let edge = &worker.edge;
    let shared = &edge.shared;
    let broken = shared.ledger.health.broken_groups();
    let count = broken.len() as u64;
    let tally = timeout(READ_MAX, shared.ledger.read(move |archive| archive.tally(&broken))).await;
    let mut tally = tally.ok().and_then(Result::ok);
    if let Some(tally) = tally.as_mut().filter(|_| count > 0) {
        tally.groups.insert(view::BROKEN.into(), count);
    }
    let dir = edge.meters.data_dir.clone();
    let free = timeout(READ_MAX, web::block(move || free_bytes(&dir))).await;
    let free = free.ok().and_then(Result::ok).flatten();

    let mut registry = Registry::with_prefix("greenroom");
    let to = &mut registry;
    edge.meters.register(to);
    gauge(
        to,
        "uptime_seconds",
        "How long the server has run",
        edge.started.elapsed().as_secs_f64(),
    );
    shared.metrics.register(to);
    shared.ledger.health.metrics().register(to);
    storage(to, &shared.ledger.health, tally.is_some());
    gauge(
        to,
        "groups_broken",
        "Groups that take no work, as a stored row of theirs cannot be read",
        count as f64,
    );
    edge.spans.register(to);
    if let Some(free) = free {
        gauge(to, "disk_free_bytes", "Free bytes on the disk of the data directory", free);
    }
    limits(to, &worker);
    let residents = &shared.nursery.residents;
    if let Ok(census) = residents.census().await {
        resident(to, census, residents.let_go().get());
    }
    if let Some(tally) = tally {
        stored(to, &tally, clock::now());
    }
    let mut exposition = String::with_capacity(64 << 10);
    // Writing to memory does not fail.
    _ = text::encode(&mut exposition, &registry);
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, OPENMETRICS)).body(exposition))
}

fn gauge(to: &mut Registry, name: &str, help: &str, value: f64) {
    to.register(name, help, ConstGauge::new(value));
}

/// What a program of this user may still write.
fn free_bytes(dir: &Path) -> Option<f64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail as f64 * disk.f_frsize as f64)
}

#[rustfmt::skip]
fn storage(to: &mut Registry, health: &StorageHealth, is_readable: bool) {
    let failing = health.failing().map(|failing| failing.fault);
    let sizes = health.sizes();
    gauge(to, "storage_up", "Whether the database takes writes and answers reads", f64::from(failing.is_none() && is_readable));
    to.register("storage_failing", "Why the database takes no writes; all 0 while it does", Each::new(|fault: Fault| ConstGauge::new(u64::from(failing == Some(fault)))));
    gauge(to, "database_bytes", "Size of the database", sizes.database as f64);
    gauge(to, "wal_bytes", "Size of the database's write-ahead log", sizes.log as f64);
}

#[rustfmt::skip]
fn limits(to: &mut Registry, worker: &Worker) {
    let shared = &worker.edge.shared;
    let (slots, patience) = (shared.limits.running_groups, &shared.limits.patience);
    let used = slots.saturating_sub(shared.slots.available_permits());
    gauge(to, "slots", "Tasks that may run at once", slots as f64);
    gauge(to, "slots_used", "Slots that are taken", used as f64);
    gauge(to, "turn_timeout_seconds", "What a turn may take that names no deadline", patience.turn_ms as f64 / 1000.0);
    gauge(to, "compaction_timeout_seconds", "What a compaction may take, and the wait for its lock", patience.compaction_ms as f64 / 1000.0);
}

#[rustfmt::skip]
fn resident(to: &mut Registry, census: Census, let_go: u64) {
    gauge(to, "agents_resident", "Agents that have a process, or are about to", census.count as f64);
    gauge(to, "agents_resident_limit", "Agents that may have a process at once", census.max as f64);
    gauge(to, "agents_waiting", "Runs that wait for a place", census.waiting as f64);
    to.register("agents_let_go", "Idle agents that were ended to make room for another", ConstCounter::new(let_go));
}

/// A status as lists show it. There are broken groups only after damage.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shown {
    Of(Status),
    Broken,
}

impl Shown {
    fn word(self) -> String {
        match self {
            Self::Of(status) => status.word(),
            Self::Broken => view::BROKEN.into(),
        }
    }
}

impl Key for Shown {
    fn all() -> Vec<Self> {
        Status::ALL.iter().copied().map(Self::Of).chain([Self::Broken]).collect()
    }

    fn labels(self) -> Labels {
        vec![(Status::LABEL, self.word())]
    }
}

/// What the database knows. Absent while it cannot be read: a zero would be a lie.
#[rustfmt::skip]
fn stored(to: &mut Registry, tally: &Tally, now: Timestamp) {
    let age = |since: Option<&Timestamp>| {
        let age_ms = since.map_or(0, |since| now.0.saturating_sub(since.0).max(0));
        ConstGauge::new(age_ms as f64 / 1000.0)
    };
    let waiting = |state: TaskState| !state.is_terminal();
    to.register("groups", "Groups by status", Each::only(|status: Shown| status != Shown::Broken || tally.groups.contains_key(view::BROKEN), |status| ConstGauge::new(tally.groups.get(&status.word()).copied().unwrap_or(0))));
    to.register("tasks", "Tasks that are not over", Each::only(|(_, state): (TaskKind, TaskState)| waiting(state), |(kind, state)| ConstGauge::new(tally.tasks.get(&(kind.word(), state.word())).copied().unwrap_or(0))));
    gauge(to, "queue_depth", "Tasks that wait, over all groups", tally.queued as f64);
    gauge(to, "slots_waiting", "Groups that wait for a slot, and for nothing else", tally.wait_for_slot as f64);
    to.register("oldest_waiting_task_age_seconds", "Since when the oldest waiting task was accepted, by what stands before the next task of its group; 0: none waits for that", Each::new(|blocked: Blocked| age(tally.waiting_since.get(&blocked.word()))));
    to.register("oldest_running_task_age_seconds", "Since when the oldest running attempt was started; 0: none runs", Each::new(|kind: TaskKind| age(tally.running_since.get(&kind.word()))));
    gauge(to, "permissions_pending", "Permissions that wait for an answer", tally.permissions as f64);
    gauge(to, "compactions_open", "Compactions that began and did not end", tally.compactions as f64);
}
