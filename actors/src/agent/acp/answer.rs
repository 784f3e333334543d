//! What an agent's answers to greenroom's requests mean.

use agent_client_protocol_schema::{ProtocolVersion, v1 as acp};
use greenroom_core::{PromptReply, Provenance, SessionId, StopReason};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{RpcError, context, spend};

/// What a prompt was answered with.
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
            let tokens = spend::spent(usage, meta).map(Box::new);
            return PromptReply::Stopped { stop_reason, tokens };
        }
        Ok(Err(err)) => RpcError { code: 0, message: format!("no prompt response: {err}") },
        Err(err) => err,
    };
    PromptReply::Failed { code: error.code, message: error.message }
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

/// Which hermes session is in force, as the answer to `session/new`, `session/load` or
/// `session/resume` tells in its `_meta.hermes`.
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
