//! Sessions: restored after the death of the agent and a restart of the server.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Server, Setup, eventually, process};

/// AM-4, AM-17, A-4, TD-9, I4, I16: after a restart the session is resumed with its context, else
/// loaded without new frames; if neither is possible the loss is reported, and as no turn was
/// interrupted, the queue continues in a new session and segment.
#[test]
fn a_lost_context_is_reported() {
    let mut server = Setup::new()
        .agent("resumes", &["--first-turn-marker"])
        .agent("loads", &["--first-turn-marker", "--no-resume"])
        .agent("forgets", &["--first-turn-marker", "--no-resume", "--no-load"])
        .start();
    let groups = ["resumes", "loads", "forgets"];
    for group in groups {
        server.put(&format!("/v1/groups/{group}"), &json!({ "agent": group })).expect(201);
        assert_eq!(server.complete(group, "one")["text"], "[first turn]echo: one");
    }
    let sessions = groups.map(|group| server.session(group));
    server.kill_and_boot();
    for (group, session) in groups.iter().zip(&sessions) {
        let lost = *group == "forgets";
        assert_eq!(server.session(group), *session);
        let before = server.frames_of_kind(group, "session/update").len();
        let text = if lost { "[first turn]echo: two" } else { "echo: two" };
        assert_eq!(server.complete(group, "two")["text"], text, "{group}");
        assert_eq!(server.session(group) == *session, !lost, "{group}");
        let updates = server.frames_of_kind(group, "session/update").len() - before;
        assert!(lost || updates == 1, "{group}: the replay of a load is not kept: {updates}");
        let losses = server.frames_of_kind(group, "greenroom/context_lost");
        assert_eq!(losses.len(), usize::from(lost), "{group}: {losses:?}");
        let segments = server.segments(group);
        let reasons: Vec<_> = segments.iter().map(|segment| &segment["end_reason"]).collect();
        let open = json!(null);
        let expected = [&json!("agent_restart"), &open];
        assert_eq!(reasons, expected[usize::from(!lost)..], "{group}");
    }
    for (call, session) in [("resume", &sessions[0]), ("load", &sessions[1])] {
        let calls = server.journal.events_named(call);
        assert_eq!(calls.len(), 1, "resume is tried first: {calls:?}");
        assert_eq!(calls[0]["session"], **session);
    }
    assert_eq!(server.journal.events_named("new").len(), 4);
}

/// F5, API-2: an agent that dies between turns is restarted for the next turn, in the same session;
/// the runs are listed newest first, each with its process and its end.
#[test]
fn an_agent_that_dies_between_turns_is_restarted() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    assert_eq!(server.get("/v1/groups/work/runs").expect(200)["items"], json!([]));
    server.complete("work", "one");
    let first = server.group("work")["current_run"].clone();
    let mut ended = Vec::new();
    for (signal, number) in [(Signal::KILL, 9), (Signal::TERM, 15)] {
        let agent = server.journal.agent_pid();
        process::signal(agent, signal);
        eventually("the run's end", &server.log, || {
            server.group("work")["current_run"].is_null().then_some(())
        });
        assert_eq!(server.complete("work", "next")["text"], "echo: next");
        assert_ne!(server.journal.agent_pid(), agent);
        ended.push((agent, number));
    }
    let prompts = server.journal.events_named("prompt");
    assert!(prompts.iter().all(|prompt| prompt["session"] == prompts[0]["session"]));
    let runs = server.list("work", "runs");
    assert_eq!(runs.len(), 3, "{runs:?}");
    assert_eq!((&runs[0]["state"], &runs[0]["ended_at"]), (&json!("ready"), &json!(null)));
    for (run, (pid, signal)) in runs[1..].iter().rev().zip(ended) {
        assert_eq!((&run["pid"], &run["signal"]), (&json!(pid), &json!(signal)), "{run}");
        assert_eq!(run["state"], "crashed", "{run}");
    }
    assert_eq!(runs[2]["id"], first);
    let page = server.get("/v1/groups/work/runs?limit=2").expect(200);
    let rest = format!("/v1/groups/work/runs?cursor={}", page["next_cursor"].as_str().unwrap());
    assert_eq!(server.get(&rest).expect(200)["items"], json!([runs[2]]));
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
