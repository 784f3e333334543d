//! `storage.retention_days`: old, ended work is deleted while other work continues. The tests let
//! time pass in the database of a stopped server: they move all its times into the past.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{
    Server, Setup, TIMEOUT, eventually,
    server::{greenroom, id},
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Starts a server that keeps transcripts for a week.
fn start_weekly() -> Server {
    Setup::new().set("storage", "retention_days", 7).start()
}

/// Stops the server, lets this number of days pass, restarts it, and waits for its retention pass.
#[track_caller]
fn restart_after_days(server: &mut Server, days: i64) {
    server.terminate();
    server.wait_exit();
    make_older(server, days);
    server.boot();
    wait_pass(server);
}

/// Waits for the end of the retention pass that follows a start; returns its log line.
#[track_caller]
fn wait_pass(server: &Server) -> String {
    let seen = |line: &String| line.contains("old transcripts deleted");
    let pass = eventually("a pass of retention", &server.log, || {
        let lines = server.log.lines();
        let started = lines.iter().rposition(|line| line == "--- start ---")?;
        lines[started..].iter().find(|line| seen(line)).cloned()
    });
    assert!(pass.contains("INFO greenroom::retention"), "{pass}");
    pass
}

/// Moves all times in the stopped server's database into the past.
fn make_older(server: &Server, days: i64) {
    let ms = days * DAY_MS;
    let columns = [
        ("blocks", "at"),
        ("groups", "created_at"),
        ("tasks", "created_at"),
        ("tasks", "claimed_at"),
        ("tasks", "started_at"),
        ("tasks", "ended_at"),
        ("runs", "started_at"),
        ("runs", "ready_at"),
        ("runs", "ended_at"),
        ("segments", "opened_at"),
        ("segments", "closed_at"),
        ("compactions", "started_at"),
        ("compactions", "ended_at"),
        ("idempotency", "at"),
    ];
    let database = server.writable_database();
    for (table, column) in columns {
        let sql = format!("UPDATE {table} SET {column} = {column} - {ms}");
        database.execute(&sql, []).unwrap();
    }
    // Digests have times too: invalidate them, so that they are rebuilt from the frames.
    database.execute("UPDATE heads SET digest_version = 0", []).unwrap();
    database.execute("DELETE FROM turns", []).unwrap();
    // The times in the checkpoint of a log that is already truncated.
    let state = ["head.created_at", "segment.opened[1]", "newest_at"];
    let head = ["last_started_at", "last_completed_at", "failed_at"];
    let in_checkpoint = head.map(|name| format!("head.compacting.{name}"));
    let in_checkpoint = state.map(str::to_owned).into_iter().chain(in_checkpoint);
    let paths = in_checkpoint.map(|path| ("bases", "state", path));
    for (table, column, path) in
        paths.chain(head.map(|name| ("heads", "compacting", name.to_owned())))
    {
        let sql = format!(
            "UPDATE {table} SET {column} = json_replace({column}, '$.{path}', \
             json_extract({column}, '$.{path}') - {ms}) \
             WHERE json_type({column}, '$.{path}') = 'integer'"
        );
        database.execute(&sql, []).unwrap();
    }
}

#[track_caller]
fn first_and_last(server: &Server, group: &str) -> (u64, u64) {
    let seqs: Vec<u64> =
        server.frames(group).iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
    let (first, last) = (*seqs.first().unwrap(), *seqs.last().unwrap());
    assert_eq!(seqs, (first..=last).collect::<Vec<_>>(), "I3");
    (first, last)
}

fn last_seq(server: &Server, group: &str) -> u64 {
    server.group(group)["last_seq"].as_u64().unwrap()
}

#[track_caller]
fn assert_sound(server: &Server) {
    let config = server.home.config();
    let ended = greenroom(&server.home, &["verify", "--config", config.to_str().unwrap()])
        .output()
        .unwrap();
    let output = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    assert!(ended.status.success(), "{output}");
}

