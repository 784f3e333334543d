//! Parses a `session/update`: what it proves about the attempt (A-4), and what its turn keeps.

use greenroom_core::{MessageKey, OtherSessions, OutputSummary, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Notification, Update, context, cost,
    fields::{Object, fields, lossy_text, object, text, whole},
    json,
    session::named_sessions,
    tool,
};

fields! {
    struct Params { session_id: "sessionId", update: "update" }

    struct Content { text: "text" }
}

/// Parses the `params` of a `session/update`. One whose kind cannot be read is output: the agent
/// sent something, and it may have acted.
pub(super) fn notification(params: Option<&RawValue>) -> Notification<'_> {
    let mut notification = Notification::bare("session/update".into());
    let Some(raw) = params else {
        notification.summary.has_output = true;
        return notification;
    };
    let (session_id, update) = parts(raw);
    notification.session = session_id.and_then(text);
    let word = update.session_update.and_then(text).unwrap_or_default();
    // Most updates are chunks of text and need no further parsing.
    if update.meta.is_some() || context::may_carry_context(&word) {
        notification.context = context::parse(&word, update.meta, raw).map(Box::new);
    }
    let tool_kind = update.tool_call_id.and_then(tool::id).zip(update.kind.and_then(text));
    notification.tool_kind = tool_kind.map(|(tool, kind)| Box::new((tool, kind.into_owned())));
    summarize(&word, &update, &mut notification.summary);
    if word.ends_with("_message_chunk") || word == "agent_thought_chunk" {
        let message = update.message_id.and_then(text);
        notification.summary.message = message.map(|id| MessageKey::new(&id));
    }
    if update.meta.is_some() || word.starts_with("tool_call") {
        let own = notification.session.as_deref();
        let children = named_sessions(raw.get(), own);
        let others = OtherSessions { children, elsewhere: None };
        notification.summary.other_sessions =
            (!others.children.is_empty()).then(|| Box::new(others));
    }
    notification
}

/// Returns the session's id, and the update; an empty one if it is no object.
fn parts(params: &RawValue) -> (Option<&RawValue>, Update<'_>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct InOnePass<'a> {
        #[serde(borrow)]
        session_id: Option<&'a RawValue>,
        #[serde(borrow)]
        update: Object<Update<'a>>,
    }
    // serde would take an array for an object, field by field.
    if params.get().starts_with('{')
        && let Ok(InOnePass { session_id, update }) = serde_json::from_str(params.get())
    {
        return (session_id, update.0);
    }
    let Params { session_id, update } = object(params).unwrap_or_default();
    (session_id, update.and_then(object).unwrap_or_default())
}

