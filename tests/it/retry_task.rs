//! `POST /v1/tasks/{task}/retry`: retries an unsuccessful task as a new one.

use serde_json::{Value, json};

use crate::support::{Server, Setup, server::id};

/// Enqueues a turn with this body.
fn submit(server: &Server, body: &Value) -> Value {
    server.post("/v1/groups/work/turns", body).expect(202)
}

/// API-2, I7: a failed, an interrupted and a cancelled task are retried as a new task, with the
/// same prompt and metadata; the old one is unchanged.
#[test]
fn an_unsuccessful_task_is_retried_as_a_new_one() {
    let server = Server::usual();
    let words = ["[[times:1:error:-32602:no]]", "[[times:1:die:1]]", "[[times:1:gate:off]]"];
    let states = ["failed", "interrupted", "cancelled"];
    for (number, (word, state)) in words.into_iter().zip(states).enumerate() {
        let prompt = json!([
            { "type": "text", "text": word },
            { "type": "text", "text": "[[reply:done]]" },
        ]);
        let body = json!({ "prompt": prompt, "metadata": { "number": number } });
        let first = submit(&server, &body);
        if state == "cancelled" {
            server.journal.wait_gate("off");
            server.cancel(&first).expect(202);
        }
        let first = server.finish_as(&first, state);
        let reply = server.retry(&first);
        let again = reply.expect(202);
        assert_ne!(again["id"], first["id"]);
        assert_eq!(again["retry_of"], first["id"], "{again}");
        assert_eq!(again["origin"], "retry", "{again}");
        assert_eq!(again["kind"], "turn");
        assert_eq!(again["deduplicated"], false);
        let location = reply.header("location").expect("a Location");
        assert!(location.ends_with(&format!("/v1/tasks/{}", id(&again))), "{location}");
        let ended = server.finish_as(&again, "completed");
        assert_eq!(ended["text"], "done", "{ended}");
        assert_eq!((&ended["prompt"], &ended["metadata"]), (&first["prompt"], &body["metadata"]));
        assert_eq!((&ended["attempt"], &ended["retry_of"]), (&json!(1), &first["id"]));
        assert_eq!(server.task(&first), first, "unchanged");
        assert_eq!(first["retry_of"], json!(null));
    }
    let prompts = server.journal.prompts();
    assert_eq!(prompts.len(), 6, "{prompts:?}");
    assert!(prompts.chunks(2).all(|pair| pair[0] == pair[1]), "{prompts:?}");
}

/// API-2: the new task is last in the queue, and can itself be retried.
#[test]
fn a_retry_is_last_in_the_queue() {
    let server = Server::usual();
    let first = server.finish_as(&server.submit("work", "[[times:2:die:1]]"), "interrupted");
    server.submit("work", "[[gate:go]]");
    let waiting = server.submit("work", "waiting");
    server.journal.wait_gate("go");
    let second = server.retry(&first).expect(202);
    assert_eq!(second["state"], "queued");
    server.journal.open_gate("go");
    server.finish_as(&waiting, "completed");
    server.finish_as(&second, "interrupted");
    let third = server.retry(&second).expect(202);
    assert_eq!(third["retry_of"], second["id"]);
    server.finish_as(&third, "completed");
    let again = "[[times:2:die:1]]";
    assert_eq!(server.journal.prompts(), [again, "[[gate:go]]", "waiting", again, again]);
}

/// API-2: a task in any other state is 409 `not-retryable`, and no task is created.
#[test]
fn a_task_in_another_state_is_not_retryable() {
    let server = Setup::new().retries("10m").start();
    let skipped = {
        server.put("/v1/groups/empty", &json!({})).expect(201);
        server.finish_as(&server.compact("empty"), "skipped")
    };
    let completed = server.complete("done", "done");
    let running = server.submit("busy", "[[gate:never]]");
    let queued = server.submit("busy", "queued");
    server.journal.wait_gate("never");
    let retrying = server.submit("retrying", "[[die:1]]");
    server.wait_retrying(&retrying);
    for (task, name) in [
        (&skipped, "skipped"),
        (&completed, "completed"),
        (&running, "running"),
        (&queued, "queued"),
        (&retrying, "retrying"),
    ] {
        server.retry(task).problem(409, "not-retryable");
        let group = task["group"].as_str().unwrap();
        let count = server.list(group, "tasks").len();
        assert_eq!(count, if group == "busy" { 2 } else { 1 }, "{name}");
    }
}

