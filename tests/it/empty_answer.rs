//! `end_turn` alone is no proof of an answer.

use serde_json::{Value, json};

use crate::support::Server;

fn findings(task: &Value) -> Vec<&str> {
    let findings = task["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    findings.iter().map(|one| one.as_str().unwrap()).collect()
}

/// REAL-AGENTS: a turn that ends `end_turn` with no agent message and no tool call is completed,
/// with the finding `empty_answer`; thoughts, plans and usage are no answer.
#[test]
fn nothing_said_and_nothing_done() {
    let server = Server::usual();
    for prompt in ["[[silent]]", "[[usage:1:100]]", "[[thought:hm]]", "[[tokens:1:1]]"] {
        let task = server.complete("work", prompt);
        assert_eq!(task["stop_reason"], "end_turn", "{prompt}: {task}");
        assert_eq!(findings(&task), ["empty_answer"], "{prompt}: {task}");
    }
}

/// REAL-AGENTS: a word or a tool call is an answer; so is every end but `end_turn`.
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

/// REAL-AGENTS: an ordered compaction has nothing to say; that is no finding.
#[test]
fn a_compaction_may_be_silent() {
    let server = Server::usual();
    server.complete("work", "first");
    let task = server.compact_with("work", "[[compaction:completed:c1]][[silent]]");
    assert!(findings(&server.finish_as(&task, "completed")).is_empty());
}

/// AM-17, I13: the finding is there after a restart, and in the list as in the task.
#[test]
fn the_finding_is_durable() {
    let mut server = Server::usual();
    let task = server.complete("work", "[[silent]]");
    server.kill_and_boot();
    assert_eq!(server.task(&task), task);
    assert_eq!(server.list("work", "tasks")[0]["findings"], json!(["empty_answer"]));
}
