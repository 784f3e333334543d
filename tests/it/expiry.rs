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

/// API-2, I12, A-4: a turn that waits for a long one, for a slot or for its agent expires on time,
/// and its state shows it immediately; other turns keep their places, and an expired one can be
/// retried. `deadline_ms` limits a running task, not a waiting one.
#[test]
fn a_waiting_task_expires_on_time() {
    let setup = Setup::new().agent("slow", &["--gate-initialize", "start"]);
    let server = setup.set("limits", "running_groups", 1).start();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let before = server.submit("work", "before");
    let late = submit_expiring(&server, "work", "late", 300);
    let after = server.submit("work", "after");
    let elsewhere = submit_expiring(&server, "other", "elsewhere", 300);
    let limited = json!({
        "prompt": "[[reply:x]][[gate:never]]",
        "deadline_ms": 300,
        "expires_in_ms": 600_000,
    });
    let limited = server.post("/v1/groups/other/turns", &limited).expect(202);
    let ended = assert_expired(&server, &late, "late");
    let waited = millis(&ended["ended_at"]) - millis(&ended["created_at"]);
    assert!(240 <= waited, "expired after {waited} ms");
    assert_expired(&server, &elsewhere, "elsewhere");
    assert_eq!(server.task(&running)["state"], "running");
    assert_eq!(server.group("work")["queue_length"], 2);
    assert_eq!(server.wait_blocked(&limited, "slot")["state"], "queued");
    server.journal.open_gate("go");
    for task in [&running, &before, &after] {
        server.finish_as(task, "completed");
    }
    let ended = server.finish_as(&limited, "interrupted");
    assert_eq!(ended["stop_reason"], "_deadline", "{ended}");
    server.finish_as(&server.retry(&late).expect(202), "completed");
    let mut prompts = server.journal.prompts();
    prompts.retain(|prompt| !prompt.starts_with("[[reply"));
    assert_eq!(prompts, ["[[gate:go]]", "before", "after", "late"]);

    server.create_group("starting", "slow", "");
    let late = submit_expiring(&server, "starting", "unsent", 1_000);
    server.journal.wait_gate("start");
    assert_expired(&server, &late, "unsent");
    server.complete("other", "in the only slot");
    server.journal.open_gate("start");
    server.complete("starting", "next");
}

/// I2, I12: a paused or held group's turns expire too, and the time until expiry also counts while
/// the server is down. An invalid time is 400 `invalid-body`, names the field, and creates nothing.
#[test]
fn a_task_expires_while_the_server_is_down() {
    let mut server = Setup::new().text("defaults", "on_interrupt", "hold").start();
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
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    server.finish_as(&server.submit("held", "[[reply:x]][[die:1]]"), "interrupted");
    for group in ["work", "held"] {
        assert_expired(&server, &submit_expiring(&server, group, "early", 100), "early");
    }
    server.wait_status("held", "held");
    let late = submit_expiring(&server, "work", "late", 800);
    let patient = submit_expiring(&server, "work", "patient", 600_000);
    let body = json!({ "prompt": "last", "expires_in_ms": null });
    let last = server.post("/v1/groups/work/turns", &body).expect(202);
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
    server.finish_as(&last, "completed");
    assert_eq!(server.journal.prompts()[1..], ["patient", "last"]);
}
