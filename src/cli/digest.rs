//! `greenroom digest`: prints the digest of a group or a run as a card for a terminal.

use std::{
    cmp::Reverse,
    io::{self, Write},
};

use serde_json::{Map, Value};

use super::{
    error::{CliError, Exit},
    render::{cell, json_line},
};
use crate::{
    client::{Client, encode},
    text::{self, one_line, padded},
};

/// Characters of a line.
const WIDTH: usize = 80;
/// Characters of the label at the start of a line.
const LABEL_WIDTH: usize = 13;
/// Characters of a name that comes from an agent.
const NAME_MAX: usize = 40;
/// Characters of the longest bar.
const BAR_MAX: usize = 40;

/// Prints the digest of `group`, or of its run `run`.
pub fn digest(
    client: &Client,
    group: &str,
    run: Option<&str>,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let path = match run {
        Some(run) => format!("/v1/runs/{}/digest", encode(run)),
        None => format!("/v1/groups/{}/digest", encode(group)),
    };
    let digest = client.get(&path)?;
    if digest["group"] != group {
        let owner = cell(&digest["group"]);
        return Err(CliError::Usage(format!("that run belongs to {owner}, not to {group}")));
    }
    if json {
        json_line(out, &digest)?;
    } else {
        card(out, &digest)?;
    }
    Ok(Exit::Done)
}

fn card(out: &mut impl Write, digest: &Value) -> io::Result<()> {
    let outcome = digest["outcome"].as_str().map_or("live".to_owned(), |word| one_line(word, 20));
    let name = one_line(digest["group"].as_str().unwrap_or("-"), WIDTH - text::width(&outcome) - 2);
    let room = WIDTH - text::width(&outcome);
    writeln!(out, "{}{outcome}", padded(&name, room))?;
    if digest["run"].is_string() {
        row(out, "run", &format!("{} of {}", cell(&digest["run"]), cell(&digest["agent"])))?;
    }
    let took = digest["duration_ms"].as_u64().map_or("-".to_owned(), took);
    let times = [cell(&digest["first_at"]), cell(&digest["last_at"])].join(" to ");
    row(out, "time", &format!("{times} {took}"))?;
    let frames = number(&digest["frame_count"]);
    row(out, "frames", &format!("{frames}, up to #{}", cell(&digest["watermark_seq"])))?;
    usage(out, digest)?;
    turns(out, digest)?;
    tools(out, &digest["tools"])?;
    errors(out, &digest["errors"])?;
    let permissions = ["asked", "selected", "cancelled", "expired", "void"];
    row(out, "permissions", &counts(&digest["permissions"], &permissions))?;
    row(out, "compactions", &compactions(&digest["compactions"]))?;
    if digest["run"].is_null() {
        row(out, "runs ended", &listed(ranked(&digest["outcomes"]), "none"))?;
    }
    findings(out, digest)
}

fn usage(out: &mut impl Write, digest: &Value) -> io::Result<()> {
    let usage = &digest["usage"];
    let context = match (usage["used"].as_u64(), usage["size"].as_u64()) {
        (Some(used), Some(size)) if 0 < size => {
            let (share, full) = (used.saturating_mul(100) / size, bar(used, size, 30));
            let empty = "░".repeat(30_usize.saturating_sub(full.chars().count()));
            format!("{full}{empty} {share}% ({used} of {size})")
        }
        _ => "unknown".to_owned(),
    };
    row(out, "context", &context)?;
    row(out, "tokens", &tokens(usage))?;
    for (model, spent) in entries(&digest["by_model"]) {
        row(out, "", &format!("{}: {}", one_line(model, NAME_MAX), tokens(spent)))?;
    }
    let more = digest["more_costs"].as_array().into_iter().flatten();
    let costs = std::iter::once(&digest["cost"]).chain(more).filter(|cost| cost.is_object());
    let costs = costs.map(|cost| [cell(&cost["amount"]), cell(&cost["currency"])].join(" "));
    row(out, "cost", &listed(costs, "unknown"))
}

fn tokens(spent: &Value) -> String {
    let [input, output, cached] = ["input", "output", "cached"].map(|name| number(&spent[name]));
    format!("{input} in ({cached} of them cached), {output} out")
}

/// Prints the number of turns, their stop reasons and their latencies.
fn turns(out: &mut impl Write, digest: &Value) -> io::Result<()> {
    let count = number(&digest["turn_count"]);
    let colon = if count == 0 { "" } else { ": " };
    let reasons = listed(ranked(&digest["stop_reasons"]), "");
    row(out, "turns", &format!("{count}{colon}{reasons}"))?;
    let latency = &digest["latency_histogram"];
    if number(&latency["count"]) == 0 {
        return Ok(());
    }
    let percentiles =
        ["p50", "p90", "p99"].map(|name| match latency[format!("{name}_ms")].as_u64() {
            Some(ms) => format!("{name} {}", took(ms)),
            None => format!("{name} longer"),
        });
    row(out, "latency", &percentiles.join(", "))?;
    let counts: Vec<u64> = latency["counts"].as_array().into_iter().flatten().map(number).collect();
    let bounds: Vec<u64> =
        latency["bounds_ms"].as_array().into_iter().flatten().map(number).collect();
    let most = counts.iter().copied().max().unwrap_or_default();
    for (class, count) in counts.iter().enumerate().filter(|(_, count)| 0 < **count) {
        let bound = match (bounds.get(class), bounds.last()) {
            (Some(bound), _) => format!("≤ {}", took(*bound)),
            (None, Some(bound)) => format!("> {}", took(*bound)),
            (None, None) => String::new(),
        };
        let line = format!("{bound:>10} {} {count}", bar(*count, most, BAR_MAX));
        writeln!(out, "{:LABEL_WIDTH$}{line}", "")?;
    }
    Ok(())
}

