//! Compactions that a group orders by itself, when the context is nearly full.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// A turn that leaves the context nearly full, and nearly empty.
const FULL: &str = "[[usage:950:1000]]";
const EMPTY: &str = "[[usage:100:1000]]";

/// Runs a turn, and all that it calls for.
#[track_caller]
fn turn_and_rest(server: &Server, prompt: &str) {
    server.complete("work", prompt);
    server.wait_group("work", "an idle group", |group| group["status"] == "idle");
}

/// How many compactions the group has ordered by itself, and all of them are over.
#[track_caller]
fn ordered(server: &Server) -> usize {
    let tasks = server.auto_compactions("work");
    for task in &tasks {
        server.finish(task);
    }
    tasks.len()
}

/// DQ-5, DQ-4: a real `usage_update` of a real process over the threshold makes the compaction
/// run, in the same process, once the turn has settled.
#[test]
fn the_whole_path_is_live() {
    let server = Server::usual();
    server.journal.script("on-compact", EMPTY);
    let running = server.submit("work", &format!("{FULL}[[gate:go]]"));
    server.journal.wait_gate("go");
    server.wait_group("work", "the usage", |group| group["usage"]["used"] == 950);
    assert!(server.auto_compactions("work").is_empty(), "not before the turn has settled");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    let tasks = server.auto_compactions("work");
    assert_eq!(tasks.len(), 1, "{tasks:?}\n{}", server.log.tail());
    let task = server.finish_as(&tasks[0], "completed");
    assert_eq!((&task["kind"], &task["origin"]), (&json!("compaction"), &json!("auto")));
    assert_eq!(server.compaction_of(&task)["status"], "completed");
    assert_eq!(server.journal.prompts()[1], "/compact");
    assert_eq!(server.journal.events_named("start").len(), 1, "no second process");
    server.assert_compacted("work", 1);
    turn_and_rest(&server, EMPTY);
    assert_eq!(ordered(&server), 1, "below the threshold nothing is ordered");
}

/// DQ-6: an agent that reports no usage is never compacted by itself, however much it says.
#[test]
fn no_usage_no_compaction() {
    let server = Server::usual();
    turn_and_rest(&server, "[[chunks:2000:1000]][[tokens:900000:900000]]");
    turn_and_rest(&server, "next");
    assert_eq!(ordered(&server), 0);
    assert_eq!(server.journal.prompts().len(), 2);
}

/// ARCHITECTURE 5: at the threshold it fires, just below it does not; the default is 0.85.
#[test]
fn the_threshold_is_exact() {
    let server = Server::usual();
    server.journal.script("on-compact", EMPTY);
    turn_and_rest(&server, "[[usage:849:1000]]");
    assert_eq!(ordered(&server), 0);
    turn_and_rest(&server, "[[usage:850:1000]]");
    assert_eq!(ordered(&server), 1);
    turn_and_rest(&server, "[[usage:0:0]]");
    assert_eq!(ordered(&server), 1, "no window, no share of it");
}

/// API 2, API 4: a group's own `auto_compact` wins over its profile's, that over the default; 0
/// turns it off, in each place.
#[test]
fn threshold_by_group_profile_and_default() {
    let setup = Setup::new()
        .set("defaults", "auto_compact", "0.5")
        .agent("off", &[])
        .set("agents.off", "auto_compact", "0")
        .agent("late", &[])
        .set("agents.late", "auto_compact", "0.9");
    let server = setup.start();
    server.journal.script("on-compact", EMPTY);
    #[rustfmt::skip]
    let cases = [
        ("default",  json!({ "agent": "scripted" }),                         "[[usage:500:1000]]", 1),
        ("below",    json!({ "agent": "scripted" }),                         "[[usage:499:1000]]", 0),
        ("off",      json!({ "agent": "off" }),                              "[[usage:999:1000]]", 0),
        ("late",     json!({ "agent": "late" }),                             "[[usage:899:1000]]", 0),
        ("late-hit", json!({ "agent": "late" }),                             "[[usage:900:1000]]", 1),
        ("put",      json!({ "agent": "off", "auto_compact": 0.2 }),         "[[usage:200:1000]]", 1),
        ("put-off",  json!({ "agent": "scripted", "auto_compact": 0 }),      "[[usage:999:1000]]", 0),
        ("put-late", json!({ "agent": "scripted", "auto_compact": 0.95 }),   "[[usage:949:1000]]", 0),
    ];
    for (group, body, prompt, expected) in cases {
        server.put(&format!("/v1/groups/{group}"), &body).expect(201);
        server.complete(group, prompt);
        let tasks = server.auto_compactions(group);
        assert_eq!(tasks.len(), expected, "{group}: {tasks:?}\n{}", server.log.tail());
        for task in &tasks {
            server.finish_as(task, "completed");
        }
    }
}

