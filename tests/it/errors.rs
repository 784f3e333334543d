//! Refused requests and their answers: RFC 9457 problems everywhere.

use serde_json::json;

use crate::support::{Server, Setup};

const TURNS: &str = "/v1/groups/work/turns";

/// API-2, C12: group ids that do not match the pattern are 400 `invalid-group` in every route.
#[test]
fn malformed_group_ids_are_refused_in_every_route() {
    let server = Server::usual();
    let long = "x".repeat(129);
    let bad = ["-dash", ".dot", "_under", "a%20b", "a%2Fb", "a%00b", "%C3%A4", "a%0Ab", &long];
    for group in bad {
        let path = format!("/v1/groups/{group}");
        server.put(&path, &json!({})).problem(400, "invalid-group");
        server.get(&path).problem(400, "invalid-group");
        let body = json!({ "prompt": "x" });
        server.post(&format!("{path}/turns"), &body).problem(400, "invalid-group");
        server.post(&format!("{path}/compactions"), &json!({})).problem(400, "invalid-group");
        server.get(&format!("{path}/frames")).problem(400, "invalid-group");
        server.get(&format!("{path}/events")).problem(400, "invalid-group");
    }
    let longest = "x".repeat(128);
    for group in ["1", "C0123.4:t@x-y_z", "%61bc", &longest] {
        server.put(&format!("/v1/groups/{group}"), &json!({})).expect(201);
    }
    assert_eq!(server.group("abc")["id"], "abc");
}

/// API-2: an unknown field or a wrong type is 400 `invalid-body`, and the answer names the field.
#[test]
fn a_misfit_body_is_refused_and_its_field_named() {
    let server = Server::usual();
    let bad = [
        (TURNS, json!({ "prompt": "x", "pormpt": "y" }), "pormpt"),
        (TURNS, json!({}), "prompt"),
        (TURNS, json!({ "prompt": 5 }), "prompt"),
        (TURNS, json!({ "prompt": null }), "prompt"),
        (TURNS, json!({ "prompt": { "type": "text", "text": "x" } }), "prompt"),
        (TURNS, json!({ "prompt": "x", "deadline_ms": "soon" }), "deadline_ms"),
        (TURNS, json!({ "prompt": "x", "deadline_ms": -1 }), "deadline_ms"),
        (TURNS, json!({ "prompt": "x", "expires_in_ms": 1.5 }), "expires_in_ms"),
        ("/v1/groups/work/compactions", json!({ "fokus": "x" }), "fokus"),
        ("/v1/groups/work/compactions", json!({ "focus": 5 }), "focus"),
    ];
    server.put("/v1/groups/work", &json!({})).expect(201);
    for (path, body, field) in bad {
        let problem = server.post(path, &body).problem(400, "invalid-body");
        assert!(problem.to_string().contains(field), "{body} gave {problem}");
    }
    let bad = [
        (json!({ "titel": "x" }), "titel"),
        (json!({ "title": 5 }), "title"),
        (json!({ "agent": ["scripted"] }), "agent"),
        (json!({ "auto_compact": "much" }), "auto_compact"),
        (json!({ "permission_policy": "maybe" }), "permission_policy"),
        (json!({ "on_interrupt": 1 }), "on_interrupt"),
    ];
    for (body, field) in bad {
        let problem = server.put("/v1/groups/new", &body).problem(400, "invalid-body");
        assert!(problem.to_string().contains(field), "{body} gave {problem}");
    }
    server.get("/v1/groups/new").any_problem(404);
    assert!(server.journal.events().is_empty(), "no agent was started");
}

/// C7: a body that is not JSON, or not declared as JSON, is a problem, and nothing is enqueued.
#[test]
fn a_body_that_is_not_json_is_refused() {
    let server = Server::usual();
    let json_type = [("Content-Type", "application/json")];
    for body in ["{", "", "\"text\"", "[]", "[\"x\"]", "{\"prompt\":\"x\"} x", "\u{feff}x"] {
        server.request("POST", TURNS, &json_type, Some(body.as_bytes())).any_problem(400);
    }
    server.request("POST", TURNS, &json_type, Some(b"{\"prompt\":\"\xff\"}")).any_problem(400);
    let good = json!({ "prompt": "x" }).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = [("Content-Type", kind)];
        let reply = server.request("POST", TURNS, &headers, Some(good.as_bytes()));
        assert!([400, 415].contains(&reply.status), "{kind}: {}", reply.status);
        reply.any_problem(reply.status);
    }
    server.get("/v1/groups/work").any_problem(404);
    let headers = [("Content-Type", "application/json; charset=utf-8")];
    server.request("POST", TURNS, &headers, Some(good.as_bytes())).expect(202);
}