/// API-2: an unknown task is 404, an archived group's 409 `group-archived`, a body with any field
/// 400; a body may be absent.
#[test]
fn invalid_retries_are_refused() {
    let server = Server::usual();
    for task in ["tsk_01890000-0000-7000-8000-000000000000", "nonsense", "tsk_"] {
        server.post(&format!("/v1/tasks/{task}/retry"), &json!({})).any_problem(404);
    }
    let failed = server.turn("work", "[[times:1:error:-32602:no]]");
    let path = format!("/v1/tasks/{}/retry", id(&failed));
    let problem = server.post(&path, &json!({ "prompt": "else" })).problem(400, "invalid-body");
    assert!(problem.to_string().contains("prompt"), "{problem}");
    server.get(&path).any_problem(405);
    let again = server.request("POST", &path, &[], None).expect(202);
    server.finish_as(&again, "completed");
    server.delete("/v1/groups/work").expect(202);
    server.wait_status("work", "archived");
    server.retry(&failed).problem(409, "group-archived");
    server.delete("/v1/groups/work?purge=true").expect(202);
    server.wait_purged("work");
    server.retry(&failed).any_problem(404);
}

/// API-2: the same key returns the same new task, also after a restart; without a key each request
/// creates one.
#[test]
fn a_retry_with_the_same_key_returns_the_same_task() {
    let mut server = Server::usual();
    let failed = server.turn("work", "[[times:1:error:-32602:no]]");
    let path = format!("/v1/tasks/{}/retry", id(&failed));
    let first = server.post_once("key", &path, &json!({})).expect(202);
    let again = server.post_once("key", &path, &json!({})).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["deduplicated"]), (&first["id"], &json!(true)));
    server.finish_as(&first, "completed");
    server.kill_and_boot();
    let again = server.post_once("key", &path, &json!({})).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["deduplicated"]), (&first["id"], &json!(true)));
    assert_eq!(server.journal.prompts().len(), 2);
    let other = server.retry(&failed).expect(202);
    assert_ne!(other["id"], first["id"]);
    server.finish_as(&other, "completed");
    assert_eq!(server.journal.prompts().len(), 3);
}

/// I2: the new task is stored before the answer.
#[test]
fn a_retry_is_stored_before_the_answer() {
    let mut server = Server::usual();
    let failed = server.turn("work", "[[times:1:error:-32602:no]]");
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let again = server.retry(&failed).expect(202);
    server.kill_and_boot();
    let stored = server.task(&again);
    assert_eq!(
        (&stored["retry_of"], &stored["origin"]),
        (&failed["id"], &json!("retry")),
        "{stored}"
    );
    assert_eq!(stored["blocked_by"], "paused", "{stored}");
    server.resume("work");
    server.finish_as(&again, "completed");
}

/// API-2: a failed compaction can be retried, with its focus.
#[test]
fn a_failed_compaction_is_retried_with_its_focus() {
    let server = Server::usual();
    server.complete("work", "first");
    let focus = "[[times:1:error:-32602:no]]";
    let failed = server.finish_as(&server.compact_with("work", focus), "failed");
    let again = server.retry(&failed).expect(202);
    assert_eq!((&again["kind"], &again["focus"]), (&json!("compaction"), &json!(focus)), "{again}");
    assert_eq!((&again["retry_of"], &again["origin"]), (&failed["id"], &json!("retry")));
    server.finish_as(&again, "completed");
    server.assert_compacted("work", 1);
}

/// I11, API-2: a full queue refuses a retry.
#[test]
fn a_full_queue_refuses_a_retry() {
    let server = Setup::new().set("limits", "queue", 1).start();
    let failed = server.turn("work", "[[error:-32602:no]]");
    server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.submit("work", "waiting");
    let reply = server.retry(&failed);
    reply.problem(429, "queue-full");
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
    assert_eq!(server.list("work", "tasks").len(), 3);
}

/// API-5: `greenroom retry TASK` retries a task, and prints the new task; a refusal is printed too.
#[test]
fn the_command_line_retries_a_task() {
    let server = Server::usual();
    let failed = server.turn("work", "[[times:2:error:-32602:no]]");
    let stdout = server.cli_stdout(&["retry", id(&failed)]);
    let tasks = server.list("work", "tasks");
    let again = tasks.iter().find(|task| task["retry_of"] == failed["id"]).expect("a new task");
    assert!(stdout.contains(id(again)), "the new task's id in {stdout:?}");
    let again = server.finish_as(again, "failed");
    let retried: Value =
        serde_json::from_str(&server.cli_stdout(&["retry", id(&again), "--json"])).unwrap();
    assert_eq!(retried["retry_of"], again["id"], "{retried}");
    let done = server.finish_as(&retried, "completed");
    let refused = server.cli(&["retry", id(&done)]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(!refused.stderr.is_empty());
}
