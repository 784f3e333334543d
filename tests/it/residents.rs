//! `limits.resident_agents`: how many agents are kept, and which one is evicted for another (DQ-7).
//! The pool's decisions are tested in actors/core/tests/rules/pool.rs, its actor in
//! actors/tests/pool.rs.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process, setup::scripted_agent};

fn with_resident_agents(agents: u32) -> Setup {
    Setup::new().set("limits", "resident_agents", agents)
}

/// Starts a server with one place, held by an idle agent that only SIGKILL ends, after seven
/// seconds, and submits a task of another group, which waits for the place; returns the server, the
/// agent's pid and the task.
fn start_waiting_for_deaf_agent(setup: Setup) -> (Server, u32, Value) {
    let script = format!("trap '' TERM; exec {} --outlives-eof", scripted_agent().display());
    let setup = setup.agent("deaf", &["-c", &script]);
    let server = setup.text("agents.deaf", "command", "/bin/sh").start();
    server.create_group("deaf", "deaf", "");
    server.complete("deaf", "x");
    let deaf = server.journal.agent_pid();
    let waiting = server.submit("work", "waiting");
    wait_waiting(&server, 1);
    assert!(process::is_alive(deaf), "the evicted agent is still alive");
    (server, deaf, waiting)
}

fn resident(server: &Server) -> Value {
    server.get("/v1/status").expect(200)["resident"].clone()
}

/// Waits until this number of runs wait for a place.
#[track_caller]
fn wait_waiting(server: &Server, runs: usize) {
    let waits = || (resident(server)["waiting"] == runs).then_some(());
    eventually("the runs that wait for a place", &server.log, waits);
}

/// Returns the pid of the agent of the group's current run.
fn agent_of(server: &Server, group: &str) -> u32 {
    let runs = server.get(&format!("/v1/groups/{group}/runs?limit=1")).expect(200);
    u32::try_from(runs["items"][0]["pid"].as_u64().unwrap()).unwrap()
}

/// DQ-7: the longest idle agent is evicted, the others stay; its session is restored later. A busy
/// agent is never evicted; groups that wait run one after another in the place of the only idle
/// one.
#[test]
fn the_longest_idle_agent_is_evicted() {
    let server = with_resident_agents(2).start();
    for group in ["a", "b", "c"] {
        server.complete(group, &format!("first of {group}"));
    }
    let (b, c) = (agent_of(&server, "b"), agent_of(&server, "c"));
    assert!(!process::is_alive(agent_of(&server, "a")), "a was idle for longest");
    assert!(process::is_alive(b) && process::is_alive(c));
    assert_eq!(resident(&server), json!({ "count": 2, "cap": 2, "waiting": 0 }));

    server.complete("c", "second of c");
    server.complete("a", "second of a");
    assert!(!process::is_alive(b), "b was idle for longest");
    assert_eq!(agent_of(&server, "c"), c, "c was used more recently");
    assert!(process::is_alive(c));
    let resumed = server.journal.events_named("resume");
    assert_eq!(resumed.len(), 1, "{resumed:?}");
    assert_eq!(resumed[0]["session"], server.group("a")["session_id"]);
    assert!(server.frames_of_kind("a", "greenroom/context_lost").is_empty());
    let exits = server.frames_of_kind("a", "greenroom/run_exited");
    assert_eq!(exits.len(), 1, "{exits:?}");
    assert_eq!(exits[0]["payload"]["reason"], "stopped", "{exits:?}");

    let a = server.submit("a", "[[gate:a]]");
    server.journal.wait_gate("a");
    let c = server.submit("c", "[[gate:c]]");
    server.journal.wait_gate("c");
    let (pid_a, pid_c) = (agent_of(&server, "a"), agent_of(&server, "c"));
    let starts = server.journal.events_named("start").len();
    let newcomers = ["one", "two"].map(|group| server.submit(group, group));
    newcomers.iter().for_each(|task| assert_eq!(server.task(task)["state"], "queued"));
    assert!(process::is_alive(pid_a) && process::is_alive(pid_c));
    server.journal.open_gate("c");
    server.finish_as(&c, "completed");
    newcomers.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    assert!(process::is_alive(pid_a) && !process::is_alive(pid_c));
    assert_eq!(resident(&server)["count"], 2);
    server.journal.open_gate("a");
    server.finish_as(&a, "completed");
    assert_eq!(agent_of(&server, "a"), pid_a);
    assert_eq!(server.journal.times("[[gate:a]]"), 1);
    assert_eq!(server.journal.events_named("start").len(), starts + 2, "no unnecessary run");
}

