//! Every end of a run seals its digest, in the transaction of the end (I6, TD-1 to TD-3,
//! TD-10). After each test `greenroom verify` compares the rows with the frames, byte for byte;
//! which frame makes which finding is tested in `actors/core/tests/rules/digest_limits.rs`.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, process};

/// What happens when the run ends, as the name of a group, and the findings of an abnormal end.
const ACTIVITIES: [(&str, &[&str]); 4] = [
    ("nothing", &["abnormal_stop"]),
    ("turn", &["abnormal_stop", "incomplete_turn", "tool_without_result"]),
    ("compaction", &["abnormal_stop", "incomplete_turn"]),
    ("permission", &["abnormal_stop", "incomplete_turn", "unanswered_permission"]),
];

/// Starts a run with this activity, in a group named after it.
#[track_caller]
fn start_activity(server: &Server, activity: &str) {
    server.complete(activity, "first");
    match activity {
        "turn" => {
            server.submit(activity, "[[reply:x]][[tool:open]][[gate:never]]");
            server.wait_frame(activity, "the tool call", |frame| {
                frame.to_string().contains("\"tool_call\"")
            });
        }
        "compaction" => {
            server.compact_with(activity, "[[compaction:in_progress:c1]][[gate:never]]");
            server.wait_group(activity, "the compaction", |shown| {
                shown["compaction"]["active"] == true
            });
        }
        "permission" => drop(server.submit_asking(activity, "[[permission]]")),
        _ => {}
    }
}

/// Waits for the end of a group's only run, and checks its digest, the group's and the run's row.
#[track_caller]
fn assert_sealed(server: &Server, group: &str, outcome: &str, findings: &[&str]) -> Value {
    let exited = server
        .wait_frame(group, "the end of the run", |frame| frame["kind"] == "greenroom/run_exited");
    let run = exited["run"].as_str().unwrap();
    let digest = server.run_digest(run);
    assert_eq!(digest["outcome"], outcome, "{group}: {digest}\n{}", server.log.tail());
    let of_run = server.frames(group).iter().filter(|frame| frame["run"] == run).count();
    assert_eq!(
        [&digest["watermark_seq"], &digest["last_at"], &digest["frame_count"]],
        [&exited["seq"], &exited["at"], &json!(of_run)],
        "{group}: {digest}"
    );
    let found = digest["findings"].as_array().unwrap().iter();
    let mut found: Vec<&str> = found.map(|finding| finding["kind"].as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, findings, "{group}: {digest}");
    let of_group = server.digest(group);
    assert!(of_group["watermark_seq"].as_u64() >= exited["seq"].as_u64(), "{of_group}");
    assert_eq!(of_group["outcomes"], json!({ outcome: 1 }), "{group}: {of_group}");
    assert_eq!(server.list(group, "runs")[0]["outcome"], outcome);
    digest
}

/// TD-1, TD-2, TD-7, TD-10: an operator stops the run or deletes its group, the agent crashes,
/// exits, breaks the protocol or cannot start.
#[test]
fn each_end_by_an_operator_or_agent_seals_the_digest() {
    let server = Setup::new().asks().command("absent", "no-such-agent").start();
    for (activity, findings) in ACTIVITIES {
        start_activity(&server, activity);
        process::signal(server.journal.agent_pid(), Signal::KILL);
        assert_sealed(&server, activity, "crashed", findings);
    }
    server.turn("in-a-turn", "[[reply:x]][[die:0]]");
    assert_sealed(&server, "in-a-turn", "exited", &["incomplete_turn"]);
    server.complete("between", "[[reply:x]][[answer]][[die:0]]");
    assert_sealed(&server, "between", "exited", &[]);

    server.create_group("absent", "absent", "");
    server.turn("absent", "hello");
    let digest = assert_sealed(&server, "absent", "start_failed", &["abnormal_stop"]);
    assert_eq!(digest["turn_count"], 0, "no prompt was sent: {digest}");
    assert_eq!(server.digest("absent")["errors"]["agent_start_failed"]["count"], 1);

    server.turn("work", "[[reply:x]][[garbage-run:10]][[gate:never]]");
    let digest = assert_sealed(&server, "work", "protocol", &["abnormal_stop", "incomplete_turn"]);
    let newest = server.frames_of_kind("work", "greenroom/agent_output_rejected");
    let newest: Vec<Value> = newest[5..].iter().map(|frame| frame["seq"].clone()).collect();
    let rejected = json!({ "count": 10, "samples": newest });
    assert_eq!(digest["errors"]["agent_output_rejected"], rejected, "the newest five");

    for group in ["stopped", "deleted"] {
        server.complete(group, "[[reply:x]]");
    }
    server.post("/v1/groups/stopped/stop", &json!({})).expect(202);
    let sealed = assert_sealed(&server, "stopped", "stopped", &[]);
    server.complete("stopped", "another run");
    assert_eq!(server.run_digest(sealed["run"].as_str().unwrap()), sealed);
    assert_eq!(server.digest("stopped")["outcome"], json!(null), "it is alive");

    for (group, outcome) in [("deleted", "stopped"), ("between", "exited")] {
        server.delete(&format!("/v1/groups/{group}")).expect(202);
        assert_sealed(&server, group, outcome, &[]);
        server.wait_status(group, "archived");
        let digest = server.digest(group);
        assert_eq!(digest["outcome"], "deleted", "{digest}");
        assert_eq!(digest["watermark_seq"], server.group(group)["last_seq"], "{digest}");
        server.put(&format!("/v1/groups/{group}"), &json!({})).expect_any(&[200, 201]);
        assert_eq!(server.digest(group)["outcome"], json!(null), "{group} is revived");
    }
}

/// TD-1, TD-10: the server dies or stops, or storage fails; the digest is sealed by the next
/// server, or when storage works again.
#[test]
fn each_end_by_the_server_seals_the_digest() {
    let mut server = Setup::new().asks().start();
    ACTIVITIES.iter().for_each(|(activity, _)| start_activity(&server, activity));
    server.kill_and_boot();
    for (activity, findings) in ACTIVITIES {
        assert_sealed(&server, activity, "server_restart", findings);
    }
    server.submit("work", "[[reply:x]][[gate:go]][[reply:y]][[gate:never]]");
    server.journal.wait_gate("go");
    server.limit_file_size(Some(1));
    server.journal.open_gate("go");
    server.log.wait("the failure", |line| line.contains("storage failed"));
    server.limit_file_size(None);
    assert_sealed(&server, "work", "storage", &["abnormal_stop", "incomplete_turn"]);

    server.complete("ended", "first");
    server.restart();
    assert_sealed(&server, "ended", "stopped", &[]);
}
