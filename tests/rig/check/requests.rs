//! The answers to callers: accepted tasks, outcomes, keys.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::history::{Exchange, History, is_over, text};

/// The statuses that a caller of this rig may get; 0 is no answer.
const EXPECTED: [u16; 10] = [0, 200, 201, 202, 404, 409, 410, 422, 429, 503];

/// I2: a task that was answered with 2xx exists after every later start, and at the end.
pub fn accepted_is_kept(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut reported = HashSet::new();
    let last = history.groups.values().flat_map(|group| &group.tasks);
    let in_the_end: HashSet<&str> = last.map(|task| text(task, "id")).collect();
    let audited: Vec<(usize, u64, HashSet<&str>)> = history
        .audits
        .iter()
        .map(|audit| {
            let tasks = audit.tasks.values().flatten();
            (audit.life, audit.at, tasks.map(|task| text(task, "id")).collect())
        })
        .collect();
    for exchange in &history.exchanges {
        let Some(task) = exchange.accepted() else { continue };
        let lost = audited
            .iter()
            .find(|(_, at, there)| exchange.answered < *at && !there.contains(task))
            .map(|(life, ..)| format!("after the start of life {life}"));
        let gone = (!history.groups.is_empty() && !in_the_end.contains(task))
            .then(|| "in the end".to_owned());
        if let Some(when) = lost.or(gone)
            && reported.insert(task)
        {
            wrong.push(format!("{task}, accepted in life {}, is lost {when}", exchange.life));
        }
    }
    wrong
}

/// Every answer that shows a task: the times of request and answer, and the task.
fn sights(history: &History) -> Vec<(u64, u64, &Value)> {
    let mut sights = Vec::new();
    for exchange in &history.exchanges {
        if (200..300).contains(&exchange.status) && text(&exchange.answer, "id").starts_with("tsk_")
        {
            sights.push((exchange.sent, exchange.answered, &exchange.answer));
        }
    }
    for audit in &history.audits {
        sights.extend(audit.tasks.values().flatten().map(|task| (audit.at, audit.until, task)));
    }
    let end = u64::MAX;
    let last = history.groups.values().flat_map(|group| &group.tasks);
    sights.extend(last.map(|task| (end, end, task)));
    sights.sort_by_key(|(sent, answered, _)| (*sent, *answered));
    sights
}

/// I9: an outcome that any answer showed is the outcome for ever; only what the agent writes after
/// its answer is added to the text (AM-9).
pub fn one_outcome(history: &History) -> Vec<String> {
    const OUTCOME: [&str; 6] = ["state", "stop_reason", "error", "text", "ended_at", "interrupted"];
    let differs = |was: &Value, task: &Value, name: &str| match name {
        "text" => !text(task, "text").starts_with(text(was, "text")),
        _ => was[name] != task[name],
    };
    let mut over: HashMap<&str, (u64, &Value)> = HashMap::new();
    let mut wrong = Vec::new();
    for (sent, answered, task) in sights(history) {
        let id = text(task, "id");
        if let Some((before, was)) = over.get(id)
            && *before < sent
            && OUTCOME.iter().any(|name| differs(was, task, name))
        {
            let changed = OUTCOME.iter().filter(|name| differs(was, task, name));
            let changed =
                changed.map(|name| format!("{name} was {} and is {}", was[*name], task[*name]));
            let changed = changed.collect::<Vec<_>>().join(", ");
            wrong.push(format!("the outcome of {id} changed: {changed}"));
        }
        if is_over(task) {
            let first = over.get(id).is_none_or(|(before, _)| answered < *before);
            if first {
                over.insert(id, (answered, task));
            }
        }
    }
    wrong
}

/// I12: a waiting task shows what it waits for.
pub fn every_wait_says_why(history: &History) -> Vec<String> {
    let waits = |task: &&Value| ["queued", "retrying"].contains(&text(task, "state"));
    let audited = history.audits.iter().flat_map(|audit| audit.tasks.values().flatten());
    let tasks = history.sights.iter().flat_map(|sight| &sight.tasks).chain(audited);
    let silent = tasks.filter(waits).filter(|task| task["blocked_by"].is_null());
    silent.map(|task| format!("it waits for nothing: {task}")).collect()
}

/// Keys, copies and statuses: a key names one task over all crashes, a request is accepted once, a
/// retry names its task, and no answer is one of a broken server.
pub fn answers_are_sound(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_key: BTreeMap<(&str, &str), HashSet<&str>> = BTreeMap::new();
    for exchange in &history.exchanges {
        let path = exchange.path.split('?').next().unwrap_or_default();
        if let (Some(key), Some(task)) = (&exchange.key, exchange.accepted()) {
            by_key.entry((path, key)).or_default().insert(task);
        }
        if !EXPECTED.contains(&exchange.status) {
            wrong.push(format!(
                "{} to {} {path}: {}",
                exchange.status, exchange.method, exchange.answer
            ));
        }
        if path.ends_with("/retry") {
            wrong.extend(wrong_retry(exchange, path));
        }
    }
    for ((path, key), tasks) in by_key {
        // A compaction's key may name another compaction that replaced it.
        if 1 < tasks.len() && path.ends_with("/turns") {
            wrong.push(format!("the key {key} named {tasks:?}"));
        }
    }
    for (name, group) in &history.groups {
        let mut copies: HashMap<&str, usize> = HashMap::new();
        for task in group.tasks.iter().filter(|task| task["retry_of"].is_null()) {
            let prompt = task["prompt"][0]["text"].as_str();
            if let Some(marker) = prompt.and_then(|text| text.split('=').nth(1)) {
                *copies.entry(marker).or_default() += 1;
            }
        }
        let doubled = copies.iter().filter(|(_, count)| 1 < **count);
        wrong.extend(
            doubled.map(|(marker, count)| format!("{name}: {marker} became {count} tasks")),
        );
    }
    wrong
}

fn wrong_retry(exchange: &Exchange, path: &str) -> Option<String> {
    let task = exchange.accepted()?;
    let of = path.split('/').nth(3)?;
    // A compaction that already waits or runs is the answer (DQ-3).
    let known = exchange.answer["deduplicated"] == true;
    let sound = task != of && (known || text(&exchange.answer, "retry_of") == of);
    (!sound).then(|| format!("the retry of {of} is {}", exchange.answer))
}
