//! Parses the progress of a tool call from a `tool_call` or a `tool_call_update`.

use greenroom_core::{ToolProgress, ToolResult, ToolUpdate};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Update, text};

/// The longest title that counts as a tool's name.
const NAME_BYTES_MAX: usize = 40;
/// The tool of a call without a name.
const UNKNOWN: &str = "other";

/// Returns the progress of the tool call that the update `opens` or is about.
pub fn tool_update(update: &Update<'_>, opens: bool) -> Option<ToolUpdate> {
    let ended = match update.status.as_deref() {
        Some("completed") => Some(ToolResult::Completed),
        Some("failed") => Some(ToolResult::Failed),
        _ => None,
    };
    let step = match (opens, ended) {
        (true, ended) => ToolProgress::Called { tool: name(update), ended },
        (false, Some(result)) => ToolProgress::Ended(result),
        (false, None) => return None,
    };
    update.tool_call_id.clone().map(|call| ToolUpdate { call, step })
}

/// Returns the tool's name, for counts: the one that Claude Code's adapter gives, or the one that
/// the title begins with, as hermes writes it (`terminal: ls`), or ACP's kind. Other titles are
/// sentences, and differ for each call.
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

    fn progress(update: &str, opens: bool) -> Option<ToolProgress> {
        let update: Update<'_> = serde_json::from_str(update).unwrap();
        tool_update(&update, opens).map(|update| update.step)
    }

    #[test]
    fn a_call_is_open_until_an_update_ends_it() {
        use ToolResult::{Completed, Failed};
        let call = |opens: bool, status: &str| {
            let update = format!(
                r#"{{"sessionUpdate":"x","toolCallId":"1","title":"t","status":"{status}"}}"#
            );
            progress(&update, opens)
        };
        let called = |ended| Some(ToolProgress::Called { tool: "t".into(), ended });
        assert_eq!(call(true, "pending"), called(None));
        assert_eq!(call(true, "completed"), called(Some(Completed)));
        assert_eq!(call(false, "in_progress"), None);
        assert_eq!(call(false, "failed"), Some(ToolProgress::Ended(Failed)));
        assert_eq!(progress(r#"{"sessionUpdate":"x","status":"failed"}"#, false), None, "no id");
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
            let called = ToolProgress::Called { tool: tool.into(), ended: None };
            assert_eq!(progress(&update, true), Some(called), "{fields}");
        }
    }
}
