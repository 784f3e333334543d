//! Turns: accepted, run, answered.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use rustix::net::sockopt::set_socket_linger;
use serde_json::json;

use crate::support::{Server, TIMEOUT, eventually, http, process, server::id};

/// API-2: 202 with `Location` and the task; an unknown group is created with the default agent; the
/// task ends `completed` with the agent's text. With `wait`: 200 if it ended within it, otherwise
/// 202 with its current state.
#[test]
fn a_turn_is_accepted_and_completes() {
    let server = Server::usual();
    let body = json!({ "prompt": "hello", "metadata": { "ticket": 7 } });
    let reply = server.post("/v1/groups/work/turns", &body);
    let task = reply.expect(202);
    assert!(id(&task).starts_with("tsk_"), "{task}");
    let location = reply.header("location").expect("a Location");
    assert!(location.ends_with(&format!("/v1/tasks/{}", id(&task))), "{location}");
    let names = "id group kind state blocked_by position origin attempt stop_reason error text \
                 usage run segment seq_first seq_last interrupted created_at started_at ended_at \
                 deduplicated retry_of metadata";
    for name in names.split(' ') {
        assert!(task.get(name).is_some(), "no {name} in {task}");
    }
    assert_eq!(task["group"], "work");
    assert_eq!(task["kind"], "turn");
    assert_eq!(task["origin"], "api");
    assert_eq!(task["deduplicated"], false);
    assert!(["queued", "running"].contains(&task["state"].as_str().unwrap()), "{task}");
    let ended = server.finish_as(&task, "completed");
    assert_eq!(ended["stop_reason"], "end_turn");
    assert_eq!(ended["text"], "echo: hello");
    assert_eq!(ended["error"], json!(null));
    assert_eq!(ended["interrupted"], json!(null));
    assert_eq!(ended["metadata"], json!({ "ticket": 7 }));
    assert!(ended["ended_at"].is_string() && ended["started_at"].is_string(), "{ended}");
    assert_eq!(server.group("work")["agent"], "scripted");
    assert_eq!(server.journal.prompts(), ["hello"]);
    let wait = |seconds: u32, prompt: &str| {
        let path = format!("/v1/groups/work/turns?wait={seconds}");
        server.post(&path, &json!({ "prompt": prompt }))
    };
    let task = wait(25, "[[reply:ok]]").expect(200);
    assert_eq!((&task["state"], &task["text"]), (&json!("completed"), &json!("ok")));
    let task = wait(1, "[[gate:go]]").expect(202);
    assert_eq!(task["state"], "running");
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    server.finish_as(&wait(0, "[[reply:later]]").expect_any(&[200, 202]), "completed");
}

/// API-2: a client that has closed its connection waits no more, however it closed it, and its
/// descriptors are free again. One that has closed only its sending half gets the task as it is.
#[test]
fn a_wait_ends_with_its_client() {
    let server = Server::usual();
    let task = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let request =
        format!("GET /v1/tasks/{}?wait=300 HTTP/1.1\r\nHost: localhost\r\n\r\n", id(&task));
    let before = process::descriptors(server.pid()).len();
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let mut client = TcpStream::connect(server.address()).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            client
        })
        .collect();
    let open = || process::descriptors(server.pid()).len();
    eventually("the waits", &server.log, || (open() >= before + 40).then_some(()));
    for (number, client) in clients.into_iter().enumerate() {
        if number % 2 == 0 {
            // A reset.
            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
    }
    eventually("the ends of the waits", &server.log, || (open() <= before + 4).then_some(()));
    let mut half = TcpStream::connect(server.address()).unwrap();
    half.write_all(request.as_bytes()).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    half.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut answer = Vec::new();
    half.read_to_end(&mut answer).unwrap();
    let answer = http::parse(&answer, true).unwrap();
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("running")));
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
}

