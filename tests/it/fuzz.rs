//! A fuzz of all routes of the server's table: random JSON, queries, headers and bytes, over real
//! sockets.
//!
//! `FUZZ_SEED` names another seed, and `FUZZ_SECONDS` a time instead of a number of requests, as
//! `tests/run --long` does. A failure shows both, and the request.

use std::{
    env,
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    Server, Setup,
    http::{Reply, parse},
    random::Random,
    routes::Route,
};

/// The clients that send at once, and how many requests each sends.
const CLIENTS: u64 = 4;
const REQUESTS: u64 = 400;
/// After this time an answer counts as missing: far above what a busy machine needs.
const ANSWER: Duration = Duration::from_secs(20);
/// The ids that answers named which a client remembers.
const IDS_MAX: usize = 64;

const GROUPS: &[&str] = &["a", "b", "c", "a%62", "-", "%00", "%ff", "", "absent", "..", "%2e%2e"];
const METHODS: &[&str] = &["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "FOO"];
#[rustfmt::skip]
const PARAMETERS: &[&str] = &[
    "after", "agent", "before", "cursor", "from", "group", "holder", "kind", "limit", "order",
    "purge", "segment", "state", "status", "task", "to", "token", "wait", "x", "", "%00",
];
/// No value is a long `wait`.
#[rustfmt::skip]
const VALUES: &[&str] = &[
    "", "0", "1", "2", "-1", "0.1", "1001", "18446744073709551615", "18446744073709551616", "1e999",
    "NaN", "true", "false", "asc", "desc", "current", "running", "completed", "turn", "pending",
    "scripted", "a", "session/update", "greenroom/turn_started", "2026-01-01T00:00:00Z", "%ff",
    "%00", "%", "prev-1", "prev-18446744073709551615", "tsk_",
    "run_00000000000000000000000000000000",
];
#[rustfmt::skip]
const FIELDS: &[&str] = &[
    "agent", "auto_compact", "cancel", "cwd", "deadline_ms", "expires_in_ms", "focus", "holder",
    "metadata", "on_interrupt", "option_id", "permission_policy", "prompt", "text", "title",
    "token", "ttl_ms", "type", "uri", "x",
];
#[rustfmt::skip]
const SCALARS: &[&str] = &[
    "null", "true", "false", "0", "1", "-1", "0.5", "60000", "1e999", "18446744073709551616",
    "\"\"", "\"a\"", "\"ask\"", "\"allow\"", "\"auto\"", "\"hold\"", "\"scripted\"", "\"/\"",
    "\"/proc/self\"", "\"text\"", "\"image\"", "\"hello\"", "\"[[permission]]\"",
    "\"[[usage:9:10]]\"",
    "\"\\u0000\"", "\"\\ud800\"", "\"\u{202e}\"", "\"greenroom:\"", "[]", "{}", "\"",
];
#[rustfmt::skip]
const HEADERS: &[&str] = &[
    "Idempotency-Key: k", "Idempotency-Key: ", "Last-Event-ID: 1", "Last-Event-ID: x",
    "Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: none",
    "Expect: 100-continue", "Range: bytes=0-1", "Cookie: \u{ff}", "X: \t", "Accept-Encoding: gzip",
    "Upgrade: websocket", "Host: evil.example", "Transfer-Encoding: gzip",
];

/// What a run of the fuzz does.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    /// Instead of a number of requests.
    time: Option<Duration>,
}

/// API-2, I11, F3, C16: no request makes the server fail, panic, hang or break its database.
#[test]
fn no_request_makes_the_server_fail() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let time = number("FUZZ_SECONDS").map(Duration::from_secs);
    let plan = Plan { seed: number("FUZZ_SEED").unwrap_or(1), time };
    println!("FUZZ_SEED={}", plan.seed);
    let mut server = Setup::new()
        .asks()
        .text("server", "max_body", "64KiB")
        .text("server", "drain_timeout", "1s")
        .start();
    let routes = server.routes();
    let (mut slowest, mut statuses) = (Duration::ZERO, Vec::new());
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|number| {
            let (server, routes) = (&server, &routes);
            let client = Client {
                server,
                routes,
                random: Random::new(plan.seed, &format!("client {number}")),
                ids: Vec::new(),
            };
            scope.spawn(move || client.run(plan))
        });
        for client in clients.collect::<Vec<_>>() {
            let (slow, seen) = client.join().unwrap();
            slowest = slowest.max(slow);
            statuses.extend(seen);
        }
    });
    println!("{} answers, the slowest after {slowest:?}", statuses.len());
    // A fuzz that reaches nothing tests nothing.
    for status in [200, 202, 400, 403, 404, 405, 415] {
        assert!(statuses.contains(&status), "no {status} in {} answers", statuses.len());
    }
    server.get("/readyz").expect(200);
    for line in server.log.lines() {
        assert!(!line.contains(" ERROR ") && !line.contains("panicked"), "{line}");
    }
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
}

