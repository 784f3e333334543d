//! Agents, shims and servers that die or are stopped during a turn.

use std::{fs, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Server, Setup, eventually,
    process::{self, KillOnDrop},
    within,
};

/// I10: the longest time that a process may survive its run.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time from the stop of a server to the end of its agents: 15 s, and a margin for a
/// busy machine.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(25);

/// Starts a turn that waits at the gate of the group's name; returns its task and its agent's pid.
fn submit_to_gate(server: &Server, group: &str, before: &str) -> (Value, u32) {
    let task = server.submit(group, &format!("{before}[[gate:{group}]]"));
    server.journal.wait_gate(group);
    (task, server.journal.agent_pid())
}

/// F2, I10: a server that is stopped for a moment, as during a snapshot of its machine, loses
/// nothing. If it is stopped for longer, its agents and all their child processes are killed; when
/// the server continues, their turns are interrupted, and the next turns run in the same sessions.
#[test]
fn only_a_long_stop_of_the_server_ends_its_agents() {
    let server = Server::usual();
    let mut orphans = KillOnDrop::reported(&server.complete("orphans", "[[spawn-orphans]]"));
    orphans.0.push(server.journal.agent_pid());
    let (short, agent) = submit_to_gate(&server, "short", "");
    process::signal(server.pid(), Signal::STOP);
    server.journal.open_gate("short");
    server.journal.wait("the answer to a stopped server", |event| {
        event["event"] == "answer" && event["pid"] == agent
    });
    process::signal(server.pid(), Signal::CONT);
    server.finish_as(&short, "completed");
    assert!(process::is_alive(agent));
    let (task, agent) = submit_to_gate(&server, "work", "[[reply:a]]");
    orphans.0.push(agent);
    process::signal(server.pid(), Signal::STOP);
    within(SILENCE_TIMEOUT, "the end of all processes", &server.log, || {
        orphans.all_gone().then_some(())
    });
    process::signal(server.pid(), Signal::CONT);
    let interrupted = server.finish_as(&task, "interrupted");
    assert_eq!(interrupted["stop_reason"], "_process_exited", "{interrupted}");
    assert_eq!(interrupted["text"], "a");
    for group in ["work", "orphans"] {
        server.complete(group, "next");
        assert!(server.frames_of_kind(group, "greenroom/context_lost").is_empty(), "{group}");
    }
}

/// F5: however an agent ends during a turn, the turn ends once, and `run_exited` has the code or
/// signal; the next turn runs in the same session.
#[test]
fn a_turn_ends_once_however_its_agent_ends() {
    let server = Server::usual();
    for (name, output) in [("quiet", ""), ("spoken", "[[reply:output]]")] {
        #[rustfmt::skip]
        let deaths = [
            ("exit-0", "[[die:0]]", None,               json!(0),    json!(null)),
            ("exit-1", "[[die:1]]", None,               json!(1),    json!(null)),
            ("kill",   "",          Some(Signal::KILL), json!(null), json!(9)),
            ("segv",   "",          Some(Signal::SEGV), json!(null), json!(11)),
        ];
        for (death, word, signal, code, by) in deaths {
            let group = format!("{name}-{death}");
            let prompt = format!("{output}[[gate:{group}]]{word}");
            let task = server.submit(&group, &prompt);
            server.journal.wait_gate(&group);
            let agent = server.journal.agent_pid();
            match signal {
                // Rust's runtime treats the first SIGSEGV as a fault that will repeat.
                Some(signal) => eventually("the agent's end", &server.log, || {
                    process::signal(agent, signal);
                    (!process::is_alive(agent)).then_some(())
                }),
                None => server.journal.open_gate(&group),
            }
            let ended = server.finish(&task);
            let state = ended["state"].as_str().unwrap();
            if output.is_empty() {
                assert!(["interrupted", "failed"].contains(&state), "{group}: {ended}");
            } else {
                assert_eq!(state, "interrupted", "{group}: {ended}");
                assert_eq!(ended["text"], "output", "{group}");
            }
            let settled = server.frames_of_kind(&group, "greenroom/turn_settled");
            assert_eq!(settled.len(), 1, "{group}: {settled:?}");
            let exit = &server.frames_of_kind(&group, "greenroom/run_exited")[0]["payload"];
            assert_eq!((&exit["code"], &exit["signal"]), (&code, &by), "{group}: {exit}");
            assert_eq!(server.journal.times(&prompt), 1, "{group}: not run again");
            server.complete(&group, "next");
            let sessions: Vec<Value> = server.journal.events_named("resume");
            assert!(
                sessions
                    .iter()
                    .any(|resumed| { resumed["session"] == server.group(&group)["session_id"] })
            );
        }
    }
}

