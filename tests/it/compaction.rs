//! Compaction as a task, with the strategy `command`: its place in the queue.

use std::time::Duration;

use rusqlite::TransactionBehavior;
use serde_json::json;

use crate::support::{Server, Setup};

const COMPACTIONS: &str = "/v1/groups/work/compactions";

/// I8, DQ-4: a compaction runs after the running turn and before the waiting turns.
#[test]
fn a_compaction_overtakes_waiting_turns() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waiting");
    let compaction = server.compact("work");
    assert_eq!(compaction["kind"], "compaction");
    assert_eq!(compaction["deduplicated"], false);
    assert_eq!(compaction["state"], "queued");
    let later = server.submit("work", "later");
    assert_eq!(server.task(&running)["state"], "running");
    server.journal.open_gate("go");
    for task in [&running, &compaction, &waiting, &later] {
        server.finish_as(task, "completed");
    }
    let prompts = server.journal.prompts();
    assert_eq!(prompts[0], "[[gate:go]]");
    assert!(prompts[1].starts_with("/compact"), "{prompts:?}");
    assert_eq!(prompts[2..], ["waiting", "later"]);
    server.journal.assert_one_at_a_time();
    assert_eq!(server.journal.events_named("start").len(), 1, "no second process (DQ-4)");
}

/// API-2: a compaction has `turn_started` and `turn_settled` frames around its prompt too, and the
/// group's status is `compacting` while it runs.
#[test]
fn a_running_compaction_is_shown_in_status_and_frames() {
    let server = Server::usual();
    server.complete("work", "first");
    let body = json!({ "focus": "[[gate:go]]" });
    let task = server.post(COMPACTIONS, &body).expect(202);
    assert_eq!(task["focus"], "[[gate:go]]");
    server.journal.wait_gate("go");
    server.wait_group("work", "compacting", |group| group["status"] == "compacting");
    assert_eq!(server.task(&task)["state"], "running");
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    let id = task["id"].as_str().unwrap();
    let frames = server.frames_where("work", &format!("&task={id}"));
    let place = |kind: &str| frames.iter().position(|frame| frame["kind"] == kind);
    let started = place("greenroom/turn_started").expect("a turn_started");
    let prompt = place("session/prompt").expect("a session/prompt");
    let settled = place("greenroom/turn_settled").expect("a turn_settled");
    assert!(started < prompt && prompt < settled, "{frames:?}");
}

/// DQ-3: while a compaction is queued or running, a second request returns it; after its end a
/// request creates a new one; each group has its own.
#[test]
fn compaction_requests_coalesce_per_group() {
    let server = Server::usual();
    server.complete("other", "other");
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let first = server.compact("work");
    let again = server.post(COMPACTIONS, &json!({})).expect_any(&[200, 202]);
    assert_eq!(again["id"], first["id"]);
    assert_eq!(again["deduplicated"], true);
    let other = server.compact("other");
    assert_ne!(other["id"], first["id"]);
    assert_eq!(other["deduplicated"], false);
    server.journal.open_gate("go");
    server.finish_as(&first, "completed");
    let gated = server.post(COMPACTIONS, &json!({ "focus": "[[gate:second]]" })).expect(202);
    assert_ne!(gated["id"], first["id"]);
    assert_eq!(gated["deduplicated"], false);
    server.journal.wait_gate("second");
    let running = server.post(COMPACTIONS, &json!({})).expect_any(&[200, 202]);
    assert_eq!(running["id"], gated["id"], "also while it runs");
    server.journal.open_gate("second");
    server.finish_as(&gated, "completed");
}

/// API-2: a group without a session has nothing to compact: the task is `skipped`, the compaction
/// a `noop`, and no agent is prompted.
#[test]
fn a_compaction_without_a_session_is_skipped() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let task = server.post(&format!("{COMPACTIONS}?wait=20"), &json!({})).expect(200);
    assert_eq!(task["state"], "skipped", "{task}");
    assert!(server.journal.prompts().is_empty());
    let compaction = server.only_compaction("work");
    assert_eq!(compaction["status"], "noop", "{compaction}");
    assert_eq!(compaction["task"], task["id"], "{compaction}");
    server.complete("work", "next");
}

/// API-2: an unknown group is 404, and is not created.
#[test]
fn a_compaction_of_an_unknown_group_is_404() {
    let server = Server::usual();
    server.post(COMPACTIONS, &json!({})).any_problem(404);
    server.get(COMPACTIONS).any_problem(404);
    server.get("/v1/groups/work").any_problem(404);
}

