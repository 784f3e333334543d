//! Segments: the intervals of a transcript with one context each, and the view of the current one.

use std::{collections::HashSet, thread};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process, setup::SCRIPTED};

const STARTED: &str = "greenroom/segment_started";
const ENDED: &str = "greenroom/segment_ended";

/// The words of an agent that signals the start and the end of an ordered compaction.
const SIGNALS: &str = "[[compaction:in_progress:o{n}]][[compaction:completed:o{n}]]";

/// The words of a compaction by the agent itself.
fn compaction_words(id: u64) -> String {
    format!("[[compaction:in_progress:c{id}]][[compaction:completed:c{id}]]")
}

/// AM-11, AM-12: Checks that the first segment has only its start, and that each rotation is
/// exactly two adjacent frames: the last of the old segment and the first of the new.
#[track_caller]
fn assert_lineage(server: &Server, group: &str) {
    let segments = server.segments(group);
    let frames = server.frames(group);
    let marks: Vec<(&str, u64, u64)> = frames
        .iter()
        .filter(|frame| [STARTED, ENDED].contains(&frame["kind"].as_str().unwrap()))
        .map(|frame| {
            let kind = frame["kind"].as_str().unwrap();
            (kind, frame["segment"].as_u64().unwrap(), frame["seq"].as_u64().unwrap())
        })
        .collect();
    let mut expected = Vec::new();
    for (place, segment) in segments.iter().enumerate() {
        let number = place as u64 + 1;
        let parent = if place == 0 { json!(null) } else { json!(place) };
        assert_eq!((&segment["segment"], &segment["parent"]), (&json!(number), &parent));
        let opened = segment["opened_seq"].as_u64().unwrap();
        expected.push((STARTED, number, opened));
        let last = place + 1 == segments.len();
        assert_eq!(segment["closed_seq"].is_null(), last, "only the last is open: {segments:?}");
        for name in ["closed_at", "end_reason"] {
            assert_eq!(segment[name].is_null(), last, "{name} of {segment}");
        }
        let closed = segment["closed_seq"].as_u64().unwrap_or(u64::MAX);
        if !last {
            expected.push((ENDED, number, closed));
            assert_eq!(segments[place + 1]["opened_seq"], closed + 1, "{segments:?}");
        }
        for frame in &frames {
            let inside = (opened..=closed).contains(&frame["seq"].as_u64().unwrap());
            assert_eq!(frame["segment"] == number, inside, "segment {number}: {frame}");
        }
    }
    assert_eq!(marks, expected, "{segments:?}\n{}", server.log.tail());
}

/// I4, AM-11, AM-12, AM-14, API-2: a compaction, by the agent in a turn or ordered, and a change of
/// the session rotate the segment once, and a running turn continues across it. Any chain of
/// rotations is one line, which neither kill -9 nor the same session, restored, changes.
#[test]
fn a_chain_of_rotations_is_one_line() {
    let mut server = Server::usual();
    server.journal.script("on-compact", SIGNALS);
    server.put("/v1/groups/work", &json!({})).expect(201);
    assert!(server.segments("work").is_empty(), "no session, no segment");
    let task = server.complete("work", &format!("[[reply:a]]{}[[reply:b]]", compaction_words(0)));
    assert_eq!(task["text"], "ab", "one turn");
    let frames = server.frames_where("work", &format!("&task={}", task["id"].as_str().unwrap()));
    for (kind, segment) in [("greenroom/turn_started", 1), ("greenroom/turn_settled", 2)] {
        let frame = frames.iter().find(|frame| frame["kind"] == kind).unwrap();
        assert_eq!(frame["segment"], segment, "{frame}");
    }
    assert_eq!(server.frames_of_kind("work", "greenroom/group_created")[0]["segment"], 0);
    let two = format!("{}{}[[reply:x]]", compaction_words(1), compaction_words(2));
    server.complete("work", &two);
    let agents_id = server.session("work");
    let moved = server.complete("work", "[[reply:a]][[session:other-1:b]][[session:other-1:c]]");
    assert_eq!(moved["stop_reason"], "end_turn");
    assert_eq!(server.session("work"), "other-1");
    server.assert_compacted("work", 3);
    server.finish_as(&server.compact("work"), "completed");
    let last = server.journal.events_named("prompt").pop().unwrap();
    assert_eq!(last["session"], "other-1");
    let segments = server.segments("work");
    let reasons: Vec<&Value> = segments.iter().map(|segment| &segment["end_reason"]).collect();
    let [compaction, changed] = ["compaction", "acp_session_id_changed"].map(Value::from);
    let open = json!(null);
    let expected = [&compaction, &compaction, &compaction, &changed, &compaction, &open];
    assert_eq!(reasons, expected);
    for (place, segment) in segments.iter().enumerate() {
        let session = if place < 4 { &*agents_id } else { "other-1" };
        assert_eq!(segment["session_id"], session, "{segment}");
        assert!(segment["opened_at"].is_string() && segment.get("provenance").is_some());
    }
    assert_eq!(server.group("work")["segment"], 6);
    assert_lineage(&server, "work");
    server.kill_and_boot();
    assert_eq!(server.segments("work"), segments);
    server.complete("work", "next");
    assert_eq!(server.segments("work"), segments);
    assert_lineage(&server, "work");
}

