//! ACP lines ⇄ core's types: the only place that knows ACP's JSON. Parses an agent's lines.
//!
//! Below: the lines that greenroom writes (`write`), the agent's responses (`response`), and what
//! an update reports about its context (`context`). Only what core needs is parsed of a line that
//! is passed on; the rest stays raw text.

pub mod bounds;
mod context;
mod cost;
mod hermes_meta;
mod permission;
mod response;
pub mod session;
mod tool;
mod write;

use std::borrow::Cow;

use greenroom_core::{FrameKind, Json, OutputSummary, PermissionAsked, SessionId, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    context::{CompactionReport, ContextUpdate},
    response::{
        Capabilities, capabilities, opened_session, prompt_reply, provenance, session_restored,
    },
    write::{
        answer_line, authenticate_line, cancel_line, check_prompt, empty_prompt, initialize_line,
        load_session_line, new_session_line, prompt_line, refusal_line, resume_session_line,
        text_prompt,
    },
};

/// How deep JSON may nest. `serde_json` stops at 128 itself, but not in text that it skips.
const DEPTH_MAX: usize = 128;
/// The longest method name that becomes a frame's kind.
const KIND_BYTES_MAX: usize = 100;

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
    /// The ACP session that it is about: another one than before is a rotation (AM-13).
    pub session: Option<Cow<'a, str>>,
    /// The id and the kind of the tool call that it is about.
    pub tool_kind: Option<Box<(String, String)>>,
    /// What it reports about the agent's context. Boxed, as few updates report anything.
    pub context: Option<Box<ContextUpdate>>,
}

/// A JSON-RPC error.
#[derive(Clone, Debug, PartialEq, Deserialize, thiserror::Error)]
#[error("{message} (error {code})")]
pub struct RpcError {
    /// JSON-RPC's code.
    pub code: i64,
    /// The agent's text.
    #[serde(default)]
    pub message: String,
}

/// A string, borrowed if nothing in it is escaped: serde borrows for a `Cow`, but not for an
/// optional one.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Text<'a>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdateParams<'a> {
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    update: Update<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Update<'a> {
    #[serde(borrow)]
    session_update: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    used: Option<u64>,
    size: Option<u64>,
    #[serde(borrow)]
    cost: Option<&'a RawValue>,
    tool_call_id: Option<String>,
    #[serde(borrow)]
    title: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    status: Option<String>,
    #[serde(rename = "_meta", borrow)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct TextContent<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
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
    let envelope: Envelope =
        serde_json::from_str(line).map_err(|err| no_message(&err.to_string()))?;
    match (envelope.method.map(|Text(method)| method), envelope.id) {
        (Some(method), None) if method == "session/update" => {
            Ok(Message::Notification(update(envelope.params)))
        }
        (Some(method), None) => Ok(Message::Notification(Notification::bare(kind(&method)))),
        (Some(method), Some(id)) if method == "session/request_permission" => {
            Ok(permission::permission(json(id), envelope.params))
        }
        (Some(method), Some(id)) => Ok(Message::Request {
            id: id.get(),
            kind: kind(&method),
            private: method.starts_with("fs/") || method.starts_with("terminal/"),
        }),
        (None, Some(id)) => {
            let id = id.get().parse().map_err(|_| no_message("it answers an unknown request"))?;
            let result = envelope.result.map_or("null", RawValue::get);
            Ok(Message::Response { id, outcome: envelope.error.map_or(Ok(result), Err) })
        }
        (None, None) => Err(no_message("it has neither a method nor an id")),
    }
}

/// Summarizes a message from the agent. Returns the session that it names, too: the summary counts
/// only if that is the one that was prompted last.
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

/// Parses a `session/update`. One that does not look like ACP is stored with an empty summary.
fn update(params: Option<&RawValue>) -> Notification<'_> {
    let mut notification = Notification::bare("session/update".into());
    if let Some(raw) = params
        && let Ok(UpdateParams { session_id, update }) = serde_json::from_str(raw.get())
    {
        notification.session = session_id.and_then(text);
        // Most updates are chunks of text and need no further parsing.
        if update.meta.is_some() || context::may_carry_context(&update.session_update) {
            let context = context::parse(&update.session_update, update.meta, raw);
            notification.context = context.map(Box::new);
        }
        let tool_kind = update.tool_call_id.clone().zip(update.kind.and_then(text));
        notification.tool_kind = tool_kind.map(|(tool, kind)| Box::new((tool, kind.into_owned())));
        summarize_update(update, &mut notification.summary);
    }
    notification
}

