//! The shim alone: a server that dies, stops or is slow (F2), and the sweep of processes that
//! earlier runs left.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use greenroom_actors::process::{
    child::{Heartbeat, Launch, TreeEvent, spawn},
    proc::{Marker, Process, descendants},
    sweep::sweep,
};
use rustix::process::Signal;

use crate::support::{
    PROCESS_TREE, SOON, TREE_SIZE, UNTIL_SIGNAL, agent_and_shim, all_gone, exited, killed, parent,
    parts, proc_text, processes, runs, sh, soon, start, started, tree, wait_until_none_runs,
};

/// A program that is no shim counts as a tree that has ended.
#[tokio::test]
async fn a_program_that_is_no_shim_ends_the_tree() {
    let launch = Launch {
        shim: "/bin/sh".into(),
        shim_args: vec!["-c".into(), "head -c1".into()],
        ..sh("")
    };
    let mut child = start(&launch);
    assert_eq!(soon(child.tree.next()).await, TreeEvent::Gone);
    let launch = Launch { shim: "/no/such/shim".into(), ..sh("") };
    let heartbeat = Heartbeat::start(SOON).expect("start the heartbeat");
    let err = spawn(launch, &heartbeat, ()).expect_err("there is no such shim");
    assert_eq!(err.kind(), io::ErrorKind::NotFound);
}

#[test]
fn all_die_when_the_server_is_killed_or_stopped() {
    for (shim_args, signal) in [(&[][..], Signal::KILL), (&["--silence-ms", "1000"], Signal::STOP)]
    {
        let (server, tree) = server(shim_args);
        server.process.signal(signal).expect("signal the server");
        wait_until_none_runs(&tree);
    }
}

/// Both die at once: the agent dies by its parent-death signal, the rest at the next boot.
#[test]
fn all_marked_die_at_boot_when_server_and_shim_were_killed() {
    let (server, tree) = server(&[]);
    let (agent, shim) = agent_and_shim(&tree);
    let (marked, unmarked): (Vec<Process>, Vec<Process>) = tree
        .iter()
        .partition(|process| proc_text(process.pid, "environ").contains("GREENROOM_DATA="));
    assert_eq!((unmarked.len(), marked.len()), (1, TREE_SIZE - 1));

    // Stopped first, so that neither can act on the other's death.
    for signal in [Signal::STOP, Signal::KILL] {
        shim.signal(signal).expect("signal the shim");
        server.process.signal(signal).expect("signal the server");
    }
    wait_until_none_runs(&[agent]);
    assert!(!sweep(&server.data).expect("sweep").is_empty());
    wait_until_none_runs(&marked);
    // A process with a cleared environment survives when both die, as I10 says.
    unmarked[0].signal(Signal::KILL).expect("kill it");
}

/// A sweep leaves a shim the time to kill what only the shim can find.
#[test]
fn a_sweep_lets_a_shim_finish() {
    let (server, tree) = server(&[]);
    let (agent, shim) = agent_and_shim(&tree);
    shim.signal(Signal::STOP).expect("stop the shim");
    server.process.signal(Signal::KILL).expect("kill the server");
    thread::scope(|scope| {
        let sweep = scope.spawn(|| sweep(&server.data).expect("sweep"));
        wait_until_none_runs(&[agent]);
        shim.signal(Signal::CONT).expect("continue the shim");
        assert!(sweep.join().expect("join").contains(&shim.pid));
    });
    wait_until_none_runs(&tree);
}

/// An idle server is not silent.
#[tokio::test]
async fn heartbeats_keep_the_agent_alive() {
    let mut launch = sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; exit 5");
    launch.shim_args = vec!["--silence-ms".into(), "400".into()];
    let heartbeat = Heartbeat::start(Duration::from_millis(50)).expect("start the heartbeat");
    let mut child = spawn(launch, &heartbeat, ()).expect("start");
    started(&mut child.tree).await;
    assert_eq!(soon(child.tree.next()).await, exited(5));
}

/// Without heartbeats the shim kills the agent: the counter-proof.
#[tokio::test]
async fn silence_kills_the_agent() {
    let mut launch = sh(&[PROCESS_TREE, UNTIL_SIGNAL].concat());
    launch.shim_args = vec!["--silence-ms".into(), "400".into()];
    let (_stdin, stdout, _stderr, mut handle) = parts(start(&launch));
    let (tree, stdout) = tree(stdout).await;
    started(&mut handle).await;
    assert_eq!(soon(handle.next()).await, killed(9));
    all_gone(&tree, stdout, handle).await;
}

/// A shim that was itself stopped (a frozen container) does not count that as silence.
#[tokio::test]
async fn a_pause_of_the_shim_is_no_silence() {
    // The agent stops its own shim for twice the allowed silence, and continues it.
    let mut launch = sh("kill -STOP $PPID; sleep 1.6; kill -CONT $PPID; sleep 0.2; exit 5");
    launch.shim_args = vec!["--silence-ms".into(), "800".into()];
    let (_stdin, _stdout, _stderr, mut handle) = parts(start(&launch));
    started(&mut handle).await;
    assert_eq!(soon(handle.next()).await, exited(5));
}

