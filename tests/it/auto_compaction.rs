//! Compactions that a group orders automatically when the context is nearly full.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// The words of a turn that leaves the context nearly full, and nearly empty.
const FULL: &str = "[[usage:950:1000]]";
const EMPTY: &str = "[[usage:100:1000]]";

/// Runs a turn, and waits until the group is idle again.
#[track_caller]
fn turn_and_rest(server: &Server, prompt: &str) {
    server.complete("work", prompt);
    server.wait_group("work", "an idle group", |group| group["status"] == "idle");
}

/// Waits for the group's automatic compactions to end, and counts them.
#[track_caller]
fn count_ordered(server: &Server) -> usize {
    let tasks = server.auto_compactions("work");
    for task in &tasks {
        server.finish(task);
    }
    tasks.len()
}

/// DQ-5, DQ-4: a real `usage_update` of a real process over the threshold makes the compaction
/// run, in the same process, once the turn has settled.
#[test]
fn usage_over_the_threshold_starts_a_compaction_after_the_turn() {
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
    assert_eq!(count_ordered(&server), 1, "below the threshold nothing is ordered");
}

/// DQ-6: an agent that reports no usage is never compacted automatically, however much it outputs.
#[test]
fn without_usage_no_compaction_is_ordered() {
    let server = Server::usual();
    turn_and_rest(&server, "[[chunks:2000:1000]][[tokens:900000:900000]]");
    turn_and_rest(&server, "next");
    assert_eq!(count_ordered(&server), 0);
    assert_eq!(server.journal.prompts().len(), 2);
}

/// at the threshold a compaction is ordered, just below it is not; the default is
/// 0.85.
#[test]
fn compaction_is_ordered_exactly_at_the_threshold() {
    let server = Server::usual();
    server.journal.script("on-compact", EMPTY);
    turn_and_rest(&server, "[[usage:849:1000]]");
    assert_eq!(count_ordered(&server), 0);
    turn_and_rest(&server, "[[usage:850:1000]]");
    assert_eq!(count_ordered(&server), 1);
    turn_and_rest(&server, "[[usage:0:0]]");
    assert_eq!(count_ordered(&server), 1, "without a window there is no ratio");
}

/// API-2, API-4: a group's `auto_compact` overrides its profile's, which overrides the default; 0
/// disables it at each level.
#[test]
fn threshold_of_the_group_overrides_profile_and_default() {
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

/// DQ-4, I8: the compaction overtakes the waiting turns, also after a turn that failed or was
/// interrupted.
#[test]
fn automatic_compaction_runs_before_waiting_turns() {
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
        assert_eq!(count_ordered(&server), 1);
        server.journal.assert_one_at_a_time();
    }
}

/// DQ-3, I8: while a compaction is waiting, the group orders no second one.
#[test]
fn no_second_compaction_is_ordered_while_one_waits() {
    let server = Server::usual();
    server.journal.script("on-compact", EMPTY);
    let running = server.submit("work", &format!("{FULL}[[gate:go]]"));
    server.journal.wait_gate("go");
    let requested = server.compact("work");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish_as(&requested, "completed");
    turn_and_rest(&server, EMPTY);
    assert_eq!(count_ordered(&server), 0);
    assert_eq!(server.list("work", "tasks?kind=compaction").len(), 1);
}

/// API-4: no compaction is ordered for a profile that cannot be compacted.
#[test]
fn strategy_none_orders_no_compaction() {
    let none = "{ strategy = \"none\" }";
    let server = Setup::new().set("agents.scripted", "compaction", none).start();
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 0);
    assert_eq!(server.journal.prompts(), [FULL]);
}

/// DQ-5 with the strategy `rotate`: the summary leads the next prompt, in a new session.
#[test]
fn automatic_compaction_can_rotate_the_session() {
    let server = Setup::new().rotates().start();
    server.journal.script("on-summary", "[[reply:what was said so far]]");
    let old = {
        server.complete("work", "first");
        server.session("work")
    };
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1);
    assert_ne!(server.session("work"), old);
    server.complete("work", "[[reply:x]]");
    let prompts = server.journal.prompts_of(&server.session("work"));
    assert!(prompts[0].contains("what was said so far"), "{prompts:?}");
}

