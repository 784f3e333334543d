//! `greenroom turn` follows a task to its outcome while the server fails and recovers, and reports
//! what the task waits for. What it does with each broken answer is tested in `src/cli/tests.rs`,
//! all reasons of a wait in `src/cli/waiting`.

use std::process::Child;

use rustix::process::Signal;

use crate::support::{
    Home, Log, Server, Setup, process,
    server::{greenroom, id},
};

/// What stands before the command that ends a wait.
const COMMAND: &str = "with: greenroom ";

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

/// API-5: with `--json`, a refusal is the problem document on stdout.
#[test]
fn a_refusal_is_json_where_that_is_asked_for() {
    let server = Server::usual();
    let output = server.cli(&["--json", "tasks", "nowhere"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let problem: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(problem["type"], "/problems/group-not-found", "{problem}");
}

/// API-5: Ctrl-C ends `watch` with the exit code of shells.
#[test]
fn ctrl_c_ends_a_watch() {
    let server = Server::usual();
    server.complete("work", "hi");
    server.put("/v1/groups/work", &serde_json::json!({})).expect(200);
    let (log, home) = (Log::default(), &server.home);
    let watch = start(home, &log, &["watch", "work"]);
    server.post("/v1/groups/work/pause", &serde_json::json!({})).expect(202);
    server.submit("work", "waits");
    log.wait("why the group waits", |line| line.contains("is paused"));
    process::signal(watch.id(), Signal::INT);
    assert_eq!(end(watch).0, Some(130), "{}", log.tail());
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

/// Waits for the line that says why nothing moves and names a command, and runs that command with
/// `option` as the answer. Returns the line.
fn obey(server: &Server, log: &Log, option: &str) -> String {
    let names_command = |line: &str| line.starts_with("waiting: ") && line.contains(COMMAND);
    let line = log.wait("a reason with a command", names_command);
    let (_, command) = line.split_once(COMMAND).unwrap();
    let command = command.split(" (").next().unwrap().replace("OPTION", option);
    server.cli_stdout(&command.split(' ').collect::<Vec<_>>());
    line
}

/// API-5: `turn` and `watch` report on stderr that the group is paused and how to resume it; stdout
/// has the answer alone.
#[test]
fn a_paused_group_and_its_remedy_are_reported() {
    let server = Server::usual();
    server.complete("work", "before");
    server.post("/v1/groups/work/pause", &serde_json::json!({})).expect(202);
    let (log, watched) = (Log::default(), Log::default());
    let turn = start(&server.home, &log, &["turn", "work", "[[reply:done]]"]);
    let mut watch = start(&server.home, &watched, &["watch", "work"]);
    watched.wait("the reason", |line| line.starts_with("waiting: group \"work\" is paused; "));
    watch.kill().unwrap();
    watch.wait().unwrap();
    let line = obey(&server, &log, "");
    let expected = "waiting: group \"work\" is paused; resume it with: greenroom resume work";
    assert_eq!(line, expected);
    assert_eq!(end(turn), (Some(0), "done\n".into()), "{}", log.tail());
    assert_eq!(log.lines().iter().filter(|line| line.contains("paused")).count(), 1, "once");
}

/// DQ-13, API-5: `turn` says which agent wants a login, and what to do after it.
#[test]
fn a_missing_login_and_its_remedy_are_reported() {
    let server = Setup::new().start();
    server.journal.script("on-new", "[[error:-32000:Authentication required]]");
    let log = Log::default();
    let turn = start(&server.home, &log, &["turn", "work", "[[reply:done]]"]);
    log.wait("the reason", |line| line.contains("wants a login"));
    server.journal.script("on-new", "");
    let line = obey(&server, &log, "");
    assert!(line.contains("profile \"scripted\"") && line.contains("Authentication"), "{line}");
    assert_eq!(end(turn), (Some(0), "done\n".into()), "{}", log.tail());
}

/// API-5: `turn` reports on stderr what the agent asks and how to answer; so does a later turn.
#[test]
fn an_open_permission_and_its_answer_are_reported() {
    let server = Setup::new().asks().start();
    let (log, behind) = (Log::default(), Log::default());
    let turn = start(&server.home, &log, &["turn", "work", "[[permission::execute]]"]);
    let permission = server.wait_pending("work", 1).remove(0);
    let next = start(&server.home, &behind, &["turn", "work", "[[reply:next]]"]);
    let line = behind.wait("the reason", |line| line.starts_with("waiting: "));
    assert!(line.starts_with("waiting: 1 task is before this one in group \"work\"; "), "{line}");
    assert!(line.contains(id(&permission)), "{line}");
    let line = obey(&server, &log, "once");
    let expected = format!("waiting: the agent asks for permission {}", id(&permission));
    assert!(line.starts_with(&expected), "{line}");
    let (code, printed) = end(turn);
    assert_eq!((code, printed.trim()), (Some(0), "permission: selected once"), "{}", log.tail());
    assert_eq!(end(next), (Some(0), "next\n".into()), "{}", behind.tail());
}
