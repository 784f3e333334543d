//! The server ends, by kill -9 or SIGTERM, and restarts on the same data.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Server, Setup, eventually,
    process::{self, KillOnDrop},
    server::{TERMINAL, id},
    within,
};

/// The longest time that a process may survive its run (I10).
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

const TURNS: &str = "/v1/groups/work/turns";

/// I2, I7, I8, R-1: after kill -9 the running turn is `interrupted` and not run again;
/// the queued turns survive and run in order, once.
#[test]
fn kill_interrupts_the_running_turn_and_keeps_the_queue() {
    let mut server = Server::usual();
    let running = server.submit("work", "[[reply:some output]][[gate:never]]");
    let queued: Vec<Value> =
        (0..5).map(|number| server.submit("work", &format!("turn {number}"))).collect();
    server.journal.wait_gate("never");
    let agent = server.journal.agent_pid();
    server.kill_and_boot();
    let interrupted = server.finish_as(&running, "interrupted");
    assert_eq!(interrupted["stop_reason"], "_server_restart", "{interrupted}");
    assert_eq!(interrupted["interrupted"]["cause"], "server_restart", "{interrupted}");
    assert!(interrupted["interrupted"]["side_effects"].is_string(), "{interrupted}");
    for task in &queued {
        server.finish_as(task, "completed");
    }
    let expected: Vec<String> = (0..5).map(|number| format!("turn {number}")).collect();
    assert_eq!(server.journal.prompts()[1..], expected);
    assert_eq!(server.journal.times("[[reply:some output]][[gate:never]]"), 1, "not run again");
    assert!(!process::is_alive(agent), "the old agent is gone");
    let settled = server.frames_of_kind("work", "greenroom/turn_settled");
    let of_interrupted = settled.iter().filter(|frame| frame["task"] == running["id"]);
    assert_eq!(of_interrupted.count(), 1, "settled exactly once");
}

/// I2, I9: a crash changes no ended task, and leaves a sound database.
#[test]
fn kill_changes_no_ended_task() {
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
    server.complete("work", "after the crash");
}

/// I14: readers of a group that sleeps start no actor, as that would adopt the group in its next
/// epoch. Their streams get what the actor stores that a later turn starts.
#[test]
fn reading_a_group_that_sleeps_does_not_wake_it() {
    let mut server = Server::usual();
    let task = server.complete("work", "[[reply:before]]");
    server.terminate();
    server.wait_exit();
    server.boot();
    let epoch = |server: &Server| -> i64 {
        let sql = "SELECT epoch FROM heads";
        server.database().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let asleep = epoch(&server);
    let run = server.get("/v1/groups/work/runs").expect(200)["items"][0]["id"].clone();
    let resources = [
        "",
        "/frames",
        "/tasks",
        "/turns",
        "/runs",
        "/segments",
        "/compactions",
        "/snapshot",
        "/digest",
    ];
    for resource in resources {
        server.get(&format!("/v1/groups/work{resource}")).expect(200);
    }
    server.get(&format!("/v1/tasks/{}?wait=1", id(&task))).expect(200);
    server.get(&format!("/v1/runs/{}/digest", run.as_str().unwrap())).expect(200);
    server.get("/v1/permissions?group=work").expect(200);
    server.get("/v1/digest").expect(200);
    let events = server.events("work", "");
    let seen = events.until_synced();
    assert_eq!(epoch(&server), asleep);

    let task = server.complete("work", "after");
    let live = events.until_task_ended(&task["id"]);
    assert_eq!(epoch(&server), asleep + 1);
    let streamed = seen.iter().chain(&live).filter(|event| event.is_frame()).count();
    assert_eq!(Some(streamed as u64), live.last().unwrap().id, "every frame once");
}

/// TD-6: the next server rebuilds digests that are missing or in another version, unchanged.
/// It rebuilds an unreadable one when its group has work.
#[test]
fn digests_are_rebuilt_after_a_restart() {
    let mut server = Server::usual();
    let groups = ["older", "gone", "damaged"];
    for group in groups {
        server.complete(group, "[[reply:hello]][[tool]][[usage:9:100]]");
        server.turn(group, "[[die:7]]");
    }
    server.terminate();
    server.wait_exit();
    let read_digests = |server: &Server| -> Vec<(String, Vec<String>)> {
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
    let sound = read_digests(&server);
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
        (idle(read_digests(&server)) == expected).then_some(())
    });
    server.complete("damaged", "again");
}

