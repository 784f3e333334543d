//! This version opens the database of an earlier version, returns the same answers, and continues
//! its work. The README in `tests/fixtures/database` describes the database and how to make it.

use std::{fmt::Write as _, fs, path::PathBuf};

use rusqlite::{Connection, OpenFlags, types::Value as SqlValue};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::support::{
    Home, Server, Setup,
    server::{encode, id, verify},
};

/// The groups that a start changes: the prompt of the task that waits in each, and its text at the
/// end.
const WAITED: [(&str, &str, &str); 4] = [
    ("running", "[[reply:I waited]]", "I waited"),
    ("compacting", "[[reply:after the compaction]]", "after the compaction"),
    ("retrying", "[[die-once:first]][[reply:the second time]]", "the second time"),
    ("degraded", "[[reply:at last]]", "at last"),
];

/// The lists of a group, each with the key that identifies an item.
const LISTS: [(&str, &str); 5] = [
    ("tasks", "id"),
    ("runs", "id"),
    ("turns", "task"),
    ("compactions", "id"),
    ("segments", "segment"),
];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/database").join(name)
}

/// Returns the answers of the version that made the database.
fn expected() -> Value {
    serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap()
}

/// Makes a directory with a copy of the database, with its profiles, and with the files from which
/// the scripted agents restore its sessions.
fn home() -> Home {
    let hermes = "[\"hermes_meta\", \"hermes_stderr\"]";
    let setup = Setup::new()
        .retries("1ms")
        .forgetful()
        .crashing()
        .agent("rotating", &[])
        .set("agents.rotating", "compaction", "{ strategy = \"rotate\" }")
        .agent("hermes", &["--hermes"])
        .set("agents.hermes", "signals", hermes)
        .agent("rooted", &[])
        .set("agents.rooted", "cwd_roots", "[\"/usr\"]");
    let home = setup.home();
    fs::create_dir_all(home.data()).unwrap();
    let copy = home.data().join("greenroom.db");
    fs::copy(fixture("greenroom.db"), &copy).unwrap();
    let sessions = home.script().join("sessions");
    fs::create_dir_all(&sessions).unwrap();
    for session in stored_sessions(&copy) {
        fs::write(sessions.join(format!("{session}.jsonl")), "{}\n").unwrap();
    }
    // The agents of `degraded` start, and the second attempt of `retrying` succeeds.
    for gate in ["open", "met-first"] {
        fs::write(home.script().join(gate), "").unwrap();
    }
    home
}

/// Returns the current sessions, ACP's and hermes'.
fn stored_sessions(database: &PathBuf) -> Vec<String> {
    let database = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sql = "SELECT session FROM heads WHERE session IS NOT NULL UNION \
               SELECT provenance ->> '$.current' FROM heads WHERE provenance IS NOT NULL";
    let mut statement = database.prepare(sql).unwrap();
    let sessions = statement.query_map([], |row| row.get(0)).unwrap();
    sessions.map(Result::unwrap).collect()
}

/// Runs `greenroom verify` with these arguments, which must succeed, and returns its output.
#[track_caller]
fn verified(home: &Home, arguments: &[&str]) -> String {
    let (code, output) = verify(home, arguments);
    assert_eq!(code, 0, "{arguments:?}: {output}");
    output
}

/// Returns the rows that a repair makes from the log, one a line, and the names of the groups.
///
/// Clears the epoch, which a repair raises, and the pause of automatic compactions, which no frame
/// shows.
fn rows_and_groups(database: &Connection) -> (Vec<String>, Vec<String>) {
    let drop = "UPDATE heads SET epoch = 0, compacting = json_remove(compacting, '$.rest')";
    database.execute(drop, []).unwrap();
    let mut rows = Vec::new();
    for table in ["heads", "tasks", "runs", "segments", "compactions", "permissions", "turns"] {
        let mut statement = database.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let mut line = format!("{table}:");
            for (index, column) in columns.iter().enumerate() {
                let value: SqlValue = row.get(index).unwrap();
                write!(line, " {column}={value:?}").unwrap();
            }
            rows.push(line);
        }
    }
    let mut statement = database.prepare("SELECT id FROM groups").unwrap();
    let groups = statement.query_map([], |row| row.get(0)).unwrap();
    let groups = groups.map(Result::unwrap).collect();
    (rows, groups)
}

/// Returns the bytes of the group's frames up to `last_seq`, from all pages.
#[track_caller]
fn raw_frames(server: &Server, group: &str, last_seq: u64) -> Vec<String> {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(borrow)]
        items: Vec<&'a RawValue>,
        next_cursor: Option<String>,
    }
    let mut frames = Vec::new();
    let mut cursor = String::new();
    loop {
        let query = format!("limit=30&before={}{cursor}", last_seq + 1);
        let reply = server.get(&format!("/v1/groups/{group}/frames?{query}"));
        assert_eq!(reply.status, 200, "{group}: {}", reply.text());
        let page: Page<'_> = serde_json::from_slice(&reply.body).unwrap();
        frames.extend(page.items.iter().map(|frame| frame.get().to_owned()));
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={}", encode(&next)),
            None => return frames,
        }
    }
}

