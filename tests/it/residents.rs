//! `limits.resident_agents`: how many agents are kept, and which one is evicted for another (
//! DQ-7).

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

fn with_resident_agents(agents: u32) -> Setup {
    Setup::new().set("limits", "resident_agents", agents)
}

/// Starts a server with one place, held by an idle agent that only SIGKILL ends, after seven
/// seconds, and submits a task of another group, which waits for the place; returns the server, the
/// agent's pid and the task.
fn start_waiting_for_deaf_agent(setup: Setup) -> (Server, u32, Value) {
    let server = setup.deaf_agent("deaf").start();
    server.put("/v1/groups/deaf", &json!({ "agent": "deaf" })).expect(201);
    server.complete("deaf", "x");
    let deaf = server.journal.agent_pid();
    let waiting = server.submit("work", "waiting");
    eventually("a waiting run", &server.log, || (resident(&server)["waiting"] == 1).then_some(()));
    assert!(process::is_alive(deaf), "the evicted agent is still alive");
    (server, deaf, waiting)
}

fn resident(server: &Server) -> Value {
    server.get("/v1/status").expect(200)["resident"].clone()
}

/// Returns the pid of the agent of the group's current run.
fn agent_of(server: &Server, group: &str) -> u32 {
    let runs = server.get(&format!("/v1/groups/{group}/runs?limit=1")).expect(200);
    u32::try_from(runs["items"][0]["pid"].as_u64().unwrap()).unwrap()
}

/// DQ-7: the longest idle agent is evicted, the others stay; its session is restored later.
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
}

/// DQ-7: a busy agent is never evicted; the waiting group continues when a busy agent has finished.
#[test]
fn a_busy_agent_is_never_evicted() {
    let server = with_resident_agents(2).start();
    let a = server.submit("a", "[[gate:a]]");
    server.journal.wait_gate("a");
    let b = server.submit("b", "[[gate:b]]");
    server.journal.wait_gate("b");
    let (pid_a, pid_b) = (agent_of(&server, "a"), agent_of(&server, "b"));
    let c = server.submit("c", "c");
    assert_eq!(server.task(&c)["state"], "queued");
    assert!(process::is_alive(pid_a) && process::is_alive(pid_b));
    server.journal.open_gate("b");
    server.finish_as(&b, "completed");
    server.finish_as(&c, "completed");
    assert!(process::is_alive(pid_a) && !process::is_alive(pid_b));
    server.journal.open_gate("a");
    server.finish_as(&a, "completed");
    assert_eq!(agent_of(&server, "a"), pid_a);
    assert_eq!(server.journal.times("[[gate:a]]"), 1);
}

/// DQ-7: a permission that an agent requests outside of a turn does not prevent its eviction for a
/// group with work; it becomes void with the run.
#[test]
fn a_permission_outside_of_a_turn_does_not_prevent_eviction() {
    let server = with_resident_agents(1).asks().start();
    let task = server.submit("asks", "[[reply:x]][[answer]][[gate:late]][[permission-open]]");
    server.finish_as(&task, "completed");
    server.journal.open_gate("late");
    let permission = server.wait_pending("asks", 1).remove(0);
    assert!(permission["task"].is_null(), "{permission}");
    server.complete("work", "of another group");
    assert_eq!(server.permission(&permission)["state"], "void");
    server.answer(&permission, "once").problem(410, "void");
    server.complete("asks", "and back");
}

/// DQ-7: two new groups and one idle agent: the new groups run one after another, and the busy
/// agent stays.
#[test]
fn new_groups_share_the_place_of_the_only_idle_agent() {
    let server = with_resident_agents(2).start();
    let busy = server.submit("busy", "[[gate:busy]]");
    server.journal.wait_gate("busy");
    let pid = agent_of(&server, "busy");
    server.complete("idle", "x");
    let newcomers = ["one", "two"].map(|group| server.submit(group, group));
    for newcomer in &newcomers {
        server.finish_as(newcomer, "completed");
    }
    assert!(process::is_alive(pid));
    assert_eq!(resident(&server)["count"], 2);
    server.journal.open_gate("busy");
    server.finish_as(&busy, "completed");
    assert_eq!(server.journal.events_named("start").len(), 4, "no unnecessary run was started");
}

