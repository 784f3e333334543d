//! Turns that are interrupted after the agent may have acted: what is reported of them, and that
//! they are not run again.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

/// Checks the report of an interrupted turn, and that it was sent once and settled once.
#[track_caller]
fn assert_interrupted(server: &Server, task: &Value, stop_reason: &str, side_effects: &str) {
    let tail = server.log.tail();
    assert_eq!(task["state"], "interrupted", "{task}\n{tail}");
    assert_eq!(task["stop_reason"], stop_reason, "{task}");
    let cause = match stop_reason {
        "_process_exited" => "agent_exited",
        other => other.trim_start_matches('_'),
    };
    assert_eq!(task["interrupted"]["cause"], cause, "{task}");
    assert_eq!(task["interrupted"]["side_effects"], side_effects, "{task}");
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

/// Checks that the report names the calls of the last two tools of the task, which are open, and
/// not that of the first.
#[track_caller]
fn assert_names_open_calls(server: &Server, task: &Value) {
    let updates = server.task_frames(task, "session/update");
    let calls = updates.iter().map(|frame| &frame["payload"]["params"]["update"]);
    let calls = calls.filter(|update| update["sessionUpdate"] == "tool_call");
    let report = task["interrupted"].to_string();
    let named: Vec<bool> =
        calls.map(|call| report.contains(&call["toolCallId"].to_string())).collect();
    assert_eq!(named, [false, true, true], "{report}");
}

/// F5, F6, F13, R-1, I7: however the agent ends during a turn that has output, or if the turn is
/// over its deadline, it is `interrupted` and keeps its output, and the next turn runs in the same
/// session. If a tool call is open, its side effects are `possible`, and the open calls are named.
/// A response that the agent wrote before its death takes precedence.
#[test]
fn a_turn_is_interrupted_however_its_agent_ends() {
    let server = Setup::new().retries("10ms").start();
    let tools = "[[tool]][[tool:open]][[tool:open]]";
    for (group, words, end, stop_reason, side_effects) in [
        ("a", "", "[[die:0]]", "_process_exited", "none_observed"),
        ("b", "", "[[abort]]", "_process_exited", "none_observed"),
        ("c", "", "[[garbage-run:10]][[gate:never]]", "_protocol", "unknown"),
        ("tools", tools, "[[die:1]]", "_process_exited", "possible"),
    ] {
        let task = server.submit(group, &format!("{words}[[reply:said]][[gate:{group}]]{end}"));
        let next = server.submit(group, "next");
        server.journal.open_gate(group);
        let task = server.finish(&task);
        assert_interrupted(&server, &task, stop_reason, side_effects);
        assert_eq!(task["text"], "said", "the output before the end was read");
        if group == "tools" {
            assert_names_open_calls(&server, &task);
        }
        server.finish_as(&next, "completed");
    }
    for (group, signal) in [("d", Signal::SEGV), ("e", Signal::KILL), ("f", Signal::TERM)] {
        let task = server.submit(group, &format!("[[reply:said]][[gate:{group}]]"));
        let next = server.submit(group, "next");
        server.journal.wait_gate(group);
        kill_agent(&server, signal);
        assert_interrupted(&server, &server.finish(&task), "_process_exited", "none_observed");
        server.finish_as(&next, "completed");
    }
    for words in ["[[reply:said]][[answer]][[die:1]]", "[[reply:said]][[no-newline-eof]]"] {
        let task = server.complete("answered", words);
        assert_eq!((&task["stop_reason"], &task["text"]), (&json!("end_turn"), &json!("said")));
        assert_eq!(task["interrupted"], json!(null), "a response takes precedence over the death");
    }
    let starts = server.journal.events_named("start").len();
    let body = json!({ "prompt": "[[reply:said]][[gate:never]]", "deadline_ms": 300 });
    let task = server.post("/v1/groups/late/turns", &body).expect(202);
    let next = server.submit("late", "next");
    let task = server.finish(&task);
    assert_interrupted(&server, &task, "_deadline", "none_observed");
    assert_eq!(task["text"], "said");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("cancel").len(), 1);
    assert_eq!(server.journal.events_named("start").len(), starts + 1, "it obeyed the cancel");
    assert_eq!(server.journal.events_named("new").len(), 9, "each group's session was restored");
}

/// R-1, AM-4, API-2: kill -9 of the server before any output, after some output, in a tool call,
/// with a pending permission, which becomes `void`, and after a deadline or a cancel, which stays
/// the cause. An answered permission stays answered.
#[test]
fn a_kill_of_the_server_interrupts_running_turns() {
    let mut server = Setup::new().asks().start();
    let says = |group: &str, words: &str| {
        let task = server.submit(group, &format!("{words}[[reply:said]][[gate:{group}]]"));
        server.journal.wait_gate(group);
        task
    };
    let spoke = says("spoke", "");
    let tools = says("tools", "[[tool]][[tool:open]][[tool:open]]");
    let cancelled = says("cancelled", "[[ignore-cancel]]");
    server.cancel(&cancelled).expect(202);
    for group in ["spoke", "tools"] {
        server.wait_frame(group, "the output", |frame| frame.to_string().contains("\"said\""));
    }
    let late =
        json!({ "prompt": "[[ignore-cancel]][[reply:x]][[gate:never]]", "deadline_ms": 300 });
    let late = server.post("/v1/groups/late/turns", &late).expect(202);
    server.wait_frame("late", "the cut", |frame| frame["kind"] == "greenroom/turn_cut");
    let silent = server.submit("silent", "[[silent]][[gate:silent]]");
    server.journal.wait_gate("silent");
    let (asked, pending) = server.submit_asking("asked", "[[permission]]");
    let (_, answered) = server.submit_asking("answered", "[[permission]][[gate:never]]");
    let answered = server.answer(&answered, "never").expect(200);
    let groups = ["spoke", "tools", "cancelled", "late", "silent", "asked"];
    let waiting = groups.map(|group| server.submit(group, "next"));
    server.kill_and_boot();
    let spoke = server.finish(&spoke);
    assert_interrupted(&server, &spoke, "_server_restart", "none_observed");
    assert_eq!(spoke["text"], "said");
    let tools = server.finish(&tools);
    assert_interrupted(&server, &tools, "_server_restart", "possible");
    assert_names_open_calls(&server, &tools);
    server.finish_as(&cancelled, "cancelled");
    assert_interrupted(&server, &server.finish(&late), "_deadline", "none_observed");
    assert_interrupted(&server, &server.finish(&silent), "_server_restart", "unknown");
    let asked = server.finish_as(&asked, "interrupted");
    assert_eq!(asked["stop_reason"], "_server_restart", "{asked}");
    server.answer(&pending, "once").problem(410, "void");
    assert!(server.permissions("state=pending").is_empty());
    assert_eq!(server.permission(&answered), answered);
    server.answer(&answered, "once").problem(409, "already-resolved");
    waiting.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    assert_eq!(server.journal.events_named("new").len(), 7, "the sessions were restored");
}
