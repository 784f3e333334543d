//! Every end of a run seals its digest, in the transaction of the end (I6, TD-1 to TD-3,
//! TD-10). After each test `greenroom verify` compares the rows with the frames, byte for byte.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, process};

/// The activity during which the run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Activity {
    Nothing,
    Turn,
    Compaction,
    Permission,
}

const ALL: [Activity; 4] =
    [Activity::Nothing, Activity::Turn, Activity::Compaction, Activity::Permission];

/// Starts a run with this activity, in a group named after it.
#[track_caller]
fn start_activity(server: &Server, name: &str, activity: Activity) -> String {
    let group = format!("{name}-{activity:?}").to_lowercase();
    server.complete(&group, "first");
    match activity {
        Activity::Nothing => {}
        Activity::Turn => {
            server.submit(&group, "[[reply:x]][[tool:open]][[gate:never]]");
            server.wait_frame(&group, "the tool call", |frame| {
                frame.to_string().contains("\"tool_call\"")
            });
        }
        Activity::Compaction => {
            server.compact_with(&group, "[[compaction:in_progress:c1]][[gate:never]]");
            server.wait_group(&group, "the compaction", |shown| {
                shown["compaction"]["active"] == true
            });
        }
        Activity::Permission => {
            server.submit_asking(&group, "[[permission]]");
        }
    }
    group
}

/// Waits for the end of a group's only run, and checks its digest and the group's.
#[track_caller]
fn assert_sealed(server: &Server, group: &str, outcome: &str) -> Value {
    let exited = server
        .wait_frame(group, "the end of the run", |frame| frame["kind"] == "greenroom/run_exited");
    let run = exited["run"].as_str().unwrap();
    let digest = server.run_digest(run);
    assert_eq!(digest["outcome"], outcome, "{group}: {digest}\n{}", server.log.tail());
    let of_run = server.frames(group).iter().filter(|frame| frame["run"] == run).count();
    for (name, value) in [
        ("watermark_seq", &exited["seq"]),
        ("last_at", &exited["at"]),
        ("frame_count", &json!(of_run)),
        ("run", &json!(run)),
        ("group", &json!(group)),
    ] {
        assert_eq!(&digest[name], value, "{group}: {name} of {digest}");
    }
    let of_group = server.digest(group);
    assert!(of_group["watermark_seq"].as_u64() >= exited["seq"].as_u64(), "{of_group}");
    assert_eq!(of_group["outcomes"], json!({ outcome: 1 }), "{group}: {of_group}");
    let listed = server.list(group, "runs");
    assert_eq!(listed[0]["outcome"], outcome, "{listed:?}");
    digest
}

/// Returns the kinds of the findings, sorted.
fn findings(digest: &Value) -> Vec<String> {
    let findings = digest["findings"].as_array().unwrap();
    let kinds = findings.iter().map(|finding| finding["kind"].as_str().unwrap().to_owned());
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    kinds
}

/// Checks the findings of a run that ended abnormally during `activity`.
#[track_caller]
fn assert_findings(digest: &Value, activity: Activity) {
    let mut expected = vec!["abnormal_stop"];
    expected.extend((activity != Activity::Nothing).then_some("incomplete_turn"));
    expected.extend((activity == Activity::Turn).then_some("tool_without_result"));
    expected.extend((activity == Activity::Permission).then_some("unanswered_permission"));
    assert_eq!(findings(digest), expected, "{activity:?}: {digest}");
}

/// TD-1, TD-2, TD-10: an operator stops the run, the agent crashes, exits, breaks the protocol or
/// cannot start; a crash has a finding for each open activity.
#[test]
fn each_end_by_an_operator_or_agent_seals_the_digest() {
    let server = Setup::new().asks().command("absent", "no-such-agent").start();
    for activity in ALL {
        let group = start_activity(&server, "stopped", activity);
        server.post(&format!("/v1/groups/{group}/stop"), &json!({})).expect(202);
        let digest = assert_sealed(&server, &group, "stopped");
        assert!(!findings(&digest).contains(&"abnormal_stop".to_owned()), "{digest}");

        let group = start_activity(&server, "crashed", activity);
        process::signal(server.journal.agent_pid(), Signal::KILL);
        assert_findings(&assert_sealed(&server, &group, "crashed"), activity);
    }
    server.turn("in-a-turn", "[[reply:x]][[die:0]]");
    assert_eq!(findings(&assert_sealed(&server, "in-a-turn", "exited")), ["incomplete_turn"]);
    server.complete("between", "[[reply:x]][[answer]][[die:0]]");
    assert_eq!(findings(&assert_sealed(&server, "between", "exited")), [""; 0]);

    server.create_group("absent", "absent", "");
    server.turn("absent", "hello");
    let digest = assert_sealed(&server, "absent", "start_failed");
    assert_eq!(findings(&digest), ["abnormal_stop"], "{digest}");
    assert_eq!(digest["turn_count"], 0, "no prompt was sent: {digest}");
    assert_eq!(server.digest("absent")["errors"]["agent_start_failed"]["count"], 1);

    server.turn("work", "[[reply:x]][[garbage-run:10]][[gate:never]]");
    let digest = assert_sealed(&server, "work", "protocol");
    assert_eq!(findings(&digest), ["abnormal_stop", "incomplete_turn"], "{digest}");
    let rejected = &digest["errors"]["agent_output_rejected"];
    let newest = server.frames_of_kind("work", "greenroom/agent_output_rejected");
    let newest: Vec<Value> = newest[5..].iter().map(|frame| frame["seq"].clone()).collect();
    assert_eq!(*rejected, json!({ "count": 10, "samples": newest }), "the newest five");
}

