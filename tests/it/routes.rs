//! What holds for every route of the server's table, and for what has no route.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
};

use serde_json::json;

use crate::support::{Server, Setup, TIMEOUT, http::parse, routes::Route};

/// Starts a server with a group that has had a turn; returns the table and the ids too.
fn start() -> (Server, Vec<Route>, Vec<(&'static str, String)>) {
    let server = Setup::new().text("server", "max_body", "16KiB").start();
    let task = server.complete("work", "hello");
    let text = |field: &str| task[field].as_str().unwrap().to_owned();
    let ids = vec![("group", "work".into()), ("task", text("id")), ("run", text("run"))];
    let routes = server.routes();
    assert!(routes.len() > 20, "{routes:#?}");
    (server, routes, ids)
}

fn path_of(route: &Route, ids: &[(&'static str, String)]) -> String {
    let ids: Vec<(&str, &str)> = ids.iter().map(|(name, id)| (*name, &**id)).collect();
    route.path(&ids)
}

/// API-2: HEAD answers as GET does, and sends no body; also of a stream, which would not end.
#[test]
fn head_answers_as_get_without_a_body() {
    let (server, routes, mut ids) = start();
    server.acquire_lock("some key", "me").expect(201);
    ids.push(("key", "some%20key".into()));
    for route in routes.iter().filter(|route| route.methods.iter().any(|name| name == "GET")) {
        assert!(route.methods.iter().any(|name| name == "HEAD"), "{route:?}");
        let path = path_of(route, &ids);
        // Reads to the end of the connection, which follows the answer at once.
        let head = server.bare("HEAD", &path, "");
        assert_eq!(head.status, if path == "/healthz" { 204 } else { 200 }, "{path}: {head:?}");
        assert!(head.body.is_empty(), "{path}: {}", head.text());
        if route.is_stream() {
            assert_eq!(head.header("content-type"), Some("text/event-stream"));
            continue;
        }
        let get = server.bare("GET", &path, "");
        assert_eq!(get.status, head.status, "{path}");
        for (name, value) in get.headers {
            let varies = ["date", "connection", "content-length"].contains(&&*name);
            let found = head.header(&name);
            assert!(varies || found == Some(&value), "{path}: {name}: {value}, not {found:?}");
            assert!(name != "content-length" || found.is_some(), "{path}: {head:?}");
        }
    }
}

/// API-2, C6: no browser guesses the type of an answer, keeps it, or shows it to another site: of
/// any route, and of a request that is refused before routing.
#[test]
fn every_answer_has_the_headers_that_browsers_obey() {
    let (server, routes, ids) = start();
    let mut replies: Vec<_> = routes
        .iter()
        .flat_map(|route| route.methods.iter().map(|method| (method.clone(), path_of(route, &ids))))
        // The other methods are refused, or change what the rest reads.
        .filter(|(method, _)| method == "HEAD" || method == "POST")
        .map(|(method, path)| (path.clone(), server.bare(&method, &path, "")))
        .collect();
    let foreign = "Host: evil.example\r\n\r\n";
    replies.push(("a foreign host".into(), server.raw(format!("GET / HTTP/1.1\r\n{foreign}"))));
    replies.push(("no path".into(), server.bare("GET", "/nothing", "")));
    replies.push(("no method".into(), server.bare("PATCH", "/v1/groups", "")));
    for (path, reply) in replies {
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}: {reply:?}");
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}: {reply:?}");
        let policy = reply.header("cross-origin-resource-policy");
        assert_eq!(policy, Some("same-origin"), "{path}: {reply:?}");
    }
}

/// API-2: a parameter that a route does not have is refused by its name: a misspelt filter must not
/// select everything.
#[test]
fn a_parameter_that_a_route_does_not_have_is_refused() {
    let (server, routes, ids) = start();
    for route in routes.iter().filter(|route| route.pattern.starts_with("/v1/")) {
        for method in &route.methods {
            let path = format!("{}?no_such_parameter=1", path_of(route, &ids));
            let body = match (&*route.pattern, &**method) {
                (_, "GET" | "HEAD" | "DELETE") => None,
                ("/v1/groups/{group}/turns", _) => Some(json!({ "prompt": "x" })),
                ("/v1/permissions/{permission}", _) => Some(json!({ "cancel": true })),
                ("/v1/locks/{key}", _) => Some(json!({ "holder": "me", "ttl_ms": 1000 })),
                ("/v1/locks/{key}/refresh", _) => Some(json!({ "holder": "me", "token": 1 })),
                _ => Some(json!({})),
            };
            let body = body.map(|body| body.to_string().into_bytes());
            let kind = [("Content-Type", "application/json")];
            let reply = server.request(method, &path, &kind, body.as_deref());
            if method == "HEAD" {
                assert_eq!(reply.status, 400, "{method} {path}");
                continue;
            }
            let problem = reply.problem(400, "invalid-query");
            assert!(
                problem.to_string().contains("no_such_parameter"),
                "{method} {path}: {problem}"
            );
        }
    }
    for probe in ["/healthz", "/readyz", "/metrics"] {
        assert!(server.get(&format!("{probe}?t=1")).status < 300, "{probe}");
    }
}

/// API-2: a filter refuses a word that it does not know, and names the parameter and what it takes.
#[test]
fn an_unknown_word_in_a_filter_is_refused() {
    let (server, ..) = start();
    #[rustfmt::skip]
    let cases = [
        ("groups?status=runing",                    "status",  "running"),
        ("groups/work/tasks?state=done",            "state",   "completed"),
        ("groups/work/tasks?kind=turns",            "kind",    "compaction"),
        ("groups/work/turns?order=up",              "order",   "desc"),
        ("groups/work/frames?order=ASC",            "order",   "asc"),
        ("groups/work/frames?segment=last",         "segment", "current"),
        ("groups/work/frames?kind=greenroom/turns", "kind",    "greenroom/turn_started"),
        ("permissions?state=open",                  "state",   "pending"),
    ];
    for (path, parameter, word) in cases {
        let problem = server.get(&format!("/v1/{path}")).problem(400, "invalid-query");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(parameter) && detail.contains(word), "{path}: {detail}");
    }
    for path in ["groups?status=draining", "groups/work/frames?kind=_vendor/note"] {
        assert_eq!(server.get(&format!("/v1/{path}")).expect(200)["items"], json!([]), "{path}");
    }
}

