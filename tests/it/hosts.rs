//! Access to a loopback server: `Host` and `Origin` are checked before anything else.

use serde_json::json;

use crate::support::{Server, Setup};

fn request(path: &str, headers: &[String]) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request + "\r\n"
}

/// C5: requests to the loopback names with this server's port are served.
#[test]
fn loopback_hosts_are_served() {
    let server = Server::usual();
    let port = server.address().port();
    for host in ["127.0.0.1", "localhost", "LocalHost", "[::1]"] {
        let reply = server.raw(request("/v1/status", &[format!("Host: {host}:{port}")]));
        assert_eq!(reply.status, 200, "{host}: {}", reply.text());
    }
}

/// C5: any other name is 403, a malformed or missing one 400 or 403, also for unknown paths.
#[test]
fn foreign_and_malformed_hosts_are_refused() {
    let server = Server::usual();
    let port = server.address().port();
    let foreign = [
        "evil.com",
        "127.evil.com",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "evil.com:80",
        "xlocalhost",
        "localhostx",
        "127.0.0.2.nip.io",
        "0.0.0.0",
        "192.168.1.1",
        "example.",
    ];
    for path in ["/v1/status", "/healthz", "/no/such/path", "/"] {
        for host in foreign {
            let named = if host.contains(':') { host.into() } else { format!("{host}:{port}") };
            let reply = server.raw(request(path, &[format!("Host: {named}")]));
            assert_eq!(reply.status, 403, "{path} of {named}: {}", reply.text());
        }
    }
    let malformed: Vec<Vec<String>> = vec![
        vec![],
        vec!["Host:".into()],
        vec![format!("Host: localhost.:{port}")],
        vec![format!("Host: 127.0.0.1.:{port}")],
        vec!["Host: localhost:99999".into()],
        vec!["Host: localhost:port".into()],
        vec![format!("Host: user@localhost:{port}")],
        vec![format!("Host: localhost:{port}/x")],
        vec![format!("Host: localhost, evil.com:{port}")],
        vec![format!("Host: localhost evil.com:{port}")],
        vec![format!("Host: localhost:{port}"), "Host: evil.com".into()],
        vec!["Host: evil.com".into(), format!("Host: localhost:{port}")],
        vec![format!("Host: localhost:{port}"), format!("Host: localhost:{port}")],
    ];
    for headers in malformed {
        for path in ["/v1/status", "/no/such/path"] {
            let reply = server.raw(request(path, &headers));
            assert!([400, 403].contains(&reply.status), "{headers:?}: {}", reply.status);
        }
    }
}

/// C5: the absolute form of a request does not bypass the check.
#[test]
fn the_absolute_form_does_not_bypass_the_check() {
    let server = Server::usual();
    let port = server.address().port();
    for (target, host) in [
        ("http://evil.com/v1/status".to_owned(), format!("localhost:{port}")),
        (format!("http://evil.com:{port}/v1/status"), format!("evil.com:{port}")),
    ] {
        let reply = server.raw(request(&target, &[format!("Host: {host}")]));
        assert!([400, 403].contains(&reply.status), "{target} at {host}: {}", reply.status);
    }
}

/// C6: requests without `Origin`, or with the server's own, are served; any other is 403, in every
/// route and before its body is read.
#[test]
fn foreign_origins_are_refused() {
    let server = Server::usual();
    let port = server.address().port();
    let host = format!("Host: 127.0.0.1:{port}");
    let same_origin = format!("Origin: http://127.0.0.1:{port}");
    let reply = server.raw(request("/v1/status", &[host.clone(), same_origin]));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.header("access-control-allow-origin").is_none(), "no CORS by default");
    let foreign = [
        "null".to_owned(),
        "http://evil.com".to_owned(),
        format!("http://evil.com:{port}"),
        format!("http://127.0.0.1:{port}.evil.com"),
        format!("http://127.0.0.1.evil.com:{port}"),
        format!("http://localhost.:{port}"),
        "http://127.0.0.1:1".to_owned(),
        "file://".to_owned(),
    ];
    for origin in &foreign {
        for path in ["/v1/status", "/v1/groups/work/events", "/no/such/path"] {
            let headers = [host.clone(), format!("Origin: {origin}")];
            let reply = server.raw(request(path, &headers));
            assert_eq!(reply.status, 403, "{path} from {origin:?}: {}", reply.text());
        }
        let headers = [("Origin", origin.as_str()), ("Content-Type", "application/json")];
        let body = json!({ "prompt": "from the web" }).to_string();
        let turns = "/v1/groups/work/turns";
        let reply = server.request("POST", turns, &headers, Some(body.as_bytes()));
        assert_eq!(reply.status, 403, "{origin:?}: {}", reply.text());
        let reply = server.request("OPTIONS", turns, &headers, None);
        assert!(reply.header("access-control-allow-origin").is_none(), "{reply:?}");
    }
    server.get("/v1/groups/work").any_problem(404);
}

/// C5: a refusal is an RFC 9457 problem.
#[test]
fn refused_hosts_and_origins_get_problems() {
    let server = Server::usual();
    server.request("GET", "/v1/status", &[("Host", "evil.com")], None).any_problem(403);
    server.request("GET", "/v1/status", &[("Origin", "null")], None).any_problem(403);
}

/// C5: `allowed_hosts` adds exact names.
#[test]
fn configured_hosts_are_matched_exactly() {
    let server = Setup::new().set("server", "allowed_hosts", "[\"green.example\"]").start();
    let port = server.address().port();
    for (host, status) in [
        (format!("green.example:{port}"), 200),
        (format!("localhost:{port}"), 200),
        (format!("green.example.evil.com:{port}"), 403),
        (format!("sub.green.example:{port}"), 403),
    ] {
        let reply = server.raw(request("/v1/status", &[format!("Host: {host}")]));
        assert_eq!(reply.status, status, "{host}: {}", reply.text());
    }
}
