//! `storage.retention_days`: old, ended work is deleted while other work continues. The tests let
//! time pass in the database of a stopped server: they move all its times into the past.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{
    Server, Setup, TIMEOUT, eventually,
    server::{id, verify},
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

fn last_seq(server: &Server, group: &str) -> u64 {
    server.group(group)["last_seq"].as_u64().unwrap()
}

#[track_caller]
fn assert_sound(server: &Server) {
    let (code, output) = verify(&server.home, &[]);
    assert_eq!(code, 0, "{output}");
}

/// API-4, I3, I13: old work is deleted with its keys; a waiting task and the state of its group are
/// kept, and the group continues.
#[test]
fn old_work_is_deleted_and_the_group_continues() {
    let mut server = start_weekly();
    let path = "/v1/groups/work/turns";
    let old = server.post_once("key", path, &json!({ "prompt": "[[reply:one]]" })).expect(202);
    server.finish_as(&old, "completed");
    server.finish_as(&server.compact("work"), "completed");
    server.complete("work", "[[reply:two]]");
    for group in ["other", "paused"] {
        server.complete(group, "[[reply:old]]");
    }
    server.post("/v1/groups/paused/pause", &json!({})).expect(202);
    let waiting = server.submit("paused", "[[reply:waited]]");
    server.restart();
    let young = wait_pass(&server);
    assert!(young.contains("groups=0 tasks=0 frames=0"), "{young}");
    let before = server.group("work");
    let segments = server.segments("work").len();
    restart_after_days(&mut server, 8);

    assert_eq!(server.frames("work"), Vec::<Value>::new());
    server.get(&format!("/v1/tasks/{}", id(&old))).expect(404);
    for list in ["tasks", "runs", "compactions"] {
        assert_eq!(server.list("work", list), Vec::<Value>::new(), "{list}");
    }
    let after = server.group("work");
    for kept in ["last_seq", "session_id", "segment", "metadata"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    assert_eq!(after["compaction"]["count"], 1);
    assert_eq!(server.segments("work").len(), segments);
    assert_sound(&server);
    assert_eq!(server.task(&waiting)["state"], "queued");
    server.resume("paused");
    assert_eq!(server.finish_as(&waiting, "completed")["text"], "waited");
    assert_gap(&server, "other");

    // The key of the deleted task is deleted too: it creates a new task.
    let again = server.post_once("key", path, &json!({ "prompt": "[[reply:one]]" })).expect(202);
    assert_ne!(id(&again), id(&old));
    let ended = server.finish_as(&again, "completed");
    assert_eq!((&ended["text"], &ended["deduplicated"]), (&json!("one"), &json!(false)));
    let frames = server.frames("work");
    let seqs: Vec<u64> = frames.iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
    let first = before["last_seq"].as_u64().unwrap() + 1;
    assert_eq!(seqs, (first..=last_seq(&server, "work")).collect::<Vec<_>>(), "I3");
    assert_eq!(server.frames_where("work", "&after=2"), frames);
    let current = server.frames_where("work", "&segment=current");
    assert_eq!(current, frames, "the open segment began before the truncation");
    let back = server.frames_where("work", "&order=desc");
    assert_eq!(back.last().unwrap()["seq"], first);
    server.get("/v1/groups/work/snapshot").expect(200);
    server.kill_and_boot();
    server.complete("work", "[[reply:three]]");
}

/// API, Server-Sent Events: for a cursor below the kept frames, a gap has the number at which the
/// stream continues.
#[track_caller]
fn assert_gap(server: &Server, group: &str) {
    let kept_from = last_seq(server, group) + 1;
    for (query, headers) in [
        ("", None),
        ("?after=2", None),
        ("?after=999999", None),
        ("", Some(("Last-Event-ID", "3"))),
    ] {
        let events = server.events_with(group, query, headers.as_slice()).until_synced();
        let names: Vec<&str> = events.iter().map(|event| &*event.event).collect();
        assert_eq!(names, ["greenroom/gap", "greenroom/synced"], "{query}");
        assert_eq!((events[0].id, events[0].frame()), (None, json!({ "earliest": kept_from })));
    }
    let open = server.events(group, "?after=1");
    let task = server.complete(group, "[[reply:new]]");
    let live = open.until_task_ended(&task["id"]);
    let ids: Vec<u64> = live.iter().filter_map(|event| event.id).collect();
    assert_eq!(ids, (kept_from..kept_from + ids.len() as u64).collect::<Vec<_>>());
    let replayed = server.events(group, "").until_synced();
    assert_eq!((&*replayed[0].event, replayed[1].id), ("greenroom/gap", Some(kept_from)));
    let query = format!("?after={}", kept_from - 1);
    let exact = server.events(group, &query).until_synced();
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
    const GROUPS: usize = 4;
    let mut server = start_weekly();
    let tasks: Vec<Value> = (0..GROUPS)
        .flat_map(|group| (0..6).map(move |_| format!("group-{group}")))
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
    for more in 1..=2 {
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

/// AM-18, I15: a log that contradicts itself is kept unchanged, and so is the transcript of a group
/// with an unreadable row; the pass warns of both, and truncates the others.
#[test]
fn unsound_and_broken_groups_do_not_stop_the_pass() {
    let mut server = start_weekly();
    for group in ["unsound", "broken", "sound"] {
        server.complete(group, "[[reply:old]]");
    }
    server.terminate();
    server.wait_exit();
    make_older(&server, 8);
    let database = server.writable_database();
    let no = |group: &str| format!("(SELECT no FROM groups WHERE id = '{group}')");
    let unsound = format!(
        "UPDATE blocks SET segment = 9 WHERE key = (SELECT min(key) FROM blocks \
         WHERE kinds = 'session/update' AND key >> 36 = {})",
        no("unsound")
    );
    assert_eq!(database.execute(&unsound, []).unwrap(), 1);
    let settings = "SELECT settings FROM groups WHERE id = 'broken'";
    let settings: String = database.query_row(settings, [], |row| row.get(0)).unwrap();
    let set = "UPDATE groups SET settings = ? WHERE id = 'broken'";
    assert_eq!(database.execute(set, ["{"]).unwrap(), 1);
    server.boot();
    let passed = wait_pass(&server);
    assert!(passed.contains("groups=1 tasks=1"), "{passed}");
    assert_eq!(server.frames("sound"), Vec::<Value>::new());
    assert_eq!(server.frames("unsound")[0]["seq"], 1);
    let kept = format!("SELECT count(*) FROM blocks WHERE key >> 36 = {}", no("broken"));
    let kept: i64 = database.query_row(&kept, [], |row| row.get(0)).unwrap();
    assert!(0 < kept, "it is kept for a repair");
    for (words, names) in
        [("its log contradicts itself", "group=unsound"), ("until the next try", "groups=1")]
    {
        let warning = server.log.wait("a warning", |line| line.contains(words));
        assert!(warning.contains("WARN") && warning.contains(names), "{warning}");
    }
    let turn = server.post("/v1/groups/broken/turns", &json!({ "prompt": "x" }));
    turn.problem(500, "group-broken");
    let repaired = unsound.replace("segment = 9", "segment = 1");
    assert_eq!(database.execute(&repaired, []).unwrap(), 1);
    assert_eq!(database.execute(set, [settings]).unwrap(), 1);
    // The group does not prevent an orderly end of the server either.
    server.terminate();
    assert!(server.wait_exit().success());
}
