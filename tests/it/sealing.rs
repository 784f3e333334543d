//! Every ending of a run seals its digest, in the transaction of the ending (I6, SEEDS TD-1 to
//! TD-3, TD-10). That the rows are what the frames come to is compared byte for byte after each
//! test, by `greenroom verify`.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::server::id;
use crate::support::{Server, Setup, eventually, process};

/// What the run is at when it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amid {
    Nothing,
    Turn,
    Compaction,
    Permission,
}

const ALL: [Amid; 4] = [Amid::Nothing, Amid::Turn, Amid::Compaction, Amid::Permission];

/// A server whose permissions wait for somebody, and which stops no agent by itself.
fn server() -> Server {
    Setup::new().asks().start()
}

/// A group named after `amid` whose run is at that.
#[track_caller]
fn begun(server: &Server, amid: Amid) -> String {
    let group = format!("{amid:?}").to_lowercase();
    server.complete(&group, "first");
    match amid {
        Amid::Nothing => {}
        Amid::Turn => {
            server.submit(&group, "[[reply:x]][[tool:open]][[gate:never]]");
            server.wait_frame(&group, "the tool call", |frame| {
                frame.to_string().contains("\"tool_call\"")
            });
        }
        Amid::Compaction => {
            server.compact_with(&group, "[[compaction:in_progress:c1]][[gate:never]]");
            server.wait_group(&group, "the compaction", |own| own["compaction"]["active"] == true);
        }
        Amid::Permission => {
            server.asked(&group, "[[permission]]");
        }
    }
    group
}

/// Waits for the end of a group's only run, and checks its digest and the group's.
#[track_caller]
fn assert_sealed(server: &Server, group: &str, amid: Amid, outcome: &str) -> Value {
    let exited = server
        .wait_frame(group, "the end of the run", |frame| frame["kind"] == "greenroom/run_exited");
    let run = exited["run"].as_str().unwrap();
    let digest = server.get(&format!("/v1/runs/{run}/digest")).expect(200);
    let tail = server.log.tail();
    assert_eq!(digest["outcome"], outcome, "{amid:?}: {digest}\n{tail}");
    assert_eq!(digest["watermark_seq"], exited["seq"], "{amid:?}: {digest}");
    let frames = server.frames(group);
    let own = frames.iter().filter(|frame| frame["run"] == run).count();
    assert_eq!(digest["frame_count"], own, "{amid:?}: {digest}");
    assert_eq!((&digest["run"], &digest["group"]), (&json!(run), &json!(group)));
    assert_eq!(digest["last_at"], exited["at"], "{amid:?}: {digest}");
    let of_group = server.get(&format!("/v1/groups/{group}/digest")).expect(200);
    assert!(of_group["watermark_seq"].as_u64() >= exited["seq"].as_u64(), "{of_group}");
    assert_eq!(of_group["outcomes"], json!({ outcome: 1 }), "{amid:?}: {of_group}");
    digest
}

/// The kinds of the findings.
fn findings(digest: &Value) -> Vec<String> {
    let findings = digest["findings"].as_array().unwrap();
    let kinds = findings.iter().map(|one| one["kind"].as_str().unwrap().to_owned());
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    kinds
}

/// What is found of a run that was ended in the midst of `amid`.
fn found(amid: Amid, prompts_end: bool, abnormal: bool) -> Vec<&'static str> {
    let mut found = Vec::new();
    found.extend(abnormal.then_some("abnormal_stop"));
    found.extend((prompts_end && amid != Amid::Nothing).then_some("incomplete_turn"));
    found.extend((amid == Amid::Turn).then_some("tool_without_result"));
    found.extend((amid == Amid::Permission && prompts_end).then_some("unanswered_permission"));
    found
}

/// TD-1: an operator stops it. Its permissions are answered `cancelled` first, and its prompt is
/// called off.
#[test]
fn operator_stop() {
    let server = server();
    for amid in ALL {
        let group = begun(&server, amid);
        server.post(&format!("/v1/groups/{group}/stop"), &json!({})).expect(202);
        let digest = assert_sealed(&server, &group, amid, "stopped");
        assert!(!findings(&digest).contains(&"abnormal_stop".to_owned()), "{digest}");
    }
}

/// TD-1, TD-10: it crashes; whatever it was at is found.
#[test]
fn crash() {
    let server = server();
    for amid in ALL {
        let group = begun(&server, amid);
        let agent = server.journal.agent_pid();
        process::signal(agent, Signal::KILL);
        let digest = assert_sealed(&server, &group, amid, "crashed");
        assert_eq!(findings(&digest), found(amid, true, true), "{amid:?}: {digest}");
    }
}

/// TD-1: it ends by itself, with code 0.
#[test]
fn exit_0() {
    let server = server();
    server.turn("in-a-turn", "[[reply:x]][[die:0]]");
    let digest = assert_sealed(&server, "in-a-turn", Amid::Turn, "exited");
    assert_eq!(findings(&digest), ["incomplete_turn"], "{digest}");
    server.complete("between", "[[reply:x]][[answer]][[die:0]]");
    let digest = assert_sealed(&server, "between", Amid::Nothing, "exited");
    assert_eq!(findings(&digest), [""; 0], "{digest}");
}

