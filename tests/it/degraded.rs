//! A crash loop: a group whose runs end one after another without a turn waits before the next run.

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, millis};

/// The smallest measured wait, between the times of two frames, in percent of the backoff.
const WAIT_PERCENT_MIN: i64 = 80;

/// Creates the group `bad`, whose agent crashes at its start, and submits this number of turns; the
/// server retries nothing.
#[track_caller]
fn submit_to_crashing_agent(server: &Server, turns: usize) -> Vec<Value> {
    server.create_group("bad", "crashing", "");
    (0..turns).map(|number| server.submit("bad", &format!("turn {number}"))).collect()
}

/// Returns how long the group waited before its run number `run`, from 0, in milliseconds.
#[track_caller]
fn waited_before(server: &Server, run: usize) -> i64 {
    let started = server.frames_of_kind("bad", "greenroom/run_started");
    let exited = server.frames_of_kind("bad", "greenroom/run_exited");
    assert!(run < started.len(), "{started:?}");
    millis(&started[run]["at"]) - millis(&exited[run - 1]["at"])
}

/// F8, A-4: after the sixth run in a row without a turn the group is `degraded`, and the
/// next task visibly waits; a turn that settles ends it.
#[test]
fn a_group_is_degraded_from_the_sixth_crash_until_a_turn_settles() {
    let server = Setup::new().crashing().start();
    let tasks = submit_to_crashing_agent(&server, 5);
    tasks.iter().for_each(|task| drop(server.finish_as(task, "failed")));
    server.wait_status("bad", "idle");
    server.finish_as(&server.submit("bad", "sixth"), "failed");
    server.wait_status("bad", "degraded");
    server.wait_metric("greenroom_groups", &[("status", "degraded")], 1.0);
    let seventh = server.submit("bad", "seventh");
    let waiting = server.wait_blocked(&seventh, "backoff");
    assert_eq!(waiting["state"], "queued", "no attempt was made: {waiting}");
    let group = server.group("bad");
    assert_eq!((&group["status"], &group["blocked_by"]), (&json!("degraded"), &json!("backoff")));
    server.log.wait("the status in the log", |line| {
        line.contains("status group=bad ") && line.contains(" to=degraded")
    });
    server.journal.open_gate("open");
    server.finish_as(&seventh, "completed");
    server.wait_status("bad", "idle");
    assert!(10 * WAIT_PERCENT_MIN <= waited_before(&server, 6));
    server.post("/v1/groups/bad/stop", &json!({})).expect(202);
    server.wait_group("bad", "no run", |group| group["current_run"].is_null());
    server.journal.close_gate("open");
    for number in 0..5 {
        server.finish_as(&server.submit("bad", &format!("second loop {number}")), "failed");
    }
    server.wait_status("bad", "idle");
}

/// F8, DQ-9: each wait is twice as long as the previous one; meanwhile another group can use the
/// slot, and the queue is kept.
#[test]
fn backoff_doubles_and_holds_no_slot() {
    let server = Setup::new().crashing().set("limits", "running_groups", 1).start();
    let tasks = submit_to_crashing_agent(&server, 9);
    server.wait_status("bad", "degraded");
    eventually("a whole turn of another group during one wait", &server.log, || {
        let before = server.list("bad", "runs").len();
        let head = server.list("bad", "tasks?state=queued").into_iter().next()?;
        server.complete("other", "fine");
        let now = server.task(&head);
        (now["state"] == "queued" && before == server.list("bad", "runs").len()).then_some(())
    });
    tasks[..8].iter().for_each(|task| drop(server.finish_as(task, "failed")));
    assert_eq!(server.wait_blocked(&tasks[8], "backoff")["state"], "queued");
    for (run, backoff) in [(6, 1_000), (7, 2_000)] {
        let waited = waited_before(&server, run);
        assert!(
            backoff * WAIT_PERCENT_MIN / 100 <= waited,
            "run {run} after {waited} ms, not {backoff}"
        );
    }
    server.journal.open_gate("open");
    server.finish_as(&tasks[8], "completed");
    assert!(4_000 * WAIT_PERCENT_MIN / 100 <= waited_before(&server, 8));
    assert_eq!(server.journal.times("turn 8"), 1);
}

/// `resume`, or a PUT that changes the agent, starts the next run immediately.
#[test]
fn resume_or_a_new_agent_ends_the_backoff() {
    for (what, body) in [("resume", json!({})), ("agent", json!({ "agent": "scripted" }))] {
        let server = Setup::new().crashing().start();
        let tasks = submit_to_crashing_agent(&server, 9);
        tasks[..8].iter().for_each(|task| drop(server.finish_as(task, "failed")));
        server.wait_blocked(&tasks[8], "backoff");
        if what == "resume" {
            server.journal.open_gate("open");
            server.resume("bad");
        } else {
            server.put("/v1/groups/bad", &body).expect(200);
        }
        server.finish_as(&tasks[8], "completed");
        let waited = waited_before(&server, 8);
        assert!(waited < 3_000, "{what}: {waited} ms of 4,000");
        server.wait_status("bad", "idle");
    }
}

/// a task's retries wait for their own backoff only; the next task finds the group
/// degraded.
#[test]
fn retries_wait_for_their_own_backoff_only() {
    let server = Setup::new().retries("10ms").crashing().start();
    server.create_group("bad", "crashing", "");
    let first = server.submit("bad", "first");
    let second = server.submit("bad", "second");
    server.finish_as(&first, "failed");
    server.wait_blocked(&second, "backoff");
    assert_eq!(server.wait_status("bad", "degraded")["queue_length"], 1);
    server.journal.open_gate("open");
    server.finish_as(&second, "completed");
    assert!(10 * WAIT_PERCENT_MIN <= waited_before(&server, 6));
}

/// I9: a waiting task can be cancelled, and the group deleted, immediately.
#[test]
fn a_degraded_group_accepts_cancel_and_delete() {
    let server = Setup::new().crashing().start();
    let tasks = submit_to_crashing_agent(&server, 10);
    server.finish_as(&tasks[7], "failed");
    server.wait_blocked(&tasks[8], "backoff");
    server.cancel(&tasks[8]).expect(202);
    assert_eq!(server.task(&tasks[8])["state"], "cancelled");
    server.delete("/v1/groups/bad").expect(202);
    server.finish_as(&tasks[9], "cancelled");
    server.wait_status("bad", "archived");
    assert_eq!(server.list("bad", "runs").len(), 8);
}
