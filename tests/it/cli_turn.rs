//! `greenroom turn` follows a task to its outcome while the server fails and recovers. What it does
//! with each broken answer is tested in `src/cli/tests.rs`.

use std::process::Child;

use crate::support::{Home, Log, Server, Setup, server::greenroom};

/// Starts the command line against the home's server; its stderr goes to the log.
fn start(home: &Home, log: &Log, arguments: &[&str]) -> Child {
    let mut command = greenroom(home, arguments);
    command.env("GREENROOM_URL", format!("http://{}", home.address()));
    let mut child = command.spawn().unwrap();
    log.follow(child.stderr.take().unwrap());
    child
}

/// Waits for the exit code and the stdout.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// API-5: `turn` follows its task over a restart of the server, to its outcome and exit code.
#[test]
fn a_turn_is_followed_over_a_restart() {
    let mut server = Server::usual();
    let log = Log::default();
    let prompt = "[[reply:before]][[gate:never]]";
    let turn = start(&server.home, &log, &["turn", "work", prompt]);
    server.journal.wait_gate("never");
    let has_text = |frame: &serde_json::Value| frame.to_string().contains(r#""text":"before""#);
    server.wait_frame("work", "the word", |frame| {
        frame["kind"] == "session/update" && has_text(frame)
    });
    server.kill();
    log.wait("a line that the server is unreachable", |line| line.contains("; trying again"));
    server.boot();
    let (code, printed) = end(turn);
    assert_eq!((code, printed.trim()), (Some(4), "before"), "{}", log.tail());
    log.wait("the outcome", |line| line.contains("interrupted"));
}

/// API-5: a server that does not run is an immediate error, with exit code 5.
#[test]
fn a_server_that_does_not_run_is_an_immediate_error() {
    let home = Setup::new().home();
    for arguments in [&["turn", "work", "x"][..], &["compact", "work"], &["watch"], &["groups"]] {
        let log = Log::default();
        let (code, printed) = end(start(&home, &log, arguments));
        assert_eq!((code, printed.as_str()), (Some(5), ""), "{arguments:?}");
        log.wait("the reason", |line| line.contains("cannot reach"));
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    }
}
