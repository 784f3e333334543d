//! A crash loop: a group whose runs end one after the other without a turn waits between them.

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, millis};

/// How much sooner than its backoff a start may show, by the times of two frames, in hundredths.
const EARLY: i64 = 80;

/// Gives the group `bad`, whose agent crashes at its start, so many turns; the server retries
/// nothing.
#[track_caller]
fn crash(server: &Server, turns: usize) -> Vec<Value> {
    server.make("bad", "crashing", "");
    (0..turns).map(|number| server.submit("bad", &format!("turn {number}"))).collect()
}

/// How long the group waited before its run number `run`, from 0, in milliseconds.
#[track_caller]
fn waited_before(server: &Server, run: usize) -> i64 {
    let started = server.frames_of_kind("bad", "greenroom/run_started");
    let exited = server.frames_of_kind("bad", "greenroom/run_exited");
    assert!(run < started.len(), "{started:?}");
    millis(&started[run]["at"]) - millis(&exited[run - 1]["at"])
}

/// F8, ARCHITECTURE 4: with the sixth run in a row the group is `degraded`, and what comes next
/// waits, in sight; a turn that settles ends it.
#[test]
fn begins_with_the_sixth_run_and_ends_with_a_turn() {
    let server = Setup::new().crashing().start();
    let tasks = crash(&server, 5);
    tasks.iter().for_each(|task| drop(server.finish_as(task, "failed")));
    server.wait_status("bad", "idle");
    server.finish_as(&server.submit("bad", "sixth"), "failed");
    server.wait_status("bad", "degraded");
    server.wait_metric("greenroom_groups", &[("status", "degraded")], 1.0);
    let seventh = server.submit("bad", "seventh");
    let waiting = server.wait_blocked(&seventh, "backoff");
    assert_eq!(waiting["state"], "queued", "nothing of it was tried: {waiting}");
    let group = server.group("bad");
    assert_eq!((&group["status"], &group["blocked_by"]), (&json!("degraded"), &json!("backoff")));
    server.log.wait("the status in the log", |line| {
        line.contains("status group=bad ") && line.contains(" to=degraded")
    });
    server.journal.open_gate("open");
    server.finish_as(&seventh, "completed");
    server.wait_status("bad", "idle");
    assert!(10 * EARLY <= waited_before(&server, 6));
    server.post("/v1/groups/bad/stop", &json!({})).expect(202);
    server.wait_group("bad", "no run", |group| group["current_run"].is_null());
    server.journal.close_gate("open");
    for number in 0..5 {
        server.finish_as(&server.submit("bad", &format!("anew {number}")), "failed");
    }
    server.wait_status("bad", "idle");
}

/// F8, DQ-9: each wait is twice as long as the one before; meanwhile the slot is another's, and the
/// queue is kept.
#[test]
fn waits_longer_and_holds_no_slot() {
    let server = Setup::new().crashing().set("limits", "running_groups", 1).start();
    let tasks = crash(&server, 9);
    server.wait_status("bad", "degraded");
    eventually("another's whole turn in one wait", &server.log, || {
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
        assert!(backoff * EARLY / 100 <= waited, "run {run} after {waited} ms, not {backoff}");
    }
    server.journal.open_gate("open");
    server.finish_as(&tasks[8], "completed");
    assert!(4_000 * EARLY / 100 <= waited_before(&server, 8));
    assert_eq!(server.journal.times("turn 8"), 1);
}

/// ARCHITECTURE 4: `resume`, or a PUT that changes the agent, lets it try at once.
#[test]
fn somebody_sees_to_it() {
    for (what, body) in [("resume", json!({})), ("agent", json!({ "agent": "scripted" }))] {
        let server = Setup::new().crashing().start();
        let tasks = crash(&server, 9);
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

/// ARCHITECTURE 4: a task's retries wait for their own backoff alone; the task behind them finds
/// the group degraded.
#[test]
fn retries_have_their_own_backoff() {
    let server = Setup::new().retries("10ms").crashing().start();
    server.make("bad", "crashing", "");
    let first = server.submit("bad", "first");
    let second = server.submit("bad", "second");
    server.finish_as(&first, "failed");
    server.wait_blocked(&second, "backoff");
    assert_eq!(server.wait_status("bad", "degraded")["queue_length"], 1);
    server.journal.open_gate("open");
    server.finish_as(&second, "completed");
    assert!(10 * EARLY <= waited_before(&server, 6));
}

/// I9: what waits can be cancelled, and the group deleted, at once.
#[test]
fn obeys_meanwhile() {
    let server = Setup::new().crashing().start();
    let tasks = crash(&server, 10);
    server.finish_as(&tasks[7], "failed");
    server.wait_blocked(&tasks[8], "backoff");
    server.cancel(&tasks[8]).expect(202);
    assert_eq!(server.task(&tasks[8])["state"], "cancelled");
    server.delete("/v1/groups/bad").expect(202);
    server.finish_as(&tasks[9], "cancelled");
    server.wait_status("bad", "archived");
    assert_eq!(server.list("bad", "runs").len(), 8);
}