/// DQ-10: with one place for all groups, a group with a long queue does not block the others. A
/// permission that an agent requests outside of a turn does not prevent its eviction; it becomes
/// void with the run. The place of an agent that was killed, or failed to start, is free
/// immediately.
#[test]
fn one_place_is_shared_by_all_groups() {
    let setup = with_resident_agents(1).asks().command("missing", "/no/such");
    let server = setup.agent("broken", &["--exit-at-start", "3"]).start();
    let mut tasks = vec![server.submit("busy", "[[gate:go]]")];
    server.journal.wait_gate("go");
    tasks.extend((0..3).map(|number| server.submit("busy", &format!("busy {number}"))));
    let other = server.submit("other", "other");
    server.journal.open_gate("go");
    server.finish_as(&other, "completed");
    tasks.iter().for_each(|task| drop(server.finish_as(task, "completed")));
    let prompts = server.journal.prompts();
    assert_eq!(prompts.iter().position(|text| text == "other"), Some(1), "{prompts:?}");
    assert!(server.frames_of_kind("busy", "greenroom/context_lost").is_empty());

    let task = server.submit("asks", "[[reply:x]][[answer]][[gate:late]][[permission-open]]");
    server.finish_as(&task, "completed");
    server.journal.open_gate("late");
    let permission = server.wait_pending("asks", 1).remove(0);
    assert!(permission["task"].is_null(), "{permission}");
    server.complete("work", "of another group");
    assert_eq!(server.permission(&permission)["state"], "void");
    server.answer(&permission, "once").problem(410, "void");
    server.complete("asks", "and back");

    ["broken", "missing"].iter().for_each(|agent| drop(server.create_group(agent, agent, "")));
    for round in 0..3 {
        server.complete("work", &format!("round {round}"));
        process::signal(agent_of(&server, "work"), Signal::KILL);
        for group in ["broken", "missing"] {
            server.finish_as(&server.submit(group, "x"), "failed");
        }
    }
    eventually("all places free", &server.log, || (resident(&server)["count"] == 0).then_some(()));
}

/// I16, DQ-7: an agent that can restore no session is not stopped for being idle; it is evicted if
/// no other agent can be, and then the loss is reported and `on_interrupt` decides.
#[test]
fn a_context_that_cannot_be_restored_is_kept() {
    let setup = with_resident_agents(2).forgetful().text("defaults", "idle_timeout", "100ms");
    let server = setup.start();
    for (group, on_interrupt) in [("a", "hold"), ("b", "auto")] {
        server.create_group(group, "forgetful", on_interrupt);
        server.complete(group, "one");
        if group == "a" {
            server.complete("restored", "it is idle for less time than the other");
            server.wait_group("restored", "no run", |group| group["current_run"].is_null());
        }
    }
    let (a, b) = (agent_of(&server, "a"), agent_of(&server, "b"));
    assert!(process::is_alive(a) && process::is_alive(b), "idle for longer");

    server.complete("other", "all places are taken by such agents");
    assert!(!process::is_alive(a) && process::is_alive(b), "a was idle for longest");
    let held = server.submit("a", "two");
    server.wait_blocked(&held, "held");
    assert_eq!(server.frames_of_kind("a", "greenroom/context_lost").len(), 1);
    server.resume("a");
    server.finish_as(&held, "completed");
    server.post("/v1/groups/b/stop", &json!({})).expect_any(&[200, 202, 204]);
    server.complete("b", "two");
    assert_eq!(server.frames_of_kind("b", "greenroom/context_lost").len(), 1);
}

/// I10: an idle agent that ignores everything but SIGKILL is evicted too. A cancel of the task, or
/// the stop or the deletion of the group, that waits for its place ends the wait, and no place is
/// lost. The wait does not count for `start_timeout`.
#[test]
fn an_agent_that_ignores_sigterm_is_evicted_too() {
    const START: Duration = Duration::from_secs(4);
    let setup = with_resident_agents(1).text("agents.scripted", "start_timeout", "4s");
    let (server, deaf, waiting) = start_waiting_for_deaf_agent(setup);
    server.cancel(&waiting).expect(202);
    server.finish_as(&waiting, "cancelled");
    wait_waiting(&server, 0);
    let stopped = server.submit("work", "stopped");
    wait_waiting(&server, 1);
    server.post("/v1/groups/work/stop", &json!({})).expect_any(&[200, 202, 204]);
    server.finish_as(&stopped, "cancelled");
    server.wait_group("work", "no run", |group| group["current_run"].is_null());
    let deleted = server.submit("other", "deleted");
    wait_waiting(&server, 1);
    server.delete("/v1/groups/other").expect_any(&[200, 202, 204]);
    server.finish_as(&deleted, "cancelled");
    wait_waiting(&server, 0);
    assert!(process::is_alive(deaf), "the place was not free yet");
    let began = Instant::now();
    let next = server.submit("work", "next");
    wait_waiting(&server, 1);
    // Its group requests the place again immediately, and is next in line.
    let again = server.submit("deaf", "again");
    server.finish_as(&next, "completed");
    assert!(START < began.elapsed(), "it waited only {:?}", began.elapsed());
    assert!(!process::is_alive(deaf));
    server.finish_as(&again, "completed");
    assert_eq!(server.journal.prompts(), ["x", "next", "again"]);
    assert!(server.frames_of_kind("deaf", "greenroom/context_lost").is_empty());
}

/// DQ-11: a server that shuts down while a run waits for a place does not wait for it; the task
/// keeps its position in the queue.
#[test]
fn shutdown_does_not_wait_for_a_place() {
    let setup = with_resident_agents(1).text("server", "drain_timeout", "0s");
    let (mut server, deaf, waiting) = start_waiting_for_deaf_agent(setup);
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    assert!(!process::is_alive(deaf));
    assert_eq!(server.journal.prompts(), ["x"]);
    server.boot();
    server.finish_as(&waiting, "completed");
}