/// C7: a page of another site can send a form without asking; no POST takes one, with or without a
/// body. One without a body needs no type.
#[test]
fn no_post_takes_a_form() {
    let (server, routes, ids) = start();
    for route in routes.iter().filter(|route| route.methods.iter().any(|name| name == "POST")) {
        let path = path_of(route, &ids);
        for kind in ["text/plain;charset=UTF-8", "Application/x-www-form-urlencoded"] {
            let line = format!("Content-Type: {kind}\r\n");
            server.bare("POST", &path, &line).problem(415, "unsupported-media-type");
            let line = format!("{line}Content-Length: 2\r\n\r\n{{}}");
            server.bare("POST", &path, &line).problem(415, "unsupported-media-type");
        }
        assert_ne!(server.bare("POST", &path, "").status, 415, "{path}");
    }
}

/// I11, F30, C5, C6: a refused request ends its connection, whatever its client still announces or
/// sends.
#[test]
fn a_refused_request_ends_its_connection() {
    let (server, ..) = start();
    let host = format!("Host: {}\r\n", server.address());
    let json = format!("{host}Content-Type: application/json\r\n");
    let form = format!("{host}Content-Type: text/plain\r\n");
    let (foreign, origin) =
        ("Host: evil.example\r\n", format!("{host}Origin: http://evil.example\r\n"));
    let site = format!("{host}Sec-Fetch-Site: cross-site\r\n");
    #[rustfmt::skip]
    let cases = [
        (403, "POST /v1/groups/work/turns",  foreign),
        (403, "POST /v1/groups/work/turns",  &*origin),
        (403, "GET /v1/groups",              &site),
        (404, "POST /v1/nothing",            &json),
        (405, "PUT /v1/groups",              &json),
        (415, "POST /v1/groups/work/turns",  &form),
        (400, "POST /v1/groups/work/turns?x=1", &json),
        (413, "POST /v1/groups/work/turns",  &json),
    ];
    thread::scope(|scope| {
        for (status, line, headers) in cases {
            for is_endless in [false, true] {
                let server = &server;
                scope.spawn(move || {
                    let case = format!("{status} {line}, endless: {is_endless}");
                    let length = match is_endless {
                        true => "Transfer-Encoding: chunked",
                        false => "Content-Length: 9999999",
                    };
                    let head = format!("{line} HTTP/1.1\r\n{headers}{length}\r\n\r\n");
                    let answer = exchange(server, &head, is_endless, &case);
                    let reply = parse(&answer, true).unwrap_or_else(|| panic!("{case}: no answer"));
                    assert_eq!(reply.status, status, "{case}: {}", reply.text());
                    assert_eq!(reply.header("connection"), Some("close"), "{case}");
                });
            }
        }
    });
}

