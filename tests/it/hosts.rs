//! Access to a loopback server: `Host` and `Origin` are checked before anything else. Which names
//! are allowed is tested in `src/http/hosts.rs`.

use serde_json::json;

use crate::support::Setup;

/// C5: in every route a named host is served, any other is 403, and a malformed, missing or
/// second one is 400; the absolute form of a request does not bypass the check.
#[test]
fn only_named_hosts_are_served() {
    let server = Setup::new().set("server", "allowed_hosts", "[\"green.example\"]").start();
    let port = server.address().port().to_string();
    let status = |target: &str, hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| format!("Host: {}\r\n", host.replace("PORT", &port)));
        let hosts: String = hosts.collect();
        let head = format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{hosts}\r\n");
        server.raw(head).status
    };
    for host in ["127.0.0.1:PORT", "LocalHost:PORT", "[::1]:PORT", "green.example:PORT"] {
        assert_eq!(status("/v1/status", &[host]), 200, "{host}");
    }
    #[rustfmt::skip]
    let refused: [(&[&str], u16); 8] = [
        (&["evil.com"],                          403),
        (&["green.example.evil.com:PORT"],       403),
        (&[],                                    400),
        (&[""],                                  400),
        (&["localhost:99999"],                   400),
        (&["localhost evil.com:PORT"],           400),
        (&["localhost:PORT", "evil.com"],        400),
        (&["localhost:PORT", "localhost:PORT"],  400),
    ];
    for (hosts, expected) in refused {
        for path in ["/v1/status", "/healthz", "/no/such/path", "/"] {
            assert_eq!(status(path, hosts), expected, "{path} of {hosts:?}");
        }
    }
    for host in ["localhost:PORT", "evil.com"] {
        assert_eq!(status("http://evil.com/v1/status", &[host]), 403, "{host}");
    }
    server.request("GET", "/v1/status", &[("Host", "evil.com")], None).problem(403, "foreign-host");
    server.request("GET", "/v1/status", &[("Host", "a:x")], None).problem(400, "bad-host");
}

/// C6: requests without `Origin`, or with the server's own, are served; any other is 403, in every
/// route and before its body is read. No answer allows another origin.
#[test]
fn foreign_origins_are_refused() {
    let server = Setup::new().start();
    let request = |method: &str, path: &str, origin: &str| {
        let headers = [("Origin", origin), ("Content-Type", "application/json")];
        let body = json!({ "prompt": "from the web" }).to_string();
        let reply = server.request(method, path, &headers, Some(body.as_bytes()));
        assert_eq!(reply.header("access-control-allow-origin"), None, "{reply:?}");
        reply
    };
    let own = format!("http://{}", server.address());
    request("GET", "/v1/status", &own).expect(200);
    for origin in ["null", "http://evil.com", "http://127.0.0.1:1", &format!("{own}.evil.com")] {
        for path in ["/v1/status", "/v1/groups/work/events", "/no/such/path"] {
            request("GET", path, origin).any_problem(403);
        }
        request("POST", "/v1/groups/work/turns", origin).problem(403, "foreign-origin");
        request("OPTIONS", "/v1/groups/work/turns", origin);
    }
    server.get("/v1/groups/work").any_problem(404);
}
