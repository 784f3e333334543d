//! The compaction lock over HTTP (HL-15), for other programs that compact the same sessions.

use std::thread;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, http::Reply, server::encode};

const LOCK: &str = "/v1/locks/session";
const HOUR_MS: u64 = 3_600_000;

#[track_caller]
fn acquire(server: &Server, path: &str, holder: &str, ttl_ms: u64) -> Reply {
    server.put(path, &json!({ "holder": holder, "ttl_ms": ttl_ms }))
}

#[track_caller]
fn refresh(server: &Server, path: &str, holder: &str, token: &Value) -> Reply {
    server.post(&format!("{path}/refresh"), &json!({ "holder": holder, "token": token }))
}

#[track_caller]
fn release(server: &Server, path: &str, holder: &str, token: &Value) {
    let reply = server.delete(&format!("{path}?holder={}&token={token}", encode(holder)));
    assert_eq!((reply.status, reply.body.len()), (204, 0), "{}", reply.text());
}

/// Checks that the reply is the 409 that names the holder.
#[track_caller]
fn assert_held(reply: &Reply, holder: &str, lock: &Value) {
    let problem = reply.problem(409, "lock-held");
    assert_eq!(problem["holder"], holder, "{problem}");
    assert!(problem.get("token").is_none(), "{problem}");
    assert!(problem["expires_at"].as_str() >= lock["acquired_at"].as_str(), "{problem}");
}

/// HL-15, HL-3, HL-4, API-2: all requests for one lock. An expired lease is free for others, and
/// its holder can refresh it until another client acquires it.
#[test]
fn a_lock_is_acquired_refreshed_and_released() {
    let server = Server::usual();
    server.get(LOCK).problem(404, "lock-not-found");
    let lock = acquire(&server, LOCK, "me", HOUR_MS).expect(201);
    let mut fields: Vec<&String> = lock.as_object().unwrap().keys().collect();
    fields.sort_unstable();
    assert_eq!(fields, ["acquired_at", "expires_at", "holder", "key", "token"]);
    assert_eq!((&lock["key"], &lock["holder"]), (&json!("session"), &json!("me")));
    assert!(lock["token"].is_u64(), "{lock}");
    let seen = server.get(LOCK).expect(200);
    assert_eq!(seen["holder"], lock["holder"]);
    // Computed from a wall clock and a steady one, which are read one after the other.
    assert!(seen["expires_at"].as_str() >= lock["acquired_at"].as_str(), "{seen}");
    assert!(seen.get("token").is_none(), "{seen}");

    assert_held(&acquire(&server, LOCK, "you", HOUR_MS), "me", &lock);
    let again = acquire(&server, LOCK, "me", HOUR_MS).expect(200);
    assert_eq!((&again["token"], &again["acquired_at"]), (&lock["token"], &lock["acquired_at"]));
    assert!(again["expires_at"].as_str() >= lock["expires_at"].as_str(), "{again}");

    let token = &lock["token"];
    assert_eq!(refresh(&server, LOCK, "me", token).expect(200)["token"], *token);
    assert_held(&refresh(&server, LOCK, "you", token), "me", &lock);
    assert_held(&refresh(&server, LOCK, "me", &json!(token.as_u64().unwrap() + 1)), "me", &lock);

    release(&server, LOCK, "you", token);
    release(&server, LOCK, "me", &json!(0));
    release(&server, "/v1/locks/other", "me", token);
    server.get(LOCK).expect(200);
    release(&server, LOCK, "me", token);
    release(&server, LOCK, "me", token);
    server.get(LOCK).problem(404, "lock-not-found");
    refresh(&server, LOCK, "me", token).problem(409, "lock-lost");

    let yours = acquire(&server, LOCK, "you", HOUR_MS).expect(201);
    assert!(yours["token"].as_u64() > token.as_u64(), "{yours}");

    let short = "/v1/locks/short";
    let lock = acquire(&server, short, "me", 1).expect(201);
    eventually("the lease to expire", &server.log, || {
        (server.get(short).status == 404).then_some(())
    });
    refresh(&server, short, "me", &lock["token"]).expect(200);
    let yours = eventually("the lock to be free", &server.log, || {
        let reply = acquire(&server, short, "you", HOUR_MS);
        (reply.status == 201).then(|| reply.json())
    });
    assert_held(&refresh(&server, short, "me", &lock["token"]), "you", &yours);
}

