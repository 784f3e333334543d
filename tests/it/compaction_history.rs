//! Ordered compactions: their records, their outcomes, and the group's compaction state.

use serde_json::{Value, json};

use crate::support::{Server, Setup, hermes, server::encode};

/// The words of an agent that compacts and signals it.
const SIGNALS: &str = "[[compaction:in_progress:c{n}]][[compaction:completed:c{n}:what was said]]";

/// API-2, API-1: a record has all fields of the API; the agent's signals of an ordered compaction
/// are merged into it (AM-29), with its summary.
#[test]
fn a_compaction_record_has_all_fields() {
    let server = Server::usual();
    server.complete("work", "[[usage:800:1000]]");
    let words = "[[compaction:in_progress:c1]][[compaction:completed:c1:what was said]]";
    let task = server.compact_with("work", &format!("{words}[[usage:90:1000]]"));
    let task = server.finish_as(&task, "completed");
    let compaction = server.only_compaction("work");
    for name in [
        "id",
        "group",
        "task",
        "status",
        "source",
        "sources",
        "from_segment",
        "to_segment",
        "messages_before",
        "messages_after",
        "tokens_before",
        "tokens_after",
        "summary",
        "error",
        "started_at",
        "ended_at",
    ] {
        assert!(compaction.get(name).is_some(), "no {name} in {compaction}");
    }
    assert!(compaction["id"].as_str().unwrap().starts_with("cmp_"), "{compaction}");
    assert_eq!((&compaction["group"], &compaction["task"]), (&json!("work"), &task["id"]));
    assert_eq!(compaction["status"], "completed");
    assert_eq!(sources(&compaction), ["acp", "task"]);
    assert!(sources(&compaction).contains(&compaction["source"].as_str().unwrap()));
    assert_eq!((&compaction["from_segment"], &compaction["to_segment"]), (&json!(1), &json!(2)));
    assert_eq!(compaction["summary"], "what was said");
    assert_eq!(compaction["error"], json!(null));
    assert!(compaction["started_at"].as_str() <= compaction["ended_at"].as_str(), "{compaction}");
    assert!(compaction["ended_at"].is_string(), "{compaction}");
    server.assert_compacted("work", 1);
}

/// API-2: the history is listed newest first, in pages of any size.
#[test]
fn history_is_newest_first() {
    let server = Server::usual();
    server.complete("work", "first");
    let tasks: Vec<Value> =
        (0..5).map(|_| server.finish_as(&server.compact("work"), "completed")).collect();
    let expected: Vec<&Value> = tasks.iter().rev().map(|task| &task["id"]).collect();
    let all = server.compactions("work");
    assert_eq!(all.iter().map(|compaction| &compaction["task"]).collect::<Vec<_>>(), expected);
    for limit in [1, 2, 5, 6] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/groups/work/compactions?limit={limit}{cursor}");
            let page = server.get(&path).expect(200);
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit, "{path}");
            seen.extend(items.iter().cloned());
            assert!(seen.len() <= all.len(), "{path} repeats");
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", encode(next)),
                None => break,
            }
        }
        assert_eq!(seen, all, "limit {limit}");
    }
    server.assert_compacted("work", 5);
}

/// A-5, RA: an agent that answers its command with text and no signal has
/// compacted: the task is the only source.
#[test]
fn text_without_a_signal_completes_a_compaction() {
    let server = Server::usual();
    server.complete("work", "first");
    let task = server.finish_as(&server.compact("work"), "completed");
    assert_eq!(task["text"], "Compacted.");
    let compaction = server.only_compaction("work");
    assert_eq!(compaction["status"], "completed", "{compaction}");
    assert_eq!(compaction["source"], "task");
    assert_eq!(sources(&compaction), ["task"]);
    server.assert_compacted("work", 1);
}

