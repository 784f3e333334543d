//! Attempts that failed without output are made again, after a backoff; others never are.

use serde_json::{Value, json};

use crate::support::{Setup, millis};

/// The longest that a test waits before a retry that it never wants to see.
const FAR: &str = "10m";

/// DQ-8, I7: an agent that exits, or answers with an internal error, before it said anything gets
/// the prompt again, as the same task: after a death in a new run, and in the same session.
#[test]
fn attempts_without_output_are_made_again() {
    let server = Setup::new().retries("50ms").start();
    for (group, word) in
        [("a", "die:0"), ("b", "die:9"), ("c", "abort"), ("d", "error:-32603:Internal error")]
    {
        let prompt = format!("{group}[[times:1:{word}]][[reply:fine]]");
        let task = server.submit(group, &prompt);
        let ended = server.finish_as(&task, "completed");
        assert_eq!(ended["text"], "fine", "{word}: {ended}");
        assert_eq!((&ended["stop_reason"], &ended["error"]), (&json!("end_turn"), &json!(null)));
        assert_eq!(ended["interrupted"], json!(null), "{word}: {ended}");
        server.assert_attempts(&task, 2);
        assert_eq!(server.journal.times(&prompt), 2, "once an attempt");
        let started = server.task_frames(&task, "greenroom/turn_started");
        assert!(word.starts_with("error") || started[0]["run"] != started[1]["run"], "{started:?}");
        let settled = server.task_frames(&task, "greenroom/turn_settled");
        let first = if word.starts_with("error") { "_error" } else { "_process_exited" };
        assert_eq!(settled[0]["payload"]["stop_reason"], first, "{word}: {settled:?}");
        let prompts = server.journal.events_named("prompt");
        let own: Vec<&Value> = prompts.iter().filter(|event| event["text"] == prompt).collect();
        assert_eq!(own[0]["session"], own[1]["session"], "the session was restored");
    }
    assert!(server.list("a", "tasks").len() == 1, "the same task");
}

/// API 1, I9: between two attempts the task is `retrying`, blocked by `backoff`, and has not ended;
/// a cancel ends it at once, and what waits goes on.
#[test]
fn waits_in_sight_and_can_be_cancelled() {
    let server = Setup::new().retries(FAR).start();
    let task = server.submit("work", "first[[die:1]]");
    let next = server.submit("work", "next");
    let waiting = server.wait_retrying(&task);
    assert_eq!((&waiting["attempt"], &waiting["ended_at"]), (&json!(1), &json!(null)), "{waiting}");
    let group = server.group("work");
    assert_eq!((&group["status"], &group["blocked_by"]), (&json!("waiting"), &json!("backoff")));
    let listed = server.list("work", "tasks?state=retrying");
    assert_eq!(listed.iter().map(|task| &task["id"]).collect::<Vec<_>>(), [&task["id"]]);
    assert_eq!(server.task(&next)["state"], "queued");
    server.cancel(&task).expect(202);
    assert_eq!(server.task(&task)["state"], "cancelled", "at once");
    server.finish_as(&next, "completed");
    server.assert_attempts(&task, 1);
    assert_eq!(server.journal.prompts(), ["first[[die:1]]", "next"]);
}

