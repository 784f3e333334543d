//! Frames and status changes, each as one line of text. Knows their JSON, and no command.

use serde_json::Value;

use super::one_line;

/// Columns that a line shows of a field or a message.
const SHOWN_MAX: usize = 100;

/// Returns the text of one chunk of the agent's answer, if `frame` is one: as the agent wrote it.
pub fn answer_chunk(frame: &Value) -> Option<&str> {
    let update = update(frame)?;
    let is_chunk = update["sessionUpdate"] == "agent_message_chunk";
    is_chunk.then(|| update["content"]["text"].as_str().unwrap_or_default())
}

/// Formats a frame as `time group #seq kind: summary`, without the date.
pub fn frame_line(frame: &Value) -> String {
    let text = |name: &str| one_line(frame[name].as_str().unwrap_or("-"), SHOWN_MAX);
    let at = text("at");
    let at = at.split_once('T').map_or(at.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let seq = frame["seq"].as_u64().map(|seq| format!("#{seq} ")).unwrap_or_default();
    let kind = text("kind");
    let summary = summary(frame);
    let colon = if summary.is_empty() { "" } else { ": " };
    format!("{at} {} {seq}{kind}{colon}{summary}", text("group"))
}

/// Formats a status change as `time group from -> status`, the current task and the queue.
pub fn status_line(change: &Value) -> String {
    let text = |name: &str| one_line(change[name].as_str().unwrap_or("-"), SHOWN_MAX);
    let at = text("at");
    let at = at.split_once('T').map_or(at.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let queued = change["queue_length"].as_u64().unwrap_or_default();
    let mut line = format!("{at} {} {} -> {}", text("group"), text("from"), text("status"));
    for (name, value) in [("task", "current_task"), ("blocked_by", "blocked_by")] {
        if change[value].is_string() {
            line.push_str(&format!(" {name}={}", text(value)));
        }
    }
    line + &format!(" queued={queued}")
}

fn summary(frame: &Value) -> String {
    let payload = &frame["payload"];
    let Some(update) = update(frame) else {
        return match payload {
            Value::Null => String::new(),
            payload => one_line(&payload.to_string(), SHOWN_MAX),
        };
    };
    let field = |name: &str| update[name].as_str().unwrap_or_default();
    let detail = match field("sessionUpdate") {
        "agent_message_chunk" | "agent_thought_chunk" | "user_message_chunk" => {
            quoted(update["content"]["text"].as_str().unwrap_or("(no text)"))
        }
        "tool_call" | "tool_call_update" => {
            [field("toolCallId"), field("title"), field("status")].join(" ")
        }
        "compaction_update" => [field("compactionId"), field("status")].join(" "),
        "usage_update" => format!("{} of {} tokens", update["used"], update["size"]),
        _ => String::new(),
    };
    one_line(&format!("{} {detail}", field("sessionUpdate")), SHOWN_MAX)
}

/// Returns a text in quotes, its line ends escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' | '\r' | '\t' => quoted.extend(c.escape_default()),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// Returns the update of a `session/update` frame, whose payload is the message or its params.
fn update(frame: &Value) -> Option<&Value> {
    let payload = &frame["payload"];
    let update = payload["params"].get("update").or_else(|| payload.get("update"));
    update.filter(|_| frame["kind"] == "session/update")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_one_line_each() {
        let update = |update: Value| {
            json!({"at": "2026-11-20T12:00:00.000Z", "group": "g", "seq": 1,
                "kind": "session/update", "payload": {"update": update}})
        };
        #[rustfmt::skip]
        let cases = [
            (update(json!({"sessionUpdate": "usage_update", "used": 1, "size": 2})), "12:00:00.000 g #1 session/update: usage_update 1 of 2 tokens"),
            (update(json!({"sessionUpdate": "tool_call", "toolCallId": "t", "title": "Look\n\u{1b}", "status": "pending"})), "12:00:00.000 g #1 session/update: tool_call t Look \\u{1b} pending"),
            (update(json!({"sessionUpdate": "compaction_update", "compactionId": "c", "status": "completed"})), "12:00:00.000 g #1 session/update: compaction_update c completed"),
            (update(json!({"sessionUpdate": "agent_message_chunk", "content": {"text": "a\n\"b\" \u{202e}\\"}})), r#"12:00:00.000 g #1 session/update: agent_message_chunk "a\n\"b\" \u{202e}\\""#),
            (json!({"group": "g", "kind": "greenroom/run_exited", "payload": {"code": 1}}), "- g greenroom/run_exited: {\"code\":1}"),
            (json!({"group": "g", "kind": "greenroom/stderr", "payload": null}), "- g greenroom/stderr"),
            (json!({}), "- - -"),
        ];
        for (frame, expected) in cases {
            assert_eq!(frame_line(&frame), expected);
        }
    }
}
