//! A wrong wall clock, simulated by libfaketime: greenroom neither deletes data because of it, nor
//! runs a request twice (F27). libfaketime does not change the clock by which the server measures
//! elapsed time.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, server::id};

const TURNS: &str = "/v1/groups/work/turns";

/// The path of libfaketime on Debian.
fn fake_clock() -> String {
    let places = fs::read_dir("/usr/lib").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found = places.map(|place| place.join("faketime/libfaketimeMT.so.1"));
    let found = found.find(|library| library.exists()).expect("apt-get install faketime");
    found.to_str().unwrap().to_owned()
}

/// Shifts the server's wall clock by this offset, such as `+3650d`, from its next start on.
fn set_clock(server: &mut Server, offset: &str) {
    server.home.environment =
        vec![("LD_PRELOAD".into(), fake_clock()), ("FAKETIME".into(), offset.into())];
}

/// Waits for the log line of the retention pass that follows the server's last start.
#[track_caller]
fn wait_pass(server: &Server) -> String {
    eventually("a pass of retention", &server.log, || {
        let lines = server.log.lines();
        let started = lines.iter().rposition(|line| line == "--- start ---")?;
        lines[started..].iter().find(|line| line.contains("old transcripts deleted")).cloned()
    })
}

/// Prepares a server that keeps transcripts for a day, and runs a turn with an idempotency key;
/// returns it stopped.
fn stopped() -> (Server, Value) {
    let mut server = Setup::new().set("storage", "retention_days", 1).start();
    let once = server.post_once("key", TURNS, &json!({ "prompt": "once" })).expect(202);
    server.finish_as(&once, "completed");
    server.terminate();
    server.wait_exit();
    (server, once)
}

/// Checks that the turn from before the wrong clock is still stored, and its key is known.
#[track_caller]
fn assert_kept(server: &Server, once: &Value) {
    assert!(wait_pass(server).contains("groups=0 tasks=0 frames=0"), "{}", server.log.tail());
    server.get(&format!("/v1/tasks/{}", id(once))).expect(200);
    assert_eq!(server.frames("work")[0]["seq"], 1);
    let again =
        server.post_once("key", TURNS, &json!({ "prompt": "once" })).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["deduplicated"]), (&once["id"], &json!(true)));
    assert_eq!(server.journal.times("once"), 1);
}

#[test]
fn a_clock_that_is_years_ahead_at_the_start_deletes_nothing() {
    let (mut server, once) = stopped();
    for offset in ["+3650d", "+3d", "+3650d"] {
        set_clock(&mut server, offset);
        server.boot();
        assert_kept(&server, &once);
        let lines = server.log.lines();
        let warned = lines.iter().rfind(|line| line.contains("far ahead"));
        assert!(warned.unwrap().contains("WARN"), "{}", server.log.tail());
        server.complete("work", "under the wrong clock");
        server.terminate();
        server.wait_exit();
    }
    server.home.environment.clear();
    server.boot();
    assert_kept(&server, &once);
}

/// A database of a version that stored no time: the newest time in its log counts.
#[test]
fn the_first_start_of_an_older_database_trusts_its_log() {
    for keeps in [true, false] {
        let (mut server, once) = stopped();
        server.writable_database().execute("DELETE FROM clock", []).unwrap();
        if !keeps {
            server.writable_database().execute("DROP TABLE clock", []).unwrap();
            server.writable_database().pragma_update(None, "user_version", 4).unwrap();
        }
        set_clock(&mut server, "+3650d");
        server.boot();
        assert_kept(&server, &once);
    }
}

/// A clock that was behind when a key was used does not let the key expire.
#[test]
fn a_clock_that_is_behind_at_the_start_expires_no_key() {
    let (mut server, once) = stopped();
    set_clock(&mut server, "-3650d");
    server.boot();
    assert_kept(&server, &once);
    let body = json!({ "prompt": "in the past" });
    let past = server.post_once("past", TURNS, &body).expect(202);
    server.finish_as(&past, "completed");
    server.terminate();
    server.wait_exit();
    server.home.environment.clear();
    server.boot();
    assert_kept(&server, &once);
    let again = server.post_once("past", TURNS, &body).expect_any(&[200, 202]);
    assert_eq!((&again["id"], &again["deduplicated"]), (&past["id"], &json!(true)));
}