/// DQ-4, I8: it overtakes the waiting turns, after a turn that failed or was cut off likewise.
#[test]
fn runs_ahead_of_waiting_turns() {
    for (end, state) in [
        ("", "completed"),
        ("[[error:-32602:no]]", "failed"),
        ("[[refuse]]", "completed"),
        ("[[die:3]]", "interrupted"),
    ] {
        let server = Server::usual();
        server.journal.script("on-compact", EMPTY);
        let running = server.submit("work", &format!("[[reply:x]]{FULL}[[gate:go]]{end}"));
        server.journal.wait_gate("go");
        let waiting = [server.submit("work", "one"), server.submit("work", "two")];
        server.journal.open_gate("go");
        server.finish_as(&running, state);
        for task in &waiting {
            server.finish_as(task, "completed");
        }
        assert_eq!(server.journal.prompts()[1..], ["/compact", "one", "two"], "after {state}");
        assert_eq!(ordered(&server), 1);
        server.journal.assert_one_at_a_time();
    }
}

/// DQ-3, I8: where a compaction waits already, no second one is ordered.
#[test]
fn joins_one_that_waits() {
    let server = Server::usual();
    server.journal.script("on-compact", EMPTY);
    let running = server.submit("work", &format!("{FULL}[[gate:go]]"));
    server.journal.wait_gate("go");
    let asked = server.compact("work");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish_as(&asked, "completed");
    turn_and_rest(&server, EMPTY);
    assert_eq!(ordered(&server), 0);
    assert_eq!(server.list("work", "tasks?kind=compaction").len(), 1);
}

/// API 4: a profile that cannot be compacted is left alone.
#[test]
fn strategy_none_orders_nothing() {
    let none = "{ strategy = \"none\" }";
    let server = Setup::new().set("agents.scripted", "compaction", none).start();
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 0);
    assert_eq!(server.journal.prompts(), [FULL]);
}

/// DQ-5 with the strategy `rotate`: the next turn is led by the summary, in a new session.
#[test]
fn rotates_by_itself() {
    let server = Setup::new().rotates().start();
    server.journal.script("on-summary", "[[reply:what was said so far]]");
    let old = {
        server.complete("work", "first");
        server.session("work")
    };
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1);
    assert_ne!(server.session("work"), old);
    server.complete("work", "[[reply:x]]");
    let led = server.journal.prompts_of(&server.session("work"));
    assert!(led[0].contains("what was said so far"), "{led:?}");
}

/// I12, HL-14: two in a row that freed less than a tenth are the last, over a restart too; then it
/// fires again once somebody acts, by a compaction over HTTP or by a PUT.
#[test]
fn stops_when_it_does_not_help() {
    let mut server = Server::usual();
    let in_vain = "[[usage:900:1000]]";
    server.journal.script("on-compact", in_vain);
    for _ in 0..4 {
        turn_and_rest(&server, FULL);
    }
    assert_eq!(ordered(&server), 2, "{}", server.log.tail());
    server.kill_and_boot();
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 2, "also after a restart");
    server.finish_as(&server.compact("work"), "completed");
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 3, "a compaction over HTTP sets it going");
    for _ in 0..3 {
        turn_and_rest(&server, FULL);
    }
    let before = ordered(&server);
    assert!(before <= 5, "and it stops again: {before}");
    server.put("/v1/groups/work", &json!({ "auto_compact": 0.8 })).expect(200);
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), before + 1, "a PUT sets it going");
}

