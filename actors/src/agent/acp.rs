//! ACP lines ⇄ core's types: the only place that knows ACP's JSON. Here, an agent's lines are told
//! apart; below, what greenroom says (`say`), what answers mean (`answer`), and what an update
//! tells of the agent's context (`context`).
//!
//! Of a line that is only passed on, no more is parsed than the rules need; it stays raw text.

mod answer;
mod ask;
mod context;
mod say;
mod spend;
mod tool;

use std::borrow::Cow;

use greenroom_core::{Fold, FrameKind, Json, PermissionAsked, SessionId, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    answer::{Abilities, abilities, new_session, prompt_reply, provenance, took_up},
    context::{Clues, Report},
    say::{
        answer_line, authenticate_line, cancel_line, check_prompt, empty_prompt, initialize_line,
        load_session_line, new_session_line, prompt_line, refusal_line, resume_session_line,
        text_prompt,
    },
};

/// How deep JSON may nest. `serde_json` stops at 128 by itself, but not in text it passes over.
const DEPTH_MAX: usize = 128;
/// The longest method name that is shown as a frame's kind.
const KIND_BYTES_MAX: usize = 100;

/// A line from the agent, told apart.
#[derive(Debug, PartialEq)]
pub enum Heard<'a> {
    /// A notification.
    Notice(Notice<'a>),
    /// The answer to a request of ours.
    Response {
        /// Which request.
        id: u64,
        /// Its result, or its error.
        outcome: Result<&'a str, RpcError>,
    },
    /// The agent wants a permission.
    Permission {
        /// What for.
        asked: Box<PermissionAsked>,
        /// The tool call that it is for.
        tool: Option<String>,
    },
    /// A request for something that greenroom does not offer.
    Request {
        /// JSON-RPC's id, to be answered with.
        id: &'a str,
        /// What it wants.
        kind: FrameKind,
        /// Whether it is one that is never shown to readers (SEEDS AM-6).
        private: bool,
    },
}

/// A notification, and what the rules need to know of it.
#[derive(Debug, PartialEq)]
pub struct Notice<'a> {
    /// What it is.
    pub kind: FrameKind,
    /// What it means to the turn.
    pub fold: Fold,
    /// The ACP session that it is about: a bare change of it rotates (SEEDS AM-13).
    pub session: Option<Cow<'a, str>>,
    /// The tool call that it is about, and of what kind that is.
    pub tool_kind: Option<Box<(String, String)>>,
    /// What it tells of the agent's context. Few tell anything, so it is not kept inline.
    pub clues: Option<Box<Clues>>,
}

/// A JSON-RPC error.
#[derive(Clone, Debug, PartialEq, Deserialize, thiserror::Error)]
#[error("{message} (error {code})")]
pub struct RpcError {
    /// JSON-RPC's code.
    pub code: i64,
    /// The agent's words.
    #[serde(default)]
    pub message: String,
}

/// A string that is borrowed where nothing in it is escaped: by itself, serde does so for a `Cow`,
/// and not for an optional one.
#[derive(Deserialize)]
struct Word<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Word<'a>>,
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

/// Why a line was not taken for a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHeard {
    /// It is no JSON-RPC message; log lines end up on stdout.
    #[error("{0}")]
    NoMessage(String),
    /// It nests deeper than anything that means well.
    #[error("it nests deeper than {DEPTH_MAX}")]
    TooDeep,
}

/// Tells apart a line from the agent.
///
/// # Errors
///
/// [`NotHeard`] if it is no JSON-RPC message or nests too deep.
pub fn hear(line: &str) -> Result<Heard<'_>, NotHeard> {
    if nests_too_deep(line.as_bytes()) {
        return Err(NotHeard::TooDeep);
    }
    let no_message = |why: &str| NotHeard::NoMessage(why.to_owned());
    // serde would take an array for an object, field by field.
    if !line.trim_start().starts_with('{') {
        return Err(no_message("it is no JSON object"));
    }
    let envelope: Envelope =
        serde_json::from_str(line).map_err(|err| no_message(&err.to_string()))?;
    match (envelope.method.map(|Word(method)| method), envelope.id) {
        (Some(method), None) if method == "session/update" => {
            Ok(Heard::Notice(update(envelope.params)))
        }
        (Some(method), None) => Ok(Heard::Notice(Notice::bare(kind(&method)))),
        (Some(method), Some(id)) if method == "session/request_permission" => {
            Ok(ask::permission(json(id), envelope.params))
        }
        (Some(method), Some(id)) => Ok(Heard::Request {
            id: id.get(),
            kind: kind(&method),
            private: method.starts_with("fs/") || method.starts_with("terminal/"),
        }),
        (None, Some(id)) => {
            let id = id
                .get()
                .parse()
                .map_err(|_| no_message("it answers a request that nobody made"))?;
            let result = envelope.result.map_or("null", RawValue::get);
            Ok(Heard::Response { id, outcome: envelope.error.map_or(Ok(result), Err) })
        }
        (None, None) => Err(no_message("it has neither a method nor an id")),
    }
}

