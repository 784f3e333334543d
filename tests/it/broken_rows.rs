//! An unreadable row affects its group alone: that group is `broken`, is logged once, accepts no
//! work, and can be purged or repaired. Rows are damaged in the database of a stopped server. Which
//! columns a group needs, `actors/tests/storage/sqlite/verify.rs` tests for all of them.

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, server::verify};

/// A group, and the statement that breaks it; `$no` is its number, `$keys` selects its keys.
type Case = (&'static str, &'static str);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("settings-type",   "UPDATE groups SET settings = '\"sk-secret\"' WHERE no = $no"),
    ("usage",           "UPDATE heads SET usage = 'null and void' WHERE no = $no"),
    ("last-seq-high",   "UPDATE heads SET last_seq = 1 << 40 WHERE no = $no"),
    ("epoch",           "UPDATE heads SET epoch = 9223372036854775807 WHERE no = $no"),
    ("seq-low",         "UPDATE heads SET last_seq = 1 WHERE no = $no"),
    ("tasks-low",       "UPDATE heads SET tasks = 0 WHERE no = $no"),
    ("segment-row",     "INSERT INTO segments (no, segment, session, opened_seq, opened_at) \
                         VALUES ($no, 7, 's', 1, 0)"),
    ("run-row",         "INSERT INTO runs (id, no, agent, started_at) \
                         VALUES (randomblob(16), $no, 'x', 0)"),
    ("no-head",         "DELETE FROM heads WHERE no = $no"),
    ("task-prompt",     "UPDATE tasks SET prompt = '{' WHERE $keys AND state = 'queued'"),
    ("task-kind",       "UPDATE tasks SET kind = 'sk-secret' WHERE $keys AND state = 'queued'"),
    ("task-gone",       "DELETE FROM tasks WHERE $keys AND state = 'queued'"),
    ("compaction",      "INSERT INTO compactions (key, id, status, started_at, record) \
                         VALUES ($no << 36 | 2, randomblob(16), 'in_progress', 0, '{')"),
    ("running",         "UPDATE tasks SET run = NULL WHERE $keys AND state = 'running'"),
    ("permission",      "UPDATE permissions SET options = '[' WHERE $keys AND state = 'pending'"),
    ("permission-id",   "UPDATE permissions SET id = randomblob(16) WHERE $keys"),
];

/// The groups with a running turn that does not end by itself; in the others a turn waits.
const RUNNING: [(&str, &str); 3] = [
    ("running", "[[gate:never]]"),
    ("permission", "[[permission]]"),
    ("permission-id", "[[permission]]"),
];

/// Damages rows of a stopped server.
#[track_caller]
fn damage(server: &Server, (group, sql): &Case) {
    let database = server.writable_database();
    let no = "SELECT no FROM groups WHERE id = ?";
    let no: i64 = database.query_row(no, [group], |row| row.get(0)).unwrap();
    let sql = sql.replace("$keys", "key >> 36 = $no").replace("$no", &no.to_string());
    assert_eq!(database.execute(&sql, []).unwrap(), 1, "{sql}");
}

fn errors_naming(server: &Server, group: &str) -> Vec<String> {
    let named = format!("group={group} ");
    let is_one = |line: &String| line.contains(" ERROR ") && line.contains(&named);
    server.log.lines().into_iter().filter(is_one).collect()
}

/// Prepares a server with a group for each case, in which a task waits or a permission is pending,
/// and the group `sound`; kills it, and damages the rows.
#[track_caller]
fn damaged() -> Server {
    let mut server = Setup::new().asks().start();
    for (group, _) in CASES {
        if let Some((_, prompt)) = RUNNING.iter().find(|(running, _)| running == group) {
            server.submit(group, prompt);
            continue;
        }
        server.put(&format!("/v1/groups/{group}"), &json!({ "title": group })).expect(201);
        server.post(&format!("/v1/groups/{group}/pause"), &json!({})).expect(202);
        server.submit(group, "waits");
    }
    server.complete("sound", "before");
    eventually("both permissions", &server.log, || {
        let pending = server.get("/v1/permissions?state=pending").expect(200);
        (pending["items"].as_array().unwrap().len() == 2).then_some(())
    });
    server.journal.wait_gate("never");
    server.kill();
    CASES.iter().for_each(|case| damage(&server, case));
    server
}

