//! Groups: created, changed, listed, deleted and revived.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{
    Server, Setup, eventually, process,
    server::{encode, id},
    strace::Strace,
};

/// API-2, PUT: 201 with the whole group, then 200; a change keeps the fields that it does not name.
#[test]
fn put_creates_a_group_and_changes_named_fields_only() {
    let server = Server::usual();
    let created =
        server.put("/v1/groups/work", &json!({ "title": "Work", "metadata": { "a": 1 } }));
    let created = created.expect(201);
    let names = "id agent status blocked_by queue_length current_task current_run session_id \
                 segment usage compaction last_seq cwd title auto_compact permission_policy \
                 on_interrupt metadata created_at";
    for name in names.split(' ') {
        assert!(created.get(name).is_some(), "no {name} in {created}");
    }
    assert_eq!(created["id"], "work");
    assert_eq!(created["agent"], "scripted", "the default agent");
    assert_eq!(created["status"], "idle");
    assert_eq!(created["queue_length"], 0);
    assert_eq!(created["title"], "Work");
    assert_eq!(created["metadata"], json!({ "a": 1 }));
    let changed = server.put("/v1/groups/work", &json!({ "metadata": { "b": 2 } })).expect(200);
    assert_eq!(changed["title"], "Work");
    assert_eq!(changed["metadata"], json!({ "b": 2 }));
    assert_eq!(changed["created_at"], created["created_at"]);
    assert_eq!(server.group("work"), changed);
}

/// API-2: an agent is a configured name, never a command (C10); a refused PUT stores nothing, not
/// even the group's name.
#[test]
fn the_agent_of_a_group_must_be_configured() {
    let server = Setup::new().agent("other", &[]).start();
    let created = server.put("/v1/groups/work", &json!({ "agent": "other" })).expect(201);
    assert_eq!(created["agent"], "other");
    server.put("/v1/groups/bad", &json!({ "agent": "absent" })).problem(400, "unknown-agent");
    let command = json!({ "command": "/bin/true" });
    server.put("/v1/groups/bad", &command).problem(400, "invalid-body");
    server.get("/v1/groups/bad/tasks").any_problem(404);
    server.post("/v1/groups/bad/compactions", &json!({})).any_problem(404);
    server.get("/v1/groups/bad").any_problem(404);
}

