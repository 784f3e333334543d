//! A failed start of an agent is retried, up to the number of attempts of a task.

use std::{fs, os::unix::fs::symlink};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Setup, millis, setup::scripted_agent};

/// F7, DQ-8: a program that is missing, cannot be executed, exits, refuses, speaks another version
/// or is silent is started six times; then its task is `failed`, with an error that states the
/// cause.
#[test]
fn a_failing_start_is_tried_six_times() {
    let directory = TempDir::new().unwrap();
    let plain = directory.path().join("not-executable");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let setup = Setup::new()
        .retries("20ms")
        .command("missing", "greenroom-it-no-such-program")
        .command("plain", plain.to_str().unwrap())
        .agent("exits", &["--exit-at-start", "37"])
        .agent("refuses", &["--fail-initialize"])
        .agent("future", &["--wrong-version"])
        .agent("silent", &["--hang-initialize"])
        .text("agents.silent", "start_timeout", "300ms");
    let server = setup.start();
    let cases = [
        ("missing", "greenroom-it-no-such-program"),
        ("plain", "not-executable"),
        ("exits", "37"),
        ("refuses", "as scripted"),
        ("future", "4242"),
        ("silent", ""),
    ];
    let tasks = cases.map(|(agent, _)| {
        server.create_group(agent, agent, "");
        server.submit(agent, agent)
    });
    for ((agent, word), task) in cases.iter().zip(&tasks) {
        let failed = server.finish_as(task, "failed");
        assert!(failed["error"]["code"].is_string(), "{agent}: {failed}");
        let message = failed["error"]["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty() && message.contains(word), "{agent}: {failed}");
        assert_eq!(failed["started_at"], json!(null), "{agent}: never started: {failed}");
        assert_eq!(server.list(agent, "runs").len(), 6, "{agent}");
        assert!(server.task_frames(task, "greenroom/turn_started").is_empty(), "{agent}");
        assert_eq!(server.task_frames(task, "greenroom/task_ended").len(), 1, "{agent}");
    }
    assert!(server.journal.prompts().is_empty());
    server.complete("work", "fine");
}

/// F7: a program that is installed later, or starts later, gets its task once.
#[test]
fn a_task_runs_once_its_agent_starts() {
    let directory = TempDir::new().unwrap();
    let program = directory.path().join("installed-late");
    let setup = Setup::new().retries("300ms").crashing().agent("late", &[]);
    let server = setup.text("agents.late", "command", program.to_str().unwrap()).start();
    let tasks = ["late", "crashing"].map(|agent| {
        server.create_group(agent, agent, "");
        (server.submit(agent, agent), server.submit(agent, "then"))
    });
    for (first, then) in &tasks {
        server.wait_retrying(first);
        assert_eq!(server.task(then)["state"], "queued");
    }
    symlink(scripted_agent(), program).unwrap();
    server.journal.open_gate("open");
    for (first, then) in &tasks {
        let ended = server.finish_as(first, "completed");
        assert_eq!(server.journal.times(ended["group"].as_str().unwrap()), 1, "{ended}");
        server.finish_as(then, "completed");
    }
    server.journal.assert_one_at_a_time();
}

/// a backoff after a failed start is as long as others, holds no slot, and survives
/// kill -9.
#[test]
fn a_backoff_after_a_failed_start_survives_a_crash() {
    let mut server =
        Setup::new().retries("2s").crashing().set("limits", "running_groups", 1).start();
    server.create_group("bad", "crashing", "");
    let task = server.submit("bad", "x");
    server.wait_retrying(&task);
    server.complete("other", "fine");
    server.kill_and_boot();
    server.journal.open_gate("open");
    server.finish_as(&task, "completed");
    let started = &server.frames_of_kind("bad", "greenroom/run_started");
    let exited = &server.frames_of_kind("bad", "greenroom/run_exited");
    assert_eq!(started.len(), 2, "{started:?}");
    let waited = millis(&started[1]["at"]) - millis(&exited[0]["at"]);
    assert!(1_600 <= waited, "after {waited} ms");
}

/// API-2: a task whose agent does not start can be cancelled immediately.
#[test]
fn a_task_can_be_cancelled_between_two_starts() {
    let server = Setup::new().retries("10m").crashing().start();
    server.create_group("bad", "crashing", "");
    let task = server.submit("bad", "x");
    server.wait_retrying(&task);
    server.cancel(&task).expect(202);
    assert_eq!(server.task(&task)["state"], "cancelled");
}

/// DQ-8: a compaction whose agent does not start is retried like a turn.
#[test]
fn a_compaction_whose_agent_does_not_start_is_retried() {
    let server = Setup::new().retries("300ms").crashing().start();
    server.journal.open_gate("open");
    server.create_group("work", "crashing", "");
    server.complete("work", "first");
    server.post("/v1/groups/work/stop", &json!({})).expect(202);
    server.wait_group("work", "no run", |group| group["current_run"].is_null());
    server.journal.close_gate("open");
    let task = server.compact("work");
    server.wait_retrying(&task);
    server.journal.open_gate("open");
    server.finish_as(&task, "completed");
    server.assert_compacted("work", 1);
}
