//! Compaction as a task, with the strategy `command`: its place in the queue, its record and its
//! outcome.

use std::time::Duration;

use rusqlite::TransactionBehavior;
use serde_json::{Value, json};

use crate::support::{Server, Setup, hermes, server::encode};

const COMPACTIONS: &str = "/v1/groups/work/compactions";

/// I8, DQ-3, DQ-4, API-2, API-4: a compaction runs after the running turn and before the waiting
/// turns, in the same process. A second request returns the waiting one with its focus and place,
/// and the focus follows the agent's command; each group has its own.
#[test]
fn a_compaction_overtakes_waiting_turns() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waiting");
    let compaction = server.compact_with("work", "the names");
    assert_eq!(
        (&compaction["kind"], &compaction["state"]),
        (&json!("compaction"), &json!("queued"))
    );
    assert_eq!(compaction["deduplicated"], false);
    let later = server.submit("work", "later");
    let again = server.post(COMPACTIONS, &json!({ "focus": "another" })).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["focus"]), (&compaction["id"], &json!("the names")));
    assert_eq!(again["deduplicated"], true);
    assert_eq!(server.group("work")["queue_length"], 3);
    server.complete("other", "other");
    let other = server.compact("other");
    assert_eq!(other["deduplicated"], false);
    server.finish_as(&other, "completed");
    assert_eq!(server.task(&running)["state"], "running");
    server.journal.open_gate("go");
    for task in [&running, &compaction, &waiting, &later] {
        server.finish_as(task, "completed");
    }
    let prompts = server.journal.prompts_of(&server.session("work"));
    assert_eq!(prompts, ["[[gate:go]]", "/compact the names", "waiting", "later"]);
    server.journal.assert_one_at_a_time();
    assert_eq!(server.journal.events_named("start").len(), 2, "one process a group (DQ-4)");
    assert_eq!(server.list("work", "tasks?kind=compaction").len(), 1);
}

/// API-1, API-2, AM-29, AM-31, HL-13, DQ-3: a running compaction is shown as the group's status,
/// and coalesces requests; turns are accepted and no write transaction is held while the agent
/// works. Its record has all fields, with the agent's signals merged into it, and each frame comes
/// once.
#[test]
fn a_running_compaction_is_shown_in_status_record_and_frames() {
    let server = Server::usual();
    server.complete("work", "[[usage:800:1000]]");
    assert_eq!(server.group("work")["compaction"], json!(null));
    let ended = "[[compaction:completed:c1:what was said]][[usage:90:1000]]";
    let task =
        server.compact_with("work", &format!("[[compaction:in_progress:c1]][[gate:go]]{ended}"));
    server.journal.wait_gate("go");
    let group = server.wait_group("work", "compacting", |group| {
        group["status"] == "compacting" && group["compaction"]["active"] == true
    });
    assert_eq!(group["compaction"]["count"], 0, "{group}");
    let again = server.post(COMPACTIONS, &json!({})).expect_any(&[200, 202]);
    assert_eq!(again["id"], task["id"], "also while it runs");
    let mut database = server.writable_database();
    database.busy_timeout(Duration::from_secs(1)).unwrap();
    database.transaction_with_behavior(TransactionBehavior::Immediate).unwrap().rollback().unwrap();
    let turns = ["one", "two"].map(|text| server.submit("work", text));
    server.complete("other", "another group keeps running");
    assert_eq!(server.task(&task)["state"], "running");
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    turns.iter().for_each(|turn| drop(server.finish_as(turn, "completed")));
    assert_eq!(server.journal.prompts_of(&server.session("work"))[2..], ["one", "two"]);
    assert_record(&server.only_compaction("work"), &task);
    server.assert_compacted("work", 1);

    let frames = server.frames_where("work", &format!("&task={}", task["id"].as_str().unwrap()));
    let order = [
        "greenroom/turn_started",
        "session/prompt",
        "greenroom/compaction_ended",
        "greenroom/turn_settled",
        "greenroom/task_ended",
    ];
    let places = |kind: &str| -> Vec<usize> {
        (0..frames.len()).filter(|place| frames[*place]["kind"] == kind).collect()
    };
    let found = order.map(places);
    assert!(found.iter().all(|places| places.len() == 1) && found.is_sorted(), "{frames:?}");
    let started = places("greenroom/compaction_started");
    assert!(started.len() == 1 && found[0] < started && started < found[2], "{frames:?}");
    assert_eq!(frames[found[2][0]]["payload"]["status"], "completed", "{frames:?}");
}

