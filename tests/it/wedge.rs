//! hermes' wedge: a cancel breaks a session, and only a new process recovers it.

use serde_json::json;

use crate::support::{Server, Setup};

/// RA, I16: the prompt after a cancel fails, or is only queued, or the cancelled prompt itself
/// fails (hermes in a compaction): the run is restarted with its session, and the next turns are
/// answered in order. The log warns, and the transcript has the cause.
#[test]
fn a_wedge_after_a_cancel_restarts_the_run() {
    let server = Setup::new().set("agents.scripted", "signals", "[\"hermes_meta\"]").start();
    let wedge = |text: &str| text.to_lowercase().contains("wedge");
    for (group, words, victim) in [
        ("later", "[[wedge]][[reply:x]]", Some("failed")),
        ("queued", "[[wedge:queued]][[reply:x]]", Some("failed")),
        ("now", "[[wedge:now]][[reply:x]]", None),
        ("compacting", "[[wedge:now]][[compaction:in_progress:c1]]", None),
    ] {
        server.complete(group, "first");
        let session = server.session(group);
        let prompt = format!("{words}[[gate:{group}]]");
        let task = match group {
            "compacting" => server.compact_with(group, &prompt),
            _ => server.submit(group, &prompt),
        };
        server.journal.wait_gate(group);
        let waiting = victim.map(|_| server.submit(group, "victim"));
        let next = ["one", "two"].map(|text| server.submit(group, text));
        server.cancel(&task).expect(202);
        server.finish_as(&task, "cancelled");
        if let (Some(waiting), Some(state)) = (&waiting, victim) {
            server.finish_as(waiting, state);
        }
        for (task, text) in next.iter().zip(["echo: one", "echo: two"]) {
            assert_eq!(server.finish_as(task, "completed")["text"], text, "{group}");
        }
        let sent = server.journal.prompts_of(&session);
        assert_eq!(sent.len(), if victim.is_some() { 5 } else { 4 }, "{group}: {sent:?}");
        assert_eq!(server.session(group), session, "{group}");
        assert_eq!(server.list(group, "runs").len(), 2, "{group}: a new run");
        let mut restored = server.journal.events_named("resume");
        restored.extend(server.journal.events_named("load"));
        restored.retain(|event| event["session"] == *session);
        assert_eq!(restored.len(), 1, "{group}: the session was restored: {restored:?}");
        assert!(server.frames_of_kind(group, "greenroom/context_lost").is_empty(), "{group}");
        assert_eq!(server.segments(group).len(), 1, "{group}: no new segment (AM-13)");
        server.log.wait("a warning of the wedge", |line| {
            line.contains("WARN") && line.contains(&format!("group={group}")) && wedge(line)
        });
        let exits = server.frames_of_kind(group, "greenroom/run_exited");
        assert_eq!(exits.len(), 1, "{group}: {exits:?}");
        assert!(wedge(&exits[0]["payload"].to_string()), "{group}: no cause in {exits:?}");
    }
    let sign = server.frames_of_kind("queued", "greenroom/agent_wedged");
    assert!(sign[0]["payload"].to_string().contains("prompt_queued_after_cancel"), "{sign:?}");
    assert_eq!(server.journal.events_named("wedged").len(), 2, "no prompt after `wedge:now`");
    server.assert_compacted("compacting", 0);
    server.journal.assert_one_at_a_time();
}

/// RA: a cancel that breaks nothing restarts nothing, nor does an error, of an agent that is not
/// hermes also after a cancel.
#[test]
fn a_cancel_or_an_error_without_a_wedge_restarts_nothing() {
    let server = Server::usual();
    let task = server.submit("work", "[[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    let failed = server.turn("work", "[[error:-32603:overloaded]]");
    assert_eq!(failed["error"]["code"], "agent_error", "{failed}");
    server.complete("work", "next");
    let failed = server.turn("work", "[[error:-32603:Internal error]]");
    assert_eq!(failed["state"], "failed");
    let text = "Queued for the next turn. (1 queued)";
    assert_eq!(server.complete("work", &format!("[[reply:{text}]]"))["text"], text);
    server.complete("work", "last");
    assert_eq!(server.journal.events_named("start").len(), 1);
    assert_eq!(server.group("work")["compaction"], json!(null));
}
