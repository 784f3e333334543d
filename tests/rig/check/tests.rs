//! A checker that cannot fail is worth nothing: every rule gets a history that breaks it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{RULES, check};
use crate::history::{Audit, Exchange, Frame, Group, History, Injected, Seen, Sight};

/// Segment, kind, run, task, payload.
type Line = (u32, &'static str, &'static str, &'static str, &'static str);

const LINES: [Line; 28] = [
    (0, "greenroom/task_queued", "", "tsk_1", r#"{"task":"tsk_1","kind":"turn","origin":"api"}"#),
    (0, "greenroom/task_claimed", "", "tsk_1", r#"{"task":"tsk_1"}"#),
    (0, "greenroom/run_started", "run_1", "tsk_1", r#"{"run":"run_1","agent":"a"}"#),
    (1, "greenroom/segment_started", "run_1", "tsk_1", r#"{"segment":1,"session":"a"}"#),
    (1, "greenroom/task_started", "run_1", "tsk_1", FIRST),
    (1, "greenroom/turn_started", "run_1", "tsk_1", r#"{"task":"tsk_1","prompt":[]}"#),
    (1, "session/prompt", "run_1", "tsk_1", ONE),
    (1, "session/update", "run_1", "tsk_1", SHOWN),
    (1, "greenroom/agent_output_rejected", "run_1", "tsk_1", REJECTED),
    (1, "greenroom/turn_settled", "run_1", "tsk_1", r#"{"task":"tsk_1","stop_reason":"end_turn"}"#),
    (1, "greenroom/task_ended", "run_1", "tsk_1", ENDED),
    (
        1,
        "greenroom/task_queued",
        "run_1",
        "tsk_2",
        r#"{"task":"tsk_2","kind":"turn","origin":"api"}"#,
    ),
    (
        1,
        "greenroom/task_started",
        "run_1",
        "tsk_2",
        r#"{"task":"tsk_2","attempt":1,"run":"run_1"}"#,
    ),
    (1, "greenroom/turn_started", "run_1", "tsk_2", r#"{"task":"tsk_2","prompt":[]}"#),
    (1, "session/prompt", "run_1", "tsk_2", TWO),
    (
        1,
        "greenroom/turn_settled",
        "run_1",
        "tsk_2",
        r#"{"task":"tsk_2","stop_reason":"_process_exited"}"#,
    ),
    (1, "greenroom/task_retrying", "run_1", "tsk_2", RETRYING),
    (1, "greenroom/run_exited", "run_1", "", EXITED),
    (1, "greenroom/task_claimed", "", "tsk_2", r#"{"task":"tsk_2"}"#),
    (1, "greenroom/run_started", "run_2", "tsk_2", r#"{"run":"run_2","agent":"a"}"#),
    (1, "greenroom/context_lost", "run_2", "tsk_2", r#"{"session":"a"}"#),
    (
        1,
        "greenroom/segment_ended",
        "run_2",
        "tsk_2",
        r#"{"segment":1,"end_reason":"agent_restart"}"#,
    ),
    (2, "greenroom/segment_started", "run_2", "tsk_2", r#"{"segment":2,"parent":1,"session":"b"}"#),
    (
        2,
        "greenroom/task_started",
        "run_2",
        "tsk_2",
        r#"{"task":"tsk_2","attempt":2,"run":"run_2"}"#,
    ),
    (2, "greenroom/turn_started", "run_2", "tsk_2", r#"{"task":"tsk_2","prompt":[]}"#),
    (2, "session/prompt", "run_2", "tsk_2", TWO_AGAIN),
    (2, "greenroom/turn_settled", "run_2", "tsk_2", r#"{"task":"tsk_2","stop_reason":"end_turn"}"#),
    (
        2,
        "greenroom/task_ended",
        "run_2",
        "tsk_2",
        r#"{"task":"tsk_2","attempt":2,"state":"completed"}"#,
    ),
];

const FIRST: &str = r#"{"task":"tsk_1","attempt":1,"run":"run_1"}"#;
const ENDED: &str = r#"{"task":"tsk_1","attempt":1,"state":"completed"}"#;
const REJECTED: &str = r#"{"run":"run_1","reason":"no JSON","bytes":"eA=="}"#;
const RETRYING: &str =
    r#"{"task":"tsk_2","attempt":1,"error":{"code":"c","message":"m"},"wait_ms":5}"#;
const RESTARTED: &str =
    r#"{"run":"run_1","reason":"server_restart","detail":"","stderr_tail":"","stderr_dropped":0}"#;
const EXITED: &str =
    r#"{"run":"run_1","reason":"exited","detail":"","stderr_tail":"","stderr_dropped":0}"#;
const ONE: &str = r#"{"params":{"sessionId":"a","prompt":["one"]}}"#;
const TWO: &str = r#"{"params":{"sessionId":"a","prompt":["two"]}}"#;
const TWO_AGAIN: &str = r#"{"params":{"sessionId":"b","prompt":["two"]}}"#;
const SHOWN: &str = r#"{"params":{"update":{"sessionUpdate":"agent_message_chunk"}}}"#;

fn frame(seq: u64, (segment, kind, run, task, payload): Line) -> Frame {
    let null = |id: &str| if id.is_empty() { Value::Null } else { json!(id) };
    let (run, task) = (null(run), null(task));
    let head = format!(r#""seq":{seq},"segment":{segment},"run":{run},"task":{task}"#);
    Frame::read(&whole(&format!(r#"{{{head},"kind":"{kind}","payload":{payload}}}"#))).unwrap()
}

/// Writes the ids in full.
fn whole(text: &str) -> String {
    const ZEROS: &str = "00000000-0000-0000-0000-00000000000";
    text.replace("tsk_", &format!("tsk_{ZEROS}"))
        .replace("run_1", &format!("run_{ZEROS}1"))
        .replace("run_2", &format!("run_{ZEROS}2"))
}

fn task(id: &str, state: &str, attempt: u64, text: &str) -> Value {
    json!({
        "id": whole(id), "kind": "turn", "state": state, "attempt": attempt, "blocked_by": null,
        "prompt": [{ "type": "text", "text": format!("[[reply:x]] ={text}=") }],
        "stop_reason": "end_turn", "error": null, "retry_of": null, "text": "x",
    })
}

fn submitted(sent: u64, key: &str, answer: &Value) -> Exchange {
    let mut answer = answer.clone();
    answer["state"] = json!("queued");
    Exchange {
        life: 1,
        sent,
        answered: sent + 5,
        method: "POST",
        path: "/v1/groups/work/turns".into(),
        key: Some(key.into()),
        status: 202,
        answer,
        ..Exchange::default()
    }
}

/// A completed turn, and one whose agent died without output and that was retried.
fn sound() -> History {
    let frames: Vec<Frame> = (1..).zip(LINES).map(|(seq, line)| frame(seq, line)).collect();
    let tasks = vec![task("tsk_1", "completed", 1, "one"), task("tsk_2", "completed", 2, "two")];
    let seen = frames.iter().map(|frame| Seen {
        life: 1,
        at: frame.seq,
        group: "work".into(),
        seq: frame.seq,
        text: frame.text.clone(),
    });
    let seen = seen.collect();
    let journal = [
        json!({ "event": "server-start", "life": 1 }),
        json!({ "event": "start", "pid": 7, "run": whole("run_1") }),
        received(7, "one", "a", true),
        json!({ "event": "output", "pid": 7, "what": "agent_message_chunk" }),
        json!({ "event": "rejected", "pid": 7, "lines": 1 }),
        json!({ "event": "answer", "pid": 7 }),
        received(7, "two", "a", false),
        json!({ "event": "exit", "pid": 7 }),
        json!({ "event": "server-start", "life": 2 }),
        json!({ "event": "start", "pid": 8, "run": whole("run_2") }),
        received(8, "two", "b", true),
        json!({ "event": "answer", "pid": 8 }),
    ];
    let mut waiting = task("tsk_2", "queued", 0, "two");
    waiting["blocked_by"] = json!("turn");
    let early = Audit {
        life: 2,
        at: 100,
        until: 101,
        tasks: BTreeMap::from([("work".into(), vec![tasks[0].clone(), waiting])]),
    };
    let exchanges = vec![submitted(10, "k1", &tasks[0]), submitted(20, "k2", &tasks[1])];
    let compaction = json!({ "status": "completed" });
    let work = Group {
        read_at: 200,
        shown: json!({ "compaction": { "active": false, "count": 1 } }),
        tasks,
        frames,
        compactions: vec![compaction],
        runs: vec![json!({ "id": whole("run_1") }), json!({ "id": whole("run_2") })],
        digest: json!({ "watermark_seq": 28, "frame_count": 28, "turn_count": 2 }),
        run_digests: vec![
            json!({ "run": whole("run_1"), "outcome": "exited", "watermark_seq": 18,
                    "frame_count": 16 }),
            json!({ "run": whole("run_2"), "outcome": null, "watermark_seq": 28,
                    "frame_count": 9 }),
        ],
    };
    History {
        exchanges,
        seen,
        audits: vec![early],
        sights: vec![recovered()],
        journal: journal.to_vec(),
        groups: BTreeMap::from([("work".into(), work)]),
        injected: vec![Injected { life: 1, fault: "kill".into(), proof: Some("killed".into()) }],
        witness: Some(("work".into(), vec!["_server_restart"])),
        ..History::default()
    }
}

/// The second server shows the run of the first one, which has ended, and no work.
fn recovered() -> Sight {
    let run = |run: &str| json!({ "id": whole(run), "ended_at": null });
    let shown = json!({ "status": "starting", "current_run": whole("run_2"),
                        "compaction": { "active": false } });
    let mut ended = run("run_1");
    ended["ended_at"] = json!("2026-01-01T00:00:00Z");
    Sight {
        life: 2,
        snapshot: json!({ "group": shown, "current_task": null, "permissions": [] }),
        shown,
        tasks: vec![json!({ "state": "retrying", "run": whole("run_1"), "blocked_by": "slot" })],
        runs: vec![run("run_2"), ended],
    }
}

fn received(pid: u64, text: &str, session: &str, first: bool) -> Value {
    let line = format!(r#"{{"params":{{"sessionId":"{session}","prompt":["{text}"]}}}}"#);
    json!({ "event": "prompt", "pid": pid, "line": line, "session": session, "first": first })
}

fn work(history: &mut History) -> &mut Group {
    history.groups.get_mut("work").unwrap()
}

/// Inserts a frame after the first `after` ones and renumbers all.
fn insert(history: &mut History, after: usize, line: Line) {
    work(history).frames.insert(after, frame(0, line));
    renumber(history);
}

fn renumber(history: &mut History) {
    for (seq, frame) in (1..).zip(&mut work(history).frames) {
        frame.seq = seq;
    }
    history.seen.clear();
}

fn event(history: &mut History, at: usize, event: Value) {
    history.journal.insert(at, event);
}

#[test]
fn a_sound_history_breaks_no_rule() {
    let found = check(&sound());
    assert!(found.is_empty(), "{found:?}");
}

type Spoil = fn(&mut History);

#[rustfmt::skip]
const SPOILED: &[(&str, &str, Spoil)] = &[
    ("every fault was injected", "the server outlived its kill", |h| h.injected[0].proof = None),
    ("one at a time", "two prompts of a session", |h| event(h, 4, json!({ "event": "overlap", "pid": 7 }))),
    ("one at a time", "the old process works on", |h| {
        h.journal.remove(7);
        h.journal.push(json!({ "event": "output", "pid": 7, "what": "tool_call" }));
    }),
    ("accepted is kept", "lost at a restart", |h| drop(h.audits[0].tasks.get_mut("work").unwrap().remove(1))),
    ("accepted is kept", "lost in the end", |h| drop(work(h).tasks.pop())),
    ("frames stay", "a number is missing", |h| drop(work(h).frames.remove(3))),
    ("frames stay", "a number comes twice", |h| {
        let again = work(h).frames[3].clone();
        work(h).frames.insert(3, again);
    }),
    ("frames stay", "seen otherwise", |h| h.seen[2].text.push(' ')),
    ("frames stay", "seen and never stored", |h| {
        h.seen.push(Seen { life: 1, at: 30, group: "work".into(), seq: 29, text: "{}".into() });
    }),
    ("frames stay", "seen twice", |h| { let again = h.seen[4].clone(); h.seen.push(again); }),
    ("compacting ends", "active at rest", |h| work(h).shown["compaction"]["active"] = json!(true)),
    ("compacting ends", "a record in progress", |h| {
        work(h).compactions.push(json!({ "status": "in_progress" }));
    }),
    ("compacting ends", "counted twice", |h| work(h).shown["compaction"]["count"] = json!(2)),
    ("sent once an attempt", "again after output in the journal", |h| {
        event(h, 7, json!({ "event": "output", "pid": 7, "what": "tool_call" }));
    }),
    ("the log is sound", "again after output", |h| {
        insert(h, 15, (1, "session/update", "run_1", "tsk_2", SHOWN));
    }),
    ("the log is sound", "again after a permission request", |h| {
        insert(h, 15, (1, "session/request_permission", "run_1", "tsk_2", r#"{"id":1}"#));
    }),
    ("sent once an attempt", "again after a crash of the server", |h| {
        work(h).frames[17] = frame(18, (1, "greenroom/run_exited", "run_1", "", RESTARTED));
        work(h).frames.drain(15..17);
        renumber(h);
    }),
    ("sent once an attempt", "again without an observed end of the run", |h| { work(h).frames.remove(17); renumber(h); }),
    ("sent once an attempt", "twice in one attempt", |h| work(h).tasks[1]["attempt"] = json!(1)),
    ("sent as it was committed", "other bytes", |h| h.journal[2]["line"] = json!("{}")),
    ("sent as it was committed", "sent and never committed", |h| h.journal.push(received(8, "three", "b", false))),
    ("sent as it was committed", "to an unknown run", |h| h.journal[9]["run"] = json!("run_9")),
    ("in order", "queued in another order than accepted", |h| {
        h.exchanges.swap(0, 1);
        h.exchanges[0].sent = 1;
        h.exchanges[0].answered = 2;
    }),
    ("one outcome", "completed, and then something else", |h| {
        let mut other = task("tsk_1", "interrupted", 1, "one");
        other["stop_reason"] = json!("_server_restart");
        work(h).tasks[0] = other;
    }),
    ("one outcome", "completed, and then another text", |h| {
        let mut again = submitted(150, "k1", &task("tsk_1", "completed", 1, "one"));
        again.answer["text"] = json!("other");
        h.exchanges.push(again);
    }),
    ("one outcome", "over, and then not", |h| {
        let mut again = submitted(150, "k1", &task("tsk_1", "queued", 1, "one"));
        again.answer["state"] = json!("running");
        h.exchanges.push(again);
    }),
    ("the log is sound", "a second task starts in between", |h| {
        insert(h, 7, (1, "greenroom/task_claimed", "run_1", "tsk_2", r#"{"task":"tsk_2"}"#));
    }),
    ("the log is sound", "a task ends twice", |h| {
        let again = work(h).frames[10].clone();
        work(h).frames.insert(11, again);
        renumber(h);
    }),
    ("the log is sound", "a frame of no task's id", |h| work(h).frames[4].task = Some("tsk".into())),
    ("runs are sealed", "a run is over and has no outcome", |h| {
        work(h).run_digests[0]["outcome"] = Value::Null;
    }),
    ("runs are sealed", "a run's digest is too early", |h| work(h).run_digests[0]["watermark_seq"] = json!(13)),
    ("runs are sealed", "a frame is counted twice", |h| work(h).run_digests[0]["frame_count"] = json!(13)),
    ("runs are sealed", "the group's digest is too early", |h| work(h).digest["watermark_seq"] = json!(20)),
    ("no orphans", "a process is left", |h| h.orphans.push("sleep".into())),
    ("bounded", "too much memory", |h| h.memory = 1 << 40),
    ("nothing is stuck", "a group is not at rest", |h| h.stuck.push("work".into())),
    ("every wait says why", "queued for nothing", |h| {
        h.audits[0].tasks.get_mut("work").unwrap()[1]["blocked_by"] = Value::Null;
    }),
    ("every wait says why", "at the start", |h| h.sights[0].tasks[0]["blocked_by"] = Value::Null),
    ("nothing is left running", "the group's run", |h| h.sights[0].shown["current_run"] = json!(whole("run_1"))),
    ("nothing is left running", "no run works", |h| {
        h.sights[0].shown = json!({ "status": "running", "current_run": null });
    }),
    ("nothing is left running", "no run compacts", |h| {
        h.sights[0].shown["current_run"] = Value::Null;
        h.sights[0].shown["compaction"]["active"] = json!(true);
    }),
    ("nothing is left running", "in the snapshot", |h| {
        h.sights[0].snapshot["group"] = json!({ "status": "compacting", "current_run": null });
    }),
    ("nothing is left running", "the snapshot's task", |h| {
        h.sights[0].snapshot["current_task"] = json!({ "state": "running", "run": whole("run_1") });
    }),
    ("nothing is left running", "a permission", |h| {
        h.sights[0].snapshot["permissions"] = json!([{ "run": whole("run_1") }]);
    }),
    ("nothing is left running", "a task", |h| h.sights[0].tasks[0]["state"] = json!("running")),
    ("nothing is left running", "a run", |h| h.sights[0].runs[1]["ended_at"] = Value::Null),
    ("replay is live", "verify finds a difference", |h| h.damage.push("head".into())),
    ("others continue", "the witness was interrupted", |h| {
        work(h).tasks[1]["state"] = json!("interrupted");
        work(h).tasks[1]["stop_reason"] = json!("_process_exited");
    }),
    ("rejected lines are reported", "a line is nowhere", |h| { work(h).frames.remove(8); renumber(h); }),
    ("a lost context is reported", "silently fresh", |h| { work(h).frames.drain(20..22); renumber(h); }),
    ("answers are sound", "a key names two tasks", |h| h.exchanges[1].key = Some("k1".into())),
    ("answers are sound", "a request was taken twice", |h| {
        let mut copy = task("tsk_3", "completed", 1, "one");
        copy["id"] = json!("tsk_3");
        work(h).tasks.push(copy);
    }),
    ("answers are sound", "a broken server's status", |h| h.exchanges[1].status = 500),
    ("answers are sound", "a retry of nothing", |h| {
        let mut retry = submitted(160, "k9", &task("tsk_9", "queued", 0, "nine"));
        retry.path = "/v1/tasks/tsk_1/retry".into();
        h.exchanges.push(retry);
    }),
    ("nothing else goes wrong", "the rig saw something", |h| h.wrong.push("a second server".into())),
];

#[test]
fn every_rule_is_broken_by_some_history() {
    let mut missed = Vec::new();
    for (rule, name, spoil) in SPOILED {
        let mut history = sound();
        spoil(&mut history);
        let found = check(&history);
        if !found.iter().any(|violation| violation.rule == *rule) {
            missed.push(format!("{rule}: {name}: {found:?}"));
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
    for (rule, _) in RULES {
        assert!(SPOILED.iter().any(|(spoiled, ..)| *spoiled == rule), "{rule} is never broken");
    }
}

/// I7: the agent's last note, which it may never have written out, forbids no second attempt.
#[test]
fn a_note_right_before_a_death_is_no_output() {
    let mut history = sound();
    history.journal[7] = json!({ "event": "output", "pid": 7, "what": "tool_call" });
    let found = check(&history);
    assert!(found.is_empty(), "{found:?}");
}

/// I7: the next server may retry an attempt whose end its server saw.
#[test]
fn a_crash_during_the_backoff_forbids_no_second_attempt() {
    let mut history = sound();
    work(&mut history).frames[17] = frame(18, (1, "greenroom/run_exited", "run_1", "", RESTARTED));
    history.seen.clear();
    let found = check(&history);
    assert!(!found.iter().any(|one| one.rule == "sent once an attempt"), "{found:?}");
}
