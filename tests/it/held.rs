//! `on_interrupt`: whether a group continues after an interruption, or is held until a caller
//! resumes it.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

const LOST: &str = "greenroom/context_lost";

/// Runs a turn that is interrupted after its first output.
#[track_caller]
fn interrupt_turn(server: &Server, group: &str) -> Value {
    let task = server.submit(group, "[[reply:x]][[die:1]]");
    server.finish_as(&task, "interrupted")
}

/// Starts a server with a group `work` whose agent cannot restore a session, and runs a turn in it.
#[track_caller]
fn start_forgetful(on_interrupt: &str) -> Server {
    let server = Setup::new().forgetful().start();
    server.create_group("work", "forgetful", on_interrupt);
    server.complete("work", "[[reply:zero]]");
    server
}

/// Checks that the group is held and that these tasks wait for its resume.
#[track_caller]
fn assert_held(server: &Server, tasks: &[&Value]) {
    server.wait_status("work", "held");
    for task in tasks {
        let task = server.wait_blocked(task, "held");
        assert_eq!((&task["state"], &task["started_at"]), (&json!("queued"), &json!(null)));
    }
    let group = server.group("work");
    assert_eq!(group["queue_length"], tasks.len(), "{group}");
    if !tasks.is_empty() {
        assert_eq!(group["blocked_by"], "held", "{group}");
    }
}

/// API-2, 4: PUT sets the policy of one group, and it survives a restart; unknown words are
/// refused.
#[test]
fn put_sets_the_policy_of_a_group() {
    let mut server = Setup::new().text("defaults", "on_interrupt", "hold").start();
    server.create_group("work", "scripted", "");
    for word in ["hold", "auto", "continue"] {
        let changed = server.put("/v1/groups/work", &json!({ "on_interrupt": word })).expect(200);
        assert_eq!(changed["on_interrupt"], word);
    }
    let problem = server.put("/v1/groups/work", &json!({ "on_interrupt": "stop" }));
    let problem = problem.problem(400, "invalid-body");
    assert!(problem.to_string().contains("on_interrupt"), "{problem}");
    server.kill_and_boot();
    assert_eq!(server.group("work")["on_interrupt"], "continue");
    interrupt_turn(&server, "work");
    server.complete("work", "the group's policy applies");
    interrupt_turn(&server, "other");
    let waiting = server.submit("other", "the default applies");
    server.wait_blocked(&waiting, "held");
}

/// API-4: `auto` is the default policy.
#[test]
fn auto_is_the_default() {
    let server = start_forgetful("");
    interrupt_turn(&server, "work");
    assert_held(&server, &[&server.submit("work", "next")]);
}

/// R-1, I16: under `auto` an interruption with a lost context holds the group: it is
/// reported once, waiting tasks keep their order, and after `resume` they run in a new session.
#[test]
fn auto_holds_a_group_whose_context_is_lost() {
    let server = start_forgetful("auto");
    let dead = server.submit("work", "[[reply:x]][[gate:go]][[die:1]]");
    let waiting = ["one", "two", "three"].map(|text| server.submit("work", text));
    server.journal.open_gate("go");
    server.finish_as(&dead, "interrupted");
    assert_held(&server, &waiting.each_ref());
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1);
    let warned = |line: &str| {
        let lower = line.to_lowercase();
        line.contains("WARN") && line.contains("group=work") && lower.contains("context")
    };
    server.log.wait("a warning of the lost context", warned);
    let later = server.submit("work", "four");
    assert_eq!((&later["state"], &later["blocked_by"]), (&json!("queued"), &json!("held")));
    // A whole turn of another group: meanwhile a wrong start would become visible.
    server.complete("other", "fine");
    assert_eq!(server.journal.times("one"), 0);
    let warnings = server.log.lines().iter().filter(|line| warned(line)).count();
    assert_eq!(warnings, 1, "{}", server.log.tail());
    server.resume("work");
    for task in waiting.iter().chain([&later]) {
        server.finish_as(task, "completed");
    }
    let prompts = server.journal.events_named("prompt");
    let of_work: Vec<&str> = prompts.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(of_work[3..], ["one", "two", "three", "four"], "{of_work:?}");
    assert_ne!(prompts[3]["session"], prompts[0]["session"], "a new session");
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1);
    server.wait_status("work", "idle");
}

