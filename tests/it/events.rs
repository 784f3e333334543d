//! Server-Sent Events: replayed from disk and then live, without a gap or a repeat.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use serde_json::json;

use crate::support::{Event, Events, Server, TIMEOUT, eventually, process, server::id};

/// The most memory that the server may use while its readers do not read the stream.
const RESIDENT_BYTES_MAX: u64 = 160 * 1024 * 1024;

/// AM-16, API-2: replay, one `greenroom/synced` without an id, then live; ids count up by one
/// across it.
#[test]
fn a_stream_replays_then_continues_live() {
    let server = Server::usual();
    server.complete("work", "[[chunks:20:200]]");
    let running = server.submit("work", "[[reply:before]][[gate:go]][[chunks:30:200]]");
    server.journal.wait_gate("go");
    let events = server.events("work", "");
    let mut seen = events.until_synced();
    server.journal.open_gate("go");
    seen.extend(events.until_task_ended(&running["id"]));
    assert_complete(&seen, 1);
    let frames = server.frames("work");
    let sent: Vec<_> = seen.iter().filter(|event| event.is_frame()).map(Event::frame).collect();
    assert_eq!(sent, frames[..sent.len()]);
    for event in seen.iter().filter(|event| event.is_frame()) {
        assert_eq!(event.event, event.frame()["kind"].as_str().unwrap());
    }
}

/// AM-16: readers that attach at any moment of a stream all receive all of it.
#[test]
fn a_reader_may_attach_at_any_moment() {
    let server = Server::usual();
    let task = server.submit("work", "[[chunks:8000:200]][[gate:go]][[chunks:8000:200]]");
    server.journal.wait_prompt("[[chunks:8000:200]][[gate:go]][[chunks:8000:200]]");
    thread::scope(|scope| {
        let (server, task) = (&server, &task["id"]);
        for reader in 0..6 {
            scope.spawn(move || {
                let events = server.events("work", "");
                if reader == 3 {
                    server.journal.wait_gate("go");
                    server.journal.open_gate("go");
                }
                assert_complete(&events.until_task_ended(task), 1);
            });
        }
    });
    server.finish_as(&task, "completed");
}

/// AM-10: replayed events are byte-identical to the live ones.
#[test]
fn replay_is_byte_identical_to_live() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let live = server.events("work", "");
    live.until_synced();
    let prompt = "[[reply:a\\u0000 ünïcode \u{2028} \u{1F980}]][[tool]][[chunks:10:300]]";
    let task = server.complete("work", prompt);
    let live = live.until_task_ended(&task["id"]);
    let first = live[0].id.unwrap();
    let replay = server.events("work", &format!("?after={}", first - 1));
    let replay = replay.until_task_ended(&task["id"]);
    assert_eq!(live, replay);
}

/// API-2: `?after` begins after that frame; `Last-Event-ID` takes precedence over it; a cursor at
/// the end replays nothing.
#[test]
fn a_cursor_selects_where_the_stream_begins() {
    let server = Server::usual();
    server.complete("work", "[[chunks:10:200]]");
    let last = server.group("work")["last_seq"].as_u64().unwrap();
    assert_complete(&server.events("work", "?after=5").until_synced(), 6);
    let resumed = server.events_with("work", "?after=5", &[("Last-Event-ID", "9")]);
    assert_complete(&resumed.until_synced(), 10);
    let resumed = server.events_with("work", "", &[("Last-Event-ID", "7")]);
    assert_complete(&resumed.until_synced(), 8);
    let end = server.events("work", &format!("?after={last}"));
    let nothing = end.until_synced();
    assert_eq!(nothing.len(), 1, "only greenroom/synced: {nothing:?}");
    server.complete("work", "next");
    assert_eq!(end.next().unwrap().id, Some(last + 1));
}

/// API-2: `greenroom/synced` is sent once, without an id, also for a group without a turn.
#[test]
fn synced_is_sent_once() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let events = server.events("work", "");
    let mut seen = events.until_synced();
    let task = server.complete("work", "[[chunks:100:200]]");
    seen.extend(events.until_task_ended(&task["id"]));
    let synced: Vec<_> = seen.iter().filter(|event| event.event == "greenroom/synced").collect();
    assert_eq!(synced.len(), 1);
    assert_eq!(synced[0].id, None);
}