/// Sends a request, and chunks until the connection ends if it `is_endless`; returns what was read
/// up to the end.
fn exchange(server: &Server, head: &str, is_endless: bool, case: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let sending = is_endless.then(|| {
        let mut stream = stream.try_clone().unwrap();
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        thread::spawn(move || while stream.write_all(chunk.as_bytes()).is_ok() {})
    });
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&piece[..read]),
            // The server closes while bytes are under way.
            Err(err) if err.kind() == ErrorKind::ConnectionReset => break,
            Err(err) => {
                drop(stream.shutdown(Shutdown::Both));
                panic!("{case}: the connection has not ended: {err}");
            }
        }
    }
    drop(stream.shutdown(Shutdown::Both));
    if let Some(sending) = sending {
        sending.join().unwrap();
    }
    answer
}

/// API-2, F30: a body ends with its length, also if the client would like another protocol.
#[test]
fn a_body_ends_with_its_length_beside_an_upgrade() {
    let (server, ..) = start();
    let line = "Upgrade: websocket\r\nConnection: upgrade\r\n";
    let body = "Content-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"prompt\":\"up\"} ";
    for (status, path, rest) in [
        (202, "/v1/groups/work/turns", body),
        (400, "/v1/groups/work/turns", "\r\n"),
        (202, "/v1/groups/work/pause", "\r\n"),
    ] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT / 2)).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{line}{rest}");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|err| panic!("{path}: {err}"));
        assert_eq!(parse(&answer, true).unwrap().status, status, "{path}");
    }
}

/// I11, API-7: what is no HTTP is refused and counted, and fills no log.
#[test]
fn what_is_no_http_is_counted_and_logged_once() {
    let (server, ..) = start();
    let count = || server.scrape().value("greenroom_http_unparsable_requests_total", &[]);
    assert_eq!(count(), 0.0);
    let huge = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200 << 10));
    let requests =
        ["\x16\x03\x01\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n\r\n", &huge];
    for _ in 0..5 {
        for request in requests {
            let status = server.raw(request).status;
            // The server may close while it still has bytes to read, which takes its answer away.
            assert!(status == 0 || (400..500).contains(&status), "{status}: {request:.40}");
        }
    }
    assert_eq!(count(), 20.0);
    let lines = server.log.lines();
    let logged = |word: &&String| word.contains("could not be parsed") || word.contains("actix");
    let logged: Vec<&String> = lines.iter().filter(logged).collect();
    let [line] = logged[..] else { panic!("{logged:#?}") };
    assert!(line.contains("WARN greenroom::http ") && line.contains("requests=1"), "{line}");
}
