//! The snapshot: all that a late reader needs, consistent at one moment.

use std::thread;

use serde_json::{Value, json};

use crate::support::{Server, Setup};

const SNAPSHOT: &str = "/v1/groups/work/snapshot";

/// API-2, AM-31: it has the group, its segments, task, permissions, compaction and usage, equal to
/// the single requests; events after its `last_seq` continue it without a gap or a repeat (AM-16).
#[test]
fn a_snapshot_has_all_that_a_late_reader_needs() {
    let server = Server::usual();
    server.get(SNAPSHOT).any_problem(404);
    server.put("/v1/groups/work", &json!({})).expect(201);
    let empty = server.get(SNAPSHOT).expect(200);
    assert_eq!((&empty["segments"], &empty["compaction"]), (&json!([]), &json!(null)), "{empty}");
    server.complete("work", "[[usage:10:100]][[compaction:completed:c1]]");
    let running = server.submit("work", "[[compaction:in_progress:c2]][[gate:go]]");
    server.journal.wait_gate("go");
    let group = server
        .wait_group("work", "an active compaction", |group| group["compaction"]["active"] == true);
    let snapshot = server.get(SNAPSHOT).expect(200);
    assert_eq!(snapshot["group"], group);
    assert_eq!(snapshot["segments"], Value::from(server.segments("work")));
    assert_eq!(snapshot["compaction"], group["compaction"]);
    assert_eq!(snapshot["usage"], group["usage"]);
    assert_eq!(snapshot["last_seq"], group["last_seq"]);
    let task = &snapshot["current_task"];
    assert!([task, &task["id"]].contains(&&running["id"]), "{snapshot}");
    let names = snapshot.as_object().unwrap().keys();
    let inbox: Vec<&String> = names.filter(|name| name.ends_with("permissions")).collect();
    assert_eq!(inbox.len(), 1, "the pending permissions: {snapshot}");
    assert_eq!(snapshot[inbox[0]], json!([]));
    let last = snapshot["last_seq"].as_u64().unwrap();
    let events = server.events("work", &format!("?after={last}"));
    server.journal.open_gate("go");
    let seen = events.until_task_ended(&running["id"]);
    let ids: Vec<u64> = seen.iter().filter_map(|event| event.id).collect();
    assert_eq!(ids, (last + 1..=last + ids.len() as u64).collect::<Vec<_>>());
    server.finish_as(&running, "completed");
}

/// API-2, I4: the snapshot is consistent at every moment, also while segments rotate.
#[test]
fn a_snapshot_is_consistent_while_segments_rotate() {
    let server = Setup::new().start();
    server.complete("work", "first");
    thread::scope(|scope| {
        let server = &server;
        let turns = scope.spawn(move || {
            for round in 0..15 {
                let words: String = (0..4)
                    .map(|n| format!("[[chunks:5:200]][[compaction:completed:c{round}-{n}]]"))
                    .collect();
                server.complete("work", &words);
            }
        });
        let mut polls = 0;
        while polls < 20 || !turns.is_finished() {
            assert_consistent(&server.get(SNAPSHOT).expect(200));
            polls += 1;
        }
    });
    server.assert_compacted("work", 60);
}

#[track_caller]
fn assert_consistent(snapshot: &Value) {
    let (group, segments) = (&snapshot["group"], snapshot["segments"].as_array().unwrap());
    let last_seq = snapshot["last_seq"].as_u64().unwrap();
    assert_eq!(group["last_seq"], last_seq);
    let open: Vec<&Value> =
        segments.iter().filter(|segment| segment["closed_seq"].is_null()).collect();
    assert_eq!(open.len(), 1, "{segments:?}");
    assert_eq!(open[0]["segment"], group["segment"]);
    assert_eq!(open[0]["session_id"], group["session_id"]);
    assert!(open[0]["opened_seq"].as_u64().unwrap() <= last_seq, "{open:?}, {last_seq}");
    let compacted = segments.iter().filter(|segment| segment["end_reason"] == "compaction").count();
    let count = snapshot["compaction"]["count"].as_u64().unwrap_or(0);
    assert_eq!(compacted as u64, count, "{snapshot}");
    assert_eq!(snapshot["compaction"], group["compaction"]);
    let task = &snapshot["current_task"];
    let id = if task.is_object() { &task["id"] } else { task };
    assert_eq!(*id, group["current_task"], "{snapshot}");
}