/// API-2: two readers receive the same bytes in the same order.
#[test]
fn all_readers_receive_the_same_bytes() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let readers = [server.events("work", ""), server.events("work", "")];
    for reader in &readers {
        reader.until_synced();
    }
    let task = server.complete("work", "[[chunks:500:200]][[tool]]");
    let [one, two] = readers.each_ref().map(|reader| reader.until_task_ended(&task["id"]));
    assert_eq!(one, two);
}

/// API-2: a reader that reconnects with its last id after a server restart misses nothing and
/// receives nothing twice.
#[test]
fn a_reader_reconnects_across_a_restart_without_loss() {
    let mut server = Server::usual();
    let first = server.complete("work", "[[chunks:50:200]]");
    let events = server.events("work", "");
    let mut seen = events.until_task_ended(&first["id"]);
    let running = server.submit("work", "[[reply:incomplete]][[gate:never]]");
    seen.extend(events.until("the incomplete chunk", |event| event.data.contains("incomplete\"")));
    server.kill();
    while let Some(event) = events.next() {
        seen.push(event);
    }
    server.boot();
    let last = seen.iter().filter_map(|event| event.id).next_back().unwrap();
    let events = server.events_with("work", "", &[("Last-Event-ID", &last.to_string())]);
    seen.extend(events.until_task_ended(&running["id"]));
    let next = server.submit("work", "next");
    seen.extend(events.until_task_ended(&next["id"]));
    seen.retain(Event::is_frame);
    assert_complete(&seen, 1);
}

/// F28, I11: readers that do not read cost the server no memory while 200,000 frames are streamed,
/// and afterwards receive them all.
#[test]
fn a_slow_reader_costs_no_memory() {
    const FRAMES: usize = 200_000;
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let mut idle: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let host = server.address();
            let request = format!("GET /v1/groups/work/events HTTP/1.1\r\nHost: {host}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            // The head has arrived: the server is sending, and from here on the reader does not
            // read.
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        })
        .collect();
    let task = server.submit("work", &format!("[[chunks:{FRAMES}:400]]"));
    let ended = (0..10).map(|_| server.get(&format!("/v1/tasks/{}?wait=30", id(&task))).json());
    let ended = ended.into_iter().find(|task| task["state"] != "running").unwrap();
    assert_eq!(ended["state"], "completed", "{}", server.log.tail());
    assert_eq!(ended["text_truncated"], true, "80 MB of text are not kept in the task");
    let peak = process::peak_resident_bytes(server.pid());
    assert!(peak < RESIDENT_BYTES_MAX, "{} MiB resident", peak / 1024 / 1024);
    let mut last = idle.pop().unwrap();
    last.set_read_timeout(Some(TIMEOUT)).unwrap();
    let last_id = format!("id: {}\n", server.group("work")["last_seq"]);
    let (mut tail, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    while !String::from_utf8_lossy(&tail).contains(&last_id) {
        let read = last.read(&mut buffer).expect("the slow reader is served to the end");
        assert_ne!(read, 0, "the stream ended before {last_id:?}\n{}", server.log.tail());
        let keep = tail.len().min(64);
        tail.drain(..tail.len() - keep);
        tail.extend_from_slice(&buffer[..read]);
    }
    assert!(FRAMES < server.group("work")["last_seq"].as_u64().unwrap() as usize);
    let peak = process::peak_resident_bytes(server.pid());
    assert!(peak < RESIDENT_BYTES_MAX, "{} MiB resident in the replay", peak / 1024 / 1024);
}

/// F29, I15: readers that disconnect do not affect others.
#[test]
fn disconnected_readers_do_not_affect_others() {
    let server = Server::usual();
    server.complete("work", "[[chunks:2000:500]]");
    for _ in 0..50 {
        let events = server.events("work", "");
        events.next();
    }
    server.complete("work", "after them");
    let all = server.events("work", "").until_synced();
    assert_complete(&all, 1);
}

