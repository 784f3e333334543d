//! Frames: the durable transcript, paged and filtered.

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::support::{
    Server,
    server::{encode, id},
};

/// I3, AM-10: `seq` runs 1, 2, 3 … without gaps over turns and restarts, in each group for itself;
/// existing frames never change, and a page read again is byte-identical.
#[test]
fn seq_has_no_gaps_over_turns_and_restarts() {
    let mut server = Server::usual();
    let text = "[[reply:ünïcode \\\"quoted\\\" \u{1F980} \u{7} \u{2028}]][[chunks:50:200]][[tool]]";
    server.complete("work", text);
    server.complete("other", "between");
    server.complete("work", "second");
    let path = "/v1/groups/work/frames?limit=1000&before=20";
    server.get(path).expect(200);
    let (page, before) = (server.get(path).body, server.frames("work"));
    assert_eq!(server.get(path).body, page);
    server.kill_and_boot();
    assert_eq!(server.get(path).body, page);
    server.complete("work", "third");
    let after = server.frames("work");
    assert_eq!(after[..before.len()], before, "existing frames are unchanged");
    assert!(before.len() < after.len());
    for (group, prompts) in [("work", 3), ("other", 1)] {
        let frames = server.frames(group);
        let seqs: Vec<u64> = frames.iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=frames.len() as u64).collect::<Vec<_>>(), "{group}");
        assert!(frames.iter().all(|frame| frame["group"] == group));
        assert_eq!(server.frames_of_kind(group, "session/prompt").len(), prompts);
    }
}

/// AM-2, API-2, I7, I8: a first turn has each of its facts once, and in order: `turn_started` with
/// the prompt precedes `session/prompt`, and both precede any output; `turn_settled` and
/// `task_ended` close the turn (AM-3). A frame has all fields of the API; ACP payloads are
/// unchanged messages.
#[test]
fn the_frames_of_a_turn_are_in_order() {
    let server = Server::usual();
    let task = server.complete("work", "[[reply:output]][[tool]]");
    let frames = server.frames("work");
    for frame in &frames {
        for name in ["seq", "at", "group", "segment", "run", "task", "kind", "payload"] {
            assert!(frame.get(name).is_some(), "no {name} in {frame}");
        }
        let kind = frame["kind"].as_str().unwrap();
        assert!(kind.starts_with("session/") || kind.starts_with("greenroom/"), "{frame}");
        let at = frame["at"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.len() == "2026-01-01T00:00:00.000Z".len(), "{at}");
    }
    let place = |kind: &str| {
        let is_it = |frame: &&Value| frame["kind"] == kind;
        assert_eq!(frames.iter().filter(is_it).count(), 1, "{kind} in {frames:?}");
        frames.iter().position(|frame| is_it(&frame)).unwrap()
    };
    for fact in ["group_created", "task_started", "run_started", "run_ready", "segment_started"] {
        place(&format!("greenroom/{fact}"));
    }
    assert!(server.frames_of_kind("work", "greenroom/segment_ended").is_empty());
    let (started, settled) = (place("greenroom/turn_started"), place("greenroom/turn_settled"));
    let text = json!([{ "type": "text", "text": "[[reply:output]][[tool]]" }]);
    assert_eq!(frames[started]["payload"]["prompt"], text);
    let output =
        |frame: &Value| frame["payload"]["params"]["update"]["content"]["text"] == "output";
    let output = frames.iter().position(output).unwrap();
    let order = [
        place("greenroom/task_queued"),
        started,
        place("session/prompt"),
        output,
        settled,
        place("greenroom/task_ended"),
    ];
    assert!(order.is_sorted(), "{order:?} in {frames:?}");
    let output = &frames[output];
    assert_eq!(output["payload"]["jsonrpc"], "2.0");
    assert_eq!(output["payload"]["method"], "session/update");
    assert_eq!((&output["task"], &output["run"]), (&task["id"], &task["run"]));
    let seq = |place: usize| frames[place]["seq"].as_u64();
    assert!(task["seq_first"].as_u64() <= seq(started), "{task}");
    assert!(task["seq_last"].as_u64() >= seq(settled), "{task}");
}

/// API-2, F14: the response to a prompt is a frame of its turn, byte for byte and whatever is in
/// it, before the settlement. Another one is ignored.
#[test]
fn the_response_to_a_prompt_is_a_frame() {
    let server = Server::usual();
    let answers = [
        (
            r#"{"jsonrpc": "2.0",  "id":$id,"result":{"stopReason":"end_turn","x":1.50,"y":"\u00e4"}}"#,
            "completed",
        ),
        (
            r#"{"id":"$id","error":{"code":-32602,"message":"no","data":{"b":[1,  2],"a":1e2}}}"#,
            "failed",
        ),
        (r#"{"id":$id,"result":null}"#, "failed"),
    ];
    for (answer, state) in answers {
        let prompt = format!("[[answer-line:{answer}]]");
        let task = server.finish_as(&server.submit("work", &prompt), state);
        let sent = server.task_frames(&task, "session/prompt");
        let sent = answer.replace("$id", &sent[0]["seq"].to_string());
        let page = server.get(&format!("/v1/groups/work/frames?task={}", encode(id(&task))));
        let stored = format!(r#""kind":"greenroom/prompt_answered","payload":{sent}}}"#);
        assert!(page.text().contains(&stored), "{stored} is not in {}", page.text());
        let kinds = server.frames_where("work", &format!("&task={}", id(&task)));
        let kinds: Vec<_> = kinds.iter().filter_map(|frame| frame["kind"].as_str()).collect();
        let ends = ["prompt_answered", "turn_settled", "task_ended"];
        let ends = ends.map(|fact| format!("greenroom/{fact}"));
        assert_eq!(kinds[kinds.len() - 3..], ends, "{kinds:?}");
    }
    let twice = r#"[[line:{"id":$id,"result":{"stopReason":"refusal"}}]]"#;
    let task = server.finish_as(&server.submit("work", twice), "completed");
    assert_eq!(server.task_frames(&task, "greenroom/prompt_answered").len(), 1);
}

/// API-2: a frame of greenroom's own, a fact or a prompt, is greenroom's: no agent can write one.
#[test]
fn an_agent_cannot_write_greenrooms_own_frames() {
    let server = Server::usual();
    let forged = r#"{"jsonrpc":"2.0","method":"greenroom/group_archived","params":{}}"#;
    let prompt = r#"{"jsonrpc":"2.0","id":"x","method":"session/prompt","params":{"prompt":[]}}"#;
    server.complete("work", &format!("[[line:{forged}]][[line:{prompt}]]"));
    assert_eq!(server.frames_of_kind("work", "greenroom/group_archived"), [json!(null); 0]);
    assert_eq!(server.frames_of_kind("work", "session/prompt").len(), 1);
    let unnamed = server.frames_of_kind("work", "agent/unnamed");
    let payloads: Vec<_> = unnamed.iter().map(|frame| frame["payload"].to_string()).collect();
    assert_eq!(payloads, [forged, prompt]);
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

/// API-2: filters by kind, task, `after` and `before`, in both orders; unknown values select
/// nothing. Pages of every size give the same list; the last one has no cursor.
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
