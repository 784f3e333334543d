//! hermes' wedge: a session that a cancel has broken, and that only a new process cures.

use serde_json::{Value, json};

use crate::support::Server;

/// Waits until the group has nothing to do, runs a turn, and checks that it was answered for real.
#[track_caller]
fn assert_cured(server: &Server) {
    let next = server.complete("work", "next");
    assert_eq!(next["text"], "echo: next", "answered for real\n{}", server.log.tail());
    assert_eq!(server.journal.events_named("start").len(), 2, "a new run");
    let mut taken_up = server.journal.events_named("resume");
    taken_up.extend(server.journal.events_named("load"));
    assert_eq!(taken_up.len(), 1, "the session was taken up: {taken_up:?}");
    assert_eq!(server.journal.events_named("new").len(), 1);
    let session = &server.journal.events_named("new")[0]["session"];
    assert_eq!(taken_up[0]["session"], *session);
    let prompts = server.journal.events_named("prompt");
    assert!(prompts.iter().all(|prompt| prompt["session"] == *session), "{prompts:?}");
    assert!(server.frames_of_kind("work", "greenroom/context_lost").is_empty());
    assert_eq!(server.segments("work").len(), 1, "no new segment (AM-13)");
}

/// I16: the log warns of it, and the transcript tells the end of the run and why.
#[track_caller]
fn assert_said(server: &Server) {
    let wedge = |text: &str| text.to_lowercase().contains("wedge");
    server.log.wait("a warning of the wedge", |line| {
        line.contains("WARN") && line.contains("group=work") && wedge(line)
    });
    let exits = server.frames_of_kind("work", "greenroom/run_exited");
    assert_eq!(exits.len(), 1, "{exits:?}");
    assert!(wedge(&exits[0]["payload"].to_string()), "why it ended: {exits:?}");
}

/// Cancels a turn that stands at its gate.
#[track_caller]
fn cancel_at_gate(server: &Server, prompt: &str) -> Value {
    let task = server.submit("work", prompt);
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish(&task)
}

/// REAL-AGENTS, I16: the prompt after a cancel fails with -32603: the run is started anew, and the
/// turn after it is answered.
#[test]
fn the_prompt_after_a_cancel_fails() {
    let server = Server::usual();
    let cancelled = cancel_at_gate(&server, "[[wedge]][[reply:x]][[gate:never]]");
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    let failed = server.turn("work", "victim");
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_cured(&server);
    assert_said(&server);
}

/// REAL-AGENTS: the cancelled prompt itself fails with -32603 (hermes in a compaction): its task is
/// `cancelled`, and the next turn is not answered by the wedge.
#[test]
fn the_cancelled_prompt_fails() {
    let server = Server::usual();
    let cancelled = cancel_at_gate(&server, "[[wedge:now]][[reply:x]][[gate:never]]");
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    assert_cured(&server);
    assert_said(&server);
    assert!(server.journal.events_named("wedged").is_empty(), "no prompt was wasted on it");
}

/// REAL-AGENTS: an ordered compaction that is cancelled wedges likewise.
#[test]
fn a_cancelled_compaction_wedges() {
    let server = Server::usual();
    server.complete("work", "first");
    let words = "[[wedge:now]][[compaction:in_progress:c1]][[gate:never]]";
    let task = server.compact_with("work", words);
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    assert_cured(&server);
    server.assert_compacted("work", 0);
}

/// REAL-AGENTS: turns that wait behind the cancelled one are answered too, in order.
#[test]
fn waiting_turns_are_answered() {
    let server = Server::usual();
    let task = server.submit("work", "[[wedge:now]][[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    let waiting = [server.submit("work", "one"), server.submit("work", "two")];
    server.cancel(&task).expect(202);
    for (task, text) in waiting.iter().zip(["echo: one", "echo: two"]) {
        assert_eq!(server.finish_as(task, "completed")["text"], text);
    }
    server.journal.assert_one_at_a_time();
}

/// REAL-AGENTS: a cancel that broke nothing restarts nothing, nor does an error that no cancel
/// stands before.
#[test]
fn what_is_no_wedge_restarts_nothing() {
    let server = Server::usual();
    let cancelled = cancel_at_gate(&server, "[[reply:x]][[gate:never]]");
    assert_eq!(cancelled["state"], "cancelled");
    server.complete("work", "next");
    let failed = server.turn("work", "[[error:-32603:Internal error]]");
    assert_eq!(failed["state"], "failed");
    let text = "Queued for the next turn. (1 queued)";
    assert_eq!(server.complete("work", &format!("[[reply:{text}]]"))["text"], text);
    server.complete("work", "last");
    assert_eq!(server.journal.events_named("start").len(), 1);
    assert_eq!(server.group("work")["compaction"], json!(null));
}
