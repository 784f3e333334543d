//! Compactions that a group orders automatically when the context is nearly full.

use serde_json::json;

use crate::support::{Server, Setup};

/// The words of a turn that leaves the context nearly full, and nearly empty.
const FULL: &str = "[[usage:950:1000]]";
const EMPTY: &str = "[[usage:100:1000]]";

/// Runs a turn, and waits until the group is idle again.
#[track_caller]
fn turn_and_rest(server: &Server, group: &str, prompt: &str) {
    server.complete(group, prompt);
    server.wait_group(group, "an idle group", |group| group["status"] == "idle");
}

/// Waits for the group's automatic compactions to end, and counts them.
#[track_caller]
fn count_ordered(server: &Server, group: &str) -> usize {
    let tasks = server.auto_compactions(group);
    for task in &tasks {
        server.finish(task);
    }
    tasks.len()
}

/// DQ-5, DQ-4, I8: a real `usage_update` of a real process over the threshold makes the compaction
/// run, in the same process, once the turn has settled and before the waiting turns.
#[test]
fn usage_over_the_threshold_starts_a_compaction_after_the_turn() {
    let server = Server::usual();
    server.journal.script("on-compact", EMPTY);
    let running = server.submit("work", &format!("{FULL}[[gate:go]]"));
    server.journal.wait_gate("go");
    let waiting = ["one", "two"].map(|text| server.submit("work", text));
    server.wait_group("work", "the usage", |group| group["usage"]["used"] == 950);
    assert!(server.auto_compactions("work").is_empty(), "not before the turn has settled");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    let tasks = server.auto_compactions("work");
    assert_eq!(tasks.len(), 1, "{tasks:?}\n{}", server.log.tail());
    let task = server.finish_as(&tasks[0], "completed");
    assert_eq!((&task["kind"], &task["origin"]), (&json!("compaction"), &json!("auto")));
    assert_eq!(server.compaction_of(&task)["status"], "completed");
    for task in &waiting {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.journal.prompts()[1..], ["/compact", "one", "two"]);
    server.journal.assert_one_at_a_time();
    assert_eq!(server.journal.events_named("start").len(), 1, "no second process");
    server.assert_compacted("work", 1);
    turn_and_rest(&server, "work", EMPTY);
    assert_eq!(count_ordered(&server, "work"), 1, "below the threshold nothing is ordered");
}

/// A-5, API-2, API-4, DQ-5, DQ-6: a group's `auto_compact` overrides its profile's, which overrides
/// the default; 0 disables it at each level. How the turn ends does not matter; without usage, or
/// without a way to compact, none is ordered.
#[test]
fn threshold_of_the_group_overrides_profile_and_default() {
    let setup = Setup::new()
        .set("defaults", "auto_compact", "0.5")
        .agent("off", &[])
        .set("agents.off", "auto_compact", "0")
        .agent("late", &[])
        .set("agents.late", "auto_compact", "0.9")
        .agent("none", &[])
        .set("agents.none", "compaction", "{ strategy = \"none\" }")
        .agent("rotates", &[])
        .set("agents.rotates", "compaction", "{ strategy = \"rotate\" }");
    let server = setup.start();
    server.journal.script("on-compact", EMPTY);
    #[rustfmt::skip]
    let cases = [
        ("default",  json!({ "agent": "scripted" }),                         "[[usage:500:1000]]", 1),
        ("below",    json!({ "agent": "scripted" }),                         "[[usage:499:1000]]", 0),
        ("died",     json!({ "agent": "scripted" }),                         "[[reply:x]][[usage:500:1000]][[die:3]]", 1),
        ("no-usage", json!({ "agent": "scripted" }),                         "[[chunks:20:1000]][[tokens:900000:900000]]", 0),
        ("no-size",  json!({ "agent": "scripted" }),                         "[[usage:0:0]]",      0),
        ("off",      json!({ "agent": "off" }),                              "[[usage:999:1000]]", 0),
        ("late",     json!({ "agent": "late" }),                             "[[usage:899:1000]]", 0),
        ("late-hit", json!({ "agent": "late" }),                             "[[usage:900:1000]]", 1),
        ("none",     json!({ "agent": "none" }),                             "[[usage:999:1000]]", 0),
        ("rotates",  json!({ "agent": "rotates" }),                          "[[usage:999:1000]]", 1),
        ("put",      json!({ "agent": "off", "auto_compact": 0.2 }),         "[[usage:200:1000]]", 1),
        ("put-off",  json!({ "agent": "scripted", "auto_compact": 0 }),      "[[usage:999:1000]]", 0),
        ("put-late", json!({ "agent": "scripted", "auto_compact": 0.95 }),   "[[usage:949:1000]]", 0),
    ];
    for (group, body, prompt, expected) in cases {
        server.put(&format!("/v1/groups/{group}"), &body).expect(201);
        server.turn(group, prompt);
        let tasks = server.auto_compactions(group);
        assert_eq!(tasks.len(), expected, "{group}: {tasks:?}\n{}", server.log.tail());
        for task in &tasks {
            server.finish_as(task, "completed");
        }
    }
}

/// I12, HL-14: after two compactions in a row that freed less than a tenth, or after one that
/// failed, the group orders no more, also after a restart; a compaction over HTTP or a PUT enables
/// it again, and is not delayed.
#[test]
fn useless_compactions_stop_automatic_compaction_over_a_restart() {
    let mut server = Server::usual();
    let (effects, groups) = (["[[usage:900:1000]]", "[[error:-32602:no]]"], ["useless", "failing"]);
    for ((group, effect), ordered) in groups.iter().zip(effects).zip([2, 1]) {
        server.journal.script("on-compact", effect);
        for _ in 0..4 {
            turn_and_rest(&server, group, FULL);
        }
        assert_eq!(count_ordered(&server, group), ordered, "{group}: {}", server.log.tail());
    }
    assert_eq!(server.auto_compactions("failing")[0]["state"], "failed");
    server.kill_and_boot();
    for (group, ordered) in groups.iter().zip([2, 1]) {
        turn_and_rest(&server, group, FULL);
        assert_eq!(count_ordered(&server, group), ordered, "{group}: also after a restart");
    }
    server.journal.script("on-compact", EMPTY);
    let requested = server.compact("useless");
    assert_eq!(requested["origin"], "api");
    server.finish_as(&requested, "completed");
    server.put("/v1/groups/failing", &json!({ "auto_compact": 0.8 })).expect(200);
    for (group, ordered) in groups.iter().zip([3, 2]) {
        turn_and_rest(&server, group, FULL);
        assert_eq!(count_ordered(&server, group), ordered, "{group}: a caller enables it again");
    }
}
