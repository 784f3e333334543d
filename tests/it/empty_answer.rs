//! `end_turn` alone does not prove an answer.

use serde_json::{Value, json};

use crate::support::Server;

fn findings(task: &Value) -> Vec<&str> {
    let findings = task["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    findings.iter().map(|finding| finding.as_str().unwrap()).collect()
}

/// RA: a turn that ends `end_turn` with no agent message and no tool call is completed,
/// with the finding `empty_answer`; thoughts, plans and usage do not count as an answer.
#[test]
fn a_turn_without_message_or_tool_call_has_a_finding() {
    let server = Server::usual();
    for prompt in ["[[silent]]", "[[usage:1:100]]", "[[thought:hm]]", "[[tokens:1:1]]"] {
        let task = server.complete("work", prompt);
        assert_eq!(task["stop_reason"], "end_turn", "{prompt}: {task}");
        assert_eq!(findings(&task), ["empty_answer"], "{prompt}: {task}");
    }
}

/// RA: a message or a tool call is an answer; a turn that ends other than by `end_turn`
/// has no finding either.
#[test]
fn an_answer_has_no_finding() {
    let server = Server::usual();
    for prompt in ["[[reply:x]]", "[[tool]]", "[[tool:open]]", "[[refuse]]"] {
        let task = server.complete("work", prompt);
        assert!(findings(&task).is_empty(), "{prompt}: {task}");
    }
    let failed = server.turn("work", "[[error:-32602:no]]");
    assert!(findings(&failed).is_empty(), "{failed}");
}

/// RA: an ordered compaction without output has no finding.
#[test]
fn a_silent_compaction_has_no_finding() {
    let server = Server::usual();
    server.complete("work", "first");
    let task = server.compact_with("work", "[[compaction:completed:c1]][[silent]]");
    assert!(findings(&server.finish_as(&task, "completed")).is_empty());
}

/// AM-17, I13: the finding survives a restart, and is in the list as in the task.
#[test]
fn a_finding_survives_a_restart() {
    let mut server = Server::usual();
    let task = server.complete("work", "[[silent]]");
    server.kill_and_boot();
    assert_eq!(server.task(&task), task);
    assert_eq!(server.list("work", "tasks")[0]["findings"], json!(["empty_answer"]));
}
