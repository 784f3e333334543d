//! `greenroom permissions`: lists the pending permission requests of agents, and answers one.

use std::io::Write;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    error::{CliError, Exit},
    render::{cell, json_line, table},
};
use crate::{
    client::{Client, encode},
    text::one_line,
};

/// Characters of a tool call's title that a row shows.
const TITLE_MAX: usize = 60;

/// How to resolve a permission request.
#[derive(Debug, Subcommand)]
pub enum Answer {
    /// Select one of the options
    Answer {
        /// The permission's id, as `permissions` prints it
        permission: String,
        /// The option's id, as `permissions` prints it
        #[arg(allow_hyphen_values = true)]
        option: String,
    },
    /// Answer `cancelled`
    Cancel {
        /// The permission's id, as `permissions` prints it
        permission: String,
    },
}

/// Lists the pending permission requests.
pub fn list(
    client: &Client,
    group: Option<&str>,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let group = group.map(|group| format!("&group={}", encode(group))).unwrap_or_default();
    let pending = client.items(&format!("/v1/permissions?state=pending{group}"))?;
    if json {
        for permission in &pending {
            json_line(out, permission)?;
        }
        return Ok(Exit::Done);
    }
    let row = |permission: &Value| {
        let title = permission["tool_call"]["title"].as_str().unwrap_or("-");
        [
            cell(&permission["id"]),
            cell(&permission["group"]),
            cell(&permission["expires_at"]),
            options(&permission["options"]),
            one_line(title, TITLE_MAX),
        ]
    };
    let rows: Vec<[String; 5]> = pending.iter().map(row).collect();
    table(out, ["PERMISSION", "GROUP", "EXPIRES", "OPTIONS", "WANTS"], &rows)?;
    Ok(Exit::Done)
}

/// Answers one permission request.
pub fn answer(
    client: &Client,
    answer: &Answer,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let (permission, body) = match answer {
        Answer::Answer { permission, option } => (permission, json!({ "option_id": option })),
        Answer::Cancel { permission } => (permission, json!({ "cancel": true })),
    };
    let answered = client.post(&format!("/v1/permissions/{}", encode(permission)), &body)?;
    if json {
        json_line(out, &answered)?;
    } else {
        writeln!(out, "{} is {}", cell(&answered["id"]), cell(&answered["state"]))?;
    }
    Ok(Exit::Done)
}

/// Formats the ids of the options, which `answer` takes.
fn options(options: &Value) -> String {
    let options = options.as_array().into_iter().flatten();
    let ids = options.filter_map(|option| option["optionId"].as_str());
    match &*ids.map(|id| one_line(id, TITLE_MAX)).collect::<Vec<_>>() {
        [] => "-".to_owned(),
        ids => ids.join(" "),
    }
}