/// I15, AM-18, C16: whichever row is unreadable, other groups work, and its group names the row.
/// I13, I2: it can be purged, or repaired from its log, which ends a task whose prompt is lost.
#[test]
fn an_unreadable_row_breaks_its_group_alone() {
    let mut server = damaged();
    server.boot();
    server.complete("sound", "after");
    for (group, sql) in CASES {
        let path = format!("/v1/groups/{group}");
        let shown = server.wait_group(group, sql, |shown| shown["status"] == "broken");
        let broken = shown["broken"].as_str().unwrap();
        assert!(!broken.is_empty() && !broken.contains("sk-secret"), "{shown}");
        for _ in 0..2 {
            assert_eq!(server.group(group), shown, "{sql}");
            let turn = server.post(&format!("{path}/turns"), &json!({ "prompt": "x" }));
            let problem = turn.problem(500, "group-broken");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(&format!("verify --repair {group},")), "{problem}");
        }
        server.put(&path, &json!({ "title": "x" })).problem(500, "group-broken");
        server.post(&format!("{path}/pause"), &json!({})).problem(500, "group-broken");
        server.delete(&path).problem(500, "group-broken");
        let errors = errors_naming(&server, group);
        assert_eq!(errors.len(), 1, "{sql}: logged once: {errors:#?}");
    }
    server.complete("sound", "while others are loaded");
    assert_counted(&server);
    for words in ["storage failed", "group actor ended", "sk-secret"] {
        assert!(!server.log.lines().iter().any(|line| line.contains(words)), "{words}");
    }
    let (code, output) = verify(&server.home, &[]);
    assert_eq!(code, 1, "{output}");
    let (purged, repaired): (Vec<_>, Vec<_>) =
        CASES.iter().enumerate().partition(|(index, _)| index % 4 == 2);
    for (_, (group, _)) in purged {
        let named = output.lines().any(|line| line.starts_with(&format!("{group}: ")));
        assert!(named, "{group}: {output}");
        let path = format!("/v1/groups/{group}");
        server.delete(&format!("{path}?purge=true")).expect(202);
        server.get(&path).problem(404, "group-not-found");
        server.complete(group, "[[reply:new]]");
    }
    let status = server.get("/v1/status").expect(200);
    assert_eq!(status["groups"]["broken"], repaired.len(), "the purged ones are not counted");
    server.kill();
    for (_, (group, sql)) in &repaired {
        let (code, output) = verify(&server.home, &["--repair", group]);
        assert!(code == 0 && output.contains("made from its log"), "{sql}: {code}: {output}");
    }
    server.boot();
    repaired.iter().for_each(|(_, (group, sql))| assert_repaired(&server, group, sql));
    assert_eq!(server.get("/v1/status").expect(200)["groups"]["broken"], Value::Null);
}

/// Checks that the broken groups are counted and listed as such.
#[track_caller]
fn assert_counted(server: &Server) {
    let count = CASES.len();
    server.get("/readyz").expect(200);
    server.get("/v1/digest").expect(200);
    let status = server.get("/v1/status").expect(200);
    assert_eq!(status["groups"], json!({ "broken": count, "idle": 1 }), "{status}");
    assert_eq!(status["storage"]["state"], "ok", "{status}");
    let scrape = server.scrape();
    assert_eq!(scrape.value("greenroom_groups", &[("status", "broken")]), count as f64);
    assert_eq!(scrape.value("greenroom_groups_broken", &[]), count as f64);
    for (query, broken, all) in [
        ("", count, count + 1),
        ("?status=broken&limit=1000", count, count),
        ("?status=idle", 0, 1),
    ] {
        let listed = server.get(&format!("/v1/groups{query}")).expect(200)["items"].clone();
        let listed = listed.as_array().unwrap();
        let found = listed.iter().filter(|group| group["status"] == "broken").count();
        assert_eq!((found, listed.len()), (broken, all), "{query}");
    }
}

