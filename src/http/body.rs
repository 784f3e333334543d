//! Request bodies: reads JSON within limits of size and time; every error names its field.

// What any reader takes of a body.
mod strict;

use std::{pin::Pin, time::Duration};

use actix_web::{
    FromRequest, HttpMessage as _, HttpRequest,
    dev::Payload,
    http::header,
    web::{BytesMut, Data},
};
use futures_util::StreamExt as _;
use greenroom_actors::group::KeyHashes;
use greenroom_core::TaskId;
use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed as _},
};
use serde_json::de::SliceRead;
use serde_path_to_error::Track;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use self::strict::Strict;

use super::{error::ApiError, state::AppState};

/// The time for a body to arrive: a slower one holds a connection for nothing (F30).
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// The types that a page of another site can send without asking first (the CORS-safelisted ones of
/// Fetch), also with an empty body.
const FORM_TYPES: [&str; 3] =
    ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];

/// Reads JSON, and knows at which field it is.
type Tracked<'a, 'b> =
    serde_path_to_error::Deserializer<'a, 'a, &'a mut serde_json::Deserializer<SliceRead<'b>>>;

/// A body, read as `T`. An absent one equals `{}`.
pub struct Body<T> {
    /// The parsed body.
    pub value: T,
    /// The identity of the request, if the caller gave an `Idempotency-Key`.
    pub key: Option<KeyHashes>,
}

/// The body of a request that has no fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

impl<T: DeserializeOwned + 'static> FromRequest for Body<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            if is_of_a_form(&request) {
                return Err(ApiError::NotJson);
            }
            let bytes = read(&request, payload).await?;
            if !bytes.is_empty() && !is_json(&request) {
                return Err(ApiError::NotJson);
            }
            let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
            Ok(Self { value: parse(bytes)?, key: idempotency_key(&request, bytes)? })
        })
    }
}

async fn read(request: &HttpRequest, payload: Payload) -> Result<BytesMut, ApiError> {
    let max = request.app_data::<Data<AppState>>().map_or(usize::MAX, |state| state.body_bytes_max);
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(ApiError::BodyTooLarge(max));
    }
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let length = (!is_chunked).then(|| announced.unwrap_or_default() as usize);
    let collected = timeout(BODY_TIMEOUT, collect(payload, max, length)).await;
    collected.unwrap_or(Err(ApiError::BodyTooSlow))
}

/// Collects a body of this length, or, without one, up to its end. actix-http gives a request with
/// `Upgrade` a body that ends with the connection, whatever its length is.
async fn collect(
    mut payload: Payload,
    max: usize,
    length: Option<usize>,
) -> Result<BytesMut, ApiError> {
    let mut bytes = BytesMut::new();
    while length.is_none_or(|length| bytes.len() < length) {
        let Some(chunk) = payload.next().await else { break };
        let chunk = chunk.map_err(|err| ApiError::BodyBroken(err.to_string()))?;
        if bytes.len() + chunk.len() > max {
            return Err(ApiError::BodyTooLarge(max));
        }
        bytes.extend_from_slice(&chunk);
    }
    // What follows is not of this request.
    bytes.truncate(length.unwrap_or(usize::MAX));
    Ok(bytes)
}

fn is_json(request: &HttpRequest) -> bool {
    is_of_type(request, "application/json")
}

fn is_of_a_form(request: &HttpRequest) -> bool {
    FORM_TYPES.iter().any(|form| is_of_type(request, form))
}

fn is_of_type(request: &HttpRequest, expected: &str) -> bool {
    request.content_type().trim().eq_ignore_ascii_case(expected)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde would take an array for a struct, field by field.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let detail = "the body is not valid: it is an array, not an object".into();
        return Err(ApiError::InvalidBody { field: None, detail });
    }
    read_value(bytes, |json| Strict::body().deserialize(json))?;
    read_value(bytes, |json| T::deserialize(json))
}

