//! Frames and tables as lines for people, JSON as lines for programs.

use std::io::{self, Write};

use serde_json::Value;

use crate::text::{clean, escape_json, one_line};

/// Characters of what was said that a line shows.
const SHOWN_MAX: usize = 100;

/// Writes `value` as one line, the same JSON, with nothing in it that a terminal would act on.
pub fn json_line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    writeln!(out, "{}", escape_json(&value.to_string()))
}

/// The text of one piece of the agent's answer, if `frame` is one.
pub fn answer_chunk(frame: &Value) -> Option<String> {
    let update = update(frame)?;
    let chunk = update["sessionUpdate"] == "agent_message_chunk";
    chunk.then(|| clean(update["content"]["text"].as_str().unwrap_or_default()))
}

/// `time group #seq kind: what it says`, without the date.
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

/// `time group from -> status` and what the group has to do, for a change of status.
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
    let said = match field("sessionUpdate") {
        "agent_message_chunk" | "agent_thought_chunk" | "user_message_chunk" => {
            format!("{:?}", clean(update["content"]["text"].as_str().unwrap_or("(no text)")))
        }
        "tool_call" | "tool_call_update" => {
            [field("toolCallId"), field("title"), field("status")].join(" ")
        }
        "compaction_update" => [field("compactionId"), field("status")].join(" "),
        "usage_update" => format!("{} of {} tokens", update["used"], update["size"]),
        _ => String::new(),
    };
    one_line(&format!("{} {said}", field("sessionUpdate")), SHOWN_MAX)
}

/// The update in a `session/update` frame, whose payload is the message or its params.
fn update(frame: &Value) -> Option<&Value> {
    let payload = &frame["payload"];
    let update = payload["params"].get("update").or_else(|| payload.get("update"));
    update.filter(|_| frame["kind"] == "session/update")
}

/// Writes `rows` below `header`, in columns.
pub fn table<const N: usize>(
    out: &mut impl Write,
    header: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let header = header.map(str::to_owned);
    let rows = std::iter::once(&header).chain(rows);
    let width = |column: usize| {
        rows.clone().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A value of a JSON answer as a cell: `-` for none.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => one_line(text, SHOWN_MAX),
        other => one_line(&other.to_string(), SHOWN_MAX),
    }
}
