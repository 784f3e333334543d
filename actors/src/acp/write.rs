//! The lines that greenroom writes to an agent: requests, notifications and responses.

use std::path::Path;

use agent_client_protocol_schema::{ProtocolVersion, v1 as acp};
use greenroom_core::{Answer, Json, SessionId};
use serde::Serialize;

use super::{DEPTH_MAX, nests_too_deep};

/// JSON-RPC's code for an unknown method.
const METHOD_NOT_FOUND: i32 = -32601;

/// Returns a plain text prompt as content blocks.
///
/// # Errors
///
/// None in practice: text always has a JSON form.
pub fn text_prompt(text: &str) -> Result<Json, serde_json::Error> {
    Json::write(&[acp::ContentBlock::from(text)])
}

/// Returns a prompt without content blocks.
pub fn empty_prompt() -> Json {
    Json::write(&[(); 0]).unwrap_or_else(|_| unreachable!("an empty array is JSON"))
}

/// Checks that `blocks` is an array of ACP content blocks, at least one.
///
/// # Errors
///
/// A sentence that describes the problem.
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

/// Returns the `session/prompt` line, for the agent and for the transcript.
pub fn prompt_line(id: u64, session: &SessionId, prompt: &Json) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        session_id: &'a SessionId,
        prompt: &'a Json,
    }
    request_line(id, "session/prompt", &Params { session_id: session, prompt })
}

/// Returns the `session/cancel` line.
pub fn cancel_line(session: &SessionId) -> String {
    let params = acp::CancelNotification::new(session.0.clone());
    let params = serde_json::to_string(&params).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","method":"session/cancel","params":{params}}}"#)
}

/// Returns the line that answers a permission request.
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

/// Returns the line that refuses a request for a method that greenroom does not offer.
pub fn refusal_line(id: &str) -> String {
    let error = r#""message":"greenroom does not offer this method""#;
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{METHOD_NOT_FOUND},{error}}}}}"#)
}

/// Returns the `initialize` line. It advertises neither files nor terminals (AM-6).
pub fn initialize_line(id: u64) -> String {
    let session =
        acp::ClientSessionCapabilities::new().compaction(acp::CompactionCapabilities::new());
    let request = acp::InitializeRequest::new(ProtocolVersion::V1)
        .client_capabilities(acp::ClientCapabilities::new().session(session))
        .client_info(acp::Implementation::new("greenroom", env!("CARGO_PKG_VERSION")));
    request_line(id, "initialize", &request)
}

/// Returns the `authenticate` line.
pub fn authenticate_line(id: u64, method: &str) -> String {
    request_line(id, "authenticate", &acp::AuthenticateRequest::new(method.to_owned()))
}

/// Returns the `session/new` line.
pub fn new_session_line(id: u64, cwd: &Path) -> String {
    request_line(id, "session/new", &acp::NewSessionRequest::new(cwd))
}

/// Returns the `session/resume` line.
pub fn resume_session_line(id: u64, session: &SessionId, cwd: &Path) -> String {
    let request = acp::ResumeSessionRequest::new(session.0.clone(), cwd);
    request_line(id, "session/resume", &request)
}

/// Returns the `session/load` line.
pub fn load_session_line(id: u64, session: &SessionId, cwd: &Path) -> String {
    request_line(id, "session/load", &acp::LoadSessionRequest::new(session.0.clone(), cwd))
}

fn request_line(id: u64, method: &str, params: &impl Serialize) -> String {
    let params = serde_json::to_string(params).unwrap_or_default();
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}
