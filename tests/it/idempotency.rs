//! `Idempotency-Key`: a repeated request returns the same task. Simultaneous ones: `races.rs`.

use serde_json::json;

use crate::support::Server;

const TURNS: &str = "/v1/groups/work/turns";

/// API-2, I7: the same key and body give the same task, before and after it runs, and it runs once;
/// with another body they are 422, and change nothing. The scope of a key is the path. A key whose
/// first answer was an already waiting compaction always returns that compaction.
#[test]
fn the_same_key_and_body_give_the_same_task() {
    let server = Server::usual();
    let (body, other) = (json!({ "prompt": "once" }), json!({ "prompt": "other" }));
    let first = server.post_once("key", TURNS, &body).expect(202);
    assert_eq!(first["deduplicated"], false);
    let again = server.post_once("key", TURNS, &body).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["deduplicated"]), (&first["id"], &json!(true)));
    server.post_once("key", TURNS, &other).problem(422, "idempotency-conflict");
    server.finish_as(&first, "completed");
    let waited = server.post_once("key", &format!("{TURNS}?wait=5"), &body).expect(200);
    assert_eq!(waited["id"], first["id"], "the query is not part of the scope");
    assert_eq!(waited["state"], "completed");
    server.post_once("key", TURNS, &other).problem(422, "idempotency-conflict");
    assert_eq!(server.journal.prompts(), ["once"]);
    assert_eq!(server.frames_of_kind("work", "greenroom/task_queued").len(), 1);

    let elsewhere = server.post_once("key", "/v1/groups/other/turns", &body).expect(202);
    assert_ne!(elsewhere["id"], first["id"]);
    assert_eq!(elsewhere["deduplicated"], false);
    server.finish_as(&elsewhere, "completed");
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let path = "/v1/groups/work/compactions";
    let compaction = server.post(path, &json!({})).expect(202);
    let again = server.post_once("key", path, &json!({})).expect(202);
    assert_eq!((&again["id"], &again["deduplicated"]), (&compaction["id"], &json!(true)));
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish(&compaction);
    let later = server.post_once("key", path, &json!({})).expect_any(&[200, 202]);
    assert_eq!(later["id"], compaction["id"], "the key is used up");
}

/// API-2: a key belongs to the resource, however its path is spelt.
#[test]
fn another_spelling_of_the_path_is_the_same_request() {
    let server = Server::usual();
    let body = json!({ "prompt": "once" });
    let first = server.post_once("key", TURNS, &body).expect(202);
    for path in
        ["/v1/groups/w%6Frk/turns", "/v1/groups/%77%6f%72%6b/turns", "/%761/groups/work/turns"]
    {
        let again = server.post_once("key", path, &body).expect_any(&[200, 202]);
        assert_eq!(again["id"], first["id"], "{path}");
        server.post_once("key", path, &json!({ "prompt": "other" })).any_problem(422);
    }
    server.finish_as(&first, "completed");
    let cancelled = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    let id = cancelled["id"].as_str().unwrap();
    let retry = |id: &str| {
        let path = format!("/v1/tasks/{id}/retry");
        server.post_once("key", &path, &json!({})).expect_any(&[200, 202])
    };
    let again = retry(id);
    let (prefix, uuid) = id.split_once('_').unwrap();
    let plain = format!("{prefix}_{}", uuid.replace('-', ""));
    for spelling in [format!("{prefix}_{}", uuid.to_uppercase()), plain, id.replace('-', "%2d")] {
        assert_eq!(retry(&spelling)["id"], again["id"], "{spelling}");
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
