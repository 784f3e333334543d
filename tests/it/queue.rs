//! The queue: order, one task at a time, the limit of running groups, fairness, and the length
//! limit.

use std::thread;

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually};

/// I8, DQ-1, I1, API-2: turns run in the order of acceptance, one at a time; the frames have the
/// same order as the agent's journal. Meanwhile the positions in the list count up from 0.
#[test]
fn turns_run_in_order() {
    let server = Server::usual();
    let mut tasks = vec![server.submit("work", "[[gate:go]]")];
    tasks.extend((0..20).map(|number| server.submit("work", &format!("turn {number}"))));
    server.journal.wait_gate("go");
    server.wait_group("work", "20 waiting", |group| group["queue_length"] == 20);
    server.journal.open_gate("go");
    for task in &tasks {
        let listed = server.list("work", "tasks");
        let places = listed.iter().map(|task| task["position"].clone());
        let waiting = listed.iter().filter(|task| task["state"] == "queued").count();
        let mut expected = vec![json!(null); listed.len() - waiting];
        expected.extend((0..waiting).map(|place| json!(place)));
        assert_eq!(places.collect::<Vec<_>>(), expected, "only the queued ones, from 0 on");
        server.finish_as(task, "completed");
    }
    let expected: Vec<String> = (0..20).map(|number| format!("turn {number}")).collect();
    assert_eq!(server.journal.prompts()[1..], expected);
    server.journal.assert_one_at_a_time();
    let mut frames = server.frames("work");
    let [started, settled] = ["greenroom/turn_started", "greenroom/turn_settled"];
    frames.retain(|frame| frame["kind"] == started || frame["kind"] == settled);
    let frames: Vec<_> = frames.iter().map(|frame| (&frame["kind"], &frame["task"])).collect();
    let (started, settled) = (json!(started), json!(settled));
    let ends = tasks.iter().flat_map(|task| [(&started, &task["id"]), (&settled, &task["id"])]);
    assert_eq!(frames, ends.collect::<Vec<_>>(), "each turn settles before the next starts");
}

/// DQ-1, I1: with any mix of simultaneous requests of many callers, one task of a group runs at a
/// time and each accepted turn runs once.
#[test]
fn simultaneous_callers_get_one_task_at_a_time() {
    let server = Server::usual();
    server.complete("work", "first");
    thread::scope(|scope| {
        for caller in 0..6 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..5 {
                    server.submit("work", &format!("turn {caller}.{number}"));
                    server.post("/v1/groups/work/compactions", &json!({})).expect_any(&[200, 202]);
                }
            });
        }
    });
    let last = server.submit("work", "last");
    server.finish_as(&last, "completed");
    server.journal.assert_one_at_a_time();
    assert_eq!(server.journal.most_at_once(), 1);
    for caller in 0..6 {
        let name = format!("turn {caller}.");
        let prompts = server.journal.prompts().into_iter().filter(|text| text.starts_with(&name));
        let expected: Vec<String> = (0..5).map(|number| format!("{name}{number}")).collect();
        assert_eq!(prompts.collect::<Vec<_>>(), expected, "the order of one caller's turns holds");
    }
}

/// I11, API-2: a full queue answers 429 `queue-full` with `Retry-After`, accepts neither a turn nor
/// a retry, but an idempotent repeat, and accepts again when it has room.
#[test]
fn a_full_queue_refuses_work() {
    const TURNS: &str = "/v1/groups/work/turns";
    let server = Setup::new().set("limits", "queue", 2).start();
    let failed = server.turn("work", "[[error:-32602:no]]");
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let one = server.submit("work", "one");
    let body = json!({ "prompt": "two" });
    let two = server.post_once("key", TURNS, &body).expect(202);
    for reply in [server.post(TURNS, &json!({ "prompt": "three" })), server.retry(&failed)] {
        reply.problem(429, "queue-full");
        let seconds = reply.header("retry-after").expect("a Retry-After");
        assert!(seconds.parse::<u64>().is_ok(), "{seconds}");
    }
    let again = server.post_once("key", TURNS, &body).expect_any(&[200, 202]);
    assert_eq!(again["id"], two["id"]);
    assert_eq!(server.list("work", "tasks").len(), 4);
    server.submit("other", "another group has its own queue");
    server.journal.open_gate("go");
    for task in [&running, &one, &two] {
        server.finish_as(task, "completed");
    }
    server.complete("work", "four");
    let prompts = server.journal.prompts();
    assert!(!prompts.contains(&"three".to_owned()), "{prompts:?}");
}

/// DQ-2: at most `running_groups` groups run; the others visibly wait, and get free slots in the
/// order of their arrival. The limit also holds under load.
#[test]
fn groups_wait_for_slots_in_order_of_arrival() {
    let server = Setup::new().set("limits", "running_groups", 2).start();
    let tasks: Vec<Value> = (0..5)
        .map(|number| {
            let task = server.submit(&format!("g{number}"), &format!("[[gate:go{number}]]"));
            if number < 2 {
                server.journal.wait_gate(&format!("go{number}"));
            }
            task
        })
        .collect();
    for (number, task) in tasks.iter().enumerate().skip(2) {
        let name = format!("g{number}");
        let group = server.wait_group(&name, "a waiting group", |group| {
            group["status"] == "waiting" && group["blocked_by"] == "slot"
        });
        assert_eq!(group["queue_length"], 1);
        let task = server.task(task);
        assert_eq!(task["state"], "queued");
        assert_eq!(task["blocked_by"], "slot", "{task}");
    }
    let waiting = server.get("/v1/groups?status=waiting").expect(200);
    assert_eq!(waiting["items"].as_array().unwrap().len(), 3, "each is listed once: {waiting}");
    for (number, task) in tasks.iter().enumerate() {
        server.journal.open_gate(&format!("go{number}"));
        server.finish_as(task, "completed");
        // Wait before the next slot is free, because agents that start simultaneously become ready
        // in any order.
        if number + 2 < tasks.len() {
            server.journal.wait_gate(&format!("go{}", number + 2));
        }
    }
    assert_eq!(server.journal.most_at_once(), 2);
    let expected: Vec<String> = (0..5).map(|number| format!("[[gate:go{number}]]")).collect();
    assert_eq!(server.journal.prompts(), expected);
    let tasks: Vec<Value> = (0..24)
        .map(|number| server.submit(&format!("g{}", number % 5), "[[reply:a]][[tool]]"))
        .collect();
    tasks.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    assert_eq!(server.journal.most_at_once(), 2);
    server.journal.assert_one_at_a_time();
}