/// DQ-8: after five retries, each twice as long after the one before it, the task is `failed` and
/// says why; the next task has five of its own.
#[test]
fn gives_up_after_five_retries() {
    let server = Setup::new().retries("50ms").start();
    let task = server.submit("work", "[[die:37]]");
    let ended = server.finish_as(&task, "failed");
    assert!(ended["error"]["code"].is_string(), "{ended}");
    let message = ended["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("37"), "the exit code in {ended}");
    assert_eq!(ended["interrupted"], json!(null), "{ended}");
    server.assert_attempts(&task, 6);
    let started = server.task_frames(&task, "greenroom/turn_started");
    let settled = server.task_frames(&task, "greenroom/turn_settled");
    for retry in 1..=5 {
        let waited = millis(&started[retry]["at"]) - millis(&settled[retry - 1]["at"]);
        let backoff = 50 << (retry - 1);
        assert!(backoff * 4 / 5 <= waited, "retry {retry} after {waited} ms, not {backoff}");
    }
    let next = server.submit("work", "[[times:5:die:1]][[reply:at last]]");
    assert_eq!(server.finish_as(&next, "completed")["text"], "at last");
    server.assert_attempts(&next, 6);
}

/// DQ-8: what a task has used up is not counted against the next.
#[test]
fn success_starts_the_count_anew() {
    let server = Setup::new().retries("10ms").start();
    for name in ["one", "two", "three"] {
        let task = server.submit("work", &format!("{name}[[times:3:die:1]][[reply:fine]]"));
        server.finish_as(&task, "completed");
        server.assert_attempts(&task, 4);
    }
}

/// I7, ARCHITECTURE 4: what counts as output, each by itself, makes an attempt the last.
#[test]
fn any_output_forbids_it() {
    let server = Setup::new().retries("10ms").start();
    for (number, output) in [
        "reply:x",
        "thought:x",
        "tool:open",
        "update:tool_call_update",
        "update:plan",
        "compaction:in_progress:c1",
        "permission-open",
        "unknown-request:open",
        "fs:open",
    ]
    .into_iter()
    .enumerate()
    {
        let group = format!("g{number}");
        let prompt = format!("[[{output}]][[die:5]]");
        let task = server.submit(&group, &prompt);
        let ended = server.finish_as(&task, "interrupted");
        assert_eq!(ended["stop_reason"], "_process_exited", "{output}: {ended}");
        server.assert_attempts(&task, 1);
        assert_eq!(server.journal.times(&prompt), 1, "{output}");
        let prompt = format!("[[{output}]][[error:-32603:too late]]");
        let task = server.submit(&group, &prompt);
        let ended = server.finish_as(&task, "failed");
        assert_eq!(ended["stop_reason"], "_error", "{output}: {ended}");
        assert_eq!(server.journal.times(&prompt), 1, "{output}");
    }
}

/// ARCHITECTURE 4: updates that agents send unasked, and stderr, are no output.
#[test]
fn what_is_no_output_does_not() {
    let server = Setup::new().retries("10ms").start();
    for (number, said) in [
        "update:available_commands_update",
        "update:current_mode_update",
        "update:config_option_update",
        "update:session_info_update",
        "usage:5:100",
        "stderr:3",
    ]
    .into_iter()
    .enumerate()
    {
        let prompt = format!("[[{said}]][[times:1:die:5]][[reply:fine]]");
        let task = server.submit(&format!("g{number}"), &prompt);
        assert_eq!(server.finish_as(&task, "completed")["text"], "fine", "{said}");
        server.assert_attempts(&task, 2);
    }
}

/// ARCHITECTURE 4: errors that would come again are not asked for again.
#[test]
fn errors_that_are_final() {
    let server = Setup::new().retries("10ms").start();
    for code in [-32000, -32600, -32601, -32602] {
        let prompt = format!("[[error:{code}:as scripted]]");
        let task = server.submit("work", &prompt);
        let ended = server.finish_as(&task, "failed");
        assert_eq!(ended["stop_reason"], "_error", "{ended}");
        assert!(ended["error"]["message"].as_str().unwrap().contains("as scripted"), "{ended}");
        server.assert_attempts(&task, 1);
        assert_eq!(server.journal.times(&prompt), 1);
    }
}

/// API 4: `no_output` is the default.
#[test]
fn policy_by_default() {
    let server = Setup::new().retries("10ms").unset("defaults", "retry").start();
    assert_eq!(server.complete("work", "[[times:1:die:1]][[reply:fine]]")["text"], "fine");
}

/// API 4: under `undelivered` only what never reached the agent is made again.
#[test]
fn policy_undelivered() {
    let setup = Setup::new().retries("300ms").text("defaults", "retry", "undelivered").crashing();
    let server = setup.start();
    let died = server.submit("work", "[[die:1]]");
    server.finish_as(&died, "interrupted");
    server.assert_attempts(&died, 1);
    let failed = server.submit("work", "[[error:-32603:no]]");
    server.finish_as(&failed, "failed");
    server.assert_attempts(&failed, 1);
    server.make("crashing", "crashing", "");
    let task = server.submit("crashing", "sent once");
    server.wait_retrying(&task);
    assert_eq!(server.journal.times("sent once"), 0);
    server.journal.open_gate("open");
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.times("sent once"), 1);
}

/// API 4: under `never` nothing is.
#[test]
fn policy_never() {
    let server = Setup::new().retries("10ms").text("defaults", "retry", "never").crashing().start();
    let died = server.submit("work", "[[die:1]]");
    server.finish_as(&died, "interrupted");
    server.assert_attempts(&died, 1);
    let failed = server.submit("work", "[[error:-32603:no]]");
    server.finish_as(&failed, "failed");
    server.assert_attempts(&failed, 1);
    server.make("crashing", "crashing", "");
    server.finish_as(&server.submit("crashing", "x"), "failed");
    assert_eq!(server.list("crashing", "runs").len(), 1);
    for kind in ["greenroom/run_started", "greenroom/run_exited"] {
        assert_eq!(server.frames_of_kind("crashing", kind).len(), 1, "{kind}");
    }
}

/// ARCHITECTURE 4: a task in its backoff holds no slot.
#[test]
fn backoff_holds_no_slot() {
    let server = Setup::new().retries(FAR).set("limits", "running_groups", 1).start();
    let task = server.submit("work", "[[die:1]]");
    server.wait_retrying(&task);
    server.complete("other", "fine");
    server.wait_retrying(&task);
}

