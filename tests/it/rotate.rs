//! The strategy `rotate`: a summary from the old session leads the first prompt of a new one.

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::support::{Server, Setup, eventually, process};

/// The summary that the agent writes, unless a test scripts another.
const SUMMARY: &str = "the plan was to paint the fence green";

/// Starts a server and runs one turn in its group's first session; returns that session too.
fn start_with_session(setup: Setup) -> (Server, String) {
    let server = setup.start();
    server.journal.script("on-summary", &format!("[[reply:{SUMMARY}]]"));
    server.complete("work", "first");
    let session = server.session("work");
    (server, session)
}

/// A-5, API-4: greenroom requests the summary in the old session and opens a new one;
/// the summary leads its first prompt, and only that.
#[test]
fn the_summary_leads_the_first_prompt_of_the_new_session() {
    let (server, old) = start_with_session(Setup::new().rotates());
    let task = server.finish_as(&server.compact("work"), "completed");
    let new = server.session("work");
    assert_ne!(new, old);
    let prompts = server.journal.prompts_of(&old);
    assert_eq!(prompts.len(), 2, "the turn and the request: {prompts:?}");
    assert!(server.journal.prompts_of(&new).is_empty(), "no prompt is sent before a turn");
    assert_eq!(server.journal.events_named("new").len(), 2);
    assert_eq!(server.journal.events_named("start").len(), 1, "in one process (DQ-4)");
    server.complete("work", "[[reply:a]] paint on");
    server.complete("work", "[[reply:b]]");
    let prompts = server.journal.prompts_of(&new);
    assert_eq!(prompts.len(), 2, "{prompts:?}");
    let (summary, prompt) = (prompts[0].find(SUMMARY), prompts[0].find("[[reply:a]] paint on"));
    assert!(summary.is_some() && summary < prompt, "the summary leads: {prompts:?}");
    assert_eq!(prompts[1], "[[reply:b]]", "only once");
    let compaction = server.compaction_of(&task);
    assert_eq!(compaction["status"], "completed", "{compaction}");
    assert!(compaction["summary"].as_str().unwrap().contains(SUMMARY), "{compaction}");
    server.assert_compacted("work", 1);
    let segments = server.segments("work");
    assert_eq!(
        (&segments[0]["session_id"], &segments[1]["session_id"]),
        (&json!(old), &json!(new))
    );
}

/// API-2, AM-2: `turn_started` has the caller's prompt, `session/prompt` the sent prompt, byte for
/// byte, the request for the summary included.
#[test]
fn frames_have_the_callers_prompt_and_the_sent_prompt() {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(borrow)]
        items: Vec<Frame<'a>>,
    }
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    let (server, _) = start_with_session(Setup::new().rotates());
    server.finish_as(&server.compact("work"), "completed");
    let blocks = json!([
        { "type": "text", "text": "[[reply:x]]" },
        { "type": "resource_link", "uri": "file:///tmp/x.txt", "name": "x" },
    ]);
    let body = json!({ "prompt": blocks });
    let task = server.post("/v1/groups/work/turns?wait=25", &body).expect(200);
    let frames = server.frames_where("work", &format!("&task={}", task["id"].as_str().unwrap()));
    let started = frames.iter().find(|frame| frame["kind"] == "greenroom/turn_started");
    assert_eq!(started.unwrap()["payload"]["prompt"], blocks);
    let reply = server.get("/v1/groups/work/frames?kind=session/prompt");
    let page: Page<'_> = serde_json::from_slice(&reply.body).unwrap();
    let stored: Vec<&str> = page.items.iter().map(|frame| frame.payload.get()).collect();
    let prompts = server.journal.events_named("prompt");
    let received: Vec<&str> = prompts.iter().map(|event| event["line"].as_str().unwrap()).collect();
    assert_eq!(stored, received);
    assert_eq!(stored.len(), 3, "a turn, the request, a turn");
    let line: Value = serde_json::from_str(received[2]).unwrap();
    let sent = line["params"]["prompt"].as_array().unwrap();
    assert!(sent.ends_with(blocks.as_array().unwrap()), "the caller's blocks, unchanged: {line}");
}