/// TD-1: it could not be started: the digest of a run that never was is there all the same.
#[test]
fn failed_start() {
    let server = Setup::new().command("scripted", "no-such-agent").start();
    server.turn("work", "hello");
    let digest = assert_sealed(&server, "work", Amid::Nothing, "start_failed");
    assert_eq!(findings(&digest), ["abnormal_stop"], "{digest}");
    assert_eq!(digest["turn_count"], 0, "nothing was sent: {digest}");
    let digest = server.get("/v1/groups/work/digest").expect(200);
    assert_eq!(digest["errors"]["agent_start_failed"]["count"], 1, "{digest}");
}

/// TD-1: a cancel that the agent does not heed ends it by the ladder.
#[test]
fn task_cancel_kill() {
    let server = server();
    let task = server.submit("work", "[[reply:x]][[ignore-cancel]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    let digest = assert_sealed(&server, "work", Amid::Turn, "stopped");
    assert_eq!(digest["turn_count"], 1, "{digest}");
}

/// TD-1: the agent breaks the protocol.
#[test]
fn protocol_violation() {
    let server = server();
    server.turn("work", "[[reply:x]][[garbage-run:10]][[gate:never]]");
    let digest = assert_sealed(&server, "work", Amid::Turn, "protocol");
    assert_eq!(findings(&digest), ["abnormal_stop", "incomplete_turn"], "{digest}");
    assert_eq!(digest["errors"]["agent_output_rejected"]["count"], 10, "{digest}");
    let samples = digest["errors"]["agent_output_rejected"]["samples"].as_array().unwrap();
    let newest = server.frames_of_kind("work", "greenroom/agent_output_rejected");
    let newest: Vec<Value> = newest[5..].iter().map(|frame| frame["seq"].clone()).collect();
    assert_eq!(samples, &newest, "the newest five");
}

/// TD-1: nobody needs it.
#[test]
fn idle_stop() {
    let server = Setup::new().text("defaults", "idle_timeout", "0s").start();
    server.complete("work", "hello");
    let digest = assert_sealed(&server, "work", Amid::Nothing, "stopped");
    assert_eq!(findings(&digest), [""; 0], "{digest}");
}

/// TD-1: the group is deleted, and its run with it.
#[test]
fn group_delete() {
    let server = server();
    for amid in ALL {
        let group = begun(&server, amid);
        server.delete(&format!("/v1/groups/{group}")).expect(202);
        assert_sealed(&server, &group, amid, "stopped");
        let digest = server.get(&format!("/v1/groups/{group}/digest")).expect(200);
        assert_eq!(digest["outcome"], "deleted", "{digest}");
    }
}

/// TD-1: a group without a live session is deleted, also one that never had any; it is revived.
#[test]
fn group_delete_without_a_live_session() {
    let server = server();
    server.put("/v1/groups/never", &json!({})).expect(201);
    server.complete("once", "[[reply:x]][[answer]][[die:0]]");
    assert_sealed(&server, "once", Amid::Nothing, "exited");
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
        assert_eq!(server.get(&path).expect(200)["outcome"], json!(null), "it goes on");
    }
}

/// TD-1, TD-10: the server dies, and its successor seals what it left.
#[test]
fn server_death() {
    for amid in ALL {
        let mut server = server();
        let group = begun(&server, amid);
        server.kill_and_boot();
        let digest = assert_sealed(&server, &group, amid, "server_restart");
        assert_eq!(findings(&digest), found(amid, true, true), "{amid:?}: {digest}");
    }
}

/// TD-1: what it does cannot be stored; its digest is sealed when that works again.
#[test]
fn storage_failure() {
    let server = server();
    server.submit("work", "[[reply:x]][[gate:go]][[reply:y]][[gate:never]]");
    server.journal.wait_gate("go");
    server.limit_file_size(Some(1));
    server.journal.open_gate("go");
    server.log.wait("the failure", |line| line.contains("storage failed"));
    server.limit_file_size(None);
    let digest = assert_sealed(&server, "work", Amid::Turn, "storage");
    assert_eq!(findings(&digest), ["abnormal_stop", "incomplete_turn"], "{digest}");
}

/// TD-1: the server is stopped, and ends its agents itself.
#[test]
fn server_stop() {
    let mut server = server();
    let group = begun(&server, Amid::Nothing);
    server.terminate();
    server.wait_exit();
    server.boot();
    assert_sealed(&server, &group, Amid::Nothing, "stopped");
}

/// TD-7: what comes after the seal changes the counts of the group, and no outcome.
#[test]
fn late_frames() {
    let server = server();
    let group = begun(&server, Amid::Nothing);
    server.post(&format!("/v1/groups/{group}/stop"), &json!({})).expect(202);
    let sealed = assert_sealed(&server, &group, Amid::Nothing, "stopped");
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
