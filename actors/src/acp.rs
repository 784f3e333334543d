//! ACP lines ⇄ core's types: the only place that knows ACP's JSON. Parses an agent's lines.
//!
//! Below: the lines that greenroom writes (`write`), the agent's responses (`response`), and what
//! an update reports about its context (`context`). Only what core needs is parsed of a line that
//! is passed on; the rest stays raw text.

pub mod bounds;
mod card;
mod cause;
mod context;
mod cost;
mod error_kind;
mod fields;
pub mod glued;
mod hermes_meta;
mod permission;
mod repair;
mod response;
pub mod session;
mod tool;
mod update;
mod write;

use std::{borrow::Cow, fmt};

use greenroom_core::{ErrorKind, FrameKind, Json, OutputSummary, PermissionAsked, SessionId};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    card::{AgentCard, AuthMethod, Modes, agent_card, modes},
    cause::redacted,
    context::{CompactionReport, ContextUpdate},
    repair::{Repaired, repaired},
    response::{
        Capabilities, capabilities, is_session_gone, opened_session, prompt_reply, provenance,
        restored,
    },
    write::{
        answer_line, authenticate_line, cancel_line, check_prompt, empty_prompt, initialize_line,
        load_session_line, new_session_line, prompt_line, refusal_line, resume_session_line,
        text_prompt,
    },
};
use self::{
    fields::{Object, fields, lossy_text, read, text, whole},
    response::response,
};

/// How deep JSON may nest. `serde_json` stops at 128 itself, but not in text that it skips.
const DEPTH_MAX: usize = 128;
/// The longest method name that becomes a frame's kind.
const KIND_BYTES_MAX: usize = 100;

/// The methods of notifications that agents send unasked, as codex-acp and claude-agent-acp do.
/// Any other notification after START is output (A-4).
const UNASKED_METHODS: [&str; 1] = ["_auth/status_update"];

/// A parsed line from the agent.
#[derive(Debug, PartialEq)]
pub enum Message<'a> {
    /// A notification.
    Notification(Notification<'a>),
    /// The response to a request of greenroom's.
    Response {
        /// The request's id.
        id: u64,
        /// Its result, or its error.
        outcome: Result<&'a str, RpcError>,
    },
    /// A permission request.
    Permission {
        /// Its content.
        asked: Box<PermissionAsked>,
        /// The tool call that it is about.
        tool: Option<String>,
    },
    /// A request for a method that greenroom does not offer.
    Request {
        /// JSON-RPC's id, which the refusal repeats.
        id: &'a str,
        /// The method.
        kind: FrameKind,
        /// Whether readers never see it (AM-6).
        private: bool,
    },
}

/// A notification, and what core needs of it.
#[derive(Debug, PartialEq)]
pub struct Notification<'a> {
    /// The kind of its frame.
    pub kind: FrameKind,
    /// Its summary for the turn.
    pub summary: OutputSummary,
    /// The ACP session that it is about.
    pub session: Option<Cow<'a, str>>,
    /// The id and the kind of the tool call that it is about.
    pub tool_kind: Option<Box<(String, String)>>,
    /// What it reports about the agent's context. Boxed, as few updates report anything.
    pub context: Option<Box<ContextUpdate>>,
}

/// A JSON-RPC error.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    /// JSON-RPC's code. `None`: the error has no readable one, or a result beside it; what the
    /// agent did with the request is unknown.
    pub code: Option<i64>,
    /// What it says about another attempt.
    pub kind: ErrorKind,
    /// The agent's text, or what can be shown of the error.
    pub message: String,
}

/// The error of a response that names no request.
#[derive(Clone, Debug, PartialEq)]
pub struct Unaddressed {
    /// What the agent did is unknown, so it has no code.
    pub error: RpcError,
    /// Whether the agent says that it does not know the request.
    pub is_of_unknown: bool,
}

impl fmt::Display for RpcError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        self.code.map_or(Ok(()), |code| write!(formatter, " (error {code})"))
    }
}

fields! {
    struct Envelope {
        version: "jsonrpc",
        id: "id",
        method: "method",
        params: "params",
        result: "result",
        error: "error",
    }

    /// An update.
    struct Update {
        session_update: "sessionUpdate",
        content: "content",
        message_id: "messageId",
        used: "used",
        size: "size",
        cost: "cost",
        tool_call_id: "toolCallId",
        title: "title",
        kind: "kind",
        status: "status",
        meta: "_meta",
    }
}

