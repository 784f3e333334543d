//! The compaction lock, shared with external programs.

use std::{thread, time::Duration};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually};

/// Starts a server and runs one turn in its group; returns the group's session too.
fn start_with_session(setup: Setup) -> (Server, String) {
    let server = setup.start();
    server.complete("work", "first");
    let session = server.session("work");
    (server, session)
}

/// A-5, HL-2, HL-13: while another program holds the lock, the compaction visibly waits,
/// and so do the turns after it; it runs when the lock is released.
#[test]
fn a_compaction_waits_for_an_external_holder() {
    let (server, session) = start_with_session(Setup::new());
    let lock = server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
    let compaction = server.compact("work");
    let group = server.wait_group("work", "a group that waits", |group| {
        group["status"] == "waiting" && group["blocked_by"] == "lock"
    });
    assert_eq!(group["queue_length"], 1);
    let waiting = server.submit("work", "waiting");
    // A whole turn of another group: meanwhile a wrong claim would become visible.
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

/// when the lease of a silent holder expires, the compaction runs.
#[test]
fn a_compaction_runs_when_the_lease_expires() {
    let (server, session) = start_with_session(Setup::new());
    let body = json!({ "holder": "outside", "ttl_ms": 700 });
    server.put(&format!("/v1/locks/{session}"), &body).expect_any(&[200, 201]);
    let compaction = server.compact("work");
    server.finish_as(&compaction, "completed");
    server.assert_compacted("work", 1);
}

/// HL-2, A-5: if the lock is held past `compaction_timeout`, the compaction is
/// `skipped`: no agent is prompted, the external lock is unchanged, and the turns run.
#[test]
fn a_compaction_is_skipped_after_the_timeout() {
    let setup = Setup::new().text("defaults", "compaction_timeout", "300ms");
    let (server, session) = start_with_session(setup);
    let lock = server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
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

/// API-2: a compaction that waits for the lock can be cancelled, and the turns after it run.
#[test]
fn a_compaction_that_waits_for_the_lock_can_be_cancelled() {
    let (server, session) = start_with_session(Setup::new());
    server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
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

/// R-1, AM-4: a compaction that waits for the lock still waits after kill -9, first in
/// the queue, and runs when the lock, which survives the restart too, is released.
#[test]
fn the_wait_for_the_lock_survives_a_restart() {
    let (mut server, session) = start_with_session(Setup::new());
    let lock = server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
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

/// HL-15, HL-4, HL-5: while greenroom compacts, programs can read its holder, none can take the
/// lock from it, and each acquisition has a new holder.
#[test]
fn greenroom_holds_the_lock_while_it_compacts() {
    let (server, session) = start_with_session(Setup::new());
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
        let refused = server.acquire_lock(&session, "outside").problem(409, "lock-held");
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
fn the_lock_is_free_after_every_outcome() {
    let setup = || Setup::new().text("defaults", "compaction_timeout", "20s");
    for focus in ["[[reply:x]]", "[[error:-32602:no]]", "[[reply:x]][[die:3]]", "[[gate:cancel]]"] {
        let (server, session) = start_with_session(setup());
        let compaction = server.compact_with("work", focus);
        if focus == "[[gate:cancel]]" {
            server.journal.wait_gate("cancel");
            server.cancel(&compaction).expect(202);
        }
        server.finish(&compaction);
        server.lock(&session).any_problem(404);
        server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
    }
    let short = setup().text("defaults", "compaction_timeout", "300ms");
    let (server, session) = start_with_session(short);
    server.finish(&server.compact_with("work", "[[gate:never]]"));
    server.lock(&session).any_problem(404);
    let (mut server, session) = start_with_session(setup());
    let compaction = server.compact_with("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.kill_and_boot();
    server.finish_as(&compaction, "interrupted");
    server.lock(&session).any_problem(404);
    assert_eq!(server.only_compaction("work")["status"], "abandoned");
}

/// HL-6: a compaction that takes longer than its lease keeps the lock, because the lease is
/// refreshed.
#[test]
fn a_long_compaction_keeps_its_lease() {
    let (server, session) = start_with_session(Setup::new().text("defaults", "lock_ttl", "2s"));
    let compaction = server.compact_with("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let lock = server.lock(&session).expect(200);
    let extended = eventually("a refresh of the lease", &server.log, || {
        server.acquire_lock(&session, "outside").problem(409, "lock-held");
        Some(server.lock(&session).expect(200))
            .filter(|now| now["expires_at"] != lock["expires_at"])
    });
    assert_eq!((&extended["holder"], &extended["token"]), (&lock["holder"], &lock["token"]));
    server.journal.open_gate("go");
    server.finish_as(&compaction, "completed");
    server.assert_compacted("work", 1);
}

/// HL-1, HL-15: if greenroom and an external program acquire one lock simultaneously, one at a time
/// holds it, and greenroom compacts once.
#[test]
fn greenroom_and_an_external_program_race_for_the_lock() {
    for _ in 0..8 {
        let (server, session) = start_with_session(Setup::new());
        let (compaction, acquired) = thread::scope(|scope| {
            let acquiring = scope.spawn(|| server.acquire_lock(&session, "outside"));
            (server.compact("work"), acquiring.join().unwrap())
        });
        if acquired.status == 409 {
            assert_ne!(acquired.problem(409, "lock-held")["holder"], "outside");
        } else {
            server.release_lock(&acquired.expect_any(&[200, 201]));
        }
        server.finish_as(&compaction, "completed");
        server.lock(&session).any_problem(404);
        assert_eq!(server.journal.prompts_of(&session), ["first", "/compact"]);
        server.assert_compacted("work", 1);
    }
}

/// HL-8, I16: without the table of locks the compaction runs, once, and reports it by a frame and a
/// warning that names the remedy. Nothing spins, and the next compaction does the same.
#[test]
fn a_compaction_runs_without_the_table_of_locks() {
    let (server, session) = start_with_session(Setup::new());
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
    assert!(warnings.count() <= 2, "one warning per compaction");
}

/// HL-8: the strategy `rotate` likewise; the unique index still prevents a fork of the segments.
#[test]
fn a_rotation_runs_without_the_table_of_locks() {
    let (server, old) = start_with_session(Setup::new().rotates());
    drop_lock_tables(&server);
    server.finish_as(&server.compact("work"), "completed");
    assert_ne!(server.session("work"), old);
    server.assert_compacted("work", 1);
    assert_eq!(server.frames_of_kind("work", "greenroom/lock_bypassed").len(), 1);
}

/// Drops the tables of locks, as in the database of an older version without locks.
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

/// HL-2, I12: a compaction that waits for its lock without a running agent still waits, and then
/// runs, after the server was stopped or killed.
#[test]
fn the_wait_for_the_lock_survives_a_restart_without_an_agent() {
    for kill in [false, true] {
        let (mut server, session) = start_with_session(Setup::new());
        server.post("/v1/groups/work/stop", &json!({})).expect(202);
        server.wait_group("work", "no run", |group| group["current_run"].is_null());
        let lock = server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
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

/// AM-13, I4: late updates of a replaced session do not change the current session, and are counted
/// for the context of the replaced one only.
#[test]
fn late_updates_of_replaced_sessions_change_nothing() {
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

/// HL-6, HL-7: a lock that reaches its maximum time while its compaction waits for a slot is
/// released, so that it blocks no other program.
#[test]
fn a_lock_past_its_cap_is_released() {
    let setup = Setup::new().set("limits", "running_groups", 1);
    let setup = setup.text("defaults", "turn_timeout", "2s");
    let (server, session) =
        start_with_session(setup.text("defaults", "compaction_timeout", "500ms"));
    // This agent ignores the cancel, and keeps the only slot until escalation has ended it.
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