/// F6: a stopped agent is cancelled at the deadline, or by a caller, and then killed together with
/// its child processes. Then its group continues.
#[test]
fn escalation_ends_a_stopped_agent() {
    let server = Server::usual();
    let mut orphans = KillOnDrop::reported(&server.complete("late", "[[spawn-orphans]]"));
    let body = json!({ "prompt": "[[reply:a]][[gate:late]]", "deadline_ms": 1000 });
    let late = server.post("/v1/groups/late/turns", &body).expect(202);
    server.journal.wait_gate("late");
    let stopped = server.journal.agent_pid();
    process::signal(stopped, Signal::STOP);
    let (cancelled, other) = submit_to_gate(&server, "cancelled", "[[reply:a]]");
    process::signal(other, Signal::STOP);
    server.cancel(&cancelled).expect(202);
    orphans.0.extend([stopped, other]);
    // 1 s, 10 s for the cancel, 5 s for TERM.
    let late = server.finish_as(&late, "interrupted");
    assert_eq!(late["stop_reason"], "_deadline", "{late}");
    server.finish_as(&cancelled, "cancelled");
    within(ORPHAN_TIMEOUT, "the end of all processes", &server.log, || {
        orphans.all_gone().then_some(())
    });
    for group in ["late", "cancelled"] {
        server.complete(group, "next");
    }
}

/// I10, F9: after the death of an agent, or kill -9 of its shim, the process between server and
/// agent, the whole process tree ends; the turn is `interrupted`, and the next one runs.
#[test]
fn death_of_an_agent_or_its_shim_leaves_no_orphans() {
    let server = Server::usual();
    for (group, last_word) in [("agent", "[[die:3]]"), ("shim", "")] {
        let mut orphans = KillOnDrop::reported(&server.complete(group, "[[spawn-orphans]]"));
        let prompt = format!("[[reply:x]][[gate:{group}]]{last_word}");
        let interrupted = server.submit(group, &prompt);
        server.journal.wait_gate(group);
        let agent = server.journal.agent_pid();
        orphans.0.push(agent);
        let shim = process::parent(agent);
        assert_ne!(shim, server.pid(), "the agent has a shim of its own");
        assert!(orphans.all_live(), "a settled turn ends no process");
        match group {
            "agent" => server.journal.open_gate(group),
            _ => process::signal(shim, Signal::KILL),
        }
        within(ORPHAN_TIMEOUT, "the end of all processes", &server.log, || {
            orphans.all_gone().then_some(())
        });
        server.finish_as(&interrupted, "interrupted");
        server.complete(group, "next");
    }
}

/// I10, AM-42, F9: a kill of the server ends all processes of all its agents within 5 s, including
/// those that escaped by `setsid` or a double fork.
#[test]
fn a_killed_server_leaves_no_process_of_any_group() {
    let mut server = Server::usual();
    let mut orphans = KillOnDrop(Vec::new());
    for number in 0..4 {
        let group = format!("g{number}");
        orphans
            .0
            .extend(&KillOnDrop::reported(&server.complete(&group, "[[spawn-orphans]]")).take());
        orphans.0.push(submit_to_gate(&server, &group, "").1);
    }
    assert!(orphans.all_live() && orphans.0.len() == 16);
    server.kill();
    within(ORPHAN_TIMEOUT, "the end of all processes", &server.log, || {
        orphans.all_gone().then_some(())
    });
}

/// I10, F9: if server and shim are killed simultaneously, the agent dies with its shim, and the
/// next server finds the agent's child processes by their marker, before it starts any agent.
#[test]
fn leftover_processes_are_killed_at_the_next_start() {
    let mut server = Server::usual();
    let mut orphans = KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    let (interrupted, agent) = submit_to_gate(&server, "work", "[[reply:a]]");
    kill_with_shim(&mut server, agent);
    assert!(orphans.all_live(), "no process was left to end them");
    server.boot();
    assert!(orphans.all_gone(), "before the server was ready");
    orphans.0.push(agent);
    server.log.wait("the sweep", |line| line.contains("leftover processes of an earlier server"));
    server.finish_as(&interrupted, "interrupted");
    server.complete("work", "next");
}

