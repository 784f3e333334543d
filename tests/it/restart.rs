//! The server ends, by kill -9 or SIGTERM, and restarts on the same data.

use std::time::{Duration, Instant};

use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::json;

use crate::support::{Server, Setup, eventually, process, server::id, within};

/// The longest time that a process may survive its run (I10).
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

const TURNS: &str = "/v1/groups/work/turns";

/// I2, I7, I8, I9, R-1: after kill -9 the running turn is `interrupted` and not run again; the
/// queued turns survive and run in order, once. Ended tasks and the database are as they were.
#[test]
fn kill_interrupts_the_running_turn_and_keeps_the_queue() {
    let mut server = Server::usual();
    let ended = [
        server.complete("work", "[[reply:done]][[tool]]"),
        server.turn("work", "[[error:-32602:no]]"),
        {
            let cancelled = server.submit("work", "[[gate:cancelled]]");
            server.journal.wait_gate("cancelled");
            server.cancel(&cancelled).expect(202);
            server.finish_as(&cancelled, "cancelled")
        },
    ];
    let prompt = "[[reply:some output]][[gate:never]]";
    let running = server.submit("work", prompt);
    let texts = [0, 1, 2, 3, 4].map(|number| format!("turn {number}"));
    let queued = texts.each_ref().map(|text| server.submit("work", text));
    server.journal.wait_gate("never");
    let (agent, group) = (server.journal.agent_pid(), server.group("work"));
    server.kill();
    let check: String =
        server.database().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    server.boot();
    let interrupted = server.finish_as(&running, "interrupted");
    assert_eq!(interrupted["stop_reason"], "_server_restart", "{interrupted}");
    assert_eq!(interrupted["interrupted"]["cause"], "server_restart", "{interrupted}");
    assert!(interrupted["interrupted"]["side_effects"].is_string(), "{interrupted}");
    queued.iter().for_each(|task| _ = server.finish_as(task, "completed"));
    assert_eq!(server.journal.prompts()[4..], texts);
    assert_eq!(server.journal.times(prompt), 1, "not run again");
    assert!(!process::is_alive(agent), "the old agent is gone");
    let settled = server.frames_of_kind("work", "greenroom/turn_settled");
    let of_interrupted = settled.iter().filter(|frame| frame["task"] == running["id"]);
    assert_eq!(of_interrupted.count(), 1, "settled exactly once");
    ended.iter().for_each(|task| assert_eq!(server.task(task), *task));
    let after = server.group("work");
    for name in ["agent", "session_id", "title", "metadata", "created_at"] {
        assert_eq!(after[name], group[name], "{name}");
    }
}

