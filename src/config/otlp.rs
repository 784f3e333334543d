//! Reads `[otlp]`: the collector that ended tasks are sent to as OpenTelemetry spans.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::{ConfigError, section::Section, source::Origin};

/// The path under which a collector accepts traces.
const PATH: &str = "/v1/traces";

/// Names of headers that the exporter itself sets.
const RESERVED_HEADERS: [&str; 4] = ["content-length", "content-type", "host", "transfer-encoding"];

const SERVICE_BYTES_MAX: usize = 255;

/// The settings of the span exporter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Otlp {
    /// The whole URL; None: the export is off.
    pub endpoint: Option<String>,
    /// Headers to send. Only their names are printed.
    #[serde(serialize_with = "super::print::names")]
    pub headers: BTreeMap<String, String>,
    #[serde(serialize_with = "super::print::duration")]
    pub interval: Duration,
    /// The limit for one batch, including the answer.
    #[serde(serialize_with = "super::print::duration")]
    pub timeout: Duration,
    /// Whether the first start also sends tasks that ended before it.
    pub backfill: bool,
    pub service_name: String,
}

/// Reads `[otlp]`.
pub fn read(mut section: Section<'_>) -> Result<Otlp, ConfigError> {
    let (endpoint, at) = section.text("endpoint")?;
    let endpoint = endpoint.trim();
    let endpoint = match endpoint {
        "" => None,
        url => Some(url_of(url).map_err(|problem| section.bad(&at, "endpoint", problem))?),
    };
    let headers = headers(&mut section)?;
    let (service_name, at) = section.text("service_name")?;
    if service_name.is_empty() || SERVICE_BYTES_MAX < service_name.len() {
        let problem = format!("must be 1 to {SERVICE_BYTES_MAX} bytes long");
        return Err(section.bad(&at, "service_name", problem));
    }
    let range = Duration::from_millis(10)..=Duration::from_secs(60 * 60);
    Ok(Otlp {
        endpoint,
        headers,
        interval: section.duration("interval", range.clone())?,
        timeout: section.duration("timeout", range)?,
        backfill: section.boolean("backfill")?,
        service_name,
    })
}

/// Returns the URL for batches: a base URL is extended by [`PATH`].
fn url_of(text: &str) -> Result<String, String> {
    let wrong = |what: &str| {
        format!("must be a URL such as \"http://127.0.0.1:4318\"{what}, found {text:?}")
    };
    // The text before an @ may be a password.
    if text.contains('@') {
        return Err("must not contain user and password: put them into headers".into());
    }
    let url: Uri = text.parse().map_err(|_| wrong(""))?;
    match url.scheme_str() {
        Some("http") => {}
        Some("https") => {
            let problem = format!(
                "must begin with http://, found {text:?}: this version does not support TLS; a \
                 collector on this machine can forward the spans"
            );
            return Err(problem);
        }
        _ => return Err(wrong("")),
    }
    if text.contains(['?', '#']) {
        return Err(wrong(", without a query"));
    }
    // The parser accepts an invalid port.
    let has_authority = url.authority().is_some_and(|authority| {
        let has_valid_port =
            authority.as_str() == authority.host() || authority.port_u16().is_some();
        !authority.host().is_empty() && has_valid_port
    });
    if !has_authority {
        return Err(wrong(""));
    }
    let base = text.trim_end_matches('/');
    Ok(if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") })
}

fn headers(section: &mut Section<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    const KEY: &str = "headers";
    let mut headers = BTreeMap::new();
    for (name, (value, at)) in section.text_table(KEY)? {
        let bad = |at: &Origin, problem: String| Err(section.bad(at, KEY, problem));
        if HeaderName::from_bytes(name.as_bytes()).is_err()
            || RESERVED_HEADERS.contains(&name.to_ascii_lowercase().as_str())
        {
            return bad(&at, format!("cannot set a header {name:?}"));
        }
        // The value may be a secret.
        if HeaderValue::from_str(&value).is_err() {
            return bad(&at, format!("has an invalid value for {name:?}"));
        }
        headers.insert(name, value);
    }
    Ok(headers)
}
