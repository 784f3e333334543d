//! Parses an agent's responses to greenroom's requests.

use greenroom_core::{
    ErrorKind, PromptCapabilities, PromptReply, Provenance, SessionId, StopReason,
};
use serde_json::value::RawValue;

use super::{
    Message, RpcError, Unaddressed,
    bounds::{ERROR_BYTES_MAX, truncate},
    cause::{redacted, with_causes},
    context, cost, error_kind,
    fields::{fields, lossy_text, object, read, text, whole},
};

/// The version of ACP that greenroom speaks.
const PROTOCOL_VERSION: i64 = 1;
/// The longest part of another version that is shown.
const VERSION_BYTES_MAX: usize = 40;

/// Returns the response with this id. One without a result has the result `null`.
pub(super) fn response<'a>(
    id: u64,
    result: Option<&'a RawValue>,
    error: Option<&RawValue>,
) -> Message<'a> {
    let outcome = match (result, error.map(rpc_error)) {
        (_, None) => Ok(result.map_or("null", RawValue::get)),
        (None, Some(error)) => Err(error),
        (Some(result), Some(_)) if error.is_some_and(says_nothing) => Ok(result.get()),
        (Some(_), Some(error)) => {
            let message = format!("{error}, and a result beside it");
            let message = truncate(message, ERROR_BYTES_MAX);
            Err(RpcError { code: None, kind: ErrorKind::Passing, message })
        }
    };
    Message::Response { id, outcome }
}

/// Whether an error is only an empty value, beside a result: some agents write all members.
fn says_nothing(error: &RawValue) -> bool {
    let json: String = error.get().split_ascii_whitespace().collect();
    ["{}", "[]", "\"\"", "false"].contains(&&*json)
}

/// The codes of JSON-RPC for a request that the agent does not know: an invalid request, and an
/// unknown method.
const UNKNOWN_REQUEST_CODES: [i64; 2] = [-32600, -32601];

/// Returns the error of a response without an id.
pub(super) fn unaddressed(raw: &RawValue) -> Option<Unaddressed> {
    if says_nothing(raw) {
        return None;
    }
    let error = rpc_error(raw);
    let is_of_unknown = error.code.is_some_and(|code| UNKNOWN_REQUEST_CODES.contains(&code));
    let message = format!("{error}, in an answer without an id");
    let message = truncate(message, ERROR_BYTES_MAX);
    let error = RpcError { code: None, kind: ErrorKind::Passing, message };
    Some(Unaddressed { error, is_of_unknown })
}

fn rpc_error(raw: &RawValue) -> RpcError {
    fields! {
        struct Error { code: "code", message: "message", data: "data" }
    }
    let Error { code, message, data } = object(raw).unwrap_or_default();
    let code = code.and_then(whole);
    let kind = error_kind::kind(code, message.or(Some(raw)), data);
    let message = message.and_then(lossy_text).map(|text| with_causes(&text, data));
    let shown = || {
        let text = lossy_text(raw).unwrap_or(raw.get().into());
        truncate(redacted(&text).into_owned(), ERROR_BYTES_MAX)
    };
    RpcError { code, kind, message: message.unwrap_or_else(shown) }
}

/// Parses the response to a prompt.
pub fn prompt_reply(outcome: Result<&str, RpcError>) -> PromptReply {
    fields! {
        struct Response { stop_reason: "stopReason", usage: "usage", meta: "_meta" }
    }
    match outcome {
        Ok(result) => {
            let Response { stop_reason, usage, meta } = read(result).unwrap_or_default();
            let word = stop_reason.and_then(text).unwrap_or_default();
            let tokens = cost::spent(usage, meta).map(Box::new);
            PromptReply::Stopped { stop_reason: StopReason::from_agent(&word), tokens }
        }
        Err(RpcError { code: Some(code), kind, message }) => {
            PromptReply::Failed { code, kind, message }
        }
        Err(RpcError { code: None, message, .. }) => PromptReply::Unclear { message },
    }
}

/// The agent's capabilities that greenroom uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `session/resume`.
    pub resume: bool,
    /// `session/load`.
    pub load: bool,
    /// The content blocks of prompts.
    pub prompts: PromptCapabilities,
}

