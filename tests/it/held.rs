//! `on_interrupt`: whether a group continues after an interruption, or is held until a caller
//! resumes it. Which interruption holds is decided and tested in core.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

const LOST: &str = "greenroom/context_lost";

/// Runs a turn that is interrupted after its first output.
#[track_caller]
fn interrupt_turn(server: &Server, group: &str) -> Value {
    let task = server.submit(group, "[[reply:x]][[die:1]]");
    server.finish_as(&task, "interrupted")
}

/// Checks that the group is held and that these tasks wait for its resume.
#[track_caller]
fn assert_held(server: &Server, group: &str, tasks: &[&Value]) {
    server.wait_status(group, "held");
    for task in tasks {
        let task = server.wait_blocked(task, "held");
        assert_eq!((&task["state"], &task["started_at"]), (&json!("queued"), &json!(null)));
    }
    let group = server.group(group);
    assert_eq!(group["queue_length"], tasks.len(), "{group}");
    assert_eq!(group["blocked_by"], "held", "{group}");
}

/// API-2, API-4: PUT sets the policy of one group, and it survives a restart; unknown words are
/// refused; other groups have the default. A hold is not for failures, cancels and retries.
#[test]
fn put_sets_the_policy_of_a_group() {
    let setup = Setup::new().text("defaults", "on_interrupt", "hold").retries("10ms");
    let mut server = setup.start();
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
    interrupt_turn(&server, "work");
    server.complete("work", "the group's policy applies");
    server.turn("other", "[[error:-32602:no]]");
    let cancelled = server.submit("other", "[[on-cancel:die:1]][[gate:off]]");
    server.journal.wait_gate("off");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    server.complete("other", "[[times:1:die:1]][[reply:retried]]");
    let late = json!({ "prompt": "[[gate:never]]", "deadline_ms": 300 });
    let late = server.post("/v1/groups/other/turns", &late).expect(202);
    let waiting = server.submit("other", "waiting");
    server.finish_as(&late, "interrupted");
    assert_held(&server, "other", &[&waiting]);
    assert!(server.frames_of_kind("other", LOST).is_empty(), "the session was restored");
    server.resume("other");
    server.finish_as(&waiting, "completed");
}

/// R-1, I16, I2, AM-4: by default an interruption with a lost context holds the group: it is
/// reported once, waiting tasks keep their order, also over a crash and a drain, each can be
/// cancelled, and after `resume` they run in a new session.
#[test]
fn auto_holds_a_group_whose_context_is_lost() {
    let mut server = Setup::new().forgetful().start();
    server.create_group("work", "forgetful", "");
    server.complete("work", "[[reply:zero]]");
    let dead = server.submit("work", "[[reply:x]][[gate:go]][[die:1]]");
    let waiting = ["one", "two", "three"].map(|text| server.submit("work", text));
    server.journal.open_gate("go");
    server.finish_as(&dead, "interrupted");
    assert_held(&server, "work", &waiting.each_ref());
    let warned = |line: &str| {
        let lower = line.to_lowercase();
        line.contains("WARN") && line.contains("group=work") && lower.contains("context")
    };
    server.log.wait("a warning of the lost context", warned);
    let later = server.submit("work", "four");
    assert_eq!((&later["state"], &later["blocked_by"]), (&json!("queued"), &json!("held")));
    // A whole turn of another group: meanwhile a wrong start would become visible.
    server.complete("other", "fine");
    let warnings = server.log.lines().iter().filter(|line| warned(line)).count();
    assert_eq!(warnings, 1, "{}", server.log.tail());
    server.kill_and_boot();
    server.complete("other", "after the crash");
    server.cancel(&waiting[2]).expect(202);
    server.finish_as(&waiting[2], "cancelled");
    let left = [&waiting[0], &waiting[1], &later];
    assert_held(&server, "work", &left);
    server.restart();
    server.complete("other", "after the drain");
    assert_held(&server, "work", &left);
    assert_eq!(server.journal.times("one"), 0);
    server.resume("work");
    left.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    let prompts = server.journal.events_named("prompt");
    let of_work: Vec<&str> = prompts.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(of_work[5..], ["one", "two", "four"], "{of_work:?}");
    assert_ne!(prompts[5]["session"], prompts[0]["session"], "a new session");
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1, "reported once");
    server.wait_status("work", "idle");
}

/// R-1, API-4: two interruptions in a row hold the group, also with the session restored; a turn
/// that completes between them resets the count. Under `continue` the group continues in an empty
/// context, and each loss is reported.
#[test]
fn auto_holds_a_group_after_two_interruptions_in_a_row() {
    let server = Setup::new().forgetful().start();
    for _ in 0..2 {
        interrupt_turn(&server, "work");
        server.complete("work", "between");
    }
    let dead = ["one", "two"]
        .map(|name| server.submit("work", &format!("{name}[[reply:x]][[gate:go]][[die:1]]")));
    let waiting = server.submit("work", "waiting");
    server.journal.open_gate("go");
    dead.iter().for_each(|task| drop(server.finish_as(task, "interrupted")));
    assert_held(&server, "work", &[&waiting]);
    assert!(server.frames_of_kind("work", LOST).is_empty(), "no context was lost");
    server.log.wait("a warning", |line| {
        line.contains("WARN") && line.contains("group=work") && line.contains("held")
    });
    server.resume("work");
    server.finish_as(&waiting, "completed");
    interrupt_turn(&server, "work");
    server.complete("work", "one interruption after the resume does not hold");

    server.create_group("continues", "forgetful", "continue");
    interrupt_turn(&server, "continues");
    interrupt_turn(&server, "continues");
    server.complete("continues", "next");
    assert_eq!(server.frames_of_kind("continues", LOST).len(), 2);
}

/// kill -9 of the server during a running turn is an interruption too.
#[test]
fn a_crash_of_the_server_is_an_interruption() {
    let mut server = Setup::new().forgetful().start();
    let groups = ["lost", "held", "kept"];
    server.create_group("lost", "forgetful", "auto");
    server.create_group("held", "scripted", "hold");
    server.create_group("kept", "scripted", "auto");
    let running = groups.map(|group| server.submit(group, &format!("[[reply:x]][[gate:{group}]]")));
    let waiting = groups.map(|group| server.submit(group, "waiting"));
    groups.iter().for_each(|group| server.journal.wait_gate(group));
    server.kill_and_boot();
    running.iter().for_each(|task| drop(server.finish_as(task, "interrupted")));
    for place in [0, 1] {
        assert_held(&server, groups[place], &[&waiting[place]]);
    }
    server.finish_as(&waiting[2], "completed");
    for place in [0, 1] {
        server.resume(groups[place]);
        server.finish_as(&waiting[place], "completed");
    }
    assert_eq!(server.frames_of_kind("lost", LOST).len(), 1);
    assert!(server.frames_of_kind("held", LOST).is_empty());
}