/// Why a line is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is no JSON-RPC message, but a log line for example.
    #[error("{0}")]
    NoMessage(String),
    /// Its JSON nests too deep.
    #[error("it nests deeper than {DEPTH_MAX}")]
    TooDeep,
}

/// Parses a line from the agent.
///
/// # Errors
///
/// [`ParseError`] if it is no JSON-RPC message or nests too deep.
pub fn parse(line: &str) -> Result<Message<'_>, ParseError> {
    if nests_too_deep(line.as_bytes()) {
        return Err(ParseError::TooDeep);
    }
    let no_message = |why: &str| ParseError::NoMessage(why.to_owned());
    // serde would take an array for an object, field by field.
    if !line.trim_start().starts_with('{') {
        return Err(no_message("it is no JSON object"));
    }
    let envelope: Envelope<'_> = read(line).map_err(|err| no_message(&err.to_string()))?;
    let is_answer = envelope.result.is_some() || envelope.error.is_some();
    // A log line may have an id, too. A member that is null counts as absent, and shows an answer.
    let names = |member: &str| memmem::find(line.as_bytes(), member.as_bytes()).is_some();
    let is_bare = envelope.method.is_none() && envelope.id.is_some();
    let may_answer = is_answer
        || (is_bare && (envelope.version.is_some() || names("\"result\"") || names("\"error\"")));
    let answered = envelope.id.and_then(whole).filter(|_| may_answer);
    // A method that cannot be read is still one.
    let method = envelope.method.map(|raw| lossy_text(raw).unwrap_or_default());
    match (method, envelope.id) {
        (_, Some(_)) if let Some(id) = answered => {
            Ok(response(id, envelope.result, envelope.error))
        }
        (Some(method), None) if method == "session/update" => {
            Ok(Message::Notification(update::notification(envelope.params)))
        }
        (Some(method), None) => {
            let mut notification = Notification::bare(kind(&method));
            notification.summary.has_output = !UNASKED_METHODS.contains(&&*method);
            Ok(Message::Notification(notification))
        }
        (Some(method), Some(id)) if method == "session/request_permission" => {
            Ok(permission::permission(json(id), envelope.params))
        }
        (Some(method), Some(id)) => Ok(Message::Request {
            id: id.get(),
            kind: kind(&method),
            private: method.starts_with("fs/") || method.starts_with("terminal/"),
        }),
        (None, Some(_)) => Err(no_message("it answers an unknown request")),
        (None, None) => Err(no_message("it has neither a method nor an id")),
    }
}

/// Returns the error of a JSON-RPC response that names no request, because its id is null or
/// absent: an agent answers so what it could not read.
pub fn unaddressed_error(line: &str) -> Option<Unaddressed> {
    let envelope: Envelope<'_> = read(line).ok()?;
    let Envelope { version: Some(_), id: None, method: None, result: None, error, .. } = envelope
    else {
        return None;
    };
    response::unaddressed(error?)
}

/// Whether a line that was rejected consists of whole JSON objects without any member of a message
/// but an id: log lines. A member that is null counts as absent.
pub fn is_log_record(line: &[u8]) -> bool {
    let mut objects =
        serde_json::Deserializer::from_slice(line).into_iter::<Object<Envelope<'_>>>();
    objects.all(|object| {
        object.is_ok_and(|Object(Envelope { version, id: _, method, params: _, result, error })| {
            version.or(method).or(result).or(error).is_none()
        })
    })
}

/// Summarizes a message from the agent. Returns the session that it names, too: what counts of the
/// summary depends on whether that is the one that was prompted last.
pub fn summarize(line: &str) -> (Option<Cow<'_, str>>, OutputSummary) {
    match parse(line) {
        Ok(Message::Notification(notification)) => (notification.session, notification.summary),
        Ok(Message::Permission { .. } | Message::Request { .. }) => {
            (None, OutputSummary { has_output: true, ..OutputSummary::default() })
        }
        Ok(Message::Response { .. }) | Err(_) => (None, OutputSummary::default()),
    }
}

