//! The limits of the server as a whole.

use serde_json::json;

use crate::support::{Server, Setup, eventually, http::Reply};

const TURNS: &str = "/v1/groups/work/turns";

/// Checks that the reply names the limit that is reached.
#[track_caller]
fn refused(reply: &Reply, status: u16, name: &str, max: u64) {
    let problem = reply.problem(status, "limit-reached");
    assert_eq!((&problem["limit"]["name"], &problem["limit"]["max"]), (&json!(name), &json!(max)));
    assert!(problem["limit"]["count"].as_u64() >= Some(1), "{problem}");
    assert!(reply.header("retry-after").is_some());
}

#[track_caller]
fn count(server: &Server, name: &str) -> u64 {
    let status = server.get("/v1/status").expect(200);
    status["limits"][name]["count"].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// I11: groups and queued bytes, metadata included, are counted over the whole server, also after a
/// restart; a request over a limit is refused and names it, and changes nothing.
#[test]
fn groups_and_queued_bytes_have_limits() {
    let setup = Setup::new().set("limits", "groups", 2).text("limits", "queued", "3KB");
    let mut server = setup.start();
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let large = json!({ "prompt": "x", "metadata": "x".repeat(2000) });
    server.post(TURNS, &large).expect(202);
    server.put("/v1/groups/other", &json!({})).expect(201);
    for _ in 0..2 {
        refused(&server.put("/v1/groups/third", &json!({})), 429, "groups", 2);
        refused(&server.post(TURNS, &large), 429, "queued_bytes", 3000);
        refused(&server.post("/v1/groups/other/turns", &large), 429, "queued_bytes", 3000);
        let queued = count(&server, "queued_bytes");
        assert!((2000..2200).contains(&queued), "{queued}");
        assert_eq!(count(&server, "groups"), 2);
        server.get("/v1/groups/third").any_problem(404);
        server.kill_and_boot();
    }
    server.delete("/v1/groups/other?purge=true").expect(202);
    server.wait_purged("other");
    server.put("/v1/groups/third", &json!({})).expect(201);
}

/// I11, F29: waits and streams are counted until they end, on whatever way.
#[test]
fn waits_and_streams_have_limits() {
    let server = Setup::new().set("limits", "waits", 1).set("limits", "streams", 1).start();
    let task = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let id = task["id"].as_str().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get(&format!("/v1/tasks/{id}?wait=30")));
        eventually("the wait", &server.log, || (count(&server, "waits") == 1).then_some(()));
        refused(&server.get(&format!("/v1/tasks/{id}?wait=1")), 503, "waits", 1);
        let turn = server.post(&format!("{TURNS}?wait=1"), &json!({ "prompt": "never accepted" }));
        refused(&turn, 503, "waits", 1);
        server.get(&format!("/v1/tasks/{id}")).expect(200);
        server.journal.open_gate("go");
        assert_eq!(waiting.join().unwrap().expect(200)["state"], "completed");
    });
    assert_eq!(server.list("work", "tasks").len(), 1);
    assert_eq!(count(&server, "waits"), 0);

    let events = server.events("work", "");
    events.until_synced();
    refused(&server.get("/v1/groups/work/events"), 503, "streams", 1);
    refused(&server.get("/v1/events"), 503, "streams", 1);
    drop(events);
    eventually("the end of the stream", &server.log, || {
        (count(&server, "streams") == 0).then_some(())
    });
    server.events("work", "").until_synced();
}

/// I11, C22: locks of other programs and pending permissions have limits. A permission over it is
/// rejected, as one over the group's own limit.
#[test]
fn locks_and_permissions_have_limits() {
    let setup = Setup::new().asks().set("limits", "locks", 1).set("limits", "permissions", 1);
    let mut server = setup.start();
    let lock = |server: &Server, key: &str| {
        let body = json!({ "holder": "nightly", "ttl_ms": 60_000 });
        server.put(&format!("/v1/locks/{key}"), &body)
    };
    let held = lock(&server, "one").expect(201);
    for _ in 0..2 {
        refused(&lock(&server, "two"), 429, "locks", 1);
        lock(&server, "one").expect(200);
        assert_eq!(count(&server, "locks"), 1);
        server.kill_and_boot();
    }
    let token = held["token"].as_u64().unwrap();
    server.delete(&format!("/v1/locks/one?holder=nightly&token={token}")).expect_any(&[204]);
    lock(&server, "two").expect(201);

    server.submit("work", "[[permission]]");
    server.wait_pending("work", 1);
    let other = server.complete("other", "[[permission]]");
    let rejected = server.permissions("group=other").remove(0);
    assert_eq!((&rejected["resolved_by"], &rejected["task"]), (&json!("limit"), &other["id"]));
    assert_eq!(count(&server, "permissions"), 1);
    let metrics = server.get("/metrics").text();
    for line in
        ["greenroom_limit_used{limit=\"permissions\"} 1", "greenroom_limit{limit=\"locks\"} 1"]
    {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
