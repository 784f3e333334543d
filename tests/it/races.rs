//! Two things at once: one conditional commit decides, the first wins, the loser is told
//! (RELIABILITY 2).

use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::server::{TERMINAL, id};
use crate::support::{Server, Setup, eventually, millis, process};

/// How often each race is run.
const ROUNDS: usize = 20;

/// Does both at once; gives what each gave.
fn at_once<A: Send, B: Send>(
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
/// and settled (I8), and that a task that was never started was never sent.
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

/// Milliseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// Checks a cancel's answer against the outcome.
#[track_caller]
fn assert_agrees(status: u16, state: &str) {
    match status {
        202 => assert!(["cancelled", "completed"].contains(&state), "202, {state}"),
        409 => assert_eq!(state, "completed", "the cancel came too late"),
        other => panic!("{other}"),
    }
}

/// Cancel × response: whichever is first, there is one outcome, and the next turn runs.
#[test]
fn cancel_and_response() {
    let server = Server::usual();
    let mut outcomes = HashSet::new();
    for round in 0..ROUNDS {
        let gate = format!("g{round}");
        let prompt = format!("[[reply:x]][[gate:{gate}]]");
        let task = server.submit("work", &prompt);
        server.journal.wait_gate(&gate);
        let (reply, ()) = at_once(|| server.cancel(&task), || server.journal.open_gate(&gate));
        let state = assert_one_outcome(&server, &task, &prompt);
        assert_agrees(reply.status, &state);
        outcomes.insert(state);
    }
    server.complete("work", "after the races");
    server.journal.assert_one_at_a_time();
    assert_eq!(server.journal.events_named("start").len(), 1, "{outcomes:?}");
}

/// Cancel × START: the turn before ends just as the next one is cancelled.
#[test]
fn cancel_and_start() {
    let server = Server::usual();
    for round in 0..ROUNDS {
        let gate = format!("g{round}");
        let before = server.submit("work", &format!("[[gate:{gate}]]"));
        let prompt = format!("next {round}");
        let task = server.submit("work", &prompt);
        let last = server.submit("work", "last");
        server.journal.wait_gate(&gate);
        let (reply, ()) = at_once(|| server.cancel(&task), || server.journal.open_gate(&gate));
        assert_agrees(reply.status, &assert_one_outcome(&server, &task, &prompt));
        server.finish_as(&before, "completed");
        server.finish_as(&last, "completed");
    }
    server.journal.assert_one_at_a_time();
}

/// Claim × cancel: the agent becomes ready just as its task is cancelled.
#[test]
fn claim_and_cancel() {
    let gates: Vec<String> = (0..6).map(|round| format!("start-{round}")).collect();
    let mut setup = Setup::new();
    for gate in &gates {
        setup = setup.agent(gate, &["--gate-initialize", gate]);
    }
    let server = setup.start();
    for gate in &gates {
        server.make(gate, gate, "");
        let prompt = format!("of {gate}");
        let task = server.submit(gate, &prompt);
        server.journal.wait_gate(gate);
        let (reply, ()) = at_once(|| server.cancel(&task), || server.journal.open_gate(gate));
        assert_agrees(reply.status, &assert_one_outcome(&server, &task, &prompt));
        server.complete(gate, "next");
    }
}

/// Retry × cancel: the backoff ends just as its task is cancelled.
#[test]
fn retry_and_cancel() {
    let server = Setup::new().retries("5ms").start();
    for round in 0..ROUNDS {
        let prompt = format!("{round}[[times:2:die:1]][[reply:fine]]");
        let task = server.submit("work", &prompt);
        eventually("an attempt that failed", &server.log, || {
            let settled = server.task_frames(&task, "greenroom/turn_settled");
            (round % 2 < settled.len()).then_some(())
        });
        let reply = server.cancel(&task);
        let state = assert_one_outcome(&server, &task, &prompt);
        assert_agrees(reply.status, &state);
        assert!(server.task(&task)["attempt"].as_u64().unwrap() <= 3);
        // So many deaths in a row are a crash loop, which is another test's.
        server.post("/v1/groups/work/resume", &json!({})).expect(202);
        // So that the deaths are no crash loop.
        server.complete("work", "between the races");
    }
    server.journal.assert_one_at_a_time();
}

/// Submit × delete: what was accepted ends, what was not leaves nothing.
#[test]
fn submit_and_delete() {
    let server = Server::usual();
    for round in 0..ROUNDS {
        let group = format!("g{round}");
        let path = format!("/v1/groups/{group}");
        server.complete(&group, &format!("first of {group}"));
        let prompt = format!("racer of {group}");
        let body = json!({ "prompt": prompt });
        let (reply, deleted) =
            at_once(|| server.post(&format!("{path}/turns"), &body), || server.delete(&path));
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

/// Submit × SIGTERM: every task that was accepted is there after the next start, and ends; none
/// runs twice.
#[test]
fn submit_and_terminate() {
    let setup = Setup::new().text("server", "drain_timeout", "20s");
    let mut server = setup.text("defaults", "on_interrupt", "continue").start();
    let mut accepted = Vec::new();
    for round in 0..3 {
        let refused = AtomicBool::new(false);
        let submit = |caller: usize| {
            let mut mine = Vec::new();
            while !refused.load(Ordering::SeqCst) {
                let prompt = format!("{round}.{caller}.{}", mine.len());
                let body = json!({ "prompt": prompt }).to_string();
                let headers = [("Content-Type", "application/json")];
                let path = format!("/v1/groups/c{caller}/turns");
                // Once the server is gone, no answer comes at all.
                match server.try_request("POST", &path, &headers, Some(body.as_bytes())) {
                    Ok(reply) if reply.status == 202 => mine.push((reply.json(), prompt)),
                    Ok(reply) => {
                        assert!([503, 429].contains(&reply.status), "{reply:?}");
                        refused.store(reply.status == 503, Ordering::SeqCst);
                    }
                    Err(_) => refused.store(true, Ordering::SeqCst),
                }
            }
            mine
        };
        thread::scope(|scope| {
            let submit = &submit;
            let callers: Vec<_> = (0..3).map(|n| scope.spawn(move || submit(n))).collect();
            eventually("some that ran", &server.log, || {
                (round * 20 + 10 < server.journal.prompts().len()).then_some(())
            });
            server.terminate();
            accepted.extend(callers.into_iter().flat_map(|caller| caller.join().unwrap()));
        });
        assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
        server.boot();
    }
    for (task, prompt) in &accepted {
        let state = assert_one_outcome(&server, task, prompt);
        assert_eq!(state, "completed", "{task}");
        assert_eq!(server.journal.times(prompt), 1, "{task}");
    }
    server.journal.assert_one_at_a_time();
}

/// Submit × same key: of ten clients one makes the task, key after key.
#[test]
fn submit_with_the_same_key() {
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
        let fresh = tasks.iter().filter(|task| task["deduplicated"] == false).count();
        assert_eq!(fresh, 1, "{tasks:?}");
        assert_eq!(assert_one_outcome(&server, &tasks[0], &prompt), "completed");
        assert_eq!(server.journal.times(&prompt), 1);
    }
}

/// Retry over HTTP × the same: two calls without a key make two tasks, and neither is lost.
#[test]
fn two_retries_at_once() {
    let server = Server::usual();
    let failed = server.turn("work", "[[times:1:error:-32602:no]]");
    let (one, other) = at_once(|| server.retry(&failed), || server.retry(&failed));
    let (one, other) = (one.expect(202), other.expect(202));
    assert_ne!(one["id"], other["id"]);
    server.finish_as(&one, "completed");
    server.finish_as(&other, "completed");
}

/// Answer × answer: of ten clients one is taken at its word, and nine are told.
#[test]
fn ten_answers_at_once() {
    let server = Setup::new().asks().start();
    for _ in 0..5 {
        let (task, permission) = server.asked("work", "[[permission]]");
        let options = ["always", "once", "never", "not-now", "cancel"];
        let barrier = Barrier::new(10);
        let answer = &|option| {
            barrier.wait();
            let body = match option {
                "cancel" => json!({ "cancel": true }),
                option => json!({ "option_id": option }),
            };
            (option, server.answer_with(&permission, &body).status)
        };
        let answers: Vec<(&str, u16)> = thread::scope(|scope| {
            let clients: Vec<_> = options
                .into_iter()
                .cycle()
                .take(10)
                .map(|option| scope.spawn(move || answer(option)))
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let won: Vec<&str> = answers
            .iter()
            .filter(|(_, status)| *status == 200)
            .map(|(option, _)| *option)
            .collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|(_, status)| [200, 409].contains(status)), "{answers:?}");
        let said = match won[0] {
            "cancel" => "permission: cancelled -".to_owned(),
            option => format!("permission: selected {option}"),
        };
        assert_eq!(server.finish_as(&task, "completed")["text"], said, "{answers:?}");
    }
    assert_eq!(server.journal.events_named("permission").len(), 5);
}

/// Answer × answer × deadline × death of a permission: exactly one of them counts, every other is
/// told, and what is kept agrees with it.
#[test]
fn answers_deadline_and_death() {
    let setup = Setup::new().asks().text("defaults", "permission_timeout", "150ms");
    let server = setup.text("defaults", "on_interrupt", "continue").start();
    for round in 0..ROUNDS {
        let task = server.submit("work", "[[permission]]");
        let pending = eventually("the permission", &server.log, || {
            let all = server.permissions("group=work");
            all.into_iter().find(|one| one["task"] == task["id"])
        });
        let agent = server.journal.agent_pid();
        // A death, a deadline that is near, or neither.
        if round % 3 == 1 {
            let near = millis(&pending["expires_at"]) - 3;
            eventually("the last of its time", &server.log, || (near <= now()).then_some(()));
        }
        let die = || {
            if round % 3 == 0 {
                process::signal(agent, Signal::KILL);
            }
        };
        let (once, (never, ())) = at_once(
            || server.answer(&pending, "once"),
            || at_once(|| server.answer(&pending, "never"), die),
        );
        let ended = server.finish(&task);
        let state = ended["state"].as_str().unwrap();
        assert!(TERMINAL.contains(&state), "{ended}");
        let kept = server.permission(&pending);
        let statuses = [once.status, never.status];
        let won = statuses.iter().filter(|status| **status == 200).count();
        assert!(statuses.iter().all(|status| [200, 409, 410].contains(status)), "{statuses:?}");
        match kept["state"].as_str().unwrap() {
            "selected" => {
                assert_eq!(won, 1, "{statuses:?}: {kept}");
                let winner = if once.status == 200 { "once" } else { "never" };
                assert_eq!(kept["selected"], winner, "{kept}");
            }
            "expired" | "void" => assert_eq!(won, 0, "{statuses:?}: {kept}"),
            other => panic!("{other}: {kept}"),
        }
        let resolved = server.task_frames(&task, "greenroom/permission_resolved");
        assert_eq!(resolved.len(), 1, "{resolved:?}");
    }
}