/// if no task waits when the context is lost, the next turn is accepted and held.
#[test]
fn auto_holds_the_next_turn_of_an_empty_queue() {
    let server = start_forgetful("auto");
    interrupt_turn(&server, "work");
    let next = server.submit("work", "next");
    assert_held(&server, &[&next]);
    assert_eq!(server.journal.times("next"), 0);
    server.resume("work");
    server.finish_as(&next, "completed");
}

/// an interruption whose session is restored does not hold the group.
#[test]
fn auto_continues_in_a_restored_session() {
    let server = Server::usual();
    interrupt_turn(&server, "work");
    server.complete("work", "next");
    assert!(server.frames_of_kind("work", LOST).is_empty());
}

/// two interruptions in a row hold the group, also with the session restored; a turn
/// that completes between them resets the count.
#[test]
fn auto_holds_a_group_after_two_interruptions_in_a_row() {
    let server = Server::usual();
    for _ in 0..3 {
        interrupt_turn(&server, "work");
        server.complete("work", "between");
    }
    let dead = ["one", "two"]
        .map(|name| server.submit("work", &format!("{name}[[reply:x]][[gate:go]][[die:1]]")));
    let waiting = server.submit("work", "waiting");
    server.journal.open_gate("go");
    dead.iter().for_each(|task| drop(server.finish_as(task, "interrupted")));
    assert_held(&server, &[&waiting]);
    assert!(server.frames_of_kind("work", LOST).is_empty(), "no context was lost");
    server.log.wait("a warning", |line| {
        line.contains("WARN") && line.contains("group=work") && line.contains("held")
    });
    server.resume("work");
    server.finish_as(&waiting, "completed");
    interrupt_turn(&server, "work");
    server.complete("work", "one interruption after the resume does not hold");
}

/// API-4: under `continue` the group continues in an empty context, and the loss is reported.
#[test]
fn continue_runs_the_next_turn_in_a_new_session() {
    let server = start_forgetful("continue");
    interrupt_turn(&server, "work");
    interrupt_turn(&server, "work");
    server.complete("work", "next");
    assert_eq!(server.frames_of_kind("work", LOST).len(), 2);
}

/// API-4: under `hold` every interruption holds the group, whatever its cause, also with the
/// session restored.
#[test]
fn hold_holds_a_group_after_any_interruption() {
    for (word, stop_reason) in [
        ("[[reply:x]][[die:1]]", "_process_exited"),
        ("[[garbage-run:10]][[gate:never]]", "_protocol"),
        ("[[gate:never]]", "_deadline"),
    ] {
        let server = Setup::new().text("defaults", "on_interrupt", "hold").start();
        server.complete("work", "zero");
        let mut body = json!({ "prompt": word });
        if stop_reason == "_deadline" {
            body["deadline_ms"] = json!(500);
        }
        let dead = server.post("/v1/groups/work/turns", &body).expect(202);
        let waiting = server.submit("work", "waiting");
        let dead = server.finish_as(&dead, "interrupted");
        assert_eq!(dead["stop_reason"], stop_reason, "{dead}");
        assert_held(&server, &[&waiting]);
        server.complete("other", "fine");
        assert_eq!(server.journal.times("waiting"), 0, "{word}");
        server.resume("work");
        server.finish_as(&waiting, "completed");
        assert!(server.frames_of_kind("work", LOST).is_empty(), "{word}");
    }
}

/// API-4: a failure, a cancel and a retried attempt are not interruptions, and do not hold the
/// group.
#[test]
fn hold_ignores_failures_cancels_and_retries() {
    let setup = Setup::new().retries("10ms").text("defaults", "on_interrupt", "hold");
    let server = setup.start();
    server.turn("work", "[[error:-32602:no]]");
    let cancelled = server.submit("work", "[[on-cancel:die:1]][[gate:off]]");
    server.journal.wait_gate("off");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    server.complete("work", "[[times:1:die:1]][[reply:retried]]");
    server.complete("work", "next");
    server.wait_status("work", "idle");
}

