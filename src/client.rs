//! The blocking HTTP client of CLI and demo: JSON both ways, problems as errors, event streams.
//!
//! It follows no redirect and uses no proxy: both would send the token to another server.

mod retry;
mod sse;

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, ErrorKind},
    time::Duration,
};

use greenroom_core::json::readable;
use serde_json::Value;
use ureq::{Agent, Body, Timeout, http::Response};

pub use self::{
    retry::Backoff,
    sse::{Event, Events},
};

/// The address of a server with the default configuration.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7433";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take beyond the `wait` of the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Silence after which a stream counts as broken: the server sends a comment every 15 s.
const STREAM_TIMEOUT: Duration = Duration::from_secs(45);

/// Maximum bytes of one JSON answer; 1,000 tasks with 1 MiB of text each are over it.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot use {url:?} as the server's URL: {reason}")]
    BadUrl { url: String, reason: String },
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        url: String,
        reason: String,
        /// Whether the connection was established, and then closed without an answer.
        connected: bool,
    },
    /// The server answered with an error status, usually as an RFC 9457 problem.
    #[error("{message}")]
    Problem {
        status: u16,
        message: String,
        /// The problem document, if the answer is one, so that greenroom itself sent it.
        document: Option<Box<Value>>,
    },
    #[error("cannot understand the answer of {url}: {reason}")]
    BadAnswer { url: String, reason: String },
    /// The answer was truncated.
    #[error("the answer of {url} was truncated: {reason}")]
    Truncated { url: String, reason: String },
}

