//! The table of routes: every path of the API, and the handler of each of its methods.

use actix_web::{
    FromRequest, Handler, HttpResponse, Resource, Responder, Route,
    guard::{Any, Get, Head},
    http::{Method, header},
    web::{self, ServiceConfig},
};

use super::{
    compactions, digest, error::ApiError, events, frames, groups, locks, meters::Meters, metrics,
    permissions, runs, segments, snapshot, state::AppState, status, tasks, turns,
};

/// Sets up a worker's routes.
pub fn configure(state: AppState) -> impl FnOnce(&mut ServiceConfig) {
    move |routes| {
        let meters = state.meters.clone();
        routes.app_data(web::Data::new(state));
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
        .service(at("/v1/groups/{group}/turns",          [post(turns::submit),
                                                          get(turns::list)]))
        .service(at("/v1/groups/{group}/compactions",    [post(compactions::submit),
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

/// Registers resources, each with the counters of its responses.
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

/// Builds a resource that answers 405 to every other method.
fn at<const N: usize>(path: &str, routes: [(Method, Route); N]) -> (&str, Resource) {
    let names = |method: &Method| match *method {
        Method::GET => "GET, HEAD".to_owned(),
        _ => method.to_string(),
    };
    let methods: Vec<String> = routes.iter().map(|(method, _)| names(method)).collect();
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

/// A route of GET, and of HEAD: [`super::answer`] omits the body.
fn get<F, Args>(handler: F) -> (Method, Route)
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    (Method::GET, web::route().guard(Any(Get()).or(Head())).to(handler))
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
