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
const COMPACTION: &str = "[[compaction:in_progress:c{n}]][[compaction:completed:c{n}]]";

fn compaction_words(id: u64) -> String {
    COMPACTION.replace("{n}", &id.to_string())
}

/// Starts a server whose agent names hermes' sessions, also in the results of `session/new` and
/// `load`.
fn start_hermes(arguments: &[&str]) -> Server {
    let all = [&["--hermes"], arguments].concat();
    Setup::new().agent(SCRIPTED, &all).signals(&["hermes_meta", "hermes_stderr"]).start()
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

/// AM-13: restoring the same session starts no new segment.
#[test]
fn restoring_the_same_session_keeps_the_segment() {
    let mut server = Server::usual();
    server.complete("work", "one");
    let segments = server.segments("work");
    server.kill_and_boot();
    server.complete("work", "two");
    assert_eq!(server.segments("work"), segments);
    assert_lineage(&server, "work");
}

/// I4, AM-11: a group that lost its context has two segments, one of them open.
#[test]
fn a_lost_context_starts_a_segment() {
    let setup = Setup::new().agent(SCRIPTED, &["--no-resume", "--no-load"]);
    let server = setup.text("defaults", "on_interrupt", "continue").start();
    server.complete("work", "one");
    process::signal(server.journal.agent_pid(), Signal::KILL);
    eventually("the end of the run", &server.log, || {
        server.group("work")["current_run"].is_null().then_some(())
    });
    server.complete("work", "two");
    let segments = server.segments("work");
    assert_eq!(segments.len(), 2, "{segments:?}");
    assert_eq!(segments[0]["end_reason"], "agent_restart");
    assert_lineage(&server, "work");
}

/// API-2, AM-11: a segment has all fields of the API; frames before the first session belong to
/// segment 0.
#[test]
fn a_segment_has_all_fields() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    assert!(server.segments("work").is_empty(), "no session, no segment");
    server.complete("work", "one");
    let segments = server.segments("work");
    for name in [
        "segment",
        "parent",
        "session_id",
        "opened_seq",
        "closed_seq",
        "opened_at",
        "closed_at",
        "end_reason",
        "provenance",
    ] {
        assert!(segments[0].get(name).is_some(), "no {name} in {}", segments[0]);
    }
    assert_eq!(segments[0]["session_id"], server.journal.events_named("new")[0]["session"]);
    assert_eq!(server.group("work")["segment"], 1);
    let created = server.frames_of_kind("work", "greenroom/group_created");
    assert_eq!(created[0]["segment"], 0);
    assert_lineage(&server, "work");
}

/// AM-12, AM-14: a compaction rotates the segment once, also during a turn, and the turn continues
/// across it.
#[test]
fn a_turn_continues_across_a_rotation() {
    let server = Server::usual();
    let task = server.complete("work", &format!("[[reply:a]]{}[[reply:b]]", compaction_words(1)));
    assert_eq!(task["text"], "ab", "one turn");
    let segments = server.segments("work");
    assert_eq!(segments.len(), 2, "{segments:?}");
    assert_eq!(segments[0]["end_reason"], "compaction");
    assert_eq!(segments[0]["session_id"], segments[1]["session_id"], "the agent's id stays");
    assert_eq!(server.group("work")["segment"], 2);
    assert_lineage(&server, "work");
    let id = task["id"].as_str().unwrap();
    let frames = server.frames_where("work", &format!("&task={id}"));
    let segment = |kind: &str| {
        let frame = frames.iter().find(|frame| frame["kind"] == kind);
        frame.unwrap_or_else(|| panic!("no {kind} in {frames:?}"))["segment"].clone()
    };
    assert_eq!(segment("greenroom/turn_started"), 1);
    assert_eq!(segment("greenroom/turn_settled"), 2);
    server.complete("work", "next");
    assert_eq!(server.segments("work").len(), 2);
}

/// I4, AM-12: an ordered compaction rotates too; any chain of rotations is one line, which kill -9
/// does not change.
#[test]
fn a_chain_of_rotations_is_one_line() {
    let mut server = Server::usual();
    server.journal.script("on-compact", SIGNALS);
    server.complete("work", "one");
    server.finish_as(&server.compact("work"), "completed");
    server.complete("work", &format!("{}{}[[reply:x]]", compaction_words(1), compaction_words(2)));
    server.complete("work", "[[session:other-1:moved]]");
    server.finish_as(&server.compact("work"), "completed");
    let segments = server.segments("work");
    let reasons: Vec<&Value> = segments.iter().map(|segment| &segment["end_reason"]).collect();
    let words = ["compaction", "compaction", "compaction", "acp_session_id_changed", "compaction"];
    let mut expected: Vec<Value> = words.map(Value::from).to_vec();
    expected.push(json!(null));
    assert_eq!(reasons, expected.iter().collect::<Vec<_>>());
    assert_lineage(&server, "work");
    server.kill_and_boot();
    assert_eq!(server.segments("work"), segments);
    server.complete("work", "next");
    assert_eq!(server.segments("work"), segments);
    assert_lineage(&server, "work");
}

