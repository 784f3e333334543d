//! The compaction lock, shared with programs outside greenroom.

use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually};

/// A server whose group has had one turn, and its session.
fn with_a_session(setup: Setup) -> (Server, String) {
    let server = setup.start();
    server.complete("work", "first");
    let session = server.session("work");
    (server, session)
}

/// ARCHITECTURE 5, HL-2, HL-13: while another holds the lock, the compaction waits, visibly, and
/// the turns behind it; it runs when the lock is released.
#[test]
fn waits_for_a_holder_outside() {
    let (server, session) = with_a_session(Setup::new());
    let lock = server.take_lock(&session, "outside").expect_any(&[200, 201]);
    let compaction = server.compact("work");
    let group = server.wait_group("work", "a group that waits", |group| {
        group["status"] == "waiting" && group["blocked_by"] == "lock"
    });
    assert_eq!(group["queue_length"], 1);
    let waiting = server.submit("work", "waiting");
    // Another group's whole turn: time in which a wrong claim would show.
    server.complete("other", "other");
    let task = server.task(&compaction);
    assert_eq!((&task["state"], &task["blocked_by"]), (&json!("queued"), &json!("lock")));
    assert_eq!(server.task(&waiting)["state"], "queued");
    assert_eq!(server.journal.prompts_of(&session), ["first"]);
    server.release_lock(&lock);
    server.finish_as(&compaction, "completed");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.journal.prompts_of(&session), ["first", "/compact", "waiting"]);
    server.assert_compacted("work", 1);
}

/// ARCHITECTURE 5: a lease that runs out, its holder silent, lets the compaction run.
#[test]
fn an_expired_lease_is_no_lock() {
    let (server, session) = with_a_session(Setup::new());
    let body = json!({ "holder": "outside", "ttl_ms": 700 });
    server.put(&format!("/v1/locks/{session}"), &body).expect_any(&[200, 201]);
    let compaction = server.compact("work");
    server.finish_as(&compaction, "completed");
    server.assert_compacted("work", 1);
}

/// HL-2, ARCHITECTURE 5: held past `compaction_timeout` the compaction is `skipped`: nobody was
/// prompted, the other's lock is untouched, and the turns run on.
#[test]
fn gives_up_after_the_timeout() {
    let setup = Setup::new().text("defaults", "compaction_timeout", "300ms");
    let (server, session) = with_a_session(setup);
    let lock = server.take_lock(&session, "outside").expect_any(&[200, 201]);
    let compaction = server.compact("work");
    let waiting = server.submit("work", "waiting");
    server.finish_as(&compaction, "skipped");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.compaction_of(&compaction)["status"], "skipped");
    assert_eq!(server.journal.prompts_of(&session), ["first", "waiting"]);
    server.assert_compacted("work", 0);
    let seen = server.lock(&session).expect(200);
    assert_eq!((&seen["holder"], &seen["token"]), (&json!("outside"), &lock["token"]));
}

/// API 2: one that waits for the lock can be cancelled, and the turns behind it run.
#[test]
fn can_be_cancelled() {
    let (server, session) = with_a_session(Setup::new());
    server.take_lock(&session, "outside").expect_any(&[200, 201]);
    let compaction = server.compact("work");
    let waiting = server.submit("work", "waiting");
    eventually("the wait for the lock", &server.log, || {
        (server.task(&compaction)["blocked_by"] == "lock").then_some(())
    });
    server.cancel(&compaction).expect(202);
    server.finish_as(&compaction, "cancelled");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.lock(&session).expect(200)["holder"], "outside");
    assert_eq!(server.journal.prompts_of(&session), ["first", "waiting"]);
}

/// RELIABILITY 1, AM-4: one that waits for the lock still waits after kill -9, behind nobody, and
/// runs when the lock, which outlives the restart too, is released.
#[test]
fn waits_on_after_a_restart() {
    let (mut server, session) = with_a_session(Setup::new());
    let lock = server.take_lock(&session, "outside").expect_any(&[200, 201]);
    let compaction = server.compact("work");
    eventually("the wait for the lock", &server.log, || {
        (server.task(&compaction)["blocked_by"] == "lock").then_some(())
    });
    server.kill_and_boot();
    assert_eq!(server.lock(&session).expect(200)["holder"], "outside");
    eventually("the wait for the lock, again", &server.log, || {
        (server.task(&compaction)["blocked_by"] == "lock").then_some(())
    });
    server.release_lock(&lock);
    server.finish_as(&compaction, "completed");
    server.assert_compacted("work", 1);
}