/// Checks all fields of the record of a compaction that the agent signalled.
#[track_caller]
fn assert_record(compaction: &Value, task: &Value) {
    for name in
        ["messages_before", "messages_after", "tokens_before", "tokens_after", "source", "error"]
    {
        assert!(compaction.get(name).is_some(), "no {name} in {compaction}");
    }
    assert!(compaction["id"].as_str().unwrap().starts_with("cmp_"), "{compaction}");
    assert_eq!((&compaction["group"], &compaction["task"]), (&json!("work"), &task["id"]));
    assert_eq!(compaction["status"], "completed");
    let mut sources: Vec<&str> =
        compaction["sources"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    sources.sort_unstable();
    assert_eq!(sources, ["acp", "task"]);
    assert!(sources.contains(&compaction["source"].as_str().unwrap()));
    assert_eq!((&compaction["from_segment"], &compaction["to_segment"]), (&json!(1), &json!(2)));
    assert_eq!(compaction["summary"], "what was said");
    assert_eq!(compaction["error"], json!(null));
    assert!(compaction["started_at"].is_string(), "{compaction}");
    assert!(compaction["started_at"].as_str() <= compaction["ended_at"].as_str(), "{compaction}");
}

/// API-2, DQ-12: an unknown group is 404, and is not created; strategy `none` is 409 and does not
/// disturb other work; a group without a session has nothing to compact, and no agent is prompted.
#[test]
fn impossible_compactions_are_refused_or_skipped() {
    let none = "{ strategy = \"none\" }";
    let server = Setup::new().agent("plain", &[]).set("agents.plain", "compaction", none).start();
    server.post(COMPACTIONS, &json!({})).any_problem(404);
    server.get(COMPACTIONS).any_problem(404);
    server.get("/v1/groups/work").any_problem(404);
    server.put("/v1/groups/work", &json!({})).expect(201);
    let task = server.post(&format!("{COMPACTIONS}?wait=20"), &json!({})).expect(200);
    assert_eq!(task["state"], "skipped", "{task}");
    assert!(server.journal.prompts().is_empty());
    let compaction = server.only_compaction("work");
    assert_eq!((&compaction["status"], &compaction["task"]), (&json!("noop"), &task["id"]));
    server.complete("work", "next");
    server.put("/v1/groups/plain", &json!({ "agent": "plain" })).expect(201);
    let running = server.submit("plain", "[[gate:go]]");
    server.journal.wait_gate("go");
    let path = "/v1/groups/plain/compactions";
    server.post(path, &json!({})).problem(409, "compaction-unsupported");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    assert_eq!(server.journal.prompts(), ["next", "[[gate:go]]"]);
}

/// R-1, DQ-9, API-2: a queued compaction can be cancelled; else it survives kill -9, keeps its
/// place before the waiting turns, and runs once.
#[test]
fn a_queued_compaction_survives_a_restart_or_is_cancelled() {
    let mut server = Server::usual();
    server.complete("work", "first");
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waiting");
    let cancelled = server.compact("work");
    server.cancel(&cancelled).expect(202);
    assert_eq!(server.task(&cancelled)["state"], "cancelled");
    let compaction = server.compact("work");
    assert_ne!(compaction["id"], cancelled["id"]);
    server.kill_and_boot();
    server.finish_as(&compaction, "completed");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.journal.prompts(), ["first", "[[gate:go]]", "/compact", "waiting"]);
}

