//! Tests of what facts say of tasks.

use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::{EndFrame, EndState, Ending, Timestamp};

const TASK: TaskId = TaskId(Uuid::from_u128(7));

fn read(kind: &str, payload: &str) -> Fact {
    Fact::read(kind, payload).expect("a frame of greenroom").expect("a known fact")
}

/// AM-23, TD-8: a permission or a compaction belongs to its own task, also if that has ended and
/// another task has the slot.
#[test]
fn permissions_and_compactions_name_their_task() {
    let permission = |task| {
        let id = PermissionId(Uuid::nil());
        json!({ "permission": id, "run": RunId(Uuid::nil()), "task": task, "request": 1,
            "options": [] })
    };
    let compaction = |task| {
        let id = crate::CompactionId(Uuid::nil());
        json!({ "compaction": id, "task": task, "status": "completed", "source": "acp",
            "sources": ["acp"], "from_segment": 1, "to_segment": null })
    };
    for task in [Some(TASK), None] {
        for (kind, payload) in [
            ("permission_opened", permission(task)),
            ("compaction_started", compaction(task)),
            ("compaction_updated", compaction(task)),
            ("compaction_ended", compaction(task)),
        ] {
            let fact = read(&format!("greenroom/{kind}"), &payload.to_string());
            assert_eq!((fact.task(), fact.kind()), (task, &*format!("greenroom/{kind}")));
        }
    }
}

/// API-2: the frame of a task's end names the kind of a compaction, and is as in earlier versions
/// for a turn.
#[test]
fn only_the_end_of_a_compaction_states_its_kind() {
    let task = Task { id: TASK, ..*empty_record() };
    let frame = EndFrame { at: Timestamp::default(), seq: 1 };
    let ended = task.ended(1, EndState::Completed, frame, Ending::default());
    for (kind, stated) in [(TaskKind::Turn, None), (TaskKind::Compaction, Some("compaction"))] {
        let fact = Fact::task_ended(kind, ended.clone());
        let payload: serde_json::Value = serde_json::from_str(&fact.payload()).expect("JSON");
        assert_eq!(payload.get("kind").map(|kind| kind.as_str()), stated.map(Some), "{payload}");
        let Fact::TaskEnded { kind: stored, .. } = read(fact.kind(), &fact.payload()) else {
            panic!("{payload}")
        };
        assert_eq!(stored, kind);
    }
}