/// C15: agent text with line ends and field names cannot break out of an event.
#[test]
fn agent_text_cannot_forge_events() {
    let server = Server::usual();
    let text = "a\n\ndata: forged\r\nid: 999\revent: forged\n\n: b";
    let body = json!({ "prompt": format!("[[reply:{text}]]") });
    let task = server.post("/v1/groups/work/turns?wait=25", &body).expect(200);
    assert_eq!(task["text"], text);
    let seen = server.events("work", "").until_synced();
    assert_complete(&seen, 1);
    assert!(seen.iter().all(|event| event.event != "forged"));
}

/// API-2: status changes of all groups are one stream.
#[test]
fn one_stream_has_the_status_changes_of_all_groups() {
    let server = Server::usual();
    let events = Events::open(server.address(), "/v1/events", &[], &server.log);
    server.complete("one", "x");
    server.complete("two", "x");
    for (group, status) in [("one", "running"), ("two", "running"), ("two", "idle")] {
        events.until(&format!("{status} of {group}"), |event| {
            event.data.contains(&format!("\"{group}\"")) && event.data.contains(status)
        });
    }
}

/// The number in a `greenroom/gap`.
#[track_caller]
fn earliest(event: &Event) -> u64 {
    assert_eq!((event.event.as_str(), event.id), ("greenroom/gap", None), "{event:?}");
    event.frame()["earliest"].as_u64().unwrap()
}

/// API-2: a reader that missed status changes receives a gap with the number of the next change; a
/// reader that missed none receives no gap.
#[test]
fn missed_status_changes_are_a_gap() {
    let server = Server::usual();
    let open = |path: &str| Events::open(server.address(), path, &[], &server.log);
    server.complete("work", "unread");
    let events = open("/v1/events?after=7");
    let next = earliest(&events.next().unwrap());
    assert_eq!(events.next().unwrap().event, "greenroom/synced");
    server.complete("work", "read");
    for id in next..next + 2 {
        assert_eq!(events.next().unwrap().id, Some(id));
    }
    // The number before is that of the last unread change.
    let exact = open(&format!("/v1/events?after={}", next - 1));
    assert_eq!(exact.until_synced()[0].id, Some(next));
    let missed = open(&format!("/v1/events?after={}", next - 2)).until_synced();
    assert_eq!((earliest(&missed[0]), missed[1].id), (next, Some(next)));
    let none = open(&format!("/v1/events?after={}", next + 1)).until_synced();
    assert_eq!(none.len(), 1, "{none:?}");
}

/// API-2: for a cursor beyond the last change, as after the clock was set back, the stream has a
/// gap, then the kept changes, then live changes.
#[test]
fn a_cursor_of_the_future_gets_a_gap_and_live_changes() {
    let server = Server::usual();
    let open = |after: u64| {
        let last = after.to_string();
        Events::open(server.address(), "/v1/events", &[("Last-Event-ID", &last)], &server.log)
    };
    let events = open(u64::MAX);
    let next = earliest(&events.next().unwrap());
    assert_eq!(events.next().unwrap().event, "greenroom/synced");
    server.complete("work", "x");
    assert_eq!(events.next().unwrap().id, Some(next));
    let again = open(next + 3_600_000_000);
    let seen = again.until_synced();
    assert_eq!((earliest(&seen[0]), seen[1].id), (next, Some(next)));
    let last = seen.iter().filter_map(|event| event.id).next_back().unwrap();
    server.complete("work", "y");
    assert_eq!(again.next().unwrap().id, Some(last + 1));
}

/// I3, AM-18: if frames are missing on disk, a gap names where the stream continues.
#[test]
fn missing_frames_are_a_gap() {
    let server = Server::usual();
    server.complete("work", "one");
    server.complete("work", "two");
    let frames = server.frames("work");
    let last = frames.last().unwrap()["seq"].as_u64().unwrap();
    let database = server.writable_database();
    let middle = "(SELECT key FROM blocks ORDER BY key LIMIT 1 OFFSET 2)";
    let block =
        format!("SELECT key, key & ((1 << 36) - 1), count FROM blocks WHERE key = {middle}");
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let (key, first, count): (i64, i64, i64) = database.query_row(&block, [], read).unwrap();
    let (first, count) = (first.unsigned_abs(), count.unsigned_abs());
    let away = key | (1 << 60);
    let move_block = |from: i64, to: i64| {
        let moved = database.execute("UPDATE blocks SET key = ? WHERE key = ?", [to, from]);
        assert_eq!(moved.unwrap(), 1);
    };
    move_block(key, away);
    let seen = server.events("work", "").until_synced();
    let ids: Vec<u64> = seen.iter().filter_map(|event| event.id).collect();
    let expected: Vec<u64> = (1..first).chain(first + count..=last).collect();
    assert_eq!(ids, expected);
    let gaps: Vec<usize> =
        (0..seen.len()).filter(|at| seen[*at].event == "greenroom/gap").collect();
    assert_eq!(gaps, [usize::try_from(first).unwrap() - 1], "{seen:?}");
    assert_eq!(earliest(&seen[gaps[0]]), first + count);
    move_block(away, key);
    assert_complete(&server.events("work", "").until_synced(), 1);
}