/// HL-5, HL-15: no other program takes a lock under a name of greenroom's own; one that names
/// another process is free.
#[test]
fn greenrooms_own_names_are_reserved() {
    let server = Server::usual();
    for name in
        ["greenroom:", "greenroom:pid=1", "greenroom:nonce=00000000000000000000000000000000"]
    {
        let problem = acquire(&server, LOCK, name, HOUR_MS).problem(400, "invalid-body");
        assert_eq!(problem["field"], "holder", "{problem}");
        refresh(&server, LOCK, name, &json!(1)).problem(409, "lock-lost");
    }
    let own = format!(
        "greenroom:pid={}:start=1:ns=1:boot=00000000-0000-0000-0000-000000000001:nonce={:032}",
        std::process::id(),
        7
    );
    let lock = acquire(&server, "/v1/locks/another", &own, HOUR_MS).expect(201);
    let token = &lock["token"];
    refresh(&server, "/v1/locks/another", &own, token).expect(200);
    release(&server, "/v1/locks/another", &own, token);
    let lock = acquire(&server, LOCK, "greenroom-nightly", HOUR_MS).expect(201);
    assert_held(&acquire(&server, LOCK, "greenroom:", HOUR_MS), "greenroom-nightly", &lock);
}

/// HL-15, HL-1: of simultaneous clients exactly one gets the lock, in every round, and tokens
/// increase.
#[test]
fn exactly_one_of_racing_clients_gets_the_lock() {
    let server = Server::usual();
    let mut last = 0;
    for round in 0..8 {
        let racers = ["a", "b", "c"];
        let replies = thread::scope(|scope| {
            let race = racers.map(|name| {
                let server = &server;
                scope.spawn(move || acquire(server, LOCK, name, HOUR_MS))
            });
            race.map(|racer| racer.join().unwrap())
        });
        let winners: Vec<usize> = (0..3).filter(|at| replies[*at].status == 201).collect();
        let [winner] = winners[..] else { panic!("round {round}: {replies:?}") };
        let lock = replies[winner].json();
        for (at, reply) in replies.iter().enumerate() {
            if at != winner {
                assert_held(reply, racers[winner], &lock);
            }
        }
        let token = lock["token"].as_u64().unwrap();
        assert!(token > last, "round {round}: {token} after {last}");
        last = token;
        release(&server, LOCK, racers[winner], &lock["token"]);
    }
}

/// API-2, HL-3: a key is any text, percent-encoded once; no two keys are confused, and an invalid
/// one is refused.
#[test]
fn keys_are_percent_encoded() {
    let server = Server::usual();
    let longest = "k".repeat(1024);
    #[rustfmt::skip]
    let keys = [
        ("a%2Fb",       "a/b"),
        ("a%252Fb",     "a%2Fb"),
        ("a%2Fb%2F",    "a/b/"),
        ("%2Frefresh",  "/refresh"),
        ("refresh",     "refresh"),
        ("%2E%2E",      ".."),
        ("a%20b",       "a b"),
        ("a+b",         "a+b"),
        ("%C3%A4",      "ä"),
        ("a%3Fb%23c",   "a?b#c"),
        ("A%2fB",       "A/B"),
        (&longest,      &longest),
    ];
    let mut tokens = Vec::new();
    for (encoded, key) in keys {
        let lock = acquire(&server, &format!("/v1/locks/{encoded}"), "me", HOUR_MS).expect(201);
        assert_eq!(lock["key"], key, "{encoded}");
        tokens.push(lock["token"].clone());
    }
    for ((encoded, key), token) in keys.iter().zip(&tokens) {
        let path = format!("/v1/locks/{encoded}");
        assert_eq!(server.get(&path).expect(200)["key"], *key);
        assert_eq!(refresh(&server, &path, "me", token).expect(200)["token"], *token, "{key}");
        release(&server, &path, "me", token);
        server.get(&path).any_problem(404);
    }

    let too_long = "k".repeat(1025);
    for key in ["%FF", "a%zz", "a%2", &too_long] {
        let path = format!("/v1/locks/{key}");
        acquire(&server, &path, "me", 1_000).problem(400, "invalid-key");
        refresh(&server, &path, "me", &json!(1)).problem(400, "invalid-key");
        server.get(&path).problem(404, "lock-not-found");
        release(&server, &path, "me", &json!(1));
    }
    acquire(&server, "/v1/locks/", "me", 1_000).any_problem(404);
    acquire(&server, "/v1/locks/a/b", "me", 1_000).any_problem(404);
    server.post(LOCK, &json!({})).any_problem(405);
    server.get(&format!("{LOCK}/refresh")).any_problem(405);
}

