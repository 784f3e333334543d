//! What a `tool_call` or a `tool_call_update` tells of a call.

use greenroom_core::{ToolNews, ToolResult, ToolStep};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Update, text};

/// The longest name that a title is taken for.
const NAME_BYTES_MAX: usize = 40;
/// The tool of a call of which nothing is told.
const UNKNOWN: &str = "other";

/// What the update tells of a call, which it `opens` or is about.
pub fn news(update: &Update<'_>, opens: bool) -> Option<ToolNews> {
    let ended = match update.status.as_deref() {
        Some("completed") => Some(ToolResult::Completed),
        Some("failed") => Some(ToolResult::Failed),
        _ => None,
    };
    let step = match (opens, ended) {
        (true, ended) => ToolStep::Called { tool: name(update), ended },
        (false, Some(result)) => ToolStep::Ended(result),
        (false, None) => return None,
    };
    update.tool_call_id.clone().map(|call| ToolNews { call, step })
}

/// The name of the tool, for sums: the one that Claude Code's adapter gives, or the one that the
/// title begins with, as hermes writes it (`terminal: ls`), or ACP's kind. A title is a sentence
/// otherwise, and another one for each call.
fn name(update: &Update<'_>) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        claude_code: Option<ClaudeCode>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ClaudeCode {
        tool_name: Option<String>,
    }
    let meta = update.meta.and_then(|raw| serde_json::from_str::<Meta>(raw.get()).ok());
    let given = meta.and_then(|meta| meta.claude_code?.tool_name);
    given
        .or_else(|| update.title.and_then(text).and_then(|title| leading_name(&title)))
        .or_else(|| update.kind.and_then(kind))
        .unwrap_or_else(|| UNKNOWN.into())
}

fn leading_name(title: &str) -> Option<String> {
    let name = title.split_once(':').map_or(title, |(name, _)| name);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
    is_name.then(|| name.to_owned())
}

fn kind(raw: &RawValue) -> Option<String> {
    text(raw).filter(|kind| !kind.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(update: &str, opens: bool) -> Option<ToolStep> {
        let update: Update<'_> = serde_json::from_str(update).unwrap();
        news(&update, opens).map(|news| news.step)
    }

    #[test]
    fn calls_are_open_until_they_say_that_they_ended() {
        use ToolResult::{Completed, Failed};
        let call = |opens: bool, status: &str| {
            let update = format!(
                r#"{{"sessionUpdate":"x","toolCallId":"1","title":"t","status":"{status}"}}"#
            );
            told(&update, opens)
        };
        let called = |ended| Some(ToolStep::Called { tool: "t".into(), ended });
        assert_eq!(call(true, "pending"), called(None));
        assert_eq!(call(true, "completed"), called(Some(Completed)));
        assert_eq!(call(false, "in_progress"), None);
        assert_eq!(call(false, "failed"), Some(ToolStep::Ended(Failed)));
        assert_eq!(told(r#"{"sessionUpdate":"x","status":"failed"}"#, false), None, "no id");
    }

    #[test]
    fn tools_are_named_as_their_agents_name_them() {
        #[rustfmt::skip]
        let cases = [
            (r#""title":"terminal: rm -rf /x","kind":"execute""#,                                         "terminal"),
            (r#""title":"mcp__git__log","kind":"other""#,                                                 "mcp__git__log"),
            (r#""title":"Read /etc/passwd","kind":"read""#,                                               "read"),
            (r#""title":"`ls -la`","kind":"execute","_meta":{"claudeCode":{"toolName":"Bash"}}"#,         "Bash"),
            (r#""title":"","kind":"edit","_meta":{"claudeCode":{}}"#,                                     "edit"),
            (r#""title":"two words""#,                                                                    "other"),
            (r#""kind":7"#,                                                                               "other"),
        ];
        for (fields, tool) in cases {
            let update = format!(r#"{{"sessionUpdate":"tool_call","toolCallId":"1",{fields}}}"#);
            let called = ToolStep::Called { tool: tool.into(), ended: None };
            assert_eq!(told(&update, true), Some(called), "{fields}");
        }
    }
}