/// Reads the body as one JSON value.
fn read_value<'b, T>(
    bytes: &'b [u8],
    read: impl FnOnce(Tracked<'_, 'b>) -> Result<T, serde_json::Error>,
) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = Track::new();
    let value = read(Tracked::new(&mut json, &mut track)).map_err(|err| {
        // A name that cannot be read is `?`.
        let path = track.path().to_string();
        let path = path.strip_suffix(".?").unwrap_or(&path).to_owned();
        let field = unknown_field(&err.to_string()).or((path != ".").then_some(path));
        ApiError::InvalidBody { field, detail: format!("the body is not valid: {err}") }
    })?;
    json.end().map_err(|err| ApiError::InvalidBody {
        field: None,
        detail: format!("the body is not valid: {err}"),
    })?;
    Ok(value)
}

/// serde reports an unknown field at the object that has it; its message names the field.
fn unknown_field(message: &str) -> Option<String> {
    let name = message.strip_prefix("unknown field `")?;
    Some(name.split('`').next()?.to_owned())
}

fn idempotency_key(request: &HttpRequest, body: &[u8]) -> Result<Option<KeyHashes>, ApiError> {
    let mut keys = request.headers().get_all("idempotency-key");
    let (key, second) = (keys.next(), keys.next());
    let Some(key) = key else { return Ok(None) };
    if second.is_some() || key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = "Idempotency-Key must be one text of 1 to 255 bytes";
        return Err(ApiError::InvalidHeader(detail));
    }
    // Each part is hashed after its length, so that two splits of one text differ. The first part
    // is the caller: empty, as only this machine is served.
    let mut scope = Sha256::new();
    let resource = resource(request);
    let parts = ["", request.method().as_str(), &resource].map(str::as_bytes);
    for part in parts.into_iter().chain([key.as_bytes()]) {
        scope.update((part.len() as u64).to_le_bytes());
        scope.update(part);
    }
    Ok(Some(KeyHashes { key: scope.finalize().into(), body: Sha256::digest(body).into() }))
}

/// Returns the path of the resource in one spelling. The router has decoded what callers may
/// encode; a task's id can still be written in several ways.
fn resource(request: &HttpRequest) -> String {
    let params = request.match_info();
    let path = params.as_str();
    match params.get("task").map(|text| (text, text.parse::<TaskId>())) {
        Some((text, Ok(id))) => path.replacen(text, &id.to_string(), 1),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "n")]
        _n: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(rename = "inner")]
        _inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Raw {
        kept: Box<serde_json::value::RawValue>,
    }

    /// C7, C15: what is stored as it is has to suit every reader of it.
    #[test]
    fn what_strict_readers_refuse_is_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let (whole, deep) = (nested(60), nested(61));
        let place = format!("kept{}", "[0]".repeat(60));
        #[rustfmt::skip]
        let cases = [
            (r#"{"a":["x","cut \ud83d"]}"#, Some("kept.a[1]")),
            (r#"{"a":{"\ude00":1}}"#,       Some("kept.a")),
            (r#"[1,-1e999]"#,               Some("kept[1]")),
            (&deep,                         Some(&*place)),
            (r#"{"a":"\ud83d\ude00 \u0000","b":[1e300,1e-999,18446744073709551616]}"#, None),
            (&whole,                        None),
        ];
        for (kept, field) in cases {
            match parse::<Raw>(format!(r#"{{"kept":{kept}}}"#).as_bytes()) {
                Ok(raw) => assert_eq!((field, raw.kept.get()), (None, kept)),
                Err(ApiError::InvalidBody { field: found, .. }) => {
                    assert_eq!(found.as_deref(), field, "{kept}");
                }
                Err(err) => panic!("{kept}: {err:?}"),
            }
        }
    }

    #[test]
    fn a_bad_body_names_its_field() {
        for (body, field) in [
            (r#"{"x":1}"#, Some("x")),
            (r#"{"inner":{"n":"one"}}"#, Some("inner.n")),
            (r#"{"inner":{"n":1,"m":2}}"#, Some("m")),
            (r#"{"inner":1}"#, Some("inner")),
            ("not json", None),
            ("[1]", None),
            (r#"{} trailing"#, None),
            ("", None),
        ] {
            match parse::<Outer>(body.as_bytes()) {
                Err(ApiError::InvalidBody { field: found, detail }) => {
                    assert_eq!(found.as_deref(), field, "{body}");
                    assert!(detail.starts_with("the body is not valid: "), "{detail}");
                }
                other => panic!("{body}: {other:?}"),
            }
        }
    }
}
