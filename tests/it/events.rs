//! Server-Sent Events: replayed from disk and then live, without a gap or a repeat.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use serde_json::json;

use crate::support::{Event, Events, Server, TIMEOUT, eventually, process, server::id};

/// The most memory that the server may use while its readers do not read the stream.
const RESIDENT_BYTES_MAX: u64 = 100 * 1024 * 1024;

/// AM-10, AM-16, API-2: a stream replays, sends one `greenroom/synced` without an id, and is live;
/// ids count up by one across it. All readers and every replay get the same bytes, however many
/// others disconnect (F29, I15), and agent text cannot break out of an event (C15).
#[test]
fn a_stream_replays_then_continues_live() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let first = server.events("work", "");
    let mut live = first.until_synced();
    server.complete("work", "[[chunks:2000:500]]");
    for _ in 0..50 {
        server.events("work", "").next();
    }
    let text = "a\n\ndata: forged\r\nid: 999\revent: forged\n\n: b \\u0000 ü\u{2028}\u{1F980}";
    let prompt = format!("[[reply:{text}]][[gate:go]][[tool]][[chunks:500:200]]");
    let task = server.submit("work", &prompt);
    server.journal.wait_gate("go");
    let second = server.events("work", "");
    let mut late = second.until_synced();
    server.journal.open_gate("go");
    live.extend(first.until_task_ended(&task["id"]));
    late.extend(second.until_task_ended(&task["id"]));
    let ended = server.finish_as(&task, "completed");
    assert!(ended["text"].as_str().unwrap().starts_with(text), "{ended}");
    for seen in [&mut live, &mut late] {
        assert_complete(seen, 1);
        let others: Vec<_> = seen.iter().filter(|event| !event.is_frame()).collect();
        assert!(others.len() == 1 && others[0].event == "greenroom/synced", "{others:?}");
        seen.retain(Event::is_frame);
    }
    assert_eq!(live, late);
    drop((first, second));
    assert_eq!(server.events("work", "").until_task_ended(&task["id"]), live);
    let frames = server.frames("work");
    for (event, frame) in live.iter().zip(&frames) {
        assert_eq!(
            (&event.frame(), event.event.as_str()),
            (frame, frame["kind"].as_str().unwrap())
        );
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

/// API-2: `?after` begins after that frame; `Last-Event-ID` takes precedence over it; a cursor at
/// the end replays nothing. The stream of a purged group ends, and a cursor beyond the last frame
/// leads to a gap: a reader that reconnects to a new group of that name does not wait for ever.
#[test]
fn a_cursor_selects_where_the_stream_begins() {
    let server = Server::usual();
    server.complete("work", "[[chunks:10:200]]");
    let last = server.group("work")["last_seq"].as_u64().unwrap();
    for (query, header, first) in
        [("?after=5", None, 6), ("?after=5", Some("9"), 10), ("", Some("7"), 8)]
    {
        let headers: Vec<_> = header.into_iter().map(|id| ("Last-Event-ID", id)).collect();
        assert_complete(&server.events_with("work", query, &headers).until_synced(), first);
    }
    let end = server.events("work", &format!("?after={last}"));
    let nothing = end.until_synced();
    assert_eq!(nothing.len(), 1, "only greenroom/synced: {nothing:?}");
    server.complete("work", "next");
    assert_eq!(end.next().unwrap().id, Some(last + 1));
    server.delete("/v1/groups/work?purge=true").expect(202);
    while end.next().is_some() {}
    // The purge may still be running, for a moment.
    eventually("a new group of that name", &server.log, || {
        (server.put("/v1/groups/work", &json!({})).status == 201).then_some(())
    });
    server.complete("work", "again");
    for after in [last + 50_000, u64::MAX] {
        let seen = server.events("work", &format!("?after={after}")).until_synced();
        assert_eq!(seen[0].event, "greenroom/gap");
        assert_complete(&seen[1..], 1);
        server.get(&format!("/v1/groups/work/frames?after={after}")).expect(200);
    }
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

/// F28, I11: readers that do not read cost the server no memory while 80 MB of frames are
/// streamed, and afterwards receive them all.
#[test]
fn a_slow_reader_costs_no_memory() {
    const FRAMES: usize = 40_000;
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
    let task = server.submit("work", &format!("[[chunks:{FRAMES}:2000]]"));
    let ended = (0..10).map(|_| server.get(&format!("/v1/tasks/{}?wait=30", id(&task))).json());
    let ended = ended.into_iter().find(|task| task["state"] != "running").unwrap();
    assert_eq!(ended["state"], "completed", "{}", server.log.tail());
    assert_eq!(ended["text_truncated"], true, "80 MB of text are not kept in the task");
    let peak = process::memory(server.pid(), "VmHWM").unwrap();
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
    let peak = process::memory(server.pid(), "VmHWM").unwrap();
    assert!(peak < RESIDENT_BYTES_MAX, "{} MiB resident in the replay", peak / 1024 / 1024);
}

/// The number in a `greenroom/gap`.
#[track_caller]
fn earliest(event: &Event) -> u64 {
    assert_eq!((event.event.as_str(), event.id), ("greenroom/gap", None), "{event:?}");
    event.frame()["earliest"].as_u64().unwrap()
}

/// API-2: the status changes of all groups are one stream. A reader that missed some receives a gap
/// with the number of the next change, then the kept ones, then live ones: also with a cursor
/// beyond the last change, as after the clock was set back, and over a restart. A reader that
/// missed none receives no gap.
#[test]
fn missed_status_changes_are_a_gap() {
    let mut server = Server::usual();
    let open = |server: &Server, after: u64| {
        Events::open(server.address(), &format!("/v1/events?after={after}"), &[], &server.log)
    };
    let gap_of = |events: &Events| earliest(&events.next().unwrap());
    server.complete("one", "unread");
    let events = open(&server, 7);
    let next = gap_of(&events);
    assert_eq!(events.next().unwrap().event, "greenroom/synced");
    server.complete("two", "read");
    for (id, status) in (next..).zip(["starting", "running", "idle"]) {
        let event = events.next().unwrap();
        assert_eq!(event.id, Some(id));
        assert!(event.data.contains("\"two\"") && event.data.contains(status), "{event:?}");
    }
    // The number before is that of the last unread change.
    assert_eq!(open(&server, next - 1).until_synced()[0].id, Some(next));
    for cursor in [next - 2, next + 3_600_000_000, u64::MAX] {
        let last = cursor.to_string();
        let header = [("Last-Event-ID", last.as_str())];
        let events = Events::open(server.address(), "/v1/events", &header, &server.log);
        let missed = events.until_synced();
        assert_eq!((earliest(&missed[0]), missed[1].id), (next, Some(next)), "{cursor}");
    }
    let none = open(&server, next + 2).until_synced();
    assert_eq!(none.len(), 1, "{none:?}");
    server.kill_and_boot();
    assert!(gap_of(&open(&server, next + 2)) > next + 2, "numbers grow over a restart");
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
