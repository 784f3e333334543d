//! The server's own table of routes, as it shows it: no test has a second one that lags behind.

use super::{Server, http::Reply};

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its path, with the names of its ids in braces.
    pub pattern: String,
    /// Its methods.
    pub methods: Vec<String>,
}

impl Route {
    /// Its path with these ids; an id that is not given is one that does not exist.
    pub fn path(&self, ids: &[(&str, &str)]) -> String {
        let segments = self.pattern.split('/').map(|segment| {
            let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
            else {
                return segment.to_owned();
            };
            let given = ids.iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
            given.unwrap_or("absent").to_owned()
        });
        segments.collect::<Vec<_>>().join("/")
    }

    /// Whether a GET of it does not end.
    pub fn is_stream(&self) -> bool {
        self.pattern.ends_with("/events")
    }
}

impl Server {
    /// All routes: their patterns are labels of the metrics, their methods in each one's 405.
    #[track_caller]
    pub fn routes(&self) -> Vec<Route> {
        let scrape = self.scrape();
        let counters = scrape.named("greenroom_http_responses_total");
        let mut patterns: Vec<String> =
            counters.iter().map(|counter| counter.labels["route"].clone()).collect();
        patterns.retain(|pattern| pattern.starts_with('/'));
        patterns.sort_unstable();
        patterns.dedup();
        let routes = patterns.into_iter().map(|pattern| {
            let mut route = Route { pattern, methods: Vec::new() };
            let refused = self.bare("PATCH", &route.path(&[]), "");
            assert_eq!(refused.status, 405, "{route:?}: {}", refused.text());
            let allow = refused.header("allow").unwrap_or_default();
            route.methods = allow.split(", ").map(str::to_owned).collect();
            route
        });
        routes.collect()
    }

    /// Sends a request without a body, with these further header lines; reads to the end of the
    /// connection.
    #[track_caller]
    pub fn bare(&self, method: &str, path: &str, lines: &str) -> Reply {
        let host = self.address();
        self.raw(format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n"
        ))
    }
}
