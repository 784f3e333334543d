//! `expires_in_ms`: a task that did not start in time is not started any more.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, millis};

/// Enqueues a turn that expires.
#[track_caller]
fn expiring(server: &Server, group: &str, prompt: &str, expires_in_ms: u64) -> Value {
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

/// API 2, I12: a turn behind a long one expires at its time, which others can see at once; the
/// running one is not touched, though its own time is over too, and what waits behind keeps its
/// place.
#[test]
fn in_the_queue() {
    let server = Server::usual();
    let running = expiring(&server, "work", "[[gate:go]]", 2_000);
    server.journal.wait_gate("go");
    let before = server.submit("work", "before");
    let late = expiring(&server, "work", "late", 2_500);
    let behind = server.submit("work", "behind");
    let ended = assert_expired(&server, &late, "late");
    let waited = millis(&ended["ended_at"]) - millis(&ended["created_at"]);
    assert!(2_400 <= waited, "it had {waited} ms");
    assert_eq!(server.task(&running)["state"], "running");
    assert_eq!(server.group("work")["queue_length"], 2);
    server.journal.open_gate("go");
    for task in [&running, &before, &behind] {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.journal.prompts(), ["[[gate:go]]", "before", "behind"]);
}

/// API 2: one that starts in time is a turn like any other.
#[test]
fn in_time() {
    let server = Server::usual();
    let task = expiring(&server, "work", "in time", 60_000);
    server.finish_as(&task, "completed");
}

/// I12: a turn that waits for a slot expires as well, and its group takes the slot for the next.
#[test]
fn without_a_slot() {
    let server = Setup::new().set("limits", "running_groups", 1).start();
    server.submit("busy", "[[gate:go]]");
    server.journal.wait_gate("go");
    let late = expiring(&server, "work", "late", 300);
    let behind = server.submit("work", "behind");
    assert_expired(&server, &late, "late");
    assert_eq!(server.wait_blocked(&behind, "slot")["state"], "queued");
    server.journal.open_gate("go");
    server.finish_as(&behind, "completed");
}

/// ARCHITECTURE 4: a turn whose agent is still starting did not start: it expires, its prompt is
/// never sent, and its slot is free for another group.
#[test]
fn while_its_agent_starts() {
    let setup = Setup::new().agent("slow", &["--gate-initialize", "start"]);
    let server = setup.set("limits", "running_groups", 1).start();
    server.make("work", "slow", "");
    let late = expiring(&server, "work", "late", 500);
    server.journal.wait_gate("start");
    assert_expired(&server, &late, "late");
    server.complete("other", "fine");
    server.journal.open_gate("start");
    server.complete("work", "next");
}

/// I12: a paused group's turns expire too.
#[test]
fn in_a_paused_group() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let late = expiring(&server, "work", "late", 200);
    assert_expired(&server, &late, "late");
    server.resume("work");
    server.complete("work", "next");
}

/// I12: so do those of a group that is held.
#[test]
fn in_a_held_group() {
    let server = Setup::new().text("defaults", "on_interrupt", "hold").start();
    server.finish_as(&server.submit("work", "[[reply:x]][[die:1]]"), "interrupted");
    server.wait_status("work", "held");
    let late = expiring(&server, "work", "late", 200);
    assert_expired(&server, &late, "late");
    server.wait_status("work", "held");
    server.resume("work");
    server.complete("work", "next");
}

/// I2: the time runs on while the server is down.
#[test]
fn over_a_restart() {
    let mut server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let late = expiring(&server, "work", "late", 800);
    let patient = expiring(&server, "work", "patient", 600_000);
    server.kill();
    let over = millis(&late["created_at"]) + 800;
    eventually("the time's end", &server.log, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        (i128::from(over) < i128::try_from(now).unwrap()).then_some(())
    });
    server.boot();
    server.resume("work");
    assert_expired(&server, &late, "late");
    server.finish_as(&patient, "completed");
    assert_eq!(server.journal.prompts(), ["patient"]);
}

/// API 2: a turn that expired can be done again.
#[test]
fn can_be_retried() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let late = expiring(&server, "work", "late", 300);
    assert_expired(&server, &late, "late");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    let again = server.retry(&late).expect(202);
    server.finish_as(&again, "completed");
}

/// API 2: a time that is none is 400 `invalid-body`, names the field, and makes nothing.
#[test]
fn times_that_are_none() {
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

/// API 2: `deadline_ms` is about what runs, not about what waits, beside `expires_in_ms` too.
#[test]
fn deadlines_are_another_thing() {
    let server = Server::usual();
    let first = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let body = json!({
        "prompt": "[[reply:x]][[gate:never]]",
        "deadline_ms": 300,
        "expires_in_ms": 600_000,
    });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    let other = expiring(&server, "other", "other", 600_000);
    server.finish_as(&other, "completed");
    assert_eq!(server.task(&task)["state"], "queued");
    server.journal.open_gate("go");
    server.finish_as(&first, "completed");
    let ended = server.finish_as(&task, "interrupted");
    assert_eq!(ended["stop_reason"], "_deadline", "{ended}");
}