/// HL-15, HL-4, HL-5: while greenroom compacts, everybody reads its holder, nobody takes the lock
/// from it, and it is another holder at each time.
#[test]
fn greenroom_holds_it_while_it_compacts() {
    let (server, session) = with_a_session(Setup::new());
    server.lock(&session).any_problem(404);
    let mut seen: Vec<Value> = Vec::new();
    for gate in ["one", "two"] {
        let compaction = server.compact_with("work", &format!("[[gate:{gate}]]"));
        server.journal.wait_gate(gate);
        let lock = server.lock(&session).expect(200);
        for name in ["key", "holder", "token", "acquired_at", "expires_at"] {
            assert!(lock.get(name).is_some(), "no {name} in {lock}");
        }
        assert_eq!(lock["key"], session);
        let refused = server.take_lock(&session, "outside").problem(409, "lock-held");
        assert_eq!(refused["holder"], lock["holder"]);
        assert!(refused["expires_at"].is_string(), "{refused}");
        let body = json!({ "holder": "outside", "token": lock["token"] });
        server.post(&format!("/v1/locks/{session}/refresh"), &body).any_problem(409);
        server.delete(&format!("/v1/locks/{session}?holder=outside&token=1")).expect(204);
        assert_eq!(server.lock(&session).expect(200)["holder"], lock["holder"]);
        server.journal.open_gate(gate);
        server.finish_as(&compaction, "completed");
        server.lock(&session).any_problem(404);
        seen.push(lock);
    }
    assert_ne!(seen[0]["holder"], seen[1]["holder"], "unique per acquire");
    assert!(seen[0]["token"].as_i64() < seen[1]["token"].as_i64(), "the token grows");
}

