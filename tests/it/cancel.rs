//! Cancel: an intent that leads to exactly one outcome.

use serde_json::json;

use crate::support::{Server, Setup, eventually, process};

/// API-2, AM-5, I9: a queued task is cancelled immediately and never reaches the agent; a running
/// task gets `session/cancel`, ends `cancelled` once the agent confirms it, and the same agent runs
/// the next task. A terminal task answers 409 `already-terminal` and is unchanged. A task whose
/// agent is still starting can be cancelled; its prompt is never sent. `stop` ends the run
/// immediately and cancels its task, and the group can start the next run.
#[test]
fn a_task_is_cancelled_once() {
    let server = Setup::new().agent("slow", &["--gate-initialize", "start"]).start();
    let running = server.submit("work", "[[reply:before]][[gate:never]]");
    let queued = server.submit("work", "cancelled");
    let next = server.submit("work", "next");
    server.journal.wait_gate("never");
    server.cancel(&queued).expect(202);
    let unsent = server.task(&queued);
    assert_eq!((&unsent["state"], &unsent["started_at"]), (&json!("cancelled"), &json!(null)));
    assert_eq!(server.task(&running)["state"], "running", "the running turn is not touched");
    assert!(server.journal.events_named("cancel").is_empty());
    server.cancel(&running).expect(202);
    let cancelled = server.finish_as(&running, "cancelled");
    assert_eq!(cancelled["stop_reason"], "cancelled");
    assert_eq!(cancelled["text"], "before");
    let done = server.finish_as(&next, "completed");
    assert_eq!(server.journal.prompts(), ["[[reply:before]][[gate:never]]", "next"]);
    assert_eq!(server.journal.events_named("cancel").len(), 1);
    assert_eq!(server.journal.events_named("start").len(), 1, "the agent was not killed");
    for ended in [&unsent, &cancelled, &done] {
        server.cancel(ended).problem(409, "already-terminal");
        assert_eq!(server.task(ended), *ended);
        assert_eq!(server.task_frames(ended, "greenroom/task_ended").len(), 1, "one outcome");
    }

    server.create_group("starting", "slow", "");
    let claimed = server.submit("starting", "never sent");
    server.journal.wait_gate("start");
    server.cancel(&claimed).expect(202);
    server.finish_as(&claimed, "cancelled");
    server.journal.open_gate("start");
    server.complete("starting", "sent");
    assert_eq!(server.journal.times("never sent"), 0);
    let running = server.submit("starting", "[[gate:stop]]");
    server.journal.wait_gate("stop");
    let agent = server.journal.agent_pid();
    server.post("/v1/groups/starting/stop", &json!({})).expect(202);
    server.finish_as(&running, "cancelled");
    eventually("the agent's end", &server.log, || (!process::is_alive(agent)).then_some(()));
    server.complete("starting", "last");
    assert_ne!(server.journal.agent_pid(), agent);
}

/// A-4, F6, R-1: greenroom ends an agent that ignores the cancel, of a caller or at a deadline, by
/// escalation, after 10 s; the task is `cancelled` or `interrupted`, and the next task runs in a
/// new agent, in the same session.
#[test]
fn escalation_ends_an_agent_that_ignores_cancel() {
    let server = Server::usual();
    let prompt = "[[ignore-cancel]][[reply:said]][[gate:late]]";
    let late = json!({ "prompt": prompt, "deadline_ms": 300 });
    let late = server.post("/v1/groups/late/turns", &late).expect(202);
    let after = server.submit("late", "after");
    server.journal.wait_gate("late");
    let running = server.submit("work", "[[ignore-cancel]][[gate:work]]");
    let next = server.submit("work", "next");
    server.journal.wait_gate("work");
    let agent = server.journal.agent_pid();
    server.cancel(&running).expect(202);
    server.journal.wait("the cancel", |event| event["event"] == "cancel" && event["pid"] == agent);
    assert!(process::is_alive(agent), "the agent has its 10 s");
    assert_eq!(server.task(&running)["state"], "running", "an intent is not an outcome");
    server.finish_as(&running, "cancelled");
    let late = server.finish_as(&late, "interrupted");
    assert_eq!(late["stop_reason"], "_deadline", "{late}");
    assert_eq!(late["interrupted"]["side_effects"], "none_observed", "{late}");
    server.assert_attempts(&late, 1);
    server.finish_as(&next, "completed");
    server.finish_as(&after, "completed");
    assert!(!process::is_alive(agent));
    assert_eq!(server.journal.events_named("start").len(), 4);
    assert_eq!(server.journal.events_named("new").len(), 2, "the sessions were restored");
}
