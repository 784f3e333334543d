//! Refused requests and their answers: RFC 9457 problems everywhere.

use serde_json::{Value, json};

use crate::support::{Server, Setup, http::Reply};

const TURNS: &str = "/v1/groups/work/turns";

/// Starts a server that takes bodies up to 16 KiB.
fn start() -> Server {
    Setup::new().text("server", "max_body", "16KiB").start()
}

/// Checks the problem, and that it reveals no path of the machine and no SQL (C21).
#[track_caller]
fn refused(server: &Server, reply: &Reply, status: u16, slug: &str) -> Value {
    let problem = reply.problem(status, slug);
    let home = server.home.path();
    for word in [home.to_str().unwrap(), "SELECT", "sqlite", ".rs:"] {
        assert!(!reply.text().contains(word), "{word:?} in {problem}");
    }
    problem
}

/// API-2, C12: group ids that do not match the pattern are refused in every route.
#[test]
fn malformed_group_ids_are_refused_in_every_route() {
    let server = start();
    let long = "x".repeat(129);
    for group in ["-dash", ".dot", "_under", "a%20b", "a%2Fb", "a%00b", "%C3%A4", "a%0Ab", &long] {
        let path = format!("/v1/groups/{group}");
        let turn = json!({ "prompt": "x" });
        for reply in [
            server.put(&path, &json!({})),
            server.get(&path),
            server.post(&format!("{path}/turns"), &turn),
            server.post(&format!("{path}/compactions"), &json!({})),
            server.get(&format!("{path}/frames")),
            server.get(&format!("{path}/events")),
            server.get(&format!("{path}/digest")),
        ] {
            refused(&server, &reply, 400, "invalid-group");
        }
    }
    for group in ["1", "C0123.4:t@x-y_z", "%61bc", &long[1..]] {
        server.put(&format!("/v1/groups/{group}"), &json!({})).expect(201);
    }
    assert_eq!(server.group("abc")["id"], "abc");
}

/// API-2, I11, C7: a body with an unknown field or a wrong type is refused, and the answer names
/// the field; so is one that is not JSON, not declared as JSON, or over the limit, sent or only
/// announced. Nothing is enqueued and no agent starts.
#[test]
fn a_body_over_the_limit_or_not_as_documented_is_refused() {
    let server = start();
    let (new, compactions) = ("/v1/groups/new", "/v1/groups/known/compactions");
    server.put("/v1/groups/known", &json!({})).expect(201);
    #[rustfmt::skip]
    let misfits = [
        ("POST", TURNS,       json!({ "prompt": "x", "pormpt": "y" }),              "pormpt"),
        ("POST", TURNS,       json!({}),                                            "prompt"),
        ("POST", TURNS,       json!({ "prompt": 5 }),                               "prompt"),
        ("POST", TURNS,       json!({ "prompt": null }),                            "prompt"),
        ("POST", TURNS,       json!({ "prompt": { "type": "text", "text": "x" } }), "prompt"),
        ("POST", TURNS,       json!({ "prompt": "x", "deadline_ms": "soon" }),      "deadline_ms"),
        ("POST", TURNS,       json!({ "prompt": "x", "deadline_ms": -1 }),          "deadline_ms"),
        ("POST", TURNS,       json!({ "prompt": "x", "expires_in_ms": 1.5 }),       "expires_in_ms"),
        ("POST", compactions, json!({ "fokus": "x" }),                              "fokus"),
        ("POST", compactions, json!({ "focus": 5 }),                                "focus"),
        ("PUT",  new,         json!({ "titel": "x" }),                              "titel"),
        ("PUT",  new,         json!({ "title": 5 }),                                "title"),
        ("PUT",  new,         json!({ "agent": ["scripted"] }),                     "agent"),
        ("PUT",  new,         json!({ "command": "/bin/true" }),                    "command"),
        ("PUT",  new,         json!({ "auto_compact": "much" }),                    "auto_compact"),
        ("PUT",  new,         json!({ "permission_policy": "maybe" }),              "permission_policy"),
        ("PUT",  new,         json!({ "on_interrupt": 1 }),                         "on_interrupt"),
    ];
    let send = |method: &str, path: &str, kind: &str, body: &[u8]| {
        server.request(method, path, &[("Content-Type", kind)], Some(body))
    };
    for (method, path, body, field) in misfits {
        let reply = send(method, path, "application/json", body.to_string().as_bytes());
        let problem = refused(&server, &reply, 400, "invalid-body");
        assert!(problem.to_string().contains(field), "{body} gave {problem}");
    }
    for body in [
        &b"{"[..],
        b"",
        b"\"text\"",
        b"[]",
        b"[\"x\"]",
        b"{\"prompt\":\"x\"} x",
        b"\xef\xbb\xbfx",
        b"{\"prompt\":\"\xff\"}",
    ] {
        let reply = send("POST", TURNS, "application/json", body);
        refused(&server, &reply, 400, "invalid-body");
    }
    let good = json!({ "prompt": "x" }).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let reply = send("POST", TURNS, kind, good.as_bytes());
        refused(&server, &reply, 415, "unsupported-media-type");
    }
    let large = |field: &str| json!({ field: "x".repeat(20 * 1024) });
    for reply in [server.post(TURNS, &large("prompt")), server.put(new, &large("title"))] {
        refused(&server, &reply, 413, "body-too-large");
    }
    let announced = server.raw(format!(
        "POST {TURNS} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: 99999999\r\nConnection: close\r\n\r\n",
        server.address()
    ));
    assert_eq!(announced.status, 413, "{}", announced.text());
    for group in ["work", "new"] {
        server.get(&format!("/v1/groups/{group}")).any_problem(404);
    }
    assert!(server.journal.events().is_empty(), "no agent was started");
    send("POST", TURNS, "application/json; charset=utf-8", good.as_bytes()).expect(202);
    server.post(TURNS, &json!({ "prompt": "x".repeat(15 * 1024) })).expect(202);
}