/// I11, API-2: a body over the limit is 413; a body below it is accepted.
#[test]
fn a_body_over_the_limit_is_413() {
    let server = Setup::new().text("server", "max_body", "16KiB").start();
    let body = json!({ "prompt": "x".repeat(20 * 1024) });
    server.post(TURNS, &body).any_problem(413);
    server.put("/v1/groups/work", &json!({ "title": "x".repeat(20 * 1024) })).any_problem(413);
    server.get("/v1/groups/work").any_problem(404);
    let body = json!({ "prompt": "x".repeat(15 * 1024) });
    server.post(TURNS, &body).expect(202);
}

/// I11: a body with an announced length over the limit is refused before it is sent.
#[test]
fn an_announced_length_over_the_limit_is_413() {
    let server = Setup::new().text("server", "max_body", "16KiB").start();
    let reply = server.raw(format!(
        "POST {TURNS} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: 99999999\r\nConnection: close\r\n\r\n",
        server.address()
    ));
    assert_eq!(reply.status, 413, "{}", reply.text());
}

/// API-2: `wait` is 0 to 300; list limits are 1 to 1000; other values are 400.
#[test]
fn query_values_out_of_range_are_400() {
    let server = Server::usual();
    let body = json!({ "prompt": "x" });
    for wait in ["301", "-1", "soon", "1e3", "99999999999999999999"] {
        server.post(&format!("{TURNS}?wait={wait}"), &body).any_problem(400);
    }
    server.get("/v1/groups/work").any_problem(404);
    let task = server.post(TURNS, &body).expect(202);
    let task = task["id"].as_str().unwrap();
    server.get(&format!("/v1/tasks/{task}?wait=301")).any_problem(400);
    for query in ["limit=0", "limit=1001", "limit=x", "after=x", "before=-1", "order=sideways"] {
        server.get(&format!("/v1/groups/work/frames?{query}")).any_problem(400);
    }
    server.get("/v1/groups?limit=0").any_problem(400);
    server.get("/v1/groups/work/tasks?limit=1001").any_problem(400);
    server.get("/v1/groups/work/events?after=x").any_problem(400);
    server.get("/v1/groups/work/frames?limit=1000").expect(200);
}

/// API-2: an id that does not or cannot exist is 404.
#[test]
fn unknown_ids_are_404() {
    let server = Server::usual();
    for task in ["tsk_01890000-0000-7000-8000-000000000000", "nonsense", "tsk_", "prm_1", "%00"] {
        server.get(&format!("/v1/tasks/{task}")).any_problem(404);
        server.post(&format!("/v1/tasks/{task}/cancel"), &json!({})).any_problem(404);
    }
    for path in ["", "/tasks", "/frames", "/events"] {
        server.get(&format!("/v1/groups/absent{path}")).any_problem(404);
    }
}

/// API-2: an unknown path is a 404 problem, a wrong method a 405 problem.
#[test]
fn unknown_paths_are_404_and_wrong_methods_405() {
    let server = Server::usual();
    for path in ["/nothing", "/v1", "/v1/nothing", "/v1/groups/work/nothing", "/v2/groups"] {
        server.get(path).any_problem(404);
        server.post(path, &json!({})).any_problem(404);
    }
    for (method, path) in [
        ("PATCH", "/v1/groups/work"),
        ("DELETE", "/v1/groups"),
        ("PATCH", "/v1/groups/work/turns"),
        ("PUT", "/v1/groups/work/turns"),
        ("PUT", "/v1/status"),
        ("DELETE", "/v1/tasks/tsk_01890000-0000-7000-8000-000000000000"),
        ("DELETE", "/v1/groups/work/frames"),
    ] {
        server.request(method, path, &[], None).any_problem(405);
    }
}

/// C21: a problem reveals no path of the machine and no SQL.
#[test]
fn problems_reveal_no_internals() {
    let server = Server::usual();
    let replies = [
        server.get("/v1/groups/absent"),
        server.get("/v1/tasks/nonsense"),
        server.post(TURNS, &json!({ "prompt": 5 })),
        server.put("/v1/groups/work", &json!({ "agent": "absent" })),
    ];
    let home = server.home.path();
    for reply in replies {
        let text = reply.text();
        for word in [home.to_str().unwrap(), "SELECT", "sqlite", ".rs:"] {
            assert!(!text.contains(word), "{word:?} in {text}");
        }
    }
}