/// I2, R-1: kills at many moments lose no accepted turn, and no turn runs twice.
#[test]
fn kills_at_many_moments_lose_no_turn_and_repeat_none() {
    // Two interruptions in a row hold a group otherwise.
    let mut server = Setup::new().text("defaults", "on_interrupt", "continue").start();
    let mut accepted = Vec::new();
    for round in 0..6 {
        for number in 0..4 {
            let text = format!("turn {round}.{number}");
            accepted.push((server.submit("work", &text), text));
        }
        if round % 2 == 0 {
            // Some rounds are killed immediately, in any step; others after some work.
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
    assert!(interrupted.count() <= 6, "at most one per kill");
    server.journal.assert_one_at_a_time();
}

/// R-1, "claimed": a task whose agent was still starting returns to the head of the
/// queue, and is sent once.
#[test]
fn a_claimed_task_returns_to_the_head_of_the_queue() {
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

/// DQ-11, F4: a task whose agent is not ready before the drain ends does not fail: it keeps its
/// place and runs after the next start.
#[test]
fn a_claimed_task_survives_the_drain() {
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

/// DQ-11, F4: after SIGTERM the answer to a submit is 503 with `Retry-After`, the running turn may
/// complete, no other task is claimed, the exit code is 0, and the queue is intact at the next
/// start.
#[test]
fn sigterm_drains_the_running_turn_and_keeps_the_queue() {
    let mut server = Setup::new().text("server", "drain_timeout", "25s").start();
    let running = server.submit("work", "[[gate:go]][[reply:completed in the drain]]");
    let mut queued = vec![server.submit("work", "queued 0")];
    server.journal.wait_gate("go");
    server.terminate();
    let log = server.log.clone();
    let refused = eventually("a refusal during the drain", &log, || {
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
    assert_eq!(server.get("/readyz").status, 503, "not ready during the drain");
    assert_eq!(server.task(&running)["state"], "running", "reads are still answered");
    server.journal.open_gate("go");
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(0), "{}", server.log.tail());
    assert_eq!(server.journal.prompts().len(), 1, "no task was claimed during the drain");
    server.boot();
    let ended = server.task(&running);
    assert_eq!(ended["state"], "completed", "{ended}");
    assert_eq!(ended["text"], "completed in the drain");
    for task in &queued {
        server.finish_as(task, "completed");
    }
    let expected: Vec<String> =
        (0..queued.len()).map(|number| format!("queued {number}")).collect();
    assert_eq!(server.journal.prompts()[1..], expected);
}

/// DQ-11, F4: a turn that exceeds the drain timeout is cancelled; the exit code is still 0, and no
/// agent is left.
#[test]
fn the_drain_ends_after_its_timeout() {
    let mut server = Setup::new().text("server", "drain_timeout", "1s").start();
    let running = server.submit("work", "[[gate:never]]");
    let queued = server.submit("work", "queued");
    server.journal.wait_gate("never");
    let agent = server.journal.agent_pid();
    server.terminate();
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(0), "{}", server.log.tail());
    within(ORPHAN_TIMEOUT, "the agent's end", &server.log, || {
        (!process::is_alive(agent)).then_some(())
    });
    server.boot();
    let ended = server.finish(&running);
    let state = ended["state"].as_str().unwrap();
    assert!(TERMINAL.contains(&state) && state != "completed", "{ended}");
    server.finish_as(&queued, "completed");
    assert_eq!(server.journal.prompts(), ["[[gate:never]]", "queued"]);
}

/// DQ-11: SIGTERM ends an idle server immediately, with its resident agents.
#[test]
fn sigterm_ends_an_idle_server_immediately() {
    let mut server = Server::usual();
    server.complete("work", "done");
    let agent = server.journal.agent_pid();
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    within(ORPHAN_TIMEOUT, "the agent's end", &server.log, || {
        (!process::is_alive(agent)).then_some(())
    });
}

/// F4: a second SIGTERM during the drain does not cause a crash: the queue is intact.
#[test]
fn a_second_sigterm_keeps_the_queue() {
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

/// I10, AM-42, F9: within 5 s after kill -9 of the server no process of the agent is alive,
/// including those that escaped by `setsid` or a double fork.
#[test]
fn kill_leaves_no_orphans() {
    let mut server = Server::usual();
    let mut orphans = KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    orphans.0.push(server.journal.agent_pid());
    server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    assert!(orphans.all_live(), "a settled turn ends no process");
    server.kill();
    within(ORPHAN_TIMEOUT, "the end of all processes", &server.log, || {
        orphans.all_gone().then_some(())
    });
}

/// I10: the end of a run, by its agent's death, ends the agent's child processes.
#[test]
fn death_of_the_agent_leaves_no_orphans() {
    let server = Server::usual();
    let interrupted = server.submit("work", "[[spawn-orphans]][[gate:go]][[die:3]]");
    server.journal.wait_gate("go");
    server.journal.open_gate("go");
    let interrupted = server.finish_as(&interrupted, "interrupted");
    let orphans = KillOnDrop::reported(&interrupted);
    within(ORPHAN_TIMEOUT, "the end of all processes", &server.log, || {
        orphans.all_gone().then_some(())
    });
    server.complete("work", "next");
}

/// I10, F9: after kill -9 of the shim, the process between server and agent, the whole process
/// tree ends too; the turn is `interrupted`, and the next one runs.
#[test]
fn death_of_the_shim_leaves_no_orphans() {
    let server = Server::usual();
    let mut orphans = KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    let agent = server.journal.agent_pid();
    orphans.0.push(agent);
    let interrupted = server.submit("work", "[[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    let shim = process::parent(agent);
    assert_ne!(shim, server.pid(), "the agent has a shim of its own");
    process::signal(shim, Signal::KILL);
    within(ORPHAN_TIMEOUT, "the end of all processes", &server.log, || {
        orphans.all_gone().then_some(())
    });
    server.finish_as(&interrupted, "interrupted");
    server.complete("work", "next");
}

/// DQ-11: reads are answered during the whole drain, also of groups that are not loaded.
#[test]
fn reads_are_answered_during_the_drain() {
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
