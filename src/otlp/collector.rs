//! The collector: one POST a batch, and what its answer means. Blocking.
//!
//! Follows no redirect and uses no proxy: both would carry the headers elsewhere.

use std::{collections::BTreeMap, io::Read as _, time::Duration};

use serde_json::Value;
use ureq::{Agent, Body, http::Response};

use crate::text::one_line;

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Most characters of the collector's words that are kept.
const WORDS_MAX: usize = 200;

/// Where spans go.
pub struct Collector {
    agent: Agent,
    url: String,
    headers: BTreeMap<String, String>,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The collector has it, but for so many of its spans, for which it says why.
    Taken { rejected: u64, words: String },
    /// It will not take this batch, however often it is sent.
    Refused { status: u16, words: String },
    /// Not now.
    Later {
        /// The collector's answer, if it gave one.
        status: Option<u16>,
        words: String,
        /// So long at least, if the collector says so.
        after: Option<Duration>,
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

    /// Sends one batch, and waits for the answer no longer than `timeout`.
    pub fn send(&self, body: &[u8], timeout: Duration) -> Verdict {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match request.config().timeout_global(Some(timeout)).build().send(body) {
            Ok(response) => verdict(response),
            Err(err) => {
                let words = one_line(&err.to_string(), WORDS_MAX);
                Verdict::Later { status: None, words, after: None }
            }
        }
    }
}

fn verdict(response: Response<Body>) -> Verdict {
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").and_then(|after| after.to_str().ok());
    let after = after.and_then(|after| after.trim().parse().ok()).map(Duration::from_secs);
    let mut body = Vec::new();
    // The status says it all; the rest is words. Read to its end, so that the connection is kept.
    _ = response.into_body().into_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut body);
    weigh(status, after, &body)
}

/// What an answer means.
fn weigh(status: u16, after: Option<Duration>, body: &[u8]) -> Verdict {
    match status {
        200..=299 => taken(body),
        408 | 429 | 500..=599 => Verdict::Later { status: Some(status), words: words(body), after },
        _ => Verdict::Refused { status, words: words(body) },
    }
}

/// The answer of a collector that took a batch, or a part of it.
fn taken(body: &[u8]) -> Verdict {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    let rejected = &partial["rejectedSpans"];
    // A 64-bit integer: text, or a number.
    let rejected = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0);
    let words = partial["errorMessage"].as_str().unwrap_or_default();
    Verdict::Taken { rejected, words: one_line(words, WORDS_MAX) }
}

/// What an error's body says: `Status.message`, or all of it.
fn words(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    match answer["message"].as_str() {
        Some(message) => one_line(message, WORDS_MAX),
        None => one_line(&String::from_utf8_lossy(body), WORDS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_otlp_says() {
        let later = |status, words: &str, after| Verdict::Later {
            status: Some(status),
            words: words.into(),
            after,
        };
        let taken = |rejected, words: &str| Verdict::Taken { rejected, words: words.into() };
        let refused = |status, words: &str| Verdict::Refused { status, words: words.into() };
        let second = Some(Duration::from_secs(1));
        #[rustfmt::skip]
        let cases = [
            (200, None,   "{}",                                                            taken(0, "")),
            (200, None,   "",                                                              taken(0, "")),
            (202, None,   "not json",                                                      taken(0, "")),
            (200, None,   r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}"#, taken(3, "x")),
            (200, None,   r#"{"partialSuccess":{"rejectedSpans":3}}"#,                     taken(3, "")),
            (200, None,   r#"{"partialSuccess":{"errorMessage":"slow down"}}"#,            taken(0, "slow down")),
            (302, None,   "",                                                              refused(302, "")),
            (400, None,   r#"{"code":3,"message":"bad\nspan\u001b[31m"}"#,                 refused(400, "bad span[31m")),
            (401, None,   "who?",                                                          refused(401, "who?")),
            (404, second, "",                                                              refused(404, "")),
            (413, None,   "",                                                              refused(413, "")),
            (408, None,   "",                                                              later(408, "", None)),
            (429, second, "",                                                              later(429, "", second)),
            (500, None,   "oh",                                                            later(500, "oh", None)),
            (501, None,   "",                                                              later(501, "", None)),
            (502, None,   "",                                                              later(502, "", None)),
            (503, second, "",                                                              later(503, "", second)),
            (504, None,   "",                                                              later(504, "", None)),
            (505, None,   "",                                                              later(505, "", None)),
        ];
        for (status, after, body, expected) in cases {
            assert_eq!(weigh(status, after, body.as_bytes()), expected, "{status} {body}");
        }
        let Verdict::Refused { words, .. } = weigh(400, None, "x".repeat(1000).as_bytes()) else {
            panic!("not refused");
        };
        assert_eq!(words.chars().count(), WORDS_MAX);
    }
}