/// API-1, DQ-12, I5: each way in which an ordered compaction has no effect has its status; the
/// error states that the session is unchanged, nothing is counted or rotated, the session stays and
/// the next turn runs in it.
#[test]
fn compactions_without_effect_leave_the_session_unchanged() {
    struct Case {
        name: &'static str,
        focus: &'static str,
        cancelled: bool,
        task: &'static str,
        compaction: &'static str,
    }
    #[rustfmt::skip]
    let cases = [
        Case { name: "the agent's error",     focus: "[[error:-32602:no]]",                                                     cancelled: false, task: "failed",      compaction: "failed" },
        Case { name: "an error in mid-way",   focus: "[[compaction:in_progress:c]][[error:-32602:no]]",                         cancelled: false, task: "failed",      compaction: "failed" },
        Case { name: "a failed update",       focus: "[[compaction:in_progress:c]][[compaction:failed:c:no]][[silent]]",        cancelled: false, task: "failed",      compaction: "failed" },
        Case { name: "cancelled, signalled",  focus: "[[compaction:in_progress:c]][[on-cancel:compaction:cancelled:c]][[gate:never]]", cancelled: true, task: "cancelled", compaction: "cancelled" },
        Case { name: "cancelled, no signal",  focus: "[[gate:never]]",                                                          cancelled: true,  task: "cancelled",   compaction: "cancelled" },
        Case { name: "death in mid-way",      focus: "[[compaction:in_progress:c]][[die:3]]",                                   cancelled: false, task: "interrupted", compaction: "abandoned" },
    ];
    for case in &cases {
        let server = Server::usual();
        server.complete("work", "first");
        let session = server.session("work");
        let task = server.compact_with("work", case.focus);
        if case.cancelled {
            server.journal.wait_gate("never");
            server.cancel(&task).expect(202);
        }
        let task = server.finish(&task);
        assert_eq!(task["state"], case.task, "{}: {task}\n{}", case.name, server.log.tail());
        let compaction = server.only_compaction("work");
        assert_eq!(compaction["status"], case.compaction, "{}: {compaction}", case.name);
        assert_eq!(compaction["to_segment"], json!(null), "{}: {compaction}", case.name);
        assert!(compaction["ended_at"].is_string(), "{}: {compaction}", case.name);
        if case.task == "failed" {
            for error in [&task["error"]["message"], &compaction["error"]] {
                assert!(error.to_string().contains("unchanged"), "{}: {error}", case.name);
            }
        }
        server.assert_compacted("work", 0);
        assert_eq!(server.group("work")["compaction"]["active"], false, "{}", case.name);
        assert_eq!(server.session("work"), session, "{}", case.name);
        server.lock(&session).any_problem(404);
        server.complete("work", "next");
        let last = server.journal.events_named("prompt").pop().unwrap();
        assert_eq!((&last["text"], &last["session"]), (&json!("next"), &json!(session)));
    }
}

/// API-1, RA: the compaction is `noop` if the agent finds nothing to compact, and
/// `skipped` if the agent finds another process compacting; the task is `skipped` in both (HL-2),
/// and the session unchanged.
#[test]
fn noop_and_skipped_compactions_are_distinct() {
    for (line, status) in [
        (hermes::no_progress("s1"), "noop"),
        (hermes::skipped("s1"), "skipped"),
        (hermes::already_rotated("s1"), "skipped"),
    ] {
        let server = Setup::new().signals(&["hermes_stderr"]).start();
        server.complete("work", "first");
        let focus = format!("{}{line}[[gate:signalled]]", hermes::started("s1"));
        let task = server.compact_with("work", &focus);
        server.journal.wait_gate("signalled");
        server.wait_stderr_frames("work", 2);
        server.journal.open_gate("signalled");
        server.finish_as(&task, "skipped");
        let compaction = server.only_compaction("work");
        assert_eq!(compaction["status"], status, "{compaction}");
        server.assert_compacted("work", 0);
    }
}

