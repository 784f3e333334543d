//! `greenroom verify`: a sound database has no differences. That any
//! change is found, and what a repair makes, is tested in `actors/tests/storage/sqlite/verify.rs`.

use serde_json::{Value, json};

use crate::support::{Home, Server, Setup, server};

/// Returns the exit code and the lines of `greenroom verify`.
#[track_caller]
fn verify(home: &Home, arguments: &[&str]) -> (i32, Vec<String>) {
    let (code, output) = server::verify(home, arguments);
    (code, output.lines().map(str::to_owned).collect())
}

#[track_caller]
fn assert_sound(home: &Home, arguments: &[&str], begins: &str) {
    let (code, lines) = verify(home, arguments);
    assert_eq!((code, lines.len()), (0, 1), "{arguments:?}: {lines:?}");
    assert!(lines[0].starts_with(begins), "{arguments:?}: {lines:?}");
    assert!(lines[0].ends_with("0 differences"), "{arguments:?}: {lines:?}");
}

/// Starts a server with a group `work` with many kinds of events, and four other groups.
fn start_eventful() -> Server {
    let rotating = "{ strategy = \"rotate\" }";
    let setup = Setup::new().agent("rotating", &[]).set("agents.rotating", "compaction", rotating);
    let server = setup.retries("1ms").start();
    server.complete("work", "[[reply:hello]][[tool]][[usage:90:1000]]");
    server.finish_as(&server.compact_with("work", "[[usage:10:1000]]"), "completed");
    server.finish_as(&server.submit("work", "[[error:-32602:no]]"), "failed");
    server.finish_as(&server.submit("work", "[[reply:half]][[die:7]]"), "interrupted");
    server.complete("work", "[[reply:again]]");
    server.complete("work", "[[times:1:die:1]][[reply:second]]");
    server.complete("work", "[[permission]][[reply:asked]]");
    server.put("/v1/groups/rotated", &json!({ "agent": "rotating" })).expect_any(&[200, 201]);
    server.journal.script("on-summary", "[[reply:all of it]]");
    server.complete("rotated", "[[reply:one]]");
    server.finish_as(&server.compact("rotated"), "completed");
    server.complete("rotated", "[[reply:two]]");
    let cancelled = server.submit("cancelled", "[[reply:before]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    server.complete("deleted", "[[reply:x]]");
    server.delete("/v1/groups/deleted").expect_any(&[200, 202, 204]);
    server.complete("quiet", "[[reply:y]]");
    server
}

/// I13: `verify` finds no difference while the server runs, after its kill, and after its next
/// start.
#[test]
fn a_sound_database_has_no_differences() {
    let mut server = start_eventful();
    assert_sound(&server.home, &[], "5 groups, ");
    for group in ["work", "rotated", "cancelled", "deleted", "quiet"] {
        assert_sound(&server.home, &[group], "1 groups, ");
    }
    let running = server.submit("work", "[[reply:some]][[gate:mid]]");
    let waiting = server.submit("work", "[[reply:later]]");
    server.journal.wait_gate("mid");
    assert_sound(&server.home, &[], "5 groups, ");
    server.kill();
    assert_sound(&server.home, &[], "5 groups, ");
    server.boot();
    server.finish_as(&running, "interrupted");
    server.finish_as(&waiting, "completed");
    assert_sound(&server.home, &[], "5 groups, ");
}

/// I13, AM-9: the late output of a stopping run belongs to its last turn, also if the next task is
/// already claimed and waits for the run to end.
#[test]
fn late_output_belongs_to_its_turn_while_the_next_is_claimed() {
    let server = Server::usual();
    let turn = server.complete("work", "[[deaf]][[reply:x]][[answer]][[gate:late]][[reply:late]]");
    server.journal.wait_gate("late");
    // The run of the former directory is asked to end first: its stdin is closed.
    server.put("/v1/groups/work", &json!({ "cwd": server.home.path() })).expect(200);
    let next = server.submit("work", "next");
    server.wait_frame("work", "the claim", |frame| {
        frame["kind"] == "greenroom/task_claimed" && frame["payload"]["task"] == next["id"]
    });
    server.journal.open_gate("late");
    let late = server.wait_frame("work", "the late update", |frame| {
        frame["payload"]["params"]["update"]["content"]["text"] == "late"
    });
    assert_eq!(late["task"], turn["id"], "{late}");
    assert_eq!(server.task(&turn)["text"], "xlate");
    assert_sound(&server.home, &[], "1 groups, ");
    server.finish_as(&next, "completed");
}

/// API-5, I13, AM-18: a difference is one line, in words or as JSON, and exit code 1; an unreadable
/// row of one group hides no other group. A repair makes the rows from the log of a stopped server,
/// or changes nothing.
#[test]
fn differences_are_printed_and_repaired() {
    let mut server = Server::usual();
    server.complete("work", "[[reply:hello]]");
    server.complete("quiet", "[[reply:hello]]");
    let (code, lines) = verify(&server.home, &["--repair", "work"]);
    assert!(code == 1 && lines.concat().contains("in use"), "{lines:?}");
    server.kill();
    let frames = "SELECT sum(last_seq) FROM heads";
    let frames: i64 = server.database().query_row(frames, [], |row| row.get(0)).unwrap();
    let json = |arguments: &[&str]| {
        let (code, lines) = verify(&server.home, &[&["--json"], arguments].concat());
        let lines = lines.iter().map(|line| serde_json::from_str(line).unwrap());
        (code, lines.collect::<Vec<Value>>())
    };
    let sound = json!({ "groups": 2, "frames": frames, "differences": 0 });
    assert_eq!(json(&[]), (0, vec![sound]));
    let usage = [(&["absent"][..], "no group absent"), (&["--repair", "absent"], "absent")];
    for (arguments, words) in usage.into_iter().chain([(&["--repair"][..], "")]) {
        let (code, lines) = verify(&server.home, arguments);
        assert!(code == 2 && lines.concat().contains(words), "{arguments:?}: {lines:?}");
    }

    let work = "(SELECT no FROM groups WHERE id = 'work')";
    let change = |sql: &str| {
        assert!(0 < server.writable_database().execute(&format!("{sql} = {work}"), []).unwrap());
    };
    change("UPDATE tasks SET state = 'failed' WHERE key >> 36");
    let (code, lines) = json(&[]);
    let difference = lines[0]["difference"].as_str().unwrap();
    assert!(code == 1 && lines[0]["group"] == "work", "{lines:?}");
    assert!(difference.starts_with("task tsk_"), "{difference}");
    assert_eq!(lines[1], json!({ "groups": 2, "frames": frames, "differences": 1 }));
    let (code, lines) = verify(&server.home, &["work"]);
    assert!(code == 1 && lines[0].starts_with("work: task tsk_"), "{lines:?}");
    change("UPDATE heads SET usage = '{' WHERE no");
    let (code, lines) = verify(&server.home, &["work"]);
    assert!(code == 1 && lines[0].contains("the group's own row cannot be read"), "{lines:?}");
    assert_sound(&server.home, &["quiet"], "1 groups, ");

    let (code, lines) = verify(&server.home, &["--repair", "work"]);
    assert!(code == 0 && lines.concat().contains("made from its log"), "{lines:?}");
    assert_sound(&server.home, &[], "2 groups, ");
    let other_segment =
        |by: &str| format!("UPDATE blocks SET segment = segment {by} WHERE key >> 36");
    change(&other_segment("+ 9"));
    let (code, lines) = verify(&server.home, &["--repair", "work"]);
    assert!(code == 1 && lines.concat().contains("nothing was changed"), "{lines:?}");
    change(&other_segment("- 9"));
    assert_sound(&server.home, &[], "2 groups, ");
}
