//! The server ends, by kill -9 or SIGTERM, and starts again on the same data.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::process::Doomed;
use crate::support::server::TERMINAL;
use crate::support::{Server, Setup, eventually, process, within};

/// How long a process may outlive its run (I10).
const ORPHANED: Duration = Duration::from_secs(5);

const TURNS: &str = "/v1/groups/work/turns";

/// I2, I7, I8, RELIABILITY 1: after kill -9 the running turn is `interrupted` and not run again;
/// what was queued survives and runs in order, once.
#[test]
fn kill_interrupts_what_ran_and_keeps_the_queue() {
    let mut server = Server::usual();
    let running = server.submit("work", "[[reply:some output]][[gate:never]]");
    let queued: Vec<Value> =
        (0..5).map(|number| server.submit("work", &format!("turn {number}"))).collect();
    server.journal.wait_gate("never");
    let agent = server.journal.agent_pid();
    server.kill_and_boot();
    let cut = server.finish_as(&running, "interrupted");
    assert_eq!(cut["stop_reason"], "_server_restart", "{cut}");
    assert_eq!(cut["interrupted"]["cause"], "server_restart", "{cut}");
    assert!(cut["interrupted"]["side_effects"].is_string(), "{cut}");
    for task in &queued {
        server.finish_as(task, "completed");
    }
    let expected: Vec<String> = (0..5).map(|number| format!("turn {number}")).collect();
    assert_eq!(server.journal.prompts()[1..], expected);
    assert_eq!(server.journal.times("[[reply:some output]][[gate:never]]"), 1, "not run again");
    assert!(!process::is_alive(agent), "the old agent is gone");
    let settled = server.frames_of_kind("work", "greenroom/turn_settled");
    let of_cut = settled.iter().filter(|frame| frame["task"] == running["id"]);
    assert_eq!(of_cut.count(), 1, "settled exactly once");
}

/// I2, I9: a crash changes no task that had ended, and leaves a sound database.
#[test]
fn kill_changes_no_history() {
    let mut server = Server::usual();
    let done = server.complete("work", "[[reply:done]][[tool]]");
    let failed = server.turn("work", "[[error:-32602:no]]");
    let cancelled = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&cancelled).expect(202);
    let cancelled = server.finish_as(&cancelled, "cancelled");
    let group = server.group("work");
    server.kill();
    let check: String =
        server.database().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    server.boot();
    for task in [&done, &failed, &cancelled] {
        assert_eq!(server.task(task), *task);
    }
    let after = server.group("work");
    for name in ["agent", "session_id", "title", "metadata", "created_at", "queue_length"] {
        assert_eq!(after[name], group[name], "{name}");
    }
    server.complete("work", "goes on");
}

/// SEEDS TD-6: digests of another version, or that are gone, are made again by the next server, as
/// they were. One that cannot be read is, when its group has something to do.
#[test]
fn digests_are_made_again() {
    let mut server = Server::usual();
    let groups = ["older", "gone", "damaged"];
    for group in groups {
        server.complete(group, "[[reply:hello]][[tool]][[usage:9:100]]");
        server.turn(group, "[[die:7]]");
    }
    server.terminate();
    server.wait_exit();
    let told = |server: &Server| -> Vec<(String, Vec<String>)> {
        let database = server.database();
        let sql = "SELECT groups.id, digest_version || heads.digest || carry || run_digest, \
                   runs.digest, turns.digest FROM groups \
                   JOIN heads USING (no) JOIN runs USING (no) \
                   JOIN turns ON turns.key >> 36 = no ORDER BY groups.no, runs.id, turns.key";
        let mut found = database.prepare(sql).unwrap();
        let read = |row: &rusqlite::Row<'_>| {
            Ok((row.get(0)?, (1..4).map(|at| row.get(at)).collect::<Result<_, _>>()?))
        };
        found.query_map([], read).unwrap().filter_map(Result::ok).collect()
    };
    let sound = told(&server);
    assert!(sound.len() >= 2 * groups.len(), "{sound:#?}");
    let database = server.writable_database();
    for (group, sql) in [
        ("older", "UPDATE heads SET digest_version = 0, digest = '{}' WHERE no = $no"),
        ("older", "UPDATE runs SET digest = NULL WHERE no = $no"),
        ("gone", "UPDATE heads SET digest_version = NULL, digest = NULL WHERE no = $no"),
        ("gone", "DELETE FROM turns WHERE key >> 36 = $no"),
        ("damaged", "UPDATE heads SET carry = '{' WHERE no = $no"),
    ] {
        let no = format!("(SELECT no FROM groups WHERE id = '{group}')");
        assert!(database.execute(&sql.replace("$no", &no), []).unwrap() > 0, "{group}: {sql}");
    }
    drop(database);
    server.boot();
    let idle = |rows: Vec<(String, Vec<String>)>| -> Vec<_> {
        rows.into_iter().filter(|(group, _)| group != "damaged").collect()
    };
    let expected = idle(sound);
    eventually("the digests as they were", &server.log, || {
        (idle(told(&server)) == expected).then_some(())
    });
    server.complete("damaged", "again");
}

