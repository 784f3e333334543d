//! Many tasks in one group, and many groups with a task: no task is lost, and the order holds
//! (F31). The benchmark measures the time.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    Server, Setup,
    server::{encode, id},
    within,
};

const TURNS: usize = 400;
const CALLERS: usize = 4;
const GROUPS: usize = 60;
const SLOTS: usize = 4;
/// The longest time until all tasks end, on a busy machine.
const LONG_TIMEOUT: Duration = Duration::from_secs(240);

/// I2, I7, I8, F31: hundreds of turns of several callers start in the order of acceptance, over a
/// kill -9 in the middle: the running turn is interrupted and not run again, and every other turn
/// runs once.
#[test]
fn a_long_queue_keeps_its_order_over_a_crash() {
    let mut server = Setup::new().set("limits", "queue", TURNS).start();
    server.submit("work", "[[gate:begin]]");
    server.journal.wait_gate("begin");
    submit_many(&server, 0..TURNS / 2);
    let middle = server.submit("work", "[[gate:middle]]");
    submit_many(&server, TURNS / 2 + 1..TURNS);
    server.post("/v1/groups/work/turns", &json!({ "prompt": "too many" })).expect(429);
    let accepted = tasks(&server);
    assert_eq!(accepted.len(), TURNS + 1);
    for (place, task) in accepted.iter().skip(1).enumerate() {
        assert_eq!(task["position"], place, "{task}");
    }
    server.journal.open_gate("begin");
    within(LONG_TIMEOUT, "the middle", &server.log, || {
        (server.task(&middle)["state"] == "running").then_some(())
    });
    server.journal.wait_gate("middle");
    server.kill_and_boot();
    wait_until_idle(&server);
    let expected: Vec<String> = accepted.iter().map(text).collect();
    assert_eq!(server.journal.prompts(), expected, "each once, in order");
    server.journal.assert_one_at_a_time();
    for (before, after) in accepted.iter().zip(tasks(&server)) {
        assert_eq!(before["id"], after["id"]);
        let interrupted = text(before) == "[[gate:middle]]";
        assert_eq!(
            after["state"],
            if interrupted { "interrupted" } else { "completed" },
            "{after}"
        );
    }
}

/// I2, I7, DQ-2, F31: many groups with a waiting task each continue after a kill -9 as slots
/// become free, each once and never more at a time than there are slots.
#[test]
fn many_waiting_groups_drain_after_a_crash() {
    let setup = Setup::new().set("limits", "running_groups", SLOTS);
    let mut server = setup.text("defaults", "idle_timeout", "0s").start();
    for slot in 0..SLOTS {
        server.submit(&format!("busy{slot}"), &format!("[[gate:busy{slot}]]"));
        server.journal.wait_gate(&format!("busy{slot}"));
    }
    let submit = |number| server.submit(&format!("g{number}"), &format!("turn {number}"));
    let waiting: Vec<Value> = (0..GROUPS).map(submit).collect();
    for task in &waiting {
        assert_eq!(server.task(task)["blocked_by"], "slot");
    }
    server.kill_and_boot();
    wait_until_idle(&server);
    for (number, task) in waiting.iter().enumerate() {
        assert_eq!(server.task(task)["state"], "completed");
        assert_eq!(server.journal.times(&format!("turn {number}")), 1);
    }
    assert_eq!(server.journal.prompts().len(), GROUPS + SLOTS);
    // The agents that were killed during a prompt count until the end.
    assert!(server.journal.most_at_once() <= 2 * SLOTS);
}

/// Submits turns from several callers simultaneously; the server decides the order of acceptance.
fn submit_many(server: &Server, turns: std::ops::Range<usize>) {
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let turns = turns.clone().skip(caller).step_by(CALLERS);
            scope.spawn(move || {
                for turn in turns {
                    server.submit("work", &format!("turn {turn}"));
                }
            });
        }
    });
}

/// Returns all tasks of the group, in the order of acceptance.
fn tasks(server: &Server) -> Vec<Value> {
    let (mut tasks, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/groups/work/tasks?limit=1000{cursor}");
        let page = server.get(&path).expect(200);
        tasks.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return tasks,
        }
    }
}

fn text(task: &Value) -> String {
    let text = task["prompt"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("{} has no text", id(task))).to_owned()
}

fn wait_until_idle(server: &Server) {
    within(LONG_TIMEOUT, "all tasks to end", &server.log, || {
        let status = server.get("/v1/status").expect(200);
        (status["queue_depth"] == 0 && status["slots"]["used"] == 0).then_some(())
    });
}