/// API-2: `wait` is 0 to 300; list limits are 1 to 1000; other values are refused.
#[test]
fn query_values_out_of_range_are_refused() {
    let server = start();
    let body = json!({ "prompt": "x" });
    for wait in ["301", "-1", "soon", "1e3", "99999999999999999999"] {
        let reply = server.post(&format!("{TURNS}?wait={wait}"), &body);
        refused(&server, &reply, 400, "invalid-query");
    }
    server.get("/v1/groups/work").any_problem(404);
    let task = server.post(TURNS, &body).expect(202);
    let task = format!("tasks/{}?wait=301", task["id"].as_str().unwrap());
    for path in [
        &task,
        "groups?limit=0",
        "groups/work/tasks?limit=1001",
        "groups/work/events?after=x",
        "groups/work/frames?limit=0",
        "groups/work/frames?limit=1001",
        "groups/work/frames?limit=x",
        "groups/work/frames?after=x",
        "groups/work/frames?before=-1",
        "groups/work/frames?order=sideways",
        "groups/work/turns?limit=1001",
        "groups/work/turns?order=up",
        "groups/work/turns?cursor=x",
        "groups/work/turns?cursor=prev-",
        "groups/work/turns?after=1",
        "digest?from=yesterday",
        "digest?to=2026-01-01",
        "digest?from=2026-01-01T00:00:00",
        "digest?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        "digest?group=work",
        "digest?limit=1",
    ] {
        refused(&server, &server.get(&format!("/v1/{path}")), 400, "invalid-query");
    }
    server.get("/v1/groups/work/frames?limit=1000").expect(200);
}

/// API-2: an id that does not or cannot exist is 404, as an unknown path is; a wrong method is 405.
#[test]
fn unknown_ids_and_paths_are_404_and_wrong_methods_405() {
    let server = start();
    for task in ["tsk_01890000-0000-7000-8000-000000000000", "nonsense", "tsk_", "prm_1", "%00"] {
        let path = format!("/v1/tasks/{task}");
        refused(&server, &server.get(&path), 404, "task-not-found");
        let cancel = server.post(&format!("{path}/cancel"), &json!({}));
        refused(&server, &cancel, 404, "task-not-found");
    }
    for run in ["x", "run_x", "run_01890000-0000-7000-8000-000000000000"] {
        let reply = server.get(&format!("/v1/runs/{run}/digest"));
        refused(&server, &reply, 404, "run-not-found");
    }
    for path in ["", "/tasks", "/frames", "/events", "/digest", "/turns"] {
        let reply = server.get(&format!("/v1/groups/absent{path}"));
        refused(&server, &reply, 404, "group-not-found");
    }
    refused(&server, &server.delete("/v1/groups/absent"), 404, "group-not-found");
    for path in ["/nothing", "/v1", "/v1/nothing", "/v1/groups/work/nothing", "/v2/groups"] {
        refused(&server, &server.get(path), 404, "not-found");
        refused(&server, &server.post(path, &json!({})), 404, "not-found");
    }
    let absent = server.put("/v1/groups/work", &json!({ "agent": "absent" }));
    refused(&server, &absent, 400, "unknown-agent");
    for (method, path) in [
        ("PATCH", "groups/work"),
        ("DELETE", "groups"),
        ("PATCH", "groups/work/turns"),
        ("PUT", "groups/work/turns"),
        ("PUT", "status"),
        ("DELETE", "tasks/tsk_01890000-0000-7000-8000-000000000000"),
        ("DELETE", "groups/work/frames"),
        ("POST", "groups/work/digest"),
        ("POST", "digest"),
    ] {
        let reply = server.request(method, &format!("/v1/{path}"), &[], None);
        refused(&server, &reply, 405, "method-not-allowed");
    }
}