/// I12: one that helps in between keeps it going: only two in a row stop it, and a compaction of
/// the agent's own that frees enough sets it going again.
#[test]
fn a_later_one_that_helps_sets_it_going() {
    let server = Server::usual();
    let mut expected = 0;
    for effect in [FULL, EMPTY, FULL, EMPTY, FULL] {
        server.journal.script("on-compact", effect);
        turn_and_rest(&server, FULL);
        expected += 1;
        assert_eq!(ordered(&server), expected, "{}", server.log.tail());
    }
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), expected + 1, "the second in a row that freed nothing");
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), expected + 1, "stopped");
    let own = "[[compaction:in_progress:own]][[compaction:completed:own]]";
    turn_and_rest(&server, &format!("{own}{EMPTY}"));
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), expected + 2, "the agent's own has helped");
}

/// HL-14, I12: after a failure it does not fire at every turn; the cooldown outlives a restart, and
/// holds nobody back who asks for a compaction.
#[test]
fn cooldown_after_a_failure_is_durable() {
    let mut server = Server::usual();
    server.journal.script("on-compact", "[[error:-32602:no]]");
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1);
    assert_eq!(server.auto_compactions("work")[0]["state"], "failed");
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1, "it cools down");
    server.kill_and_boot();
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1, "also after a restart");
    server.journal.script("on-compact", EMPTY);
    let asked = server.compact("work");
    assert_eq!(asked["origin"], "api");
    server.finish_as(&asked, "completed");
    server.assert_compacted("work", 1);
}

/// HL-14, I12: a lock that another program keeps delays one turn by `compaction_timeout`, and not
/// each later one; over a restart too. A caller may order a compaction all the same.
#[test]
fn a_held_lock_is_followed_by_a_rest() {
    let mut server = Setup::new().text("defaults", "compaction_timeout", "300ms").start();
    server.complete("work", EMPTY);
    let lock = server.take_lock(&server.session("work"), "outside").expect_any(&[200, 201]);
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1);
    assert_eq!(server.auto_compactions("work")[0]["state"], "skipped");
    turn_and_rest(&server, FULL);
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1, "it rests");
    server.kill_and_boot();
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 1, "also after a restart");
    server.release_lock(&lock);
    server.journal.script("on-compact", EMPTY);
    server.finish_as(&server.compact("work"), "completed");
    turn_and_rest(&server, FULL);
    assert_eq!(ordered(&server), 2, "one that is done ends the rest");
}

/// HL-14: so does one that was cancelled, as it waited or as it ran.
#[test]
fn a_cancelled_one_is_followed_by_a_rest() {
    for waits in [true, false] {
        let server = Server::usual();
        server.journal.script("on-compact", "[[gate:compacts]]");
        server.complete("work", EMPTY);
        if waits {
            server.take_lock(&server.session("work"), "outside").expect_any(&[200, 201]);
        }
        server.complete("work", FULL);
        let task = server.auto_compactions("work").remove(0);
        if !waits {
            server.journal.wait_gate("compacts");
        }
        server.cancel(&task).expect(202);
        server.finish_as(&task, "cancelled");
        turn_and_rest(&server, FULL);
        assert_eq!(ordered(&server), 1, "it rests");
    }
}

/// DQ-4, RELIABILITY 1: one that waits, ordered in the settlement's own commit, survives kill -9
/// and keeps its place.
#[test]
fn survives_a_restart() {
    let mut server = Setup::new().set("limits", "running_groups", 1).start();
    server.journal.script("on-compact", EMPTY);
    let full = server.submit("work", &format!("{FULL}[[gate:go]]"));
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waiting");
    // The only slot goes to the group that has waited longest: the compaction waits for it.
    server.submit("other", "[[gate:other]]");
    server.wait_group("other", "a group that waits", |group| group["status"] == "waiting");
    server.journal.open_gate("go");
    server.finish_as(&full, "completed");
    server.journal.wait_gate("other");
    let tasks: Vec<Value> = server.auto_compactions("work");
    assert_eq!(tasks.len(), 1, "{}", server.log.tail());
    assert_eq!(tasks[0]["state"], "queued");
    server.kill_and_boot();
    server.finish_as(&tasks[0], "completed");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.journal.prompts_of(&server.session("work"))[1..], ["/compact", "waiting"]);
}
