//! Turns that are interrupted after the agent may have acted: what is reported of them, and that
//! they are not run again.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

/// Checks the report of an interrupted turn, and that it was sent once and settled once.
#[track_caller]
fn assert_interrupted(server: &Server, task: &Value, stop_reason: &str, side_effects: &[&str]) {
    let tail = server.log.tail();
    assert_eq!(task["state"], "interrupted", "{task}\n{tail}");
    assert_eq!(task["stop_reason"], stop_reason, "{task}");
    let cause = match stop_reason {
        "_process_exited" => "agent_exited",
        other => other.trim_start_matches('_'),
    };
    assert_eq!(task["interrupted"]["cause"], cause, "{task}");
    let reported = task["interrupted"]["side_effects"].as_str().unwrap_or_default();
    assert!(side_effects.contains(&reported), "{side_effects:?}: {task}");
    assert!(task["ended_at"].is_string(), "{task}");
    server.assert_attempts(task, 1);
    let settled = &server.task_frames(task, "greenroom/turn_settled")[0]["payload"];
    assert_eq!(settled["stop_reason"], task["stop_reason"], "{settled}");
    let ended = &server.task_frames(task, "greenroom/task_ended")[0]["payload"];
    assert_eq!(ended["interrupted"], task["interrupted"], "{ended}");
}

/// Kills the agent that started last, and waits for its end.
#[track_caller]
fn kill_agent(server: &Server, signal: Signal) {
    let agent = server.journal.agent_pid();
    eventually("the agent's death", &server.log, || {
        // Rust's handler ignores the first SIGSEGV that another process sends.
        process::signal(agent, signal);
        (!process::is_alive(agent)).then_some(())
    });
}

/// F5, R-1: however the agent ends during a turn, with output and without an open tool
/// call, the turn is `interrupted` and keeps its output, and the next turn runs in the same
/// session.
#[test]
fn a_turn_is_interrupted_however_its_agent_ends() {
    let server = Server::usual();
    for (group, end) in [("a", "[[die:0]]"), ("b", "[[die:1]]"), ("c", "[[abort]]")] {
        let task = server.submit(group, &format!("[[reply:said]][[gate:{group}]]{end}"));
        let next = server.submit(group, "next");
        server.journal.open_gate(group);
        let task = server.finish(&task);
        assert_interrupted(&server, &task, "_process_exited", &["none_observed"]);
        assert_eq!(task["text"], "said", "the output before the end was read");
        server.finish_as(&next, "completed");
    }
    for (group, signal) in [("d", Signal::SEGV), ("e", Signal::KILL), ("f", Signal::TERM)] {
        let task = server.submit(group, &format!("[[reply:said]][[gate:{group}]]"));
        let next = server.submit(group, "next");
        server.journal.wait_gate(group);
        kill_agent(&server, signal);
        let task = server.finish(&task);
        assert_interrupted(&server, &task, "_process_exited", &["none_observed"]);
        server.finish_as(&next, "completed");
    }
    let sessions = server.journal.events_named("new");
    assert_eq!(sessions.len(), 6, "each group's session was restored");
}

/// if an agent ends before any output, greenroom can only report that it observed no
/// side effect.
#[test]
fn a_turn_without_output_is_interrupted_if_its_agent_ends() {
    let server = Server::usual();
    let task = server.turn("work", "[[die:1]]");
    assert_interrupted(&server, &task, "_process_exited", &["unknown", "none_observed"]);
    server.complete("work", "next");
}

/// with an open tool call the side effects are `possible`, and the open calls are
/// named, the completed ones not.
#[test]
fn open_tool_calls_are_named() {
    let mut server = Server::usual();
    let words = "[[tool]][[tool:open]][[tool:open]][[reply:x]]";
    let died = server.submit("died", &format!("{words}[[gate:died]][[die:1]]"));
    server.journal.open_gate("died");
    let died = server.finish(&died);
    assert_interrupted(&server, &died, "_process_exited", &["possible"]);
    let killed = server.submit("killed", &format!("{words}[[gate:killed]]"));
    server.journal.wait_gate("killed");
    server.wait_frame("killed", "the last output", |frame| frame.to_string().contains("\"x\""));
    server.kill_and_boot();
    let killed = server.finish(&killed);
    assert_interrupted(&server, &killed, "_server_restart", &["possible"]);
    for task in [&died, &killed] {
        let calls = server.task_frames(task, "session/update");
        let calls = calls.iter().filter_map(|frame| {
            let update = &frame["payload"]["params"]["update"];
            let id = update["toolCallId"].as_str()?;
            (update["sessionUpdate"] == "tool_call").then(|| id.to_owned())
        });
        let calls: Vec<String> = calls.collect();
        let report = task["interrupted"].to_string();
        let named: Vec<bool> = calls.iter().map(|id| report.contains(&format!("{id:?}"))).collect();
        assert_eq!(named, [false, true, true], "{calls:?} in {report}");
    }
}

/// F6: a turn over its deadline is cancelled, and ends `interrupted`; an agent that obeys the
/// cancel keeps running.
#[test]
fn a_turn_over_its_deadline_is_interrupted() {
    let server = Server::usual();
    let body = json!({ "prompt": "[[reply:said]][[gate:never]]", "deadline_ms": 300 });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    let next = server.submit("work", "next");
    let task = server.finish(&task);
    assert_interrupted(&server, &task, "_deadline", &["none_observed"]);
    assert_eq!(task["text"], "said");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("cancel").len(), 1);
    assert_eq!(server.journal.events_named("start").len(), 1, "the agent obeyed the cancel");
}

