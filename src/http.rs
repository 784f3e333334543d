//! The HTTP edge: the route table, and what all handlers share.

mod body;
mod compactions;
mod digest;
mod error;
mod events;
mod frames;
mod groups;
mod guard;
mod locks;
mod metrics;
mod permissions;
mod runs;
mod segments;
mod snapshot;
mod status;
mod tasks;
mod turn_index;
mod turns;
mod view;
mod wait;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::Arc,
    time::Instant,
};

use actix::Addr;
use actix_web::{
    FromRequest, Handler, HttpResponse, Resource, Responder, Route,
    http::{Method, header},
    web::{self, QueryConfig, ServiceConfig},
};
use greenroom_actors::{
    group::Shared,
    storage::{Archive, GroupNo, Standing, StoreError},
    supervisor::{Find, GroupHandle, Supervisor},
};
use greenroom_core::{Blocked, GroupId};
use tokio::sync::watch;

use self::error::ApiError;
pub use self::{
    guard::{AllowedHosts, guard},
    metrics::{Meters, count},
};
use crate::otlp::Totals;

/// Handles kept by a worker before it forgets them all and asks again.
const HANDLES_MAX: usize = 65_536;

/// How far the server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes work.
    Serving,
    /// Lets running turns finish, and takes no work.
    Draining,
    /// Ends every stream and every wait.
    Closing,
}

/// What all workers share.
#[derive(Clone, Debug)]
pub struct Edge {
    /// What all groups share.
    pub shared: Arc<Shared>,
    /// The parent of all groups.
    pub supervisor: Addr<Supervisor>,
    /// How far the server is in its life.
    pub phase: watch::Receiver<Phase>,
    /// When the server was started.
    pub started: Instant,
    /// The most bytes of a body.
    pub body_bytes_max: usize,
    /// Which names the server answers to.
    pub hosts: Arc<AllowedHosts>,
    /// What the edge counts.
    pub meters: Meters,
    /// What the export of spans counts.
    pub spans: Totals,
}

/// What a worker has.
pub struct Worker {
    edge: Edge,
    handles: RefCell<HashMap<GroupId, GroupHandle>>,
    /// Whether every group's digests were seen to be of this version's form: then they stay so.
    digests_current: Cell<bool>,
}

impl Worker {
    /// A group's actor. One that nobody has stored yet is made if `create` says so.
    async fn find(&self, text: &str, create: bool) -> Result<GroupHandle, ApiError> {
        let group: GroupId = text.parse().map_err(|_| ApiError::InvalidGroup)?;
        if let Some(handle) = self.handles.borrow().get(&group).filter(|h| h.addr.connected()) {
            return Ok(handle.clone());
        }
        let found = self.edge.supervisor.send(Find { group: group.clone(), create }).await?;
        let handle = found.ok_or(ApiError::NoSuchGroup)?;
        let mut handles = self.handles.borrow_mut();
        if handles.len() >= HANDLES_MAX {
            handles.clear();
        }
        handles.insert(group, handle.clone());
        Ok(handle)
    }

    /// Reads a group and something of it in one snapshot.
    ///
    /// # Errors
    ///
    /// [`ApiError::NoSuchGroup`], or the database's error.
    async fn read_of<R: Send + 'static>(
        &self,
        no: GroupNo,
        ask: impl FnOnce(&dyn Archive, Standing) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, ApiError> {
        let found = self.edge.shared.ledger.read(move |archive| {
            archive.group(no)?.map(|standing| ask(archive, standing)).transpose()
        });
        found.await?.ok_or(ApiError::NoSuchGroup)
    }

    /// What stands before a task: the database, while it fails, before all else.
    fn blocked_by(&self, blocked_by: Option<Blocked>) -> Option<Blocked> {
        let fails = !self.edge.shared.ledger.health.is_good();
        blocked_by.map(|blocked_by| if fails { Blocked::Storage } else { blocked_by })
    }

    /// Refuses work while the server shuts down, or cannot store it.
    fn take_work(&self) -> Result<(), ApiError> {
        if *self.edge.phase.borrow() != Phase::Serving {
            return Err(ApiError::Draining);
        }
        self.can_store()
    }

    /// Refuses a change while it could not be stored: then the group's actor may be gone, too.
    fn can_store(&self) -> Result<(), ApiError> {
        match self.edge.shared.ledger.health.failing() {
            Some(failing) => Err(StoreError::Unavailable(failing.fault).into()),
            None => Ok(()),
        }
    }
}