/// AM-13, AM-14: a mere change of ACP's `sessionId` rotates, also during a turn; the new id is in
/// force, and a repetition rotates nothing.
#[test]
fn another_session_id_rotates_the_segment() {
    let server = Server::usual();
    let task = server.complete("work", "[[reply:a]][[session:other-1:b]][[session:other-1:c]]");
    assert_eq!(task["stop_reason"], "end_turn");
    let segments = server.segments("work");
    assert_eq!(segments.len(), 2, "{segments:?}");
    assert_eq!(segments[0]["end_reason"], "acp_session_id_changed");
    assert_eq!(segments[1]["session_id"], "other-1");
    assert_eq!(server.session("work"), "other-1");
    assert_lineage(&server, "work");
    assert_eq!(server.compaction_count("work"), 0);
    server.complete("work", "next");
    assert_eq!(server.journal.events_named("prompt")[1]["session"], "other-1");
    assert_eq!(server.segments("work").len(), 2);
}

/// AM-13: another hermes session rotates if both are known; the first one is stored without a
/// frame, and a repeated one rotates nothing.
#[test]
fn another_hermes_session_rotates_the_segment() {
    let server = Setup::new().signals(&["hermes_meta"]).start();
    server.complete("work", "[[reply:x]]");
    let marks = server.frames_of_kind("work", STARTED).len();
    server.play("work", &["[[provenance:h1]]"]);
    assert_eq!(server.frames_of_kind("work", STARTED).len(), marks, "stored without a frame");
    let provenance = server.segments("work")[0]["provenance"].to_string();
    assert!(provenance.contains("h1"), "{provenance}");
    server.play("work", &["[[provenance:h1]]", "[[provenance:h1]]"]);
    assert_eq!(server.segments("work").len(), 1, "a repeated id does not rotate");
    server.play("work", &["[[provenance:h2:h1]]", "[[provenance:h2:h1]]"]);
    let segments = server.segments("work");
    assert_eq!(segments.len(), 2, "{segments:?}");
    assert_eq!(segments[0]["end_reason"], "compaction");
    assert!(segments[1]["provenance"].to_string().contains("h2"), "{segments:?}");
    server.play("work", &["[[provenance:h3:h2:branch]]"]);
    assert_eq!(server.segments("work").len(), 3, "another reason rotates, and does not count");
    server.assert_compacted("work", 1);
    assert_lineage(&server, "work");
}

/// AM-13: the first known hermes session rotates only if its reason is a split.
#[test]
fn a_first_hermes_session_rotates_only_after_a_split() {
    let server = Setup::new().signals(&["hermes_meta"]).start();
    server.play("whole", &["[[old-provenance:h1]]"]);
    assert_eq!(server.segments("whole").len(), 1);
    server.play("split", &["[[old-provenance:h1:session_split]]"]);
    let segments = server.segments("split");
    assert_eq!(segments.len(), 2, "{segments:?}");
    assert_eq!(segments[0]["end_reason"], "compaction");
    server.assert_compacted("split", 1);
    assert_lineage(&server, "split");
}

/// RA, AM-13, AM-17: after a rotation by hermes and a restart of the server, the current session is
/// restored, not its ended parent; no segment is opened for it.
#[test]
fn the_current_session_is_restored_after_a_restart() {
    for arguments in [&[] as &[&str], &["--no-resume"]] {
        let mut server = start_hermes(arguments);
        server.complete("work", "[[reply:x]]");
        server.play("work", &["[[provenance:h2:]]"]);
        server.assert_compacted("work", 1);
        let segments = server.segments("work");
        assert_eq!(segments.len(), 2, "{segments:?}");
        server.kill_and_boot();
        server.complete("work", "next");
        let mut restored = server.journal.events_named("resume");
        restored.extend(server.journal.events_named("load"));
        let ids: Vec<&Value> = restored.iter().map(|event| &event["session"]).collect();
        assert_eq!(ids, ["h2"], "{}", server.log.tail());
        assert_eq!(server.journal.events_named("prompt").pop().unwrap()["session"], "h2");
        assert_eq!(server.segments("work").len(), 2, "no new segment");
        server.assert_compacted("work", 1);
        assert_lineage(&server, "work");
        server.play("work", &["[[provenance:h3:h2]]"]);
        server.assert_compacted("work", 2);
        server.kill_and_boot();
        server.complete("work", "last");
        assert_eq!(server.journal.events_named("prompt").pop().unwrap()["session"], "h3");
        assert_eq!(server.segments("work").len(), 3);
    }
}

/// AM-13, RA: after the agent's death between turns the current session is restored too.
#[test]
fn the_current_session_is_restored_after_a_death() {
    let server = start_hermes(&[]);
    server.play("work", &["[[provenance:h2:]]"]);
    process::signal(server.journal.agent_pid(), Signal::KILL);
    eventually("the end of the run", &server.log, || {
        server.group("work")["current_run"].is_null().then_some(())
    });
    server.complete("work", "next");
    assert_eq!(server.journal.events_named("prompt").pop().unwrap()["session"], "h2");
    assert_eq!(server.segments("work").len(), 2);
    server.assert_compacted("work", 1);
}

/// AM-15: the current view has the open segment, segment 0, and `turn_started` and `turn_settled`
/// of a turn of an older segment that has a frame in the open one: none of its chunks, and no turn
/// that ended before.
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
            for round in 0..20 {
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

/// API-2: `segment=N` selects one segment's frames, and the pages of the current view add up to it.
#[test]
fn one_segment_and_pages_of_the_current_view_are_complete() {
    let server = Server::usual();
    server.complete("work", &format!("[[reply:a]]{}[[reply:b]]", compaction_words(1)));
    let all = server.frames("work");
    for number in 0..=3 {
        let expected: Vec<Value> =
            all.iter().filter(|frame| frame["segment"] == number).cloned().collect();
        assert_eq!(
            server.frames_where("work", &format!("&segment={number}")),
            expected,
            "{number}"
        );
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