/// I8, DQ-4: the rotation runs after the running turn and before the waiting ones; the summary
/// leads the first of these.
#[test]
fn a_rotation_overtakes_waiting_turns() {
    let (server, old) = start_with_session(Setup::new().rotates());
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "[[reply:waiting]]");
    let compaction = server.compact("work");
    server.journal.open_gate("go");
    server.finish_as(&compaction, "completed");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.journal.prompts_of(&old).len(), 3, "turn, turn, request");
    let prompts = server.journal.prompts_of(&server.session("work"));
    assert_eq!(prompts.len(), 1, "{prompts:?}");
    assert!(
        prompts[0].contains(SUMMARY) && prompts[0].contains("[[reply:waiting]]"),
        "{prompts:?}"
    );
    server.journal.assert_one_at_a_time();
}

/// API-2: the focus is part of the request for the summary.
#[test]
fn the_focus_is_part_of_the_request_for_the_summary() {
    let (server, old) = start_with_session(Setup::new().rotates());
    let task = server.compact_with("work", "the colour of the fence");
    server.finish_as(&task, "completed");
    let prompts = server.journal.prompts_of(&old);
    assert!(prompts[1].contains("the colour of the fence"), "{prompts:?}");
}

/// A-5, DQ-12, I4: after any failure of a rotation the old session stays in force,
/// without a leading summary; nothing is counted or rotated, and a later compaction succeeds.
#[test]
fn a_failed_rotation_leaves_the_old_session_in_force() {
    struct Case {
        name: &'static str,
        summary: &'static str,
        new: &'static str,
        task: &'static [&'static str],
        compaction: &'static [&'static str],
    }
    const ENDED: &[&str] = &["failed", "abandoned", "cancelled"];
    #[rustfmt::skip]
    let cases = [
        Case { name: "summary refused",         summary: "[[error:-32602:no]]",        new: "",                      task: &["failed"],                compaction: &["failed"] },
        Case { name: "summary empty",           summary: "[[silent]]",                 new: "",                      task: &["failed"],                compaction: &["failed"] },
        Case { name: "death in the summary",    summary: "[[reply:half]][[die:3]]",    new: "",                      task: &["interrupted"],           compaction: &["abandoned"] },
        Case { name: "new session refused",     summary: "[[reply:all]]",              new: "[[error:-32602:full]]", task: &["failed"],                compaction: &["failed"] },
        Case { name: "summary over time",       summary: "[[reply:half]][[gate:no]]",  new: "",                      task: &["failed", "interrupted"], compaction: ENDED },
        Case { name: "new session over time",   summary: "[[reply:all]]",              new: "[[gate:no]]",           task: &["failed", "interrupted"], compaction: ENDED },
    ];
    for case in &cases {
        let late = case.name.ends_with("over time");
        let timeout = if late { "1s" } else { "20s" };
        let setup = Setup::new().rotates().text("defaults", "compaction_timeout", timeout);
        let (server, old) = start_with_session(setup);
        server.journal.script("on-summary", case.summary);
        server.journal.script("on-new", case.new);
        let task = server.finish(&server.compact("work"));
        let shown = format!("{}: {task}\n{}", case.name, server.log.tail());
        assert!(case.task.contains(&task["state"].as_str().unwrap()), "{shown}");
        let compaction = server.only_compaction("work");
        let status = compaction["status"].as_str().unwrap();
        assert!(case.compaction.contains(&status), "{}: {compaction}", case.name);
        if task["state"] == "failed" {
            assert!(task["error"]["message"].to_string().contains("unchanged"), "{shown}");
        }
        assert_old_session_in_force(&server, &old, case.name);
        server.journal.script("on-summary", &format!("[[reply:{SUMMARY}]]"));
        server.journal.script("on-new", "");
        server.finish_as(&server.compact("work"), "completed");
        assert_ne!(server.session("work"), old, "{}: a later compaction succeeds", case.name);
        server.assert_compacted("work", 1);
    }
}

/// API-2, DQ-12: a rotation whose summary hangs can be cancelled; the old session stays.
#[test]
fn a_rotation_can_be_cancelled_during_the_summary() {
    let (server, old) = start_with_session(Setup::new().rotates());
    server.journal.script("on-summary", "[[reply:half]][[gate:never]]");
    let task = server.compact("work");
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    assert_eq!(server.only_compaction("work")["status"], "cancelled");
    assert_old_session_in_force(&server, &old, "cancelled");
}