/// API-2, A-5, RA, AM-17: the history is listed newest first, in pages of any size, and unchanged
/// after kill -9, like the state of the group. Without a signal the task is the only source.
#[test]
fn history_is_newest_first() {
    let mut server = Server::usual();
    server.complete("work", "first");
    let tasks = ["", "[[error:-32602:no]]", ""].map(|focus| {
        let task = server.finish(&server.compact_with("work", focus));
        assert_eq!(task["state"], if focus.is_empty() { "completed" } else { "failed" });
        task
    });
    assert_eq!(tasks[0]["text"], "Compacted.");
    let all = server.compactions("work");
    let listed: Vec<&Value> = all.iter().map(|compaction| &compaction["task"]).collect();
    let expected: Vec<&Value> = tasks.iter().rev().map(|task| &task["id"]).collect();
    assert_eq!(listed, expected);
    assert_eq!((&all[0]["source"], &all[0]["sources"]), (&json!("task"), &json!(["task"])));
    for limit in 1..=4 {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = server.get(&format!("{COMPACTIONS}?limit={limit}{cursor}")).expect(200);
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit, "{page}");
            seen.extend(items.iter().cloned());
            assert!(seen.len() <= all.len(), "limit {limit} repeats");
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", encode(next)),
                None => break,
            }
        }
        assert_eq!(seen, all, "limit {limit}");
    }
    let (segments, state) = (server.segments("work"), server.group("work")["compaction"].clone());
    server.kill_and_boot();
    assert_eq!((server.compactions("work"), server.segments("work")), (all, segments));
    assert_eq!(server.group("work")["compaction"], state);
    server.finish_as(&server.compact("work"), "completed");
    server.assert_compacted("work", 3);
}

/// How a test ends a compaction that has no effect.
enum End {
    /// Its words end it.
    Itself,
    Cancelled,
    /// hermes writes this line to stderr.
    Line(fn(&str) -> String),
}

/// API-1, RA, DQ-9, DQ-12, HL-2, HL-7, I5: each way in which an ordered compaction has no effect
/// has its status. The error states that the session is unchanged; nothing is counted or rotated,
/// the lock is free, and the waiting turn runs in the session.
#[test]
fn compactions_without_effect_leave_the_session_unchanged() {
    use End::{Cancelled, Itself, Line};
    let begun = "[[compaction:in_progress:c]]";
    #[rustfmt::skip]
    let cases = [
        ("error",     "[[error:-32602:no way]]",                  Itself,    "failed",      "failed"),
        ("midway",    "[[compaction:in_progress:c]][[error:-32602:no way]]", Itself, "failed", "failed"),
        ("update",    "[[compaction:failed:c:no way]][[silent]]", Itself,    "failed",      "failed"),
        ("signalled", "[[on-cancel:compaction:cancelled:c]]",     Cancelled, "cancelled",   "cancelled"),
        ("cancelled", "",                                         Cancelled, "cancelled",   "cancelled"),
        ("death",     "[[compaction:in_progress:c]][[die:3]]",    Itself,    "interrupted", "abandoned"),
        ("noop",      "",                       Line(hermes::no_progress),     "skipped",   "noop"),
        ("skipped",   "",                       Line(hermes::skipped),         "skipped",   "skipped"),
        ("rotated",   "",                       Line(hermes::already_rotated), "skipped",   "skipped"),
    ];
    let server = Setup::new().signals(&["hermes_stderr"]).start();
    for (group, words, end, state, status) in cases {
        server.complete(group, "first");
        let session = server.session(group);
        let gate = format!("[[gate:{group}]]");
        let focus = match &end {
            Itself => format!("{gate}{words}"),
            Cancelled if words.is_empty() => gate,
            Cancelled => format!("{begun}{words}{gate}"),
            Line(line) => format!("{}{}{gate}", hermes::started(&session), line(&session)),
        };
        let task = server.compact_with(group, &focus);
        let next = server.submit(group, "next");
        server.journal.wait_gate(group);
        match end {
            Itself => server.journal.open_gate(group),
            Cancelled => drop(server.cancel(&task).expect(202)),
            Line(_) => {
                server.wait_stderr_frames(group, 2);
                server.journal.open_gate(group);
            }
        }
        let task = server.finish_as(&task, state);
        server.finish_as(&next, "completed");
        let compaction = server.only_compaction(group);
        assert_eq!(compaction["status"], status, "{group}: {compaction}");
        assert_eq!(compaction["to_segment"], json!(null), "{group}: {compaction}");
        assert!(compaction["ended_at"].is_string(), "{group}: {compaction}");
        if state == "failed" {
            for error in [&task["error"]["message"], &compaction["error"]] {
                let text = error.to_string();
                assert!(text.contains("unchanged") && text.contains("no way"), "{group}: {text}");
            }
        }
        server.assert_compacted(group, 0);
        assert_eq!(server.group(group)["compaction"]["active"], false, "{group}");
        assert_eq!(server.session(group), session, "{group}");
        server.lock(&session).any_problem(404);
        assert_eq!(server.journal.prompts_of(&session).last().unwrap(), "next", "{group}");
    }
}
