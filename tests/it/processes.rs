//! Agents, keepers and servers that die or stand still, in mid-turn (RELIABILITY 3).

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::process::Doomed;
use crate::support::{Server, Setup, eventually, process, within};

/// I10: no process outlives its run by more.
const ORPHANED: Duration = Duration::from_secs(5);
/// From the silence of a server to the end of its agents: 15 s, and what a busy machine adds.
const SILENCE: Duration = Duration::from_secs(25);

/// Starts a turn that stands at the gate of the group's name, and gives its agent's pid.
fn at_gate(server: &Server, group: &str, before: &str) -> (Value, u32) {
    let task = server.submit(group, &format!("{before}[[gate:{group}]]"));
    server.journal.wait_gate(group);
    (task, server.journal.agent_pid())
}

/// F2: a server that stands still for a while, as in a snapshot of its machine, loses nothing.
#[test]
fn a_short_stop_of_the_server_does_nothing() {
    let server = Server::usual();
    let (task, agent) = at_gate(&server, "work", "[[reply:a]]");
    process::signal(server.pid(), Signal::STOP);
    // This is the fault itself, not a wait for something.
    thread::sleep(Duration::from_secs(5));
    assert!(process::is_alive(agent));
    process::signal(server.pid(), Signal::CONT);
    server.journal.open_gate("work");
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.events_named("start").len(), 1, "the same agent");
}

/// F2, I10: when it is silent for longer, its agents are killed with all that they started; when it
/// goes on, their turns were cut off, and the next ones run in the same sessions.
#[test]
fn a_long_stop_of_the_server_ends_its_agents() {
    let server = Server::usual();
    let mut doomed = Doomed::reported(&server.complete("orphans", "[[spawn-orphans]]"));
    doomed.0.push(server.journal.agent_pid());
    let (task, agent) = at_gate(&server, "work", "[[reply:a]]");
    doomed.0.push(agent);
    process::signal(server.pid(), Signal::STOP);
    within(SILENCE, "the end of all processes", &server.log, || doomed.all_gone().then_some(()));
    process::signal(server.pid(), Signal::CONT);
    let cut = server.finish_as(&task, "interrupted");
    assert_eq!(cut["stop_reason"], "_process_exited", "{cut}");
    assert_eq!(cut["text"], "a");
    for group in ["work", "orphans"] {
        server.complete(group, "next");
        assert!(server.frames_of_kind(group, "greenroom/context_lost").is_empty(), "{group}");
    }
}

/// F5: however an agent ends in mid-turn, the turn is over, once, and the run's end is told with
/// its code or signal; the next turn runs in the same session.
#[test]
fn deaths_in_mid_turn() {
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
                // Rust's runtime takes the first SIGSEGV for a fault that will come again.
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

/// F6: an agent that stands still is cancelled at the deadline, or by a caller, and killed when it
/// does not listen; with it what it started. Then its group goes on.
#[test]
fn a_stopped_agent_is_ended_by_the_ladder() {
    let server = Server::usual();
    let mut doomed = Doomed::reported(&server.complete("late", "[[spawn-orphans]]"));
    let body = json!({ "prompt": "[[reply:a]][[gate:late]]", "deadline_ms": 1000 });
    let late = server.post("/v1/groups/late/turns", &body).expect(202);
    server.journal.wait_gate("late");
    let stopped = server.journal.agent_pid();
    process::signal(stopped, Signal::STOP);
    let (called_off, other) = at_gate(&server, "called-off", "[[reply:a]]");
    process::signal(other, Signal::STOP);
    server.cancel(&called_off).expect(202);
    doomed.0.extend([stopped, other]);
    // 1 s, 10 s for the cancel, 5 s for TERM.
    let late = server.finish_as(&late, "interrupted");
    assert_eq!(late["stop_reason"], "_deadline", "{late}");
    server.finish_as(&called_off, "cancelled");
    within(ORPHANED, "the end of all processes", &server.log, || doomed.all_gone().then_some(()));
    for group in ["late", "called-off"] {
        server.complete(group, "next");
    }
}

/// I10: a server that is killed under many agents leaves nothing of any of them.
#[test]
fn a_killed_server_leaves_nothing_of_many_groups() {
    let mut server = Server::usual();
    let mut doomed = Doomed(Vec::new());
    for number in 0..4 {
        let group = format!("g{number}");
        doomed.0.extend(&Doomed::reported(&server.complete(&group, "[[spawn-orphans]]")).take());
        doomed.0.push(at_gate(&server, &group, "").1);
    }
    assert!(doomed.all_live() && doomed.0.len() == 16);
    server.kill();
    within(ORPHANED, "the end of all processes", &server.log, || doomed.all_gone().then_some(()));
}

/// I10, F9: server and keeper killed at the same moment: the agent dies with its keeper, and what
/// it had started is found at the next boot by its mark, before anything runs.
#[test]
fn leftovers_are_swept_at_boot() {
    let mut server = Server::usual();
    let mut doomed = Doomed::reported(&server.complete("work", "[[spawn-orphans]]"));
    let (cut, agent) = at_gate(&server, "work", "[[reply:a]]");
    let keeper = process::parent(agent);
    // Stopped first, so that neither can act on the other's death.
    for signal in [Signal::STOP, Signal::KILL] {
        process::signal(keeper, signal);
        process::signal(server.pid(), signal);
    }
    server.kill();
    within(ORPHANED, "the agent's end", &server.log, || (!process::is_alive(agent)).then_some(()));
    assert!(doomed.all_live(), "nobody was left to end them");
    server.boot();
    assert!(doomed.all_gone(), "before the server was ready");
    doomed.0.push(agent);
    server.log.wait("the sweep", |line| line.contains("leftover processes of an earlier server"));
    server.finish_as(&cut, "interrupted");
    server.complete("work", "next");
}

/// C13: whoever starts the server may ignore signals, as `nohup` does. Its agents do not, and the
/// server learns of its children's ends all the same.
#[test]
fn a_server_that_was_started_with_signals_ignored() {
    let setup = Setup::new().under(&["env", "--ignore-signal=CHLD,HUP,USR1,XFSZ"]);
    let server = setup.start();
    let ignored = |pid: u32, signal: Signal| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
    };
    assert!(ignored(server.pid(), Signal::HUP), "it was started so");
    assert!(!ignored(server.pid(), Signal::CHILD));
    let (cut, agent) = at_gate(&server, "work", "[[reply:a]]");
    for signal in [Signal::CHILD, Signal::HUP, Signal::USR1, Signal::XFSZ] {
        assert!(!ignored(agent, signal), "{signal:?}");
    }
    let keeper = process::parent(agent);
    process::signal(keeper, Signal::KILL);
    server.finish_as(&cut, "interrupted");
    let died = server.submit("work", "[[reply:a]][[die:3]]");
    server.finish_as(&died, "interrupted");
    let exits = server.frames_of_kind("work", "greenroom/run_exited");
    assert_eq!(exits[1]["payload"]["code"], 3, "{exits:?}");
    eventually("the keeper reaped", &server.log, || {
        (!fs::exists(format!("/proc/{keeper}")).unwrap()).then_some(())
    });
}

/// F15: an agent that does not read its stdin is ended after ten seconds; other groups do not wait
/// for that.
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