/// Collects the differences between two values. A later version may add keys.
fn differences(found: &Value, expected: &Value, place: &str, wrong: &mut Vec<String>) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (key, expected) in expected {
                let place = format!("{place}.{key}");
                match found.get(key) {
                    Some(found) => differences(found, expected, &place, wrong),
                    None => wrong.push(format!("{place} is missing, and was {expected}")),
                }
            }
        }
        (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                differences(found, expected, &format!("{place}[{index}]"), wrong);
            }
        }
        _ if found == expected => {}
        _ => wrong.push(format!("{place} is {found}, and was {expected}")),
    }
}

/// Collects the differences between each expected item and the item with the same `key`.
fn list_differences(
    found: &[Value],
    expected: &Value,
    key: &str,
    place: &str,
    wrong: &mut Vec<String>,
) {
    for expected in expected.as_array().unwrap() {
        let name = &expected[key];
        let place = format!("{place} {name}");
        match found.iter().find(|item| item[key] == *name) {
            Some(found) => differences(found, expected, &place, wrong),
            None => wrong.push(format!("{place} is missing")),
        }
    }
}

/// Returns the group's task with this prompt.
#[track_caller]
fn task_with(server: &Server, group: &str, prompt: &str) -> Value {
    let tasks = server.list(group, "tasks?limit=1000");
    let found = tasks.iter().find(|task| task["prompt"][0]["text"] == prompt);
    found.unwrap_or_else(|| panic!("no {prompt} in {tasks:?}")).clone()
}

/// Waits until the tasks of [`WAITED`] have completed.
#[track_caller]
fn finish_what_waited(server: &Server) {
    for (group, prompt, text) in WAITED {
        let ended = server.finish_as(&task_with(server, group, prompt), "completed");
        assert_eq!(ended["text"], text, "{group}: {ended}");
    }
}

/// I13: `verify` finds no difference before this version has written to the database.
#[test]
fn is_sound_before_the_first_start() {
    let groups = expected()["groups"].as_object().unwrap().len();
    let output = verified(&home(), &[]);
    assert!(output.starts_with(&format!("{groups} groups, ")), "{output}");
}

