//! Attempts that failed without output, and failed starts of an agent, are retried after a backoff;
//! others never are. The tables of actors/core/tests/rules/retries.rs decide which; here one of
//! each kind is real.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Server, Setup, millis, setup::scripted_agent};

/// Checks that the group started this number of runs, each after its backoff: twice the last.
#[track_caller]
fn assert_backoffs(server: &Server, group: &str, runs: usize, base_ms: i64) {
    let started = server.frames_of_kind(group, "greenroom/run_started");
    let exited = server.frames_of_kind(group, "greenroom/run_exited");
    assert_eq!(started.len(), runs, "{started:?}");
    for run in 1..runs {
        let waited = millis(&started[run]["at"]) - millis(&exited[run - 1]["at"]);
        let backoff = base_ms << (run - 1);
        assert!(backoff * 4 / 5 <= waited, "{group}: run {run} after {waited} ms, not {backoff}");
    }
}

/// DQ-8, I7, API-4: if an agent exits, answers with an internal error or is wedged before any
/// output, it receives the prompt again, in the same task and session; after a death in a new run.
/// That is the default policy, and each task has its own retries.
#[test]
fn attempts_without_output_are_retried() {
    let server = Setup::new()
        .retries("10ms")
        .unset("defaults", "retry")
        .set("agents.scripted", "signals", "[\"hermes_meta\"]")
        .start();
    for (group, words) in [
        ("exits", "[[times:1:die:0]]"),
        ("aborts", "[[times:1:abort]]"),
        ("fails", "[[times:1:error:-32603:Internal error]]"),
        (
            "unprompted",
            "[[usage:5:100]][[update:available_commands_update]][[stderr:3]][[times:1:die:5]]",
        ),
    ] {
        let prompt = format!("{group}{words}[[reply:fine]]");
        let task = server.submit(group, &prompt);
        let ended = server.finish_as(&task, "completed");
        assert_eq!(ended["text"], "fine", "{group}: {ended}");
        assert_eq!((&ended["stop_reason"], &ended["error"]), (&json!("end_turn"), &json!(null)));
        assert_eq!(ended["interrupted"], json!(null), "{group}: {ended}");
        server.assert_attempts(&task, 2);
        assert_eq!(server.journal.times(&prompt), 2, "once per attempt");
        let started = server.task_frames(&task, "greenroom/turn_started");
        assert_eq!(started[0]["run"] == started[1]["run"], group == "fails", "{started:?}");
        let settled = server.task_frames(&task, "greenroom/turn_settled");
        let first = if group == "fails" { "_error" } else { "_process_exited" };
        assert_eq!(settled[0]["payload"]["stop_reason"], first, "{group}: {settled:?}");
        let prompts = server.journal.events_named("prompt");
        let of_task: Vec<&Value> = prompts.iter().filter(|event| event["text"] == prompt).collect();
        assert_eq!(of_task[0]["session"], of_task[1]["session"], "the session was restored");
    }
    for name in ["one", "two"] {
        let task = server.submit("exits", &format!("{name}[[times:3:die:1]][[reply:fine]]"));
        server.finish_as(&task, "completed");
        server.assert_attempts(&task, 4);
    }
    assert_eq!(server.list("exits", "tasks").len(), 3, "a retry is the same task");
    let cancelled = server.submit("wedged", "[[wedge]][[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    let victim = server.submit("wedged", "victim");
    assert_eq!(server.finish_as(&victim, "completed")["text"], "echo: victim");
    server.assert_attempts(&victim, 2);
}

/// DQ-8, F7, F8: after five retries, with a backoff that doubles each time, the task is `failed`
/// and its error states the cause, whether its agent starts or not. The task waits for its own
/// backoff only; the next one finds the group degraded.
#[test]
fn a_task_fails_after_five_retries() {
    let setup = Setup::new().retries("10ms").crashing();
    let server = setup.command("missing", "greenroom-it-no-such-program").start();
    let cases = [
        ("scripted", "[[die:37]]", "37"),
        ("crashing", "x", "code 1"),
        ("missing", "x", "greenroom-it-no-such-program"),
    ];
    let tasks = cases.map(|(agent, prompt, _)| {
        server.create_group(agent, agent, "");
        server.submit(agent, prompt)
    });
    for ((agent, prompt, cause), task) in cases.iter().zip(&tasks) {
        let failed = server.finish_as(task, "failed");
        assert!(failed["error"]["code"].is_string(), "{agent}: {failed}");
        let message = failed["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(cause), "{agent}: {failed}");
        assert_eq!(failed["interrupted"], json!(null), "{agent}: {failed}");
        let sent = if *agent == "scripted" { 6 } else { 0 };
        assert_eq!(failed["attempt"], 6, "{agent}: {failed}");
        assert_eq!(failed["started_at"].is_null(), sent == 0, "{agent}: {failed}");
        assert_eq!(server.task_frames(task, "greenroom/turn_started").len(), sent, "{agent}");
        assert_eq!(server.journal.times(prompt), sent, "{agent}");
        assert_eq!(server.task_frames(task, "greenroom/task_ended").len(), 1, "{agent}");
        assert_backoffs(&server, agent, 6, 10);
    }
    let next = server.submit("crashing", "next");
    server.wait_status("crashing", "degraded");
    let waits = server.frames_of_kind("crashing", "greenroom/agent_degraded");
    assert!(!waits.is_empty(), "each further start waits");
    server.journal.open_gate("open");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.prompts().last().map(String::as_str), Some("next"));
}

/// I7, A-4: output of any kind, an error that would repeat, a protocol violation, a deadline, a
/// cancel and a crash of the server end the task at its first attempt.
#[test]
fn any_output_forbids_a_retry() {
    let mut server = Setup::new().retries("10ms").start();
    let hangs = "[[silent]][[gate:never]]";
    let cases = [
        ("text", "[[reply:x]][[die:5]]", "interrupted", "_process_exited"),
        ("permission", "[[permission-open]][[die:5]]", "interrupted", "_process_exited"),
        ("request", "[[unknown-request:open]][[die:5]]", "interrupted", "_process_exited"),
        ("fs", "[[fs:open]][[die:5]]", "interrupted", "_process_exited"),
        ("tool", "[[tool:open]][[error:-32603:too late]]", "failed", "_error"),
        ("permanent", "[[error:-32602:as scripted]]", "failed", "_error"),
        ("violation", "[[garbage-run:10]][[gate:never]]", "interrupted", "_protocol"),
        ("deadline", hangs, "interrupted", "_deadline"),
        ("cancel", "[[on-cancel:die:1]][[gate:cancel]]", "cancelled", "_process_exited"),
        ("cut", "[[silent]][[gate:cut]]", "interrupted", "_server_restart"),
    ];
    let tasks = cases.map(|(group, prompt, ..)| {
        let mut body = json!({ "prompt": prompt });
        if prompt == hangs {
            body["deadline_ms"] = json!(300);
        }
        server.post(&format!("/v1/groups/{group}/turns"), &body).expect(202)
    });
    server.journal.wait_gate("cancel");
    server.cancel(&tasks[8]).expect(202);
    tasks[..9].iter().for_each(|task| drop(server.finish(task)));
    server.journal.wait_gate("cut");
    server.kill_and_boot();
    for ((group, prompt, state, stop_reason), task) in cases.iter().zip(&tasks) {
        let ended = server.finish_as(task, state);
        assert_eq!(ended["stop_reason"], *stop_reason, "{group}: {ended}");
        assert_eq!(ended["interrupted"].is_null(), *state != "interrupted", "{group}: {ended}");
        server.assert_attempts(&ended, 1);
        assert_eq!(server.journal.times(prompt), 1, "{group}");
    }
    let message = server.task(&tasks[5])["error"]["message"].to_string();
    assert!(message.contains("as scripted"), "{message}");
}

/// API-4, F7: under `undelivered` only prompts that never reached the agent are retried: a program
/// that is installed later, or starts later, gets its task once.
#[test]
fn undelivered_retries_only_unsent_prompts() {
    let directory = TempDir::new().unwrap();
    let program = directory.path().join("installed-late");
    let setup = Setup::new().retries("200ms").text("defaults", "retry", "undelivered");
    let setup = setup.crashing().agent("late", &[]);
    let server = setup.text("agents.late", "command", program.to_str().unwrap()).start();
    for (prompt, state) in [("[[die:1]]", "interrupted"), ("[[error:-32603:no]]", "failed")] {
        let task = server.submit("work", prompt);
        server.finish_as(&task, state);
        server.assert_attempts(&task, 1);
    }
    let tasks = ["late", "crashing"].map(|agent| {
        server.create_group(agent, agent, "");
        (server.submit(agent, agent), server.submit(agent, "then"))
    });
    for (first, then) in &tasks {
        server.wait_retrying(first);
        assert_eq!(server.task(then)["state"], "queued");
    }
    assert_eq!(server.journal.prompts().len(), 2);
    symlink(scripted_agent(), program).unwrap();
    server.journal.open_gate("open");
    for (first, then) in &tasks {
        let ended = server.finish_as(first, "completed");
        assert_eq!(server.journal.times(ended["group"].as_str().unwrap()), 1, "{ended}");
        server.finish_as(then, "completed");
    }
    server.journal.assert_one_at_a_time();
}

/// API-1, A-4, I9, DQ-11: between two attempts the task is `retrying`, blocked by `backoff`, holds
/// no slot and has not ended; a cancel or a deletion ends it immediately, a drain does not.
#[test]
fn a_retrying_task_is_visible_and_can_be_ended() {
    let setup = Setup::new().retries("10m").crashing();
    let mut server = setup.set("limits", "running_groups", 1).start();
    let task = server.submit("work", "first[[die:1]]");
    let next = server.submit("work", "next");
    let waiting = server.wait_retrying(&task);
    assert_eq!((&waiting["attempt"], &waiting["ended_at"]), (&json!(1), &json!(null)), "{waiting}");
    assert_eq!(waiting["error"]["code"], "agent_exited", "of its last attempt: {waiting}");
    let group = server.group("work");
    assert_eq!((&group["status"], &group["blocked_by"]), (&json!("waiting"), &json!("backoff")));
    let listed = server.list("work", "tasks?state=retrying");
    assert_eq!(listed.iter().map(|task| &task["id"]).collect::<Vec<_>>(), [&task["id"]]);
    assert_eq!(server.task(&next)["state"], "queued");
    server.retry(&task).problem(409, "not-retryable");
    server.complete("other", "in the only slot");
    server.cancel(&task).expect(202);
    let cancelled = server.task(&task);
    assert_eq!((&cancelled["state"], &cancelled["error"]), (&json!("cancelled"), &Value::Null));
    server.finish_as(&next, "completed");
    server.assert_attempts(&task, 1);

    server.create_group("bad", "crashing", "");
    let unsent = server.submit("bad", "never sent");
    let error = server.wait_retrying(&unsent)["error"].clone();
    assert_eq!(error["code"], "agent_start_failed", "{error}");
    let last = server.submit("work", "last[[die:1]]");
    server.wait_retrying(&last);
    server.cancel(&unsent).expect(202);
    assert_eq!(server.task(&unsent)["state"], "cancelled", "immediately");
    let prompts = ["first[[die:1]]", "in the only slot", "next", "last[[die:1]]"];
    assert_eq!(server.journal.prompts(), prompts);
    server.restart();
    server.wait_retrying(&last);
    assert_eq!(server.journal.prompts(), prompts, "not retried during the drain");
    server.delete("/v1/groups/work").expect(202);
    server.finish_as(&last, "cancelled");
    server.wait_status("work", "archived");
}

/// I2, I8: a backoff survives kill -9: the task is retried once, not before its time, and neither a
/// later turn nor a compaction overtakes it. So does the backoff after a failed start.
#[test]
fn a_backoff_survives_a_crash() {
    let mut server = Setup::new().retries("2s").crashing().start();
    server.create_group("bad", "crashing", "");
    server.complete("work", "zero");
    let first = server.submit("work", "[[times:1:die:1]][[reply:fine]]");
    let unsent = server.submit("bad", "x");
    server.wait_retrying(&unsent);
    let waiting = server.wait_retrying(&first);
    assert_eq!(waiting["error"]["code"], "agent_exited", "{waiting}");
    let second = server.submit("work", "second");
    let compaction = server.compact("work");
    server.kill();
    server.boot();
    assert_eq!(server.task(&first)["error"], waiting["error"], "after a crash");
    server.journal.open_gate("open");
    for task in [&first, &second, &compaction, &unsent] {
        server.finish_as(task, "completed");
    }
    server.assert_attempts(&first, 2);
    assert_backoffs(&server, "bad", 2, 2_000);
    let settled = server.task_frames(&first, "greenroom/turn_settled");
    let started = server.task_frames(&first, "greenroom/turn_started");
    let waited = millis(&started[1]["at"]) - millis(&settled[0]["at"]);
    assert!(1_600 <= waited, "after {waited} ms");
    let mut prompts = server.journal.prompts();
    prompts.retain(|prompt| prompt != "x");
    assert_eq!(prompts[1], prompts[2]);
    assert!(prompts[3].starts_with("/compact"), "{prompts:?}");
    assert_eq!(prompts[4..], ["second"]);
    server.journal.assert_one_at_a_time();
}