/// API-2, DQ-12: strategy `none` is 409 `compaction-unsupported`, and does not disturb other work.
#[test]
fn strategy_none_refuses_a_compaction() {
    let none = "{ strategy = \"none\" }";
    let setup = Setup::new().agent("plain", &[]).set("agents.plain", "compaction", none);
    let server = setup.start();
    server.put("/v1/groups/work", &json!({ "agent": "plain" })).expect(201);
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    server.post(COMPACTIONS, &json!({})).problem(409, "compaction-unsupported");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    assert_eq!(server.journal.prompts(), ["[[gate:go]]"]);
}

/// DQ-9, DQ-12: a compaction that the agent refuses fails, and its error states that the session is
/// unchanged; the waiting turns run in it.
#[test]
fn waiting_turns_run_after_a_failed_compaction() {
    let server = Server::usual();
    server.complete("work", "first");
    let body = json!({ "focus": "[[gate:go]][[error:-32602:cannot compact]]" });
    let failing = server.post(COMPACTIONS, &body).expect(202);
    server.journal.wait_gate("go");
    let next = server.submit("work", "next");
    server.journal.open_gate("go");
    let failed = server.finish_as(&failing, "failed");
    assert!(failed["error"].to_string().contains("cannot compact"), "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("unchanged"), "{failed}");
    server.finish_as(&next, "completed");
    assert_eq!(
        server.group("work")["session_id"],
        server.journal.events_named("new")[0]["session"]
    );
}

/// R-1, DQ-9: a queued compaction survives kill -9, keeps its place before the waiting
/// turns, and runs once.
#[test]
fn a_queued_compaction_survives_a_restart() {
    let mut server = Server::usual();
    server.complete("work", "first");
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waiting");
    let compaction = server.compact("work");
    server.kill_and_boot();
    server.finish_as(&compaction, "completed");
    server.finish_as(&waiting, "completed");
    let prompts = server.journal.prompts();
    assert!(prompts[2].starts_with("/compact"), "{prompts:?}");
    assert_eq!(prompts[3], "waiting");
    assert_eq!(prompts.len(), 4);
}

/// API-2: a queued compaction can be cancelled; the turns after it run.
#[test]
fn a_queued_compaction_can_be_cancelled() {
    let server = Server::usual();
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let compaction = server.compact("work");
    let waiting = server.submit("work", "waiting");
    server.cancel(&compaction).expect(202);
    assert_eq!(server.task(&compaction)["state"], "cancelled");
    server.journal.open_gate("go");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.journal.prompts(), ["[[gate:go]]", "waiting"]);
}

/// API-2, API-4: the focus follows the agent's compaction command; without a focus the command is
/// sent alone.
#[test]
fn focus_follows_the_compaction_command() {
    let server = Server::usual();
    server.complete("work", "first");
    let task = server.compact_with("work", "the names of the files");
    assert_eq!(task["focus"], "the names of the files");
    server.finish_as(&task, "completed");
    server.finish_as(&server.compact("work"), "completed");
    assert_eq!(server.journal.prompts()[1..], ["/compact the names of the files", "/compact"]);
}

/// DQ-3, I8: a repeated request changes nothing in the waiting compaction: its focus and its place
/// stay.
#[test]
fn a_repeated_request_keeps_focus_and_place() {
    let server = Server::usual();
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let first = server.compact_with("work", "one");
    let again = server.post(COMPACTIONS, &json!({ "focus": "another" })).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["focus"]), (&first["id"], &json!("one")));
    assert_eq!(server.group("work")["queue_length"], 1);
    server.journal.open_gate("go");
    server.finish_as(&first, "completed");
    assert_eq!(server.journal.prompts()[1], "/compact one");
    assert_eq!(server.list("work", "tasks?kind=compaction").len(), 1);
}

/// HL-13, I8: turns are accepted while a compaction runs, and run after it, in order; no write
/// transaction is held while the agent works.
#[test]
fn turns_are_accepted_while_a_compaction_runs() {
    let server = Server::usual();
    server.complete("work", "first");
    let compaction = server.compact_with("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let mut database = server.writable_database();
    database.busy_timeout(Duration::from_secs(1)).unwrap();
    database.transaction_with_behavior(TransactionBehavior::Immediate).unwrap().rollback().unwrap();
    let turns: Vec<_> = (0..5).map(|n| server.submit("work", &format!("turn {n}"))).collect();
    server.complete("other", "another group keeps running");
    assert_eq!(server.task(&compaction)["state"], "running");
    server.journal.open_gate("go");
    server.finish_as(&compaction, "completed");
    for turn in &turns {
        server.finish_as(turn, "completed");
    }
    let expected: Vec<String> = (0..5).map(|n| format!("turn {n}")).collect();
    assert_eq!(server.journal.prompts_of(&server.session("work"))[2..], expected);
    server.journal.assert_one_at_a_time();
}
