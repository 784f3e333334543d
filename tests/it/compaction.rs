//! Compaction as a task, with the strategy `command`.

use serde_json::json;

use crate::support::{Server, Setup};

const COMPACTIONS: &str = "/v1/groups/work/compactions";

/// I8, DQ-4: a compaction runs after the running turn and before the turns that wait.
#[test]
fn overtakes_waiting_turns() {
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

/// API 2: `turn_started` and `turn_settled` frame a compaction too, around the prompt as sent,
/// and the group says `compacting` while it runs.
#[test]
fn shows_while_it_runs() {
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

/// DQ-3: while one is queued or running, that one is returned; after its end a new one is made;
/// another group has its own.
#[test]
fn coalesces() {
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

/// API 2: a group without a session has nothing to compact: `skipped`, and no agent is prompted.
#[test]
fn without_a_session_is_skipped() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let task = server.post(&format!("{COMPACTIONS}?wait=20"), &json!({})).expect(200);
    assert_eq!(task["state"], "skipped", "{task}");
    assert!(server.journal.prompts().is_empty());
    server.complete("work", "next");
}

/// API 2: an unknown group is 404, and is not made.
#[test]
fn unknown_group() {
    let server = Server::usual();
    server.post(COMPACTIONS, &json!({})).any_problem(404);
    server.get("/v1/groups/work").any_problem(404);
}

/// API 2, DQ-12: strategy `none` is 409 `compaction-unsupported`, and stops no work.
#[test]
fn unsupported() {
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

/// DQ-9: a compaction that the agent refuses fails, and the waiting turns run on.
#[test]
fn failure_drains_on() {
    let server = Server::usual();
    server.complete("work", "first");
    let body = json!({ "focus": "[[gate:go]][[error:-32602:cannot compact]]" });
    let failing = server.post(COMPACTIONS, &body).expect(202);
    server.journal.wait_gate("go");
    let next = server.submit("work", "next");
    server.journal.open_gate("go");
    let failed = server.finish_as(&failing, "failed");
    assert!(failed["error"].to_string().contains("cannot compact"), "{failed}");
    server.finish_as(&next, "completed");
    assert_eq!(
        server.group("work")["session_id"],
        server.journal.events_named("new")[0]["session"]
    );
}

/// RELIABILITY 1, DQ-9: a queued compaction survives kill -9, keeps its place before the waiting
/// turns, and runs once.
#[test]
fn survives_a_restart() {
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

/// API 2: a queued compaction can be cancelled; the turns behind it run.
#[test]
fn can_be_cancelled() {
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