/// TD-1, TD-7: the group is deleted, with or without a live session; a revived group has no
/// outcome. Frames after the seal change the counts of the group, but not the outcome.
#[test]
fn deletion_seals_and_late_frames_do_not_change_the_outcome() {
    let server = Setup::new().asks().start();
    for activity in ALL {
        let group = start_activity(&server, "deleted", activity);
        server.delete(&format!("/v1/groups/{group}")).expect(202);
        assert_sealed(&server, &group, "stopped");
        assert_eq!(server.digest(&group)["outcome"], "deleted");
    }
    server.put("/v1/groups/never", &json!({})).expect(201);
    server.complete("once", "[[reply:x]][[answer]][[die:0]]");
    assert_sealed(&server, "once", "exited");
    for group in ["never", "once"] {
        server.delete(&format!("/v1/groups/{group}")).expect(202);
        server.wait_status(group, "archived");
        let digest = server.digest(group);
        assert_eq!(digest["outcome"], "deleted", "{digest}");
        assert_eq!(digest["watermark_seq"], server.group(group)["last_seq"], "{digest}");
        server.put(&format!("/v1/groups/{group}"), &json!({})).expect_any(&[200, 201]);
        assert_eq!(server.digest(group)["outcome"], json!(null), "{group} is revived");
    }

    let group = start_activity(&server, "late", Activity::Nothing);
    server.post(&format!("/v1/groups/{group}/stop"), &json!({})).expect(202);
    let sealed = assert_sealed(&server, &group, "stopped");
    let before = server.digest(&group);
    server.post(&format!("/v1/groups/{group}/pause"), &json!({})).expect(202);
    let task = server.submit(&group, "later");
    let after = server.digest(&group);
    assert_eq!(after["outcome"], "stopped", "{after}");
    assert_eq!(after["frame_count"], before["frame_count"].as_u64().unwrap() + 2, "{after}");
    assert_eq!(server.run_digest(sealed["run"].as_str().unwrap()), sealed);
    server.resume(&group);
    server.finish_as(&task, "completed");
    let digest = server.digest(&group);
    assert_eq!(digest["outcome"], json!(null), "another run is alive: {digest}");
    assert_eq!(digest["turn_count"], 2, "{digest}");
    let live = server.run_digest(server.group(&group)["current_run"].as_str().unwrap());
    assert_eq!((&live["outcome"], &live["turn_count"]), (&json!(null), &json!(1)), "{live}");
}

/// TD-1, TD-10: the server dies or stops, or storage fails; the digest is sealed by the next
/// server, or when storage works again.
#[test]
fn each_end_by_the_server_seals_the_digest() {
    let mut server = Setup::new().asks().start();
    let groups = ALL.map(|activity| (start_activity(&server, "killed", activity), activity));
    server.kill_and_boot();
    for (group, activity) in groups {
        assert_findings(&assert_sealed(&server, &group, "server_restart"), activity);
    }
    server.submit("work", "[[reply:x]][[gate:go]][[reply:y]][[gate:never]]");
    server.journal.wait_gate("go");
    server.limit_file_size(Some(1));
    server.journal.open_gate("go");
    server.log.wait("the failure", |line| line.contains("storage failed"));
    server.limit_file_size(None);
    let digest = assert_sealed(&server, "work", "storage");
    assert_eq!(findings(&digest), ["abnormal_stop", "incomplete_turn"], "{digest}");

    let group = start_activity(&server, "ended", Activity::Nothing);
    server.terminate();
    server.wait_exit();
    server.boot();
    assert_sealed(&server, &group, "stopped");
}
