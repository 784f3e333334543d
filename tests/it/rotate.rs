//! The strategy `rotate`: a summary from the old session leads the first prompt of a new one.

use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::support::{Server, Setup, eventually, process};

/// The summary that the agent writes, unless a test scripts another.
const SUMMARY: &str = "the plan was to paint the fence green";

/// Starts a server whose agent gives the summary.
fn start(timeout: &str) -> Server {
    let setup = Setup::new().set("agents.scripted", "compaction", "{ strategy = \"rotate\" }");
    let server = setup.text("defaults", "compaction_timeout", timeout).start();
    server.journal.script("on-summary", &format!("[[reply:{SUMMARY}]]"));
    server
}

/// A-5, API-2, API-4, AM-2, I8, DQ-4: a rotation runs after the running turn and before the waiting
/// ones. greenroom requests the summary, with the focus, in the old session and opens a new one;
/// the summary leads its first prompt, and only that. `turn_started` has the caller's prompt,
/// `session/prompt` the sent one, byte for byte.
#[test]
fn the_summary_leads_the_first_prompt_of_the_new_session() {
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
    let server = start("20s");
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let blocks = json!([
        { "type": "text", "text": "[[reply:x]]" },
        { "type": "resource_link", "uri": "file:///tmp/x.txt", "name": "x" },
    ]);
    let waiting = server.post("/v1/groups/work/turns", &json!({ "prompt": blocks })).expect(202);
    let task = server.compact_with("work", "the colour of the fence");
    let old = server.session("work");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    server.finish_as(&task, "completed");
    server.finish_as(&waiting, "completed");
    server.complete("work", "[[reply:b]]");
    let new = server.session("work");
    assert_ne!(new, old);
    let prompts = server.journal.prompts_of(&old);
    assert_eq!(prompts.len(), 2, "the turn and the request: {prompts:?}");
    assert!(prompts[1].contains("the colour of the fence"), "{prompts:?}");
    let prompts = server.journal.prompts_of(&new);
    assert_eq!(prompts.len(), 2, "{prompts:?}");
    let (summary, prompt) = (prompts[0].find(SUMMARY), prompts[0].find("[[reply:x]]"));
    assert!(summary.is_some() && summary < prompt, "the summary leads: {prompts:?}");
    assert_eq!(prompts[1], "[[reply:b]]", "only once");
    assert_eq!(server.journal.events_named("start").len(), 1, "in one process (DQ-4)");
    server.journal.assert_one_at_a_time();
    let compaction = server.compaction_of(&task);
    assert_eq!(compaction["status"], "completed", "{compaction}");
    assert!(compaction["summary"].as_str().unwrap().contains(SUMMARY), "{compaction}");

    let frames = server.frames_where("work", &format!("&task={}", waiting["id"].as_str().unwrap()));
    let started = frames.iter().find(|frame| frame["kind"] == "greenroom/turn_started");
    assert_eq!(started.unwrap()["payload"]["prompt"], blocks);
    let reply = server.get("/v1/groups/work/frames?kind=session/prompt");
    let page: Page<'_> = serde_json::from_slice(&reply.body).unwrap();
    let stored: Vec<&str> = page.items.iter().map(|frame| frame.payload.get()).collect();
    let prompts = server.journal.events_named("prompt");
    let received: Vec<&str> = prompts.iter().map(|event| event["line"].as_str().unwrap()).collect();
    assert_eq!(stored, received);
    let line: Value = serde_json::from_str(received[2]).unwrap();
    let sent = line["params"]["prompt"].as_array().unwrap();
    assert!(sent.ends_with(blocks.as_array().unwrap()), "the caller's blocks, unchanged: {line}");
}

/// What happens while the agent waits at the gate.
enum Meanwhile {
    Nothing,
    Cancel,
    AgentDies,
    ServerDies,
}

/// A group, the scripts `on-summary` and `on-new`, what happens, and the states of the task and the
/// statuses of the compaction that may follow.
type Failure<'a> = (&'a str, &'a str, &'a str, Meanwhile, &'a [&'a str], &'a [&'a str]);

