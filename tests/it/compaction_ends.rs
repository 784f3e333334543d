//! What an ordered compaction leaves that its caller or its deadline ended, and what a completed
//! one leaves of the usage.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// Orders a compaction that ignores its cancel and answers `end_turn` once its gate opens; what the
/// agent reports meanwhile is in `words`.
fn compact_deaf(server: &Server, words: &str) -> Value {
    let task = server.compact_with("work", &format!("[[ignore-cancel]]{words}[[gate:go]]"));
    server.journal.wait_gate("go");
    task
}

/// RA, DQ-12: an agent may obey a cancel with `end_turn`. The compaction is cancelled, also if
/// its start was seen; a context that became smaller shows that the cancel came too late.
#[test]
fn a_cancelled_compaction_is_cancelled_with_any_stop_reason() {
    for (words, state) in [
        ("", "cancelled"),
        ("[[usage:0:1000]]", "cancelled"),
        ("[[compaction:in_progress:c1]]", "cancelled"),
        ("[[usage:90:1000]]", "completed"),
    ] {
        let server = Server::usual();
        server.complete("work", "[[usage:500:1000]]");
        let task = compact_deaf(&server, words);
        server.cancel(&task).expect(202);
        server.journal.open_gate("go");
        let task = server.finish_as(&task, state);
        assert_eq!(task["stop_reason"], "end_turn", "{words}: {task}");
        assert_eq!(server.only_compaction("work")["status"], state, "{words}");
        server.complete("work", "next");
    }
}

/// AM-28, API-2: a compaction that its deadline cut is abandoned and its task interrupted, also if
/// the agent obeys with `end_turn`. The agent continues.
#[test]
fn a_compaction_that_reached_its_deadline_is_interrupted() {
    let server = Setup::new().text("defaults", "compaction_timeout", "300ms").start();
    server.complete("work", "[[usage:500:1000]]");
    let task = compact_deaf(&server, "");
    server.wait_group("work", "the deadline", |group| group["compaction"]["active"] == false);
    server.journal.open_gate("go");
    let task = server.finish_as(&task, "interrupted");
    let found = (&task["stop_reason"], &task["error"]["code"], &task["interrupted"]["cause"]);
    assert_eq!(found, (&json!("_deadline"), &json!("deadline"), &json!("deadline")), "{task}");
    assert_eq!(server.only_compaction("work")["status"], "abandoned");
    server.assert_compacted("work", 0);
    server.complete("work", "next");
    assert_eq!(server.journal.events_named("start").len(), 1, "the same process");
}

/// RA, API-2, DQ-5: the usage around the end of a compaction is what it left, in its record, in the
/// group and in the digest; without any it is unknown.
#[test]
fn a_compaction_is_measured_by_the_usage_around_its_end() {
    let done = "[[compaction:in_progress:c1]][[compaction:completed:c1]]";
    let near = "[[compaction:in_progress:c1]][[usage:90:1000]][[compaction:completed:c1]]";
    let cases = [
        ("before", near.to_owned(), json!(90), json!(90)),
        ("after", format!("{done}[[usage:80:1000]]"), json!(80), json!(80)),
        ("late", done.to_owned(), json!(null), json!(70)),
    ];
    for (name, words, at_once, later) in cases {
        let server = Server::usual();
        server.complete("work", "[[usage:500:1000]]");
        server.finish_as(&server.compact_with("work", &words), "completed");
        let tokens = |server: &Server| {
            let compaction = server.only_compaction("work");
            let digest = server.get("/v1/groups/work/digest").expect(200);
            let used = &server.group("work")["usage"]["used"];
            assert_eq!(digest["usage"]["used"], *used, "{name}: {digest}");
            (compaction["tokens_after"].clone(), used.clone())
        };
        assert_eq!(tokens(&server), (at_once.clone(), at_once), "{name}");
        server.complete("work", "[[usage:70:1000]]");
        assert_eq!(tokens(&server), (later, json!(70)), "{name}");
    }
}

/// RA, TD-10: a turn that is answered only with the summary of a compaction that failed before has
/// a finding: in the task and in the digest, also after a restart.
#[test]
fn a_summary_in_place_of_an_answer_is_a_finding() {
    let mut server = Server::usual();
    server.complete("work", "[[usage:500:1000]]");
    server.finish_as(&server.compact_with("work", "[[error:-32602:no]]"), "failed");
    server.kill_and_boot();
    let task = server.turn("work", "[[reply:<state_snapshot>all</state_snapshot>]]");
    assert_eq!((&task["state"], &task["findings"]), (&json!("completed"), &finding()), "{task}");
    let digest = server.get("/v1/groups/work/digest").expect(200);
    let kinds: Vec<_> =
        digest["findings"].as_array().unwrap().iter().map(|it| &it["kind"]).collect();
    assert!(kinds.contains(&&json!("answered_by_compaction")), "{digest}");
    let next = server.turn("work", "[[reply:<state_snapshot>all</state_snapshot>]]");
    assert_eq!(next["findings"], json!([]), "the turn before was answered: {next}");
    server.kill_and_boot();
    assert_eq!(server.task(&task)["findings"], finding());
}

fn finding() -> Value {
    json!(["answered_by_compaction"])
}
