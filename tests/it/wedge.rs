//! hermes' wedge: a cancel breaks a session, and only a new process recovers it.

use serde_json::{Value, json};

use crate::support::Server;

/// Runs a turn, and checks that a new run, in the restored session, answered it.
#[track_caller]
fn assert_recovered(server: &Server) {
    let next = server.complete("work", "next");
    assert_eq!(next["text"], "echo: next", "not answered by the agent\n{}", server.log.tail());
    assert_eq!(server.journal.events_named("start").len(), 2, "a new run");
    let mut restored = server.journal.events_named("resume");
    restored.extend(server.journal.events_named("load"));
    assert_eq!(restored.len(), 1, "the session was restored: {restored:?}");
    assert_eq!(server.journal.events_named("new").len(), 1);
    let session = &server.journal.events_named("new")[0]["session"];
    assert_eq!(restored[0]["session"], *session);
    let prompts = server.journal.events_named("prompt");
    assert!(prompts.iter().all(|prompt| prompt["session"] == *session), "{prompts:?}");
    assert!(server.frames_of_kind("work", "greenroom/context_lost").is_empty());
    assert_eq!(server.segments("work").len(), 1, "no new segment (AM-13)");
}

/// I16: Checks that the log warns of the wedge, and that the transcript has the end of the run and
/// its cause.
#[track_caller]
fn assert_reported(server: &Server) {
    let wedge = |text: &str| text.to_lowercase().contains("wedge");
    server.log.wait("a warning of the wedge", |line| {
        line.contains("WARN") && line.contains("group=work") && wedge(line)
    });
    let exits = server.frames_of_kind("work", "greenroom/run_exited");
    assert_eq!(exits.len(), 1, "{exits:?}");
    assert!(wedge(&exits[0]["payload"].to_string()), "no cause in {exits:?}");
}

/// Cancels a turn that waits at its gate.
#[track_caller]
fn cancel_at_gate(server: &Server, prompt: &str) -> Value {
    let task = server.submit("work", prompt);
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish(&task)
}

/// RA, I16: the prompt after a cancel fails with -32603: the run is restarted, and the next turn is
/// answered.
#[test]
fn a_wedge_after_a_cancel_restarts_the_run() {
    let server = Server::usual();
    let cancelled = cancel_at_gate(&server, "[[wedge]][[reply:x]][[gate:never]]");
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    let failed = server.turn("work", "victim");
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_recovered(&server);
    assert_reported(&server);
}

/// RA: the agent only says that it queued the prompt after a cancel, in a run that answered others
/// before: the run is restarted.
#[test]
fn a_prompt_that_is_only_queued_after_a_cancel_restarts_the_run() {
    let server = Server::usual();
    server.complete("work", "first");
    let cancelled = cancel_at_gate(&server, "[[wedge:queued]][[reply:x]][[gate:never]]");
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    let victim = server.turn("work", "victim");
    assert_eq!(server.journal.events_named("wedged").len(), 1, "{victim}");
    assert_recovered(&server);
    assert_reported(&server);
    let sign = server.frames_of_kind("work", "greenroom/agent_wedged");
    assert!(sign[0]["payload"].to_string().contains("prompt_queued_after_cancel"), "{sign:?}");
}

/// RA: the cancelled prompt itself fails with -32603 (hermes in a compaction): its task is
/// `cancelled`, and the next turn is answered by a new run.
#[test]
fn a_wedge_of_the_cancelled_prompt_restarts_the_run() {
    let server = Server::usual();
    let cancelled = cancel_at_gate(&server, "[[wedge:now]][[reply:x]][[gate:never]]");
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    assert_recovered(&server);
    assert_reported(&server);
    assert!(
        server.journal.events_named("wedged").is_empty(),
        "no prompt was sent to the wedged session"
    );
}

/// RA: a cancelled compaction can wedge the session too.
#[test]
fn a_wedge_of_a_cancelled_compaction_restarts_the_run() {
    let server = Server::usual();
    server.complete("work", "first");
    let words = "[[wedge:now]][[compaction:in_progress:c1]][[gate:never]]";
    let task = server.compact_with("work", words);
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    assert_recovered(&server);
    server.assert_compacted("work", 0);
}

/// RA: turns that wait after the cancelled one are answered too, in order.
#[test]
fn waiting_turns_are_answered_after_a_wedge() {
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

/// RA: a cancel that breaks nothing restarts nothing, nor does an error without a cancel before it.
#[test]
fn a_cancel_or_an_error_without_a_wedge_restarts_nothing() {
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