/// Checks that the tasks of a repaired group are as before, and that it works.
#[track_caller]
fn assert_repaired(server: &Server, group: &str, sql: &str) {
    let tasks = server.list(group, "tasks");
    let [task] = &tasks[..] else { panic!("{sql}: {tasks:?}") };
    if RUNNING.iter().any(|(running, _)| *running == group) {
        server.finish_as(task, "interrupted");
        return;
    }
    assert_eq!(server.group(group)["title"], *group, "{sql}");
    if ["task-prompt", "task-gone"].contains(&group) {
        let failed = (&task["state"], &task["error"]["code"]);
        assert_eq!(failed, (&json!("failed"), &json!("unreadable")), "{sql}: {task}");
    } else {
        assert_eq!(task["state"], "queued", "{sql}: {task}");
    }
    server.resume(group);
    server.finish(task);
    server.complete(group, "works");
}

/// AM-18: an unreadable row of the history is left out of lists and logged once; its group works.
/// An idempotency key whose task's row is unreadable runs no second task.
#[test]
fn an_unreadable_row_of_the_history_is_left_out() {
    let mut server = Server::usual();
    let turns = "/v1/groups/work/turns";
    let first = server.post_once("key", turns, &json!({ "prompt": "first" })).expect(202);
    server.finish_as(&first, "completed");
    let second = server.complete("work", "[[reply:second]]");
    server.kill();
    let task = "UPDATE tasks SET error = '{' WHERE key = (SELECT min(key) FROM tasks)";
    damage(&server, &("work", task));
    let answer = "UPDATE blocks SET kinds = CAST(x'ff' AS TEXT) WHERE $keys \
                  AND kinds = 'session/update' AND text LIKE '%second%'";
    damage(&server, &("work", answer));
    for (place, text) in [("kinds = 'session/prompt'", "{"), ("key & 1 = 0", "nonsense")] {
        let one = format!("SELECT max(key) FROM blocks WHERE count = 1 AND {place}");
        let text = format!("UPDATE blocks SET text = CAST('{text}' AS BLOB) WHERE key = ({one})");
        server.writable_database().execute(&text, []).unwrap();
    }
    server.boot();
    for _ in 0..3 {
        let tasks = server.get("/v1/groups/work/tasks").expect(200)["items"].clone();
        let ids: Vec<&Value> = tasks.as_array().unwrap().iter().map(|task| &task["id"]).collect();
        assert_eq!(ids, [&second["id"]]);
        let one = server.get(&format!("/v1/tasks/{}", first["id"].as_str().unwrap()));
        one.problem(500, "group-broken");
        server.get("/v1/groups/work/frames").expect(200);
        let again = server.post_once("key", turns, &json!({ "prompt": "first" }));
        again.problem(500, "group-broken");
    }
    let group = server.group("work");
    assert_eq!(group["status"], "idle", "{group}");
    let broken = group["broken"].as_str().unwrap();
    assert!(broken.contains("task 1: error cannot be read"), "{broken}");
    assert!(broken.contains("frames from"), "{broken}");
    assert_eq!(errors_naming(&server, "work").len(), 1);
    let named =
        server.log.lines().into_iter().filter(|line| line.contains("a stored row of a group"));
    assert!((2..=4).contains(&named.count()), "each row once");
    server.complete("work", "works");
    assert_eq!(server.journal.times("first"), 1);

    // No other row holds a damaged frame: `verify --repair` reports it, and changes nothing.
    server.kill();
    let (code, output) = verify(&server.home, &["--repair", "work"]);
    assert!(code == 1 && output.contains("nothing was changed"), "{output}");
    for output in [output, verify(&server.home, &[]).1] {
        let frames: Vec<&str> =
            output.lines().filter(|line| line.contains("frames from")).collect();
        let each = frames.iter().collect::<std::collections::BTreeSet<_>>();
        assert!(
            !frames.is_empty() && frames.len() == each.len(),
            "each is reported once: {output}"
        );
    }
    server.boot();
    server.delete("/v1/groups/work?purge=true").expect(202);
    eventually("the purge", &server.log, || {
        (server.get("/v1/groups/work").status == 404).then_some(())
    });
}
