//! ACP lines ⇄ core's types: the only file that knows ACP's JSON.
//!
//! Of a line that is only passed on, no more is parsed than the rules need; it stays raw text.

use std::{borrow::Cow, path::Path};

use agent_client_protocol_schema::{ProtocolVersion, v1 as acp};
use greenroom_core::{
    Answer, Fold, FrameKind, Json, Permission, PromptReply, SessionId, StopReason, Usage,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How deep JSON may nest. `serde_json` stops at 128 by itself, but not in text it passes over.
const DEPTH_MAX: usize = 128;
/// JSON-RPC's code for a method that one does not have.
const METHOD_NOT_FOUND: i32 = -32601;
/// The longest method name that is shown as a frame's kind.
const KIND_BYTES_MAX: usize = 100;

/// A line from the agent, told apart.
#[derive(Debug, PartialEq)]
pub enum Heard<'a> {
    /// A notification.
    Notice(FrameKind, Fold),
    /// The answer to a request of ours.
    Response {
        /// Which request.
        id: u64,
        /// Its result, or its error.
        outcome: Result<&'a str, RpcError>,
    },
    /// The agent wants a permission.
    Permission(Permission),
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

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct UpdateParams<'a> {
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
    status: Option<String>,
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
    match (envelope.method, envelope.id) {
        (Some(method), None) if method == "session/update" => {
            Ok(Heard::Notice("session/update".into(), fold(envelope.params)))
        }
        (Some(method), None) => Ok(Heard::Notice(kind(&method), Fold::default())),
        (Some(method), Some(id)) if method == "session/request_permission" => {
            let id = json(id);
            Ok(Heard::Permission(Permission { id, reject: reject_option(envelope.params) }))
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

/// What the rules need to know of a message that was stored: the same as when it was said.
pub fn meaning(line: &str) -> Fold {
    match hear(line) {
        Ok(Heard::Notice(_, fold)) => fold,
        Ok(Heard::Permission(_) | Heard::Request { .. }) => {
            Fold { output: true, ..Fold::default() }
        }
        Ok(Heard::Response { .. }) | Err(_) => Fold::default(),
    }
}

/// What the rules need to know of a `session/update`. One that does not look like ACP means
/// nothing to them, and is kept all the same.
fn fold(params: Option<&RawValue>) -> Fold {
    let mut fold = Fold::default();
    let Some(Ok(UpdateParams { update })) = params.map(|raw| serde_json::from_str(raw.get()))
    else {
        return fold;
    };
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
            let ended = matches!(update.status.as_deref(), Some("completed" | "failed"));
            if let Some(tool) = update.tool_call_id
                && (ended || word == "tool_call")
            {
                fold.tools.push((tool, !ended));
            }
        }
        "usage_update" => {
            if let (Some(used), Some(size)) = (update.used, update.size) {
                fold.usage = Some(Usage { used, size, cost: update.cost.map(json) });
            }
        }
        _ => {}
    }
    fold
}

/// The option that says no: once, if there is that choice.
fn reject_option(params: Option<&RawValue>) -> Option<String> {
    #[derive(Deserialize)]
    struct Options {
        options: Vec<acp::PermissionOption>,
    }
    let Options { options } = serde_json::from_str(params?.get()).ok()?;
    let of = |wanted| options.iter().find(|option| option.kind == wanted);
    let option = of(acp::PermissionOptionKind::RejectOnce)
        .or_else(|| of(acp::PermissionOptionKind::RejectAlways))?;
    Some(option.option_id.to_string())
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

/// What a prompt was answered with.
pub fn prompt_reply(outcome: Result<&str, RpcError>) -> PromptReply {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Response<'a> {
        stop_reason: acp::StopReason,
        #[serde(borrow)]
        usage: Option<&'a RawValue>,
    }
    let error = match outcome.map(serde_json::from_str::<Response>) {
        Ok(Ok(Response { stop_reason, usage })) => {
            let stop_reason = match stop_reason {
                acp::StopReason::MaxTokens => StopReason::MaxTokens,
                acp::StopReason::MaxTurnRequests => StopReason::MaxTurnRequests,
                acp::StopReason::Refusal => StopReason::Refusal,
                acp::StopReason::Cancelled => StopReason::Cancelled,
                _ => StopReason::EndTurn,
            };
            return PromptReply::Stopped { stop_reason, tokens: usage.map(json) };
        }
        Ok(Err(err)) => RpcError { code: 0, message: format!("no prompt response: {err}") },
        Err(err) => err,
    };
    PromptReply::Failed { code: error.code, message: error.message }
}

/// A prompt that is plain text, as content blocks.
///
/// # Errors
///
/// None in practice: text always has a JSON form.
pub fn text_prompt(text: &str) -> Result<Json, serde_json::Error> {
    Json::write(&[acp::ContentBlock::from(text)])
}

/// A prompt that says nothing.
pub fn empty_prompt() -> Json {
    Json::write(&[(); 0]).unwrap_or_else(|_| null())
}

/// Checks that `blocks` is an array of ACP content blocks, at least one.
///
/// # Errors
///
/// A sentence on what is wrong with them.
pub fn check_prompt(blocks: &Json) -> Result<(), String> {
    if nests_too_deep(blocks.as_str().as_bytes()) {
        return Err(format!("it nests deeper than {DEPTH_MAX}"));
    }
    match serde_json::from_str::<Vec<acp::ContentBlock>>(blocks.as_str()) {
        Ok(blocks) if blocks.is_empty() => Err("it holds no content block".into()),
        Ok(_) => Ok(()),
        Err(err) => Err(format!("it is no array of ACP content blocks: {err}")),
    }
}

/// The `session/prompt` line: what is sent, and what the transcript shows as sent.
pub fn prompt_line(id: u64, session: &SessionId, prompt: &Json) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        session_id: &'a SessionId,
        prompt: &'a Json,
    }
    request_line(id, "session/prompt", &Params { session_id: session, prompt })
}

