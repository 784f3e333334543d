//! A crash loop: a group whose runs end one after another without a turn waits before the next run.

use serde_json::{Value, json};

use crate::support::{Setup, millis};

/// F8, A-4, DQ-9, I9: after the sixth run in a row without a turn the group is `degraded`, and the
/// next task visibly waits, without a slot, and can be cancelled immediately. The end of the
/// backoff, `resume` or a PUT that changes the agent starts the next run; a turn that settles ends
/// the loop.
#[test]
fn a_group_is_degraded_from_the_sixth_crash_until_a_turn_settles() {
    let server = Setup::new().crashing().set("limits", "running_groups", 1).start();
    server.create_group("bad", "crashing", "");
    server.complete("other", "starts the agent");
    for end in ["backoff", "resume", "agent"] {
        for number in 0..5 {
            server.finish_as(&server.submit("bad", &format!("{end} {number}")), "failed");
        }
        server.wait_status("bad", "idle");
        // Three more crashes: the next backoff is four seconds.
        for number in 5..8 {
            server.finish_as(&server.submit("bad", &format!("{end} {number}")), "failed");
        }
        server.wait_status("bad", "degraded");
        server.wait_metric("greenroom_groups", &[("status", "degraded")], 1.0);
        let cancelled = server.submit("bad", "cancelled");
        let waits = (&cancelled["state"], &cancelled["blocked_by"]);
        assert_eq!(waits, (&json!("queued"), &json!("backoff")), "no attempt: {cancelled}");
        let group = server.group("bad");
        let shown = (&group["status"], &group["blocked_by"]);
        assert_eq!(shown, (&json!("degraded"), &json!("backoff")));
        server.cancel(&cancelled).expect(202);
        assert_eq!(server.task(&cancelled)["state"], "cancelled", "immediately");
        let next = server.submit("bad", &format!("{end} next"));
        server.complete("other", "in the only slot");
        server.journal.open_gate("open");
        match end {
            "backoff" => {}
            "resume" => server.resume("bad"),
            _ => drop(server.put("/v1/groups/bad", &json!({ "agent": "scripted" })).expect(200)),
        }
        server.finish_as(&next, "completed");
        assert_eq!(server.journal.times(&format!("{end} next")), 1);
        server.wait_status("bad", "idle");
        let started = server.frames_of_kind("bad", "greenroom/run_started");
        let exited = server.frames_of_kind("bad", "greenroom/run_exited");
        let at = |frames: &[Value]| millis(&frames.last().unwrap()["at"]);
        let waited = at(&started) - at(&exited);
        let expected = if end == "backoff" { 3_800..i64::MAX } else { 0..4_000 };
        assert!(expected.contains(&waited), "{end}: {waited} ms");
        server.post("/v1/groups/bad/stop", &json!({})).expect(202);
        server.wait_group("bad", "no run", |group| group["current_run"].is_null());
        server.journal.close_gate("open");
    }
    server.log.wait("the status in the log", |line| {
        line.contains("status group=bad ") && line.contains(" to=degraded")
    });
}