fn summarize_update(update: Update<'_>, summary: &mut OutputSummary) {
    match &*update.session_update {
        "agent_message_chunk" => {
            (summary.has_output, summary.has_answer) = (true, true);
            let content = update.content.map(|raw| serde_json::from_str(raw.get()));
            if let Some(Ok(TextContent { text: Some(text) })) = content {
                summary.text = text.into_owned();
            }
        }
        "agent_thought_chunk" | "plan" | "compaction_update" | "compaction_summary_chunk" => {
            summary.has_output = true;
        }
        word @ ("tool_call" | "tool_call_update") => {
            (summary.has_output, summary.has_answer) = (true, true);
            summary.tools.extend(tool::tool_update(&update, word == "tool_call"));
        }
        "usage_update" => {
            summary.costs.extend(update.cost.and_then(cost::cost));
            if let (Some(used), Some(size)) = (update.used, update.size) {
                summary.usage = Some(Usage { used, size, cost: update.cost.map(json) });
            }
        }
        _ => {}
    }
}

/// Returns the kind of the frame of an agent's line: its method, if that is a plain name. No agent
/// writes the frames that greenroom writes itself: its facts and prompts.
fn kind(method: &str) -> FrameKind {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.$".contains(&byte);
    let is_own = method.starts_with("greenroom/") || method == "session/prompt";
    if method.len() <= KIND_BYTES_MAX && method.bytes().all(plain) && !is_own {
        method.to_owned().into()
    } else {
        "agent/unnamed".into()
    }
}

fn json(raw: &RawValue) -> Json {
    Json::parse(raw.get().to_owned()).unwrap_or_else(|_| null())
}

/// Returns a JSON string's text, borrowed if nothing in it is escaped.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    match memchr::memchr(b'\\', inner.as_bytes()) {
        None => Some(Cow::Borrowed(inner)),
        Some(_) => serde_json::from_str(raw.get()).ok().map(Cow::Owned),
    }
}

/// Returns a JSON string's text as an id, if it can be one.
fn key(raw: &RawValue) -> Option<String> {
    text(raw).and_then(|text| bounds::bounded_id(&text))
}

/// Parses an object. serde would accept an array for an object, field by field.
fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok())?
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

    fn update(update: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"s","update":{update}}}}}"#
        )
    }

    fn summary(line: &str) -> OutputSummary {
        match parse(&update(line)) {
            Ok(Message::Notification(notification)) if notification.kind == "session/update" => {
                notification.summary
            }
            other => panic!("{other:?}"),
        }
    }

    /// A-4: which updates count as output of an attempt, and which agents send by themselves.
    #[test]
    fn only_some_updates_count_as_output() {
        #[rustfmt::skip]
        let cases = [
            (r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"a\u00e4"}}"#, true),
            (r#"{"sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"hm"}}"#,      true),
            (r#"{"sessionUpdate":"tool_call","toolCallId":"1","title":"t"}"#,                         true),
            (r#"{"sessionUpdate":"tool_call_update","toolCallId":"1"}"#,                              true),
            (r#"{"sessionUpdate":"plan","entries":[]}"#,                                              true),
            (r#"{"sessionUpdate":"compaction_update","compactionId":"c","status":"in_progress"}"#,    true),
            (r#"{"sessionUpdate":"available_commands_update","availableCommands":[]}"#,               false),
            (r#"{"sessionUpdate":"current_mode_update","currentModeId":"m"}"#,                        false),
            (r#"{"sessionUpdate":"config_option_update","configOptions":[]}"#,                        false),
            (r#"{"sessionUpdate":"session_info_update","title":"t"}"#,                                false),
            (r#"{"sessionUpdate":"usage_update","used":1,"size":2}"#,                                 false),
            (r#"{"sessionUpdate":"from_the_future"}"#,                                                false),
            (r#"{"no":"update"}"#,                                                                    false),
        ];
        for (line, output) in cases {
            assert_eq!(summary(line).has_output, output, "{line}");
        }
        assert_eq!(summary(cases[0].0).text, "aä");
        let usage = Usage { used: 1, size: 2, cost: None };
        assert_eq!(summary(cases[10].0).usage, Some(usage));
    }

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
            &deep,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let brackets = format!(r#"{{"method":"m","params":"{}"}}"#, "[".repeat(200));
        assert!(parse(&brackets).is_ok(), "brackets in a string are no nesting");
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
}