/// AM-31: the group's compaction state is absent before the first signal; afterwards it has the
/// last source and the times of the last start and completion.
#[test]
fn the_group_shows_its_compaction_state() {
    let server = Server::usual();
    server.complete("work", "first");
    assert_eq!(server.group("work")["compaction"], json!(null));
    let words = "[[compaction:in_progress:c]][[gate:go]][[compaction:completed:c]]";
    let task = server.compact_with("work", words);
    server.journal.wait_gate("go");
    let group = server
        .wait_group("work", "an active compaction", |group| group["compaction"]["active"] == true);
    assert_eq!(group["status"], "compacting");
    let state = &group["compaction"];
    assert_eq!(state["count"], 0, "{state}");
    assert!(["acp", "task"].contains(&state["last_source"].as_str().unwrap()), "{state}");
    assert!(state["last_started_at"].is_string(), "{state}");
    assert_eq!(state["last_completed_at"], json!(null), "{state}");
    let started_at = state["last_started_at"].clone();
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    let state = server.group("work")["compaction"].clone();
    assert_eq!((&state["active"], &state["count"]), (&json!(false), &json!(1)), "{state}");
    assert_eq!(state["last_started_at"], started_at);
    assert!(started_at.as_str() <= state["last_completed_at"].as_str(), "{state}");
    let completed_at = state["last_completed_at"].clone();
    let failing = server.compact_with("work", "[[error:-32602:no]]");
    server.finish_as(&failing, "failed");
    let state = server.group("work")["compaction"].clone();
    assert_eq!((&state["active"], &state["count"]), (&json!(false), &json!(1)), "{state}");
    assert_eq!(state["last_completed_at"], completed_at, "a failure is not a completion");
}

/// AM-17: history, count and state are unchanged after kill -9.
#[test]
fn compaction_history_survives_a_restart() {
    let mut server = Server::usual();
    server.complete("work", "first");
    server.journal.script("on-compact", SIGNALS);
    server.finish_as(&server.compact("work"), "completed");
    server.finish_as(&server.compact_with("work", "[[error:-32602:no]]"), "failed");
    let (history, segments) = (server.compactions("work"), server.segments("work"));
    let state = server.group("work")["compaction"].clone();
    server.kill_and_boot();
    assert_eq!(server.compactions("work"), history);
    assert_eq!(server.segments("work"), segments);
    assert_eq!(server.group("work")["compaction"], state);
    server.finish_as(&server.compact("work"), "completed");
    server.assert_compacted("work", 2);
}

/// API-2: the transcript has each compaction once: `compaction_started` before the agent's answer,
/// `compaction_ended` before `turn_settled`.
#[test]
fn each_compaction_has_one_started_and_one_ended_frame() {
    let server = Server::usual();
    server.complete("work", "first");
    server.journal.script("on-compact", SIGNALS);
    let task = server.finish_as(&server.compact("work"), "completed");
    let frames = server.frames_where("work", &format!("&task={}", task["id"].as_str().unwrap()));
    let place = |kind: &str| {
        let found: Vec<usize> =
            (0..frames.len()).filter(|place| frames[*place]["kind"] == kind).collect();
        assert_eq!(found.len(), 1, "{kind} once in {frames:?}");
        found[0]
    };
    let order = [
        place("greenroom/turn_started"),
        place("greenroom/compaction_started"),
        place("greenroom/compaction_ended"),
        place("greenroom/turn_settled"),
        place("greenroom/task_ended"),
    ];
    assert!(order.is_sorted(), "{order:?} in {frames:?}");
    assert_eq!(frames[order[2]]["payload"]["status"], "completed", "{frames:?}");
}

fn sources(compaction: &Value) -> Vec<&str> {
    let sources = compaction["sources"].as_array().unwrap_or_else(|| panic!("{compaction}"));
    let mut sources: Vec<&str> = sources.iter().map(|source| source.as_str().unwrap()).collect();
    sources.sort_unstable();
    sources
}