/// DQ-12, I4: after any failure of a rotation, also by kill -9, the old session stays in
/// force, without a leading summary; nothing is counted or rotated, the lock is free, and a later
/// compaction succeeds.
#[test]
fn a_failed_rotation_leaves_the_old_session_in_force() {
    use Meanwhile::{AgentDies, Cancel, Nothing, ServerDies};
    const ENDED: &[&str] = &["failed", "abandoned", "cancelled"];
    #[rustfmt::skip]
    let cases: &[Failure<'_>] = &[
        ("summary-refused",   "[[error:-32602:no]]",      "",                       Nothing,    &["failed"],                &["failed"]),
        ("summary-empty",     "[[silent]]",               "",                       Nothing,    &["failed"],                &["failed"]),
        ("summary-dies",      "[[reply:half]][[die:3]]",  "",                       Nothing,    &["interrupted"],           &["abandoned"]),
        ("new-refused",       "[[reply:all]]",            "[[error:-32602:full]]",  Nothing,    &["failed"],                &["failed"]),
        ("summary-cancelled", "[[reply:half]][[gate:a]]", "",                       Cancel,     &["cancelled"],             &["cancelled"]),
        ("new-dies",          "[[reply:all]]",            "[[gate:b]]",             AgentDies,  &["failed", "interrupted"], ENDED),
        ("summary-killed",    "[[gate:c]]",               "",                       ServerDies, &["interrupted"],           &["abandoned"]),
        ("new-killed",        "[[reply:all]]",            "[[gate:d]]",             ServerDies, &["interrupted"],           &["abandoned"]),
        ("summary-late",      "[[reply:half]][[gate:e]]", "",                       Nothing,    &["failed", "interrupted"], ENDED),
        ("new-late",          "[[reply:all]]",            "[[gate:f]]",             Nothing,    &["failed", "interrupted"], ENDED),
    ];
    let (in_time, late) = cases.split_at(8);
    for (cases, timeout) in [(in_time, "20s"), (late, "1s")] {
        let mut server = start(timeout);
        for (group, summary, new, meanwhile, states, statuses) in cases {
            server.journal.script("on-summary", &format!("[[reply:{SUMMARY}]]"));
            server.journal.script("on-new", "");
            server.complete(group, "first");
            let old = server.session(group);
            server.journal.script("on-summary", summary);
            server.journal.script("on-new", new);
            let task = server.compact(group);
            if let Some((_, gate)) =
                [summary, new].iter().find_map(|words| words.split_once("gate:"))
            {
                server.journal.wait_gate(gate.trim_end_matches("]]"));
            }
            match meanwhile {
                Nothing => {}
                Cancel => drop(server.cancel(&task).expect(202)),
                AgentDies => process::signal(server.journal.agent_pid(), Signal::KILL),
                ServerDies => server.kill_and_boot(),
            }
            let task = server.finish(&task);
            let shown = format!("{group}: {task}\n{}", server.log.tail());
            assert!(states.contains(&task["state"].as_str().unwrap()), "{shown}");
            let compaction = server.only_compaction(group);
            assert!(statuses.contains(&compaction["status"].as_str().unwrap()), "{compaction}");
            if task["state"] == "failed" {
                assert!(task["error"]["message"].to_string().contains("unchanged"), "{shown}");
            }
            server.journal.script("on-new", "");
            assert_old_session_in_force(&server, group, &old);
            server.journal.script("on-summary", &format!("[[reply:{SUMMARY}]]"));
            server.finish_as(&server.compact(group), "completed");
            assert_ne!(server.session(group), old, "{group}: a later compaction succeeds");
            server.assert_compacted(group, 1);
        }
    }
}

/// AM-12, AM-13, AM-17, A-5, I4: after a rotation and a restart the new session is in force: the
/// summary still leads its first prompt, and no later one. Several rotations are one line, and late
/// updates of a replaced session change nothing.
#[test]
fn a_restart_restores_the_new_session() {
    let mut server = start("20s");
    server.complete("work", "first");
    let mut sessions = vec![server.session("work")];
    for turn in ["two", "three"] {
        server.finish_as(&server.compact("work"), "completed");
        server.complete("work", turn);
        sessions.push(server.session("work"));
    }
    server.complete("work", &format!("[[session:{}:late]][[reply:done]]", sessions[0]));
    let text = server.complete("work", "four")["text"].clone();
    assert!(!text.to_string().contains("late"), "{text}");
    assert_eq!(server.session("work"), sessions[2]);
    server.assert_compacted("work", 2);

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
    let old = server.journal.prompts_of(&sessions[2]);
    assert_eq!(old.len(), 4, "nothing after the request for the summary: {old:?}");
    let mut restored = server.journal.events_named("resume");
    restored.extend(server.journal.events_named("load"));
    assert_eq!(restored.len(), 2, "{restored:?}");
    assert!(restored.iter().all(|event| event["session"] == *new), "{restored:?}");
    sessions.push(new);
    let segments = server.segments("work");
    let shown: Vec<&str> =
        segments.iter().map(|segment| segment["session_id"].as_str().unwrap()).collect();
    assert_eq!(shown, sessions);
    server.assert_compacted("work", 3);
}

/// Checks that nothing was rotated, that no lock is left, and that the next turn is sent unchanged
/// to the old session.
#[track_caller]
fn assert_old_session_in_force(server: &Server, group: &str, old: &str) {
    eventually("no active compaction", &server.log, || {
        (server.group(group)["compaction"]["active"] != true).then_some(())
    });
    assert_eq!(server.session(group), old, "{group}");
    server.assert_compacted(group, 0);
    assert_eq!(server.segments(group).len(), 1, "{group}");
    server.lock(old).any_problem(404);
    server.complete(group, "[[reply:continues]]");
    let last = server.journal.prompts_of(old).pop();
    assert_eq!(last.as_deref(), Some("[[reply:continues]]"), "{group}: no summary leads it");
}
