//! Frames: the durable transcript, paged and filtered.

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::support::{Server, server::encode};

/// I3, AM-10: `seq` runs 1, 2, 3 … without gaps, in every view, over turns and restarts.
#[test]
fn seq_has_no_gaps_over_turns_and_restarts() {
    let mut server = Server::usual();
    server.complete("work", "[[chunks:50:200]][[tool]]");
    server.complete("work", "second");
    let before = server.frames("work");
    assert_gap_free(&before);
    server.kill_and_boot();
    server.complete("work", "third");
    let after = server.frames("work");
    assert_gap_free(&after);
    assert_eq!(after[..before.len()], before, "existing frames are unchanged");
    assert!(before.len() < after.len());
}

/// AM-10: a page read again, also after a restart, is byte-identical.
#[test]
fn pages_are_byte_identical() {
    let mut server = Server::usual();
    let text = "[[reply:ünïcode \\\"quoted\\\" \u{1F980} \u{7} \u{2028}]][[chunks:20:300]]";
    server.complete("work", text);
    let path = "/v1/groups/work/frames?limit=1000&before=20";
    let first = server.get(path);
    first.expect(200);
    assert_eq!(server.get(path).body, first.body);
    server.kill_and_boot();
    assert_eq!(server.get(path).body, first.body);
}

/// API-2: a frame has all fields of the API; ACP payloads are whole, unchanged JSON-RPC messages.
#[test]
fn a_frame_has_all_fields() {
    let server = Server::usual();
    let task = server.complete("work", "[[reply:hello]][[usage:1:2]]");
    for frame in server.frames("work") {
        for name in ["seq", "at", "group", "segment", "run", "task", "kind", "payload"] {
            assert!(frame.get(name).is_some(), "no {name} in {frame}");
        }
        assert_eq!(frame["group"], "work");
        let kind = frame["kind"].as_str().unwrap();
        assert!(kind.starts_with("session/") || kind.starts_with("greenroom/"), "{frame}");
        let at = frame["at"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.len() == "2026-01-01T00:00:00.000Z".len(), "{at}");
    }
    let updates = server.frames_of_kind("work", "session/update");
    let reply = updates
        .iter()
        .find(|frame| frame["payload"]["params"]["update"]["content"]["text"] == "hello")
        .unwrap_or_else(|| panic!("no reply in {updates:?}"));
    assert_eq!(reply["payload"]["jsonrpc"], "2.0");
    assert_eq!(reply["payload"]["method"], "session/update");
    assert_eq!(reply["task"], task["id"]);
    assert_eq!(reply["run"], task["run"]);
}

/// AM-2, I7, I8: `turn_started` has the prompt and precedes `session/prompt`, and both precede any
/// output; `turn_settled` and `task_ended` close the turn, in this order (AM-3).
#[test]
fn the_frames_of_a_turn_are_in_order() {
    let server = Server::usual();
    let task = server.complete("work", "[[reply:output]][[tool]]");
    let id = task["id"].as_str().unwrap();
    let frames = server.frames_where("work", &format!("&task={id}"));
    let place = |kind: &str| {
        let found = frames.iter().position(|frame| frame["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind} in {frames:?}"))
    };
    let started = place("greenroom/turn_started");
    let prompt = &frames[started]["payload"]["prompt"];
    let text = json!("[[reply:output]][[tool]]");
    assert!(
        *prompt == text || *prompt == json!([{ "type": "text", "text": text }]),
        "not the prompt verbatim: {prompt}"
    );
    let output = frames.iter().position(|frame| {
        frame["payload"]["params"]["update"]["sessionUpdate"] == "agent_message_chunk"
    });
    let order = [
        place("greenroom/task_queued"),
        started,
        place("session/prompt"),
        output.unwrap(),
        place("greenroom/turn_settled"),
        place("greenroom/task_ended"),
    ];
    assert!(order.is_sorted(), "{order:?} in {frames:?}");
    let seq = |place: usize| frames[place]["seq"].as_u64();
    assert!(task["seq_first"].as_u64() <= seq(started), "{task}");
    assert!(task["seq_last"].as_u64() >= seq(order[4]), "{task}");
}

/// API-2: every prompt written to the agent is a `session/prompt` frame, byte for byte as the
/// agent received it.
#[test]
fn prompts_are_stored_byte_for_byte() {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(borrow)]
        items: Vec<Frame<'a>>,
    }
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    let server = Server::usual();
    server.complete("work", "plain ünïcode \"quoted\" \\ / \u{1F980} \u{1}");
    let meta = r#"{"n":1.50,"big":12345678901234567890}"#;
    let odd = format!(r#"{{"prompt":[{{"type":"text","text":"\u00fc\/","_meta":{meta}}}]}}"#);
    let headers = [("Content-Type", "application/json")];
    let turns = "/v1/groups/work/turns?wait=25";
    server.request("POST", turns, &headers, Some(odd.as_bytes())).expect(200);
    let task = server.compact("work");
    server.finish_as(&task, "completed");
    let reply = server.get("/v1/groups/work/frames?kind=session/prompt");
    let page: Page<'_> = serde_json::from_slice(&reply.body).unwrap();
    let stored: Vec<&str> = page.items.iter().map(|frame| frame.payload.get()).collect();
    let prompts = server.journal.events_named("prompt");
    let received: Vec<&str> = prompts.iter().map(|event| event["line"].as_str().unwrap()).collect();
    assert_eq!(stored, received);
    assert_eq!(stored.len(), 3);
}

