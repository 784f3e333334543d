//! Attempts that failed without output are retried, after a backoff; others never are.

use serde_json::{Value, json};

use crate::support::{Setup, millis};

/// A backoff that no test waits for.
const NEVER: &str = "10m";

/// DQ-8, I7: if an agent exits, or answers with an internal error, before any output, it receives
/// the prompt again, in the same task and session; after a death in a new run.
#[test]
fn attempts_without_output_are_retried() {
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
        assert_eq!(server.journal.times(&prompt), 2, "once per attempt");
        let started = server.task_frames(&task, "greenroom/turn_started");
        assert!(word.starts_with("error") || started[0]["run"] != started[1]["run"], "{started:?}");
        let settled = server.task_frames(&task, "greenroom/turn_settled");
        let first = if word.starts_with("error") { "_error" } else { "_process_exited" };
        assert_eq!(settled[0]["payload"]["stop_reason"], first, "{word}: {settled:?}");
        let prompts = server.journal.events_named("prompt");
        let of_task: Vec<&Value> = prompts.iter().filter(|event| event["text"] == prompt).collect();
        assert_eq!(of_task[0]["session"], of_task[1]["session"], "the session was restored");
    }
    assert!(server.list("a", "tasks").len() == 1, "the same task");
}

/// API-1, I9: between two attempts the task is `retrying`, blocked by `backoff`, and has not ended;
/// a cancel ends it immediately, and the next task runs.
#[test]
fn a_retrying_task_is_visible_and_can_be_cancelled() {
    let server = Setup::new().retries(NEVER).start();
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
    assert_eq!(server.task(&task)["state"], "cancelled", "immediately");
    server.finish_as(&next, "completed");
    server.assert_attempts(&task, 1);
    assert_eq!(server.journal.prompts(), ["first[[die:1]]", "next"]);
}