/// I12, HL-14: after two compactions in a row that freed less than a tenth, the group orders no
/// more, also after a restart; a compaction over HTTP or a PUT enables it again.
#[test]
fn two_ineffective_compactions_in_a_row_stop_automatic_compaction() {
    let mut server = Server::usual();
    let ineffective = "[[usage:900:1000]]";
    server.journal.script("on-compact", ineffective);
    for _ in 0..4 {
        turn_and_rest(&server, FULL);
    }
    assert_eq!(count_ordered(&server), 2, "{}", server.log.tail());
    server.kill_and_boot();
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 2, "also after a restart");
    server.finish_as(&server.compact("work"), "completed");
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 3, "a compaction over HTTP enables it again");
    for _ in 0..3 {
        turn_and_rest(&server, FULL);
    }
    let before = count_ordered(&server);
    assert!(before <= 5, "it stops again: {before}");
    server.put("/v1/groups/work", &json!({ "auto_compact": 0.8 })).expect(200);
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), before + 1, "a PUT enables it again");
}

/// I12: an effective compaction in between keeps it enabled: only two ineffective ones in a row
/// stop it, and a compaction by the agent itself that frees enough enables it again.
#[test]
fn an_effective_compaction_enables_automatic_compaction_again() {
    let server = Server::usual();
    let mut expected = 0;
    for effect in [FULL, EMPTY, FULL, EMPTY, FULL] {
        server.journal.script("on-compact", effect);
        turn_and_rest(&server, FULL);
        expected += 1;
        assert_eq!(count_ordered(&server), expected, "{}", server.log.tail());
    }
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), expected + 1, "the second in a row that freed nothing");
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), expected + 1, "stopped");
    let by_agent = "[[compaction:in_progress:own]][[compaction:completed:own]]";
    turn_and_rest(&server, &format!("{by_agent}{EMPTY}"));
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), expected + 2, "the agent's own compaction was effective");
}

/// HL-14, I12: after a failure a cooldown prevents a compaction at every turn; it survives a
/// restart, and does not delay a compaction that a caller orders.
#[test]
fn a_failure_starts_a_cooldown_that_survives_a_restart() {
    let mut server = Server::usual();
    server.journal.script("on-compact", "[[error:-32602:no]]");
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1);
    assert_eq!(server.auto_compactions("work")[0]["state"], "failed");
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1, "the cooldown holds");
    server.kill_and_boot();
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1, "also after a restart");
    server.journal.script("on-compact", EMPTY);
    let requested = server.compact("work");
    assert_eq!(requested["origin"], "api");
    server.finish_as(&requested, "completed");
    server.assert_compacted("work", 1);
}

/// HL-14, I12: a lock that another program holds delays one turn by `compaction_timeout`, but not
/// the later ones, also after a restart. A caller may still order a compaction.
#[test]
fn a_held_lock_starts_a_cooldown() {
    let mut server = Setup::new().text("defaults", "compaction_timeout", "300ms").start();
    server.complete("work", EMPTY);
    let lock = server.acquire_lock(&server.session("work"), "outside").expect_any(&[200, 201]);
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1);
    assert_eq!(server.auto_compactions("work")[0]["state"], "skipped");
    turn_and_rest(&server, FULL);
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1, "the cooldown holds");
    server.kill_and_boot();
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 1, "also after a restart");
    server.release_lock(&lock);
    server.journal.script("on-compact", EMPTY);
    server.finish_as(&server.compact("work"), "completed");
    turn_and_rest(&server, FULL);
    assert_eq!(count_ordered(&server), 2, "a completed compaction ends the cooldown");
}

/// HL-14: a cancelled compaction starts a cooldown too, whether it was waiting or running.
#[test]
fn a_cancelled_compaction_starts_a_cooldown() {
    for waits in [true, false] {
        let server = Server::usual();
        server.journal.script("on-compact", "[[gate:compacts]]");
        server.complete("work", EMPTY);
        if waits {
            server.acquire_lock(&server.session("work"), "outside").expect_any(&[200, 201]);
        }
        server.complete("work", FULL);
        let task = server.auto_compactions("work").remove(0);
        if !waits {
            server.journal.wait_gate("compacts");
        }
        server.cancel(&task).expect(202);
        server.finish_as(&task, "cancelled");
        turn_and_rest(&server, FULL);
        assert_eq!(count_ordered(&server), 1, "the cooldown holds");
    }
}

/// DQ-4, R-1: a waiting compaction, ordered in the settlement's commit, survives kill -9
/// and keeps its place.
#[test]
fn a_waiting_automatic_compaction_survives_a_restart() {
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
