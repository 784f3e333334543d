//! Server-Sent Events: from disk and then live, without a gap or a repeat.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use serde_json::json;

use crate::support::server::id;
use crate::support::{Event, Events, PATIENCE, Server, eventually, process};

/// The most memory that the server may need while readers do not read what is streamed.
const RESIDENT_BYTES_MAX: u64 = 160 * 1024 * 1024;

/// AM-16, API 2: replay, one id-less seam, then live; ids count up by one across the seam.
#[test]
fn replays_then_goes_live() {
    let server = Server::usual();
    server.complete("work", "[[chunks:20:200]]");
    let running = server.submit("work", "[[reply:before]][[gate:go]][[chunks:30:200]]");
    server.journal.wait_gate("go");
    let events = server.events("work", "");
    let mut seen = events.until_synced();
    server.journal.open_gate("go");
    seen.extend(events.until_task_ended(&running["id"]));
    assert_whole(&seen, 1);
    let frames = server.frames("work");
    let sent: Vec<_> = seen.iter().filter(|event| event.is_frame()).map(Event::frame).collect();
    assert_eq!(sent, frames[..sent.len()]);
    for event in seen.iter().filter(|event| event.is_frame()) {
        assert_eq!(event.event, event.frame()["kind"].as_str().unwrap());
    }
}

/// AM-16: readers that come at any moment of a stream all see it whole.
#[test]
fn attach_at_any_moment_of_a_stream() {
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
                assert_whole(&events.until_task_ended(task), 1);
            });
        }
    });
    server.finish_as(&task, "completed");
}