/// Kills the server and the shim of its agent, and waits for the end of that agent: its child
/// processes are left.
fn kill_with_shim(server: &mut Server, agent: u32) {
    let shim = process::parent(agent);
    // Stop both first, so that neither can react to the other's death.
    for signal in [Signal::STOP, Signal::KILL] {
        process::signal(shim, signal);
        process::signal(server.pid(), signal);
    }
    server.kill();
    within(ORPHAN_TIMEOUT, "the agent's end", &server.log, || {
        (!process::is_alive(agent)).then_some(())
    });
}

/// I10, F9: the leftovers are also found if the data directory has another name by then, whose name
/// their markers have.
#[test]
fn leftovers_are_killed_although_their_data_directory_was_moved() {
    let mut server = Server::usual();
    let orphans = KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    let (interrupted, agent) = submit_to_gate(&server, "work", "[[reply:a]]");
    kill_with_shim(&mut server, agent);
    fs::rename(server.home.data(), server.home.file("moved")).unwrap();
    let config = fs::read_to_string(server.home.config()).unwrap();
    assert!(config.contains("sqlite:data/"), "{config}");
    server.home.write_config(&config.replace("sqlite:data/", "sqlite:moved/"));
    assert!(orphans.all_live(), "no process was left to end them");
    server.boot();
    assert!(orphans.all_gone(), "before the server was ready");
    server.finish_as(&interrupted, "interrupted");
    server.complete("work", "next");
}

/// I10: a server on a copy of the database knows the same runs, and ends none of the server that
/// uses the original.
#[test]
fn a_server_on_a_copy_of_the_data_ends_no_run_of_the_original() {
    let server = Server::usual();
    let mut orphans = KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    let (task, agent) = submit_to_gate(&server, "work", "[[reply:a]]");
    orphans.0.push(agent);
    let copy = Setup::new().home();
    fs::create_dir(copy.data()).unwrap();
    let target = copy.database().display().to_string();
    server.database().execute("VACUUM INTO ?", [target]).unwrap();
    let copy = Server::start(copy);
    assert_eq!(copy.list("work", "tasks").len(), 2);
    assert!(orphans.all_live(), "{}", copy.log.tail());
    server.journal.open_gate("work");
    server.finish_as(&task, "completed");
}

/// C13: a server may be started with ignored signals, as by `nohup`. Its agents do not ignore them,
/// and the server still notices the ends of its children.
#[test]
fn ignored_signals_are_not_inherited_by_agents() {
    let setup = Setup::new().under(&["env", "--ignore-signal=CHLD,HUP,TTOU,USR1,XFSZ"]);
    let server = setup.start();
    let ignored = |pid: u32, signal: Signal| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
    };
    assert!(ignored(server.pid(), Signal::TTOU), "the server was started with it ignored");
    assert!(!ignored(server.pid(), Signal::CHILD));
    let (interrupted, agent) = submit_to_gate(&server, "work", "[[reply:a]]");
    for signal in [Signal::CHILD, Signal::HUP, Signal::TTOU, Signal::USR1, Signal::XFSZ] {
        assert!(!ignored(agent, signal), "{signal:?}");
    }
    let shim = process::parent(agent);
    process::signal(shim, Signal::KILL);
    server.finish_as(&interrupted, "interrupted");
    let died = server.submit("work", "[[reply:a]][[die:3]]");
    server.finish_as(&died, "interrupted");
    let exits = server.frames_of_kind("work", "greenroom/run_exited");
    assert_eq!(exits[1]["payload"]["code"], 3, "{exits:?}");
    eventually("the shim reaped", &server.log, || {
        (!fs::exists(format!("/proc/{shim}")).unwrap()).then_some(())
    });
}

/// F15: an agent that does not read its stdin is ended after ten seconds; other groups do not wait
/// for it.
#[test]
fn an_agent_that_does_not_read_is_ended() {
    let server = Setup::new().text("server", "max_body", "4MiB").start();
    server.complete("deaf", "x");
    let agent = server.journal.agent_pid();
    process::signal(agent, Signal::STOP);
    // More than the pipe holds.
    let task = server.submit("deaf", &"x".repeat(2 << 20));
    server.complete("other", "y");
    assert_eq!(server.group("deaf")["status"], "running");
    let ended = server.finish_as(&task, "interrupted");
    assert_eq!(ended["stop_reason"], "_protocol", "{ended}");
    assert!(!process::is_alive(agent));
    server.complete("deaf", "next");
}
