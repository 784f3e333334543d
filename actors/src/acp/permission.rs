//! Parses an agent's permission requests.

use greenroom_core::{Json, PermissionAsked, PermissionOption, PermissionShown};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Message, json};

/// Parses a `session/request_permission` with this JSON-RPC id. Parts that cannot be parsed are
/// left out: the request needs an answer all the same.
pub fn permission<'a>(request: Json, params: Option<&RawValue>) -> Message<'a> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        #[serde(borrow)]
        tool_call: Option<&'a RawValue>,
        #[serde(borrow)]
        options: Option<&'a RawValue>,
    }
    let params = params.and_then(|raw| serde_json::from_str::<Params>(raw.get()).ok());
    let Params { tool_call, options } = params.unwrap_or_default();
    let shown = |raw: Option<&RawValue>, none: &str| {
        raw.map_or_else(|| Json::parse(none.into()).unwrap_or_else(|_| super::null()), json)
    };
    let ToolCall { tool_call_id, kind } = tool_call.and_then(tool).unwrap_or_default();
    let asked = PermissionAsked {
        request,
        tool_kind: kind,
        options: options.map(offered).unwrap_or_default(),
        shown: PermissionShown {
            tool_call: shown(tool_call, "null"),
            options: shown(options, "[]"),
        },
    };
    Message::Permission { asked: Box::new(asked), tool: tool_call_id }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolCall {
    tool_call_id: Option<String>,
    kind: Option<String>,
}

fn tool(tool_call: &RawValue) -> Option<ToolCall> {
    serde_json::from_str(tool_call.get()).ok()
}

fn offered(options: &RawValue) -> Vec<PermissionOption> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Offered {
        option_id: String,
        #[serde(default)]
        kind: String,
    }
    let options = serde_json::from_str::<Vec<&RawValue>>(options.get()).unwrap_or_default();
    let read = |option: &RawValue| serde_json::from_str::<Offered>(option.get()).ok();
    let options = options.into_iter().filter_map(read);
    options.map(|offered| PermissionOption { id: offered.option_id, kind: offered.kind }).collect()
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
            "[]",
            "3",
        ]
        .map(|params| asked(params).options.len());
        assert_eq!(options, [1, 0, 0, 0]);
    }
}