/// I13: a repair makes the same rows from the log, byte for byte: no stored key has another name.
#[test]
fn makes_the_same_rows_from_the_log() {
    let home = home();
    let database = Connection::open(home.data().join("greenroom.db")).unwrap();
    // The earlier version did not store what the last attempt failed with; the log has it.
    let message = "the agent ended before it gave any output: the agent exited with code 1";
    let error = format!(r#"{{"code":"agent_exited","message":"{message}"}}"#);
    let sql = "UPDATE tasks SET error = ? WHERE state = 'retrying'";
    assert_eq!(database.execute(sql, [error]), Ok(1));
    let (stored, groups) = rows_and_groups(&database);
    database.execute("UPDATE heads SET usage = 'damaged'", []).unwrap();
    for group in &groups {
        verified(&home, &["--repair", group]);
    }
    let (made, _) = rows_and_groups(&database);
    let differ = stored.iter().zip(&made).filter(|(stored, made)| stored != made);
    let differ: Vec<String> =
        differ.map(|(stored, made)| format!("{made}\n  and was\n{stored}")).collect();
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
    assert_eq!(stored.len(), made.len());
}

/// I2, I3: this version returns each frame with the same bytes, and the same rows for whatever had
/// ended. A group that a start does not change is the same as a whole.
#[test]
fn reads_the_same() {
    let expected = expected();
    let server = Server::start(home());
    finish_what_waited(&server);
    let mut wrong = Vec::new();
    for (name, stored) in expected["groups"].as_object().unwrap() {
        let last_seq = stored["last_seq"].as_u64().unwrap();
        let frames = raw_frames(&server, name, last_seq);
        let kept = fs::read_to_string(fixture(&format!("frames/{name}.jsonl"))).unwrap();
        let kept: Vec<&str> = kept.split_terminator('\n').collect();
        if frames.len() != kept.len() {
            wrong.push(format!("{name}: {} frames, and were {}", frames.len(), kept.len()));
        }
        for (frame, kept) in frames.iter().zip(kept).filter(|(frame, kept)| frame != kept) {
            wrong.push(format!("{name}: a frame is\n    {frame}, and was\n    {kept}"));
        }
        let quiet = stored["quiet"] == true;
        differences(&server.group(name), &stored["group"], name, &mut wrong);
        if quiet {
            let digest = server.get(&format!("/v1/groups/{name}/digest")).expect(200);
            differences(&digest, &stored["digest"], &format!("{name} digest"), &mut wrong);
        }
        for (list, key) in LISTS {
            let found = server.list(name, &format!("{list}?limit=1000"));
            let place = format!("{name} {list}");
            let count = stored[list].as_array().unwrap().len();
            if quiet && found.len() != count {
                wrong.push(format!("{place}: {} items, and were {count}", found.len()));
            }
            list_differences(&found, &stored[list], key, &place, &mut wrong);
        }
    }
    for (run, stored) in expected["run_digests"].as_object().unwrap() {
        let digest = server.get(&format!("/v1/runs/{run}/digest")).expect(200);
        differences(&digest, stored, run, &mut wrong);
    }
    let permissions = server.get("/v1/permissions?limit=1000").expect(200);
    let permissions = permissions["items"].as_array().unwrap();
    let stored = &expected["permissions"];
    list_differences(permissions, stored, "id", "permission", &mut wrong);
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    verified(&server.home, &[]);
}

/// I2, I16, AM-4: a running task is interrupted, a waiting task runs, a held or paused group stays
/// held or paused.
#[test]
fn continues_the_work() {
    let server = Server::start(home());
    finish_what_waited(&server);
    let running = server.list("running", "tasks?limit=1000");
    let cut = running.iter().find(|task| task["state"] == "interrupted").unwrap();
    assert_eq!(cut["stop_reason"], "_server_restart", "{cut}");
    let [permission] = &server.permissions("group=running")[..] else { panic!("one permission") };
    assert_eq!(permission["state"], "void", "{permission}");
    let retried = task_with(&server, "retrying", WAITED[2].1);
    assert_eq!(retried["attempt"], 2, "{retried}");
    let compaction = server.only_compaction("compacting");
    assert_eq!(compaction["status"], "abandoned", "{compaction}");
    server.lock("a-session-of-its-own").any_problem(404);
    for (group, status) in [("held", "held"), ("paused", "paused"), ("archived", "archived")] {
        assert_eq!(server.group(group)["status"], status);
    }
    let held = ["[[reply:was held]]", "[[reply:was held too]]"];
    let paused = ["[[reply:was paused]]", "[[reply:has time]]"];
    for (group, prompts) in [("held", held), ("paused", paused)] {
        let tasks = prompts.map(|prompt| task_with(&server, group, prompt));
        tasks.iter().for_each(|task| assert_eq!(task["blocked_by"], group, "{task}"));
        server.resume(group);
        tasks.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    }

    server.complete("pending", "[[reply:on]] with it");
    let prompts = server.journal.prompts();
    let led = prompts.iter().find(|prompt| prompt.contains("[[reply:on]] with it")).unwrap();
    let (summary, prompt) = (led.find("all that was said"), led.find("[[reply:on]]"));
    assert!(summary.is_some() && summary < prompt, "the summary leads: {led}");
    server.complete("pending", "[[reply:on and on]]");
    assert_eq!(server.journal.times("[[reply:on and on]]"), 1, "once");

    // Automatic compactions are paused, as an ordered one was cancelled.
    let before = server.auto_compactions("commands");
    server.complete("commands", "[[usage:900:1000]]");
    server.complete("commands", "[[reply:x]]");
    assert_eq!(server.auto_compactions("commands"), before);

    server.complete("hermes", "[[reply:x]]");
    let resumed = server.journal.events_named("resume");
    assert!(resumed.iter().any(|event| event["session"] == "s3"), "{resumed:?}");
    for group in ["cut", "cut-short", "cut-pending", "cut-hermes", "work", "moved", "directory"] {
        server.complete(group, "[[reply:x]]");
    }
    verified(&server.home, &[]);
}

/// I2: a repeated request returns the task of the first one.
#[test]
fn keeps_the_idempotency_keys() {
    let server = Server::start(home());
    let waited = json!({ "metadata": { "n": 3 }, "prompt": "[[reply:I waited]]" });
    for (group, key, body) in
        [("running", "order-17", waited), ("work", "order-1", json!({ "prompt": "[[reply:key]]" }))]
    {
        let path = format!("/v1/groups/{group}/turns");
        let first = task_with(&server, group, body["prompt"].as_str().unwrap());
        let again = server.post_once(key, &path, &body).expect(202);
        assert_eq!((id(&again), &again["deduplicated"]), (id(&first), &json!(true)), "{again}");
        let other = json!({ "prompt": "else" });
        server.post_once(key, &path, &other).problem(422, "idempotency-conflict");
    }
    finish_what_waited(&server);
    assert_eq!(server.journal.times("[[reply:I waited]]"), 1);
}
