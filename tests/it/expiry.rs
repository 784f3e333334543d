//! `expires_in_ms`: a task that did not start in time is never started.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, millis};

/// Enqueues a turn that expires.
#[track_caller]
fn submit_expiring(server: &Server, group: &str, prompt: &str, expires_in_ms: u64) -> Value {
    let body = json!({ "prompt": prompt, "expires_in_ms": expires_in_ms });
    server.post(&format!("/v1/groups/{group}/turns"), &body).expect(202)
}

/// Waits for the task's end, and checks that it expired and was never started.
#[track_caller]
fn assert_expired(server: &Server, task: &Value, prompt: &str) -> Value {
    let ended = server.finish_as(task, "failed");
    assert_eq!(ended["error"]["code"], "expired", "{ended}");
    assert!(!ended["error"]["message"].as_str().unwrap_or_default().is_empty(), "{ended}");
    assert_eq!((&ended["started_at"], &ended["run"]), (&json!(null), &json!(null)), "{ended}");
    assert_eq!(ended["interrupted"], json!(null), "{ended}");
    assert_eq!(server.journal.times(prompt), 0, "{ended}");
    assert!(server.task_frames(task, "greenroom/turn_started").is_empty(), "{ended}");
    assert_eq!(server.task_frames(task, "greenroom/task_ended").len(), 1, "{ended}");
    ended
}

/// API-2, I12: a turn that waits for a long one expires on time, and its state shows it
/// immediately; the running turn continues although its own time has passed too, and later turns
/// keep their places.
#[test]
fn a_queued_task_expires_on_time() {
    let server = Server::usual();
    let running = submit_expiring(&server, "work", "[[gate:go]]", 2_000);
    server.journal.wait_gate("go");
    let before = server.submit("work", "before");
    let late = submit_expiring(&server, "work", "late", 2_500);
    let after = server.submit("work", "after");
    let ended = assert_expired(&server, &late, "late");
    let waited = millis(&ended["ended_at"]) - millis(&ended["created_at"]);
    assert!(2_400 <= waited, "expired after {waited} ms");
    assert_eq!(server.task(&running)["state"], "running");
    assert_eq!(server.group("work")["queue_length"], 2);
    server.journal.open_gate("go");
    for task in [&running, &before, &after] {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.journal.prompts(), ["[[gate:go]]", "before", "after"]);
}

/// API-2: a turn that starts in time runs as usual.
#[test]
fn a_task_that_starts_in_time_does_not_expire() {
    let server = Server::usual();
    let task = submit_expiring(&server, "work", "in time", 60_000);
    server.finish_as(&task, "completed");
}

/// I12: a turn that waits for a slot expires too, and its group uses the slot for the next turn.
#[test]
fn a_task_without_a_slot_expires() {
    let server = Setup::new().set("limits", "running_groups", 1).start();
    server.submit("busy", "[[gate:go]]");
    server.journal.wait_gate("go");
    let late = submit_expiring(&server, "work", "late", 300);
    let after = server.submit("work", "after");
    assert_expired(&server, &late, "late");
    assert_eq!(server.wait_blocked(&after, "slot")["state"], "queued");
    server.journal.open_gate("go");
    server.finish_as(&after, "completed");
}

/// a turn whose agent is still starting has not started: it expires, its prompt is
/// never sent, and its slot is free for another group.
#[test]
fn a_task_whose_agent_is_starting_expires() {
    let setup = Setup::new().agent("slow", &["--gate-initialize", "start"]);
    let server = setup.set("limits", "running_groups", 1).start();
    server.create_group("work", "slow", "");
    let late = submit_expiring(&server, "work", "late", 500);
    server.journal.wait_gate("start");
    assert_expired(&server, &late, "late");
    server.complete("other", "fine");
    server.journal.open_gate("start");
    server.complete("work", "next");
}

/// I12: a paused group's turns expire too.
#[test]
fn a_task_of_a_paused_group_expires() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let late = submit_expiring(&server, "work", "late", 200);
    assert_expired(&server, &late, "late");
    server.resume("work");
    server.complete("work", "next");
}

/// I12: a held group's turns expire too.
#[test]
fn a_task_of_a_held_group_expires() {
    let server = Setup::new().text("defaults", "on_interrupt", "hold").start();
    server.finish_as(&server.submit("work", "[[reply:x]][[die:1]]"), "interrupted");
    server.wait_status("work", "held");
    let late = submit_expiring(&server, "work", "late", 200);
    assert_expired(&server, &late, "late");
    server.wait_status("work", "held");
    server.resume("work");
    server.complete("work", "next");
}

/// I2: the time until expiry also counts while the server is down.
#[test]
fn a_task_expires_while_the_server_is_down() {
    let mut server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let late = submit_expiring(&server, "work", "late", 800);
    let patient = submit_expiring(&server, "work", "patient", 600_000);
    server.kill();
    let over = millis(&late["created_at"]) + 800;
    eventually("the expiry", &server.log, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        (i128::from(over) < i128::try_from(now).unwrap()).then_some(())
    });
    server.boot();
    server.resume("work");
    assert_expired(&server, &late, "late");
    server.finish_as(&patient, "completed");
    assert_eq!(server.journal.prompts(), ["patient"]);
}

/// API-2: an expired turn can be retried.
#[test]
fn an_expired_task_can_be_retried() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let late = submit_expiring(&server, "work", "late", 300);
    assert_expired(&server, &late, "late");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    let again = server.retry(&late).expect(202);
    server.finish_as(&again, "completed");
}

/// API-2: an invalid time is 400 `invalid-body`, names the field, and creates nothing.
#[test]
fn an_invalid_expiry_is_refused() {
    let server = Server::usual();
    for time in [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("1s"),
        json!(true),
        json!(9_223_372_036_854_775_807_u64),
        json!(18_446_744_073_709_551_615_u64),
        json!(1e30),
    ] {
        let body = json!({ "prompt": "x", "expires_in_ms": time });
        let problem = server.post("/v1/groups/work/turns", &body).problem(400, "invalid-body");
        assert!(problem.to_string().contains("expires_in_ms"), "{time}: {problem}");
    }
    server.get("/v1/groups/work").any_problem(404);
    let body = json!({ "prompt": "x", "expires_in_ms": null });
    server.post("/v1/groups/work/turns", &body).expect(202);
}

/// API-2: `deadline_ms` limits a running task, not a waiting one, also together with
/// `expires_in_ms`.
#[test]
fn a_deadline_counts_from_the_start_of_a_task() {
    let server = Server::usual();
    let first = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let body = json!({
        "prompt": "[[reply:x]][[gate:never]]",
        "deadline_ms": 300,
        "expires_in_ms": 600_000,
    });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    let other = submit_expiring(&server, "other", "other", 600_000);
    server.finish_as(&other, "completed");
    assert_eq!(server.task(&task)["state"], "queued");
    server.journal.open_gate("go");
    server.finish_as(&first, "completed");
    let ended = server.finish_as(&task, "interrupted");
    assert_eq!(ended["stop_reason"], "_deadline", "{ended}");
}