/// API-2: greenroom's own facts appear once each for a first turn.
#[test]
fn each_fact_of_a_first_turn_is_one_frame() {
    let server = Server::usual();
    server.complete("work", "hello");
    for fact in [
        "group_created",
        "task_queued",
        "task_started",
        "turn_started",
        "turn_settled",
        "task_ended",
        "run_started",
        "run_ready",
        "segment_started",
    ] {
        let frames = server.frames_of_kind("work", &format!("greenroom/{fact}"));
        assert_eq!(frames.len(), 1, "{fact}: {frames:?}");
    }
    assert!(server.frames_of_kind("work", "greenroom/segment_ended").is_empty());
}

/// API-2: filters by kind, task, `after` and `before`, in both orders; unknown values select
/// nothing.
#[test]
fn frames_are_filtered_by_kind_task_and_seq() {
    let server = Server::usual();
    let first = server.complete("work", "[[chunks:5:200]]");
    let second = server.complete("work", "[[chunks:7:200]]");
    let all = server.frames("work");
    let select = |keep: &dyn Fn(&Value) -> bool| -> Vec<Value> {
        all.iter().filter(|frame| keep(frame)).cloned().collect()
    };
    let of_kind = |kind: &str| select(&|frame| frame["kind"] == kind);
    for kind in ["session/update", "session/prompt", "greenroom/turn_settled"] {
        assert_eq!(server.frames_of_kind("work", kind), of_kind(kind), "{kind}");
    }
    assert_eq!(of_kind("greenroom/turn_settled").len(), 2);
    for task in [&first, &second] {
        let id = task["id"].as_str().unwrap();
        let of_task = select(&|frame| frame["task"] == task["id"]);
        assert_eq!(server.frames_where("work", &format!("&task={id}")), of_task);
        let updates =
            select(&|frame| frame["task"] == task["id"] && frame["kind"] == "session/update");
        let query = format!("&task={id}&kind=session/update");
        assert_eq!(server.frames_where("work", &query), updates);
    }
    let between = select(&|frame| {
        let seq = frame["seq"].as_u64().unwrap();
        3 < seq && seq < 9
    });
    assert_eq!(server.frames_where("work", "&after=3&before=9"), between);
    let mut reversed = all.clone();
    reversed.reverse();
    assert_eq!(server.frames_where("work", "&order=desc"), reversed);
    assert_eq!(server.frames_where("work", "&order=asc"), all);
    let nothing: Vec<Value> = Vec::new();
    assert_eq!(server.frames_where("work", "&kind=session/nothing"), nothing);
    assert_eq!(server.frames_where("work", "&after=999999"), nothing);
}

/// API-2: pages of every size give the same list, in both orders, also with a filter; the last page
/// has no cursor.
#[test]
fn pages_of_any_size_give_the_same_frames() {
    let server = Server::usual();
    server.complete("work", "[[chunks:10:200]]");
    for query in ["", "&order=desc", "&kind=session/update", "&order=desc&after=4"] {
        let all = server.frames_where("work", query);
        for limit in [1, 3, all.len(), all.len() + 1] {
            let mut seen = Vec::new();
            let mut cursor = String::new();
            loop {
                let path = format!("/v1/groups/work/frames?limit={limit}{query}{cursor}");
                let page = server.get(&path).expect(200);
                let items = page["items"].as_array().unwrap();
                assert!(items.len() <= limit, "{path}");
                seen.extend(items.iter().cloned());
                assert!(seen.len() <= all.len(), "{path} repeats: {seen:?}");
                match page["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={}", encode(next)),
                    None => break,
                }
            }
            assert_eq!(seen, all, "limit {limit}, query {query:?}");
        }
    }
    let default = server.get("/v1/groups/work/frames").expect(200);
    assert!(default["items"].as_array().unwrap().len() <= 100);
}

/// API-2: the transcript of one group has no frames of another.
#[test]
fn a_transcript_has_frames_of_its_group_only() {
    let server = Server::usual();
    server.complete("one", "for one");
    server.complete("two", "for two");
    for group in ["one", "two"] {
        let frames = server.frames(group);
        assert_gap_free(&frames);
        assert!(frames.iter().all(|frame| frame["group"] == group));
        let prompts = server.frames_of_kind(group, "session/prompt");
        assert_eq!(prompts.len(), 1);
    }
}

#[track_caller]
fn assert_gap_free(frames: &[Value]) {
    let seqs: Vec<u64> = frames.iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
    let expected: Vec<u64> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, expected);
}
