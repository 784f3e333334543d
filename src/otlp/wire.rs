//! The part of OTLP's JSON encoding that spans need.
//!
//! Written by hand instead of `opentelemetry-proto`: these few structs are enough, and that crate
//! depends on the whole SDK, with an executor, random numbers and protobuf.
//! See <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>: keys in lowerCamelCase,
//! ids in hex, 64-bit integers as text, enums as numbers.

use greenroom_actors::secrets;
use serde::{Serialize, Serializer};

/// `ExportTraceServiceRequest`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

impl<'a> Request<'a> {
    /// Returns a request with `spans`, all of one resource and one scope.
    pub fn new(resource: &'a Resource, scope: &'a Scope, spans: &'a [Span]) -> Self {
        let scope_spans = [ScopeSpans { scope, spans }];
        Self { resource_spans: [ResourceSpans { resource, scope_spans }] }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: &'a Resource,
    scope_spans: [ScopeSpans<'a>; 1],
}

/// The service that the spans describe.
#[derive(Debug, Serialize)]
pub struct Resource {
    pub attributes: Vec<Attribute>,
}

#[derive(Debug, Serialize)]
struct ScopeSpans<'a> {
    scope: &'a Scope,
    spans: &'a [Span],
}

/// The instrumentation that created the spans.
#[derive(Debug, Serialize)]
pub struct Scope {
    pub name: &'static str,
    pub version: &'static str,
}

/// One operation, from its start to its end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub name: String,
    pub kind: SpanKind,
    #[serde(serialize_with = "text")]
    pub start_time_unix_nano: u64,
    #[serde(serialize_with = "text")]
    pub end_time_unix_nano: u64,
    pub attributes: Vec<Attribute>,
    pub status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

#[derive(Clone, Copy, Debug)]
pub enum SpanKind {
    Internal = 1,
}

impl Serialize for SpanKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

/// The status of an operation; empty unless it failed, as the conventions require.
#[derive(Debug, Default, Serialize)]
pub struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl Status {
    /// `STATUS_CODE_ERROR` with a message.
    pub fn error(message: String) -> Self {
        Self { code: Some(2), message }
    }
}

#[derive(Debug, Serialize)]
pub struct Attribute {
    key: &'static str,
    value: Value,
}

impl Attribute {
    pub fn new(key: &'static str, value: impl Into<Value>) -> Self {
        Self { key, value: value.into() }
    }
}

/// `AnyValue`.
#[derive(Debug, Serialize)]
pub enum Value {
    #[serde(rename = "stringValue")]
    Text(String),
    #[serde(rename = "intValue", serialize_with = "text")]
    Int(i64),
    #[serde(rename = "arrayValue")]
    List { values: Vec<Value> },
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// A text may be an agent's, such as the name of a model: secrets are redacted.
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(secrets::redacted(text).into_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<Vec<Value>> for Value {
    fn from(values: Vec<Value>) -> Self {
        Self::List { values }
    }
}

fn text<S: Serializer>(number: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&number.to_string())
}
