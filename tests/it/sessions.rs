//! Sessions: restored after the death of the agent and a restart of the server.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Server, Setup, eventually, process};

/// AM-4, AM-17: after a restart the session is resumed, with its context.
#[test]
fn a_session_is_resumed_after_a_restart() {
    let mut server = Setup::new().agent("marks", &["--first-turn-marker"]).start();
    server.put("/v1/groups/work", &json!({ "agent": "marks" })).expect(201);
    assert_eq!(server.complete("work", "one")["text"], "[first turn]echo: one");
    let session = server.group("work")["session_id"].clone();
    server.kill_and_boot();
    assert_eq!(server.group("work")["session_id"], session);
    assert_eq!(server.complete("work", "two")["text"], "echo: two");
    assert_eq!(server.group("work")["session_id"], session);
    let resumed = server.journal.events_named("resume");
    assert_eq!(resumed.len(), 1);
    assert_eq!(resumed[0]["session"], session);
    assert_eq!(server.journal.events_named("new").len(), 1);
    assert!(server.journal.events_named("load").is_empty(), "resume is tried first");
    assert!(server.frames_of_kind("work", "greenroom/context_lost").is_empty());
}

/// A-4, TD-9: an agent that cannot resume loads the session; its replay adds no new frames and no
/// text to the next turn.
#[test]
fn a_loaded_session_adds_no_frames() {
    let mut server = Setup::new().agent("loads", &["--no-resume"]).start();
    server.put("/v1/groups/work", &json!({ "agent": "loads" })).expect(201);
    server.complete("work", "[[reply:one]][[reply:two]]");
    let before = server.frames_of_kind("work", "session/update");
    server.kill_and_boot();
    let task = server.complete("work", "[[reply:three]]");
    assert_eq!(task["text"], "three");
    assert_eq!(server.journal.events_named("load").len(), 1);
    assert_eq!(server.journal.events_named("new").len(), 1);
    let after = server.frames_of_kind("work", "session/update");
    assert_eq!(after.len(), before.len() + 1, "{after:?}");
    assert!(after.iter().all(|frame| {
        frame["payload"]["params"]["update"]["sessionUpdate"] != "user_message_chunk"
    }));
}

/// I16, A-4: an agent that can neither resume nor load has lost the context: the loss is reported,
/// and with `on_interrupt = "continue"` the queue continues in a new session.
#[test]
fn a_lost_context_is_reported() {
    let setup = Setup::new().agent("forgets", &["--no-resume", "--no-load"]);
    let mut server = setup.text("defaults", "on_interrupt", "continue").start();
    server.put("/v1/groups/work", &json!({ "agent": "forgets" })).expect(201);
    server.complete("work", "one");
    let session = server.group("work")["session_id"].clone();
    server.kill_and_boot();
    server.complete("work", "two");
    assert_ne!(server.group("work")["session_id"], session);
    assert_eq!(server.frames_of_kind("work", "greenroom/context_lost").len(), 1);
}

/// F5: an agent that dies between turns is restarted for the next turn, in the same session.
#[test]
fn an_agent_that_dies_between_turns_is_restarted() {
    let server = Setup::new().agent("marks", &["--first-turn-marker"]).start();
    server.put("/v1/groups/work", &json!({ "agent": "marks" })).expect(201);
    server.complete("work", "one");
    for (number, signal) in [Signal::KILL, Signal::TERM].into_iter().enumerate() {
        let agent = server.journal.agent_pid();
        process::signal(agent, signal);
        eventually("the run's end in the transcript", &server.log, || {
            let exits = server.frames_of_kind("work", "greenroom/run_exited");
            (exits.len() == number + 1).then_some(())
        });
        assert_eq!(server.complete("work", "next")["text"], "echo: next");
        assert_ne!(server.journal.agent_pid(), agent);
    }
    let prompts = server.journal.events_named("prompt");
    assert!(prompts.iter().all(|prompt| prompt["session"] == prompts[0]["session"]));
}

/// F5, R-1: if an agent dies during a turn, the turn is `interrupted` and keeps its output; the
/// next task runs in the same session.
#[test]
fn a_turn_is_interrupted_if_its_agent_dies() {
    let server = Server::usual();
    for (group, word) in [("a", "[[die:0]]"), ("b", "[[die:9]]"), ("c", "[[abort]]")] {
        let prompt = format!("[[reply:some output]][[tool:open]][[gate:{group}]]{word}");
        let interrupted = server.submit(group, &prompt);
        let next = server.submit(group, "next");
        server.journal.open_gate(group);
        let interrupted = server.finish_as(&interrupted, "interrupted");
        assert_eq!(interrupted["stop_reason"], "_process_exited", "{word}: {interrupted}");
        assert_eq!(interrupted["text"], "some output");
        assert!(interrupted["interrupted"]["cause"].is_string(), "{interrupted}");
        server.finish_as(&next, "completed");
        assert_eq!(server.journal.times(&prompt), 1, "not run again");
        let exits = server.frames_of_kind(group, "greenroom/run_exited");
        assert_eq!(exits.len(), 1, "{exits:?}");
    }
}

/// API-2: the runs of a group are listed newest first, each with its process and its end.
#[test]
fn runs_are_listed_newest_first() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    assert_eq!(server.get("/v1/groups/work/runs").expect(200)["items"], json!([]));
    server.complete("work", "one");
    let first = server.group("work")["current_run"].clone();
    let pid = server.journal.agent_pid();
    process::signal(pid, Signal::KILL);
    eventually("the end of the run", &server.log, || {
        server.group("work")["current_run"].is_null().then_some(())
    });
    server.complete("work", "two");
    let runs = server.get("/v1/groups/work/runs").expect(200);
    let runs = runs["items"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{runs:?}");
    assert_eq!((&runs[1]["id"], &runs[1]["state"]), (&first, &json!("crashed")));
    assert_eq!((&runs[1]["pid"], &runs[1]["signal"]), (&json!(pid), &json!(9)));
    assert_eq!((&runs[0]["state"], &runs[0]["ended_at"]), (&json!("ready"), &json!(null)));
    let page = server.get("/v1/groups/work/runs?limit=1").expect(200);
    let rest = format!("/v1/groups/work/runs?cursor={}", page["next_cursor"].as_str().unwrap());
    assert_eq!(server.get(&rest).expect(200)["items"], json!([runs[1]]));
}
