//! The compaction lock, shared with external programs.

use std::{thread, time::Duration};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, server::encode};

/// Starts a server and runs one turn in its group; returns the group's session too.
fn start_with_session(setup: Setup) -> (Server, String) {
    let server = setup.start();
    server.complete("work", "first");
    let session = server.session("work");
    (server, session)
}

/// A-5, API-2, HL-2, HL-13, R-1, AM-4, I12: while another program holds the lock, the compaction
/// visibly waits, and so do the turns after it. It can be cancelled; it still waits, first in the
/// queue, after the server was killed or stopped, and runs when the lock is released.
#[test]
fn a_compaction_waits_for_an_external_holder() {
    let (mut server, session) = start_with_session(Setup::new());
    let lock = server.acquire_lock(&session, "outside").expect_any(&[200, 201]);
    let waits = |server: &Server| {
        server.wait_group("work", "a group that waits", |group| {
            group["status"] == "waiting" && group["blocked_by"] == "lock"
        })
    };
    let cancelled = server.compact("work");
    assert_eq!(waits(&server)["queue_length"], 1);
    let waiting = server.submit("work", "waiting");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.lock(&session).expect(200)["holder"], "outside");

    let compaction = server.compact("work");
    waits(&server);
    let later = server.submit("work", "later");
    // A whole turn of another group: meanwhile a wrong claim would become visible.
    server.complete("other", "other");
    let task = server.task(&compaction);
    assert_eq!((&task["state"], &task["blocked_by"]), (&json!("queued"), &json!("lock")));
    assert_eq!(server.task(&later)["state"], "queued");
    server.kill_and_boot();
    assert_eq!(server.lock(&session).expect(200)["holder"], "outside");
    waits(&server);
    server.restart();
    waits(&server);
    assert_eq!(server.journal.prompts_of(&session), ["first", "waiting"]);
    server.release_lock(&lock);
    server.finish_as(&compaction, "completed");
    server.finish_as(&later, "completed");
    assert_eq!(server.journal.prompts_of(&session), ["first", "waiting", "/compact", "later"]);
    server.assert_compacted("work", 1);
}