/// I2, RELIABILITY 1: kills at many moments lose no accepted turn, and run none twice.
#[test]
fn kills_at_many_moments() {
    // Two interruptions in a row hold a group otherwise.
    let mut server = Setup::new().text("defaults", "on_interrupt", "continue").start();
    let mut accepted = Vec::new();
    for round in 0..6 {
        for number in 0..4 {
            let text = format!("turn {round}.{number}");
            accepted.push((server.submit("work", &text), text));
        }
        if round % 2 == 0 {
            // Some rounds die at once, in whatever step they are; others after some work.
            let place = accepted.len() - 3;
            server.finish(&accepted[place].0);
        }
        server.kill_and_boot();
    }
    for (task, text) in &accepted {
        let ended = server.finish(task);
        let times = server.journal.times(text);
        match ended["state"].as_str().unwrap() {
            "completed" => assert_eq!(times, 1, "{ended}"),
            "interrupted" => assert!(times <= 1, "{times} times: {ended}"),
            other => panic!("{other}: {ended}\n{}", server.log.tail()),
        }
    }
    let interrupted =
        accepted.iter().filter(|(task, _)| server.task(task)["state"] == "interrupted");
    assert!(interrupted.count() <= 6, "at most one a kill");
    server.journal.assert_one_at_a_time();
}

/// RELIABILITY 1, "claimed": a task whose agent was still starting goes back to the head of the
/// queue, and is sent once.
#[test]
fn claimed_task_goes_back_to_the_head() {
    let mut server = Setup::new().agent("slow", &["--gate-initialize", "start"]).start();
    server.put("/v1/groups/work", &json!({ "agent": "slow" })).expect(201);
    let first = server.submit("work", "first");
    let second = server.submit("work", "second");
    server.journal.wait_gate("start");
    let agent = server.journal.agent_pid();
    server.kill_and_boot();
    eventually("the leftover's end", &server.log, || (!process::is_alive(agent)).then_some(()));
    server.journal.open_gate("start");
    server.finish_as(&first, "completed");
    server.finish_as(&second, "completed");
    assert_eq!(server.journal.prompts(), ["first", "second"]);
}

/// DQ-11, F4: a task whose agent does not come up in the whole drain was not failed by that: it
/// keeps its place and runs after the next start.
#[test]
fn claimed_task_survives_the_drain() {
    let setup = Setup::new().agent("slow", &["--gate-initialize", "start"]);
    let mut server = setup.text("server", "drain_timeout", "1s").start();
    server.put("/v1/groups/work", &json!({ "agent": "slow" })).expect(201);
    let first = server.submit("work", "first");
    let second = server.submit("work", "second");
    server.journal.wait_gate("start");
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    server.journal.open_gate("start");
    server.boot();
    server.finish_as(&first, "completed");
    server.finish_as(&second, "completed");
    assert_eq!(server.journal.prompts(), ["first", "second"]);
}

/// DQ-11, F4: after SIGTERM submits get 503 with `Retry-After`, the running turn ends in its own
/// time, nothing more is claimed, the exit code is 0, and the queue is intact at the next start.
#[test]
fn terminate_drains() {
    let mut server = Setup::new().text("server", "drain_timeout", "25s").start();
    let running = server.submit("work", "[[gate:go]][[reply:in its own time]]");
    let mut queued = vec![server.submit("work", "queued 0")];
    server.journal.wait_gate("go");
    server.terminate();
    let log = server.log.clone();
    let refused = eventually("a refusal in the drain", &log, || {
        let body = json!({ "prompt": format!("queued {}", queued.len()) });
        let reply = server.post(TURNS, &body);
        if reply.status == 202 {
            queued.push(reply.json());
            return None;
        }
        Some(reply)
    });
    refused.any_problem(503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(server.get("/readyz").status, 503, "not ready in the drain");
    assert_eq!(server.task(&running)["state"], "running", "reads are still answered");
    server.journal.open_gate("go");
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(0), "{}", server.log.tail());
    assert_eq!(server.journal.prompts().len(), 1, "nothing was claimed in the drain");
    server.boot();
    let ended = server.task(&running);
    assert_eq!(ended["state"], "completed", "{ended}");
    assert_eq!(ended["text"], "in its own time");
    for task in &queued {
        server.finish_as(task, "completed");
    }
    let expected: Vec<String> =
        (0..queued.len()).map(|number| format!("queued {number}")).collect();
    assert_eq!(server.journal.prompts()[1..], expected);
}