/// AM-13, I7: what a subagent and a session in the background write is stored, begins no segment,
/// and is no part of an answer; a task with such output is not retried.
#[test]
fn output_of_other_sessions_moves_nothing() {
    let server = Server::usual();
    let text = "[[reply:I delegate. ]][[session:child:thinks]][[reply:42]]";
    let task = server.complete("work", text);
    assert_eq!(task["text"], "I delegate. 42");
    let session = server.session("work");
    let named = |frame: &&Value| frame["payload"]["params"]["sessionId"] == "child";
    let frames = server.frames("work");
    assert_eq!(frames.iter().filter(named).count(), 1, "{frames:?}");
    let only_there = server.submit("work", "[[session:child:thinks]][[error:-32603:overloaded]]");
    let failed = server.finish_as(&only_there, "failed");
    assert_eq!(failed["attempt"], 1, "{failed}");
    server.complete("work", "next");
    assert_eq!((server.session("work"), server.segments("work").len()), (session, 1));
}

/// AM-13: a compaction that the agent reports in the session to which it moved counts, also before
/// the next prompt.
#[test]
fn a_compaction_after_a_move_counts_between_turns() {
    let server = Server::usual();
    let update = json!({
        "sessionUpdate": "compaction_update", "compactionId": "c", "status": "completed",
    });
    let params = json!({ "sessionId": "other", "update": update });
    let line = json!({ "jsonrpc": "2.0", "method": "session/update", "params": params });
    let moves = format!("[[session:other:two]][[answer]][[gate:compact]][[line:{line}]]");
    server.complete("work", &moves);
    server.journal.open_gate("compact");
    let ended = |frame: &Value| frame["kind"] == "greenroom/compaction_ended";
    server.wait_frame("work", "the compaction", ended);
    server.assert_compacted("work", 1);
}

/// AM-13, AM-17, RA: another hermes session rotates if both are known, and counts only after a
/// compression; the first one is stored without a frame, and a repeated one rotates nothing. After
/// a restart of the server, or the agent's death, the current session is restored, not its ended
/// parent; no segment is opened for it.
#[test]
fn another_hermes_session_rotates_the_segment() {
    let signals = "[\"hermes_meta\"]";
    let mut server = Setup::new()
        .agent(SCRIPTED, &["--hermes"])
        .set("agents.scripted", "signals", signals)
        .agent("loads", &["--hermes", "--no-resume"])
        .set("agents.loads", "signals", signals)
        .agent("silent", &[])
        .set("agents.silent", "signals", signals)
        .start();
    let groups = ["silent", SCRIPTED, "loads"];
    for group in groups {
        server.put(&format!("/v1/groups/{group}"), &json!({ "agent": group })).expect(201);
        server.complete(group, "[[reply:x]]");
    }
    let marks = server.frames_of_kind("silent", STARTED).len();
    server.play("silent", &["[[provenance:h1]]", "[[provenance:h1]]"]);
    assert_eq!(server.frames_of_kind("silent", STARTED).len(), marks, "stored without a frame");
    let provenance = server.segments("silent")[0]["provenance"].to_string();
    assert!(provenance.contains("h1"), "{provenance}");
    server.play("silent", &["[[provenance:h1b:h1:branch]]"]);
    assert_eq!(server.segments("silent").len(), 2, "another reason rotates, and does not count");
    server.assert_compacted("silent", 0);
    for group in &groups[1..] {
        let second = format!("{group}-2");
        let words = format!("[[provenance:{second}:]]");
        server.play(group, &[&words, &words]);
        server.assert_compacted(group, 1);
        let segments = server.segments(group);
        assert_eq!(segments.len(), 2, "{segments:?}");
        assert_eq!(segments[0]["end_reason"], "compaction");
        assert!(segments[1]["provenance"].to_string().contains(&second), "{segments:?}");
    }
    server.kill_and_boot();
    for group in &groups[1..] {
        let (second, third) = (format!("{group}-2"), format!("{group}-3"));
        server.complete(group, "next");
        let mut restored = server.journal.events_named("resume");
        restored.extend(server.journal.events_named("load"));
        assert!(restored.iter().any(|event| event["session"] == *second), "{restored:?}");
        assert_eq!(server.journal.prompts_of(&second), ["next"], "{}", server.log.tail());
        assert_eq!(server.segments(group).len(), 2, "no new segment");
        server.assert_compacted(group, 1);
        server.play(group, &[&format!("[[provenance:{third}:{second}]]")]);
        server.assert_compacted(group, 2);
        process::signal(server.journal.agent_pid(), Signal::KILL);
        eventually("the end of the run", &server.log, || {
            server.group(group)["current_run"].is_null().then_some(())
        });
        server.complete(group, "last");
        assert_eq!(server.journal.prompts_of(&third), ["last"], "{}", server.log.tail());
        assert_eq!(server.segments(group).len(), 3);
        assert_lineage(&server, group);
    }
}