/// AM-10: what is replayed is byte-identical to what was sent live.
#[test]
fn replay_is_byte_identical() {
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

/// API 2: `?after` begins behind that frame; `Last-Event-ID` wins over it; a cursor at the end
/// replays nothing.
#[test]
fn cursors_of_the_stream() {
    let server = Server::usual();
    server.complete("work", "[[chunks:10:200]]");
    let last = server.group("work")["last_seq"].as_u64().unwrap();
    assert_whole(&server.events("work", "?after=5").until_synced(), 6);
    let resumed = server.events_with("work", "?after=5", &[("Last-Event-ID", "9")]);
    assert_whole(&resumed.until_synced(), 10);
    let resumed = server.events_with("work", "", &[("Last-Event-ID", "7")]);
    assert_whole(&resumed.until_synced(), 8);
    let end = server.events("work", &format!("?after={last}"));
    let nothing = end.until_synced();
    assert_eq!(nothing.len(), 1, "only the seam: {nothing:?}");
    server.complete("work", "next");
    assert_eq!(end.next().unwrap().id, Some(last + 1));
}

/// API 2: the seam comes once, without an id, also for a group that has no turn yet.
#[test]
fn one_seam() {
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let events = server.events("work", "");
    let mut seen = events.until_synced();
    let task = server.complete("work", "[[chunks:100:200]]");
    seen.extend(events.until_task_ended(&task["id"]));
    let seams: Vec<_> = seen.iter().filter(|event| event.event == "greenroom/synced").collect();
    assert_eq!(seams.len(), 1);
    assert_eq!(seams[0].id, None);
}

/// API 2: two readers see the same bytes in the same order.
#[test]
fn readers_see_the_same() {
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

/// API 2: a reader that comes back after a server restart, with its last id, misses nothing and
/// gets nothing twice.
#[test]
fn reconnects_across_a_restart() {
    let mut server = Server::usual();
    let first = server.complete("work", "[[chunks:50:200]]");
    let events = server.events("work", "");
    let mut seen = events.until_task_ended(&first["id"]);
    let running = server.submit("work", "[[reply:cut off]][[gate:never]]");
    seen.extend(events.until("the cut-off chunk", |event| event.data.contains("cut off\"")));
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
    assert_whole(&seen, 1);
}

/// F28, I11: readers that never read cost the server no memory while 200,000 frames stream, and
/// afterwards get them all.
#[test]
fn slow_reader_costs_no_memory() {
    const FRAMES: usize = 200_000;
    let server = Server::usual();
    server.put("/v1/groups/work", &json!({})).expect(201);
    let mut idle: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let host = server.address();
            let request = format!("GET /v1/groups/work/events HTTP/1.1\r\nHost: {host}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            // The head has come: the server is sending, and from here nobody reads.
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
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    let sign = format!("id: {}\n", server.group("work")["last_seq"]);
    let (mut tail, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    while !String::from_utf8_lossy(&tail).contains(&sign) {
        let read = last.read(&mut buffer).expect("the slow reader is served to the end");
        assert_ne!(read, 0, "the stream ended before {sign:?}\n{}", server.log.tail());
        let keep = tail.len().min(64);
        tail.drain(..tail.len() - keep);
        tail.extend_from_slice(&buffer[..read]);
    }
    assert!(FRAMES < server.group("work")["last_seq"].as_u64().unwrap() as usize);
    let peak = process::peak_resident_bytes(server.pid());
    assert!(peak < RESIDENT_BYTES_MAX, "{} MiB resident in the replay", peak / 1024 / 1024);
}

/// F29, I15: readers that vanish leave nothing behind that others feel.
#[test]
fn readers_that_vanish() {
    let server = Server::usual();
    server.complete("work", "[[chunks:2000:500]]");
    for _ in 0..50 {
        let events = server.events("work", "");
        events.next();
    }
    server.complete("work", "after them");
    let all = server.events("work", "").until_synced();
    assert_whole(&all, 1);
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
    assert_whole(&seen, 1);
    assert!(seen.iter().all(|event| event.event != "forged"));
}

/// API 2: status changes of all groups are one stream.
#[test]
fn status_of_all_groups() {
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

/// API 2: a reader that missed status changes gets a gap with the number of the next change; a
/// reader that missed none gets no gap.
#[test]
fn changes_without_a_reader_are_a_gap() {
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
    // The last of the unread changes has the number before.
    let behind = open(&format!("/v1/events?after={}", next - 1));
    assert_eq!(behind.until_synced()[0].id, Some(next));
    let missed = open(&format!("/v1/events?after={}", next - 2)).until_synced();
    assert_eq!((earliest(&missed[0]), missed[1].id), (next, Some(next)));
    let none = open(&format!("/v1/events?after={}", next + 1)).until_synced();
    assert_eq!(none.len(), 1, "{none:?}");
}

/// API 2: a cursor beyond the last change, as after the clock was set back, gets a gap, then what
/// is kept, then live changes.
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

/// I3, SEEDS AM-18: if frames are missing on disk, a gap says where the stream continues.
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
    assert_whole(&server.events("work", "").until_synced(), 1);
}

/// SEEDS AM-18: a reader whose next frames, the last ones, cannot be read gets a gap, and stays
/// live.
#[test]
fn unreadable_last_frames_are_a_gap_and_the_stream_stays() {
    let mut server = Server::usual();
    // Without a reader the feed keeps no frames: then they are on disk alone.
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
        let behind: Vec<_> = seen.into_iter().chain(events.until_task_ended(&task["id"])).collect();
        assert_whole(&behind, next);
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
fn assert_whole(events: &[Event], first: u64) {
    let frames: Vec<&Event> = events.iter().filter(|event| event.is_frame()).collect();
    assert!(!frames.is_empty(), "no frames");
    for (number, event) in (first..).zip(&frames) {
        assert_eq!(event.id, Some(number), "a gap or a repeat");
        assert_eq!(event.frame()["seq"], number);
    }
}

/// A stream of a group that is purged ends, and a cursor that is no frame's is told so: whoever
/// comes back to another group of the name does not wait for ever.
#[test]
fn stream_of_a_purged_group_ends() {
    let server = Server::usual();
    server.complete("work", "[[chunks:50:200]]");
    let events = server.events("work", "");
    events.until_synced();
    server.delete("/v1/groups/work?purge=true").expect(202);
    while events.next().is_some() {}
    // The last of it may still refuse, for a moment.
    eventually("the group's next life", &server.log, || {
        (server.put("/v1/groups/work", &json!({})).status == 201).then_some(())
    });
    server.complete("work", "again");
    let seen = server.events("work", "?after=50000").until_synced();
    assert_eq!(seen[0].event, "greenroom/gap");
    assert_whole(&seen[1..], 1);
    let last = u64::MAX;
    let seen = server.events("work", &format!("?after={last}")).until_synced();
    assert_eq!(seen[0].event, "greenroom/gap");
    server.get(&format!("/v1/groups/work/frames?after={last}")).expect(200);
}

/// `/v1/events` tells a reader whose cursor is too old that it missed something.
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
