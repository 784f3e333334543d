//! `Idempotency-Key`: a repeated request returns the same task.

use std::{collections::HashSet, thread};

use serde_json::json;

use crate::support::Server;

const TURNS: &str = "/v1/groups/work/turns";

/// API-2, I7: the same key and body give the same task, before and after it runs, and it runs once.
#[test]
fn the_same_key_and_body_give_the_same_task() {
    let server = Server::usual();
    let body = json!({ "prompt": "once" });
    let first = server.post_once("key", TURNS, &body).expect(202);
    assert_eq!(first["deduplicated"], false);
    let again = server.post_once("key", TURNS, &body).expect_any(&[200, 202]);
    assert_eq!(again["id"], first["id"]);
    assert_eq!(again["deduplicated"], true);
    server.finish_as(&first, "completed");
    let waited = server.post_once("key", &format!("{TURNS}?wait=5"), &body).expect(200);
    assert_eq!(waited["id"], first["id"], "the query is not part of the scope");
    assert_eq!(waited["state"], "completed");
    assert_eq!(server.journal.times("once"), 1);
    assert_eq!(server.frames_of_kind("work", "greenroom/task_queued").len(), 1);
}

/// API-2: the same key with another body is 422, and changes nothing.
#[test]
fn the_same_key_with_another_body_is_refused() {
    let server = Server::usual();
    let first = server.post_once("key", TURNS, &json!({ "prompt": "one" })).expect(202);
    let other = json!({ "prompt": "two" });
    server.post_once("key", TURNS, &other).problem(422, "idempotency-conflict");
    server.finish_as(&first, "completed");
    server.post_once("key", TURNS, &other).problem(422, "idempotency-conflict");
    assert_eq!(server.journal.prompts(), ["one"]);
}

/// API-2: the scope of a key is the path: another group can use the same key.
#[test]
fn a_key_is_scoped_by_its_path() {
    let server = Server::usual();
    let body = json!({ "prompt": "mine" });
    let first = server.post_once("key", TURNS, &body).expect(202);
    let other = server.post_once("key", "/v1/groups/other/turns", &body).expect(202);
    assert_ne!(first["id"], other["id"]);
    assert_eq!(other["deduplicated"], false);
    let path = "/v1/groups/work/compactions";
    let compaction = server.post_once("key", path, &json!({})).expect(202);
    assert_eq!(compaction["kind"], "compaction");
    for task in [&first, &other] {
        server.finish_as(task, "completed");
    }
}

/// R-1, "after the commit, before the 2xx": a key survives kill -9, and a repeated
/// request does not run the turn again.
#[test]
fn a_key_survives_a_restart() {
    let mut server = Server::usual();
    let body = json!({ "prompt": "once" });
    let done = server.post_once("done", TURNS, &body).expect(202);
    server.finish_as(&done, "completed");
    let gate = json!({ "prompt": "[[gate:go]]" });
    server.post_once("running", TURNS, &gate).expect(202);
    let waiting = json!({ "prompt": "waiting" });
    let queued = server.post_once("queued", TURNS, &waiting).expect(202);
    server.journal.wait_gate("go");
    server.kill_and_boot();
    for (key, body, task) in [("done", &body, &done), ("queued", &waiting, &queued)] {
        let again = server.post_once(key, TURNS, body).expect_any(&[200, 202]);
        assert_eq!(again["id"], task["id"]);
        assert_eq!(again["deduplicated"], true);
    }
    let other = json!({ "prompt": "other" });
    server.post_once("done", TURNS, &other).problem(422, "idempotency-conflict");
    server.finish_as(&queued, "completed");
    assert_eq!(server.journal.prompts(), ["once", "[[gate:go]]", "waiting"]);
}

/// R-2, submit × same key: of many simultaneous requests, one creates the task.
#[test]
fn simultaneous_requests_with_one_key_create_one_task() {
    let server = Server::usual();
    let body = json!({ "prompt": "once" });
    let tasks: Vec<_> = thread::scope(|scope| {
        let submit = || server.post_once("key", TURNS, &body).expect_any(&[200, 202]);
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(submit)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ids: HashSet<String> = tasks.iter().map(|task| task["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{tasks:?}");
    let new = tasks.iter().filter(|task| task["deduplicated"] == false);
    assert_eq!(new.count(), 1, "{tasks:?}");
    server.finish_as(&tasks[0], "completed");
    assert_eq!(server.journal.times("once"), 1);
}

/// API-2: a key whose first answer was an already waiting compaction always returns that
/// compaction.
#[test]
fn a_key_of_a_coalesced_compaction_keeps_its_answer() {
    let server = Server::usual();
    server.complete("work", "one");
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let path = "/v1/groups/work/compactions";
    let first = server.post(path, &json!({})).expect(202);
    let again = server.post_once("k", path, &json!({})).expect(202);
    assert_eq!((&again["id"], &again["deduplicated"]), (&first["id"], &json!(true)));
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish(&first);
    let later = server.post_once("k", path, &json!({})).expect_any(&[200, 202]);
    assert_eq!(later["id"], first["id"], "the key is used up");
}