/// API-2: a prompt is a text or a list of ACP content blocks, passed through unchanged.
#[test]
fn content_blocks_reach_the_agent_unchanged() {
    let server = Server::usual();
    let blocks = json!([
        { "type": "text", "text": "[[reply:one]]" },
        { "type": "resource_link", "uri": "file:///tmp/x.txt", "name": "x", "_meta": { "k": [1] } },
        { "type": "text", "text": "[[reply: two]]", "annotations": { "priority": 0.5 } },
    ]);
    let body = json!({ "prompt": blocks });
    let task = server.post("/v1/groups/work/turns?wait=25", &body).expect(200);
    assert_eq!(task["text"], "one two", "the message text joined");
    let prompt = server.journal.wait("the prompt", |event| event["event"] == "prompt");
    let line: serde_json::Value = serde_json::from_str(prompt["line"].as_str().unwrap()).unwrap();
    assert_eq!(line["params"]["prompt"], blocks);
    let text = json!({ "prompt": "plain" });
    server.post("/v1/groups/work/turns?wait=25", &text).expect(200);
    let prompt = server.journal.wait_prompt("plain");
    let line: serde_json::Value = serde_json::from_str(prompt["line"].as_str().unwrap()).unwrap();
    assert_eq!(line["params"]["prompt"], json!([{ "type": "text", "text": "plain" }]));
}

/// API-1, API-2, A-4, F12, F14: the agent's stop reason is the task's, also from a last line
/// without a newline; a JSON-RPC error fails the task, whose error has the cause, and the queue
/// continues (DQ-9). The first of two responses counts, and an update after it belongs to its turn
/// (AM-9).
#[test]
fn the_first_response_ends_the_turn() {
    let server = Server::usual();
    let refused = server.turn("work", "[[refuse]]");
    assert_eq!(refused["stop_reason"], "refusal", "{refused}");
    let failing = server.submit("work", "[[error:-32602:what the agent reported]]");
    let next = server.submit("work", "next");
    let failed = server.finish_as(&failing, "failed");
    assert_eq!(failed["stop_reason"], "_error");
    assert!(failed["error"].to_string().contains("what the agent reported"), "{failed}");
    assert!(!failed["error"]["code"].is_null(), "{failed}");
    server.finish_as(&next, "completed");
    let twice = server.complete("work", "[[reply:x]][[two-responses]]");
    let late = server.complete("work", "[[reply:in time]][[late:50]]");
    let chunk = server.wait_frame("work", "the late chunk", |frame| {
        frame["payload"]["params"]["update"]["content"]["text"] == "late"
    });
    assert_eq!(chunk["task"], late["id"], "{chunk}");
    let cut = server.complete("work", "[[reply:x]][[no-newline-eof]]");
    for (task, text) in [(twice, "x"), (late, "in timelate"), (cut, "x")] {
        let task = server.task(&task);
        assert_eq!((&task["stop_reason"], &task["text"]), (&json!("end_turn"), &json!(text)));
    }
    assert_eq!(server.complete("work", "next")["text"], "echo: next");
    assert_eq!(server.journal.prompts().len(), 7);
}

/// API-2: the group's tasks are listed by state and kind, both the queue and the history.
#[test]
fn tasks_are_listed_by_state_and_kind() {
    let server = Server::usual();
    let done = server.complete("work", "done");
    let running = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    let queued = server.submit("work", "queued");
    let ids = |query: &str| {
        let page = server.get(&format!("/v1/groups/work/tasks{query}")).expect(200);
        let items = page["items"].as_array().unwrap().iter().map(|task| task["id"].clone());
        items.collect::<Vec<_>>()
    };
    let mut all = ids("");
    let mut expected = vec![done["id"].clone(), running["id"].clone(), queued["id"].clone()];
    all.sort_by_key(|id| id.to_string());
    expected.sort_by_key(|id| id.to_string());
    assert_eq!(all, expected);
    assert_eq!(ids("?state=completed"), [done["id"].clone()]);
    assert_eq!(ids("?state=running"), [running["id"].clone()]);
    assert_eq!(ids("?state=queued"), [queued["id"].clone()]);
    assert_eq!(ids("?kind=turn").len(), 3);
    assert!(ids("?kind=compaction").is_empty());
    let waiting = server.task(&queued);
    assert_eq!(waiting["blocked_by"], "turn", "{waiting}");
    server.get("/v1/groups/absent/tasks").any_problem(404);
}

/// AM-1, I1: simultaneous first requests start one agent, never two.
#[test]
fn simultaneous_first_requests_start_one_agent() {
    let server = Server::usual();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let server = &server;
            scope.spawn(move || server.complete("work", &format!("turn {number}")));
        }
    });
    assert_eq!(server.journal.events_named("start").len(), 1);
    assert_eq!(server.journal.events_named("new").len(), 1);
    assert_eq!(server.journal.prompts().len(), 8);
    server.journal.assert_one_at_a_time();
}
