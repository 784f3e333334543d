//! The prompts that reached the agents, by their journal, compared with the server's frames.

use std::collections::HashMap;

use serde_json::Value;

use crate::history::{Frame, Group, History, text};

/// A prompt as an agent received it.
struct Receipt<'a> {
    /// Its place in the journal.
    at: usize,
    pid: u64,
    event: &'a Value,
}

/// A prompt as the server committed it, and whether an agent received it.
struct Sent<'a> {
    frame: &'a Frame,
    receipt: Option<Receipt<'a>>,
}

/// Returns the receipts of each run, in order.
fn receipts(history: &History) -> HashMap<&str, Vec<Receipt<'_>>> {
    let mut run_of: HashMap<u64, &str> = HashMap::new();
    let mut receipts: HashMap<&str, Vec<Receipt<'_>>> = HashMap::new();
    for (at, event) in history.journal.iter().enumerate() {
        let Some(pid) = event["pid"].as_u64() else { continue };
        match text(event, "event") {
            "start" => drop(run_of.insert(pid, text(event, "run"))),
            "prompt" => {
                let run = run_of.get(&pid).copied().unwrap_or("a run that never started");
                receipts.entry(run).or_default().push(Receipt { at, pid, event });
            }
            _ => {}
        }
    }
    receipts
}

/// Returns the prompts of each group in the order of their frames, each with its receipt: an agent
/// reads the prompts of its run in order, and possibly not all.
fn sent(history: &History) -> (HashMap<&str, Vec<Sent<'_>>>, Vec<String>) {
    let mut received = receipts(history);
    let mut wrong = Vec::new();
    let mut all: HashMap<&str, Vec<Sent<'_>>> = HashMap::new();
    for (name, group) in &history.groups {
        let frames = group.frames.iter().filter(|frame| frame.kind == "session/prompt");
        let mut prompts = Vec::new();
        for frame in frames {
            let run = frame.run.as_deref().unwrap_or_default();
            let queue = received.get_mut(run).filter(|queue| !queue.is_empty());
            let receipt = queue.map(|queue| queue.remove(0));
            if let Some(receipt) = &receipt
                && text(receipt.event, "line") != frame.payload_text
            {
                let got = receipt.event;
                wrong.push(format!("{name}: frame {} is not what came: {got}", frame.seq));
            }
            prompts.push(Sent { frame, receipt });
        }
        all.insert(name, prompts);
    }
    for (run, left) in received {
        let violations =
            left.iter().map(|one| format!("{run}: a prompt that no frame has: {}", one.event));
        wrong.extend(violations);
    }
    (all, wrong)
}

/// I7, I3: START is committed before the first byte of a prompt, and its frame has every byte.
pub fn sent_as_committed(history: &History) -> Vec<String> {
    if history.groups.is_empty() { Vec::new() } else { sent(history).1 }
}

/// I7: a task's prompt is sent once an attempt, and never again after the agent began to answer, or
/// after a crash of the server interrupted it. The log shows whether it had output.
pub fn sent_once_an_attempt(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, all) in sent(history).0 {
        let Some(group) = history.groups.get(name) else { continue };
        let mut of_task: HashMap<&str, Vec<&Sent<'_>>> = HashMap::new();
        for one in &all {
            let task = one.frame.task.as_deref().unwrap_or("no task");
            of_task.entry(task).or_default().push(one);
        }
        for (task, times) in of_task {
            for pair in times.windows(2) {
                if let Some(why) = again(history, group, task, pair[0], pair[1]) {
                    wrong.push(format!("{name}: {task} was sent again, {why}"));
                }
            }
            let row = group.tasks.iter().find(|row| row["id"] == task);
            let attempts = row.and_then(|row| row["attempt"].as_u64()).unwrap_or(0);
            // A compaction that rotates also sends one prompt.
            if attempts < times.len() as u64 {
                wrong.push(format!(
                    "{name}: {task} was sent {} times in {attempts} attempts",
                    times.len()
                ));
            }
        }
    }
    wrong
}