/// API-2, C15: what strict readers of JSON refuse is refused in a body, with the field's path; an
/// agent's own words are shown in another form, so that every list, stream and digest is read.
#[test]
fn what_strict_readers_refuse_breaks_no_list() {
    let server = Setup::new().asks().start();
    let raw = |method: &str, path: &str, body: &str| {
        let head =
            "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
        let length = body.len();
        server.raw(format!("{method} {path} {head}\r\nContent-Length: {length}\r\n\r\n{body}"))
    };
    // Two brackets in a row would be a word of the scripted agent.
    let deep = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
    for odd in [r#""\ud800""#, "1e999", &deep] {
        let refused = |method: &str, path: &str, body: String, field: &str| {
            let problem = raw(method, path, &body).problem(400, "invalid-body");
            let found = problem["field"].as_str().unwrap_or_default();
            assert!(found.starts_with(field), "{problem}");
        };
        let block = format!(r#"{{"type":"text","text":"x","_meta":{{"a":{odd}}}}}"#);
        let turns = "/v1/groups/odd/turns";
        refused("PUT", "/v1/groups/odd", format!(r#"{{"metadata":{{"a":{odd}}}}}"#), "metadata.a");
        refused(
            "POST",
            turns,
            format!(r#"{{"prompt":"x","metadata":{{"a":{odd}}}}}"#),
            "metadata.a",
        );
        refused("POST", turns, format!(r#"{{"prompt":[{block}]}}"#), "prompt[0]._meta.a");
        refused("POST", turns, format!(r#"{{"prompt":{odd}}}"#), "prompt");
    }
    let odd = [
        ("a", r#""\ud800""#, json!("\u{fffd}")),
        ("b", "1e999", json!("1e999")),
        ("c", &deep, Value::Null),
    ];
    for (group, odd, shown) in odd {
        let call = format!(r#"{{"toolCallId":"p","title":"odd {group}","rawInput":{odd}}}"#);
        let options = r#"[{"optionId":"a","name":"A","kind":"allow_once"}]"#;
        let params = format!(r#"{{"sessionId":$session,"toolCall":{call},"options":{options}}}"#);
        let method = "session/request_permission";
        let line = format!(r#"{{"id":"{group}","method":"{method}","params":{params}}}"#);
        server.submit(group, &format!("[[line:{line}]][[gate:never]]"));
        let opened = format!("permission opened group={group}");
        server.log.wait("the permission", |line| line.contains(&opened));
        // `Value` is a strict reader.
        let permissions = server.get(&format!("/v1/permissions?group={group}")).expect(200);
        let frame = server.frames_of_kind(group, method).remove(0);
        let snapshot = server.get(&format!("/v1/groups/{group}/snapshot")).expect(200);
        let events = server.events(group, "");
        let event = events.until("the frame", |event| event.event == method).pop().unwrap().frame();
        for call in [
            &permissions["items"][0]["tool_call"],
            &frame["payload"]["params"]["toolCall"],
            &snapshot["permissions"][0]["tool_call"],
            &event["payload"]["params"]["toolCall"],
        ] {
            assert_eq!(call["title"], format!("odd {group}"), "{call}");
            assert!(shown == Value::Null || call["rawInput"] == shown, "{call}");
        }
    }
    let listed = server.cli_stdout(&["permissions"]);
    assert!(["odd a", "odd b", "odd c"].iter().all(|odd| listed.contains(odd)), "{listed}");
}
