//! The strategy `rotate`: a summary from the old session leads the first prompt of a new one.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

/// The summary that the agent gives, unless a test says otherwise.
const SUMMARY: &str = "the plan was to paint the fence green";

/// A server whose group has had one turn in its first session, and that session.
fn with_a_session(setup: Setup) -> (Server, String) {
    let server = setup.start();
    server.journal.script("on-summary", &format!("[[reply:{SUMMARY}]]"));
    server.complete("work", "first");
    let session = server.session("work");
    (server, session)
}

/// ARCHITECTURE 5, API 4: the summary is asked for in the old session, a new session is opened,
/// and its first prompt, and only that, is led by the summary.
#[test]
fn summary_leads_the_new_session() {
    let (server, old) = with_a_session(Setup::new().rotates());
    let task = server.finish_as(&server.compact("work"), "completed");
    let new = server.session("work");
    assert_ne!(new, old);
    let asked = server.journal.prompts_of(&old);
    assert_eq!(asked.len(), 2, "the turn and the request: {asked:?}");
    assert!(server.journal.prompts_of(&new).is_empty(), "nothing is sent ahead of a turn");
    assert_eq!(server.journal.events_named("new").len(), 2);
    assert_eq!(server.journal.events_named("start").len(), 1, "in one process (DQ-4)");
    server.complete("work", "[[reply:a]] paint on");
    server.complete("work", "[[reply:b]]");
    let led = server.journal.prompts_of(&new);
    assert_eq!(led.len(), 2, "{led:?}");
    let (summary, prompt) = (led[0].find(SUMMARY), led[0].find("[[reply:a]] paint on"));
    assert!(summary.is_some() && summary < prompt, "the summary leads: {led:?}");
    assert_eq!(led[1], "[[reply:b]]", "once");
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

/// API 2, AM-2: `turn_started` shows the caller's prompt as it was given, `session/prompt` what
/// was sent, byte for byte, the request for the summary included.
#[test]
fn frames_show_what_was_asked_and_what_was_sent() {
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
    let (server, _) = with_a_session(Setup::new().rotates());
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
    assert!(sent.ends_with(blocks.as_array().unwrap()), "the caller's blocks, untouched: {line}");
}

/// I8, DQ-4: the rotation runs after the running turn and before the waiting ones; the first of
/// these is led by the summary.
#[test]
fn overtakes_waiting_turns() {
    let (server, old) = with_a_session(Setup::new().rotates());
    server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "[[reply:waiting]]");
    let compaction = server.compact("work");
    server.journal.open_gate("go");
    server.finish_as(&compaction, "completed");
    server.finish_as(&waiting, "completed");
    assert_eq!(server.journal.prompts_of(&old).len(), 3, "turn, turn, request");
    let led = server.journal.prompts_of(&server.session("work"));
    assert_eq!(led.len(), 1, "{led:?}");
    assert!(led[0].contains(SUMMARY) && led[0].contains("[[reply:waiting]]"), "{led:?}");
    server.journal.assert_one_at_a_time();
}

/// API 2: the focus is part of the request for the summary.
#[test]
fn focus_is_passed_on() {
    let (server, old) = with_a_session(Setup::new().rotates());
    let task = server.compact_with("work", "the colour of the fence");
    server.finish_as(&task, "completed");
    let asked = server.journal.prompts_of(&old);
    assert!(asked[1].contains("the colour of the fence"), "{asked:?}");
}

/// ARCHITECTURE 5, DQ-12, I4: whatever goes wrong on the way, the old session stays in force,
/// unled; nothing is counted or rotated, and a later compaction succeeds.
#[test]
fn failures_leave_the_old_session() {
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
        let (server, old) = with_a_session(setup);
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
        assert_ne!(server.session("work"), old, "{}: a later one succeeds", case.name);
        server.assert_compacted("work", 1);
    }
}

/// API 2, DQ-12: a rotation whose summary hangs can be cancelled; the old session stays.
#[test]
fn cancelled_while_the_summary_hangs() {
    let (server, old) = with_a_session(Setup::new().rotates());
    server.journal.script("on-summary", "[[reply:half]][[gate:never]]");
    let task = server.compact("work");
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    assert_eq!(server.only_compaction("work")["status"], "cancelled");
    assert_old_session_in_force(&server, &old, "cancelled");
}

/// I4, ARCHITECTURE 5: an agent that dies while it opens the new session leaves the old one.
#[test]
fn death_in_the_new_session() {
    let (server, old) = with_a_session(Setup::new().rotates());
    server.journal.script("on-new", "[[gate:never]]");
    let task = server.compact("work");
    server.journal.wait_gate("never");
    process::signal(server.journal.agent_pid(), rustix::process::Signal::KILL);
    let task = server.finish(&task);
    assert!(["failed", "interrupted"].contains(&task["state"].as_str().unwrap()), "{task}");
    assert_old_session_in_force(&server, &old, "death");
}

/// RELIABILITY 1, I4: kill -9 in the summary, or while the new session is opened, leaves the old
/// session in force; the compaction is `abandoned`, and the lock is free.
#[test]
fn server_killed_on_the_way() {
    for (summary, new) in [("[[gate:never]]", ""), ("[[reply:all]]", "[[gate:never]]")] {
        let (mut server, old) = with_a_session(Setup::new().rotates());
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

/// AM-17, ARCHITECTURE 5: after a rotation a restart goes on in the new session: the summary still
/// leads its first prompt, and no later one.
#[test]
fn restart_goes_on_in_the_new_session() {
    let (mut server, old) = with_a_session(Setup::new().rotates());
    server.finish_as(&server.compact("work"), "completed");
    let new = server.session("work");
    server.kill_and_boot();
    assert_eq!(server.session("work"), new);
    server.complete("work", "[[reply:a]]");
    server.kill_and_boot();
    server.complete("work", "[[reply:b]]");
    assert_eq!(server.session("work"), new);
    let led = server.journal.prompts_of(&new);
    assert_eq!(led.len(), 2, "{led:?}");
    assert!(led[0].contains(SUMMARY) && led[0].contains("[[reply:a]]"), "{led:?}");
    assert_eq!(led[1], "[[reply:b]]");
    assert_eq!(server.journal.prompts_of(&old).len(), 2, "nothing more in the old session");
    let mut taken_up = server.journal.events_named("resume");
    taken_up.extend(server.journal.events_named("load"));
    assert_eq!(taken_up.len(), 2, "{taken_up:?}");
    assert!(taken_up.iter().all(|event| event["session"] == *new), "{taken_up:?}");
    server.assert_compacted("work", 1);
}

/// AM-12: sessions rotate again and again, in one line: each segment follows from the one before.
#[test]
fn rotations_follow_each_other() {
    let (server, old) = with_a_session(Setup::new().rotates());
    let mut sessions = vec![old];
    for _ in 0..3 {
        server.finish_as(&server.compact("work"), "completed");
        server.complete("work", "[[reply:x]]");
        sessions.push(server.session("work"));
    }
    let segments = server.segments("work");
    let shown: Vec<&str> = segments.iter().map(|one| one["session_id"].as_str().unwrap()).collect();
    assert_eq!(shown, sessions);
    server.assert_compacted("work", 3);
}

/// Checks that nothing was rotated, that no lock is left, and that the next turn goes, as it is,
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
    server.complete("work", "[[reply:goes on]]");
    let last = server.journal.events_named("prompt").pop().unwrap();
    assert_eq!(last["session"], old, "{name}");
    assert_eq!(last["text"], "[[reply:goes on]]", "{name}: unled");
}
