//! `greenroom permissions`: what agents want to be allowed, and the answers to it.

use std::io::Write;

use clap::Subcommand;
use serde_json::{Value, json};

use super::render::{cell, json_line, table};
use super::{CliError, Exit};
use crate::client::{Client, encode};
use crate::text::one_line;

/// Characters of what an agent wants to do that a row shows.
const TITLE_MAX: usize = 60;

/// What to do about a permission.
#[derive(Debug, Subcommand)]
pub enum Answer {
    /// Choose one of its options
    Answer {
        /// The permission's id, as `permissions` prints it
        permission: String,
        /// The option's id, as `permissions` prints it
        #[arg(allow_hyphen_values = true)]
        option: String,
    },
    /// Answer that the request is cancelled
    Cancel {
        /// The permission's id, as `permissions` prints it
        permission: String,
    },
}

/// Lists what nobody answered yet.
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
    let row = |own: &Value| {
        let title = own["tool_call"]["title"].as_str().unwrap_or("-");
        [
            cell(&own["id"]),
            cell(&own["group"]),
            cell(&own["expires_at"]),
            options(&own["options"]),
            one_line(title, TITLE_MAX),
        ]
    };
    let rows: Vec<[String; 5]> = pending.iter().map(row).collect();
    table(out, ["PERMISSION", "GROUP", "EXPIRES", "OPTIONS", "WANTS"], &rows)?;
    Ok(Exit::Done)
}

/// Answers one.
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

/// The ids of the options, which is what `answer` takes.
fn options(options: &Value) -> String {
    let ids = options.as_array().into_iter().flatten().filter_map(|own| own["optionId"].as_str());
    match &*ids.map(|id| one_line(id, TITLE_MAX)).collect::<Vec<_>>() {
        [] => "-".to_owned(),
        ids => ids.join(" "),
    }
}