/// API-2: the list pages through all groups and selects by status.
#[test]
fn groups_are_listed_by_page_and_status() {
    let server = Server::usual();
    for number in 0..5 {
        server.put(&format!("/v1/groups/g{number}"), &json!({})).expect(201);
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/v1/groups?limit=2{cursor}")).expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2, "{page}");
        seen.extend(items.iter().map(|group| group["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, ["g0", "g1", "g2", "g3", "g4"]);
    server.submit("g3", "[[gate:never]]");
    server.wait_group("g3", "running", |group| group["status"] == "running");
    let ids = |status: &str| -> Vec<Value> {
        let page = server.get(&format!("/v1/groups?status={status}")).expect(200);
        page["items"].as_array().unwrap().iter().map(|group| group["id"].clone()).collect()
    };
    assert_eq!(ids("running"), ["g3"]);
    assert_eq!(ids("idle").len(), 4);
}

/// API-2: one group shows its status, queue length, current task and run while it works.
#[test]
fn a_group_shows_its_current_work() {
    let server = Server::usual();
    server.get("/v1/groups/work").any_problem(404);
    let running = server.submit("work", "[[usage:10:1000]][[gate:go]]");
    server.submit("work", "next");
    let prompt = server.journal.wait_prompt("[[usage:10:1000]][[gate:go]]");
    let group = server.wait_group("work", "the running task", |group| {
        group["status"] == "running" && group["queue_length"] == 1 && !group["usage"].is_null()
    });
    let current = &group["current_task"];
    assert!(*current == running["id"] || current["id"] == running["id"], "{group}");
    assert!(!group["current_run"].is_null(), "{group}");
    assert_eq!(group["session_id"], prompt["session"]);
    assert_eq!(group["usage"]["used"], 10);
    assert_eq!(group["usage"]["size"], 1000);
    server.journal.open_gate("go");
    let group = server.wait_group("work", "idle again", |group| group["status"] == "idle");
    assert_eq!(group["queue_length"], 0);
    assert!(group["current_task"].is_null(), "{group}");
    let last = server.frames("work").last().unwrap()["seq"].clone();
    assert_eq!(server.group("work")["last_seq"], last);
}

/// API-2, DELETE: queued and running tasks are cancelled, the agent ends, the group stays readable
/// as `archived` and refuses work; PUT revives it.
#[test]
fn delete_archives_a_group_and_put_revives_it() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:never]]");
    let queued = server.submit("work", "queued");
    server.journal.wait_gate("never");
    server.delete("/v1/groups/work").expect(202);
    server.finish_as(&running, "cancelled");
    server.finish_as(&queued, "cancelled");
    server.wait_group("work", "the archive", |group| group["status"] == "archived");
    let agent = server.journal.agent_pid();
    eventually("the agent's end", &server.log, || (!process::is_alive(agent)).then_some(()));
    assert!(!server.frames("work").is_empty(), "the transcript stays readable");
    let turn = json!({ "prompt": "more" });
    server.post("/v1/groups/work/turns", &turn).problem(409, "group-archived");
    server.post("/v1/groups/work/compactions", &json!({})).problem(409, "group-archived");
    server.put("/v1/groups/work", &json!({})).expect_any(&[200, 201]);
    server.complete("work", "alive");
    assert_eq!(server.journal.times("queued"), 0);
}

/// API-2, I2, DELETE with purge: the group, its rows and the files of its agent are deleted, and
/// the id can be used again. A PUT does not undo a purge that waits for its agent's end, so the
/// purge cannot delete accepted work.
#[test]
fn a_purge_deletes_all_of_a_group_and_no_work_accepted_after_it() {
    let server = Server::usual();
    let task = server.complete("work", "once");
    let directory = server.group("work")["cwd"].as_str().unwrap().to_owned();
    std::fs::create_dir_all(format!("{directory}/left/behind")).unwrap();
    std::fs::write(format!("{directory}/left/behind/file"), "x").unwrap();
    server.delete("/v1/groups/work?purge=true").expect(202);
    let refused = server.put("/v1/groups/work", &json!({}));
    match refused.status {
        409 => _ = refused.problem(409, "group-archived"),
        // The purge has ended, or is just ending.
        _ => _ = refused.expect_any(&[201, 503]),
    }
    eventually("the end of the group, or a new one", &server.log, || {
        matches!(server.put("/v1/groups/work", &json!({})).status, 200 | 201).then_some(())
    });
    server.get(&format!("/v1/tasks/{}", id(&task))).any_problem(404);
    assert!(server.frames("work").iter().all(|frame| frame["task"].is_null()));
    let next = server.group("work");
    assert_ne!(next["cwd"], directory.as_str(), "a directory is never reused for another group");
    assert!(!std::path::Path::new(&directory).exists(), "{directory}");
    server.complete("work", "again");
    assert_eq!(server.frames_of_kind("work", "greenroom/turn_started").len(), 1);
}

/// I2: what a purge leaves of a directory, as the server died or was refused, is removed by the
/// next start. Nothing else in the directory of directories is.
#[test]
fn the_next_start_removes_what_a_purge_left() {
    let mut server = Server::usual();
    server.complete("work", "once");
    let directory = PathBuf::from(server.group("work")["cwd"].as_str().unwrap());
    let work = directory.parent().unwrap();
    let left = work.join(".purged-7");
    std::fs::create_dir_all(left.join("below")).unwrap();
    std::os::unix::fs::symlink(&directory, left.join("below/link")).unwrap();
    std::fs::create_dir(work.join("7")).unwrap();
    std::fs::write(directory.join("file"), "kept").unwrap();
    server.kill_and_boot();
    eventually("the sweep", &server.log, || (!left.exists()).then_some(()));
    assert!(work.join("7").exists(), "of a group in a newer copy of the database, perhaps");
    assert!(directory.join("file").exists());
}

/// I2: the end of a server does not wait for the removal of a purged directory, which may take
/// minutes; the next start removes the rest.
#[test]
fn the_end_does_not_wait_for_the_removal_of_a_directory() {
    let mut server = Server::usual();
    server.complete("work", "once");
    let directory = PathBuf::from(server.group("work")["cwd"].as_str().unwrap());
    std::fs::write(directory.join("file"), "").unwrap();
    // Longer than the test waits for the end.
    let delay = ["-e", "trace=unlinkat", "-e", "inject=unlinkat:delay_enter=100000000"];
    let strace = Strace::attach(&server, &delay);
    server.delete("/v1/groups/work?purge=true").expect(202);
    let aside = eventually("another name of the directory", &server.log, || {
        let names = std::fs::read_dir(directory.parent().unwrap()).unwrap();
        let mut paths = names.map(|entry| entry.unwrap().path());
        paths.find(|path| path.to_string_lossy().contains("/.purged-"))
    });
    server.terminate();
    // Its parent sees the end only once the tracer is gone.
    eventually("the end", &server.log, || (!process::is_alive(server.pid())).then_some(()));
    assert!(aside.join("file").exists(), "it was not delayed");
    drop(strace);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    server.boot();
    eventually("the sweep", &server.log, || (!aside.exists()).then_some(()));
}

/// I2: an accepted purge is executed, also if the server dies first; its number and directory are
/// never reused.
#[test]
fn an_accepted_purge_survives_a_crash() {
    let mut server = Server::usual();
    server.complete("kept", "one");
    server.submit("work", "[[ignore-cancel]][[gate:never]]");
    server.journal.wait_gate("never");
    let directory = server.group("work")["cwd"].clone();
    server.delete("/v1/groups/work?purge=true").expect(202);
    server.kill_and_boot();
    eventually("the purge", &server.log, || {
        (server.get("/v1/groups/work").status == 404).then_some(())
    });
    server.kill_and_boot();
    server.complete("other", "one");
    assert_ne!(server.group("other")["cwd"], directory);
    assert_eq!(server.complete("kept", "two")["state"], "completed");
}

/// C14: purged text leaves the database and its log, whether it was short, filled pages of its own,
/// or was replaced before the purge.
#[test]
fn purged_text_leaves_the_database_files() {
    const CANARY: &str = "the-canary-of-a-purged-group";
    let server = Server::usual();
    let in_files = || {
        let files = ["greenroom.db", "greenroom.db-wal", "greenroom.db-shm"];
        let found = files.map(|file| std::fs::read(server.home.data().join(file)).unwrap());
        found.iter().any(|bytes| memchr::memmem::find(bytes, CANARY.as_bytes()).is_some())
    };
    server.complete("kept", "one");
    let long = CANARY.repeat(4000);
    for title in ["first", "second"] {
        let settings = json!({ "title": format!("{CANARY} {title}"), "metadata": { "x": long } });
        server.put("/v1/groups/work", &settings).expect_any(&[200, 201]);
        server.complete("work", &format!("[[reply:{CANARY}]] {long}"));
    }
    server.compact_with("work", CANARY);
    server.complete("work", CANARY);
    server.post_once(CANARY, "/v1/groups/work/turns", &json!({ "prompt": CANARY })).expect(202);
    assert!(in_files());
    server.delete("/v1/groups/work?purge=true").expect(202);
    eventually("the purge", &server.log, || {
        (server.get("/v1/groups/work").status == 404).then_some(())
    });
    eventually("the end of its text", &server.log, || (!in_files()).then_some(()));
    server.complete("kept", "two");
}