/// AM-15, API-2: the current view has the open segment, segment 0, and `turn_started` and
/// `turn_settled` of a turn of an older segment that has a frame in the open one: none of its
/// chunks, and no turn that ended before. Its pages add up to it, and `segment=N` selects one.
#[test]
fn the_current_view_has_the_open_segment_and_its_turns() {
    let server = Server::usual();
    server.journal.script("on-compact", SIGNALS);
    server.complete("work", "[[reply:before]]");
    server.complete("work", &format!("[[reply:a]]{}[[reply:b]]", compaction_words(1)));
    assert_current_view(&server, 2);
    server.complete("work", "[[reply:after]]");
    assert_current_view(&server, 2);
    server.complete("work", &format!("{}[[reply:c]]{}", compaction_words(2), compaction_words(3)));
    assert_current_view(&server, 4);
    server.finish_as(&server.compact("work"), "completed");
    assert_current_view(&server, 5);
    let running = server.submit("work", &format!("[[reply:d]]{}[[gate:go]]", compaction_words(4)));
    server.wait_group("work", "the rotation", |group| group["segment"] == 6);
    assert_current_view(&server, 6);
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    assert_current_view(&server, 6);

    let all = server.frames("work");
    for number in 0..=7 {
        let expected: Vec<Value> =
            all.iter().filter(|frame| frame["segment"] == number).cloned().collect();
        let path = format!("&segment={number}");
        assert_eq!(server.frames_where("work", &path), expected, "{number}");
    }
    let current = server.frames_where("work", "&segment=current");
    let mut reversed = server.frames_where("work", "&segment=current&order=desc");
    reversed.reverse();
    assert_eq!(reversed, current);
    let mut paged = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/v1/groups/work/frames?segment=current&limit=2&after={after}");
        let page = server.get(&path).expect(200);
        let items = page["items"].as_array().unwrap();
        let Some(last) = items.last() else { break };
        after = last["seq"].as_u64().unwrap();
        paged.extend(items.iter().cloned());
    }
    assert_eq!(paged, current);
}

/// AM-15: the current view is consistent, also while segments rotate: except for `turn_started` and
/// `turn_settled`, all its frames are of one segment.
#[test]
fn the_current_view_is_consistent_while_segments_rotate() {
    let server = Server::usual();
    server.complete("work", "first");
    let bookends = ["greenroom/turn_started", "greenroom/turn_settled"];
    thread::scope(|scope| {
        let server = &server;
        let turns = scope.spawn(move || {
            for round in 0..8 {
                let words: String = (0..10)
                    .map(|n| format!("[[reply:x]][[compaction:completed:c{round}-{n}]]"))
                    .collect();
                server.complete("work", &words);
            }
        });
        let mut polls = 0;
        while (polls < 20 || !turns.is_finished()) && polls < 2_000 {
            let path = "/v1/groups/work/frames?segment=current&limit=1000";
            let view = server.get(path).expect(200);
            let items = view["items"].as_array().unwrap();
            let inner = items.iter().filter(|frame| {
                let kind = frame["kind"].as_str().unwrap();
                frame["segment"] != 0 && !bookends.contains(&kind)
            });
            let segments: HashSet<u64> =
                inner.map(|frame| frame["segment"].as_u64().unwrap()).collect();
            assert_eq!(segments.len(), 1, "{segments:?}: {items:?}");
            polls += 1;
        }
    });
}

/// Checks the current view against the rule, applied to the whole transcript.
#[track_caller]
fn assert_current_view(server: &Server, open: u64) {
    assert_eq!(server.group("work")["segment"], open);
    let all = server.frames("work");
    let spanning: HashSet<String> = all
        .iter()
        .filter(|frame| frame["segment"] == open && !frame["task"].is_null())
        .map(|frame| frame["task"].to_string())
        .collect();
    let bookends = ["greenroom/turn_started", "greenroom/turn_settled"];
    let expected: Vec<&Value> = all
        .iter()
        .filter(|frame| {
            let bookend = bookends.contains(&frame["kind"].as_str().unwrap());
            frame["segment"] == open
                || frame["segment"] == 0
                || bookend && spanning.contains(&frame["task"].to_string())
        })
        .collect();
    let view = server.frames_where("work", "&segment=current");
    assert_eq!(view.iter().collect::<Vec<_>>(), expected, "segment {open}");
    assert!(view.len() < all.len(), "the view omits no frame");
}