/// API-2: the answer to an invalid body or query names the field, and no lock is acquired.
#[test]
fn invalid_bodies_and_queries_are_refused() {
    let server = Server::usual();
    let long = "h".repeat(513);
    let bad = [
        (json!({}), "holder"),
        (json!({ "holder": "me" }), "ttl_ms"),
        (json!({ "holder": "", "ttl_ms": 1 }), "holder"),
        (json!({ "holder": long, "ttl_ms": 1 }), "holder"),
        (json!({ "holder": "me", "ttl_ms": 0 }), "ttl_ms"),
        (json!({ "holder": "me", "ttl_ms": HOUR_MS + 1 }), "ttl_ms"),
        (json!({ "holder": "me", "ttl_ms": "1" }), "ttl_ms"),
        (json!({ "holder": "me", "ttl_ms": 1, "tll": 1 }), "tll"),
    ];
    for (body, field) in bad {
        let problem = server.put(LOCK, &body).problem(400, "invalid-body");
        assert!(problem["detail"].as_str().unwrap().contains(field) || problem["field"] == field);
    }
    for (body, field) in [
        (json!({ "holder": "me" }), "token"),
        (json!({ "token": 1 }), "holder"),
        (json!({ "holder": "me", "token": "1" }), "token"),
        (json!({ "holder": "me", "token": 1, "ttl_ms": 1 }), "ttl_ms"),
    ] {
        let reply = server.post(&format!("{LOCK}/refresh"), &body);
        let problem = reply.problem(400, "invalid-body");
        assert!(problem.to_string().contains(field), "{body} gave {problem}");
    }
    for query in ["", "?holder=me", "?token=1", "?holder=me&token=x", "?holder=&token=1"] {
        server.delete(&format!("{LOCK}{query}")).any_problem(400);
    }
    server.get(LOCK).any_problem(404);
    acquire(&server, LOCK, &"h".repeat(512), 1).expect(201);
}

/// HL-15, DQ-11: a lock is durable. During the drain no lock is
/// granted, while work that began under a lock may end under it.
#[test]
fn a_lock_survives_a_restart_and_the_drain() {
    let mut server = Setup::new().text("server", "drain_timeout", "25s").start();
    let lock = acquire(&server, LOCK, "me", HOUR_MS).expect(201);
    server.kill_and_boot();
    let kept = server.get(LOCK).expect(200);
    for field in ["key", "holder", "acquired_at"] {
        assert_eq!(kept[field], lock[field], "{field}");
    }
    assert_eq!(refresh(&server, LOCK, "me", &lock["token"]).expect(200)["token"], lock["token"]);
    assert_held(&acquire(&server, LOCK, "you", HOUR_MS), "me", &lock);

    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    server.terminate();
    let refused = eventually("a refusal during the drain", &server.log, || {
        let reply = acquire(&server, "/v1/locks/third", "me", HOUR_MS);
        (reply.status == 503).then_some(reply)
    });
    refused.problem(503, "draining");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    server.get(LOCK).expect(200);
    refresh(&server, LOCK, "me", &lock["token"]).expect(200);
    release(&server, LOCK, "me", &lock["token"]);
    server.journal.open_gate("go");
}

/// HL-8, HL-9, C21: a database without a table of locks is reported, and distinguished from a
/// failing database; all other requests are served.
#[test]
fn a_database_without_locks_has_its_own_problem() {
    let server = Server::usual();
    let database = Connection::open(server.home.data().join("greenroom.db")).unwrap();
    database.execute_batch("DROP TABLE locks").unwrap();
    let refused = acquire(&server, LOCK, "me", 1_000);
    refused.problem(503, "locks-absent");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    server.get(LOCK).problem(503, "locks-absent");
    release(&server, LOCK, "me", &json!(1));
    server.complete("work", "still served");
    assert_eq!(server.get("/readyz").status, 200);

    database.execute_batch("CREATE VIEW locks AS SELECT * FROM gone").unwrap();
    let query = format!("{LOCK}?holder=me&token=1");
    let refresh = refresh(&server, LOCK, "me", &json!(1));
    for reply in [acquire(&server, LOCK, "me", 1_000), refresh, server.delete(&query)] {
        let problem = reply.problem(503, "storage-unavailable");
        assert!(!problem.to_string().contains("gone"), "{problem}");
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    server.complete("work", "still served");
}