/// kill -9 of the server during a running turn is an interruption too.
#[test]
fn a_crash_of_the_server_is_an_interruption() {
    let mut server = start_forgetful("auto");
    server.create_group("held", "scripted", "hold");
    server.create_group("kept", "scripted", "auto");
    let groups = ["work", "held", "kept"];
    let running = groups.map(|group| server.submit(group, &format!("[[reply:x]][[gate:{group}]]")));
    let waiting = groups.map(|group| server.submit(group, "waiting"));
    groups.iter().for_each(|group| server.journal.wait_gate(group));
    server.kill_and_boot();
    running.iter().for_each(|task| drop(server.finish_as(task, "interrupted")));
    for place in [0, 1] {
        server.wait_blocked(&waiting[place], "held");
        server.wait_status(groups[place], "held");
    }
    server.finish_as(&waiting[2], "completed");
    for place in [0, 1] {
        server.resume(groups[place]);
        server.finish_as(&waiting[place], "completed");
    }
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1);
    assert!(server.frames_of_kind("held", LOST).is_empty());
}

/// I2, AM-4: a held group is still held after a restart, with its queue.
#[test]
fn a_held_group_survives_a_restart() {
    let mut server = start_forgetful("auto");
    let dead = server.submit("work", "[[reply:x]][[gate:go]][[die:1]]");
    let waiting = ["one", "two"].map(|text| server.submit("work", text));
    server.journal.open_gate("go");
    server.finish_as(&dead, "interrupted");
    for end in ["kill", "terminate"] {
        assert_held(&server, &waiting.each_ref());
        if end == "kill" {
            server.kill();
        } else {
            server.terminate();
            assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
        }
        server.boot();
        server.complete(&format!("after-{end}"), "fine");
    }
    assert_held(&server, &waiting.each_ref());
    assert_eq!(server.journal.times("one"), 0);
    server.resume("work");
    waiting.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1, "reported once");
}

/// API-2: a waiting task of a held group can be cancelled, and the group deleted.
#[test]
fn a_held_group_accepts_cancel_and_delete() {
    let server = start_forgetful("hold");
    interrupt_turn(&server, "work");
    let waiting = ["one", "two"].map(|text| server.submit("work", text));
    assert_held(&server, &waiting.each_ref());
    server.cancel(&waiting[0]).expect(202);
    server.finish_as(&waiting[0], "cancelled");
    assert_held(&server, &[&waiting[1]]);
    server.delete("/v1/groups/work").expect(202);
    server.finish_as(&waiting[1], "cancelled");
    server.wait_status("work", "archived");
    server.put("/v1/groups/work", &json!({})).expect_any(&[200, 201]);
    server.complete("work", "revived");
}

/// I16: if the session of an idle agent cannot be restored, no turn was interrupted: the loss is
/// reported and the group continues, also after a restart.
#[test]
fn a_lost_context_without_interruption_does_not_hold() {
    let mut server = start_forgetful("auto");
    server.post("/v1/groups/work/stop", &json!({})).expect(202);
    server.wait_group("work", "no run", |group| group["current_run"].is_null());
    server.complete("work", "one");
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1);
    server.kill_and_boot();
    server.complete("work", "two");
    assert_eq!(server.frames_of_kind("work", LOST).len(), 2);
}

/// "two in a row" counts turns; a compaction between them, successful or not, does
/// not reset the count.
#[test]
fn a_compaction_does_not_reset_the_count_of_interruptions() {
    for focus in ["[[reply:x]]", "[[error:-32602:no]]"] {
        let server = Server::usual();
        interrupt_turn(&server, "work");
        server.finish(&server.compact_with("work", focus));
        assert_eq!(server.group("work")["status"], "idle");
        interrupt_turn(&server, "work");
        assert_held(&server, &[&server.submit("work", "next")]);
    }
}

/// API-2: a deleted group that is revived keeps neither its pause nor its count of interrupted
/// turns, also over a restart.
#[test]
fn a_revived_group_keeps_neither_pause_nor_count() {
    for killed in [false, true] {
        let mut server = Server::usual();
        interrupt_turn(&server, "work");
        server.post("/v1/groups/work/pause", &json!({})).expect(202);
        server.delete("/v1/groups/work").expect(202);
        server.wait_status("work", "archived");
        if killed {
            server.kill_and_boot();
        }
        server.put("/v1/groups/work", &json!({})).expect(200);
        server.complete("work", "[[reply:x]]");
        server.delete("/v1/groups/work").expect(202);
        server.put("/v1/groups/work", &json!({})).expect(200);
        interrupt_turn(&server, "work");
        server.delete("/v1/groups/work").expect(202);
        server.put("/v1/groups/work", &json!({})).expect(200);
        interrupt_turn(&server, "work");
        assert_eq!(server.group("work")["status"], "idle", "one interruption since the revival");
        server.complete("work", "[[reply:y]]");
    }
}
