//! The blocking client of the collector: one POST per batch, and the meaning of its answer.
//!
//! It follows no redirect and uses no proxy: both would send the headers to another server.

use std::{collections::BTreeMap, io::Read as _, time::Duration};

use greenroom_actors::secrets;
use serde_json::Value;
use ureq::{Agent, Body, http::Response};

/// Maximum bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Maximum characters of the collector's message that are kept.
const MESSAGE_MAX: usize = 200;

/// The client of one collector.
pub struct Collector {
    agent: Agent,
    url: String,
    headers: BTreeMap<String, String>,
}

/// The result of sending a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum ExportResult {
    /// The collector accepted the batch, except `rejected` spans, with its reason.
    Accepted { rejected: u64, message: String },
    /// The collector refused the batch; a retry cannot succeed.
    Refused { status: u16, message: String },
    /// The batch may be accepted on a retry.
    Retryable {
        /// The status of the answer; `None` without an answer.
        status: Option<u16>,
        message: String,
        /// The minimal wait that the collector requests.
        retry_after: Option<Duration>,
    },
}

impl Collector {
    pub fn new(url: &str, headers: BTreeMap<String, String>) -> Self {
        let agent = Agent::new_with_config(
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(None)
                .user_agent(concat!("greenroom/", env!("CARGO_PKG_VERSION")))
                .build(),
        );
        Self { agent, url: url.to_owned(), headers }
    }

    /// Sends one batch; waits for the answer at most `timeout`.
    pub fn send(&self, body: &[u8], timeout: Duration) -> ExportResult {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match request.config().timeout_global(Some(timeout)).build().send(body) {
            Ok(response) => read_answer(response),
            Err(err) => {
                let message = shown(&err.to_string());
                ExportResult::Retryable { status: None, message, retry_after: None }
            }
        }
    }
}

fn read_answer(response: Response<Body>) -> ExportResult {
    let status = response.status().as_u16();
    let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let seconds = header.and_then(|text| text.trim().parse().ok());
    let retry_after = seconds.map(Duration::from_secs);
    let mut body = Vec::new();
    // The status decides; the body only has a message. It is read to its end to keep the
    // connection.
    _ = response.into_body().into_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut body);
    classify(status, retry_after, &body)
}

/// Returns the meaning of an answer.
fn classify(status: u16, retry_after: Option<Duration>, body: &[u8]) -> ExportResult {
    match status {
        200..=299 => accepted(body),
        408 | 429 | 500..=599 => {
            ExportResult::Retryable { status: Some(status), message: message(body), retry_after }
        }
        _ => ExportResult::Refused { status, message: message(body) },
    }
}

/// Reads the answer of a collector that accepted a batch, or a part of it.
fn accepted(body: &[u8]) -> ExportResult {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    let rejected = &partial["rejectedSpans"];
    // OTLP allows a 64-bit integer as text or as a number.
    let rejected = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0);
    let message = partial["errorMessage"].as_str().unwrap_or_default();
    ExportResult::Accepted { rejected, message: shown(message) }
}

/// Returns the message of an error's body: `Status.message`, or the whole body.
fn message(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    match answer["message"].as_str() {
        Some(message) => shown(message),
        None => shown(&String::from_utf8_lossy(body)),
    }
}

/// Returns a text as a short line, which the log escapes. A collector may name the header that it
/// refuses.
fn shown(text: &str) -> String {
    let words = secrets::redacted_cut(text);
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_as_otlp_defines() {
        let retryable = |status, message: &str, retry_after| ExportResult::Retryable {
            status: Some(status),
            message: message.into(),
            retry_after,
        };
        let accepted =
            |rejected, message: &str| ExportResult::Accepted { rejected, message: message.into() };
        let refused =
            |status, message: &str| ExportResult::Refused { status, message: message.into() };
        let second = Some(Duration::from_secs(1));
        #[rustfmt::skip]
        let cases = [
            (200, None,   "{}",                                                            accepted(0, "")),
            (200, None,   "",                                                              accepted(0, "")),
            (202, None,   "not json",                                                      accepted(0, "")),
            (200, None,   r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}"#, accepted(3, "x")),
            (200, None,   r#"{"partialSuccess":{"rejectedSpans":3}}"#,                     accepted(3, "")),
            (200, None,   r#"{"partialSuccess":{"errorMessage":"slow down"}}"#,            accepted(0, "slow down")),
            (302, None,   "",                                                              refused(302, "")),
            (400, None,   r#"{"code":3,"message":"bad\nspan\u001b[31m"}"#,                 refused(400, "bad span\u{1b}[31m")),
            (401, None,   "who?",                                                          refused(401, "who?")),
            (404, second, "",                                                              refused(404, "")),
            (413, None,   "",                                                              refused(413, "")),
            (408, None,   "",                                                              retryable(408, "", None)),
            (429, second, "",                                                              retryable(429, "", second)),
            (500, None,   "oh",                                                            retryable(500, "oh", None)),
            (501, None,   "",                                                              retryable(501, "", None)),
            (502, None,   "",                                                              retryable(502, "", None)),
            (503, second, "",                                                              retryable(503, "", second)),
            (504, None,   "",                                                              retryable(504, "", None)),
            (505, None,   "",                                                              retryable(505, "", None)),
        ];
        for (status, retry_after, body, expected) in cases {
            assert_eq!(classify(status, retry_after, body.as_bytes()), expected, "{status} {body}");
        }
        let ExportResult::Refused { message, .. } =
            classify(400, None, "x".repeat(1000).as_bytes())
        else {
            panic!("not refused");
        };
        assert_eq!(message.chars().count(), MESSAGE_MAX);
    }
}