/// DQ-10, DQ-9: a busy group does not starve waiting groups: after each task, also a failed one,
/// the group that has waited longest gets the slot.
#[test]
fn a_busy_group_starves_no_other_group() {
    let server = Setup::new().set("limits", "running_groups", 1).start();
    let failing = server.submit("busy", "[[gate:go]][[error:-32602:no]]");
    server.journal.wait_gate("go");
    server.submit("busy", "busy 1");
    let last = server.submit("busy", "busy 2");
    for group in ["second", "third"] {
        server.submit(group, group);
        server.wait_group(group, "a group that waits", |group| group["status"] == "waiting");
    }
    server.journal.open_gate("go");
    server.finish_as(&last, "completed");
    server.finish_as(&failing, "failed");
    let expected = ["[[gate:go]][[error:-32602:no]]", "second", "third", "busy 1", "busy 2"];
    assert_eq!(server.journal.prompts(), expected);
}

/// API-1, API-2, I15: the group's status follows its work, from start to end. A paused group claims
/// no task and loses none, and one whose agent cannot start does not affect others.
#[test]
fn status_follows_the_work_of_a_group() {
    let setup = Setup::new().agent("broken", &["--exit-at-start", "1"]);
    let server = setup.agent("slow", &["--gate-initialize", "start"]).start();
    server.create_group("bad", "broken", "");
    let bad = [server.submit("bad", "x"), server.submit("bad", "x")];
    server.put("/v1/groups/work", &json!({ "agent": "slow" })).expect(201);
    let task = server.submit("work", "[[gate:go]]");
    server.wait_group("work", "starting", |group| group["status"] == "starting");
    let claimed = server.task(&task);
    assert_eq!(claimed["state"], "queued", "{claimed}");
    assert_eq!((&claimed["blocked_by"], &claimed["position"]), (&json!("agent"), &json!(0)));
    let next = server.submit("work", "next");
    assert_eq!((&next["blocked_by"], &next["position"]), (&json!("turn"), &json!(1)));
    assert_eq!(server.task(&next)["position"], 1);
    server.journal.open_gate("start");
    server.wait_group("work", "running", |group| group["status"] == "running");
    assert_eq!(server.task(&task)["blocked_by"], json!(null));
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    server.wait_status("work", "paused");
    assert_eq!(server.task(&next)["blocked_by"], "paused");
    // A whole turn of another group: meanwhile a wrong claim would become visible.
    server.complete("good", "fine");
    assert_eq!(server.task(&next)["state"], "queued");
    server.resume("work");
    server.finish_as(&next, "completed");
    bad.iter().for_each(|task| drop(server.finish_as(task, "failed")));
    server.wait_status("work", "idle");
    server.wait_status("good", "idle");
}

/// I3, I11: after the last number of a group, or of the database, more work is refused; no number
/// is used twice, and other groups work.
#[test]
fn exhausted_numbers_refuse_work() {
    let mut server = Server::usual();
    server.complete("full", "before");
    server.complete("work", "before");
    server.terminate();
    server.wait_exit();
    let set = |server: &Server, sql: &str| {
        assert_eq!(server.writable_database().execute(sql, []).unwrap(), 1, "{sql}");
    };
    let sql = "SELECT last_seq FROM heads JOIN groups USING (no) WHERE id = 'full'";
    let last_seq: i64 = server.database().query_row(sql, [], |row| row.get(0)).unwrap();
    let of_full = "WHERE no = (SELECT no FROM groups WHERE id = 'full')";
    set(&server, &format!("UPDATE heads SET last_seq = (1 << 36) - 2 {of_full}"));
    set(&server, "UPDATE sqlite_sequence SET seq = (1 << 27) - 3 WHERE name = 'groups'");
    server.boot();
    for path in ["/v1/groups/full/turns", "/v1/groups/full/compactions"] {
        let body = if path.ends_with("turns") { json!({ "prompt": "x" }) } else { json!({}) };
        server.post(path, &body).problem(507, "numbers-exhausted");
    }
    server.put("/v1/groups/full", &json!({ "title": "x" })).problem(507, "numbers-exhausted");
    assert_eq!(server.group("full")["status"], "idle");
    server.complete("last", "in the last group");
    for group in ["one-more", "another"] {
        server.put(&format!("/v1/groups/{group}"), &json!({})).problem(507, "numbers-exhausted");
        let turns = format!("/v1/groups/{group}/turns");
        server.post(&turns, &json!({ "prompt": "x" })).problem(507, "numbers-exhausted");
    }
    server.complete("work", "works");
    server.delete("/v1/groups/last?purge=true").expect(202);
    eventually("the purge", &server.log, || {
        (server.get("/v1/groups/last").status == 404).then_some(())
    });
    // Kill instead of an orderly end, because the row does not match the log.
    server.kill();
    set(&server, &format!("UPDATE heads SET last_seq = {last_seq}, digest_version = 0 {of_full}"));
    server.boot();
    server.complete("full", "works");
}