/// Parses a `session/prompt` line: returns its id, its session and its content blocks.
///
/// # Errors
///
/// The parse error if it is no such line.
pub fn parse_prompt_line(line: &str) -> Result<(u64, SessionId, Json), serde_json::Error> {
    #[derive(Deserialize)]
    struct Request {
        id: u64,
        params: Params,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        session_id: SessionId,
        prompt: Json,
    }
    let Request { id, params: Params { session_id, prompt } } = serde_json::from_str(line)?;
    Ok((id, session_id, prompt))
}

impl Notification<'_> {
    fn bare(kind: FrameKind) -> Self {
        Self {
            kind,
            summary: OutputSummary::default(),
            session: None,
            tool_kind: None,
            context: None,
        }
    }
}

/// Returns the kind of the frame of an agent's line: its method, if that is a plain name. No agent
/// writes the frames that greenroom writes itself: its facts and prompts.
fn kind(method: &str) -> FrameKind {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.$".contains(&byte);
    let is_own = method.starts_with("greenroom/") || method == "session/prompt";
    let fits = (1..=KIND_BYTES_MAX).contains(&method.len());
    if fits && method.bytes().all(plain) && !is_own {
        method.to_owned().into()
    } else {
        "agent/unnamed".into()
    }
}

fn json(raw: &RawValue) -> Json {
    Json::parse(raw.get().to_owned()).unwrap_or_else(|_| null())
}

/// Returns a JSON string's text as an id, if it can be one.
fn key(raw: &RawValue) -> Option<String> {
    text(raw).and_then(|text| bounds::bounded_id(&text))
}

fn null() -> Json {
    Json::write(&()).unwrap_or_else(|_| unreachable!("null is JSON"))
}