/// HL-7: the lock is free after every outcome: success, error, cancel, deadline, the agent's
/// death, and the server's.
#[test]
fn free_after_every_outcome() {
    let setup = || Setup::new().text("defaults", "compaction_timeout", "20s");
    for focus in ["[[reply:x]]", "[[error:-32602:no]]", "[[reply:x]][[die:3]]", "[[gate:cancel]]"] {
        let (server, session) = with_a_session(setup());
        let compaction = server.compact_with("work", focus);
        if focus == "[[gate:cancel]]" {
            server.journal.wait_gate("cancel");
            server.cancel(&compaction).expect(202);
        }
        server.finish(&compaction);
        server.lock(&session).any_problem(404);
        server.take_lock(&session, "outside").expect_any(&[200, 201]);
    }
    let short = setup().text("defaults", "compaction_timeout", "300ms");
    let (server, session) = with_a_session(short);
    server.finish(&server.compact_with("work", "[[gate:never]]"));
    server.lock(&session).any_problem(404);
    let (mut server, session) = with_a_session(setup());
    let compaction = server.compact_with("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.kill_and_boot();
    server.finish_as(&compaction, "interrupted");
    server.lock(&session).any_problem(404);
    assert_eq!(server.only_compaction("work")["status"], "abandoned");
}

/// HL-6: a compaction that takes longer than its lease keeps it: it is refreshed, not stolen.
#[test]
fn a_long_compaction_keeps_its_lease() {
    let (server, session) = with_a_session(Setup::new().text("defaults", "lock_ttl", "2s"));
    let compaction = server.compact_with("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let lock = server.lock(&session).expect(200);
    let extended = eventually("a refresh of the lease", &server.log, || {
        server.take_lock(&session, "outside").problem(409, "lock-held");
        Some(server.lock(&session).expect(200))
            .filter(|now| now["expires_at"] != lock["expires_at"])
    });
    assert_eq!((&extended["holder"], &extended["token"]), (&lock["holder"], &lock["token"]));
    server.journal.open_gate("go");
    server.finish_as(&compaction, "completed");
    server.assert_compacted("work", 1);
}

/// HL-1, HL-15: greenroom and a program outside that want one session at once: one of them at a
/// time has it, and greenroom compacts once.
#[test]
fn two_parties_race() {
    for _ in 0..8 {
        let (server, session) = with_a_session(Setup::new());
        let (compaction, taken) = thread::scope(|scope| {
            let taking = scope.spawn(|| server.take_lock(&session, "outside"));
            (server.compact("work"), taking.join().unwrap())
        });
        if taken.status == 409 {
            assert_ne!(taken.problem(409, "lock-held")["holder"], "outside");
        } else {
            server.release_lock(&taken.expect_any(&[200, 201]));
        }
        server.finish_as(&compaction, "completed");
        server.lock(&session).any_problem(404);
        assert_eq!(server.journal.prompts_of(&session), ["first", "/compact"]);
        server.assert_compacted("work", 1);
    }
}

/// HL-8, I16: without the lock's table the compaction goes on, once, and says so: a frame, and a
/// warning that names the remedy. Nothing spins, and the next one does the same.
#[test]
fn goes_on_without_the_table() {
    let (server, session) = with_a_session(Setup::new());
    drop_lock_tables(&server);
    for number in 1..=2 {
        let compaction = server.compact("work");
        let waiting = server.submit("work", &format!("after {number}"));
        server.finish_as(&compaction, "completed");
        server.finish_as(&waiting, "completed");
        server.assert_compacted("work", number);
        let bypassed = server.frames_of_kind("work", "greenroom/lock_bypassed");
        assert_eq!(bypassed.len(), number, "{bypassed:?}");
    }
    let remedy = server.log.wait("a warning that names the remedy", |line| {
        line.contains("WARN") && (line.contains("restart") || line.contains("upgrade"))
    });
    assert!(remedy.contains("lock"), "{remedy}");
    let prompts = server.journal.prompts_of(&session);
    assert_eq!(prompts, ["first", "/compact", "after 1", "/compact", "after 2"]);
    let warnings = server.log.lines().into_iter().filter(|line| {
        line.contains("WARN") && line.contains("lock") && line.contains("group=work")
    });
    assert!(warnings.count() <= 2, "once a compaction");
}

/// HL-8: the strategy `rotate` likewise; the unique index still keeps the lineage in one line.
#[test]
fn rotates_without_the_table() {
    let (server, old) = with_a_session(Setup::new().rotates());
    drop_lock_tables(&server);
    server.finish_as(&server.compact("work"), "completed");
    assert_ne!(server.session("work"), old);
    server.assert_compacted("work", 1);
    assert_eq!(server.frames_of_kind("work", "greenroom/lock_bypassed").len(), 1);
}

/// Drops what the database keeps locks in, as an older version that had none would show it.
#[track_caller]
fn drop_lock_tables(server: &Server) {
    let database: Connection = server.writable_database();
    database.busy_timeout(Duration::from_secs(5)).unwrap();
    let mut query =
        database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").unwrap();
    let names = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let names: Vec<String> = names.map(Result::unwrap).collect();
    drop(query);
    let is_of_locks = |name: &&String| {
        name.split('_').any(|word| ["lock", "locks", "lease", "leases"].contains(&word))
    };
    let locks: Vec<&String> = names.iter().filter(is_of_locks).collect();
    assert!(!locks.is_empty(), "a table of locks among {names:?}");
    for name in locks {
        database.execute_batch(&format!("DROP TABLE {name}")).unwrap();
    }
}

/// HL-2, I12: a compaction that waits for its lock with no agent running waits on, and runs, after
/// a server that was stopped or killed.
#[test]
fn waits_on_without_an_agent() {
    for kill in [false, true] {
        let (mut server, session) = with_a_session(Setup::new());
        server.post("/v1/groups/work/stop", &json!({})).expect(202);
        server.wait_group("work", "no run", |group| group["current_run"].is_null());
        let lock = server.take_lock(&session, "outside").expect_any(&[200, 201]);
        let compaction = server.compact("work");
        server.wait_group("work", "the wait", |group| group["blocked_by"] == "lock");
        if kill {
            server.kill();
        } else {
            server.terminate();
            server.wait_exit();
        }
        server.boot();
        server.release_lock(&lock);
        server.finish_as(&compaction, "completed");
    }
}

/// AM-13, I4: what an agent says late of sessions that it was taken out of moves nothing, and fills
/// no context but their own.
#[test]
fn sessions_that_were_left_stay_left() {
    let server = Setup::new().rotates().start();
    server.complete("work", "one");
    let first = server.session("work");
    for turn in ["two", "three"] {
        server.finish_as(&server.compact("work"), "completed");
        server.complete("work", turn);
    }
    let last = server.session("work");
    server.complete("work", &format!("[[session:{first}:late]][[reply:done]]"));
    assert_eq!(server.session("work"), last);
    assert_eq!(server.segments("work").len(), 3);
    let text = server.complete("work", "four")["text"].clone();
    assert!(!text.to_string().contains("late"), "{text}");
    server.assert_compacted("work", 2);
}

/// HL-6, HL-7: a lock that was held for as long as one may be, while its compaction waits for a
/// slot, is given back, and stands in nobody's way.
#[test]
fn a_lock_past_its_cap_is_given_back() {
    let setup = Setup::new().set("limits", "running_groups", 1);
    let setup = setup.text("defaults", "turn_timeout", "2s");
    let (server, session) = with_a_session(setup.text("defaults", "compaction_timeout", "500ms"));
    // It heeds no cancel, and keeps the only slot until the ladder has ended it.
    server.submit("other", "[[ignore-cancel]][[gate:never]]");
    server.journal.wait_gate("never");
    let compaction = server.compact("work");
    eventually("the lock is taken", &server.log, || {
        (server.lock(&session).status == 200).then_some(())
    });
    let ended = server.finish_as(&compaction, "skipped");
    assert_eq!(ended["error"]["code"], "lock_lost", "{ended}");
    server.lock(&session).expect(404);
}
