//! What the command line needs of HTTP: JSON there and back, problems as errors, event streams.
//!
//! Blocking; follows no redirect and uses no proxy, since both would carry the token elsewhere.

mod sse;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

pub use self::sse::{Event, Events};

/// Where a server listens when nobody says otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7433";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take beyond what it was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Silence after which a stream is taken for dead: the server comments every 15 s.
const STREAM_TIMEOUT: Duration = Duration::from_secs(45);

/// Most bytes of one JSON answer: 1,000 tasks with 1 MiB of text each would not fit, and need not.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Why a request did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot use {url:?} as the server's URL: {reason}")]
    BadUrl { url: String, reason: String },
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// The server's answer, as RFC 9457 has it.
    #[error("{message}")]
    Problem { status: u16, message: String },
    #[error("cannot understand the answer of {url}: {reason}")]
    BadAnswer { url: String, reason: String },
}

/// One server.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// # Errors
    ///
    /// [`ClientError::BadUrl`] unless `url` starts with `http://`.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/').to_owned();
        let bad = |reason: &str| ClientError::BadUrl { url: url.to_owned(), reason: reason.into() };
        if base.starts_with("https:") {
            return Err(bad(
                "this client does not speak TLS; use a tunnel to the server's machine",
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

    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.get_waiting(path, Duration::ZERO)
    }

    /// GET of something that may take `wait` to answer.
    pub fn get_waiting(&self, path: &str, wait: Duration) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.get(self.url(path)));
        let request = request.config().timeout_recv_response(Some(wait + ANSWER_TIMEOUT)).build();
        self.json(path, request.call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.post(self.url(path)));
        let request = request
            .header("content-type", "application/json")
            .config()
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .build();
        self.json(path, request.send(body.to_string()))
    }

    /// All items of a list, page by page.
    pub fn items(&self, path: &str) -> Result<Vec<Value>, ClientError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = match &cursor {
                Some(cursor) => {
                    let joint = if path.contains('?') { '&' } else { '?' };
                    self.get(&format!("{path}{joint}cursor={}", encode(cursor)))?
                }
                None => self.get(path)?,
            };
            items.extend(page["items"].as_array().into_iter().flatten().cloned());
            match page["next_cursor"].as_str() {
                // A cursor that does not move would never end.
                Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
                _ => return Ok(items),
            }
        }
    }

    /// Opens a stream of events, after the one with id `last_id` if there is one.
    pub fn events(
        &self,
        path: &str,
        last_id: Option<&str>,
    ) -> Result<Events<impl BufRead + use<>>, ClientError> {
        let mut request =
            self.with_token(self.agent.get(self.url(path))).header("accept", "text/event-stream");
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
                Ok(_) => Err(self.bad_answer(path, "it is no event stream")),
            };
        }
        Ok(Events::new(BufReader::new(response.into_body().into_reader())))
    }

    fn url(&self, path: &str) -> String {
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
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .lossy_utf8(true)
            .read_to_string()
            .map_err(|error| self.bad_answer(path, &error.to_string()))?;
        let body: Result<Value, _> = serde_json::from_str(&text);
        if !status.is_success() {
            let message = problem(status.as_u16(), body.as_ref().ok());
            return Err(ClientError::Problem { status: status.as_u16(), message });
        }
        body.map_err(|error| self.bad_answer(path, &error.to_string()))
    }

    fn unreachable(&self, error: &ureq::Error) -> ClientError {
        let reason = match error {
            ureq::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        };
        ClientError::Unreachable { url: self.base.clone(), reason }
    }

    fn bad_answer(&self, path: &str, reason: &str) -> ClientError {
        ClientError::BadAnswer { url: self.url(path), reason: reason.into() }
    }
}

/// `title: detail` of a problem, or what can be said without one.
fn problem(status: u16, body: Option<&Value>) -> String {
    let field = |name: &str| body.and_then(|body| body[name].as_str());
    match (field("title"), field("detail")) {
        (Some(title), Some(detail)) => format!("{title}: {detail}"),
        (Some(title), None) => title.to_owned(),
        (None, Some(detail)) => format!("status {status}: {detail}"),
        (None, None) => format!("the server answered with status {status}"),
    }
}

/// Percent-encodes `text` for one segment of a path or one value of a query (RFC 3986 `pchar`, less
/// what separates there).
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'@' => {
                encoded.push(char::from(byte));
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        encoded
    })
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
    fn urls_that_cannot_work_are_refused() {
        for url in ["", "127.0.0.1:7433", "http://", "https://greenroom.example", "ftp://x"] {
            assert!(Client::new(url, None).is_err(), "{url:?}");
        }
        assert_eq!(Client::new("http://a:1/", None).unwrap().url("/v1"), "http://a:1/v1");
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
    fn a_stream_goes_on_after_an_id() {
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
    fn a_server_that_is_not_there_is_said_to_be_unreachable() {
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let error = client.get("/v1/status").unwrap_err();
        assert!(error.to_string().starts_with("cannot reach http://127.0.0.1:1: "), "{error}");
    }
}
