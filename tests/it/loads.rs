//! How an agent restores its session: a replay after its answer, an error that passes or lasts, a
//! load that takes long. What follows from each answer is decided and tested in core and in
//! actors/src/agent/handshake.rs.

use crate::support::{Server, Setup, eventually};

const LOST: &str = "greenroom/context_lost";

/// A server with a profile whose agents load sessions and cannot resume them.
fn loading(setup: Setup, arguments: &[&str]) -> Server {
    let arguments = [&["--no-resume", "--first-turn-marker"], arguments].concat();
    let server = setup.agent("loads", &arguments).start();
    server.create_group("work", "loads", "auto");
    server.complete("work", "one");
    server.complete("work", "two");
    server
}

/// Waits until the agents got this number of requests to load a session, and returns their number.
#[track_caller]
fn wait_loads(server: &Server, count: usize) -> usize {
    eventually("a load", &server.log, || {
        let loads = server.journal.events_named("load").len();
        (count <= loads).then_some(loads)
    })
}

/// Checks that the context of the group was not lost.
#[track_caller]
fn assert_kept(server: &Server, session: &str) {
    assert_eq!(server.session("work"), session);
    assert!(server.frames_of_kind("work", LOST).is_empty());
}

/// A-4, RA: gemini-cli answers `session/load` first, and replays the session then. That is no
/// answer to the next prompt, and no frame; and `null` is a success with a replay after it.
#[test]
fn a_replay_after_the_answer_is_no_answer() {
    let mut server = loading(Setup::new(), &["--late-replay"]);
    let session = server.session("work");
    server.kill_and_boot();
    let before = server.frames_of_kind("work", "session/update").len();
    assert_eq!(server.complete("work", "three")["text"], "echo: three");
    assert_eq!(server.frames_of_kind("work", "session/update").len(), before + 1);
    assert_kept(&server, &session);
    assert_eq!(server.journal.events_named("load").len(), 1);
}

/// I16, DQ-8: an error that may pass throws no session away; the task is retried after its backoff.
#[test]
fn an_error_on_load_that_passes_costs_no_context() {
    let mut server = loading(Setup::new().retries("200ms"), &[]);
    let session = server.session("work");
    server.kill_and_boot();
    server.journal.script("on-load", "[[error:-32603:the store is busy]]");
    let task = server.submit("work", "three");
    server.wait_retrying(&task);
    let retried = server.frames_of_kind("work", "greenroom/task_retrying");
    let error = retried[0]["payload"]["error"].to_string();
    assert!(error.contains("session/load") && error.contains("the store is busy"), "{error}");
    server.journal.script("on-load", "");
    assert_eq!(server.finish_as(&task, "completed")["text"], "echo: three");
    assert_kept(&server, &session);
}

/// I16, R-1, DQ-8: a session that cannot be loaded by the last attempt of a task is given up, and
/// the group is held, as the task was meant for the lost context. An answer that the session does
/// not exist is enough.
#[test]
fn a_session_is_given_up_after_the_retries() {
    let mut server = loading(Setup::new().retries("1ms"), &[]);
    server.kill_and_boot();
    server.journal.script("on-load", "[[error:-32603:the store is broken]]");
    let task = server.submit("work", "three");
    server.wait_blocked(&task, "held");
    assert_eq!(wait_loads(&server, 6), 6);
    assert_eq!(server.frames_of_kind("work", LOST).len(), 1);
    server.resume("work");
    let task = server.finish_as(&task, "completed");
    assert_eq!(task["text"], "[first turn]echo: three");

    server.kill_and_boot();
    server.journal.script("on-load", "[[error:-32603:Session not found]]");
    assert_eq!(server.complete("work", "four")["text"], "[first turn]echo: four");
    assert_eq!(wait_loads(&server, 7), 7, "one answer is enough");
    assert_eq!(server.frames_of_kind("work", LOST).len(), 2);
}

/// F6, F7: `start_timeout` counts silence while an agent replays its session, up to ten times as
/// long.
#[test]
fn a_load_that_streams_is_alive() {
    let setup = Setup::new().retries("1ms").text("agents.loads", "start_timeout", "1500ms");
    let mut server = loading(setup, &[]);
    let session = server.session("work");
    server.kill_and_boot();
    server.journal.script("on-load", "[[drip:30]]");
    assert_eq!(server.complete("work", "three")["text"], "echo: three");
    assert_kept(&server, &session);
    assert_eq!(server.journal.events_named("load").len(), 1);
}

/// I16, A-4: an empty answer to a load, with no replay after it, throws no session away, and what
/// the agent sent unasked meanwhile is stored.
#[test]
fn an_empty_answer_to_a_load_costs_no_context() {
    let mut server = loading(Setup::new().retries("200ms"), &[]);
    let session = server.session("work");
    server.kill_and_boot();
    server.journal.script("on-load", "[[null]]");
    let task = server.submit("work", "three");
    server.wait_retrying(&task);
    let retried = server.frames_of_kind("work", "greenroom/task_retrying");
    let error = retried[0]["payload"]["error"].to_string();
    assert!(error.contains("session/load: its answer is empty"), "{error}");
    let updates = server.frames_of_kind("work", "session/update");
    let kept = updates.iter().filter(|frame| frame["payload"].to_string().contains("of-old"));
    let kept: Vec<_> = kept.map(|frame| &frame["payload"]["params"]["sessionId"]).collect();
    assert_eq!(kept.first().and_then(|id| id.as_str()), Some(&*session), "{updates:?}");
    server.journal.script("on-load", "");
    assert_eq!(server.finish_as(&task, "completed")["text"], "echo: three");
    assert_kept(&server, &session);
}

/// I16, R-1: a session on which the agent dies each time is given up at the last attempt of the
/// task, as after an error, and the group is held.
#[test]
fn a_session_on_which_the_agent_dies_is_given_up() {
    let mut server = loading(Setup::new().retries("1ms"), &[]);
    server.kill_and_boot();
    server.journal.script("on-load", "[[die:3]]");
    let task = server.submit("work", "three");
    server.wait_blocked(&task, "held");
    assert_eq!(wait_loads(&server, 6), 6);
    let lost = server.frames_of_kind("work", LOST);
    let cause = lost[0]["payload"]["cause"].as_str().unwrap_or_default();
    assert_eq!((lost.len(), cause), (1, "the agent exited with code 3 before it was ready"));
    server.log.wait("the cause", |line| line.contains("context lost") && line.contains(cause));
    server.resume("work");
    let task = server.finish_as(&task, "completed");
    assert_eq!(task["text"], "[first turn]echo: three");
    assert_eq!(wait_loads(&server, 6), 6, "the session is not tried again");
}

/// I16, RA: gemini-cli stores a session with its first answer only. If it dies before, its next run
/// does not know the session, and nothing was lost: the turn continues in a new one.
#[test]
fn a_session_without_an_answer_is_replaced_in_silence() {
    let server = Setup::new().retries("10ms").agent("loads", &["--no-resume"]).start();
    server.create_group("work", "loads", "auto");
    server.journal.script("on-load", "[[error:-32603:No previous sessions found]]");
    let task = server.submit("work", "[[times:1:die:1]][[reply:done]]");
    let task = server.finish_as(&task, "completed");
    assert_eq!((&*task["text"].to_string(), &task["attempt"]), ("\"done\"", &2.into()));
    assert_eq!(wait_loads(&server, 1), 1);
    assert!(server.frames_of_kind("work", LOST).is_empty());
    assert_eq!(server.list("work", "segments").len(), 2);
}