/// Returns why a prompt must not have been sent a second time.
fn again(
    history: &History,
    group: &Group,
    task: &str,
    first: &Sent<'_>,
    second: &Sent<'_>,
) -> Option<String> {
    let mut between = group.frames.iter().filter(|frame| {
        (first.frame.seq..second.frame.seq).contains(&frame.seq)
            && frame.task.as_deref() == Some(task)
            && frame.run == first.frame.run
    });
    if let Some(shown) = first.receipt.as_ref().and_then(|receipt| output(history, receipt)) {
        return Some(format!("though the agent had begun: {shown}"));
    }
    if first.frame.run == second.frame.run {
        return None;
    }
    let run = first.frame.run.as_deref().unwrap_or_default();
    let exited = |frame: &&Frame| frame.is("run_exited") && frame.payload["run"] == run;
    let Some(end) = group.frames.iter().find(exited) else {
        return Some(format!("without an observed end of {run}"));
    };
    let crashed = text(&end.payload, "reason") == "server_restart";
    // The next server may retry an attempt whose end the server saw.
    let over = between.any(|frame| frame.seq < end.seq && ends_attempt(frame));
    (crashed && !over).then(|| "after the server that sent it was gone".to_owned())
}

fn ends_attempt(frame: &Frame) -> bool {
    let settled = frame.is("turn_settled") && frame.payload["stop_reason"] != "_server_restart";
    let fact = frame.kind.strip_prefix("greenroom/").unwrap_or_default();
    settled || fact.contains("retr") || fact.contains("attempt")
}

/// Returns the output that the agent began to write for a prompt.
///
/// Without its very last output: it may have died between the journal and the write.
fn output<'a>(history: &'a History, receipt: &Receipt<'_>) -> Option<&'a Value> {
    let by_process = |event: &&Value| event["pid"].as_u64() == Some(receipt.pid);
    let mut after = history.journal[receipt.at + 1..].iter().filter(by_process);
    let mut found = None;
    while let Some(event) = after.next() {
        match text(event, "event") {
            "prompt" | "start" | "answer" => break,
            "output" => {
                found = after.clone().next().is_some().then_some(event);
                if found.is_some() {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// I16: each invalid line of a completed turn is a frame.
pub fn rejected_is_reported(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, all) in sent(history).0 {
        let Some(group) = history.groups.get(name) else { continue };
        for one in &all {
            let Some(receipt) = &one.receipt else { continue };
            let task = one.frame.task.as_deref().unwrap_or_default();
            let row = group.tasks.iter().find(|row| row["id"] == task);
            if row.is_none_or(|row| row["state"] != "completed") {
                continue;
            }
            let by_process = |event: &&Value| event["pid"].as_u64() == Some(receipt.pid);
            let after = history.journal[receipt.at + 1..].iter().filter(by_process);
            let during = after
                .take_while(|event| !["answer", "prompt", "start"].contains(&text(event, "event")));
            let lines = during.filter(|event| event["event"] == "rejected");
            let lines: u64 = lines.filter_map(|event| event["lines"].as_u64()).sum();
            let reported = group.frames.iter().filter(|frame| {
                frame.is("agent_output_rejected") && frame.task.as_deref() == Some(task)
            });
            let reported = reported.count() as u64;
            if reported < lines {
                wrong.push(format!(
                    "{name}: {lines} lines of {task} were rejected, {reported} are reported"
                ));
            }
        }
    }
    wrong
}

/// I16: if an agent gets a prompt without its earlier history, the frames report why.
pub fn lost_context_is_reported(history: &History) -> Vec<String> {
    const SAYS: [&str; 3] = ["context_lost", "segment_ended", "group_changed"];
    let mut wrong = Vec::new();
    for (name, all) in sent(history).0 {
        let Some(group) = history.groups.get(name) else { continue };
        let mut before: Option<(u64, &str)> = None;
        for one in &all {
            let Some(receipt) = &one.receipt else { continue };
            let session = text(receipt.event, "session");
            // In the same session the agent itself lost the history.
            let is_fresh = receipt.event["first"] == true;
            if let Some((last, _)) = before.filter(|(_, other)| is_fresh && *other != session) {
                let between = |frame: &&Frame| (last..one.frame.seq).contains(&frame.seq);
                let says = |frame: &Frame| SAYS.iter().any(|fact| frame.is(fact));
                if !group.frames.iter().filter(between).any(says) {
                    wrong.push(format!("{name}: frame {} has no context", one.frame.seq));
                }
            }
            before = Some((one.frame.seq, session));
        }
    }
    wrong
}
