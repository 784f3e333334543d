//! Cancel: an intent that leads to exactly one outcome.

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

/// API-2: a queued task is cancelled immediately and never reaches the agent; the other tasks run.
#[test]
fn a_queued_task_is_cancelled_immediately() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let cancelled = server.submit("work", "cancelled");
    let next = server.submit("work", "next");
    server.cancel(&cancelled).expect(202);
    let task = server.task(&cancelled);
    assert_eq!(task["state"], "cancelled");
    assert_eq!(task["started_at"], json!(null));
    assert_eq!(server.task(&running)["state"], "running", "the running turn is not touched");
    assert!(server.journal.events_named("cancel").is_empty());
    server.journal.open_gate("go");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.prompts(), ["[[gate:go]]", "next"]);
}

/// AM-5, API-2: a running task gets `session/cancel`, ends `cancelled` once the agent confirms it,
/// and the same agent runs the next task.
#[test]
fn a_running_task_is_cancelled_by_its_agent() {
    let server = Server::usual();
    let running = server.submit("work", "[[reply:before]][[gate:never]]");
    let next = server.submit("work", "next");
    server.journal.wait_gate("never");
    server.cancel(&running).expect(202);
    let ended = server.finish_as(&running, "cancelled");
    assert_eq!(ended["stop_reason"], "cancelled");
    assert_eq!(ended["text"], "before");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("cancel").len(), 1);
    assert_eq!(server.journal.events_named("start").len(), 1, "the agent was not killed");
    let ends = server.frames_where("work", &format!("&task={}", running["id"].as_str().unwrap()));
    let ends = ends.iter().filter(|frame| frame["kind"] == "greenroom/task_ended");
    assert_eq!(ends.count(), 1, "one outcome (I9)");
}

/// A-4, F6: greenroom ends an agent that ignores the cancel by escalation, after 10 s;
/// the task is `cancelled`, and the next task runs in a new agent, in the same session.
#[test]
fn escalation_ends_an_agent_that_ignores_cancel() {
    let server = Server::usual();
    server.complete("work", "first");
    let running = server.submit("work", "[[ignore-cancel]][[gate:never]]");
    let next = server.submit("work", "next");
    server.journal.wait_gate("never");
    let agent = server.journal.agent_pid();
    server.cancel(&running).expect(202);
    server.journal.wait("the cancel", |event| event["event"] == "cancel");
    assert!(process::is_alive(agent), "the agent has its 10 s");
    assert_eq!(server.task(&running)["state"], "running", "an intent is not an outcome");
    server.finish_as(&running, "cancelled");
    server.finish_as(&next, "completed");
    assert!(!process::is_alive(agent));
    let sessions: Vec<Value> = server.journal.events_named("prompt");
    assert_eq!(sessions[0]["session"], sessions[2]["session"], "the session was restored");
}

/// API-2: a terminal task answers 409 `already-terminal` and is unchanged (I9).
#[test]
fn cancel_of_a_terminal_task_is_refused() {
    let server = Server::usual();
    let done = server.complete("work", "done");
    server.cancel(&done).problem(409, "already-terminal");
    assert_eq!(server.task(&done), done);
    let running = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&running).expect(202);
    let cancelled = server.finish_as(&running, "cancelled");
    server.cancel(&running).problem(409, "already-terminal");
    assert_eq!(server.task(&running), cancelled);
}

/// R-2, cancel × response: cancels that race with the end leave one outcome, which
/// matches the answers to the cancels, and the queue continues.
#[test]
fn cancels_that_race_with_the_end_leave_one_outcome() {
    let server = Server::usual();
    for number in 0..30 {
        let task = server.submit("work", &format!("race {number}"));
        let reply = server.cancel(&task);
        reply.expect_any(&[202, 409]);
        let ended = server.finish(&task);
        let state = ended["state"].as_str().unwrap();
        assert!(["completed", "cancelled"].contains(&state), "{ended}");
        if reply.status == 409 {
            assert_eq!(state, "completed", "{ended}");
        }
    }
    server.complete("work", "after the races");
    server.journal.assert_one_at_a_time();
    let ends = server.frames_of_kind("work", "greenroom/task_ended");
    assert_eq!(ends.len(), 31);
}

/// R-2, claim × cancel: a task whose agent is still starting can be cancelled; its prompt
/// is never sent.
#[test]
fn a_claimed_task_is_cancelled_without_a_prompt() {
    let server = Setup::new().agent("slow", &["--gate-initialize", "start"]).start();
    server.put("/v1/groups/work", &json!({ "agent": "slow" })).expect(201);
    let task = server.submit("work", "never sent");
    server.journal.wait_gate("start");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    server.journal.open_gate("start");
    server.complete("work", "next");
    assert_eq!(server.journal.prompts(), ["next"]);
}

/// API-2, stop: the run ends immediately, its task is cancelled, and the group can start the next
/// run.
#[test]
fn stop_ends_the_run_and_cancels_its_task() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    let agent = server.journal.agent_pid();
    server.post("/v1/groups/work/stop", &json!({})).expect(202);
    server.finish_as(&running, "cancelled");
    eventually("the agent's end", &server.log, || (!process::is_alive(agent)).then_some(()));
    server.complete("work", "next");
    assert_ne!(server.journal.agent_pid(), agent);
}