/// What the rules need to know of a message that was stored, said while `in_force` was: the same as
/// when it was said.
pub fn meaning(line: &str, in_force: Option<&SessionId>) -> Fold {
    match hear(line) {
        Ok(Heard::Notice(notice)) => {
            let (named, own) = (notice.session.as_deref(), in_force.map(|session| &*session.0));
            let is_own = named.is_none() || own.is_none() || named == own;
            if is_own { notice.fold } else { Fold::default() }
        }
        Ok(Heard::Permission { .. } | Heard::Request { .. }) => {
            Fold { output: true, ..Fold::default() }
        }
        Ok(Heard::Response { .. }) | Err(_) => Fold::default(),
    }
}

/// A `session/prompt` line, read again: its id, its session and its content blocks.
///
/// # Errors
///
/// The parse error if it is none.
pub fn prompt_sent(line: &str) -> Result<(u64, SessionId, Json), serde_json::Error> {
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

impl Notice<'_> {
    fn bare(kind: FrameKind) -> Self {
        Self { kind, fold: Fold::default(), session: None, tool_kind: None, clues: None }
    }
}

/// What the rules need to know of a `session/update`. One that does not look like ACP means
/// nothing to them, and is kept all the same.
fn update(params: Option<&RawValue>) -> Notice<'_> {
    let mut notice = Notice::bare("session/update".into());
    if let Some(raw) = params
        && let Ok(UpdateParams { session_id, update }) = serde_json::from_str(raw.get())
    {
        notice.session = session_id.and_then(text);
        // Most updates are chunks of text, and cost no more than this.
        if update.meta.is_some() || context::may_tell(&update.session_update) {
            notice.clues = context::clues(&update.session_update, update.meta, raw).map(Box::new);
        }
        let told = update.tool_call_id.clone().zip(update.kind.and_then(text));
        notice.tool_kind = told.map(|(tool, kind)| Box::new((tool, kind.into_owned())));
        fold(update, &mut notice.fold);
    }
    notice
}

fn fold(update: Update<'_>, fold: &mut Fold) {
    match &*update.session_update {
        "agent_message_chunk" => {
            (fold.output, fold.answer) = (true, true);
            let content = update.content.map(|raw| serde_json::from_str(raw.get()));
            if let Some(Ok(TextContent { text: Some(text) })) = content {
                fold.text = text.into_owned();
            }
        }
        "agent_thought_chunk" | "plan" | "compaction_update" | "compaction_summary_chunk" => {
            fold.output = true;
        }
        word @ ("tool_call" | "tool_call_update") => {
            (fold.output, fold.answer) = (true, true);
            fold.tools.extend(tool::news(&update, word == "tool_call"));
        }
        "usage_update" => {
            fold.costs.extend(update.cost.and_then(spend::cost));
            if let (Some(used), Some(size)) = (update.used, update.size) {
                fold.usage = Some(Usage { used, size, cost: update.cost.map(json) });
            }
        }
        _ => {}
    }
}

fn kind(method: &str) -> FrameKind {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.$".contains(&byte);
    if method.len() <= KIND_BYTES_MAX && method.bytes().all(plain) {
        method.to_owned().into()
    } else {
        "agent/unnamed".into()
    }
}

fn json(raw: &RawValue) -> Json {
    Json::parse(raw.get().to_owned()).unwrap_or_else(|_| null())
}

/// A JSON string's text, borrowed where nothing in it is escaped.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    match memchr::memchr(b'\\', inner.as_bytes()) {
        None => Some(Cow::Borrowed(inner)),
        Some(_) => serde_json::from_str(raw.get()).ok().map(Cow::Owned),
    }
}

fn null() -> Json {
    Json::write(&()).unwrap_or_else(|_| unreachable!("null is JSON"))
}

/// Counts brackets outside strings, but only where there are enough to matter.
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

    fn folded(line: &str) -> Fold {
        match hear(&update(line)) {
            Ok(Heard::Notice(notice)) if notice.kind == "session/update" => notice.fold,
            other => panic!("{other:?}"),
        }
    }

    /// ARCHITECTURE 4: what counts as output of an attempt, and what agents send unasked.
    #[test]
    fn output_is_told_from_what_agents_send_unasked() {
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
            assert_eq!(folded(line).output, output, "{line}");
        }
        assert_eq!(folded(cases[0].0).text, "aä");
        let usage = Usage { used: 1, size: 2, cost: None };
        assert_eq!(folded(cases[10].0).usage, Some(usage));
    }

    #[test]
    fn lines_that_are_no_message_are_told_so() {
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
            assert!(hear(bad).is_err(), "{bad}");
        }
        let brackets = format!(r#"{{"method":"m","params":"{}"}}"#, "[".repeat(200));
        assert!(hear(&brackets).is_ok(), "brackets in a string are no nesting");
    }

    #[test]
    fn requests_are_told_apart_and_ids_come_back_as_they_were() {
        let request =
            |method: &str| format!(r#"{{"jsonrpc":"2.0","id":"a-1","method":"{method}"}}"#);
        let line = request("fs/read_text_file");
        let Ok(Heard::Request { id, private, .. }) = hear(&line) else { panic!() };
        assert_eq!((id, private), (r#""a-1""#, true));
        assert!(refusal_line(id).contains(r#""id":"a-1","error":{"code":-32601"#));
        let line = request("x\\n\\\"y");
        let Ok(Heard::Request { kind, private, .. }) = hear(&line) else { panic!() };
        assert_eq!((&*kind, private), ("agent/unnamed", false));
    }
}