/// I14: readers of a group that sleeps start no actor, as that would adopt the group in its next
/// epoch. Their streams get what the actor stores that a later turn starts.
#[test]
fn reading_a_group_that_sleeps_does_not_wake_it() {
    let mut server = Server::usual();
    let task = server.complete("work", "[[reply:before]]");
    server.restart();
    let epoch = |server: &Server| -> i64 {
        let sql = "SELECT epoch FROM heads";
        server.database().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let asleep = epoch(&server);
    let run = server.get("/v1/groups/work/runs").expect(200)["items"][0]["id"].clone();
    let resources = " /frames /tasks /turns /runs /segments /compactions /snapshot /digest";
    for resource in resources.split(' ') {
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

/// R-1, "claimed", DQ-11, F4: if the server is killed, or its drain ends, while the agent of a task
/// still starts, the task keeps its place at the head of the queue, and is sent once.
#[test]
fn a_claimed_task_returns_to_the_head_of_the_queue() {
    let setup = Setup::new().agent("slow", &["--gate-initialize", "start"]);
    let mut server = setup.text("server", "drain_timeout", "1s").start();
    server.put("/v1/groups/work", &json!({ "agent": "slow" })).expect(201);
    let tasks = ["first", "second"].map(|prompt| server.submit("work", prompt));
    server.journal.wait_gate("start");
    let mut agents = vec![server.journal.agent_pid()];
    server.kill_and_boot();
    server.journal.wait("another agent at the gate", |event| {
        event["event"] == "gate" && event["pid"] != agents[0]
    });
    agents.push(server.journal.agent_pid());
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    let is_gone = |agent: &u32| !process::is_alive(*agent);
    eventually("the leftovers' end", &server.log, || agents.iter().all(is_gone).then_some(()));
    server.journal.open_gate("start");
    server.boot();
    tasks.iter().for_each(|task| _ = server.finish_as(task, "completed"));
    assert_eq!(server.journal.prompts(), ["first", "second"]);
}

/// DQ-11, F4: after SIGTERM the answer to a submit is 503 with `Retry-After`, reads are answered,
/// also of groups that are not loaded, the running turn may complete, no other task is claimed, the
/// exit code is 0, and the queue is intact at the next start. SIGTERM ends an idle server
/// immediately, with its resident agents.
#[test]
fn sigterm_drains_the_running_turn_and_keeps_the_queue() {
    const DRAIN: Duration = Duration::from_secs(25);
    let mut server = Setup::new().text("server", "drain_timeout", "25s").start();
    server.complete("asleep", "one");
    server.kill_and_boot();
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
    refused.problem(503, "draining");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(server.get("/readyz").status, 503, "not ready during the drain");
    assert_eq!(server.group("asleep")["id"], "asleep");
    assert_eq!(server.frames_of_kind("asleep", "greenroom/task_ended").len(), 1);
    assert_eq!(server.task(&running)["state"], "running", "reads are still answered");
    server.journal.open_gate("go");
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    assert_eq!(server.journal.prompts().len(), 2, "no task was claimed during the drain");
    server.boot();
    assert_eq!(server.finish_as(&running, "completed")["text"], "completed in the drain");
    queued.iter().for_each(|task| _ = server.finish_as(task, "completed"));
    let expected: Vec<String> =
        (0..queued.len()).map(|number| format!("queued {number}")).collect();
    assert_eq!(server.journal.prompts()[2..], expected);
    let (agent, began) = (server.journal.agent_pid(), Instant::now());
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    assert!(began.elapsed() < DRAIN && !process::is_alive(agent), "{:?}", began.elapsed());
}

/// DQ-11, F4: a turn that exceeds the drain timeout is cancelled; the exit code is still 0, no
/// agent is left, and the queue is intact. A second SIGTERM ends the drain at once, and loses no
/// more.
#[test]
fn the_drain_ends_after_its_timeout_or_at_a_second_signal() {
    for (timeout, signals) in [("1s", 1), ("20s", 2)] {
        let mut server = Setup::new().text("server", "drain_timeout", timeout).start();
        let running = server.submit("work", "[[gate:never]]");
        let queued = server.submit("work", "queued");
        server.journal.wait_gate("never");
        let agent = server.journal.agent_pid();
        server.terminate();
        if signals == 2 {
            server.log.wait("the drain", |line| line.contains("draining"));
            // A repeat within half a second counts as the first.
            eventually("the second signal", &server.log, || {
                server.terminate();
                server.log.lines().iter().any(|line| line.contains("second signal")).then_some(())
            });
        }
        assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
        within(ORPHAN_TIMEOUT, "the agent's end", &server.log, || {
            (!process::is_alive(agent)).then_some(())
        });
        server.boot();
        let ended = server.finish(&running);
        assert_ne!(ended["state"], "completed", "{ended}");
        server.finish_as(&queued, "completed");
        assert_eq!(server.journal.prompts(), ["[[gate:never]]", "queued"]);
    }
}

/// F4: without a terminal, SIGHUP leaves the server and its turn alone, and so do the user signals;
/// SIGQUIT drains.
#[test]
fn other_signals_end_nothing_and_sigquit_drains() {
    let mut server = Setup::new().under(&["setsid"]).start();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    for (signal, name) in
        [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")]
    {
        process::signal(server.pid(), signal);
        let is_ignored = |line: &str| line.contains("signal ignored") && line.contains(name);
        server.log.wait("the ignored signal", is_ignored);
    }
    process::signal(server.pid(), Signal::QUIT);
    server.log.wait("the drain", |line| line.contains("draining") && line.contains("SIGQUIT"));
    server.journal.open_gate("go");
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    server.boot();
    assert_eq!(server.task(&running)["state"], "completed");
}

/// F4: a server whose terminal is closed drains, as after SIGTERM.
#[test]
fn a_closed_terminal_drains_the_server() {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags).unwrap();
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let with_terminal = format!("exec setsid -c \"$@\" < {name}");
    let mut server = Setup::new().under(&["sh", "-c", &with_terminal, "sh"]).start();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    drop(terminal);
    server.log.wait("the drain", |line| line.contains("draining") && line.contains("SIGHUP"));
    server.journal.open_gate("go");
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    server.home.wrapper.clear();
    server.boot();
    assert_eq!(server.task(&running)["state"], "completed");
}
