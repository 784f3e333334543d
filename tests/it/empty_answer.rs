//! `end_turn` alone does not prove an answer.

use serde_json::{Value, json};

use crate::support::Server;

/// RA, AM-17, I13: a turn that ends `end_turn` with no agent message and no tool call is completed,
/// with the finding `empty_answer`; thoughts, plans, usage and blank chunks are no answer. A turn
/// that ends otherwise, and an ordered compaction, have no finding. It survives a restart, and is
/// in the list as in the task.
#[test]
fn a_turn_without_message_or_tool_call_has_a_finding() {
    let mut server = Server::usual();
    for (prompt, stop_reason, is_empty) in [
        ("[[silent]]", "end_turn", true),
        ("[[usage:1:100]]", "end_turn", true),
        ("[[thought:hm]]", "end_turn", true),
        ("[[update:plan]]", "end_turn", true),
        ("[[reply:]]", "end_turn", true),
        ("[[reply: ]][[reply:\n]]", "end_turn", true),
        ("[[reply: ]][[reply:x]]", "end_turn", false),
        ("[[tokens:1:1]]", "end_turn", true),
        ("[[reply:x]]", "end_turn", false),
        ("[[tool]]", "end_turn", false),
        ("[[tool:open]]", "end_turn", false),
        ("[[refuse]]", "refusal", false),
        ("[[error:-32602:no]]", "_error", false),
    ] {
        let task = server.turn("work", prompt);
        assert_eq!(task["stop_reason"], stop_reason, "{prompt}: {task}");
        let findings = if is_empty { json!(["empty_answer"]) } else { json!([]) };
        assert_eq!(task["findings"], findings, "{prompt}: {task}");
    }
    let task = server.compact_with("work", "[[compaction:completed:c1]][[silent]]");
    assert_eq!(server.finish_as(&task, "completed")["findings"], json!([]));
    let before: Vec<Value> = server.list("work", "tasks");
    server.kill_and_boot();
    assert_eq!(server.list("work", "tasks"), before);
    before.iter().for_each(|task| assert_eq!(server.task(task), *task));
}
