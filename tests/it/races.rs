//! Simultaneous requests: one conditional commit decides, the first wins, and the loser gets an
//! error.

use std::{
    collections::HashSet,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Server, Setup, eventually, millis, process,
    server::{TERMINAL, id},
};

/// The number of rounds of each race; core plays every order of its events.
const ROUNDS: usize = 10;

/// Runs both simultaneously, and returns both results.
fn simultaneously<A: Send, B: Send>(
    one: impl FnOnce() -> A + Send,
    other: impl FnOnce() -> B + Send,
) -> (A, B) {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            barrier.wait();
            other()
        });
        barrier.wait();
        let one = one();
        (one, other.join().unwrap())
    })
}

/// Checks that the task has one outcome (I9), that each of its attempts was sent at most once (I7)
/// and settled (I8), and that the prompt of a task that never started was never sent.
#[track_caller]
fn assert_one_outcome(server: &Server, task: &Value, prompt: &str) -> String {
    let ended = server.finish(task);
    let count = |kind: &str| server.task_frames(task, kind).len();
    let started = count("greenroom/turn_started");
    assert_eq!(count("greenroom/task_ended"), 1, "{ended}\n{}", server.log.tail());
    assert_eq!(count("greenroom/turn_settled"), started, "{ended}\n{}", server.log.tail());
    assert_eq!(count("session/prompt"), started, "{ended}");
    assert!(server.journal.times(prompt) <= started, "{ended}");
    assert_eq!(ended["started_at"].is_null(), started == 0, "{ended}");
    ended["state"].as_str().unwrap().to_owned()
}

/// The current time, in milliseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// R-2, I9: cancel × response: whichever is first, there is one outcome, and the next turn runs.
#[test]
fn a_cancel_that_races_with_the_response_leaves_one_outcome() {
    let server = Server::usual();
    let mut outcomes = HashSet::new();
    for round in 0..ROUNDS {
        let gate = format!("g{round}");
        let prompt = format!("[[reply:x]][[gate:{gate}]]");
        let task = server.submit("work", &prompt);
        server.journal.wait_gate(&gate);
        let (reply, ()) =
            simultaneously(|| server.cancel(&task), || server.journal.open_gate(&gate));
        let state = assert_one_outcome(&server, &task, &prompt);
        match reply.status {
            202 => assert!(["cancelled", "completed"].contains(&&*state), "202, {state}"),
            409 => assert_eq!(state, "completed", "the cancel was too late"),
            other => panic!("{other}"),
        }
        outcomes.insert(state);
    }
    server.complete("work", "after the races");
    server.journal.assert_one_at_a_time();
    assert_eq!(server.journal.events_named("start").len(), 1, "{outcomes:?}");
}

/// Submit × delete: an accepted task ends, and a refused one leaves nothing.
#[test]
fn a_submit_that_races_with_a_delete_ends_or_leaves_nothing() {
    let server = Server::usual();
    for round in 0..ROUNDS {
        let group = format!("g{round}");
        let path = format!("/v1/groups/{group}");
        server.complete(&group, &format!("first of {group}"));
        let prompt = format!("racer of {group}");
        let body = json!({ "prompt": prompt });
        let (reply, deleted) = simultaneously(
            || server.post(&format!("{path}/turns"), &body),
            || server.delete(&path),
        );
        deleted.expect(202);
        server.wait_status(&group, "archived");
        let tasks = server.list(&group, "tasks");
        if reply.status == 202 {
            let state = assert_one_outcome(&server, &reply.json(), &prompt);
            assert!(["completed", "cancelled"].contains(&state.as_str()), "{state}");
            assert_eq!(tasks.len(), 2);
        } else {
            reply.problem(409, "group-archived");
            assert_eq!(tasks.len(), 1, "{tasks:?}");
            assert_eq!(server.journal.times(&prompt), 0);
        }
    }
}