/// HL-2, HL-6, HL-7, A-5: if the lock is held past `compaction_timeout`, the compaction is
/// `skipped`: no agent is prompted, the external lock is unchanged, and the turns run. A lock that
/// greenroom holds as long, while its compaction waits for a slot, is released.
#[test]
fn waiting_for_and_holding_the_lock_have_a_deadline() {
    let setup = Setup::new()
        .text("defaults", "compaction_timeout", "500ms")
        .text("defaults", "turn_timeout", "2s")
        .set("limits", "running_groups", 1);
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
    assert_eq!(seen["holder"], "outside");
    server.release_lock(&lock);
    server.lock(&session).expect(404);

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

/// HL-15, HL-4, HL-5, HL-6, HL-7: while greenroom compacts, programs can read its holder, none can
/// take, extend or release its lock, by whatever proof, also not after its lease, which is
/// refreshed; each acquisition has a new holder.
#[test]
fn greenroom_holds_the_lock_while_it_compacts() {
    let (server, session) = start_with_session(Setup::new().text("defaults", "lock_ttl", "2s"));
    server.lock(&session).any_problem(404);
    let mut seen: Vec<(Value, i64)> = Vec::new();
    for gate in ["one", "two"] {
        let compaction = server.compact_with("work", &format!("[[gate:{gate}]]"));
        server.journal.wait_gate(gate);
        let lock = server.lock(&session).expect(200);
        assert_eq!(lock["key"], session);
        let holder = lock["holder"].as_str().unwrap();
        let token = token_of(&server, &session);
        for name in ["outside", holder] {
            let body = json!({ "holder": name, "token": token });
            server.post(&format!("/v1/locks/{session}/refresh"), &body).problem(409, "lock-held");
            let query = format!("?holder={}&token={token}", encode(name));
            server.delete(&format!("/v1/locks/{session}{query}")).expect(204);
            server.acquire_lock(&session, name).problem(409, "lock-held");
        }
        let extended = eventually("a refresh of the lease", &server.log, || {
            let refused = server.acquire_lock(&session, "outside").problem(409, "lock-held");
            assert_eq!(refused["holder"], lock["holder"]);
            Some(server.lock(&session).expect(200))
                .filter(|now| now["expires_at"] != lock["expires_at"])
        });
        assert_eq!(extended["holder"], lock["holder"]);
        assert_eq!(token_of(&server, &session), token);
        server.journal.open_gate(gate);
        server.finish_as(&compaction, "completed");
        server.lock(&session).any_problem(404);
        seen.push((lock, token));
    }
    assert_ne!(seen[0].0["holder"], seen[1].0["holder"], "unique per acquire");
    assert!(seen[0].1 < seen[1].1, "the token grows");
}

/// The token of a lock, which greenroom shows to no other program.
fn token_of(server: &Server, key: &str) -> i64 {
    let database = server.writable_database();
    database.query_row("SELECT token FROM locks WHERE key = ?", [key], |row| row.get(0)).unwrap()
}

/// HL-11, DQ-12: a compaction whose lock is lost while its agent compacts, by another holder or by
/// the loss of its row, ends `failed`; the session, its segment and the agent stay.
#[test]
fn a_lock_that_is_lost_in_mid_compaction_fails_it_alone() {
    let rotate = "{ strategy = \"rotate\" }";
    let setup = Setup::new().agent("rotates", &[]).set("agents.rotates", "compaction", rotate);
    let (server, _) = start_with_session(setup);
    server.put("/v1/groups/rotated", &json!({ "agent": "rotates" })).expect(201);
    server.complete("rotated", "first");
    let losses = ["DELETE FROM locks", "UPDATE locks SET holder = 'thief', token = token + 1"];
    for group in ["work", "rotated"] {
        let run = server.group(group)["current_run"].clone();
        for (number, loss) in losses.iter().enumerate() {
            let gate = format!("{group}-{number}");
            let session = server.session(group);
            let compaction = server.compact_with(group, &format!("[[gate:{gate}]]"));
            server.journal.wait_gate(&gate);
            let database = server.writable_database();
            database.busy_timeout(Duration::from_secs(5)).unwrap();
            database.execute(loss, []).unwrap();
            server.journal.open_gate(&gate);
            let ended = server.finish_as(&compaction, "failed");
            let message = ended["error"]["message"].as_str().unwrap();
            assert!(message.contains("lost the lock"), "{ended}");
            assert!(message.ends_with("the session is unchanged"), "{ended}");
            assert_eq!(server.compaction_of(&compaction)["status"], "failed");
            server.assert_compacted(group, 0);
            assert_eq!(server.session(group), session);
            server.complete(group, "after");
            assert_eq!(server.group(group)["current_run"], run, "the agent is alive");
            database.execute("DELETE FROM locks", []).unwrap();
        }
    }
}

/// HL-2, HL-14, I12: while another program holds the lock, a compaction that the group orders by
/// itself delays no turn; the group shows what keeps it from compacting, also after a restart.
#[test]
fn an_automatic_compaction_steps_back_from_an_external_holder() {
    let setup = Setup::new().set("defaults", "auto_compact", 0.5);
    let (mut server, session) = start_with_session(setup);
    assert_eq!(server.group("work")["compaction"], Value::Null);
    let lock = server.acquire_lock(&session, "outside").expect(201);
    server.complete("work", "[[usage:900:1000]]");
    server.complete("work", "next");
    let skipped = &server.get("/v1/groups/work/compactions").expect(200)["items"][0];
    assert_eq!(skipped["status"], "skipped", "{skipped}");
    assert!(skipped["error"].as_str().unwrap().contains("outside"), "{skipped}");
    for _ in 0..2 {
        let group = server.group("work");
        let shown = &group["compaction"];
        assert_eq!((&shown["blocked_by"], &shown["count"]), (&json!("lock"), &json!(0)), "{shown}");
        assert!(shown["paused_until"].is_string(), "{shown}");
        assert_eq!((&group["blocked_by"], &group["status"]), (&Value::Null, &json!("idle")));
        server.kill_and_boot();
    }
    server.complete("work", "[[usage:900:1000]]");
    assert_eq!(server.journal.prompts_of(&session).iter().filter(|p| *p == "/compact").count(), 0);
    server.release_lock(&lock);
    let compaction = server.compact("work");
    server.finish_as(&compaction, "completed");
    let shown = &server.group("work")["compaction"];
    assert_eq!((&shown["blocked_by"], &shown["paused_until"]), (&Value::Null, &Value::Null));
}

/// HL-1, HL-15: if greenroom and an external program acquire one lock simultaneously, one at a time
/// holds it, and greenroom compacts once.
#[test]
fn greenroom_and_an_external_program_race_for_the_lock() {
    let server = Server::usual();
    // One race after another, and then all compactions at once: a lost race costs a second.
    let races = (0..8).map(|round| {
        let group = format!("g{round}");
        server.complete(&group, "first");
        let session = server.session(&group);
        let (compaction, acquired) = thread::scope(|scope| {
            let acquiring = scope.spawn(|| server.acquire_lock(&session, "outside"));
            (server.compact(&group), acquiring.join().unwrap())
        });
        if acquired.status == 409 {
            assert_ne!(acquired.problem(409, "lock-held")["holder"], "outside");
        } else {
            server.release_lock(&acquired.expect_any(&[200, 201]));
        }
        (group, session, compaction)
    });
    for (group, session, compaction) in &races.collect::<Vec<_>>() {
        server.finish_as(compaction, "completed");
        server.lock(session).any_problem(404);
        assert_eq!(server.journal.prompts_of(session), ["first", "/compact"]);
        server.assert_compacted(group, 1);
    }
}

/// HL-8, I16: without the table of locks a compaction, also by `rotate`, runs, once, and reports it
/// by a frame and a warning that names the remedy. Nothing spins, and the next compaction does the
/// same.
#[test]
fn a_compaction_runs_without_the_table_of_locks() {
    let rotate = "{ strategy = \"rotate\" }";
    let setup = Setup::new().agent("rotates", &[]).set("agents.rotates", "compaction", rotate);
    let (server, session) = start_with_session(setup);
    server.put("/v1/groups/rotated", &json!({ "agent": "rotates" })).expect(201);
    server.complete("rotated", "first");
    let old = server.session("rotated");
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
    server.finish_as(&server.compact("rotated"), "completed");
    assert_ne!(server.session("rotated"), old);
    server.assert_compacted("rotated", 1);
    assert_eq!(server.frames_of_kind("rotated", "greenroom/lock_bypassed").len(), 1);
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
