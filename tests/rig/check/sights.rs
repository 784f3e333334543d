//! What a server showed as soon as it listened: nothing of it is an earlier server's.

use std::collections::HashSet;

use serde_json::Value;

use crate::history::{History, Sight, text};

/// I5, AM-27: no answer shows a turn, a compaction or a run of an earlier server as under way,
/// though all of them ended with it.
pub fn nothing_is_left_running(history: &History) -> Vec<String> {
    history
        .sights
        .iter()
        .flat_map(|sight| {
            let earlier = runs_before(history, sight.life);
            left(sight, &earlier)
                .map(move |what| format!("at the start of life {}: {what}", sight.life))
        })
        .collect()
}

/// The runs whose agents noted their start before the `life`-th server started.
fn runs_before(history: &History, life: usize) -> HashSet<&str> {
    let is_later = |event: &&Value| {
        text(event, "event") == "server-start" && event["life"].as_u64() >= Some(life as u64)
    };
    let before = history.journal.iter().take_while(|event| !is_later(event));
    before.filter(|event| event["event"] == "start").map(|event| text(event, "run")).collect()
}

/// Finds what `sight` shows of the runs `earlier`.
fn left<'a>(
    sight: &'a Sight,
    earlier: &HashSet<&'a str>,
) -> impl Iterator<Item = String> + use<'a> {
    let is_earlier = |value: &Value, name: &str| earlier.contains(text(value, name));
    let works = |group: &Value| {
        let works = ["running", "compacting"].contains(&text(group, "status"))
            || group["compaction"]["active"] == true;
        is_earlier(group, "current_run") || works && group["current_run"].is_null()
    };
    let mut found = Vec::new();
    // Nothing of a group can be recovered while a row of it cannot be read, and it says so.
    if sight.shown["status"] == "broken" {
        return found.into_iter();
    }
    found.extend(works(&sight.shown).then(|| format!("it works: {}", sight.shown)));
    let snapshot = &sight.snapshot;
    found.extend(works(&snapshot["group"]).then(|| format!("it works: {snapshot}")));
    let tasks = sight.tasks.iter().chain([&snapshot["current_task"]]);
    let tasks = tasks.filter(|task| task["state"] == "running" && is_earlier(task, "run"));
    found.extend(tasks.map(|task| format!("a task runs: {task}")));
    let runs = sight.runs.iter().filter(|run| run["ended_at"].is_null() && is_earlier(run, "id"));
    found.extend(runs.map(|run| format!("a run is alive: {run}")));
    let pending = snapshot["permissions"].as_array().into_iter().flatten();
    let pending = pending.filter(|permission| is_earlier(permission, "run"));
    found.extend(pending.map(|permission| format!("a permission is pending: {permission}")));
    found.into_iter()
}