/// I4, A-5: if an agent dies while it opens the new session, the old one stays in force.
#[test]
fn death_while_the_new_session_opens_leaves_the_old_one() {
    let (server, old) = start_with_session(Setup::new().rotates());
    server.journal.script("on-new", "[[gate:never]]");
    let task = server.compact("work");
    server.journal.wait_gate("never");
    process::signal(server.journal.agent_pid(), rustix::process::Signal::KILL);
    let task = server.finish(&task);
    assert!(["failed", "interrupted"].contains(&task["state"].as_str().unwrap()), "{task}");
    assert_old_session_in_force(&server, &old, "death");
}

/// R-1, I4: kill -9 during the summary, or while the new session is opened, leaves the
/// old session in force; the compaction is `abandoned`, and the lock is free.
#[test]
fn a_kill_of_the_server_during_a_rotation_leaves_the_old_session() {
    for (summary, new) in [("[[gate:never]]", ""), ("[[reply:all]]", "[[gate:never]]")] {
        let (mut server, old) = start_with_session(Setup::new().rotates());
        server.journal.script("on-summary", summary);
        server.journal.script("on-new", new);
        let task = server.compact("work");
        server.journal.wait_gate("never");
        server.kill_and_boot();
        server.finish_as(&task, "interrupted");
        assert_eq!(server.only_compaction("work")["status"], "abandoned");
        assert_old_session_in_force(&server, &old, new);
    }
}

/// AM-17, A-5: after a rotation and a restart the new session is in force: the summary
/// still leads its first prompt, and no later one.
#[test]
fn a_restart_restores_the_new_session() {
    let (mut server, old) = start_with_session(Setup::new().rotates());
    server.finish_as(&server.compact("work"), "completed");
    let new = server.session("work");
    server.kill_and_boot();
    assert_eq!(server.session("work"), new);
    server.complete("work", "[[reply:a]]");
    server.kill_and_boot();
    server.complete("work", "[[reply:b]]");
    assert_eq!(server.session("work"), new);
    let prompts = server.journal.prompts_of(&new);
    assert_eq!(prompts.len(), 2, "{prompts:?}");
    assert!(prompts[0].contains(SUMMARY) && prompts[0].contains("[[reply:a]]"), "{prompts:?}");
    assert_eq!(prompts[1], "[[reply:b]]");
    assert_eq!(server.journal.prompts_of(&old).len(), 2, "nothing more in the old session");
    let mut restored = server.journal.events_named("resume");
    restored.extend(server.journal.events_named("load"));
    assert_eq!(restored.len(), 2, "{restored:?}");
    assert!(restored.iter().all(|event| event["session"] == *new), "{restored:?}");
    server.assert_compacted("work", 1);
}

/// AM-12: after several rotations the segments are one line: each has the previous one as its
/// parent.
#[test]
fn repeated_rotations_form_one_line() {
    let (server, old) = start_with_session(Setup::new().rotates());
    let mut sessions = vec![old];
    for _ in 0..3 {
        server.finish_as(&server.compact("work"), "completed");
        server.complete("work", "[[reply:x]]");
        sessions.push(server.session("work"));
    }
    let segments = server.segments("work");
    let shown: Vec<&str> =
        segments.iter().map(|segment| segment["session_id"].as_str().unwrap()).collect();
    assert_eq!(shown, sessions);
    server.assert_compacted("work", 3);
}

/// Checks that nothing was rotated, that no lock is left, and that the next turn is sent unchanged
/// to the old session.
#[track_caller]
fn assert_old_session_in_force(server: &Server, old: &str, name: &str) {
    eventually("no active compaction", &server.log, || {
        (server.group("work")["compaction"]["active"] != true).then_some(())
    });
    assert_eq!(server.session("work"), old, "{name}");
    server.assert_compacted("work", 0);
    assert_eq!(server.segments("work").len(), 1, "{name}");
    server.lock(old).any_problem(404);
    server.complete("work", "[[reply:continues]]");
    let last = server.journal.events_named("prompt").pop().unwrap();
    assert_eq!(last["session"], old, "{name}");
    assert_eq!(last["text"], "[[reply:continues]]", "{name}: no summary leads it");
}