/// DQ-10: with one place for all groups, a group with a long queue does not block the others.
#[test]
fn one_place_is_shared_by_all_groups() {
    let server = with_resident_agents(1).start();
    let mut tasks = vec![server.submit("busy", "[[gate:go]]")];
    server.journal.wait_gate("go");
    tasks.extend((0..3).map(|number| server.submit("busy", &format!("busy {number}"))));
    let other = server.submit("other", "other");
    server.journal.open_gate("go");
    server.finish_as(&other, "completed");
    for task in &tasks {
        server.finish_as(task, "completed");
    }
    let prompts = server.journal.prompts();
    assert_eq!(prompts.iter().position(|text| text == "other"), Some(1), "{prompts:?}");
    assert!(server.frames_of_kind("busy", "greenroom/context_lost").is_empty());
}

/// I10: an idle agent that ignores everything but SIGKILL is evicted too.
#[test]
fn an_agent_that_ignores_sigterm_is_evicted_too() {
    let (server, deaf, waiting) = start_waiting_for_deaf_agent(with_resident_agents(1));
    // Its group requests the place again immediately, and is next in line.
    let again = server.submit("deaf", "again");
    server.finish_as(&waiting, "completed");
    assert!(!process::is_alive(deaf));
    server.finish_as(&again, "completed");
    assert_eq!(server.journal.prompts(), ["x", "waiting", "again"]);
    assert!(server.frames_of_kind("deaf", "greenroom/context_lost").is_empty());
}

/// A task that waits for a place can be cancelled; its run stops waiting, and the place is not
/// lost.
#[test]
fn a_task_that_waits_for_a_place_can_be_cancelled() {
    let (server, deaf, waiting) = start_waiting_for_deaf_agent(with_resident_agents(1));
    server.cancel(&waiting).expect(202);
    server.finish_as(&waiting, "cancelled");
    eventually("no waiting run", &server.log, || (resident(&server)["waiting"] == 0).then_some(()));
    assert!(process::is_alive(deaf), "the place was not free yet");
    server.complete("work", "next");
    assert_eq!(server.journal.prompts(), ["x", "next"]);
}

/// Stop or delete of a group whose run waits for a place ends the wait.
#[test]
fn stop_and_delete_end_the_wait_for_a_place() {
    let (server, deaf, waiting) = start_waiting_for_deaf_agent(with_resident_agents(1));
    server.post("/v1/groups/work/stop", &json!({})).expect_any(&[200, 202, 204]);
    server.finish_as(&waiting, "cancelled");
    let other = server.submit("other", "other");
    eventually("another waiting run", &server.log, || {
        (resident(&server)["waiting"] == 1 && server.group("work")["current_run"].is_null())
            .then_some(())
    });
    server.delete("/v1/groups/other").expect_any(&[200, 202, 204]);
    server.finish_as(&other, "cancelled");
    eventually("no waiting run", &server.log, || (resident(&server)["waiting"] == 0).then_some(()));
    assert!(process::is_alive(deaf), "the place was not free yet");
    server.complete("work", "next");
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

/// The place of an agent that was killed, or failed to start, is free immediately.
#[test]
fn deaths_and_failed_starts_lose_no_place() {
    let setup = with_resident_agents(1)
        .agent("broken", &["--exit-at-start", "3"])
        .command("missing", "/no/such");
    let server = setup.start();
    for group in ["broken", "missing"] {
        server.put(&format!("/v1/groups/{group}"), &json!({ "agent": group })).expect(201);
    }
    for round in 0..3 {
        server.complete("work", &format!("round {round}"));
        process::signal(agent_of(&server, "work"), Signal::KILL);
        for group in ["broken", "missing"] {
            let failed = server.turn(group, "x");
            assert_eq!(failed["state"], "failed", "{failed}");
        }
    }
    eventually("all places free", &server.log, || (resident(&server)["count"] == 0).then_some(()));
}

/// The time that a run waits for its place does not count for `start_timeout`.
#[test]
fn the_wait_for_a_place_is_not_part_of_the_start() {
    const START: Duration = Duration::from_secs(5);
    let setup = with_resident_agents(1).text("agents.scripted", "start_timeout", "5s");
    let (server, _, waiting) = start_waiting_for_deaf_agent(setup);
    let began = Instant::now();
    server.finish_as(&waiting, "completed");
    assert!(START < began.elapsed(), "it waited only {:?}", began.elapsed());
}