/// Adds an update of the kind `word` to the summary.
fn summarize(word: &str, update: &Update<'_>, summary: &mut OutputSummary) {
    match word {
        "agent_message_chunk" => {
            summary.has_output = true;
            let content = update.content.and_then(object::<Content<'_>>);
            match content.and_then(|content| content.text).and_then(lossy_text) {
                Some(text) => {
                    summary.has_answer = !text.trim().is_empty();
                    summary.text = text.into_owned();
                }
                None => summary.has_answer = update.content.is_some(),
            }
        }
        "tool_call" | "tool_call_update" => {
            (summary.has_output, summary.has_answer) = (true, true);
            summary.tools.extend(tool::tool_update(update, word == "tool_call"));
        }
        "usage_update" => {
            summary.costs.extend(update.cost.and_then(cost::cost));
            if let (Some(used), Some(size)) =
                (update.used.and_then(whole), update.size.and_then(whole))
            {
                summary.usage = Some(Usage { used, size, cost: update.cost.map(json) });
            }
        }
        // Agents send these by themselves.
        "available_commands_update"
        | "current_mode_update"
        | "config_option_update"
        | "session_info_update" => {}
        // Thoughts, plans, compactions, and what is not understood.
        _ => {
            summary.has_output = true;
            summary.is_users = word == "user_message_chunk";
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::acp::summarize as summarize_line;

    fn summary(update: &str) -> OutputSummary {
        let line = format!(
            r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"s","update":{update}}}}}"#
        );
        summarize_line(&line).1
    }

    /// A-4: which updates count as output of an attempt, and which agents send by themselves.
    #[test]
    fn only_what_agents_send_unasked_is_no_output() {
        #[rustfmt::skip]
        let cases = [
            (r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"a"}}"#,       true),
            (r#"{"sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"hm"}}"#,      true),
            (r#"{"sessionUpdate":"user_message_chunk","content":{"type":"text","text":"you"}}"#,      true),
            (r#"{"sessionUpdate":"tool_call","toolCallId":"1","title":"t"}"#,                         true),
            (r#"{"sessionUpdate":"tool_call_update","toolCallId":"1"}"#,                              true),
            (r#"{"sessionUpdate":"plan","entries":[]}"#,                                              true),
            (r#"{"sessionUpdate":"compaction_update","compactionId":"c","status":"in_progress"}"#,    true),
            (r#"{"sessionUpdate":"available_commands_update","availableCommands":[]}"#,               false),
            (r#"{"sessionUpdate":"current_mode_update","currentModeId":"m"}"#,                        false),
            (r#"{"sessionUpdate":"config_option_update","configOptions":[]}"#,                        false),
            (r#"{"sessionUpdate":"session_info_update","title":"t"}"#,                                false),
            (r#"{"sessionUpdate":"usage_update","used":1,"size":2}"#,                                 false),
            (r#"{"sessionUpdate":"usage_update","used":-1,"size":"2 KB","cost":7}"#,                  false),
            (r#"{"sessionUpdate":"from_the_future"}"#,                                                true),
            (r#"{"sessionUpdate":"plan\ud83d"}"#,                                                     true),
            (r#"{"sessionUpdate":7}"#,                                                                true),
            (r#"{"no":"update"}"#,                                                                    true),
            (r#"["tool_call"]"#,                                                                      true),
            ("null",                                                                                  true),
        ];
        for (update, output) in cases {
            assert_eq!(summary(update).has_output, output, "{update}");
        }
        let usage = |cost| Some(Usage { used: 1, size: 2, cost });
        assert_eq!(
            summary(r#"{"sessionUpdate":"usage_update","used":1,"size":2}"#).usage,
            usage(None)
        );
        let odd =
            r#"{"sessionUpdate":"usage_update","used":1.0,"size":"2","title":9,"title":null}"#;
        assert_eq!(summary(odd).usage, usage(None));
    }

    /// RA: a chunk without text is output and no answer.
    #[test]
    fn a_blank_chunk_is_no_answer() {
        #[rustfmt::skip]
        let cases = [
            (r#""content":{"type":"text","text":"a\u00e4"}"#,         "aä",            true),
            (r#""content":{"type":"text","text":"42 \ud83d"}"#,       "42 \u{fffd}",   true),
            (r#""content":{"type":"text","text":"a"},"size":"12KB""#, "a",             true),
            (r#""content":{"type":"text","text":""}"#,                "",              false),
            (r#""content":{"type":"text","text":" \n\u00a0"}"#,       " \n\u{a0}",     false),
            (r#""content":{"type":"image","data":"AA=="}"#,           "",              true),
            (r#""content":{"type":"text","text":7}"#,                 "",              true),
            (r#""content":null"#,                                     "",              false),
            (r#""title":"no content""#,                               "",              false),
        ];
        for (fields, text, has_answer) in cases {
            let chunk = summary(&format!(r#"{{"sessionUpdate":"agent_message_chunk",{fields}}}"#));
            let expected = OutputSummary {
                has_output: true,
                has_answer,
                text: text.into(),
                ..Default::default()
            };
            assert_eq!(chunk, expected, "{fields}");
        }
    }

    /// Whatever stands around the update: a repeated field, a name cut in mid-emoji.
    #[test]
    fn odd_params_hide_no_update() {
        let chunk = r#"{"sessionUpdate":"agent_message_chunk","content":{"text":"a"}}"#;
        for params in [
            format!(r#""sessionId":"s","\ud83d":1,"update":{chunk}"#),
            format!(r#""update":7,"update":{chunk},"sessionId":7,"sessionId":"s""#),
        ] {
            let line = format!(r#"{{"method":"session/update","params":{{{params}}}}}"#);
            let (session, summary) = summarize_line(&line);
            assert_eq!((session.as_deref(), &*summary.text), (Some("s"), "a"), "{line}");
        }
        let line = format!(r#"{{"method":"session/update","params":["s",{chunk}]}}"#);
        let expected = OutputSummary { has_output: true, ..OutputSummary::default() };
        assert_eq!(summarize_line(&line), (None, expected), "parameters by position say nothing");
    }

    const ODD: [&str; 7] =
        ["null", "true", "1e999", "-0", "18446744073709551616", r#""\ud83d""#, r#""\ude00""#];

    /// Any JSON value, as text.
    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            select(&ODD[..]).prop_map(str::to_owned),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let name = select(&[r#""text""#, r#""content""#, r#""\ud83d""#, r#""amount""#][..]);
            let field = (name, inner.clone()).prop_map(|(name, value)| format!("{name}:{value}"));
            let object = vec(field, 0..3).prop_map(|fields| format!("{{{}}}", fields.join(",")));
            let array = vec(inner, 0..3).prop_map(|values| format!("[{}]", values.join(",")));
            prop_oneof![array, object]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// A-4, I7: no value of any other field hides what an update is.
        #[test]
        fn an_odd_field_hides_no_output(
            kind in select(&["agent_message_chunk", "agent_thought_chunk", "tool_call",
                "tool_call_update", "plan", "compaction_update", "compaction_summary_chunk"][..]),
            name in select(&["content", "used", "size", "cost", "toolCallId", "title", "kind",
                "status", "_meta", "compactionId", "summary", "error", "entries", "rawInput"][..]),
            value in any_json(),
            is_first in any::<bool>(),
        ) {
            let usual = r#""toolCallId":"t","status":"failed","content":{"type":"text","text":"a"}"#;
            let odd = format!("\"{name}\":{value}");
            let (one, other) = if is_first { (&*odd, usual) } else { (usual, &*odd) };
            let fields = format!(r#"{one},"sessionUpdate":"{kind}",{other}"#);
            let summary = summary(&format!("{{{fields}}}"));
            prop_assert!(summary.has_output, "{fields}");
            let tools = usize::from(kind == "tool_call");
            prop_assert!(tools <= summary.tools.len(), "a call is one: {}", fields);
        }
    }
}
