//! A blocked pipe, a dying process, a slow commit or a frozen clock of one group does not affect
//! another group (I15), nor prevent the server's end.

use std::{fs, thread, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Server, Setup, eventually, process, setup::scripted_agent, strace::Strace, within,
};

/// F15: an agent fills its own stdin, because it sends requests and does not read the answers, and
/// then dies.
#[test]
fn a_full_stdin_of_a_dead_agent_stops_no_other_group() {
    let mut server = Setup::new().text("server", "drain_timeout", "1s").start();
    let dying: Vec<Value> =
        (0..4).map(|n| server.submit(&format!("full-{n}"), "[[fill-stdin]][[die:3]]")).collect();
    for task in &dying {
        server.finish_as(task, "interrupted");
    }
    // Groups are spread over all threads.
    for n in 0..8 {
        server.complete(&format!("other-{n}"), "x");
    }
    server.complete("full-0", "next");
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
}

/// I12: if an agent closes its stdin, its turn ends, and the next one runs.
#[test]
fn an_agent_that_closes_its_stdin_is_ended() {
    // Three lines reach the agent: `initialize`, `session/new`, and one prompt.
    let agent = scripted_agent();
    let script = format!(
        "exec 3<&0 </dev/null; sed -u 3q <&3 3<&- | {} --outlives-eof 3<&- & exec 3<&-; wait",
        agent.display()
    );
    let setup = Setup::new()
        .agent("closes", &["-c", &script])
        .text("agents.closes", "command", "/bin/sh")
        .text("defaults", "agent", "closes");
    let server = setup.start();
    server.complete("work", "first");
    let unsent = server.turn("work", "second");
    assert_eq!(unsent["stop_reason"], "_protocol", "{unsent}");
    assert!(unsent["error"]["message"].as_str().unwrap().contains("stdin"), "{unsent}");
    server.complete("work", "third");
    assert_eq!(server.journal.prompts(), ["first", "third"]);
}

/// I3: a stream shows the whole log while commits of several messages follow each other.
#[test]
fn a_stream_shows_every_frame_of_a_group_without_a_profile() {
    const GROUPS: u32 = 10;
    let mut server = Setup::new().command("gone", "true").start();
    for n in 0..GROUPS {
        server.put(&format!("/v1/groups/g{n}"), &json!({ "agent": "gone" })).expect(201);
    }
    server.terminate();
    server.wait_exit();
    let config = fs::read_to_string(server.home.config()).unwrap();
    server.home.write_config(&config.replace("[agents.gone]\ncommand = \"true\"\n", ""));
    server.boot();
    for n in 0..GROUPS {
        let group = format!("g{n}");
        let events = server.events(&group, "");
        let mut seen = events.until_synced();
        let tasks: Vec<Value> = thread::scope(|scope| {
            let submit = || server.submit(&group, "x");
            let submits: Vec<_> = (0..2).map(|_| scope.spawn(submit)).collect();
            submits.into_iter().map(|submit| submit.join().unwrap()).collect()
        });
        for task in &tasks {
            server.finish_as(task, "failed");
        }
        let last = server.group(&group)["last_seq"].as_u64().unwrap();
        seen.extend(events.until("the last frame", |event| event.id == Some(last)));
        let seqs: Vec<u64> = seen.iter().filter_map(|event| event.id).collect();
        assert_eq!(seqs, (1..=last).collect::<Vec<u64>>(), "{group}");
        assert_eq!(server.frames(&group).len() as u64, last, "{group}");
    }
    server.kill_and_boot();
    server.terminate();
    // After its exit, `verify` checks the data.
    server.wait_exit();
}

/// R-1, "agent died": the output before its death is read to the end, however long the
/// commits block its reader.
#[test]
fn the_last_output_of_a_dead_agent_survives_slow_commits() {
    // Seven batches, and fewer bytes than the pipe holds.
    const LINES: usize = 7_000;
    let server = Server::usual();
    server.complete("work", "warm");
    // Longer than any timeout for the open pipes of a dead agent.
    let _slow = Strace::delay_commits(&server, 2_100_000);
    let task = server.submit("work", &format!("[[asks:{LINES}]][[die:3]]"));
    let limit = Duration::from_secs(120);
    // Requests would be traced too, and be slow.
    within(limit, "the turn's end", &server.log, || {
        let is_end = |line: &String| line.contains("stop_reason=_process_exited");
        server.log.lines().iter().any(is_end).then_some(())
    });
    let ended = server.finish_as(&task, "interrupted");
    assert_eq!(ended["interrupted"]["side_effects"], "none_observed", "{ended}");
    assert_eq!(server.frames_of_kind("work", "scripted/unknown").len(), LINES);
}

/// In a frozen container or a suspended machine no time of a turn's deadline passes.
#[test]
fn a_freeze_of_server_and_agent_counts_against_no_deadline() {
    let server = Server::usual();
    server.complete("work", "warm");
    let body = json!({ "prompt": "[[gate:go]][[reply:done]]", "deadline_ms": 6000 });
    let task = server.post("/v1/groups/work/turns", &body).expect(202);
    server.journal.wait_gate("go");
    let agent = server.journal.agent_pid();
    let frozen = [process::parent(agent), agent, server.pid()];
    frozen.iter().for_each(|&pid| process::signal(pid, Signal::STOP));
    // This is the fault itself, not a wait for an event.
    thread::sleep(Duration::from_secs(9));
    frozen.iter().for_each(|&pid| process::signal(pid, Signal::CONT));
    // After these turns each thread of the server has checked its timers.
    for n in 0..4 {
        server.complete(&format!("other-{n}"), "x");
    }
    server.journal.open_gate("go");
    assert_eq!(server.finish_as(&task, "completed")["text"], "done");
    assert_eq!(server.frames_of_kind("work", "greenroom/run_exited"), Vec::<Value>::new());
}

/// DQ-11: if SIGTERM arrives while START is being committed, the prompt is not sent. Its task keeps
/// its place, and runs after the next start.
#[test]
fn no_prompt_is_sent_after_sigterm() {
    let mut server = Server::usual();
    server.complete("work", "warm");
    let log = server.home.data().join("greenroom.db-wal");
    let written = || fs::metadata(&log).unwrap().modified().unwrap();
    let slow = Strace::delay_commits(&server, 1_500_000);
    let before = written();
    let task = thread::scope(|scope| {
        let submit = scope.spawn(|| server.submit("work", "late"));
        eventually("START to be written", &server.log, || (written() != before).then_some(()));
        server.terminate();
        let task = submit.join().unwrap();
        assert_eq!(task["state"], "running", "START was committed: {task}");
        task
    });
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    assert_eq!(server.journal.prompts(), ["warm"]);
    drop(slow);
    server.boot();
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.prompts(), ["warm", "late"]);
}