/// DQ-11, F4: a turn that outlasts the drain is cancelled; the exit code is 0 all the same, and
/// no agent is left.
#[test]
fn drain_has_an_end() {
    let mut server = Setup::new().text("server", "drain_timeout", "1s").start();
    let running = server.submit("work", "[[gate:never]]");
    let queued = server.submit("work", "queued");
    server.journal.wait_gate("never");
    let agent = server.journal.agent_pid();
    server.terminate();
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(0), "{}", server.log.tail());
    within(ORPHANED, "the agent's end", &server.log, || (!process::is_alive(agent)).then_some(()));
    server.boot();
    let ended = server.finish(&running);
    let state = ended["state"].as_str().unwrap();
    assert!(TERMINAL.contains(&state) && state != "completed", "{ended}");
    server.finish_as(&queued, "completed");
    assert_eq!(server.journal.prompts(), ["[[gate:never]]", "queued"]);
}

/// DQ-11: SIGTERM of an idle server ends it at once, with its resident agents.
#[test]
fn terminate_when_idle() {
    let mut server = Server::usual();
    server.complete("work", "done");
    let agent = server.journal.agent_pid();
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    within(ORPHANED, "the agent's end", &server.log, || (!process::is_alive(agent)).then_some(()));
}

/// F4: a second SIGTERM in the drain does not make it a crash: the queue is intact.
#[test]
fn terminate_twice() {
    let mut server = Setup::new().text("server", "drain_timeout", "2s").start();
    server.submit("work", "[[gate:never]]");
    let queued = server.submit("work", "queued");
    server.journal.wait_gate("never");
    server.terminate();
    server.terminate();
    server.wait_exit();
    server.boot();
    server.finish_as(&queued, "completed");
}

/// I10, AM-42, F9: after kill -9 of the server nothing that the agent started is alive within
/// 5 s, neither what left by `setsid` nor what was double-forked.
#[test]
fn kill_leaves_no_orphans() {
    let mut server = Server::usual();
    let mut doomed = Doomed::reported(&server.complete("work", "[[spawn-orphans]]"));
    doomed.0.push(server.journal.agent_pid());
    server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    assert!(doomed.all_live(), "a settled turn ends nothing");
    server.kill();
    within(ORPHANED, "the end of all processes", &server.log, || doomed.all_gone().then_some(()));
}

/// I10: the end of a run, by an agent's death, ends what the agent had started.
#[test]
fn death_of_the_agent_leaves_no_orphans() {
    let server = Server::usual();
    let cut = server.submit("work", "[[spawn-orphans]][[gate:go]][[die:3]]");
    server.journal.wait_gate("go");
    server.journal.open_gate("go");
    let cut = server.finish_as(&cut, "interrupted");
    let doomed = Doomed::reported(&cut);
    within(ORPHANED, "the end of all processes", &server.log, || doomed.all_gone().then_some(()));
    server.complete("work", "next");
}

/// I10, F9: after kill -9 of the process between server and agent the whole tree is gone too; the
/// turn is `interrupted`, and the next one runs.
#[test]
fn death_of_the_keeper_leaves_no_orphans() {
    let server = Server::usual();
    let mut doomed = Doomed::reported(&server.complete("work", "[[spawn-orphans]]"));
    let agent = server.journal.agent_pid();
    doomed.0.push(agent);
    let cut = server.submit("work", "[[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    let keeper = process::parent(agent);
    assert_ne!(keeper, server.pid(), "the agent has a keeper of its own");
    process::signal(keeper, Signal::KILL);
    within(ORPHANED, "the end of all processes", &server.log, || doomed.all_gone().then_some(()));
    server.finish_as(&cut, "interrupted");
    server.complete("work", "next");
}

/// DQ-11: reads are answered all through the drain, also of groups that nobody asked for before.
#[test]
fn reads_are_answered_in_the_drain() {
    let mut server = Setup::new().text("server", "drain_timeout", "25s").start();
    server.complete("asleep", "one");
    server.kill_and_boot();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    server.terminate();
    server.log.wait("the drain", |line| line.contains("draining"));
    assert_eq!(server.group("asleep")["id"], "asleep");
    assert_eq!(server.frames_of_kind("asleep", "greenroom/task_ended").len(), 1);
    assert_eq!(server.task(&running)["state"], "running");
    server.journal.open_gate("go");
    assert_eq!(server.wait_exit().code(), Some(0));
}
