//! `POST /v1/tasks/{task}/retry`: retries an unsuccessful task as a new one. Which tasks may be
//! retried, and what a retry keeps, is decided and tested in actors/core/src/submission.rs.

use serde_json::{Value, json};

use crate::support::{Server, server::id};

/// API-2, API-5, I7: a failed, an interrupted and a cancelled task, and a failed compaction, are
/// retried as a new task, last in the queue, with the same prompt, metadata and focus; the old one
/// is unchanged. So does `greenroom retry TASK`, which prints the new task.
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
        let first = server.post("/v1/groups/work/turns", &body).expect(202);
        if state == "cancelled" {
            server.journal.wait_gate("off");
            server.cancel(&first).expect(202);
        }
        let first = server.finish_as(&first, state);
        let reply = server.retry(&first);
        let again = reply.expect(202);
        assert_ne!(again["id"], first["id"]);
        assert_eq!(again["retry_of"], first["id"], "{again}");
        assert_eq!((&again["origin"], &again["kind"]), (&json!("retry"), &json!("turn")));
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

    let focus = "[[times:2:error:-32602:no]]";
    let failed = server.finish_as(&server.compact_with("work", focus), "failed");
    let again = server.retry(&failed).expect(202);
    assert_eq!((&again["kind"], &again["focus"]), (&json!("compaction"), &json!(focus)), "{again}");
    assert_eq!((&again["retry_of"], &again["origin"]), (&failed["id"], &json!("retry")));
    let again = server.finish_as(&again, "failed");
    let stdout = server.cli_stdout(&["retry", id(&again), "--json"]);
    let third: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(third["retry_of"], again["id"], "{third}");
    let third = server.finish_as(&third, "completed");
    server.assert_compacted("work", 1);
    let refused = server.cli(&["retry", id(&third)]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(!refused.stderr.is_empty());
    let stdout = server.cli_stdout(&["retry", id(&failed)]);
    let tasks = server.list("work", "tasks");
    let last = tasks.iter().rfind(|task| task["retry_of"] == failed["id"]).expect("a new task");
    assert!(stdout.contains(id(last)), "the new task's id in {stdout:?}");
}

/// API-2: a task in any other state is 409 `not-retryable`, an unknown task 404, an archived
/// group's 409 `group-archived`, a body with any field 400, and no task is created; a body may be
/// absent.
#[test]
fn invalid_retries_are_refused() {
    let server = Server::usual();
    server.put("/v1/groups/empty", &json!({})).expect(201);
    let skipped = server.finish_as(&server.compact("empty"), "skipped");
    let completed = server.complete("done", "done");
    let running = server.submit("busy", "[[gate:never]]");
    let queued = server.submit("busy", "queued");
    server.journal.wait_gate("never");
    for (task, tasks) in [(&skipped, 1), (&completed, 1), (&running, 2), (&queued, 2)] {
        server.retry(task).problem(409, "not-retryable");
        assert_eq!(server.list(task["group"].as_str().unwrap(), "tasks").len(), tasks, "{task}");
    }
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

/// I2, API-2: the new task is stored before the answer; the same key returns the same new task,
/// also after a restart, and each request without a key creates one.
#[test]
fn a_retry_with_the_same_key_returns_the_same_task() {
    let mut server = Server::usual();
    let failed = server.turn("work", "[[times:1:error:-32602:no]]");
    let path = format!("/v1/tasks/{}/retry", id(&failed));
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let first = server.post_once("key", &path, &json!({})).expect(202);
    for restarted in [false, true] {
        if restarted {
            server.kill_and_boot();
        }
        let again = server.post_once("key", &path, &json!({})).expect_any(&[200, 202]);
        let found = (&again["id"], &again["deduplicated"]);
        assert_eq!(found, (&first["id"], &json!(true)), "restarted: {restarted}");
    }
    let stored = server.task(&first);
    let origin = (&stored["retry_of"], &stored["origin"]);
    assert_eq!(origin, (&failed["id"], &json!("retry")), "{stored}");
    assert_eq!(stored["blocked_by"], "paused", "{stored}");
    let others = [server.retry(&failed).expect(202), server.retry(&failed).expect(202)];
    server.resume("work");
    for task in [&first, &others[0], &others[1]] {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.list("work", "tasks").len(), 4);
    assert_eq!(server.journal.prompts().len(), 4, "one attempt each");
}