/// The `session/cancel` line.
pub fn cancel_line(session: &SessionId) -> String {
    let params = acp::CancelNotification::new(session.0.clone());
    let params = serde_json::to_string(&params).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","method":"session/cancel","params":{params}}}"#)
}

/// The line that answers a permission request.
pub fn answer_line(answer: &Answer) -> String {
    let outcome = match &answer.selected {
        Some(option) => acp::RequestPermissionOutcome::Selected(
            acp::SelectedPermissionOutcome::new(option.clone()),
        ),
        None => acp::RequestPermissionOutcome::Cancelled,
    };
    let result = acp::RequestPermissionResponse::new(outcome);
    let result = serde_json::to_string(&result).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, answer.request.as_str())
}

/// The line that answers a request for something that greenroom does not offer.
pub fn refusal_line(id: &str) -> String {
    let error = r#""message":"greenroom does not offer this method""#;
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{METHOD_NOT_FOUND},{error}}}}}"#)
}

/// The `initialize` line. It advertises neither files nor terminals (SEEDS AM-6).
pub fn initialize_line(id: u64) -> String {
    let session =
        acp::ClientSessionCapabilities::new().compaction(acp::CompactionCapabilities::new());
    let request = acp::InitializeRequest::new(ProtocolVersion::V1)
        .client_capabilities(acp::ClientCapabilities::new().session(session))
        .client_info(acp::Implementation::new("greenroom", env!("CARGO_PKG_VERSION")));
    request_line(id, "initialize", &request)
}

/// The `authenticate` line.
pub fn authenticate_line(id: u64, method: &str) -> String {
    request_line(id, "authenticate", &acp::AuthenticateRequest::new(method.to_owned()))
}

/// The `session/new` line.
pub fn new_session_line(id: u64, cwd: &Path) -> String {
    request_line(id, "session/new", &acp::NewSessionRequest::new(cwd))
}

/// The `session/resume` line.
pub fn resume_session_line(id: u64, session: &SessionId, cwd: &Path) -> String {
    let request = acp::ResumeSessionRequest::new(session.0.clone(), cwd);
    request_line(id, "session/resume", &request)
}

/// The `session/load` line.
pub fn load_session_line(id: u64, session: &SessionId, cwd: &Path) -> String {
    request_line(id, "session/load", &acp::LoadSessionRequest::new(session.0.clone(), cwd))
}

fn request_line(id: u64, method: &str, params: &impl Serialize) -> String {
    let params = serde_json::to_string(params).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// What an agent can do, as far as greenroom asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// `session/resume`.
    pub resume: bool,
    /// `session/load`.
    pub load: bool,
}

