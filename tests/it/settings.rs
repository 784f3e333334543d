//! Settings that are changed while work waits, starts or runs: a task uses the settings in force at
//! its START, and a turn keeps its agent and its directory.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually};

/// Adds a profile with another compaction command, one that cannot compact, and one that rotates.
fn setup() -> Setup {
    Setup::new()
        .agent("other", &[])
        .set(
            "agents.other",
            "compaction",
            "{ strategy = \"command\", command = \"/compact-other\" }",
        )
        .agent("none", &[])
        .set("agents.none", "compaction", "{ strategy = \"none\" }")
        .agent("rotates", &[])
        .set("agents.rotates", "compaction", "{ strategy = \"rotate\" }")
}

/// Runs a turn in the group, pauses it, and orders a compaction, which waits.
fn order_waiting_compaction(server: &Server) -> Value {
    server.complete("work", "first");
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    server.compact("work")
}

fn put(server: &Server, settings: Value) {
    server.put("/v1/groups/work", &settings).expect(200);
}

fn resume(server: &Server) {
    server.post("/v1/groups/work/resume", &json!({})).expect(202);
}

#[track_caller]
fn assert_unsupported(server: &Server, task: &Value) {
    let task = server.finish_as(task, "skipped");
    assert_eq!(task["error"]["code"], "compaction_unsupported", "{task}");
    assert_eq!(server.compaction_of(&task)["status"], "skipped");
    server.assert_compacted("work", 0);
    let compacts = |prompt: &String| prompt.starts_with("/compact");
    assert!(!server.journal.prompts().iter().any(compacts), "{:?}", server.journal.prompts());
}

/// DQ-4: a waiting compaction does not use the settings at its acceptance: it uses the new agent's
/// command and strategy, also after a restart.
#[test]
fn a_waiting_compaction_uses_the_new_agent() {
    for (agent, killed, sent) in [
        ("other", false, "/compact-other"),
        ("other", true, "/compact-other"),
        ("rotates", false, "Your context is almost full"),
    ] {
        let mut server = setup().start();
        let task = order_waiting_compaction(&server);
        put(&server, json!({ "agent": agent }));
        if killed {
            server.kill_and_boot();
        }
        resume(&server);
        server.finish_as(&task, "completed");
        let prompts = server.journal.prompts();
        assert!(prompts[1].starts_with(sent), "{prompts:?}");
        server.assert_compacted("work", 1);
    }
}

/// The same holds if a new configuration has another command for the same profile.
#[test]
fn a_waiting_compaction_uses_the_new_configuration() {
    let mut server = setup().start();
    let task = order_waiting_compaction(&server);
    server.kill();
    let config = fs::read_to_string(server.home.config()).unwrap();
    server.home.write_config(&config.replace("\"/compact\"", "\"/compact-more\""));
    server.boot();
    resume(&server);
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.prompts()[1], "/compact-more");
}

/// The focus is the caller's, and is kept.
#[test]
fn a_waiting_compaction_keeps_its_focus() {
    let server = setup().start();
    server.complete("work", "first");
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let task = server.compact_with("work", "the plan");
    put(&server, json!({ "agent": "other" }));
    resume(&server);
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.prompts()[1], "/compact-other the plan");
}

/// A compaction that the profile in force cannot do is `skipped` with an error; so is one that
/// waits for a lock of another program, and one that the group ordered automatically.
#[test]
fn a_waiting_compaction_is_skipped_if_the_new_agent_cannot_compact() {
    let server = setup().start();
    let task = order_waiting_compaction(&server);
    put(&server, json!({ "agent": "none" }));
    resume(&server);
    assert_unsupported(&server, &task);
    server.complete("work", "next");

    let server = setup().start();
    server.complete("work", "first");
    server.acquire_lock(&server.session("work"), "outside").expect_any(&[200, 201]);
    let task = server.compact("work");
    let waiting = server.submit("work", "waiting");
    eventually("the wait for the lock", &server.log, || {
        (server.task(&task)["blocked_by"] == "lock").then_some(())
    });
    put(&server, json!({ "agent": "none" }));
    assert_unsupported(&server, &task);
    server.finish_as(&waiting, "completed");

    let server = setup().start();
    server.complete("work", "first");
    server.acquire_lock(&server.session("work"), "outside").expect_any(&[200, 201]);
    server.complete("work", "[[usage:950:1000]]");
    let task = server.auto_compactions("work").remove(0);
    put(&server, json!({ "agent": "none" }));
    assert_unsupported(&server, &task);
}

