//! Parses an agent's permission requests.

use greenroom_core::{Json, PermissionAsked, PermissionOption, PermissionShown};
use serde_json::value::RawValue;

use super::{
    Message,
    fields::{elements, fields, object, text},
    json, tool,
};

/// Parses a `session/request_permission` with this JSON-RPC id. Parts that cannot be parsed are
/// left out: the request needs an answer all the same.
pub fn permission<'a>(request: Json, params: Option<&RawValue>) -> Message<'a> {
    fields! {
        struct Params { tool_call: "toolCall", options: "options" }
        struct ToolCall { id: "toolCallId", kind: "kind" }
    }
    let Params { tool_call, options } = params.and_then(object).unwrap_or_default();
    let shown = |raw: Option<&RawValue>, none: &str| {
        raw.map_or_else(|| Json::parse(none.into()).unwrap_or_else(|_| super::null()), json)
    };
    let ToolCall { id, kind } = tool_call.and_then(object).unwrap_or_default();
    let asked = PermissionAsked {
        request,
        tool_kind: kind.and_then(text).map(Into::into),
        options: options.map(offered).unwrap_or_default(),
        shown: PermissionShown {
            tool_call: shown(tool_call, "null"),
            options: shown(options, "[]"),
        },
    };
    Message::Permission { asked: Box::new(asked), tool: id.and_then(tool::id) }
}

/// Returns the options that can be chosen: an id that cannot be repeated exactly is none.
fn offered(options: &RawValue) -> Vec<PermissionOption> {
    fields! {
        struct Offered { id: "optionId", kind: "kind" }
    }
    let read = |option: &RawValue| {
        let Offered { id, kind } = object(option)?;
        let kind = kind.and_then(text).unwrap_or_default().into_owned();
        Some(PermissionOption { id: id.and_then(text)?.into_owned(), kind })
    };
    elements(options).into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(params: &str) -> PermissionAsked {
        let params = RawValue::from_string(params.to_owned()).unwrap();
        match permission(Json::parse("7".into()).unwrap(), Some(&params)) {
            Message::Permission { asked, .. } => *asked,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_permission_is_stored_unchanged() {
        let tool_call = r#"{"toolCallId":"t","kind":"execute","title":"rm -rf"}"#;
        let options = r#"[{"optionId":"y","name":"Yes","kind":"allow_once"},{"optionId":"n"}]"#;
        let asked = asked(&format!(r#"{{"toolCall":{tool_call},"options":{options},"more":1}}"#));
        let ids: Vec<_> = asked.options.iter().map(|option| (&*option.id, &*option.kind)).collect();
        assert_eq!(ids, [("y", "allow_once"), ("n", "")]);
        assert_eq!(asked.tool_kind.as_deref(), Some("execute"));
        assert_eq!(asked.shown.tool_call.as_str(), tool_call);
        assert_eq!(asked.shown.options.as_str(), options);
    }

    #[test]
    fn a_malformed_request_can_still_be_answered() {
        let options = [
            r#"{"options":[1,{"optionId":2},{"optionId":"n","kind":"reject_once"}]}"#,
            r#"{"toolCall":{"kind":5},"options":{}}"#,
            r#"{"options":[{"optionId":"\ud83d"},{"optionId":"y","kind":7},["n"]],"\ud83d":1}"#,
            "[]",
            "3",
        ]
        .map(|params| asked(params).options.len());
        assert_eq!(options, [1, 0, 1, 0, 0]);
        let tool = asked(r#"{"toolCall":{"toolCallId":5,"kind":"edit","title":"\ud83d"}}"#);
        assert_eq!(tool.tool_kind.as_deref(), Some("edit"));
    }
}