/// Parses the response to `initialize`.
///
/// # Errors
///
/// A sentence that describes the problem: no response of this protocol, or another version of it.
pub fn capabilities(result: &str) -> Result<Capabilities, String> {
    fields! {
        struct Answer { version: "protocolVersion", capabilities: "agentCapabilities" }
        struct Given {
            load: "loadSession",
            session: "sessionCapabilities",
            prompts: "promptCapabilities",
        }
        struct Prompts { image: "image", audio: "audio", embedded: "embeddedContext" }
        struct OfSessions { resume: "resume" }
    }
    let answer: Answer<'_> = read(result).map_err(|err| format!("it is no ACP agent: {err}"))?;
    match answer.version.map(|version| (version, whole(version))) {
        Some((_, Some(PROTOCOL_VERSION))) => {}
        Some((version, _)) => {
            let version = truncate(version.get().to_owned(), VERSION_BYTES_MAX);
            return Err(format!("it speaks ACP version {version}, and greenroom version 1"));
        }
        None => return Err("it is no ACP agent: it gave no protocol version".into()),
    }
    let Given { load, session, prompts } = answer.capabilities.and_then(object).unwrap_or_default();
    let OfSessions { resume } = session.and_then(object).unwrap_or_default();
    let Prompts { image, audio, embedded } = prompts.and_then(object).unwrap_or_default();
    // Only what is surely missing is refused; absent is missing.
    let takes =
        |given: Option<&RawValue>| given.is_some_and(|raw| !["false", "0"].contains(&raw.get()));
    let (image, audio, embedded_context) = (takes(image), takes(audio), takes(embedded));
    Ok(Capabilities {
        prompts: PromptCapabilities { image, audio, embedded_context },
        resume: resume.is_some_and(|raw| raw.get().starts_with('{')),
        load: load.is_some_and(|raw| raw.get() == "true"),
    })
}

/// Parses the response to `session/new`.
///
/// # Errors
///
/// A sentence that describes the problem.
pub fn opened_session(result: &str) -> Result<SessionId, String> {
    fields! {
        struct Answer { session_id: "sessionId" }
    }
    let answer: Answer<'_> = read(result).map_err(|err| format!("it gave no session: {err}"))?;
    let session = answer.session_id.and_then(text).ok_or("it gave no session: no `sessionId`")?;
    Ok(SessionId(session.into()))
}

/// What agents say of a session that they do not know, in lower case. claude-agent-acp, opencode,
/// qwen-code and later versions of hermes say that it was not found, and claude's own program that
/// there is no conversation; codex misses a rollout or a thread; pi-acp does not know the id.
/// gemini-cli, as recorded: `Invalid session identifier`.
const GONE_WORDS: [&str; 9] = [
    "session not found",
    "resource not found",
    "no conversation found",
    "no rollout found",
    "thread not found",
    "unknown session",
    "invalid session identifier",
    "no previous sessions found",
    "no saved session found",
];
/// ACP's code for a resource that does not exist.
const RESOURCE_NOT_FOUND: i64 = -32002;

/// Whether an error that answers `session/resume` or `session/load` says that the session does not
/// exist. Any other error may pass.
pub fn is_session_gone(error: &RpcError) -> bool {
    let message = error.message.to_lowercase();
    error.code == Some(RESOURCE_NOT_FOUND) || GONE_WORDS.iter().any(|word| message.contains(word))
}