/// Whether JSON nests too deep. Counts brackets outside strings, but only if there are enough.
fn nests_too_deep(line: &[u8]) -> bool {
    if memchr::memchr2_iter(b'{', b'[', line).nth(DEPTH_MAX).is_none() {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_message_are_rejected() {
        let deep = format!(r#"{{"method":"m","params":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        for bad in [
            "",
            "hello",
            "[]",
            r#"[1,"m",null,null,null]"#,
            "{}",
            "1",
            r#"{"id":null}"#,
            r#"{"id":"x"}"#,
            r#"{"level":"info","id":"5","msg":"a log line"}"#,
            &deep,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let brackets = format!(r#"{{"method":"m","params":"{}"}}"#, "[".repeat(200));
        assert!(parse(&brackets).is_ok(), "brackets in a string are no nesting");
    }

    /// F13: a whole object without a member of a message is no broken message.
    #[test]
    fn log_records_are_whole_objects_without_the_members_of_messages() {
        #[rustfmt::skip]
        let cases: [(&[u8], bool); 14] = [
            (br#"{"level":"info","msg":"x"}"#,                  true),
            (br#"{"level":"info","id":"5","params":{}}  "#,     true),
            (br#"{"level":"info","error":null}"#,               true),
            (br#"{"at":{"method":"GET","jsonrpc":"2.0"}}"#,     true),
            (br#"{}"#,                                          true),
            (br#"{"a":1}{"a":2} {"a":3}"#,                      true),
            (br#"{"a":1}{"method":7}"#,                         false),
            (br#"{"a":1} and more"#,                            false),
            (br#"{"level":"info","msg":"x""#,                   false),
            (br#"{"jsonrpc":"2.0"}"#,                           false),
            (br#"{"method":"x"}"#,                              false),
            (br#"{"result":{}}"#,                               false),
            (br#"{"error":"x"}"#,                               false),
            (b"{\"msg\":\"\xff\"}",                            false),
        ];
        for (line, is_record) in cases {
            assert_eq!(is_log_record(line), is_record, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn requests_are_classified_and_ids_are_repeated_unchanged() {
        let request =
            |method: &str| format!(r#"{{"jsonrpc":"2.0","id":"a-1","method":"{method}"}}"#);
        let line = request("fs/read_text_file");
        let Ok(Message::Request { id, private, .. }) = parse(&line) else { panic!() };
        assert_eq!((id, private), (r#""a-1""#, true));
        assert!(refusal_line(id).contains(r#""id":"a-1","error":{"code":-32601"#));
        for method in ["x\\n\\\"y", "greenroom/task_ended", "session/prompt"] {
            let line = request(method);
            let Ok(Message::Request { kind, private, .. }) = parse(&line) else { panic!() };
            assert_eq!((&*kind, private), ("agent/unnamed", false), "{method}");
        }
    }

    /// Any answer ends a turn: its id decides, and an error without a readable code is not retried.
    #[test]
    fn a_response_is_one_whatever_is_in_it() {
        let ok = Ok::<&str, RpcError>;
        let err = |code, message: &str| {
            let kind = match code {
                Some(-32000) => ErrorKind::Auth,
                _ => ErrorKind::Passing,
            };
            Err(RpcError { code, kind, message: message.into() })
        };
        #[rustfmt::skip]
        let cases = [
            (r#""id":9,"result":{"a":1}"#,                                        ok(r#"{"a":1}"#)),
            (r#""id":"9","result":{}"#,                                           ok("{}")),
            (r#""id":9.0,"result":"\ud83d""#,                                     ok(r#""\ud83d""#)),
            (r#""id":9,"result":null"#,                                           ok("null")),
            (r#""jsonrpc":"2.0","id":9"#,                                         ok("null")),
            (r#""id":8,"id":9,"result":{},"error":null,"\ud83d":7"#,              ok("{}")),
            (r#""id":9,"method":7,"result":{}"#,                                  ok("{}")),
            (r#""id":9,"method":"session/prompt","result":{}"#,                   ok("{}")),
            (r#""id":9,"error":{"code":-32000,"message":"x"}"#,                   err(Some(-32000), "x")),
            (r#""id":9,"error":{"code":-32000.0,"message":"cut \ud83d"}"#,        err(Some(-32000), "cut \u{fffd}")),
            (r#""id":9,"error":{"code":"-32603","message":null}"#,                err(Some(-32603), r#"{"code":"-32603","message":null}"#)),
            (r#""id":9,"error":{"code":"busy","message":"x"}"#,                   err(None, "x")),
            (r#""id":9,"error":{"message":["x"]}"#,                               err(None, r#"{"message":["x"]}"#)),
            (r#""id":9,"error":"boom \ud83d""#,                                   err(None, "boom \u{fffd}")),
            (r#""id":9,"error":"bad key sk-proj-abcDEF123456""#,                  err(None, "bad key [redacted]")),
            (r#""id":9,"error":[1]"#,                                             err(None, "[1]")),
            (r#""id":9,"error":{"code":-32603,"message":"x"},"result":{}"#,       err(None, "x (error -32603), and a result beside it")),
        ];
        for (fields, outcome) in cases {
            let line = format!("{{{fields}}}");
            assert_eq!(parse(&line), Ok(Message::Response { id: 9, outcome }), "{line}");
        }
        let long = format!(r#"{{"id":9,"error":["{}"]}}"#, "ä".repeat(bounds::ERROR_BYTES_MAX));
        let Ok(Message::Response { outcome: Err(error), .. }) = parse(&long) else { panic!() };
        assert!(error.message.len() <= bounds::ERROR_BYTES_MAX);
    }

    /// A-4: what an agent sends by methods of its own is output, but for what it sends unasked.
    #[test]
    fn a_notification_of_another_method_is_output() {
        #[rustfmt::skip]
        let cases = [
            (r#""method":"_vendor/acted""#,                               true),
            (r#""method":"_vendor/acted","params":{"text":"\ud83d"}"#,    true),
            (r#""method":"cut \ud83d""#,                                  true),
            (r#""method":7"#,                                             true),
            (r#""method":"session/update""#,                              true),
            (r#""method":"session/update","params":7"#,                   true),
            (r#""method":"_auth/status_update","params":{}"#,             false),
        ];
        for (fields, output) in cases {
            let (session, summary) =
                (None, OutputSummary { has_output: output, ..Default::default() });
            assert_eq!(summarize(&format!("{{{fields}}}")), (session, summary), "{fields}");
        }
        let odd = r#"{"id":7,"method":["fs"]}"#;
        assert!(matches!(parse(odd), Ok(Message::Request { id: "7", private: false, .. })));
    }
}