/// Reads the answer to `initialize`.
///
/// # Errors
///
/// A sentence on what is wrong with it: no answer of this protocol, or another version of it.
pub fn abilities(result: &str) -> Result<Abilities, String> {
    let answer: acp::InitializeResponse =
        serde_json::from_str(result).map_err(|err| format!("it is no ACP agent: {err}"))?;
    if answer.protocol_version != ProtocolVersion::V1 {
        let version = answer.protocol_version;
        return Err(format!("it speaks ACP version {version}, and greenroom version 1"));
    }
    let capabilities = answer.agent_capabilities;
    Ok(Abilities {
        resume: capabilities.session_capabilities.resume.is_some(),
        load: capabilities.load_session,
    })
}

/// Reads the answer to `session/new`.
///
/// # Errors
///
/// A sentence on what is wrong with it.
pub fn new_session(result: &str) -> Result<SessionId, String> {
    let answer: acp::NewSessionResponse =
        serde_json::from_str(result).map_err(|err| format!("it gave no session: {err}"))?;
    Ok(SessionId(answer.session_id.to_string().into()))
}

/// Whether the answer to `session/resume` or `session/load` shows that `session` is in force.
///
/// Hermes answers the load of an unknown session with `{}`, and the resume of one with the
/// provenance of another that it made for it; so an answer that says nothing needs `replayed`, and
/// one that names a session must name the right one.
pub fn took_up(result: &str, session: &SessionId, replayed: bool, loaded: bool) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Provenance {
        acp_session_id: Option<String>,
        current_hermes_session_id: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Hermes {
        session_provenance: Option<Provenance>,
    }
    #[derive(Deserialize)]
    struct Meta {
        hermes: Option<Hermes>,
    }
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "_meta")]
        meta: Option<Meta>,
    }
    let provenance = serde_json::from_str::<Answer>(result)
        .ok()
        .and_then(|answer| answer.meta)
        .and_then(|meta| meta.hermes)
        .and_then(|hermes| hermes.session_provenance);
    if let Some(provenance) = provenance {
        let is_it = |id: &Option<String>| id.as_deref() == Some(&*session.0);
        return is_it(&provenance.acp_session_id) || is_it(&provenance.current_hermes_session_id);
    }
    let silent = matches!(result.trim(), "null" | "{}");
    !loaded || replayed || !silent
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
            Ok(Heard::Notice(kind, fold)) if kind == "session/update" => fold,
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
    fn tool_calls_are_open_until_they_say_that_they_ended() {
        let tools = |line: &str| folded(line).tools;
        let call = |word, status: &str| {
            tools(&format!(r#"{{"sessionUpdate":"{word}","toolCallId":"1","status":"{status}"}}"#))
        };
        assert_eq!(call("tool_call", "pending"), [("1".to_owned(), true)]);
        assert_eq!(call("tool_call", "completed"), [("1".to_owned(), false)]);
        assert_eq!(call("tool_call_update", "in_progress"), []);
        assert_eq!(call("tool_call_update", "failed"), [("1".to_owned(), false)]);
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

    #[test]
    fn a_permission_is_refused_by_the_mildest_option() {
        let ask = |kinds: &[&str]| {
            let option = |(at, kind): (usize, &&str)| {
                format!(r#"{{"optionId":"o{at}","name":"n","kind":"{kind}"}}"#)
            };
            let options: Vec<_> = kinds.iter().enumerate().map(option).collect();
            let options = options.join(",");
            let line = format!(
                r#"{{"id":0,"method":"session/request_permission","params":{{"options":[{options}]}}}}"#
            );
            match hear(&line) {
                Ok(Heard::Permission(permission)) => permission.reject,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ask(&["reject_always", "reject_once"]).as_deref(), Some("o1"));
        assert_eq!(ask(&["allow_once", "reject_always"]).as_deref(), Some("o1"));
        assert_eq!(ask(&["allow_once", "allow_always"]), None);
    }

    #[test]
    fn an_unknown_session_is_not_taken_for_continuity() {
        let session = SessionId("s".into());
        let of = |id: &str| {
            format!(r#"{{"_meta":{{"hermes":{{"sessionProvenance":{{"acpSessionId":"{id}"}}}}}}}}"#)
        };
        #[rustfmt::skip]
        let cases = [
            ("plain resume",             "{}",        false, false, true),
            ("hermes made another",      &of("x"),    false, false, false),
            ("hermes resumed",           &of("s"),    false, false, true),
            ("load of an unknown one",   "{}",        false, true,  false),
            ("load with a transcript",   "{}",        true,  true,  true),
            ("load that tells of modes", r#"{"modes":{}}"#, false, true, true),
        ];
        for (name, result, replayed, loaded, took) in cases {
            assert_eq!(took_up(result, &session, replayed, loaded), took, "{name}");
        }
    }
}
