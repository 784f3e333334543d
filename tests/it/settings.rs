//! Settings that are changed while work waits, starts or runs: a task uses the settings in force at
//! its START, and a turn keeps its agent and its directory. Every wait of a compaction, and every
//! way to change its profile, is in the tables of actors/core/tests/rules/settings.rs.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// Changes the group's settings.
#[track_caller]
fn put(server: &Server, group: &str, settings: Value) {
    server.put(&format!("/v1/groups/{group}"), &settings).expect(200);
}

/// DQ-4, API-2: a waiting compaction does not use the settings at its acceptance: it uses the
/// command and strategy of the new agent, or of a new configuration, with its caller's focus; so
/// does a retried one. One that the new agent cannot do is `skipped` with an error, one of a
/// session that it cannot restore is a noop.
#[test]
fn a_waiting_compaction_uses_the_new_agent() {
    let mut setup = Setup::new();
    for (agent, arguments, compaction) in [
        ("other", &[][..], "{ strategy = \"command\", command = \"/compact-other\" }"),
        ("none", &[], "{ strategy = \"none\" }"),
        ("rotates", &[], "{ strategy = \"rotate\" }"),
        ("forgets", &["--no-load", "--no-resume"], "{ strategy = \"command\", command = \"/x\" }"),
    ] {
        setup = setup.agent(agent, arguments);
        setup = setup.set(&format!("agents.{agent}"), "compaction", compaction);
    }
    let mut server = setup.start();
    let groups = ["other", "again", "rotates", "scripted", "none", "forgets"];
    let mut tasks = groups.map(|group| {
        server.complete(group, "first");
        server.post(&format!("/v1/groups/{group}/pause"), &json!({})).expect(202);
        server.compact_with(group, "the plan")
    });
    server.cancel(&tasks[1]).expect(202);
    tasks[1] = server.retry(&server.finish_as(&tasks[1], "cancelled")).expect(202);
    for group in groups {
        let agent = if group == "again" { "other" } else { group };
        put(&server, group, json!({ "agent": agent }));
    }
    server.kill();
    let config = fs::read_to_string(server.home.config()).unwrap();
    server.home.write_config(&config.replace("\"/compact\"", "\"/compact-more\""));
    server.boot();
    for ((group, task), sent) in groups.into_iter().zip(&tasks).zip([
        Some("/compact-other the plan"),
        Some("/compact-other the plan"),
        Some("Your context is almost full"),
        Some("/compact-more the plan"),
        None,
        None,
    ]) {
        server.resume(group);
        let prompts = server.journal.prompts().len();
        let state = if sent.is_some() { "completed" } else { "skipped" };
        let task = server.finish_as(task, state);
        server.assert_compacted(group, usize::from(sent.is_some()));
        let prompts = server.journal.prompts().split_off(prompts);
        assert_eq!(prompts.len(), usize::from(sent.is_some()), "{group}: {prompts:?}");
        if let Some(sent) = sent {
            assert!(prompts[0].starts_with(sent), "{group}: {prompts:?}");
        } else {
            let unsupported = group == "none";
            let code = unsupported.then_some("compaction_unsupported");
            assert_eq!(task["error"]["code"], json!(code), "{task}");
            let status = if unsupported { "skipped" } else { "noop" };
            assert_eq!(server.compaction_of(&task)["status"], status);
            server.complete(group, "next");
        }
    }
}

/// A running turn keeps its agent; the next task runs with the new agent, in the same session. A
/// task whose agent is still starting runs with the agent and in the directory in force at its
/// START, however often they change.
#[test]
fn a_task_uses_the_agent_and_directory_in_force_at_its_start() {
    let never = ["--gate-initialize", "never"];
    let setup = Setup::new().agent("other", &[]).agent("gated", &never).agent("also_gated", &never);
    let server = setup.start();
    let running = server.submit("work", "[[gate:go]][[reply:x]]");
    let waiting = server.submit("work", "waiting");
    server.journal.wait_gate("go");
    put(&server, "work", json!({ "agent": "other" }));
    assert_eq!(server.task(&running)["state"], "running");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish_as(&waiting, "completed");
    let prompts = server.journal.events_named("prompt");
    assert_ne!(prompts[0]["pid"], prompts[1]["pid"]);
    assert_eq!(prompts[0]["session"], prompts[1]["session"]);
    let runs = server.list("work", "runs");
    let agents: Vec<&Value> = runs.iter().map(|run| &run["agent"]).collect();
    assert_eq!(agents, ["other", "scripted"], "newest first");

    let directory = server.home.path().join("elsewhere");
    fs::create_dir(&directory).unwrap();
    server.create_group("starting", "gated", "");
    let task = server.submit("starting", "for the agent in force");
    server.journal.wait_gate("never");
    let first = server.journal.agent_pid();
    put(&server, "starting", json!({ "agent": "also_gated" }));
    put(&server, "starting", json!({ "agent": "scripted", "cwd": directory }));
    let task = server.finish_as(&task, "completed");
    assert_eq!(task["attempt"], 1, "{task}");
    let prompt = server.journal.wait_prompt("for the agent in force");
    assert_ne!(prompt["pid"], first);
    let opened = server.journal.events_named("new");
    assert_eq!(opened.last().unwrap()["cwd"], json!(directory), "{opened:?}");
}

/// C12: an agent that may not work in the group's directory is refused, even if the request names
/// no directory; then nothing is changed.
#[test]
fn a_new_agent_is_checked_against_the_directory_in_force() {
    let setup = Setup::new().agent("rooted", &[]);
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
    put(&server, "work", json!({ "title": "y" }));
    put(&server, "work", json!({ "agent": "rooted", "cwd": inside }));
    server.put("/v1/groups/work", &json!({ "cwd": outside })).problem(400, "invalid-cwd");
    server.complete("work", "x");
    server.put("/v1/groups/own", &json!({ "agent": "rooted" })).expect(201);
}