/// AM-18: if a reader's next frames are the last ones and unreadable, it receives a gap, and
/// the stream stays live.
#[test]
fn unreadable_last_frames_are_a_gap_and_the_stream_stays() {
    let mut server = Server::usual();
    // Without a reader the feed keeps no frames, so they are only on disk.
    let sql = "UPDATE blocks SET text = CAST('{' AS BLOB) \
               WHERE key = (SELECT max(key) FROM blocks) RETURNING key & ((1 << 36) - 1), count";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?));
    for restarts in [false, true] {
        server.complete("work", "unseen");
        if restarts {
            server.kill();
        }
        let damaged = server.writable_database().query_row(sql, [], read).unwrap();
        let (first, next) = (u64::from(damaged.0), u64::from(damaged.0 + damaged.1));
        if restarts {
            server.boot();
        }
        let events = server.events("work", &format!("?after={}", first - 1));
        let seen = events.until_synced();
        assert_eq!(earliest(&seen[0]), next, "{seen:?}");
        let task = server.complete("work", "live");
        let later: Vec<_> = seen.into_iter().chain(events.until_task_ended(&task["id"])).collect();
        assert_complete(&later, next);
        drop(events);
    }
    server.delete("/v1/groups/work?purge=true").expect(202);
    eventually("the purge", &server.log, || {
        (server.get("/v1/groups/work").status == 404).then_some(())
    });
}

/// Checks that the frames among the events are numbered from `first` on without gap or repeat,
/// and that each event's id is its frame's `seq`.
#[track_caller]
fn assert_complete(events: &[Event], first: u64) {
    let frames: Vec<&Event> = events.iter().filter(|event| event.is_frame()).collect();
    assert!(!frames.is_empty(), "no frames");
    for (number, event) in (first..).zip(&frames) {
        assert_eq!(event.id, Some(number), "a gap or a repeat");
        assert_eq!(event.frame()["seq"], number);
    }
}

/// The stream of a purged group ends, and a cursor beyond the last frame leads to a gap: a reader
/// that reconnects to a new group of the same name does not wait for ever.
#[test]
fn the_stream_of_a_purged_group_ends() {
    let server = Server::usual();
    server.complete("work", "[[chunks:50:200]]");
    let events = server.events("work", "");
    events.until_synced();
    server.delete("/v1/groups/work?purge=true").expect(202);
    while events.next().is_some() {}
    // The purge may still be running, for a moment.
    eventually("a new group of that name", &server.log, || {
        (server.put("/v1/groups/work", &json!({})).status == 201).then_some(())
    });
    server.complete("work", "again");
    let seen = server.events("work", "?after=50000").until_synced();
    assert_eq!(seen[0].event, "greenroom/gap");
    assert_complete(&seen[1..], 1);
    let last = u64::MAX;
    let seen = server.events("work", &format!("?after={last}")).until_synced();
    assert_eq!(seen[0].event, "greenroom/gap");
    server.get(&format!("/v1/groups/work/frames?after={last}")).expect(200);
}

/// `/v1/events` sends a gap to a reader whose cursor is too old.
#[test]
fn status_events_after_a_restart_begin_with_a_gap() {
    let mut server = Server::usual();
    server.complete("work", "one");
    server.kill_and_boot();
    let url = server.address();
    let events = Events::open(url, "/v1/events?after=7", &[], &server.log);
    let seen = events.until("the gap", |event| event.event == "greenroom/gap");
    assert_eq!(seen.len(), 1);
}
