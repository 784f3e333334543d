//! The counters of HTTP: responses by route and class of status, and open streams.

use actix_web::http::StatusCode;
use greenroom_actors::metrics::Labels;
use greenroom_core::Timestamp;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::Registry,
};

/// The route label of a request that was refused before routing, or whose path has no route.
const NO_ROUTE: &str = "none";
/// The classes of statuses that greenroom responds with.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The counters of HTTP, over all workers.
#[derive(Clone, Debug)]
pub struct Meters {
    /// The counters of requests without a route.
    pub unrouted: RouteCounters,
    responses: Family<Labels, Counter>,
    streams: Family<Labels, Gauge>,
    started_at: Timestamp,
}

/// The responses of one route, counted by class of status.
#[derive(Clone, Debug)]
pub struct RouteCounters([Counter; CLASSES.len()]);

impl RouteCounters {
    /// Counts a response.
    pub fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = class.checked_sub(2).and_then(|index| self.0.get(index)) {
            counter.inc();
        }
    }
}

/// Counts one open stream until it is dropped.
#[derive(Debug)]
pub struct Subscriber(Gauge);

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The streams that a client can subscribe to.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// A group's frames.
    Group,
    /// The status changes of all groups.
    All,
}

impl Stream {
    fn labels(self) -> Labels {
        let name = match self {
            Self::Group => "group",
            Self::All => "all",
        };
        vec![("stream", name.to_owned())]
    }
}

impl Meters {
    /// Creates the counters, all zero, of a server that started at `started_at`.
    pub fn new(started_at: Timestamp) -> Self {
        let (responses, streams) = (Family::default(), Family::<Labels, Gauge>::default());
        let unrouted = route_counters(&responses, NO_ROUTE);
        for stream in [Stream::Group, Stream::All] {
            drop(streams.get_or_create(&stream.labels()));
        }
        Self { unrouted, responses, streams, started_at }
    }

    /// Returns the counters of a route, which all workers share; called once by each worker.
    pub fn route(&self, pattern: &str) -> RouteCounters {
        route_counters(&self.responses, pattern)
    }

    /// Counts a stream until the returned value is dropped.
    pub fn subscribe(&self, to: Stream) -> Subscriber {
        let gauge = self.streams.get_or_create_owned(&to.labels());
        gauge.inc();
        Subscriber(gauge)
    }

    /// Registers the counters for an exposition.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("http_responses", "Responses by route and class of status; route none: refused before routing, or no path of the API", self.responses.clone());
        to.register("subscribers", "Event streams that are open", self.streams.clone());
        to.register("build", "The running version", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        to.register("process_start_time_seconds", "When the server was started, since the Unix epoch", ConstGauge::new(self.started_at.0 as f64 / 1000.0));
    }
}

fn route_counters(family: &Family<Labels, Counter>, route: &str) -> RouteCounters {
    RouteCounters(CLASSES.map(|class| {
        let labels = vec![("route", route.to_owned()), ("class", class.to_owned())];
        family.get_or_create_owned(&labels)
    }))
}
