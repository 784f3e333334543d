//! The log: at level `info` an operator can follow every group.

use rustix::process::Signal;

use crate::support::{Server, process};

/// API-7: each status change of a group is one line, with from, to, task, kind and queue.
#[test]
fn each_status_change_is_one_line() {
    let server = Server::usual();
    let task = server.complete("work", "x");
    server.wait_group("work", "idle", |group| group["status"] == "idle");
    let id = task["id"].as_str().unwrap();
    server.log.wait("back to idle", |line| {
        line.contains("status group=work ") && line.contains(" to=idle")
    });
    let lines = server.log.lines();
    let changes: Vec<&String> =
        lines.iter().filter(|line| line.contains("status group=work ")).collect();
    let mut last = None;
    for line in &changes {
        let word = |key: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            value.unwrap_or_else(|| panic!("no {key} in {line}")).to_owned()
        };
        let (from, to) = (word("from="), word("to="));
        assert_ne!(from, to, "{line}");
        assert!(last.is_none_or(|last| last == from), "a change is missing before {line}");
        assert!(line.contains("INFO") && line.contains("greenroom::group"), "{line}");
        last = Some(to);
    }
    let running = changes.iter().find(|line| line.contains(" to=running"));
    let running = running.unwrap_or_else(|| panic!("never running: {changes:?}"));
    for word in [&format!("task={id}"), "kind=turn", "queued=0"] {
        assert!(running.contains(word), "no {word} in {running}");
    }
}

/// API-7: each end of a task is one line with its outcome.
#[test]
fn each_end_of_a_task_is_one_line() {
    let server = Server::usual();
    let completed = server.complete("work", "x");
    let failed = server.turn("work", "[[error:-32602:no]]");
    let running = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&running).expect(202);
    let cancelled = server.finish_as(&running, "cancelled");
    for (task, outcome) in
        [(&completed, "completed"), (&failed, "failed"), (&cancelled, "cancelled")]
    {
        let id = task["id"].as_str().unwrap();
        let fits = |line: &str| line.contains(id) && line.contains(outcome);
        let line = server.log.wait(&format!("the end of {id}, {outcome}"), fits);
        assert!(line.contains("group=work"), "{line}");
        assert!(line.contains("_ms="), "a duration in {line}");
        let lines = server.log.lines();
        assert_eq!(lines.iter().filter(|line| fits(line)).count(), 1, "{id}");
    }
}

/// API-7: each run's start and exit is one line with the agent's pid, the exit with its code.
#[test]
fn each_start_and_exit_of_a_run_is_one_line() {
    let server = Server::usual();
    server.turn("work", "[[reply:x]][[die:23]]");
    let has = |line: &str, word: String| line.split_whitespace().any(|field| field == word);
    let pid = format!("pid={}", server.journal.agent_pid());
    server.log.wait("the run's start", |line| has(line, pid.clone()));
    server.log.wait("the run's exit with its code", |line| {
        has(line, pid.clone()) && line.split_whitespace().any(|word| word.ends_with("=23"))
    });
    server.complete("work", "next");
    let agent = server.journal.agent_pid();
    process::signal(agent, Signal::KILL);
    server.log.wait("the exit of the killed run", |line| {
        has(line, format!("pid={agent}")) && line.contains("exit")
    });
}

/// C15: text from an agent is escaped, never raw, at every level.
#[test]
fn agent_text_is_escaped_in_the_log() {
    let server = Server::usual();
    server.turn("work", "[[error:-32602:a\n2026-01-01 ERROR forged \u{1b}[31mred]]");
    let last = server.complete("work", "next");
    let id = last["id"].as_str().unwrap();
    server
        .log
        .wait("the end of the last task", |line| line.contains(id) && line.contains("completed"));
    for line in server.log.lines() {
        assert!(!line.starts_with("2026-01-01 ERROR forged"), "a forged line");
        assert!(!line.contains("\u{1b}[31mred"), "a raw escape in {line:?}");
    }
}

/// API-3: a server without tokens logs it, in one line.
#[test]
fn a_server_without_tokens_logs_it() {
    let server = Server::usual();
    server.log.wait("that no token is configured", |line| line.to_lowercase().contains("token"));
}
