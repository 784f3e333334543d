//! One group's frames, segments and compactions: order, and one at a time.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::history::{Frame, Group, History, is_over, text};

/// The turns that may start between the acceptance of a compaction and its start: the one claimed
/// before it (I8).
const CLAIMED: usize = 1;

fn each<'a>(history: &'a History, find: impl Fn(&'a Group) -> Vec<String> + 'a) -> Vec<String> {
    let violations = |(name, group): (&'a String, &'a Group)| {
        let found = find(group);
        found.into_iter().map(move |what| format!("{name}: {what}"))
    };
    history.groups.iter().flat_map(violations).collect()
}

/// I1: between a task's start and its settlement or end no other task starts; and no agent gets a
/// prompt of a session, or continues in an old run, while another prompt is open.
pub fn one_at_a_time(history: &History) -> Vec<String> {
    let mut wrong = each(history, |group| {
        let mut wrong = Vec::new();
        let mut open: Option<&str> = None;
        for frame in &group.frames {
            if frame.is("task_started") {
                if let Some(other) = open.filter(|other| *other != frame.names()) {
                    wrong.push(format!(
                        "{} starts while {other} runs: {}",
                        frame.names(),
                        frame.seq
                    ));
                }
                open = Some(frame.names());
            }
            if (frame.is("task_ended") || frame.is("turn_settled")) && open == Some(frame.names()) {
                open = None;
            }
        }
        wrong
    });
    let overlaps = history.journal.iter().filter(|event| event["event"] == "overlap");
    wrong.extend(overlaps.map(|event| format!("two prompts of one session at once: {event}")));
    wrong.extend(works_on(history));
    wrong
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

/// I4: segments are numbered 1, 2, 3 …, each the only child of the one before; one is open.
pub fn segments_are_one_line(history: &History) -> Vec<String> {
    each(history, |group| {
        let mut wrong = Vec::new();
        for (number, segment) in (1u64..).zip(&group.segments) {
            let parent = (1 < number).then(|| number - 1);
            if segment["segment"] != number || segment["parent"].as_u64() != parent {
                wrong.push(format!("segment {number} of the line is {segment}"));
            }
            let is_last = number == group.segments.len() as u64;
            if segment["closed_seq"].is_null() != is_last {
                wrong.push(format!("one segment is open, the last: {segment}"));
            }
            let before = number.checked_sub(2).and_then(|at| group.segments.get(at as usize));
            let closed = before.and_then(|before| before["closed_seq"].as_u64());
            if closed.is_some_and(|closed| segment["opened_seq"].as_u64() <= Some(closed)) {
                wrong.push(format!("a segment opens before the last one closed: {segment}"));
            }
        }
        let rotated = group.segments.iter().filter(|one| one["end_reason"] == "compaction").count();
        let completed = group.compactions.iter().filter(|one| one["status"] == "completed").count();
        if rotated != completed {
            wrong.push(format!("{completed} compactions completed, {rotated} rotated"));
        }
        wrong
    })
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

/// I8: turns start in the order of acceptance, and a compaction before the waiting turns.
pub fn in_order(history: &History) -> Vec<String> {
    each(history, |group| {
        let mut wrong = Vec::new();
        let queued: HashMap<&str, (u64, &Value)> = group
            .frames
            .iter()
            .filter(|frame| frame.is("task_queued"))
            .map(|frame| (frame.names(), (frame.seq, &frame.payload["kind"])))
            .collect();
        let mut last = 0;
        let mut turns: Vec<u64> = Vec::new();
        let mut begun = HashSet::new();
        for frame in group.frames.iter().filter(|frame| frame.is("task_started")) {
            if !begun.insert(frame.names()) {
                continue;
            }
            let Some((seq, kind)) = queued.get(frame.names()) else {
                wrong.push(format!("{} starts and was never queued", frame.names()));
                continue;
            };
            if *kind == "turn" {
                if *seq < last {
                    wrong.push(format!("{} starts after a later one", frame.names()));
                }
                last = last.max(*seq);
                turns.push(frame.seq);
            } else if !waited_for_its_lock(group, frame.names())
                && CLAIMED < turns.iter().filter(|turn| seq < *turn).count()
            {
                wrong.push(format!("compaction {} starts after later turns", frame.names()));
            }
        }
        wrong
    })
    .into_iter()
    .chain(accepted_in_order(history))
    .collect()
}

fn waited_for_its_lock(group: &Group, task: &str) -> bool {
    group.frames.iter().any(|frame| frame.is("lock_refused") && frame.names() == task)
}

/// Checks that tasks promised to one caller in sequence are queued in that order.
fn accepted_in_order(history: &History) -> Vec<String> {
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

/// I9: each ended task ended once, and no other did.
pub fn one_end(history: &History) -> Vec<String> {
    each(history, |group| {
        let mut ends: HashMap<&str, usize> = HashMap::new();
        for frame in group.frames.iter().filter(|frame| frame.is("task_ended")) {
            *ends.entry(frame.names()).or_default() += 1;
        }
        let mut wrong = Vec::new();
        for task in &group.tasks {
            let (ended, expected) = (ends.get(text(task, "id")), usize::from(is_over(task)));
            if ended.copied().unwrap_or(0) != expected {
                wrong.push(format!("{ended:?} ends in the frames: {task}"));
            }
        }
        wrong
    })
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
