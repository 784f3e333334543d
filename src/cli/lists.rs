//! `greenroom groups`, `tasks`, `pause`, `resume` and `stop`: lists, and requests to a whole group.

use std::io::Write;

use serde_json::{Value, json};

use super::{
    error::{CliError, Exit},
    render::{cell, json_line, table},
};
use crate::{
    client::{Client, encode},
    text::one_line,
};

/// Characters of a prompt that a row shows.
const PROMPT_MAX: usize = 60;

/// Prints all groups.
pub fn groups(client: &Client, json: bool, out: &mut impl Write) -> Result<Exit, CliError> {
    let groups = client.items("/v1/groups")?;
    if json {
        return lines(out, &groups);
    }
    let rows: Vec<[String; 6]> = groups
        .iter()
        .map(|group| {
            [
                cell(&group["id"]),
                status(group),
                cell(&group["agent"]),
                cell(&group["queue_length"]),
                context(&group["usage"]),
                cell(&group["current_task"]),
            ]
        })
        .collect();
    table(out, ["GROUP", "STATUS", "AGENT", "QUEUED", "CONTEXT", "TASK"], &rows)?;
    Ok(Exit::Done)
}

/// Prints the tasks of `group`.
pub fn tasks(
    client: &Client,
    group: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let tasks = client.items(&format!("/v1/groups/{}/tasks", encode(group)))?;
    if json {
        return lines(out, &tasks);
    }
    let rows: Vec<[String; 5]> = tasks
        .iter()
        .map(|task| {
            let state = blocked(&task["state"], &task["blocked_by"]);
            let prompt = prompt(&task["prompt"]);
            [cell(&task["id"]), cell(&task["kind"]), state, cell(&task["created_at"]), prompt]
        })
        .collect();
    table(out, ["TASK", "KIND", "STATE", "CREATED", "PROMPT"], &rows)?;
    Ok(Exit::Done)
}

/// Pauses, resumes or stops a group, and prints its new status.
pub fn control(
    client: &Client,
    group: &str,
    action: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let group = client.post(&format!("/v1/groups/{}/{action}", encode(group)), &json!({}))?;
    if json {
        json_line(out, &group)?;
    } else {
        writeln!(out, "{} is {}", cell(&group["id"]), status(&group))?;
    }
    Ok(Exit::Done)
}

fn lines(out: &mut impl Write, items: &[Value]) -> Result<Exit, CliError> {
    for item in items {
        json_line(out, item)?;
    }
    Ok(Exit::Done)
}

fn status(group: &Value) -> String {
    blocked(&group["status"], &group["blocked_by"])
}

fn blocked(state: &Value, by: &Value) -> String {
    match by {
        Value::Null => cell(state),
        by => format!("{} ({})", cell(state), cell(by)),
    }
}

/// Formats the used share of the context window.
fn context(usage: &Value) -> String {
    match (usage["used"].as_u64(), usage["size"].as_u64()) {
        (Some(used), Some(size)) if 0 < size => format!("{}%", used.saturating_mul(100) / size),
        _ => "-".to_owned(),
    }
}

/// Formats a prompt, which is text or content blocks, as one line.
fn prompt(prompt: &Value) -> String {
    let text = match prompt {
        Value::Array(blocks) => blocks
            .iter()
            .map(|block| block["text"].as_str().unwrap_or("[…]"))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.as_str().unwrap_or("-").to_owned(),
    };
    one_line(&text, PROMPT_MAX)
}