/// I2: submit × SIGTERM: every accepted task is stored, and ends after the next start; none runs
/// twice.
#[test]
fn a_submit_that_races_with_sigterm_is_never_lost() {
    let setup = Setup::new().text("server", "drain_timeout", "20s");
    let mut server = setup.text("defaults", "on_interrupt", "continue").start();
    let refused = AtomicBool::new(false);
    let submit = |caller: usize| {
        let mut accepted = Vec::new();
        while !refused.load(Ordering::SeqCst) {
            let prompt = format!("{caller}.{}", accepted.len());
            let body = json!({ "prompt": prompt }).to_string();
            let headers = [("Content-Type", "application/json")];
            let path = format!("/v1/groups/c{caller}/turns");
            // After the server's exit there is no answer.
            match server.try_request("POST", &path, &headers, Some(body.as_bytes())) {
                Ok(reply) if reply.status == 202 => accepted.push((reply.json(), prompt)),
                Ok(reply) => {
                    assert!([503, 429].contains(&reply.status), "{reply:?}");
                    refused.store(reply.status == 503, Ordering::SeqCst);
                }
                Err(_) => refused.store(true, Ordering::SeqCst),
            }
        }
        accepted
    };
    let accepted: Vec<(Value, String)> = thread::scope(|scope| {
        let submit = &submit;
        let callers: Vec<_> = (0..3).map(|caller| scope.spawn(move || submit(caller))).collect();
        eventually("some completed turns", &server.log, || {
            (10 < server.journal.prompts().len()).then_some(())
        });
        server.terminate();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    server.boot();
    for (task, prompt) in &accepted {
        let state = assert_one_outcome(&server, task, prompt);
        assert_eq!(state, "completed", "{task}");
        assert_eq!(server.journal.times(prompt), 1, "{task}");
    }
    server.journal.assert_one_at_a_time();
}

/// Submit × same key: of ten clients exactly one creates the task, for every key.
#[test]
fn racing_submits_with_one_key_create_one_task() {
    let server = Server::usual();
    for round in 0..5 {
        let prompt = format!("once {round}");
        let body = json!({ "prompt": prompt });
        let key = format!("key {round}");
        let barrier = Barrier::new(10);
        let tasks: Vec<Value> = thread::scope(|scope| {
            let submit = || {
                barrier.wait();
                server.post_once(&key, "/v1/groups/work/turns", &body).expect_any(&[200, 202])
            };
            let clients: Vec<_> = (0..10).map(|_| scope.spawn(submit)).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let ids: HashSet<&str> = tasks.iter().map(id).collect();
        assert_eq!(ids.len(), 1, "{tasks:?}");
        let new = tasks.iter().filter(|task| task["deduplicated"] == false).count();
        assert_eq!(new, 1, "{tasks:?}");
        assert_eq!(assert_one_outcome(&server, &tasks[0], &prompt), "completed");
        assert_eq!(server.journal.times(&prompt), 1);
    }
}

/// Answer × answer × deadline × death of a permission: exactly one of them counts, every other gets
/// an error, and the stored permission matches it.
#[test]
fn racing_answers_deadline_and_death_leave_one_outcome() {
    let setup = Setup::new().asks().text("defaults", "permission_timeout", "150ms");
    let server = setup.text("defaults", "on_interrupt", "continue").start();
    for round in 0..ROUNDS {
        let task = server.submit("work", "[[permission]]");
        let pending = eventually("the permission", &server.log, || {
            let all = server.permissions("group=work");
            all.into_iter().find(|candidate| candidate["task"] == task["id"])
        });
        let agent = server.journal.agent_pid();
        // A death, a near deadline, or neither.
        if round % 3 == 1 {
            let near = millis(&pending["expires_at"]) - 3;
            eventually("the near deadline", &server.log, || (near <= now()).then_some(()));
        }
        let die = || {
            if round % 3 == 0 {
                process::signal(agent, Signal::KILL);
            }
        };
        let (once, (never, ())) = simultaneously(
            || server.answer(&pending, "once"),
            || simultaneously(|| server.answer(&pending, "never"), die),
        );
        let ended = server.finish(&task);
        let state = ended["state"].as_str().unwrap();
        assert!(TERMINAL.contains(&state), "{ended}");
        let stored = server.permission(&pending);
        let statuses = [once.status, never.status];
        let accepted = statuses.iter().filter(|status| **status == 200).count();
        assert!(statuses.iter().all(|status| [200, 409, 410].contains(status)), "{statuses:?}");
        match stored["state"].as_str().unwrap() {
            "selected" => {
                assert_eq!(accepted, 1, "{statuses:?}: {stored}");
                let winner = if once.status == 200 { "once" } else { "never" };
                assert_eq!(stored["selected"], winner, "{stored}");
            }
            "expired" | "void" => assert_eq!(accepted, 0, "{statuses:?}: {stored}"),
            other => panic!("{other}: {stored}"),
        }
        let resolved = server.task_frames(&task, "greenroom/permission_resolved");
        assert_eq!(resolved.len(), 1, "{resolved:?}");
    }
}