/// Whether the response to `session/resume` or `session/load` shows that the agent restored
/// `session`; `None` if only a replay of the session would.
///
/// Hermes answers the load of an unknown session with `{}`, and the resume of one with the
/// provenance of another session that it created instead. So an empty response to a load shows
/// nothing, and a response that names a session must name the right one.
pub fn restored(result: &str, session: &SessionId, loaded: bool) -> Option<bool> {
    fields! {
        struct Provenance { acp: "acpSessionId", current: "currentHermesSessionId" }
        struct Hermes { provenance: "sessionProvenance" }
        struct Meta { hermes: "hermes" }
    }
    let provenance = read::<Answer<'_>>(result)
        .ok()
        .and_then(|answer| answer.meta.and_then(object::<Meta<'_>>))
        .and_then(|meta| meta.hermes.and_then(object::<Hermes<'_>>))
        .and_then(|hermes| hermes.provenance.and_then(object::<Provenance<'_>>));
    if let Some(Provenance { acp, current }) = provenance {
        let is_it = |id: Option<&RawValue>| id.and_then(text).as_deref() == Some(&*session.0);
        return Some(is_it(acp) || is_it(current));
    }
    let is_empty = matches!(result.trim(), "null" | "{}");
    (!loaded || !is_empty).then_some(true)
}

/// Parses the current hermes session from `_meta.hermes` of the response to `session/new`,
/// `session/load` or `session/resume`.
pub fn provenance(result: &str) -> Option<Provenance> {
    context::meta_provenance(read::<Answer<'_>>(result).ok()?.meta?)
}

fields! {
    /// A response with the agent's own data.
    struct Answer { meta: "_meta" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_session_does_not_count_as_restored() {
        let session = SessionId("s".into());
        let of = |id: &str| {
            format!(r#"{{"_meta":{{"hermes":{{"sessionProvenance":{{"acpSessionId":"{id}"}}}}}}}}"#)
        };
        #[rustfmt::skip]
        let cases = [
            ("plain resume",             "{}",                 false, Some(true)),
            ("hermes made another",      &of("x"),             false, Some(false)),
            ("hermes resumed",           &of("s"),             false, Some(true)),
            ("load of an unknown one",   "{}",                 true,  None),
            ("load answered null",       "null",               true,  None),
            ("load with modes",          r#"{"modes":{}}"#,    true,  Some(true)),
            ("another, and an odd id",   r#"{"_meta":{"hermes":{"sessionProvenance":{"acpSessionId":7,"currentHermesSessionId":"x"}}}}"#, false, Some(false)),
        ];
        for (name, result, loaded, expected) in cases {
            assert_eq!(restored(result, &session, loaded), expected, "{name}");
        }
    }

    /// I16: only an answer that says so shows that a session does not exist.
    #[test]
    fn an_error_says_whether_the_session_is_gone() {
        #[rustfmt::skip]
        let cases = [
            (r#"{"code":-32002,"message":"no such session"}"#,                                              true),
            (r#"{"code":-32603,"message":"Internal error","data":{"details":"Invalid session identifier \"s\"."}}"#, true),
            (r#"{"code":-32603,"message":"Internal error: Session not found: ses_1"}"#,                     true),
            (r#"{"code":-32603,"message":"no rollout found for thread id s"}"#,                             true),
            (r#"{"code":-32602,"message":"Invalid params","data":"Unknown sessionId: s"}"#,                 true),
            (r#"{"code":-32603,"message":"Internal error"}"#,                                               false),
            (r#"{"code":-32603,"message":"Internal error","data":{"details":"the database is locked"}}"#,   false),
            (r#"{"code":-32000,"message":"Authentication required"}"#,                                      false),
            (r#""busy""#,                                                                                   false),
        ];
        for (error, gone) in cases {
            let error = rpc_error(&RawValue::from_string(error.into()).expect("JSON"));
            assert_eq!(is_session_gone(&error), gone, "{error}");
        }
    }

    /// Any result ends the turn; the agent's own word for its end stays.
    #[test]
    fn any_result_is_a_reply() {
        #[rustfmt::skip]
        let cases = [
            (r#"{"stopReason":"end_turn"}"#,                StopReason::EndTurn),
            (r#"{"stopReason":"max_tokens","usage":7}"#,    StopReason::MaxTokens),
            (r#"{"stopReason":"_vendor_pause"}"#,           StopReason::from_agent("_vendor_pause")),
            (r#"{"stopReason":"_deadline"}"#,               StopReason::Unclear),
            (r#"{"stopReason":"cut \ud83d"}"#,              StopReason::Unclear),
            (r#"{"stopReason":7}"#,                         StopReason::Unclear),
            ("{}",                                          StopReason::Unclear),
            ("null",                                        StopReason::Unclear),
            (r#"["end_turn"]"#,                             StopReason::Unclear),
        ];
        for (result, stop_reason) in cases {
            let reply = prompt_reply(Ok(result));
            assert_eq!(reply.stop_reason(), Some(stop_reason), "{result}");
        }
    }

    #[test]
    fn an_odd_field_hides_neither_version_nor_session() {
        let odd = r#"{"protocolVersion":1.0,"authMethods":7,"agentInfo":"\ud83d","agentCapabilities":{
            "loadSession":true,"promptCapabilities":[],"sessionCapabilities":{"resume":{"x":1}}}}"#;
        let prompts = PromptCapabilities::default();
        assert_eq!(capabilities(odd), Ok(Capabilities { resume: true, load: true, prompts }));
        let doubtful = r#"{"protocolVersion":"1","agentCapabilities":{"loadSession":"yes",
            "sessionCapabilities":{"resume":7}}}"#;
        assert_eq!(
            capabilities(doubtful),
            Ok(Capabilities { resume: false, load: false, prompts })
        );
        let prompts = r#"{"protocolVersion":1,"agentCapabilities":{"promptCapabilities":
            {"image":true,"audio":false,"embeddedContext":{}}}}"#;
        let taken = PromptCapabilities { image: true, audio: false, embedded_context: true };
        assert_eq!(capabilities(prompts).map(|given| given.prompts), Ok(taken));
        assert!(capabilities(r#"{"agentInfo":{}}"#).is_err());
        let session = opened_session(r#"{"sessionId":"s","modes":7,"models":"\ud83d"}"#);
        assert_eq!(session, Ok(SessionId("s".into())));
        for none in ["null", "{}", r#"{"sessionId":7}"#, r#"{"sessionId":"\ud83d"}"#] {
            assert!(opened_session(none).is_err(), "{none}");
        }
    }
}