fn tools(out: &mut impl Write, tools: &Value) -> io::Result<()> {
    let tools = entries(tools).map(|(name, used)| {
        let (calls, failed) = (number(&used["calls"]), number(&used["failed"]));
        let failed = if failed == 0 { String::new() } else { format!(", {failed} failed") };
        (one_line(name, NAME_MAX), format!("{calls} called{failed}"))
    });
    columns(out, "tools", tools.collect())
}

fn errors(out: &mut impl Write, errors: &Value) -> io::Result<()> {
    let errors = entries(errors).map(|(class, error)| {
        let samples = error["samples"].as_array().into_iter().flatten();
        let samples = samples.map(|seq| format!(" #{}", number(seq))).collect::<String>();
        (one_line(class, NAME_MAX), format!("{}, see{samples}", number(&error["count"])))
    });
    columns(out, "errors", errors.collect())
}

fn compactions(compactions: &Value) -> String {
    let ends = ["completed", "failed", "cancelled", "abandoned", "skipped", "noop"];
    let [before, after] = ["tokens_before", "tokens_after"].map(|name| number(&compactions[name]));
    let freed = if 0 < before { format!("; {before} -> {after} tokens") } else { String::new() };
    counts(compactions, &ends) + &freed
}

fn findings(out: &mut impl Write, digest: &Value) -> io::Result<()> {
    let found: Vec<&Value> = digest["findings"].as_array().into_iter().flatten().collect();
    let count = number(&digest["findings_count"]);
    let newest = if (found.len() as u64) < count { ", the newest of them:" } else { "" };
    row(out, "findings", &format!("{count}{newest}"))?;
    for finding in &found {
        let facts = entries(finding).filter(|(name, _)| !["kind", "seq"].contains(name));
        let facts = facts.map(|(name, value)| format!(" {name}={}", cell(value)));
        let line = format!(
            "#{} {}{}",
            number(&finding["seq"]),
            cell(&finding["kind"]),
            facts.collect::<String>()
        );
        row(out, "", &line)?;
    }
    let samples = entries(&digest["errors"]).filter_map(|(_, error)| error["samples"].get(0));
    let seen = found.last().map(|finding| &finding["seq"]).into_iter().chain(samples);
    if let Some(seq) = seen.map(number).next() {
        let group = encode(digest["group"].as_str().unwrap_or_default());
        let before = seq.saturating_sub(1);
        writeln!(out, "#{seq} is GET /v1/groups/{group}/frames?after={before}&limit=1")?;
    }
    Ok(())
}

/// Prints lines in two columns under one label.
fn columns(out: &mut impl Write, label: &str, lines: Vec<(String, String)>) -> io::Result<()> {
    if lines.is_empty() {
        return row(out, label, "none");
    }
    let width = lines.iter().map(|(name, _)| text::width(name)).max().unwrap_or_default();
    for (number, (name, text)) in lines.iter().enumerate() {
        row(
            out,
            if number == 0 { label } else { "" },
            &format!("{}  {text}", padded(name, width)),
        )?;
    }
    Ok(())
}

/// Prints one labelled text, wrapped to several lines where needed.
fn row(out: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    for (number, line) in wrapped(text).iter().enumerate() {
        let label = if number == 0 { label } else { "" };
        writeln!(out, "{}", format!("{label:LABEL_WIDTH$}{line}").trim_end())?;
    }
    Ok(())
}

/// Wraps `text` at spaces into lines that fit beside a label.
fn wrapped(text: &str) -> Vec<String> {
    let room = WIDTH - LABEL_WIDTH;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let word = one_line(word, room);
        match lines.last_mut() {
            Some(line) if line.is_empty() => *line = word,
            Some(line) if text::width(line) + 1 + text::width(&word) <= room => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// Lists the counts under `names`, without zeros.
fn counts(value: &Value, names: &[&str]) -> String {
    let counted = names.iter().map(|name| (name, number(&value[*name])));
    let counted = counted.filter(|(_, count)| 0 < *count);
    listed(counted.map(|(name, count)| format!("{name} {count}")), "none")
}

/// Lists all counts, the highest first.
fn ranked(value: &Value) -> impl Iterator<Item = String> {
    let mut counted: Vec<(&str, u64)> =
        entries(value).map(|(name, count)| (name, number(count))).collect();
    counted.sort_by_key(|(_, count)| Reverse(*count));
    counted.into_iter().map(|(name, count)| format!("{} {count}", one_line(name, NAME_MAX)))
}

fn listed(parts: impl Iterator<Item = String>, none: &str) -> String {
    let list = parts.collect::<Vec<_>>().join(", ");
    if list.is_empty() { none.to_owned() } else { list }
}

/// Iterates over an object's fields in the order of their names.
fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let entries = value.as_object().into_iter().flat_map(Map::iter);
    let mut entries: Vec<_> = entries.map(|(name, value)| (name.as_str(), value)).collect();
    entries.sort_by_key(|(name, _)| *name);
    entries.into_iter()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Draws `count` of `most` as a bar; a positive count is at least one block.
fn bar(count: u64, most: u64, width: usize) -> String {
    let share = (count.min(most) as f64 / most.max(1) as f64 * width as f64).round() as usize;
    "█".repeat(share.max(usize::from(0 < count)))
}

/// Formats a duration in the unit that suits its size.
fn took(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        60_000..3_600_000 => format!("{:.1} min", ms as f64 / 6e4),
        _ => format!("{:.1} h", ms as f64 / 3.6e6),
    }
}

#[cfg(test)]
mod tests;