impl ClientError {
    /// Whether a retry may succeed: the server, or a proxy in front of it, is unreachable, busy or
    /// restarting. A 500 of greenroom itself is permanent until an operator repairs the cause.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Problem { status: 429 | 502..=504, .. } => true,
            Self::Problem { status, document, .. } => *status == 500 && document.is_none(),
            Self::Unreachable { .. } | Self::Truncated { .. } => true,
            Self::BadUrl { .. } | Self::BadAnswer { .. } => false,
        }
    }
}

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// Returns a client of the server at `url`.
    ///
    /// # Errors
    ///
    /// [`ClientError::BadUrl`] unless `url` starts with `http://`.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/').to_owned();
        let bad = |reason: &str| ClientError::BadUrl { url: url.to_owned(), reason: reason.into() };
        if base.starts_with("https:") {
            return Err(bad(
                "this client does not support TLS; use a tunnel to the server's machine",
            ));
        }
        if base.strip_prefix("http://").is_none_or(str::is_empty) {
            return Err(bad("it must be like http://127.0.0.1:7433"));
        }
        let agent = Agent::new_with_config(
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(None)
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .user_agent(concat!("greenroom/", env!("CARGO_PKG_VERSION")))
                .build(),
        );
        Ok(Client { agent, base, token })
    }

    /// Returns the server's URL, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.base
    }

    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.get_waiting(path, Duration::ZERO)
    }

    /// Sends a GET that the server may take `wait` to answer.
    pub fn get_waiting(&self, path: &str, wait: Duration) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.get(self.url_of(path)));
        let request = request
            .config()
            .timeout_recv_response(Some(wait + ANSWER_TIMEOUT))
            .timeout_per_read(Some(wait + ANSWER_TIMEOUT))
            .build();
        self.json(path, request.call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.post_with_key(None, path, body)
    }

    /// Sends a POST with an idempotency key: the server executes it once, even if it is retried.
    pub fn post_once(&self, key: &str, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.post_with_key(Some(key), path, body)
    }

    fn post_with_key(
        &self,
        key: Option<&str>,
        path: &str,
        body: &Value,
    ) -> Result<Value, ClientError> {
        let mut request = self.with_token(self.agent.post(self.url_of(path)));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request
            .header("content-type", "application/json")
            .config()
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(ANSWER_TIMEOUT))
            .build();
        self.json(path, request.send(body.to_string()))
    }

    /// Reads all items of a list, page by page. Every page after the first is retried.
    pub fn items(&self, path: &str) -> Result<Vec<Value>, ClientError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        let mut backoff = Backoff::bounded();
        loop {
            let page = match &cursor {
                Some(cursor) => {
                    let separator = if path.contains('?') { '&' } else { '?' };
                    match self.get(&format!("{path}{separator}cursor={}", encode(cursor))) {
                        Ok(page) => page,
                        Err(error) => {
                            backoff.pause_after(error)?;
                            continue;
                        }
                    }
                }
                None => self.get(path)?,
            };
            backoff.progressed();
            items.extend(page["items"].as_array().into_iter().flatten().cloned());
            match page["next_cursor"].as_str() {
                // A cursor that does not advance would loop for ever.
                Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
                _ => return Ok(items),
            }
        }
    }

    /// Opens an event stream that starts after the event `last_id`, or at the server's default.
    pub fn events(
        &self,
        path: &str,
        last_id: Option<&str>,
    ) -> Result<Events<impl BufRead + use<>>, ClientError> {
        let mut request = self
            .with_token(self.agent.get(self.url_of(path)))
            .header("accept", "text/event-stream");
        if let Some(last_id) = last_id {
            request = request.header("last-event-id", last_id);
        }
        let request = request
            .config()
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(STREAM_TIMEOUT))
            .build();
        let response = request.call().map_err(|error| self.unreachable(&error))?;
        if response.status().as_u16() != 200 {
            return match self.json(path, Ok(response)) {
                Err(error) => Err(error),
                Ok(_) => Err(self.bad_answer(path, "it is not an event stream")),
            };
        }
        Ok(Events::new(BufReader::new(response.into_body().into_reader())))
    }

    fn url_of(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn with_token<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn json(
        &self,
        path: &str,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Value, ClientError> {
        let mut response = answer.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let reading = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).lossy_utf8(true);
        let text = reading.read_to_string();
        if !status.is_success() {
            let body = text.ok().and_then(|text| read_json(&text).ok());
            let message = problem(status.as_u16(), body.as_ref());
            let document = body.filter(|body| body["title"].is_string()).map(Box::new);
            return Err(ClientError::Problem { status: status.as_u16(), message, document });
        }
        let text = text.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => self.bad_answer(path, &error.to_string()),
            error => self.truncated(path, &error),
        })?;
        read_json(&text).map_err(|error| match error.is_eof() {
            true => self.truncated(path, &error),
            false => self.bad_answer(path, &error.to_string()),
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> ClientError {
        let reason = match error {
            ureq::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        };
        let connected = match error {
            ureq::Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
            ),
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::BadUri(_) => false,
            _ => true,
        };
        ClientError::Unreachable { url: self.base.clone(), reason, connected }
    }

    fn truncated(&self, path: &str, error: &dyn std::error::Error) -> ClientError {
        ClientError::Truncated { url: self.url_of(path), reason: error.to_string() }
    }

    fn bad_answer(&self, path: &str, reason: &str) -> ClientError {
        ClientError::BadAnswer { url: self.url_of(path), reason: reason.into() }
    }
}

/// Returns `title: detail` of a problem, or a message with the status if it has neither.
fn problem(status: u16, body: Option<&Value>) -> String {
    let field = |name: &str| body.and_then(|body| body[name].as_str());
    match (field("title"), field("detail")) {
        (Some(title), Some(detail)) => format!("{title}: {detail}"),
        (Some(title), None) => title.to_owned(),
        (None, Some(detail)) => format!("status {status}: {detail}"),
        (None, None) => format!("the server answered with status {status}"),
    }
}

/// Parses JSON of a server that may show an agent's words as the agent wrote them, as earlier
/// versions do: see [`readable`].
///
/// # Errors
///
/// The parse error if it is no JSON.
pub fn read_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|err| serde_json::from_str(&readable(text)).map_err(|_| err))
}

/// Percent-encodes `text` for one path segment or one query value: RFC 3986 `pchar` without the
/// characters that separate.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'@' => {
                encoded.push(char::from(byte));
            }
            _ => {
                _ = write!(encoded, "%{byte:02X}");
            }
        }
        encoded
    })
}

