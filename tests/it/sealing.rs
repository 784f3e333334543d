//! Every end of a run seals its digest, in the transaction of the end (I6, TD-1 to TD-3,
//! TD-10). After each test `greenroom verify` compares the rows with the frames, byte for byte.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process, server::id};

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

/// Starts a server whose permissions wait for a caller, and which stops no agent by itself.
fn start_server() -> Server {
    Setup::new().asks().start()
}

/// Starts a run with this activity, in a group named after it.
#[track_caller]
fn start_activity(server: &Server, activity: Activity) -> String {
    let group = format!("{activity:?}").to_lowercase();
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
fn assert_sealed(server: &Server, group: &str, activity: Activity, outcome: &str) -> Value {
    let exited = server
        .wait_frame(group, "the end of the run", |frame| frame["kind"] == "greenroom/run_exited");
    let run = exited["run"].as_str().unwrap();
    let digest = server.get(&format!("/v1/runs/{run}/digest")).expect(200);
    let tail = server.log.tail();
    assert_eq!(digest["outcome"], outcome, "{activity:?}: {digest}\n{tail}");
    assert_eq!(digest["watermark_seq"], exited["seq"], "{activity:?}: {digest}");
    let frames = server.frames(group);
    let of_run = frames.iter().filter(|frame| frame["run"] == run).count();
    assert_eq!(digest["frame_count"], of_run, "{activity:?}: {digest}");
    assert_eq!((&digest["run"], &digest["group"]), (&json!(run), &json!(group)));
    assert_eq!(digest["last_at"], exited["at"], "{activity:?}: {digest}");
    let of_group = server.get(&format!("/v1/groups/{group}/digest")).expect(200);
    assert!(of_group["watermark_seq"].as_u64() >= exited["seq"].as_u64(), "{of_group}");
    assert_eq!(of_group["outcomes"], json!({ outcome: 1 }), "{activity:?}: {of_group}");
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

/// Returns the expected findings of a run that ended during `activity`.
fn expected_findings(activity: Activity, prompts_end: bool, abnormal: bool) -> Vec<&'static str> {
    let mut found = Vec::new();
    found.extend(abnormal.then_some("abnormal_stop"));
    found.extend((prompts_end && activity != Activity::Nothing).then_some("incomplete_turn"));
    found.extend((activity == Activity::Turn).then_some("tool_without_result"));
    found.extend(
        (activity == Activity::Permission && prompts_end).then_some("unanswered_permission"),
    );
    found
}

/// TD-1: an operator stops the run. Its permissions are answered `cancelled` first, and its prompt
/// is cancelled.
#[test]
fn a_stop_by_an_operator_seals_the_digest() {
    let server = start_server();
    for activity in ALL {
        let group = start_activity(&server, activity);
        server.post(&format!("/v1/groups/{group}/stop"), &json!({})).expect(202);
        let digest = assert_sealed(&server, &group, activity, "stopped");
        assert!(!findings(&digest).contains(&"abnormal_stop".to_owned()), "{digest}");
    }
}

/// TD-1, TD-10: the run crashes; the digest has a finding for each open activity.
#[test]
fn a_crash_seals_the_digest_with_findings() {
    let server = start_server();
    for activity in ALL {
        let group = start_activity(&server, activity);
        let agent = server.journal.agent_pid();
        process::signal(agent, Signal::KILL);
        let digest = assert_sealed(&server, &group, activity, "crashed");
        assert_eq!(
            findings(&digest),
            expected_findings(activity, true, true),
            "{activity:?}: {digest}"
        );
    }
}

/// TD-1: the agent exits by itself, with code 0.
#[test]
fn an_exit_with_code_0_seals_the_digest() {
    let server = start_server();
    server.turn("in-a-turn", "[[reply:x]][[die:0]]");
    let digest = assert_sealed(&server, "in-a-turn", Activity::Turn, "exited");
    assert_eq!(findings(&digest), ["incomplete_turn"], "{digest}");
    server.complete("between", "[[reply:x]][[answer]][[die:0]]");
    let digest = assert_sealed(&server, "between", Activity::Nothing, "exited");
    assert_eq!(findings(&digest), [""; 0], "{digest}");
}

/// TD-1: the agent could not be started: its run has a digest too.
#[test]
fn a_failed_start_seals_the_digest() {
    let server = Setup::new().command("scripted", "no-such-agent").start();
    server.turn("work", "hello");
    let digest = assert_sealed(&server, "work", Activity::Nothing, "start_failed");
    assert_eq!(findings(&digest), ["abnormal_stop"], "{digest}");
    assert_eq!(digest["turn_count"], 0, "no prompt was sent: {digest}");
    let digest = server.get("/v1/groups/work/digest").expect(200);
    assert_eq!(digest["errors"]["agent_start_failed"]["count"], 1, "{digest}");
}

/// TD-1: the agent ignores a cancel and is ended by escalation.
#[test]
fn a_kill_after_an_ignored_cancel_seals_the_digest() {
    let server = start_server();
    let task = server.submit("work", "[[reply:x]][[ignore-cancel]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    let digest = assert_sealed(&server, "work", Activity::Turn, "stopped");
    assert_eq!(digest["turn_count"], 1, "{digest}");
}

/// TD-1: the agent breaks the protocol.
#[test]
fn a_protocol_violation_seals_the_digest() {
    let server = start_server();
    server.turn("work", "[[reply:x]][[garbage-run:10]][[gate:never]]");
    let digest = assert_sealed(&server, "work", Activity::Turn, "protocol");
    assert_eq!(findings(&digest), ["abnormal_stop", "incomplete_turn"], "{digest}");
    assert_eq!(digest["errors"]["agent_output_rejected"]["count"], 10, "{digest}");
    let samples = digest["errors"]["agent_output_rejected"]["samples"].as_array().unwrap();
    let newest = server.frames_of_kind("work", "greenroom/agent_output_rejected");
    let newest: Vec<Value> = newest[5..].iter().map(|frame| frame["seq"].clone()).collect();
    assert_eq!(samples, &newest, "the newest five");
}

/// TD-1: the run is stopped when it is idle.
#[test]
fn an_idle_stop_seals_the_digest() {
    let server = Setup::new().text("defaults", "idle_timeout", "0s").start();
    server.complete("work", "hello");
    let digest = assert_sealed(&server, "work", Activity::Nothing, "stopped");
    assert_eq!(findings(&digest), [""; 0], "{digest}");
}

/// TD-1: the group is deleted, and its run ends.
#[test]
fn deletion_of_the_group_seals_the_digests() {
    let server = start_server();
    for activity in ALL {
        let group = start_activity(&server, activity);
        server.delete(&format!("/v1/groups/{group}")).expect(202);
        assert_sealed(&server, &group, activity, "stopped");
        let digest = server.get(&format!("/v1/groups/{group}/digest")).expect(200);
        assert_eq!(digest["outcome"], "deleted", "{digest}");
    }
}

/// TD-1: a group without a live session is deleted, also one that never had a session; then it is
/// revived.
#[test]
fn deletion_without_a_live_session_seals_the_digest() {
    let server = start_server();
    server.put("/v1/groups/never", &json!({})).expect(201);
    server.complete("once", "[[reply:x]][[answer]][[die:0]]");
    assert_sealed(&server, "once", Activity::Nothing, "exited");
    for group in ["never", "once"] {
        server.delete(&format!("/v1/groups/{group}")).expect(202);
        let path = format!("/v1/groups/{group}/digest");
        let digest = eventually("the deletion", &server.log, || {
            Some(server.get(&path).expect(200))
                .filter(|digest| !digest["outcome"].is_null())
                .filter(|digest| digest["outcome"] != "exited")
        });
        assert_eq!(digest["outcome"], "deleted", "{digest}");
        assert_eq!(digest["watermark_seq"], server.group(group)["last_seq"], "{digest}");
        server.put(&format!("/v1/groups/{group}"), &json!({})).expect_any(&[200, 201]);
        assert_eq!(
            server.get(&path).expect(200)["outcome"],
            json!(null),
            "the revived group has no outcome"
        );
    }
}

/// TD-1, TD-10: the server dies, and the next server seals the digests.
#[test]
fn the_next_server_seals_after_a_death_of_the_server() {
    for activity in ALL {
        let mut server = start_server();
        let group = start_activity(&server, activity);
        server.kill_and_boot();
        let digest = assert_sealed(&server, &group, activity, "server_restart");
        assert_eq!(
            findings(&digest),
            expected_findings(activity, true, true),
            "{activity:?}: {digest}"
        );
    }
}

/// TD-1: storage fails; the digest is sealed when storage works again.
#[test]
fn a_storage_failure_seals_the_digest_after_recovery() {
    let server = start_server();
    server.submit("work", "[[reply:x]][[gate:go]][[reply:y]][[gate:never]]");
    server.journal.wait_gate("go");
    server.limit_file_size(Some(1));
    server.journal.open_gate("go");
    server.log.wait("the failure", |line| line.contains("storage failed"));
    server.limit_file_size(None);
    let digest = assert_sealed(&server, "work", Activity::Turn, "storage");
    assert_eq!(findings(&digest), ["abnormal_stop", "incomplete_turn"], "{digest}");
}

/// TD-1: the server is stopped, and ends its agents.
#[test]
fn a_stop_of_the_server_seals_the_digest() {
    let mut server = start_server();
    let group = start_activity(&server, Activity::Nothing);
    server.terminate();
    server.wait_exit();
    server.boot();
    assert_sealed(&server, &group, Activity::Nothing, "stopped");
}

/// TD-7: frames after the seal change the counts of the group, but not its outcome.
#[test]
fn late_frames_do_not_change_the_outcome() {
    let server = start_server();
    let group = start_activity(&server, Activity::Nothing);
    server.post(&format!("/v1/groups/{group}/stop"), &json!({})).expect(202);
    let sealed = assert_sealed(&server, &group, Activity::Nothing, "stopped");
    let path = format!("/v1/groups/{group}/digest");
    let before = server.get(&path).expect(200);
    server.post(&format!("/v1/groups/{group}/pause"), &json!({})).expect(202);
    let task = server.submit(&group, "later");
    let after = server.get(&path).expect(200);
    assert_eq!(after["outcome"], "stopped", "{after}");
    assert_eq!(after["frame_count"], before["frame_count"].as_u64().unwrap() + 2, "{after}");
    let run = sealed["run"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/runs/{run}/digest")).expect(200), sealed);
    server.post(&format!("/v1/groups/{group}/resume"), &json!({})).expect(202);
    server.finish_as(&task, "completed");
    let digest = server.get(&path).expect(200);
    assert_eq!(digest["outcome"], json!(null), "another run is alive: {digest}");
    let run = server.group(&group)["current_run"].as_str().unwrap().to_owned();
    let live = server.get(&format!("/v1/runs/{run}/digest")).expect(200);
    assert_eq!((&live["outcome"], &live["turn_count"]), (&json!(null), &json!(1)), "{live}");
    assert_eq!(digest["turn_count"], 2, "{digest}, {}", id(&task));
}