struct Client<'a> {
    server: &'a Server,
    routes: &'a [Route],
    random: Random,
    /// Ids that answers named.
    ids: Vec<String>,
}

impl Client<'_> {
    /// Sends requests; returns the longest wait for an answer, and all statuses.
    fn run(mut self, plan: Plan) -> (Duration, Vec<u16>) {
        let start = Instant::now();
        let (mut slowest, mut statuses) = (Duration::ZERO, Vec::new());
        for number in 0.. {
            if plan.time.map_or(number == REQUESTS, |time| start.elapsed() >= time) {
                break;
            }
            let mut request = self.request();
            let is_sound = !self.random.one_in(4);
            if !is_sound {
                self.damage(&mut request);
            }
            let sent = Instant::now();
            let answer = exchange(self.server, &request, is_sound);
            let took = sent.elapsed();
            let shown = request.escape_ascii();
            let answer = answer.unwrap_or_else(|err| {
                let tail = self.server.log.tail();
                panic!("seed {}: {err} after {took:?}: {shown}\n{tail}", plan.seed)
            });
            slowest = slowest.max(took);
            let Some(reply) = answer else { continue };
            let why = wrong(&reply, is_sound);
            assert!(why.is_none(), "seed {}: {why:?}: {shown}: {reply:?}", plan.seed);
            statuses.push(reply.status);
            self.remember(&reply);
        }
        (slowest, statuses)
    }

    /// Remembers the ids that an answer names.
    fn remember(&mut self, reply: &Reply) {
        let text = reply.text();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
        let kinds = ["tsk_", "run_", "prm_"];
        let is_id =
            |word: &&str| word.len() == 40 && kinds.iter().any(|kind| word.starts_with(kind));
        for id in words.filter(is_id) {
            if self.ids.len() == IDS_MAX {
                self.ids.remove(0);
            }
            self.ids.push(id.to_owned());
        }
    }

    fn request(&mut self) -> Vec<u8> {
        let route = self.random.pick(self.routes).clone();
        let method = match self.random.one_in(8) {
            true => *self.random.pick(METHODS),
            false => self.random.pick(&route.methods).as_str(),
        };
        let mut request = format!("{method} {}{} HTTP/1.1\r\n", self.path(&route), self.query());
        _ = write!(request, "Host: {}\r\nConnection: close\r\n", self.server.address());
        while self.random.one_in(3) {
            request += *self.random.pick(HEADERS);
            request += "\r\n";
        }
        let mut body = String::new();
        if !["GET", "HEAD"].contains(&method) && !self.random.one_in(4) {
            self.object(&mut body, 3);
            let kinds = [(9, "application/json"), (1, "text/plain"), (1, "application/x-y")];
            _ = write!(request, "Content-Type: {}\r\n", self.random.weighed(&kinds));
            if self.random.one_in(8) {
                body = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                request += "Transfer-Encoding: chunked\r\n";
            } else {
                _ = write!(request, "Content-Length: {}\r\n", body.len());
            }
        }
        (request + "\r\n" + &body).into_bytes()
    }

    fn path(&mut self, route: &Route) -> String {
        let known = self.ids.clone();
        let mut id = |prefix: &str| {
            let fits: Vec<&String> = known.iter().filter(|id| id.starts_with(prefix)).collect();
            match fits[..] {
                [] => format!("{prefix}01890000-0000-7000-8000-000000000000"),
                _ => (*self.random.pick(&fits)).clone(),
            }
        };
        let (task, run, permission) = (id("tsk_"), id("run_"), id("prm_"));
        let group = match self.random.one_in(3) {
            true => *self.random.pick(GROUPS),
            false => self.random.pick(&GROUPS[..3]),
        };
        let ids = [
            ("group", group),
            ("task", &*task),
            ("run", &*run),
            ("permission", &*permission),
            ("key", group),
        ];
        route.path(&ids)
    }

    fn query(&mut self) -> String {
        let mut query = String::new();
        while self.random.one_in(2) && query.len() < 200 {
            let sign = if query.is_empty() { '?' } else { '&' };
            let (name, value) = (self.random.pick(PARAMETERS), self.random.pick(VALUES));
            _ = write!(query, "{sign}{name}={value}");
        }
        query
    }

    fn object(&mut self, json: &mut String, depth: u64) {
        json.push('{');
        let mut separator = "";
        // A turn is the only request with a field that it must have alone.
        if self.random.one_in(3) {
            *json += "\"prompt\":\"hello\"";
            separator = ",";
        }
        while !self.random.one_in(3) {
            _ = write!(json, "{separator}\"{}\":", self.random.pick(FIELDS));
            self.value(json, depth);
            separator = ",";
        }
        json.push('}');
    }

    fn value(&mut self, json: &mut String, depth: u64) {
        match self.random.between(0, 9) {
            0 if depth > 0 => self.object(json, depth - 1),
            1 if depth > 0 => {
                json.push('[');
                self.object(json, depth - 1);
                json.push(']');
            }
            2 if self.random.one_in(8) => {
                let deep = 200;
                *json += &"[".repeat(deep);
                *json += &"]".repeat(deep);
            }
            3 if self.random.one_in(16) => _ = write!(json, "\"{}\"", "x".repeat(70_000)),
            _ => *json += *self.random.pick(SCALARS),
        }
    }

    /// Changes, drops, repeats and adds bytes.
    fn damage(&mut self, request: &mut Vec<u8>) {
        for _ in 0..self.random.between(1, 4) {
            let length = request.len() as u64;
            if length < 2 {
                return;
            }
            let at = self.random.between(0, length - 1) as usize;
            let end = (at + self.random.between(1, 16) as usize).min(request.len());
            match self.random.between(0, 4) {
                0 => request[at] = self.random.between(0, 255) as u8,
                1 => drop(request.drain(at..end)),
                2 => request.truncate(at),
                3 => {
                    let piece = request[at..end].to_vec();
                    drop(request.splice(at..at, piece));
                }
                _ => request.insert(at, *self.random.pick(b"\r\n\0 :%/?\xff")),
            }
        }
    }
}

