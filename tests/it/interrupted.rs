//! Turns that are cut off after the agent may have acted: what is said of them, and that they are
//! not run again (RELIABILITY 1).

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

/// Checks what is said of a turn that was cut off, and that it was sent once and settled once.
#[track_caller]
fn assert_cut(server: &Server, task: &Value, stop_reason: &str, side_effects: &[&str]) {
    let tail = server.log.tail();
    assert_eq!(task["state"], "interrupted", "{task}\n{tail}");
    assert_eq!(task["stop_reason"], stop_reason, "{task}");
    let cause = match stop_reason {
        "_process_exited" => "agent_exited",
        other => other.trim_start_matches('_'),
    };
    assert_eq!(task["interrupted"]["cause"], cause, "{task}");
    let said = task["interrupted"]["side_effects"].as_str().unwrap_or_default();
    assert!(side_effects.contains(&said), "{side_effects:?}: {task}");
    assert!(task["ended_at"].is_string(), "{task}");
    server.assert_attempts(task, 1);
    let settled = &server.task_frames(task, "greenroom/turn_settled")[0]["payload"];
    assert_eq!(settled["stop_reason"], task["stop_reason"], "{settled}");
    let ended = &server.task_frames(task, "greenroom/task_ended")[0]["payload"];
    assert_eq!(ended["interrupted"], task["interrupted"], "{ended}");
}

/// Kills the agent that started last, and waits until it is gone.
#[track_caller]
fn kill_agent(server: &Server, signal: Signal) {
    let agent = server.journal.agent_pid();
    eventually("the agent's death", &server.log, || {
        // Rust's own handler forgives the first SIGSEGV that comes from outside.
        process::signal(agent, signal);
        (!process::is_alive(agent)).then_some(())
    });
}

/// F5, RELIABILITY 1: whichever way the agent ends in mid-turn, with output and no tool call open,
/// the turn is `interrupted` with what it had said, and the next one runs, in the same session.
#[test]
fn the_agent_ends() {
    let server = Server::usual();
    for (group, end) in [("a", "[[die:0]]"), ("b", "[[die:1]]"), ("c", "[[abort]]")] {
        let task = server.submit(group, &format!("[[reply:said]][[gate:{group}]]{end}"));
        let next = server.submit(group, "next");
        server.journal.open_gate(group);
        let task = server.finish(&task);
        assert_cut(&server, &task, "_process_exited", &["none_observed"]);
        assert_eq!(task["text"], "said", "what came before the end was read");
        server.finish_as(&next, "completed");
    }
    for (group, signal) in [("d", Signal::SEGV), ("e", Signal::KILL), ("f", Signal::TERM)] {
        let task = server.submit(group, &format!("[[reply:said]][[gate:{group}]]"));
        let next = server.submit(group, "next");
        server.journal.wait_gate(group);
        kill_agent(&server, signal);
        let task = server.finish(&task);
        assert_cut(&server, &task, "_process_exited", &["none_observed"]);
        server.finish_as(&next, "completed");
    }
    let sessions = server.journal.events_named("new");
    assert_eq!(sessions.len(), 6, "each group's session was restored");
}

/// RELIABILITY 1: an agent that ends before it said anything: nobody can say more than that no side
/// effect was seen.
#[test]
fn the_agent_ends_in_silence() {
    let server = Server::usual();
    let task = server.turn("work", "[[die:1]]");
    assert_cut(&server, &task, "_process_exited", &["unknown", "none_observed"]);
    server.complete("work", "next");
}

/// RELIABILITY 1: with a tool call open the side effects are `possible`, and the open calls are
/// named; those that had completed are not among them.
#[test]
fn open_tools_are_named() {
    let mut server = Server::usual();
    let words = "[[tool]][[tool:open]][[tool:open]][[reply:x]]";
    let died = server.submit("died", &format!("{words}[[gate:died]][[die:1]]"));
    server.journal.open_gate("died");
    let died = server.finish(&died);
    assert_cut(&server, &died, "_process_exited", &["possible"]);
    let killed = server.submit("killed", &format!("{words}[[gate:killed]]"));
    server.journal.wait_gate("killed");
    server.wait_frame("killed", "the last output", |frame| frame.to_string().contains("\"x\""));
    server.kill_and_boot();
    let killed = server.finish(&killed);
    assert_cut(&server, &killed, "_server_restart", &["possible"]);
    for task in [&died, &killed] {
        let calls = server.task_frames(task, "session/update");
        let calls = calls.iter().filter_map(|frame| {
            let update = &frame["payload"]["params"]["update"];
            let id = update["toolCallId"].as_str()?;
            (update["sessionUpdate"] == "tool_call").then(|| id.to_owned())
        });
        let calls: Vec<String> = calls.collect();
        let said = task["interrupted"].to_string();
        let named: Vec<bool> = calls.iter().map(|id| said.contains(&format!("{id:?}"))).collect();
        assert_eq!(named, [false, true, true], "{calls:?} in {said}");
    }
}

