//! Parses the progress of a tool call from a `tool_call` or a `tool_call_update`.

use greenroom_core::{ToolProgress, ToolResult, ToolUpdate};
use serde_json::value::RawValue;

use super::{
    Update,
    fields::{fields, lossy_text, object, text},
};

/// The longest title that counts as a tool's name.
const NAME_BYTES_MAX: usize = 40;
/// The tool of a call without a name.
const UNKNOWN: &str = "other";

/// Returns the progress of the tool call that the update `opens` or is about.
pub fn tool_update(update: &Update<'_>, opens: bool) -> Option<ToolUpdate> {
    let ended = match update.status.and_then(text).as_deref() {
        Some("completed") => Some(ToolResult::Completed),
        Some("failed") => Some(ToolResult::Failed),
        _ => None,
    };
    let step = match (opens, ended) {
        (true, ended) => ToolProgress::Called { tool: name(update), ended },
        (false, Some(result)) => ToolProgress::Ended(result),
        (false, None) => return None,
    };
    // A call without a readable id is one all the same.
    let call = update.tool_call_id.and_then(id).or_else(|| opens.then(String::new))?;
    Some(ToolUpdate { call, step })
}

/// Returns the id of a tool call. It need not be repeated to the agent, so a number is one too.
pub fn id(raw: &RawValue) -> Option<String> {
    let is_number = raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit());
    if is_number { Some(raw.get().to_owned()) } else { lossy_text(raw).map(Into::into) }
}

/// Returns the tool's name, for counts: the one that Claude Code's adapter gives, or the one that
/// the title begins with, as hermes writes it (`terminal: ls`), or ACP's kind. Other titles are
/// sentences, and differ for each call.
fn name(update: &Update<'_>) -> String {
    fields! {
        struct Meta { claude_code: "claudeCode" }
        struct ClaudeCode { tool_name: "toolName" }
    }
    let claude_code = update.meta.and_then(object::<Meta<'_>>).and_then(|meta| meta.claude_code);
    let given = claude_code.and_then(object::<ClaudeCode<'_>>).and_then(|code| code.tool_name);
    let given = given.and_then(text).map(Into::into);
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
    use crate::acp::fields::read;

    fn progress(update: &str, opens: bool) -> Option<ToolProgress> {
        let update: Update<'_> = read(update).unwrap();
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

    /// I7: a call whose id cannot be read may have acted too.
    #[test]
    fn a_call_without_a_readable_id_is_open() {
        for (id, call) in [("5", "5"), (r#""t\ud83d""#, "t\u{fffd}"), ("{}", ""), ("null", "")] {
            let update =
                format!(r#"{{"sessionUpdate":"tool_call","toolCallId":{id},"status":{{}}}}"#);
            let called = ToolProgress::Called { tool: UNKNOWN.into(), ended: None };
            let expected = Some(ToolUpdate { call: call.into(), step: called });
            assert_eq!(tool_update(&read(&update).unwrap(), true), expected, "{id}");
        }
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
