//! Parses `_meta.hermes`: which of the agent's own sessions is current, and how it began.

use greenroom_core::Provenance;
use serde_json::value::RawValue;

use super::{
    fields::{fields, object},
    json, key,
};

/// The largest `_meta.hermes` that counts: it is stored whole with the session.
const PROVENANCE_BYTES_MAX: usize = 64 << 10;

/// Parses `_meta.hermes`. A compaction led to the session if it says `reason: "compression"`, or in
/// older versions `lastMode: "session_split"`.
pub fn provenance(raw: &RawValue) -> Option<Provenance> {
    if PROVENANCE_BYTES_MAX < raw.get().len() {
        return None;
    }
    let outer: Hermes<'_> = object(raw)?;
    let inner: Hermes<'_> = outer.session_provenance.and_then(object).unwrap_or_default();
    let pick = |field: fn(&Hermes<'_>) -> Option<String>| field(&inner).or_else(|| field(&outer));
    let current = pick(|hermes| {
        let current = hermes.current_hermes_session_id.and_then(key);
        current.or_else(|| hermes.hermes_session_id.and_then(key))
    })?;
    let reason = pick(|hermes| hermes.reason.and_then(key));
    let mode = pick(|hermes| {
        let compaction: HermesCompaction<'_> = hermes.compaction.and_then(object)?;
        compaction.last_mode.and_then(key)
    });
    let compacted =
        reason.as_deref() == Some("compression") || mode.as_deref() == Some("session_split");
    // `previous` is the session at the turn's start: after two compactions in a turn it is not the
    // one compacted last, and without a compaction it is the current one.
    let parent = pick(|hermes| hermes.parent_hermes_session_id.and_then(key));
    let at_start = pick(|hermes| hermes.previous_hermes_session_id.and_then(key))
        .filter(|previous| *previous != current);
    let previous = if compacted { parent.or(at_start) } else { at_start.or(parent) };
    Some(Provenance { current, previous, compacted, given: json(raw) })
}

fields! {
    /// `_meta.hermes`. Current versions put the fields into `sessionProvenance`, older ones beside
    /// it.
    struct Hermes {
        session_provenance: "sessionProvenance",
        current_hermes_session_id: "currentHermesSessionId",
        /// The older name of `currentHermesSessionId`.
        hermes_session_id: "hermesSessionId",
        previous_hermes_session_id: "previousHermesSessionId",
        parent_hermes_session_id: "parentHermesSessionId",
        reason: "reason",
        compaction: "compaction",
    }

    struct HermesCompaction { last_mode: "lastMode" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acp::{self, Message};

    /// AM-13, AM-23: the current hermes session, by the current names and by the older ones.
    #[test]
    fn hermes_reports_its_session() {
        #[rustfmt::skip]
        let cases = [
            ("root",             r#"{"sessionProvenance":{"acpSessionId":"a","currentHermesSessionId":"a","rootHermesSessionId":"a","parentHermesSessionId":null,"sessionKind":"root","compressionDepth":0}}"#, Some(("a", None, false))),
            ("rotated",          r#"{"sessionProvenance":{"acpSessionId":"a","currentHermesSessionId":"b","parentHermesSessionId":"p","previousHermesSessionId":"a","reason":"compression"}}"#, Some(("b", Some("p"), true))),
            ("loaded later",     r#"{"sessionProvenance":{"currentHermesSessionId":"b","parentHermesSessionId":"p","sessionKind":"continuation"}}"#, Some(("b", Some("p"), false))),
            ("same as before",   r#"{"sessionProvenance":{"currentHermesSessionId":"b","previousHermesSessionId":"b","parentHermesSessionId":null}}"#, Some(("b", None, false))),
            ("another reason",   r#"{"sessionProvenance":{"currentHermesSessionId":"b","previousHermesSessionId":"a","reason":"branch"}}"#, Some(("b", Some("a"), false))),
            ("older",            r#"{"hermesSessionId":"b","compaction":{"lastMode":"session_split"}}"#,               Some(("b", None, true))),
            ("older, in place",  r#"{"hermesSessionId":"b","compaction":{"lastMode":"in_place"}}"#,                    Some(("b", None, false))),
            ("older, nested",    r#"{"sessionProvenance":{"hermesSessionId":"b","compaction":{"lastMode":"session_split"}}}"#, Some(("b", None, true))),
            ("older, beside",    r#"{"sessionProvenance":{"currentHermesSessionId":"b"},"compaction":{"lastMode":"session_split"}}"#, Some(("b", None, true))),
            ("no session",       r#"{"compaction":{"lastMode":"session_split"}}"#,                                     None),
            ("empty",            r#"{}"#,                                                                              None),
            ("no object",        r#""b""#,                                                                             None),
            ("odd fields",       r#"{"sessionProvenance":7,"hermesSessionId":8}"#,                                     None),
        ];
        for (name, hermes, expected) in cases {
            let update = format!(
                r#"{{"_meta":{{"hermes":{hermes}}},"title":"t","sessionUpdate":"session_info_update"}}"#
            );
            let line = format!(r#"{{"method":"session/update","params":{{"update":{update}}}}}"#);
            let expected = expected.map(|(current, previous, compacted)| Provenance {
                current: current.into(),
                previous: previous.map(str::to_owned),
                compacted,
                given: greenroom_core::Json::parse(hermes.into()).expect("JSON"),
            });
            let Ok(Message::Notification(notification)) = acp::parse(&line) else { panic!() };
            let parsed = notification.context.and_then(|context| context.provenance);
            assert_eq!(parsed, expected, "{name}, in an update");
            let answer = format!(r#"{{"_meta":{{"hermes":{hermes}}},"sessionId":"a"}}"#);
            assert_eq!(acp::provenance(&answer), expected, "{name}, in an answer");
        }
        for answer in ["null", "{}", "[]", "", r#"[{"hermes":{"hermesSessionId":"b"}}]"#] {
            assert_eq!(acp::provenance(answer), None, "{answer}");
        }
        let long = "x".repeat(PROVENANCE_BYTES_MAX);
        let large = format!(r#"{{"_meta":{{"hermes":{{"hermesSessionId":"b","x":"{long}"}}}}}}"#);
        assert_eq!(acp::provenance(&large), None);
    }
}