/// API-2: a retried compaction uses the agent in force at its start.
#[test]
fn a_retried_compaction_uses_the_new_agent() {
    let server = setup().start();
    let task = order_waiting_compaction(&server);
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    let again = server.retry(&task).expect(202);
    put(&server, json!({ "agent": "other" }));
    resume(&server);
    server.finish_as(&again, "completed");
    assert_eq!(server.journal.prompts()[1], "/compact-other");
}

/// If the new agent cannot restore the session, there is nothing to compact, and no compaction is
/// counted.
#[test]
fn a_compaction_of_a_lost_session_is_a_noop() {
    let lost = "{ strategy = \"command\", command = \"/compact\" }";
    let server = Setup::new()
        .agent("forgets", &["--no-load", "--no-resume"])
        .set("agents.forgets", "compaction", lost)
        .start();
    let task = order_waiting_compaction(&server);
    put(&server, json!({ "agent": "forgets" }));
    resume(&server);
    let task = server.finish_as(&task, "skipped");
    assert_eq!(server.compaction_of(&task)["status"], "noop");
    assert_eq!(server.journal.prompts(), ["first"]);
    server.assert_compacted("work", 0);
    server.complete("work", "next");
}

/// A task whose agent is still starting runs with the agent and in the directory in force at its
/// START, however often they change.
#[test]
fn a_run_that_is_outdated_during_its_start_gets_no_prompt() {
    let server = setup().agent("gated", &["--gate-initialize", "never"]).start();
    let directory = server.home.path().join("elsewhere");
    fs::create_dir(&directory).unwrap();
    server.put("/v1/groups/work", &json!({ "agent": "gated" })).expect(201);
    let task = server.submit("work", "for the agent in force");
    server.journal.wait("a starting agent", |event| event["event"] == "initialize");
    let first = server.journal.agent_pid();
    put(&server, json!({ "agent": "other" }));
    put(&server, json!({ "agent": "scripted", "cwd": directory }));
    let task = server.finish_as(&task, "completed");
    assert_eq!(task["attempt"], 1, "{task}");
    let prompt = server.journal.wait_prompt("for the agent in force");
    assert_ne!(prompt["pid"], first);
    let opened = server.journal.events_named("new");
    assert_eq!(opened.last().unwrap()["cwd"], json!(directory), "{opened:?}");
}

/// A running turn keeps its agent; the next task runs with the new agent, in the same session.
#[test]
fn a_running_turn_keeps_its_agent() {
    let server = setup().start();
    let running = server.submit("work", "[[gate:go]][[reply:x]]");
    let waiting = server.submit("work", "waiting");
    server.journal.wait_gate("go");
    put(&server, json!({ "agent": "other" }));
    assert_eq!(server.task(&running)["state"], "running");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish_as(&waiting, "completed");
    let prompts = server.journal.events_named("prompt");
    assert_ne!(prompts[0]["pid"], prompts[1]["pid"]);
    assert_eq!(prompts[0]["session"], prompts[1]["session"]);
    let agents: Vec<Value> =
        server.list("work", "runs").iter().map(|run| run["agent"].clone()).collect();
    assert_eq!(agents.len(), 2, "{agents:?}");
}

/// C12: an agent that may not work in the group's directory is refused, even if the request names
/// no directory; then nothing is changed.
#[test]
fn a_new_agent_is_checked_against_the_directory_in_force() {
    let setup = setup().agent("rooted", &[]);
    let home = setup.set("agents.rooted", "cwd_roots", "[\"$SCRIPT_DIR\"]").home();
    let (inside, outside) = (home.script().join("inside"), home.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let server = Server::start(home);
    server.put("/v1/groups/work", &json!({ "cwd": outside })).expect(201);
    let before = server.group("work");
    let refused = server.put("/v1/groups/work", &json!({ "agent": "rooted", "title": "x" }));
    refused.problem(400, "invalid-cwd");
    assert_eq!(server.group("work"), before);
    put(&server, json!({ "title": "y" }));
    put(&server, json!({ "agent": "rooted", "cwd": inside }));
    server.put("/v1/groups/work", &json!({ "cwd": outside })).problem(400, "invalid-cwd");
    server.complete("work", "x");
    server.put("/v1/groups/own", &json!({ "agent": "rooted" })).expect(201);
}