#[test]
fn a_sweep_kills_only_marked_processes() {
    let id = uuid::Uuid::now_v7();
    let (ours, theirs) = (Marker::data(id), Marker::data(format!("{id}_not")));
    // Sleeps until this test ends in any way.
    let sleeper = |entry: (&str, &str)| {
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", "echo $$; read line"]);
        child = child.env(entry.0, entry.1).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().expect("start a sleeper");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it has an output");
        BufReader::new(stdout).read_line(&mut line).expect("read its pid");
        (Process::now(line.trim().parse().expect("a pid")).expect("find it"), child)
    };
    let (mut one, mut two) = (sleeper(ours.entry()), sleeper(ours.entry()));
    let mut other = sleeper(theirs.entry());
    let mut unmarked = sleeper(("GREENROOM_DATA_", ours.entry().1));
    assert_eq!(ours.find().expect("find the marked").len(), 2);
    let found: BTreeSet<_> = sweep(&ours).expect("sweep").into_iter().collect();
    assert_eq!(found, BTreeSet::from([one.0.pid, two.0.pid]));
    assert!(!runs(one.0) && !runs(two.0) && runs(other.0) && runs(unmarked.0));
    assert!(sweep(&ours).expect("sweep again").is_empty());
    for (process, child) in [&mut one, &mut two, &mut other, &mut unmarked] {
        process.signal(Signal::KILL).expect("kill it");
        child.wait().expect("reap it");
    }
}

/// A server that a person starts inside of an agent carries a mark, too.
#[test]
fn a_sweep_spares_its_own_process() {
    let status = helper("shim::marked_sweeper").env("GREENROOM_DATA", "sweep_self").status();
    assert!(status.expect("run the sweeper").success());
}

#[test]
#[ignore = "run by a_sweep_spares_its_own_process"]
fn marked_sweeper() {
    assert!(sweep(&Marker::data("sweep_self")).expect("sweep").is_empty());
}

#[test]
fn descendants_are_found_across_sessions() {
    let mut shell = Command::new("sh")
        .args(["-c", "setsid sh -c 'sleep 1000 & echo; wait' & wait"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a shell");
    let mut stdout = BufReader::new(shell.stdout.take().expect("it has an output"));
    stdout.read_line(&mut String::new()).expect("wait for the sleeper");
    let below = descendants(shell.id()).expect("look below it");
    assert_eq!(below.len(), 2, "{below:?}");
    assert_eq!((parent(below[0].pid), parent(below[1].pid)), (shell.id(), below[0].pid));
    below.iter().for_each(|process| process.signal(Signal::KILL).expect("kill it"));
    shell.wait().expect("reap the shell");
}

/// A server in a process of its own, with one [`PROCESS_TREE`] below it.
struct Server {
    child: std::process::Child,
    process: Process,
    data: Marker,
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn server(shim_args: &[&str]) -> (Server, Vec<Process>) {
    let data = uuid::Uuid::now_v7();
    let mut child = helper("shim::server_with_a_process_tree")
        .env("KEEPER_DATA", data.to_string())
        .env("KEEPER_SHIM_ARGS", shim_args.join(" "))
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the server");
    let stdout = BufReader::new(child.stdout.take().expect("it has an output"));
    let process = Process::now(child.id()).expect("find the server");
    let server = Server { child, process, data: Marker::data(data) };
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
    let mut pids = Vec::new();
    while pids.len() < TREE_SIZE {
        let line = lines.recv_timeout(SOON).expect("read a line of the server");
        pids.extend(line.strip_prefix("process ").map(str::to_owned));
    }
    (server, processes(&pids))
}

/// Returns the command that runs one test of this program as a helper of another.
fn helper(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("find this program"));
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command
}

#[tokio::test]
#[ignore = "run by the tests that need a server to kill"]
async fn server_with_a_process_tree() {
    let Ok(data) = std::env::var("KEEPER_DATA") else { return };
    let args = std::env::var("KEEPER_SHIM_ARGS").expect("the shim's arguments");
    let shim_args = args.split_whitespace().map(str::to_owned).collect();
    let launch = Launch {
        data: Marker::data(data),
        shim_args,
        ..sh(&[PROCESS_TREE, UNTIL_SIGNAL].concat())
    };
    let heartbeat = Heartbeat::start(Duration::from_millis(100)).expect("start the heartbeat");
    let (_stdin, stdout, _stderr, mut handle) =
        parts(spawn(launch, &heartbeat, ()).expect("start"));
    let (tree, _stdout) = tree(stdout).await;
    started(&mut handle).await;
    println!();
    tree.iter().for_each(|process| println!("process {}", process.pid));
    // The test that started this server kills it.
    while handle.next().await != TreeEvent::Gone {}
}