/// F6: a turn over its deadline is cancelled, and `interrupted`; an agent that listens stays.
#[test]
fn the_deadline() {
    let server = Server::usual();
    let body = json!({ "prompt": "[[reply:said]][[gate:never]]", "deadline_ms": 300 });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    let next = server.submit("work", "next");
    let task = server.finish(&task);
    assert_cut(&server, &task, "_deadline", &["none_observed"]);
    assert_eq!(task["text"], "said");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("cancel").len(), 1);
    assert_eq!(server.journal.events_named("start").len(), 1, "the agent listened");
}

/// F6: an agent that does not hear of the deadline is ended by the ladder, and the next turn runs
/// in a new run, in the same session.
#[test]
fn the_deadline_of_a_deaf_agent() {
    let server = Server::usual();
    let prompt = "[[ignore-cancel]][[reply:said]][[gate:never]]";
    let body = json!({ "prompt": prompt, "deadline_ms": 300 });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    let next = server.submit("work", "next");
    assert_cut(&server, &server.finish(&task), "_deadline", &["none_observed"]);
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("start").len(), 2);
    assert_eq!(server.journal.events_named("new").len(), 1, "the session was restored");
}

/// F12, F13: an agent that breaks the protocol is ended.
#[test]
fn the_protocol() {
    let server = Setup::new().text("limits", "line", "64KiB").start();
    for (group, word) in [
        ("garbage", "[[garbage-run:10]]"),
        ("long", "[[huge-line:70000]]"),
        ("deep", "[[deep:10000]]"),
    ] {
        let task = server.submit(group, &format!("[[reply:said]]{word}[[gate:never]]"));
        let next = server.submit(group, "next");
        let task = server.finish(&task);
        assert_cut(&server, &task, "_protocol", &["none_observed"]);
        assert_eq!(task["text"], "said");
        server.finish_as(&next, "completed");
    }
}

/// RELIABILITY 1: kill -9 of the server, before any output, after some, and with a permission open.
#[test]
fn the_server_is_killed() {
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
    assert_cut(&server, &server.finish(&silent), "_server_restart", &["unknown"]);
    let spoke = server.finish(&spoke);
    assert_cut(&server, &spoke, "_server_restart", &["none_observed"]);
    assert_eq!(spoke["text"], "said");
    let any = ["unknown", "none_observed", "possible"];
    assert_cut(&server, &server.finish(&asked), "_server_restart", &any);
    for task in &waiting {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.journal.events_named("new").len(), 3, "the sessions were restored");
}

/// RELIABILITY 1: what cut a turn off is what is said of it, also if the server is killed before
/// the agent gave it up.
#[test]
fn the_server_is_killed_after_a_cut() {
    let mut server = Server::usual();
    let late = |group: &str, words: &str| {
        let body = json!({ "prompt": words, "deadline_ms": 300 });
        server.post(&format!("/v1/groups/{group}/turns"), &body).expect(202)
    };
    let said = late("said", "[[ignore-cancel]][[reply:said]][[gate:never]]");
    let silent = late("silent", "[[ignore-cancel]][[silent]][[gate:never]]");
    let both = late("both", "[[ignore-cancel]][[reply:said]][[gate:never]]");
    let called_off = server.submit("off", "[[ignore-cancel]][[reply:said]][[gate:off]]");
    for group in ["said", "silent", "both"] {
        server.wait_frame(group, "the cut", |frame| frame["kind"] == "greenroom/turn_cut");
    }
    server.cancel(&both).expect(202);
    server.journal.wait_gate("off");
    server.cancel(&called_off).expect(202);
    server.kill_and_boot();
    assert_cut(&server, &server.finish(&said), "_deadline", &["none_observed"]);
    assert_cut(&server, &server.finish(&silent), "_deadline", &["unknown"]);
    assert_cut(&server, &server.finish(&both), "_deadline", &["none_observed"]);
    server.finish_as(&called_off, "cancelled");
}

/// RELIABILITY 1: a response that the agent wrote before it died wins over its death.
#[test]
fn the_response_wins() {
    let server = Server::usual();
    let task = server.complete("work", "[[reply:said]][[answer]][[die:1]]");
    assert_eq!((&task["stop_reason"], &task["text"]), (&json!("end_turn"), &json!("said")));
    assert_eq!(task["interrupted"], json!(null));
    let last = server.complete("last", "[[reply:said]][[no-newline-eof]]");
    assert_eq!(last["stop_reason"], "end_turn");
}

/// API 1: what ends in another way is not said to be interrupted.
#[test]
fn others_are_not() {
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
