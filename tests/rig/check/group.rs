//! One group: its log, its order, its compactions, and one prompt at a time.

use std::collections::{HashMap, HashSet};

use greenroom_testing::invariants::check_log;
use serde_json::Value;

use crate::{
    Result,
    history::{Frame, Group, History, text},
};

fn each<'a>(history: &'a History, find: impl Fn(&'a Group) -> Vec<String> + 'a) -> Vec<String> {
    let violations = |(name, group): (&'a String, &'a Group)| {
        let found = find(group);
        found.into_iter().map(move |what| format!("{name}: {what}"))
    };
    history.groups.iter().flat_map(violations).collect()
}

/// The invariants that a log alone shows: I1, I3, I4, I5, I7, I8, I9, with the rules of settlement,
/// permissions and crash loops.
pub fn log_is_sound(history: &History) -> Vec<String> {
    each(history, |group| {
        let frames: Result<Vec<_>> = group.frames.iter().map(Frame::in_log).collect();
        frames.map_or_else(|err| vec![err.to_string()], check_log)
    })
}

/// I1: no agent gets a prompt of a session, or continues in an old run, while another prompt is
/// open.
pub fn one_at_a_time(history: &History) -> Vec<String> {
    let overlaps = history.journal.iter().filter(|event| event["event"] == "overlap");
    let overlaps = overlaps.map(|event| format!("two prompts of one session at once: {event}"));
    overlaps.chain(works_on(history)).collect()
}

/// Finds a process with output of its prompt after another process of its group got one.
fn works_on(history: &History) -> Vec<String> {
    let mut group_of_run = HashMap::new();
    for (name, group) in &history.groups {
        group_of_run.extend(group.runs.iter().map(|run| (text(run, "id"), name.as_str())));
    }
    let mut group_of_process: HashMap<u64, &str> = HashMap::new();
    // The process that got a group's last prompt, and the processes whose prompt is open.
    let mut last: HashMap<&str, u64> = HashMap::new();
    let mut open: HashSet<u64> = HashSet::new();
    let mut wrong = Vec::new();
    for event in &history.journal {
        let Some(pid) = event["pid"].as_u64() else { continue };
        match text(event, "event") {
            "start" => {
                if let Some(group) = group_of_run.get(text(event, "run")) {
                    group_of_process.insert(pid, group);
                    open.remove(&pid);
                }
            }
            "prompt" => {
                open.insert(pid);
                if let Some(group) = group_of_process.get(&pid) {
                    last.insert(group, pid);
                }
            }
            "answer" | "exit" => drop(open.remove(&pid)),
            "output" if open.contains(&pid) => {
                let other = group_of_process.get(&pid).and_then(|group| last.get(group));
                if let Some(other) = other.filter(|other| **other != pid) {
                    wrong.push(format!("{pid} works on while {other} has a prompt: {event}"));
                }
            }
            _ => {}
        }
    }
    wrong
}

/// I5: an idle group is not compacting, and no record says so; the count equals the completed
/// compactions.
pub fn compacting_ends(history: &History) -> Vec<String> {
    each(history, |group| {
        let mut wrong = Vec::new();
        let compaction = &group.shown["compaction"];
        if compaction["active"] == true {
            wrong.push(format!("it is compacting at rest: {}", group.shown));
        }
        let open = group.compactions.iter().filter(|one| one["status"] == "in_progress");
        wrong.extend(open.map(|one| format!("a compaction never ended: {one}")));
        let completed = group.compactions.iter().filter(|one| one["status"] == "completed");
        let (completed, counted) = (completed.count() as u64, compaction["count"].as_u64());
        if counted.unwrap_or(0) != completed {
            wrong.push(format!("{completed} compactions completed, {counted:?} are counted"));
        }
        wrong
    })
}

/// I8: tasks promised to one caller in sequence are queued in that order.
pub fn accepted_in_order(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, group) in &history.groups {
        let at: HashMap<&str, &Frame> = group
            .frames
            .iter()
            .filter(|frame| frame.is("task_queued"))
            .map(|frame| (frame.names(), frame))
            .collect();
        let turns = format!("/v1/groups/{name}/turns");
        let mut known = HashSet::new();
        let mut last: Option<(u64, &str, u64)> = None;
        let mut unanswered = HashSet::new();
        for exchange in history.exchanges.iter().filter(|one| one.path.starts_with(&turns)) {
            let key = exchange.key.as_deref();
            if exchange.status == 0 {
                unanswered.extend(key);
            }
            let Some(task) = exchange.accepted() else { continue };
            // A request without an answer at first may have been accepted then.
            if !known.insert(task) || key.is_some_and(|key| unanswered.contains(key)) {
                continue;
            }
            let Some(frame) = at.get(task) else { continue };
            if let Some((seq, before, answered)) = last
                && answered < exchange.sent
                && frame.seq < seq
            {
                wrong.push(format!("{name}: {task} was accepted after {before} and is before it"));
            }
            last = Some((frame.seq, task, exchange.answered));
        }
    }
    wrong
}

/// I15: the witness's turns complete, except those that the server's own faults interrupted.
pub fn others_continue(history: &History) -> Vec<String> {
    let Some((name, excuses)) = &history.witness else { return Vec::new() };
    let Some(group) = history.groups.get(name) else { return Vec::new() };
    let excused = |task: &Value| {
        let reasons = [text(task, "stop_reason"), text(&task["error"], "code")];
        reasons.iter().any(|reason| excuses.contains(reason))
    };
    let turns = group.tasks.iter().filter(|task| task["kind"] == "turn");
    let cut = turns.filter(|task| task["state"] != "completed" && !excused(task));
    cut.map(|task| format!("{name} was disturbed: {task}")).collect()
}