/// DQ-8: after five retries, with a backoff that doubles each time, the task is `failed` and its
/// error states the cause; the next task has its own five retries.
#[test]
fn a_task_fails_after_five_retries() {
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

/// DQ-8: the retries of a task do not count for the next one.
#[test]
fn each_task_has_its_own_retries() {
    let server = Setup::new().retries("10ms").start();
    for name in ["one", "two", "three"] {
        let task = server.submit("work", &format!("{name}[[times:3:die:1]][[reply:fine]]"));
        server.finish_as(&task, "completed");
        server.assert_attempts(&task, 4);
    }
}

/// I7, A-4: any kind of output forbids a retry.
#[test]
fn any_output_forbids_a_retry() {
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

/// updates that agents send unprompted, and stderr, do not count as output.
#[test]
fn unprompted_updates_and_stderr_do_not_forbid_a_retry() {
    let server = Setup::new().retries("10ms").start();
    for (number, word) in [
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
        let prompt = format!("[[{word}]][[times:1:die:5]][[reply:fine]]");
        let task = server.submit(&format!("g{number}"), &prompt);
        assert_eq!(server.finish_as(&task, "completed")["text"], "fine", "{word}");
        server.assert_attempts(&task, 2);
    }
}

/// errors that would repeat are not retried.
#[test]
fn permanent_errors_are_not_retried() {
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

/// API-4: `no_output` is the default policy.
#[test]
fn no_output_is_the_default_policy() {
    let server = Setup::new().retries("10ms").unset("defaults", "retry").start();
    assert_eq!(server.complete("work", "[[times:1:die:1]][[reply:fine]]")["text"], "fine");
}

/// API-4: under `undelivered` only prompts that never reached the agent are retried.
#[test]
fn undelivered_retries_only_unsent_prompts() {
    let setup = Setup::new().retries("300ms").text("defaults", "retry", "undelivered").crashing();
    let server = setup.start();
    let died = server.submit("work", "[[die:1]]");
    server.finish_as(&died, "interrupted");
    server.assert_attempts(&died, 1);
    let failed = server.submit("work", "[[error:-32603:no]]");
    server.finish_as(&failed, "failed");
    server.assert_attempts(&failed, 1);
    server.create_group("crashing", "crashing", "");
    let task = server.submit("crashing", "sent once");
    server.wait_retrying(&task);
    assert_eq!(server.journal.times("sent once"), 0);
    server.journal.open_gate("open");
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.times("sent once"), 1);
}

/// API-4: under `never` nothing is retried.
#[test]
fn never_retries_nothing() {
    let server = Setup::new().retries("10ms").text("defaults", "retry", "never").crashing().start();
    let died = server.submit("work", "[[die:1]]");
    server.finish_as(&died, "interrupted");
    server.assert_attempts(&died, 1);
    let failed = server.submit("work", "[[error:-32603:no]]");
    server.finish_as(&failed, "failed");
    server.assert_attempts(&failed, 1);
    server.create_group("crashing", "crashing", "");
    server.finish_as(&server.submit("crashing", "x"), "failed");
    assert_eq!(server.list("crashing", "runs").len(), 1);
    for kind in ["greenroom/run_started", "greenroom/run_exited"] {
        assert_eq!(server.frames_of_kind("crashing", kind).len(), 1, "{kind}");
    }
}

/// a task in its backoff holds no slot.
#[test]
fn a_backoff_holds_no_slot() {
    let server = Setup::new().retries(NEVER).set("limits", "running_groups", 1).start();
    let task = server.submit("work", "[[die:1]]");
    server.wait_retrying(&task);
    server.complete("other", "fine");
    server.wait_retrying(&task);
}

/// I8: neither a later turn nor a compaction overtakes a task that is retried.
#[test]
fn a_retrying_task_keeps_its_place() {
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

/// I2: a backoff survives kill -9: the task still waits, and is retried once, not before its time.
#[test]
fn a_backoff_survives_a_crash() {
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

/// DQ-11: no task is retried during the drain; it is retried after the next start.
#[test]
fn a_backoff_survives_a_drain() {
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

/// I9: the deletion of a group ends a task that waits for its next attempt.
#[test]
fn deletion_of_the_group_ends_a_backoff() {
    let server = Setup::new().retries(NEVER).start();
    let task = server.submit("work", "[[die:1]]");
    server.wait_retrying(&task);
    server.delete("/v1/groups/work").expect(202);
    server.finish_as(&task, "cancelled");
    server.wait_status("work", "archived");
}

/// A-4, I7: a protocol violation, a deadline, a cancel and a crash of the server end the
/// task at its first attempt, also without output.
#[test]
fn violations_deadlines_cancels_and_crashes_are_never_retried() {
    let mut server = Setup::new().retries("10ms").start();
    let broken = server.submit("broken", "[[garbage-run:10]][[gate:never]]");
    let broken = server.finish_as(&broken, "interrupted");
    assert_eq!(broken["stop_reason"], "_protocol", "{broken}");
    let late = json!({ "prompt": "[[silent]][[gate:never]]", "deadline_ms": 300 });
    let late = server.post("/v1/groups/late/turns", &late).expect(202);
    let late = server.finish_as(&late, "interrupted");
    assert_eq!(late["stop_reason"], "_deadline", "{late}");
    let cancelled = server.submit("cancelled", "[[on-cancel:die:1]][[gate:cancelled]]");
    server.journal.wait_gate("cancelled");
    server.cancel(&cancelled).expect(202);
    let cancelled = server.finish_as(&cancelled, "cancelled");
    let interrupted = server.submit("cut", "[[times:1:die:1]][[silent]][[gate:cut]]");
    server.journal.wait_gate("cut");
    server.kill_and_boot();
    let interrupted = server.finish_as(&interrupted, "interrupted");
    assert_eq!(interrupted["stop_reason"], "_server_restart", "{interrupted}");
    assert_eq!(interrupted["interrupted"]["side_effects"], "unknown", "{interrupted}");
    for group in ["broken", "late", "cancelled", "cut"] {
        server.complete(group, "next");
    }
    for (task, attempts) in [(&broken, 1), (&late, 1), (&cancelled, 1), (&interrupted, 2)] {
        server.assert_attempts(task, attempts);
    }
}

/// RA: a prompt that failed because its session was wedged is retried in the new run, and
/// answered.
#[test]
fn a_prompt_that_failed_by_a_wedge_is_retried() {
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
