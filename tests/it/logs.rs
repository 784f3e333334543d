//! The log: at level `info` an operator can follow every group.

use rustix::process::Signal;

use serde_json::json;

use crate::support::{Server, Setup, process, server::id};

/// The value of a key in a log line.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// API-7: each status change of a group is one line, with from, to, task, kind and queue; so is
/// each end of a task, with its outcome and duration, and each start and exit of a run, with the
/// agent's pid and exit code. Text from an agent is escaped, never raw (C15). A server without
/// tokens logs it (API-3).
#[test]
fn changes_tasks_and_runs_are_one_line_each() {
    let server = Server::usual();
    server.log.wait("that no token is configured", |line| line.to_lowercase().contains("token"));
    let completed = server.complete("work", "x");
    let forged = "a\n2026-01-01 ERROR forged \u{1b}[31mred";
    let failed = server.turn("work", &format!("[[error:-32602:{forged}]]"));
    let running = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&running).expect(202);
    let cancelled = server.finish_as(&running, "cancelled");
    let mut died = Vec::new();
    for (number, end) in ["[[reply:x]][[die:23]]", "[[reply:x]][[gate:killed]]"].iter().enumerate()
    {
        let task = server.submit("work", end);
        server.journal.wait("the prompt", |event| event["text"] == *end);
        let agent = server.journal.agent_pid();
        if number == 1 {
            server.journal.wait_gate("killed");
            process::signal(agent, Signal::KILL);
        }
        server.finish_as(&task, "interrupted");
        let of_run = |line: &str| value(line, "pid") == Some(&agent.to_string());
        server.log.wait("the run's start", |line| of_run(line) && !line.contains("exit"));
        let exit = |line: &str| of_run(line) && line.contains("exit");
        let line = server.log.wait("the run's exit", exit);
        assert!(number == 1 || line.contains("=23"), "{line}");
        died.push(task);
    }
    let is_change = |line: &str| line.contains("status ") && value(line, "group") == Some("work");
    server.log.wait("the last change", |line| is_change(line) && value(line, "to") == Some("held"));
    for task in [&completed, &failed, &cancelled, &died[0], &died[1]] {
        let outcome = server.task(task)["state"].as_str().unwrap().to_owned();
        let is_end = |line: &str| {
            line.contains("task ended") && line.contains(id(task)) && line.contains(&outcome)
        };
        let line = server.log.wait(&format!("the end of {task}"), is_end);
        assert!(value(&line, "group") == Some("work") && line.contains("_ms="), "{line}");
        let lines = server.log.lines();
        assert_eq!(lines.iter().filter(|line| is_end(line)).count(), 1, "{task}");
    }
    let lines = server.log.lines();
    assert!(!lines.iter().any(|line| line.starts_with("2026-01-01 ERROR forged")));
    assert!(!lines.iter().any(|line| line.contains("\u{1b}[31mred")), "a raw escape");
    let mut last = None;
    for line in lines.iter().filter(|line| is_change(line)) {
        let (from, to) = (value(line, "from").unwrap(), value(line, "to").unwrap());
        assert!(from != to && last.is_none_or(|last| last == from), "a change is missing: {line}");
        assert!(line.contains("INFO") && line.contains("greenroom::group"), "{line}");
        last = Some(to);
    }
    let is_running = |line: &&String| is_change(line) && value(line, "to") == Some("running");
    let running = lines.iter().find(is_running).unwrap();
    let words = ["task", "kind", "queued"].map(|key| value(running, key));
    assert_eq!(words, [Some(id(&completed)), Some("turn"), Some("0")], "{running}");
}

/// API-7: a reader of the log that stands still stops nothing. The lines that it misses are
/// counted, and the log says how many they are once it is back.
#[test]
fn a_reader_that_stands_still_stops_nothing_but_the_log() {
    let server = Setup::new().environment("GREENROOM_LOG", "debug").start();
    let stopped = server.log.stop_reading();
    server.complete("talkative", "[[stderr:40000]]");
    for number in 0..3 {
        assert_eq!(server.complete("other", &number.to_string())["state"], "completed");
    }
    assert_eq!(server.get("/readyz").status, 200);
    let dropped = server.scrape().value("greenroom_log_lines_dropped_total", &[]);
    assert!(dropped > 0.0, "{dropped}");
    drop(stopped);
    let line = server.log.wait("the missing lines", |line| line.contains("log lines are missing"));
    assert!(value(&line, "lines").is_some_and(|lines| lines != "0"), "{line}");
    server.complete("other", "after");
    server
        .log
        .wait("lines after them", |line| line.contains("task ended") && line.contains("other"));
}

/// API-7: a panic is logged whatever the filter is, and nothing else is.
#[test]
fn a_panic_is_logged_past_the_filter() {
    let server = Setup::new()
        .environment("GREENROOM_LOG", "off")
        .environment("FAILPOINT", "group=panics-")
        .start();
    server.complete("other", "x");
    // Its answer depends on when the group's actor panics.
    server.post("/v1/groups/panics-1/turns", &json!({ "prompt": "x" }));
    let line = server.log.wait("the panic", |line| line.contains("failpoint group of panics-1"));
    assert!(line.contains(" ERROR greenroom ") && value(&line, "thread").is_some(), "{line}");
    assert!(
        server.log.lines().iter().all(|line| !line.contains(" INFO ")),
        "{}",
        server.log.tail()
    );
}