/// F6: greenroom ends an agent that ignores the cancel at the deadline by escalation, and the next
/// turn runs in a new run, in the same session.
#[test]
fn an_agent_that_ignores_the_deadline_is_ended() {
    let server = Server::usual();
    let prompt = "[[ignore-cancel]][[reply:said]][[gate:never]]";
    let body = json!({ "prompt": prompt, "deadline_ms": 300 });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    let next = server.submit("work", "next");
    assert_interrupted(&server, &server.finish(&task), "_deadline", &["none_observed"]);
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("start").len(), 2);
    assert_eq!(server.journal.events_named("new").len(), 1, "the session was restored");
}

/// F12, F13: an agent that breaks the protocol is ended, and its turn is interrupted.
#[test]
fn a_protocol_error_interrupts_the_turn() {
    let server = Setup::new().text("limits", "line", "64KiB").start();
    for (group, word) in [
        ("garbage", "[[garbage-run:10]]"),
        ("long", "[[huge-line:70000]]"),
        ("deep", "[[deep:10000]]"),
    ] {
        let task = server.submit(group, &format!("[[reply:said]]{word}[[gate:never]]"));
        let next = server.submit(group, "next");
        let task = server.finish(&task);
        assert_interrupted(&server, &task, "_protocol", &["none_observed"]);
        assert_eq!(task["text"], "said");
        server.finish_as(&next, "completed");
    }
}

/// kill -9 of the server before any output, after some output, and with a pending
/// permission.
#[test]
fn a_kill_of_the_server_interrupts_running_turns() {
    let mut server = Setup::new().asks().start();
    let silent = server.submit("silent", "[[silent]][[gate:silent]]");
    let spoke = server.submit("spoke", "[[reply:said]][[gate:spoke]]");
    let asked = server.submit("asked", "[[permission]][[gate:never]]");
    let waiting = ["silent", "spoke", "asked"].map(|group| server.submit(group, "next"));
    server.journal.wait_gate("silent");
    server.journal.wait_gate("spoke");
    server.wait_frame("spoke", "the output", |frame| frame.to_string().contains("\"said\""));
    server.wait_pending("asked", 1);
    server.kill_and_boot();
    assert_interrupted(&server, &server.finish(&silent), "_server_restart", &["unknown"]);
    let spoke = server.finish(&spoke);
    assert_interrupted(&server, &spoke, "_server_restart", &["none_observed"]);
    assert_eq!(spoke["text"], "said");
    let any = ["unknown", "none_observed", "possible"];
    assert_interrupted(&server, &server.finish(&asked), "_server_restart", &any);
    for task in &waiting {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.journal.events_named("new").len(), 3, "the sessions were restored");
}

/// a turn reports the cause of its interruption, also if the server is killed before
/// the agent ends the turn.
#[test]
fn the_cause_of_an_interruption_survives_a_kill_of_the_server() {
    let mut server = Server::usual();
    let late = |group: &str, words: &str| {
        let body = json!({ "prompt": words, "deadline_ms": 300 });
        server.post(&format!("/v1/groups/{group}/turns"), &body).expect(202)
    };
    let with_output = late("said", "[[ignore-cancel]][[reply:said]][[gate:never]]");
    let silent = late("silent", "[[ignore-cancel]][[silent]][[gate:never]]");
    let both = late("both", "[[ignore-cancel]][[reply:said]][[gate:never]]");
    let cancelled = server.submit("off", "[[ignore-cancel]][[reply:said]][[gate:off]]");
    for group in ["said", "silent", "both"] {
        server.wait_frame(group, "the interruption", |frame| frame["kind"] == "greenroom/turn_cut");
    }
    server.cancel(&both).expect(202);
    server.journal.wait_gate("off");
    server.cancel(&cancelled).expect(202);
    server.kill_and_boot();
    assert_interrupted(&server, &server.finish(&with_output), "_deadline", &["none_observed"]);
    assert_interrupted(&server, &server.finish(&silent), "_deadline", &["unknown"]);
    assert_interrupted(&server, &server.finish(&both), "_deadline", &["none_observed"]);
    server.finish_as(&cancelled, "cancelled");
}

/// a response that the agent wrote before its death takes precedence over its death.
#[test]
fn a_response_before_the_death_of_the_agent_counts() {
    let server = Server::usual();
    let task = server.complete("work", "[[reply:said]][[answer]][[die:1]]");
    assert_eq!((&task["stop_reason"], &task["text"]), (&json!("end_turn"), &json!("said")));
    assert_eq!(task["interrupted"], json!(null));
    let last = server.complete("last", "[[reply:said]][[no-newline-eof]]");
    assert_eq!(last["stop_reason"], "end_turn");
}

/// API-1: a task that ends in another way is not reported as interrupted.
#[test]
fn other_ends_are_not_reported_as_interrupted() {
    let server = Server::usual();
    let failed = server.turn("work", "[[error:-32602:no]]");
    let cancelled = server.submit("work", "[[on-cancel:die:1]][[gate:off]]");
    server.journal.wait_gate("off");
    server.cancel(&cancelled).expect(202);
    let cancelled = server.finish_as(&cancelled, "cancelled");
    for task in [&server.complete("work", "x"), &failed, &cancelled] {
        assert_eq!(task["interrupted"], json!(null), "{task}");
    }
}