/// I8: a later turn does not overtake one that is made again; nor does a compaction.
#[test]
fn order_holds() {
    let server = Setup::new().retries("1s").start();
    server.complete("work", "zero");
    let first = server.submit("work", "[[times:2:die:1]][[reply:fine]]");
    server.wait_retrying(&first);
    let second = server.submit("work", "second");
    let compaction = server.compact("work");
    for task in [&first, &second, &compaction] {
        server.finish_as(task, "completed");
    }
    let prompts = server.journal.prompts();
    let again = "[[times:2:die:1]][[reply:fine]]";
    assert_eq!(prompts[..4], ["zero", again, again, again], "{prompts:?}");
    assert!(prompts[4].starts_with("/compact"), "{prompts:?}");
    assert_eq!(prompts[5..], ["second"]);
    server.journal.assert_one_at_a_time();
}

/// I2: a backoff survives kill -9: the task waits on, and is made again once, not before its time.
#[test]
fn backoff_survives_a_crash() {
    let mut server = Setup::new().retries("2s").start();
    let task = server.submit("work", "[[times:1:die:1]][[reply:fine]]");
    let next = server.submit("work", "next");
    server.wait_retrying(&task);
    server.kill_and_boot();
    assert_eq!(server.finish_as(&task, "completed")["text"], "fine");
    server.finish_as(&next, "completed");
    server.assert_attempts(&task, 2);
    assert_eq!(server.journal.prompts().len(), 3);
    let settled = server.task_frames(&task, "greenroom/turn_settled");
    let started = server.task_frames(&task, "greenroom/turn_started");
    let waited = millis(&started[1]["at"]) - millis(&settled[0]["at"]);
    assert!(1_600 <= waited, "after {waited} ms");
}

/// DQ-11: nothing is made again in a drain; it is, after the next start.
#[test]
fn backoff_survives_a_drain() {
    let mut server = Setup::new().retries("1s").start();
    let task = server.submit("work", "[[times:1:die:1]][[reply:fine]]");
    server.wait_retrying(&task);
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    assert_eq!(server.journal.prompts().len(), 1);
    server.boot();
    server.finish_as(&task, "completed");
    server.assert_attempts(&task, 2);
}

/// I9: the end of the group ends what waits for its next attempt.
#[test]
fn deletion_ends_a_backoff() {
    let server = Setup::new().retries(FAR).start();
    let task = server.submit("work", "[[die:1]]");
    server.wait_retrying(&task);
    server.delete("/v1/groups/work").expect(202);
    server.finish_as(&task, "cancelled");
    server.wait_status("work", "archived");
}

/// ARCHITECTURE 4, I7: a protocol violation, a deadline, a cancel and a crash of the server end the
/// task at its first attempt, also without output.
#[test]
fn what_is_never_made_again() {
    let mut server = Setup::new().retries("10ms").start();
    let broken = server.submit("broken", "[[garbage-run:10]][[gate:never]]");
    let broken = server.finish_as(&broken, "interrupted");
    assert_eq!(broken["stop_reason"], "_protocol", "{broken}");
    let late = json!({ "prompt": "[[silent]][[gate:never]]", "deadline_ms": 300 });
    let late = server.post("/v1/groups/late/turns", &late).expect(202);
    let late = server.finish_as(&late, "interrupted");
    assert_eq!(late["stop_reason"], "_deadline", "{late}");
    let called_off = server.submit("called-off", "[[on-cancel:die:1]][[gate:called-off]]");
    server.journal.wait_gate("called-off");
    server.cancel(&called_off).expect(202);
    let called_off = server.finish_as(&called_off, "cancelled");
    let cut = server.submit("cut", "[[times:1:die:1]][[silent]][[gate:cut]]");
    server.journal.wait_gate("cut");
    server.kill_and_boot();
    let cut = server.finish_as(&cut, "interrupted");
    assert_eq!(cut["stop_reason"], "_server_restart", "{cut}");
    assert_eq!(cut["interrupted"]["side_effects"], "unknown", "{cut}");
    for group in ["broken", "late", "called-off", "cut"] {
        server.complete(group, "next");
    }
    for (task, attempts) in [(&broken, 1), (&late, 1), (&called_off, 1), (&cut, 2)] {
        server.assert_attempts(task, attempts);
    }
}

/// REAL-AGENTS: the prompt that a wedged session failed is made again in the new run, and answered.
#[test]
fn the_victim_of_a_wedge_is_answered() {
    let server = Setup::new().retries("10ms").start();
    let cancelled = server.submit("work", "[[wedge]][[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    let victim = server.submit("work", "victim");
    assert_eq!(server.finish_as(&victim, "completed")["text"], "echo: victim");
    server.assert_attempts(&victim, 2);
    assert_eq!(server.journal.events_named("start").len(), 2, "in a new run");
    assert_eq!(server.journal.events_named("new").len(), 1, "in the same session");
}