/// Sends a request; what `is_sound` waits for its answer, else for the end that it announces by
/// closing its half. Returns the answer, if there is one.
///
/// # Errors
///
/// The answer did not come in time.
fn exchange(server: &Server, request: &[u8], is_sound: bool) -> Result<Option<Reply>, ErrorKind> {
    let mut stream = TcpStream::connect(server.address()).map_err(|err| err.kind())?;
    stream.set_read_timeout(Some(ANSWER)).map_err(|err| err.kind())?;
    // The server may refuse and close before it has read all bytes.
    drop(stream.write_all(request));
    if !is_sound {
        drop(stream.shutdown(Shutdown::Write));
    }
    let (mut answer, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        let has_ended = match stream.read(&mut piece) {
            Ok(0) => true,
            Ok(read) => {
                answer.extend_from_slice(&piece[..read]);
                false
            }
            Err(err) if err.kind() == ErrorKind::ConnectionReset => true,
            Err(err) => return Err(err.kind()),
        };
        // The server asks for the body, which it has already.
        while answer.starts_with(b"HTTP/1.1 100 ") {
            let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { break };
            answer.drain(..end + 4);
        }
        let reply = parse(&answer, true);
        let is_stream = |reply: &Reply| reply.header("content-type") == Some("text/event-stream");
        let is_whole = has_ended || parse(&answer, false).is_some();
        if is_whole || reply.as_ref().is_some_and(is_stream) {
            return Ok(reply);
        }
    }
}

/// What is wrong with an answer, if anything is.
fn wrong(reply: &Reply, is_sound: bool) -> Option<String> {
    let kind = reply.header("content-type").unwrap_or_default();
    if reply.status >= 500 {
        let problem: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        // A documented limit; or the group's actor ends, as the group was purged.
        let is_limit = reply.status == 503 && reply.header("retry-after").is_some();
        let slug = problem["type"].as_str().unwrap_or_default();
        let is_failure = ["/problems/storage-unavailable", "/problems/draining"].contains(&slug);
        return (!is_limit || is_failure).then(|| format!("{} {slug}", reply.status));
    }
    let is_problem = kind == "application/problem+json";
    let is_of_server = is_sound && !reply.body.is_empty();
    (reply.status >= 400 && is_of_server && !is_problem).then(|| format!("no problem: {kind:?}"))
}