/// API-4, I3, I13: old work is deleted, the state of its group is kept, and the group continues.
#[test]
fn old_work_is_deleted_and_the_group_continues() {
    let mut server = start_weekly();
    let path = "/v1/groups/work/turns";
    let old = server.post_once("key", path, &json!({ "prompt": "[[reply:one]]" })).expect(202);
    server.finish_as(&old, "completed");
    server.finish_as(&server.compact("work"), "completed");
    server.complete("work", "[[reply:two]]");
    server.complete("other", "[[reply:x]]");
    server.terminate();
    server.wait_exit();
    server.boot();
    let young = wait_pass(&server);
    assert!(young.contains("groups=0 tasks=0 frames=0"), "{young}");
    let before = server.group("work");
    let segments = server.get("/v1/groups/work/segments").expect(200);
    restart_after_days(&mut server, 8);

    assert_eq!(server.frames("work"), Vec::<Value>::new());
    server.get(&format!("/v1/tasks/{}", id(&old))).expect(404);
    for list in ["tasks", "runs", "compactions"] {
        let items = &server.get(&format!("/v1/groups/work/{list}")).expect(200)["items"];
        assert_eq!(items, &json!([]), "{list}");
    }
    let after = server.group("work");
    for kept in ["last_seq", "session_id", "segment", "metadata"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    assert_eq!(after["compaction"]["count"], 1);
    let lineage = server.get("/v1/groups/work/segments").expect(200);
    let numbers = |list: &Value| list["items"].as_array().unwrap().len();
    assert_eq!(numbers(&lineage), numbers(&segments));
    assert_sound(&server);

    // The key of the deleted task is deleted too: it creates a new task.
    let again = server.post_once("key", path, &json!({ "prompt": "[[reply:one]]" })).expect(202);
    assert_ne!(id(&again), id(&old));
    let ended = server.finish_as(&again, "completed");
    assert_eq!((&ended["text"], &ended["deduplicated"]), (&json!("one"), &json!(false)));
    let (first, last) = first_and_last(&server, "work");
    assert_eq!(first, before["last_seq"].as_u64().unwrap() + 1);
    assert_eq!(last, last_seq(&server, "work"));
    assert_eq!(server.frames_where("work", "&after=2"), server.frames("work"));
    let current = server.frames_where("work", "&segment=current");
    assert_eq!(current, server.frames("work"), "the open segment began before the truncation");
    let back = server.frames_where("work", "&order=desc");
    assert_eq!(back.last().unwrap()["seq"], first);
    server.get("/v1/groups/work/snapshot").expect(200);
    server.kill_and_boot();
    server.complete("work", "[[reply:three]]");
    assert_sound(&server);
}

/// Younger work stays complete, and a waiting task has not ended: its row stays, however old.
#[test]
fn young_work_and_waiting_work_stay() {
    let mut server = start_weekly();
    let old = server.complete("work", "[[reply:old]]");
    server.post("/v1/groups/work/pause", &json!({})).expect_any(&[200, 202]);
    let waiting = server.submit("work", "[[reply:waited]]");
    restart_after_days(&mut server, 5);
    server.get(&format!("/v1/tasks/{}", id(&old))).expect(200);
    server.complete("other", "[[reply:young]]");
    let before = server.frames("other");
    restart_after_days(&mut server, 5);

    server.get(&format!("/v1/tasks/{}", id(&old))).expect(404);
    assert_eq!(server.frames("other").first().unwrap()["seq"], before[0]["seq"]);
    assert!(
        server.frames("other").len() > before.len(),
        "the frames do not include the end of the run"
    );
    assert_eq!(server.task(&waiting)["state"], "queued");
    assert_sound(&server);
    server.post("/v1/groups/work/resume", &json!({})).expect_any(&[200, 202]);
    let ended = server.finish_as(&waiting, "completed");
    assert_eq!(ended["text"], "waited");
    assert_sound(&server);
    // Truncate a second time, from a checkpoint.
    restart_after_days(&mut server, 8);
    server.get(&format!("/v1/tasks/{}", id(&waiting))).expect(404);
    server.complete("work", "[[reply:new]]");
    assert_sound(&server);
}

/// API, Server-Sent Events: for a cursor below the kept frames, a gap has the number at which the
/// stream continues.
#[test]
fn a_cursor_below_the_kept_frames_gets_a_gap() {
    let mut server = start_weekly();
    server.complete("work", "[[reply:old]]");
    restart_after_days(&mut server, 8);
    let kept_from = last_seq(&server, "work") + 1;
    for (query, headers) in [
        ("", None),
        ("?after=2", None),
        ("?after=999999", None),
        ("", Some(("Last-Event-ID", "3"))),
    ] {
        let events = server.events_with("work", query, headers.as_slice()).until_synced();
        let names: Vec<&str> = events.iter().map(|event| &*event.event).collect();
        assert_eq!(names, ["greenroom/gap", "greenroom/synced"], "{query}");
        assert_eq!((events[0].id, events[0].frame()), (None, json!({ "earliest": kept_from })));
    }
    let open = server.events("work", "?after=1");
    let task = server.complete("work", "[[reply:new]]");
    let live = open.until_task_ended(&task["id"]);
    let ids: Vec<u64> = live.iter().filter_map(|event| event.id).collect();
    assert_eq!(ids, (kept_from..kept_from + ids.len() as u64).collect::<Vec<_>>());
    let replayed = server.events("work", "").until_synced();
    assert_eq!(replayed[0].event, "greenroom/gap");
    assert_eq!(replayed[1].id, Some(kept_from));
    let query = format!("?after={}", kept_from - 1);
    let exact = server.events("work", &query).until_synced();
    assert_eq!(exact[0].id, Some(kept_from), "no frame is missing, so there is no gap");
}

/// R-2, resume × retention: the log is truncated while a slow reader is still far from
/// its end.
#[test]
fn a_slow_reader_gets_a_gap_when_the_log_is_truncated() {
    let server = Server::usual();
    server.complete("work", "[[chunks:60000:400]]");
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let host = server.address();
    write!(stream, "GET /v1/groups/work/events HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    // The head has arrived: the server sends as much as the sockets hold.
    stream.read_exact(&mut [0; 12]).unwrap();

    // The checkpoint that retention writes to truncate a log before its last block.
    let database = server.writable_database();
    let checkpoint = "INSERT INTO bases \
                      SELECT no, (SELECT max(key) FROM blocks) - (no << 36) - 1, '' \
                      FROM groups RETURNING seq";
    let truncated_at: u64 =
        database.query_row(checkpoint, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap();

    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (mut text, mut buffer) = (String::new(), vec![0; 1 << 20]);
    let synced = "event: greenroom/synced";
    while !text.contains(synced) {
        let read = stream.read(&mut buffer).expect("the slow reader is served to the end");
        assert_ne!(read, 0, "the stream ended\n{}", server.log.tail());
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    let gaps: Vec<usize> = text.match_indices("event: greenroom/gap").map(|(at, _)| at).collect();
    assert_eq!(gaps.len(), 1, "sockets hold less than 30 MB");
    let (read, rest) = text.split_at(gaps[0]);
    let ids = |text: &str| -> Vec<u64> {
        let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
        ids.map(|id| id.parse().unwrap()).collect()
    };
    let (read, resumed) = (ids(read), ids(rest));
    assert_eq!(read, (1..=read.len() as u64).collect::<Vec<_>>());
    assert!((read.len() as u64) < truncated_at);
    assert_eq!(resumed, (truncated_at + 1..=last_seq(&server, "work")).collect::<Vec<_>>());
    assert!(rest.contains(&format!("data: {{\"earliest\":{}}}", truncated_at + 1)));
    database.execute("DELETE FROM bases", []).unwrap();
}

/// R-1 of retention: if the server is killed at any moment of a pass, the database stays
/// sound, and the next pass completes the work.
#[test]
fn a_pass_that_was_killed_is_completed_by_the_next() {
    const GROUPS: usize = 6;
    let mut server = start_weekly();
    let tasks: Vec<Value> = (0..GROUPS)
        .flat_map(|group| (0..25).map(move |_| format!("group-{group}")))
        .map(|group| server.submit(&group, "[[reply:old]]"))
        .collect();
    tasks.iter().for_each(|task| _ = server.finish_as(task, "completed"));
    server.terminate();
    server.wait_exit();
    make_older(&server, 8);
    let rows = |server: &Server, sql: &str| -> i64 {
        server.database().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let count_truncated = |server: &Server| rows(server, "SELECT count(*) FROM bases");
    for more in 1..=3 {
        let before = count_truncated(&server);
        server.boot();
        eventually("a log to be truncated", &server.log, || {
            let goal = (before + more).min(GROUPS as i64);
            (count_truncated(&server) >= goal).then_some(())
        });
        server.kill();
        assert_sound(&server);
    }
    server.boot();
    wait_pass(&server);
    assert_eq!(count_truncated(&server), GROUPS as i64);
    let leftover = "SELECT count(*) FROM blocks JOIN bases ON key >> 36 = no \
                WHERE key <= (no << 36 | seq)";
    assert_eq!(rows(&server, leftover), 0);
    assert_eq!(rows(&server, "SELECT count(*) FROM tasks"), 0);
    for group in 0..GROUPS {
        server.complete(&format!("group-{group}"), "[[reply:new]]");
    }
    assert_sound(&server);
}

/// AM-18: a log that contradicts itself is kept unchanged, and a warning is logged.
#[test]
fn an_unsound_log_is_not_truncated() {
    let mut server = start_weekly();
    server.complete("broken", "[[reply:old]]");
    server.complete("sound", "[[reply:old]]");
    server.terminate();
    server.wait_exit();
    make_older(&server, 8);
    let database = server.writable_database();
    let one = "SELECT min(key) FROM blocks WHERE kinds = 'session/update' AND key >> 36 = \
               (SELECT no FROM groups WHERE id = 'broken')";
    let broken = format!("UPDATE blocks SET segment = 9 WHERE key = ({one})");
    assert_eq!(database.execute(&broken, []).unwrap(), 1);
    server.boot();
    wait_pass(&server);
    assert_eq!(server.frames("broken")[0]["seq"], 1);
    assert_eq!(server.frames("sound"), Vec::<Value>::new());
    let warning = server.log.wait("a warning", |line| line.contains("its log contradicts itself"));
    assert!(warning.contains("WARN") && warning.contains("group=broken"), "{warning}");
    let repaired = broken.replace("segment = 9", "segment = 1");
    assert_eq!(database.execute(&repaired, []).unwrap(), 1);
}

/// I15: a group with an unreadable row keeps its own transcript only; other groups are truncated.
#[test]
fn a_broken_group_does_not_stop_the_pass() {
    let mut server = start_weekly();
    for group in ["broken", "sound"] {
        server.complete(group, "[[reply:old]]");
    }
    server.terminate();
    server.wait_exit();
    make_older(&server, 8);
    let database = server.writable_database();
    let settings: String = database
        .query_row("SELECT settings FROM groups WHERE id = 'broken'", [], |row| row.get(0))
        .unwrap();
    let set = "UPDATE groups SET settings = ? WHERE id = 'broken'";
    assert_eq!(database.execute(set, ["{"]).unwrap(), 1);
    server.boot();
    let passed = wait_pass(&server);
    assert!(passed.contains("groups=1 tasks=1"), "{passed}");
    assert_eq!(server.frames("sound"), Vec::<Value>::new());
    let kept = "SELECT count(*) FROM blocks WHERE key >> 36 = \
                (SELECT no FROM groups WHERE id = 'broken')";
    let kept: i64 = database.query_row(kept, [], |row| row.get(0)).unwrap();
    assert!(0 < kept, "it is kept for a repair");
    let warning = server.log.wait("a warning", |line| line.contains("until the next try"));
    assert!(warning.contains("groups=1"), "{warning}");
    let turn = server.post("/v1/groups/broken/turns", &json!({ "prompt": "x" }));
    turn.problem(500, "group-broken");
    assert_eq!(database.execute(set, [settings]).unwrap(), 1);
    // The group does not prevent an orderly end of the server either.
    server.terminate();
    assert!(server.wait_exit().success());
}

/// I13: `verify` finds a changed checkpoint, and missing rows after it.
#[test]
fn a_changed_checkpoint_is_found() {
    let mut server = start_weekly();
    server.complete("work", "[[reply:old]]");
    server.finish_as(&server.compact("work"), "completed");
    server.complete("work", "[[reply:old]]");
    restart_after_days(&mut server, 8);
    server.complete("work", "[[reply:new]]");
    server.terminate();
    server.wait_exit();
    let file = server.home.data().join("greenroom.db");
    // The last connection moves the write-ahead log into the file when it closes.
    drop(server.writable_database());
    let sound = fs::read(&file).unwrap();
    #[rustfmt::skip]
    let cases = [
        ("UPDATE bases SET seq = seq - 1",                                               "the log was cut"),
        ("UPDATE bases SET seq = seq + 1",                                               "the log was cut"),
        ("UPDATE bases SET state = '{'",                                                 "cannot be read"),
        ("UPDATE bases SET state = json_set(state, '$.head.tasks', 1)",                  "task tsk_"),
        ("UPDATE bases SET state = json_set(state, '$.head.compacting.count', 7)",       "head"),
        ("UPDATE bases SET state = json_set(state, '$.head.settings.agent', 'x')",       "head"),
        ("UPDATE bases SET state = json_set(state, '$.run', 'x')",                       "cannot be read"),
        ("DELETE FROM bases",                                                            "follows frame 0"),
        ("UPDATE segments SET end_reason = 'reset' WHERE segment = 1",                   "segments before the cut"),
        ("UPDATE segments SET closed_seq = closed_seq + 1 WHERE segment = 1",            "segments before the cut"),
        ("UPDATE segments SET session = 'x' WHERE segment = 2",                          "segment 2"),
        ("DELETE FROM segments WHERE segment = 1",                                       "number of segments"),
        ("INSERT INTO bases VALUES (99, 1, '{}')",                                       "bases of no group, numbered 99"),
    ];
    for (sql, holds) in cases {
        assert!(server.writable_database().execute(sql, []).unwrap() > 0, "{sql}");
        let config = server.home.config();
        let verify = ["verify", "--config", config.to_str().unwrap()];
        let ended =
            greenroom(&server.home, &verify).stdout(std::process::Stdio::piped()).output().unwrap();
        let output = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert!(ended.status.code() == Some(1) && output.contains(holds), "{sql}: {output}");
        for end in ["-wal", "-shm"] {
            fs::remove_file(server.home.data().join(format!("greenroom.db{end}"))).ok();
        }
        fs::write(&file, &sound).unwrap();
    }
}
