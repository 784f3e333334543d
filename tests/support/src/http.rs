//! A small HTTP client: every status is a reply; it neither follows redirects nor retries.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;
use ureq::http::Request;

/// How long a [`Connection`] waits for an answer: longer than any `wait`.
const ANSWER: Duration = Duration::from_secs(90);

/// An HTTP response, read to its end.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|err| panic!("not JSON ({err}): {} {}", self.status, self.text()))
    }

    /// The body as JSON, if the status is as expected.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        self.expect_any(&[status])
    }

    /// The body as JSON, if the status is one of these.
    #[track_caller]
    pub fn expect_any(&self, statuses: &[u16]) -> Value {
        let Self { status, body, .. } = self;
        assert!(statuses.contains(status), "{status} is not {statuses:?}, body: {}", self.text());
        if body.is_empty() { Value::Null } else { self.json() }
    }

    /// The body, if it is an RFC 9457 problem of that status.
    #[track_caller]
    pub fn any_problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "body: {}", self.text());
        let kind = self.header("content-type").unwrap_or_default();
        assert!(
            kind.starts_with("application/problem+json"),
            "content type {kind:?}, body: {}",
            self.text()
        );
        let problem = self.json();
        let slug = problem["type"].as_str().unwrap_or_default();
        assert!(slug.starts_with("/problems/"), "type of {problem}");
        assert_eq!(problem["status"], status, "status of {problem}");
        for name in ["title", "detail"] {
            let text = problem[name].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{name} of {problem}");
        }
        problem
    }

    /// [`Self::any_problem`] with the type `/problems/SLUG`.
    #[track_caller]
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        let problem = self.any_problem(status);
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
        problem
    }
}

/// Returns a client whose exchanges last at most this long. It has no pool, so that no connection
/// is reused after a restart of the server.
pub fn client(longest: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        .timeout_global(Some(longest))
        .proxy(None)
        .build()
        .new_agent()
}

/// Sends one request; `Err` if no response came.
pub fn exchange(
    client: &ureq::Agent,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Result<Reply, ureq::Error> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = match body {
        Some(body) => client.run(request.body(body)?)?,
        None => client.run(request.body(())?)?,
    };
    let (parts, mut body) = response.into_parts();
    let headers = parts.headers.iter().map(|(name, value)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    Ok(Reply {
        status: parts.status.as_u16(),
        headers: headers.collect(),
        body: body.with_config().limit(u64::MAX).read_to_vec()?,
    })
}

/// A connection that stays open between requests, which are sent byte for byte.
pub struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nothing listens.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self { stream, answer: Vec::new() })
    }

    /// Sends a request, and reads its response: its body ends with the connection, or has the
    /// announced length. A connection that is closed without a response gives status 0.
    ///
    /// # Errors
    ///
    /// The connection failed before there was a response.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Reply> {
        // The server may refuse and close before it has read all bytes.
        drop(self.stream.write_all(request));
        self.answer.clear();
        let mut piece = [0; 16 << 10];
        loop {
            match self.stream.read(&mut piece) {
                Ok(read) if read > 0 => self.answer.extend_from_slice(&piece[..read]),
                Err(err) if self.answer.is_empty() => return Err(err),
                _ => return Ok(parse(&self.answer, true).unwrap_or_default()),
            }
            if let Some(reply) = parse(&self.answer, false) {
                return Ok(reply);
            }
        }
    }
}

/// Parses a response; `None` until it is complete, unless it `has_ended`.
pub fn parse(answer: &[u8], has_ended: bool) -> Option<Reply> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.into(), value.trim().into())).collect();
    let mut reply = Reply { status: status.unwrap_or(0), headers, body: Vec::new() };
    let length: Option<usize> = reply.header("content-length").and_then(|text| text.parse().ok());
    if !has_ended && length.is_none_or(|length| body.len() < length) {
        return None;
    }
    reply.body = body.to_vec();
    Some(reply)
}