/// Whether a task's JSON shows a terminal state.
pub fn is_terminal(task: &Value) -> bool {
    let states = ["completed", "failed", "cancelled", "interrupted", "skipped"];
    task["state"].as_str().is_some_and(|state| states.contains(&state))
}

#[cfg(test)]
pub mod fake;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::fake::{Reply, Server};
    use super::*;

    #[test]
    fn unusable_urls_are_refused() {
        for url in ["", "127.0.0.1:7433", "http://", "https://greenroom.example", "ftp://x"] {
            assert!(Client::new(url, None).is_err(), "{url:?}");
        }
        assert_eq!(Client::new("http://a:1/", None).unwrap().url_of("/v1"), "http://a:1/v1");
    }

    /// C15: an odd word in an answer is shown, and the rest of the answer with it.
    #[test]
    fn what_strict_readers_refuse_is_read() {
        let odd = r#"{"a":"cut \ud83d","b":[-1e999],"c":"ä"}"#;
        let expected = json!({ "a": "cut \u{fffd}", "b": ["-1e999"], "c": "ä" });
        assert_eq!(read_json(odd).unwrap(), expected);
        let deep = format!(r#"{{"a":{}{},"b":{{"c":"]"}}}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(read_json(&deep).unwrap()["b"]["c"], "]");
        for bad in ["", "{", r#"{"a":"\ud83d"#, "nul", r#"{"a":"\x"}"#] {
            assert!(read_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(encode("aZ09-._~"), "aZ09-._~");
        assert_eq!(encode("a/b?c#d é%:@"), "a%2Fb%3Fc%23d%20%C3%A9%25:@");
    }

    #[test]
    fn a_problem_is_shown_as_title_and_detail() {
        let cases = [
            (Some(json!({"title": "T", "detail": "d"})), "T: d"),
            (Some(json!({"title": "T"})), "T"),
            (Some(json!({"detail": "d"})), "status 503: d"),
            (Some(json!([])), "the server answered with status 503"),
            (None, "the server answered with status 503"),
        ];
        for (body, expected) in cases {
            assert_eq!(problem(503, body.as_ref()), expected);
        }
    }

    #[test]
    fn a_request_carries_token_and_body_and_gives_the_answer() {
        let server = Server::start(vec![
            Reply::json(202, r#"{"id":"tsk_1"}"#),
            Reply::json(429, r#"{"title":"Queue full","detail":"1000 wait"}"#),
            Reply::json(200, "no json"),
        ]);
        let client = Client::new(server.url(), Some("grn_x".into())).unwrap();
        let answer = client.post("/v1/groups/a%2Fb/turns", &json!({"prompt": "hi"}));
        assert_eq!(answer.unwrap(), json!({"id": "tsk_1"}));
        let answer = client.get("/v1/status").unwrap_err();
        assert!(matches!(answer, ClientError::Problem { status: 429, .. }));
        assert_eq!(answer.to_string(), "Queue full: 1000 wait");
        let answer = client.get("/v1/status").unwrap_err();
        assert!(matches!(answer, ClientError::BadAnswer { .. }), "{answer}");

        let requests = server.requests();
        assert!(requests[0].starts_with("POST /v1/groups/a%2Fb/turns HTTP/1.1\r\n"));
        let head = requests[0].to_ascii_lowercase();
        assert!(head.contains("\r\nauthorization: bearer grn_x\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n{\"prompt\":\"hi\"}"), "{head}");
    }

    #[test]
    fn transient_errors_are_distinguished_from_final_ones() {
        let problem = |status, is_document: bool| {
            let (message, document) = (String::new(), is_document.then(Box::default));
            ClientError::Problem { status, message, document }.is_transient()
        };
        for status in [300, 400, 401, 404, 409, 413, 422, 499, 501, 505, 507] {
            assert!(!problem(status, true) && !problem(status, false), "{status}");
        }
        for status in [429, 502, 503, 504] {
            assert!(problem(status, true) && problem(status, false), "{status}");
        }
        assert!(problem(500, false) && !problem(500, true), "greenroom's own 500 is permanent");
        let broken = Reply::json(500, r#"{"title":"Group broken","detail":"d","status":500}"#);
        let server = Server::start(vec![broken, Reply::json(500, "<html>")]);
        let client = Client::new(server.url(), None).unwrap();
        let transient = || client.get("/v1/groups/a").map_err(|error| error.is_transient());
        assert_eq!((transient(), transient()), (Err(false), Err(true)));
        let whole = r#"{"id":"tsk_1"}"#;
        let server = Server::start(vec![
            Reply::json(200, whole).truncate(1),
            Reply::json(200, &whole[..5]),
            Reply::json(200, ""),
            Reply::chunked(whole).truncate(1),
            Reply::json(200, whole).truncate(whole.len() + 20),
            Reply::json(502, whole).truncate(1),
            Reply::json(404, whole).truncate(1),
            Reply::json(200, "<html>"),
            Reply::chunked(whole),
        ]);
        let client = Client::new(server.url(), None).unwrap();
        let transient = || client.get("/v1/tasks/tsk_1").map_err(|error| error.is_transient());
        for name in ["body", "JSON", "nothing", "chunks", "head", "problem"] {
            assert_eq!(transient(), Err(true), "{name}");
        }
        assert_eq!((transient(), transient()), (Err(false), Err(false)), "a final status; no JSON");
        assert_eq!(transient().unwrap()["id"], "tsk_1");
        assert_eq!(transient(), Err(true), "the server has ended");
    }

    #[test]
    fn a_list_survives_a_restart_between_two_pages() {
        let server = Server::start(vec![
            Reply::json(200, r#"{"items":[1],"next_cursor":"a"}"#),
            Reply::json(502, ""),
            Reply::json(200, r#"{"items":[2],"next_cursor":null}"#).truncate(3),
            Reply::json(200, r#"{"items":[2],"next_cursor":null}"#),
            Reply::json(503, ""),
        ]);
        let client = Client::new(server.url(), None).unwrap();
        assert_eq!(client.items("/v1/groups").unwrap(), [json!(1), json!(2)]);
        assert!(server.requests()[3].starts_with("GET /v1/groups?cursor=a "));
        client.items("/v1/groups").expect_err("the first page is not retried");
    }

    #[test]
    fn lists_are_read_page_by_page() {
        let server = Server::start(vec![
            Reply::json(200, r#"{"items":[1,2],"next_cursor":"a b"}"#),
            Reply::json(200, r#"{"items":[3],"next_cursor":null}"#),
        ]);
        let client = Client::new(server.url(), None).unwrap();
        assert_eq!(client.items("/v1/groups").unwrap(), [json!(1), json!(2), json!(3)]);
        assert!(server.requests()[1].starts_with("GET /v1/groups?cursor=a%20b "));
    }

    #[test]
    fn a_stream_resumes_after_the_last_event_id() {
        let server = Server::start(vec![
            Reply::events("id: 8\ndata: x\n\n"),
            Reply::json(404, r#"{"title":"No such group"}"#),
        ]);
        let client = Client::new(server.url(), None).unwrap();
        let events: Vec<Event> =
            client.events("/e", Some("7")).unwrap().map(Result::unwrap).collect();
        assert_eq!(events[0].id.as_deref(), Some("8"));
        assert_eq!(client.events("/e", None).err().unwrap().to_string(), "No such group");
        assert!(server.requests()[0].to_ascii_lowercase().contains("\r\nlast-event-id: 7\r\n"));
    }

    #[test]
    fn a_missing_server_is_unreachable() {
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let error = client.get("/v1/status").unwrap_err();
        assert!(error.to_string().starts_with("cannot reach http://127.0.0.1:1: "), "{error}");
        assert!(matches!(error, ClientError::Unreachable { connected: false, .. }), "{error:?}");
        let server = Server::start(vec![Reply::json(200, "{}").truncate(usize::MAX)]);
        let client = Client::new(server.url(), None).unwrap();
        let error = client.get("/v1/status").unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { connected: true, .. }), "{error:?}");
    }
}
