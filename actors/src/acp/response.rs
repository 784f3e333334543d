//! Parses an agent's responses to greenroom's requests.

use agent_client_protocol_schema::{ProtocolVersion, v1 as acp};
use greenroom_core::{PromptReply, Provenance, SessionId, StopReason};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{RpcError, context, cost};

/// Parses the response to a prompt.
pub fn prompt_reply(outcome: Result<&str, RpcError>) -> PromptReply {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Response<'a> {
        stop_reason: acp::StopReason,
        #[serde(borrow)]
        usage: Option<&'a RawValue>,
        #[serde(borrow, rename = "_meta")]
        meta: Option<&'a RawValue>,
    }
    let error = match outcome.map(serde_json::from_str::<Response>) {
        Ok(Ok(Response { stop_reason, usage, meta })) => {
            let stop_reason = match stop_reason {
                acp::StopReason::MaxTokens => StopReason::MaxTokens,
                acp::StopReason::MaxTurnRequests => StopReason::MaxTurnRequests,
                acp::StopReason::Refusal => StopReason::Refusal,
                acp::StopReason::Cancelled => StopReason::Cancelled,
                _ => StopReason::EndTurn,
            };
            let tokens = cost::spent(usage, meta).map(Box::new);
            return PromptReply::Stopped { stop_reason, tokens };
        }
        Ok(Err(err)) => RpcError { code: 0, message: format!("no prompt response: {err}") },
        Err(err) => err,
    };
    PromptReply::Failed { code: error.code, message: error.message }
}

/// The agent's capabilities that greenroom uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `session/resume`.
    pub resume: bool,
    /// `session/load`.
    pub load: bool,
}

/// Parses the response to `initialize`.
///
/// # Errors
///
/// A sentence that describes the problem: no response of this protocol, or another version of it.
pub fn capabilities(result: &str) -> Result<Capabilities, String> {
    let answer: acp::InitializeResponse =
        serde_json::from_str(result).map_err(|err| format!("it is no ACP agent: {err}"))?;
    if answer.protocol_version != ProtocolVersion::V1 {
        let version = answer.protocol_version;
        return Err(format!("it speaks ACP version {version}, and greenroom version 1"));
    }
    let capabilities = answer.agent_capabilities;
    Ok(Capabilities {
        resume: capabilities.session_capabilities.resume.is_some(),
        load: capabilities.load_session,
    })
}

/// Parses the response to `session/new`.
///
/// # Errors
///
/// A sentence that describes the problem.
pub fn opened_session(result: &str) -> Result<SessionId, String> {
    let answer: acp::NewSessionResponse =
        serde_json::from_str(result).map_err(|err| format!("it gave no session: {err}"))?;
    Ok(SessionId(answer.session_id.to_string().into()))
}

/// Whether the response to `session/resume` or `session/load` shows that the agent restored
/// `session`.
///
/// Hermes answers the load of an unknown session with `{}`, and the resume of one with the
/// provenance of another session that it created instead. So an empty response to a load counts
/// only if the agent `replayed` the session, and a response that names a session must name the
/// right one.
pub fn session_restored(result: &str, session: &SessionId, replayed: bool, loaded: bool) -> bool {
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

/// Parses the current hermes session from `_meta.hermes` of the response to `session/new`,
/// `session/load` or `session/resume`.
pub fn provenance(result: &str) -> Option<Provenance> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(rename = "_meta", borrow)]
        meta: Option<&'a RawValue>,
    }
    // serde would take an array for an object, field by field.
    if !result.trim_start().starts_with('{') {
        return None;
    }
    let answer: Answer = serde_json::from_str(result).ok()?;
    context::meta_provenance(answer.meta?)
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
            ("plain resume",             "{}",        false, false, true),
            ("hermes made another",      &of("x"),    false, false, false),
            ("hermes resumed",           &of("s"),    false, false, true),
            ("load of an unknown one",   "{}",        false, true,  false),
            ("load with a transcript",   "{}",        true,  true,  true),
            ("load with modes",          r#"{"modes":{}}"#, false, true, true),
        ];
        for (name, result, replayed, loaded, restored) in cases {
            assert_eq!(session_restored(result, &session, replayed, loaded), restored, "{name}");
        }
    }
}