/// Sets up a worker's routes.
pub fn configure(edge: Edge) -> impl FnOnce(&mut ServiceConfig) {
    move |routes| {
        let meters = edge.meters.clone();
        let worker = Worker { edge, handles: RefCell::default(), digests_current: Cell::default() };
        let bad_query = QueryConfig::default()
            .error_handler(|err, _| ApiError::InvalidQuery(err.to_string()).into());
        routes.app_data(web::Data::new(worker)).app_data(bad_query);
        table(Table { routes, meters: &meters });
        routes.default_service(web::to(async || HttpResponse::from_error(ApiError::NoSuchPath)));
    }
}

/// The API at a glance.
#[rustfmt::skip]
fn table(routes: Table<'_>) {
    routes
        .service(at("/v1/groups",                        [get(groups::list)]))
        .service(at("/v1/groups/{group}",                [get(groups::get),
                                                          put(groups::put),
                                                          delete(groups::delete)]))
        .service(at("/v1/groups/{group}/turns",          [post(turns::submit_turn),
                                                          get(turn_index::list)]))
        .service(at("/v1/groups/{group}/compactions",    [post(turns::submit_compaction),
                                                          get(compactions::list)]))
        .service(at("/v1/groups/{group}/pause",          [post(groups::pause)]))
        .service(at("/v1/groups/{group}/resume",         [post(groups::resume)]))
        .service(at("/v1/groups/{group}/stop",           [post(groups::stop)]))
        .service(at("/v1/groups/{group}/runs",           [get(runs::list)]))
        .service(at("/v1/groups/{group}/digest",         [get(digest::group)]))
        .service(at("/v1/runs/{run}/digest",             [get(digest::run)]))
        .service(at("/v1/digest",                        [get(digest::all)]))
        .service(at("/v1/groups/{group}/segments",       [get(segments::list)]))
        .service(at("/v1/groups/{group}/snapshot",       [get(snapshot::get)]))
        .service(at("/v1/groups/{group}/tasks",          [get(tasks::list)]))
        .service(at("/v1/tasks/{task}",                  [get(tasks::get)]))
        .service(at("/v1/tasks/{task}/cancel",           [post(tasks::cancel)]))
        .service(at("/v1/tasks/{task}/retry",            [post(tasks::retry)]))
        .service(at("/v1/permissions",                   [get(permissions::list)]))
        .service(at("/v1/permissions/{permission}",      [post(permissions::answer)]))
        .service(at("/v1/groups/{group}/frames",         [get(frames::list)]))
        .service(at("/v1/groups/{group}/events",         [get(events::group)]))
        .service(at("/v1/events",                        [get(events::all)]))
        .service(at("/v1/locks/{key}",                   [get(locks::get),
                                                          put(locks::put),
                                                          delete(locks::delete)]))
        .service(at("/v1/locks/{key}/refresh",           [post(locks::refresh)]))
        .service(at("/v1/agents",                        [get(status::agents)]))
        .service(at("/v1/status",                        [get(status::status)]))
        .service(at("/healthz",                          [get(status::healthz)]))
        .service(at("/readyz",                           [get(status::readyz)]))
        .service(at("/metrics",                          [get(metrics::get)]));
}

/// Where resources are registered; each carries the counters of its answers.
struct Table<'a> {
    routes: &'a mut ServiceConfig,
    meters: &'a Meters,
}

impl Table<'_> {
    fn service(self, (pattern, resource): (&str, Resource)) -> Self {
        self.routes.service(resource.app_data(self.meters.route(pattern)));
        self
    }
}

/// A resource whose other methods answer 405.
fn at<const N: usize>(path: &str, routes: [(Method, Route); N]) -> (&str, Resource) {
    let methods: Vec<String> = routes.iter().map(|(method, _)| method.to_string()).collect();
    let allow = methods.join(", ");
    let refuse = move || {
        let allow = allow.clone();
        async move {
            let mut response = HttpResponse::from_error(ApiError::WrongMethod);
            if let Ok(allow) = allow.parse() {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
    };
    let resource = web::resource(path).default_service(web::to(refuse));
    (path, routes.into_iter().fold(resource, |resource, (_, route)| resource.route(route)))
}

fn get<F, Args>(handler: F) -> (Method, Route)
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    (Method::GET, web::get().to(handler))
}

fn put<F, Args>(handler: F) -> (Method, Route)
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    (Method::PUT, web::put().to(handler))
}

fn post<F, Args>(handler: F) -> (Method, Route)
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    (Method::POST, web::post().to(handler))
}

fn delete<F, Args>(handler: F) -> (Method, Route)
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    (Method::DELETE, web::delete().to(handler))
}
