//! The keeper with real processes: what an agent gets, and that nothing of it is left (I10).
//!
//! Agents are shell scripts. Every wait is for an event and has an end.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use greenroom_actors::agent::{
    child::{Child, Heartbeat, Keeper, Launch, TreeEvent, spawn},
    tree::{Marker, Process, become_subreaper, descendants, sweep},
};
use greenroom_actors::profile::Rlimits;
use rustix::process::{Resource, Rlimit, Signal, getpgid, getrlimit, getsid, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::Receiver,
    time::timeout,
};

#[path = "keeper/fork_chains.rs"]
mod fork_chains;

/// The longest wait for what should come at once, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// I10: no process outlives its run by more.
const ORPHANS_MAX: Duration = Duration::from_secs(5);
/// F9: nobody waits longer for EOF.
const EOF_MAX: Duration = Duration::from_secs(2);

/// Children of all kinds that a plain kill of the agent would miss. Each prints its pid, and so
/// does the agent, which then goes on as the test wants. Those with a mark do not exec any more, as
/// in the middle of an exec a process shows none.
const BROOD: &str = r#"
    setsid sh -c 'echo $$; sleep 1000; :' &
    ( ( sh -c 'trap "" TERM; echo $$; while :; do sleep 1000; done' & ) & )
    ( setsid sh -c 'setsid sh -c "echo \$\$; sleep 1000; :" &' & )
    sh -c 'echo $$; exec >/dev/null; sleep 1000; :' &
    env -i setsid /bin/sh -c 'echo $$; exec sleep 1000' &
    echo $$
"#;
/// An agent that ends with its input, and one that nothing but a signal ends.
const UNTIL_EOF: &str = "read line; exit 3";
const DEAF: &str = "sleep 1000; :";
const BROOD_SIZE: usize = 6;

// ---- what an agent gets

#[tokio::test]
async fn data_passes_unchanged_and_ends_both_ways() {
    let (stdin, stdout, mut stderr, mut keeper) = parts(start(&sh("cat; echo done >&2")));
    let sent: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let (mut stdin, mut stdout) = (stdin, stdout);
    let (mut received, copy) = (Vec::new(), sent.clone());
    // Both at once: no pipe holds 12 MB.
    let write = async move { stdin.write_all(&copy).await.expect("write") };
    let (_, read) = soon(async { tokio::join!(write, stdout.read_to_end(&mut received)) }).await;
    read.expect("read");
    assert!(received == sent, "{} bytes came back", received.len());
    assert_eq!(rest(&mut stderr).await, "done\n");
    assert!(matches!(soon(keeper.next()).await, TreeEvent::Started { .. }));
    assert_eq!(soon(keeper.next()).await, exited(0));
    assert_eq!(soon(keeper.next()).await, TreeEvent::Gone);
    assert_eq!(soon(keeper.next()).await, TreeEvent::Gone, "repeats");
}

#[tokio::test]
async fn a_launch_of_any_length_arrives() {
    let mut launch = sh(r#"echo $# ${#2} "$3""#);
    let (long, odd) = ("x".repeat(100_000), "quote\" back\\ new\nline é");
    launch.args.extend(["sh".into(), long.clone(), long.clone(), odd.into()]);
    launch.args.extend(std::iter::repeat_n(long, 7));
    let (_stdin, mut stdout, _stderr, _keeper) = parts(start(&launch));
    assert_eq!(rest(&mut stdout).await, format!("10 100000 {odd}\n"));
}

/// F5: however the agent ends, it is told.
#[tokio::test]
async fn exit_code_or_signal_is_told() {
    #[rustfmt::skip]
    let cases = [
        ("exit 0",        exited(0)),
        ("exit 7",        exited(7)),
        ("kill -SEGV $$", killed(11)),
        ("kill -KILL $$", killed(9)),
    ];
    for (script, expected) in cases {
        let (_stdin, _stdout, _stderr, mut keeper) = parts(start(&sh(script)));
        let process = started(&mut keeper).await;
        assert_eq!(soon(keeper.next()).await, expected, "{script}");
        assert_eq!(soon(keeper.next()).await, TreeEvent::Gone, "{script}");
        assert!(!process.exists(), "{script}");
    }
}

/// F7: a start that fails says which part of the launch was wrong.
#[tokio::test]
async fn a_failed_start_says_why() {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = |name: &str, text: &str, mode| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set its mode");
        path
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let script = file("script", "#!/no/such/interpreter\n", 0o755);
    let (here, missing) = (Path::new("/"), Path::new("/no/such"));
    #[rustfmt::skip]
    let cases = [
        (missing,            here,    Some(2),  "command /no/such was not found"),
        (Path::new("no-su"), here,    Some(2),  "command no-su was not found"),
        (&plain,             here,    Some(13), "is not executable"),
        (&script,            here,    Some(2),  "interpreter"),
        (Path::new("sh"),    missing, Some(2),  "directory /no/such is missing"),
        (Path::new("sh"),    &plain,  Some(20), "or no directory"),
        (Path::new("a\0b"),  here,    None,     "cannot be started"),
    ];
    for (command, cwd, code, text) in cases {
        let launch = Launch { command: command.into(), cwd: cwd.into(), ..sh("") };
        let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
        match soon(keeper.next()).await {
            TreeEvent::SpawnFailed { errno, message } => {
                assert!(message.contains(text) && errno == code, "{errno:?}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
        assert_eq!(rest(&mut stdout).await, "", "{text}");
        assert_eq!(soon(keeper.next()).await, TreeEvent::Gone, "{text}");
    }
}

/// A program that is no shim is noticed, and leaves nothing.
#[tokio::test]
async fn a_shim_that_is_none_is_gone() {
    let launch = Launch { shim: "/usr/bin/head".into(), shim_args: vec!["-c1".into()], ..sh("") };
    let mut child = start(&launch);
    assert_eq!(soon(child.keeper.next()).await, TreeEvent::Gone);
    let launch = Launch { shim: "/no/such/shim".into(), ..sh("") };
    let heartbeat = Heartbeat::start(SOON).expect("start the heartbeat");
    let err = spawn(launch, &heartbeat, ()).expect_err("there is no such shim");
    assert_eq!(err.kind(), io::ErrorKind::NotFound);
}

/// C11: the agent's environment is what was given; the keeper's holds and shows no secret.
#[tokio::test]
async fn the_environment_is_cleared() {
    let mut launch = sh("env; echo; read line");
    launch.env.push(("API_KEY".into(), "s3cret=with=signs".into()));
    launch.args.extend(["sh".into(), "s3cret-argument".into()]);
    let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
    let agent = started(&mut keeper).await;
    let found: BTreeSet<String> = lines_to(&mut stdout, "").await.into_iter().collect();
    let marker = |marker: &Marker| format!("{}={}", marker.entry().0, marker.entry().1);
    let (run, data) = (marker(&launch.run), marker(&launch.data));
    let own = ["PATH=", "PWD=", "_=", "OLDPWD=", "SHLVL="]; // and what the shell itself adds
    let given: Vec<_> = found.iter().filter(|e| !own.iter().any(|o| e.starts_with(o))).collect();
    assert_eq!(given, ["API_KEY=s3cret=with=signs", &data, &run]);

    let shim = parent(agent.pid);
    let environ = fs::read(format!("/proc/{shim}/environ")).expect("read the keeper's environment");
    let environ = String::from_utf8(environ).expect("it is text");
    let environ: BTreeSet<_> = environ.split_terminator('\0').collect();
    assert_eq!(environ, BTreeSet::from([run.as_str(), &data]));
    let cmdline = fs::read(format!("/proc/{shim}/cmdline")).expect("read its command line");
    assert!(!String::from_utf8_lossy(&cmdline).contains("s3cret"));
}

/// C13: three descriptors and no other, even if the server leaks one; and the keeper keeps no end
/// of the agent's pipes.
#[tokio::test]
async fn the_agent_has_three_descriptors() {
    let leaked = fs::File::open("/dev/null").expect("open a file");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("make it inheritable");
    let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&sh("echo ready; read line")));
    let agent = started(&mut keeper).await;
    lines_to(&mut stdout, "ready").await;
    let pipes = descriptors(agent.pid);
    assert_eq!(pipes.iter().map(|(fd, _)| fd.as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    let shims = descriptors(parent(agent.pid));
    let shared: Vec<_> = shims.iter().filter(|(_, to)| pipes.iter().any(|p| p.1 == *to)).collect();
    assert!(shared.is_empty(), "{shared:?}");
    drop(leaked);
}

/// Agents that start at the same time on several threads do not hold each other's pipes open.
#[test]
fn concurrent_starts_share_no_pipe() {
    let heartbeat = Heartbeat::start(Duration::from_secs(5)).expect("start the heartbeat");
    let start_some = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("build a runtime").block_on(async {
            let agents: Vec<_> =
                (0..8).map(|_| parts(spawn(sh("cat"), &heartbeat, ()).expect("start"))).collect();
            // One after the other, while all later ones still run.
            for (stdin, mut stdout, _stderr, mut keeper) in agents {
                drop(stdin);
                assert_eq!(rest(&mut stdout).await, "");
                started(&mut keeper).await;
                assert_eq!(soon(keeper.next()).await, exited(0));
            }
        });
    };
    thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(start_some))));
}

/// C13: the limits of the profile, soft and hard ones alike; without any, the soft limit of open
/// files that the server was started with, which the agent may raise, and no core file.
#[tokio::test]
async fn limits_are_the_profiles() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("raise a limit");
    let named = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let hard = named(maximum);
    let some = Rlimits {
        open_files: Some(77),
        processes: Some(30_000),
        core_bytes: 1 << 20,
        file_bytes: Some(1 << 30),
        cpu_seconds: Some(600),
    };
    // What /proc shows: name, soft limit, hard limit.
    type Shown<'a> = (&'a str, &'a str, &'a str);
    #[rustfmt::skip]
    let cases: [(Rlimits, Option<u64>, &[Shown<'_>]); 3] = [
        (Rlimits::default(), Some(333), &[("open files", "333", &hard), ("core file size", "0", "0")]),
        (Rlimits::default(), None,      &[("open files", &hard, &hard), ("cpu time", "unlimited", "unlimited")]),
        (some,               Some(333), &[("open files", "77", "77"), ("processes", "30000", "30000"), ("core file size", "1048576", "1048576"),
                                          ("file size", "1073741824", "1073741824"), ("cpu time", "600", "600"), ("address space", "unlimited", "unlimited")]),
    ];
    for (rlimits, open_files, expected) in cases {
        let launch = Launch { rlimits, open_files, ..sh("echo ready; read line") };
        let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
        let agent = started(&mut keeper).await;
        lines_to(&mut stdout, "ready").await;
        let limits = proc_text(agent.pid, "limits");
        for (name, soft, hard) in expected {
            let name = format!("Max {name}");
            let line = limits.lines().find_map(|line| line.strip_prefix(&name)).expect(&name);
            let found: Vec<&str> = line.split_whitespace().take(2).collect();
            assert_eq!(found, [*soft, *hard], "{name}");
        }
    }
}

/// A limit that the system does not allow says so, and starts nothing.
#[tokio::test]
async fn a_limit_that_is_refused_is_named() {
    // Nobody has more open files than the kernel's own limit, not even root.
    let rlimits = Rlimits { open_files: Some(1 << 40), ..Rlimits::default() };
    let launch = Launch { rlimits, ..sh("echo ready") };
    let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
    match soon(keeper.next()).await {
        TreeEvent::SpawnFailed { message, .. } => {
            assert!(message.contains("open_files cannot be 1099511627776"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rest(&mut stdout).await, "");
    assert_eq!(soon(keeper.next()).await, TreeEvent::Gone);
}

/// C13: whatever the server, or who started it, ignores or blocks, an agent starts with nothing of
/// it; and its keeper still learns how it ended.
#[tokio::test]
async fn signals_are_as_for_any_program() {
    let mut launch = sh("echo ready; read line; exit 4");
    launch.shim_args = vec![
        "--ignore-signal=HUP,INT,PIPE,CHLD,TSTP,XFSZ,USR1".into(),
        "--block-signal=TERM,USR2,CHLD".into(),
        launch.shim.to_str().expect("it is text").into(),
    ];
    launch.shim = "/usr/bin/env".into();
    let (stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
    let agent = started(&mut keeper).await;
    lines_to(&mut stdout, "ready").await;
    let status = proc_text(agent.pid, "status");
    // posix_spawn(3) ignores signals 32 and 33, which are the C library's own.
    const LIBRARYS_OWN: u64 = 0b11 << 31;
    for (set, expected) in [("SigIgn:", LIBRARYS_OWN), ("SigBlk:", 0)] {
        let found = u64::from_str_radix(&field(&status, set), 16).expect("a mask");
        assert_eq!(found | LIBRARYS_OWN, expected | LIBRARYS_OWN, "{set} {found:x}");
    }
    drop(stdin);
    assert_eq!(soon(keeper.next()).await, exited(4));
}

/// C13: session, group, limits; `umask` and `no_new_privs` only where asked for.
#[tokio::test]
async fn the_agent_stands_apart() {
    // As generous as a server's limits may be.
    for resource in [Resource::Core, Resource::Nofile] {
        let maximum = getrlimit(resource).maximum;
        setrlimit(resource, Rlimit { current: maximum, maximum }).expect("raise a limit");
    }
    for (umask, no_new_privs) in [(None, false), (Some(0o077), true)] {
        let launch = Launch { umask, no_new_privs, ..sh("echo ready; read line") };
        let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
        let agent = started(&mut keeper).await;
        lines_to(&mut stdout, "ready").await;
        let pid = rustix::process::Pid::from_raw(agent.pid.cast_signed());
        assert_eq!(getpgid(pid).expect("read its group"), pid.expect("a pid"));
        let session = getsid(pid).expect("read its session").as_raw_pid();
        assert_eq!(session.cast_unsigned(), parent(agent.pid));

        let limits = proc_text(agent.pid, "limits");
        let limit = |name| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.split_whitespace().next().expect(name).to_owned()
        };
        assert_eq!(limit("Max core file size"), "0");
        assert_eq!(limit("Max open files"), "1024");
        assert_eq!(limit("Max address space"), "unlimited");

        let (own, of_agent) =
            (proc_text(std::process::id(), "status"), proc_text(agent.pid, "status"));
        let expected = umask.map_or(field(&own, "Umask:"), |mask| format!("{mask:04o}"));
        assert_eq!(field(&of_agent, "Umask:"), expected);
        assert_eq!(field(&of_agent, "NoNewPrivs:"), u32::from(no_new_privs).to_string());
    }
}

// ---- how a tree ends (F9, I10, AM-42)

#[tokio::test]
async fn all_die_when_the_agent_exits() {
    let launch = sh(&[BROOD, UNTIL_EOF].concat());
    let (stdin, stdout, _stderr, mut keeper) = parts(start(&launch));
    let (brood, stdout) = brood(stdout).await;
    started(&mut keeper).await;
    drop(stdin);
    assert_eq!(soon(keeper.next()).await, exited(3));
    all_gone(&brood, stdout, keeper).await;
}

#[tokio::test]
async fn all_die_when_killed() {
    let (_stdin, stdout, _stderr, mut keeper) = parts(start(&sh(&[BROOD, DEAF].concat())));
    let (brood, stdout) = brood(stdout).await;
    started(&mut keeper).await;
    (0..100).for_each(|_| keeper.kill());
    assert_eq!(soon(keeper.next()).await, killed(9));
    all_gone(&brood, stdout, keeper).await;
}

#[tokio::test]
async fn all_die_when_the_keeper_is_dropped() {
    let (_stdin, stdout, _stderr, keeper) = parts(start(&sh(&[BROOD, DEAF].concat())));
    let (brood, mut stdout) = brood(stdout).await;
    drop(keeper);
    timeout(EOF_MAX, rest(&mut stdout)).await.expect("EOF in time");
    eventually_none_runs(&brood).await;
}

/// What is held for a tree is given back when nothing of it is left, however it ends: its place
/// among the residents is.
#[tokio::test]
async fn what_is_held_is_dropped_when_nothing_is_left() {
    struct Held(Vec<Process>, mpsc::Sender<bool>, mpsc::Receiver<Vec<Process>>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.extend(self.2.try_iter().flatten());
            // Whoever waited for it may have failed.
            let _ = self.1.send(!self.0.is_empty() && !self.0.iter().copied().any(runs));
        }
    }
    become_subreaper().expect("become a subreaper");
    for end in ["drop", "kill", "shim"] {
        let ((dropped, was), (tell, told)) = (mpsc::channel(), mpsc::channel());
        let heartbeat = Heartbeat::start(SOON).expect("start the heartbeat");
        let launch = sh(&[BROOD, DEAF].concat());
        let child = spawn(launch, &heartbeat, Held(Vec::new(), dropped, told)).expect("start");
        let (_stdin, stdout, _stderr, mut keeper) = parts(child);
        let (brood, _stdout) = brood(stdout).await;
        let agent = started(&mut keeper).await;
        tell.send(brood).expect("it is still held");
        assert!(was.try_recv().is_err(), "{end}: it is held while they live");
        match end {
            "drop" => drop(keeper),
            "kill" => keeper.kill(),
            _ => Process::now(parent(agent.pid))
                .and_then(|shim| shim.signal(Signal::KILL))
                .expect("kill"),
        }
        let was = tokio::task::spawn_blocking(move || was.recv_timeout(SOON));
        assert_eq!(was.await.expect("wait for it"), Ok(true), "{end}");
    }
    // One that cannot be started holds nothing.
    let ((dropped, was), (_tell, told)) = (mpsc::channel(), mpsc::channel());
    let heartbeat = Heartbeat::start(SOON).expect("start the heartbeat");
    let launch = Launch { shim: "/no/such/shim".into(), ..sh("") };
    spawn(launch, &heartbeat, Held(Vec::new(), dropped, told)).expect_err("there is no such shim");
    was.try_recv().expect("it was dropped");
}

/// Also those that the server cannot know by their mark: it adopts them.
#[tokio::test]
async fn all_die_when_the_shim_is_killed() {
    become_subreaper().expect("become a subreaper");
    let (_stdin, stdout, _stderr, mut keeper) = parts(start(&sh(&[BROOD, DEAF].concat())));
    let (brood, stdout) = brood(stdout).await;
    let agent = started(&mut keeper).await;
    // A second run, whose shim is well: it is no orphan, and must not be taken for one.
    let (_in, mut other_out, _err, mut other) = parts(start(&sh("echo ready; read line")));
    lines_to(&mut other_out, "ready").await;
    let other_agent = started(&mut other).await;
    let shim = Process::now(parent(agent.pid)).expect("find the shim");
    shim.signal(Signal::KILL).expect("kill the shim");
    all_gone(&brood, stdout, keeper).await;
    // Not even as zombies: the server reaped what it adopted.
    assert!(!brood.iter().any(|process| process.exists()) && !shim.exists());
    assert!(runs(other_agent));
}

#[tokio::test]
async fn all_die_when_their_runtime_ends() {
    // It beats all the time, and still holds on to no socket.
    let heartbeat = Heartbeat::start(Duration::from_millis(1)).expect("start the heartbeat");
    let runs_in_another = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("build a runtime").block_on(async {
            let launch = sh(&[BROOD, DEAF].concat());
            let (stdin, stdout, stderr, keeper) =
                parts(spawn(launch, &heartbeat, ()).expect("start"));
            let (brood, stdout) = brood(stdout).await;
            // Forgotten, so that it is the runtime's end that does it.
            std::mem::forget((stdin, stdout, stderr, keeper, heartbeat));
            brood
        })
    };
    let brood = thread::spawn(runs_in_another).join().expect("run it");
    eventually_none_runs(&brood).await;
}

/// The agent can stop its keeper, as the same user. The server then does the work itself.
#[tokio::test]
async fn all_die_when_the_shim_is_stopped() {
    become_subreaper().expect("become a subreaper");
    let script = format!("kill -STOP $PPID; {BROOD} {DEAF}");
    let (_stdin, stdout, _stderr, mut keeper) = parts(start(&sh(&script)));
    let (brood, _stdout) = brood(stdout).await;
    keeper.kill();
    // Whether the start was told before the stop is a matter of luck.
    soon(async { while keeper.next().await != TreeEvent::Gone {} }).await;
    assert!(!brood.iter().copied().any(runs));
}

/// AM-42: the wrapper ends at TERM and tells nobody; what it wrapped has time to save itself.
#[tokio::test]
async fn a_wrapped_agent_gets_term_and_time() {
    let agent =
        r#"trap "sleep 0.3; echo saved; exit 0" TERM; echo ready; while :; do sleep 0.05; done"#;
    let launch = sh(&format!("sh -c '{agent}' & wait"));
    let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
    lines_to(&mut stdout, "ready").await;
    started(&mut keeper).await;
    (0..3).for_each(|_| keeper.terminate());
    assert_eq!(soon(keeper.next()).await, killed(15));
    assert_eq!(rest(&mut stdout).await, "saved\n");
    assert_eq!(soon(keeper.next()).await, TreeEvent::Gone);
}

/// What a wrapper leaves behind and ignores TERM is killed without a further order.
#[tokio::test]
async fn a_wrapped_agent_that_ignores_term_is_killed() {
    let launch = sh("sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1000; done' & wait");
    let (_stdin, mut stdout, _stderr, mut keeper) = parts(start(&launch));
    let agent = processes(&lines(&mut stdout, 1).await);
    started(&mut keeper).await;
    keeper.terminate();
    assert_eq!(soon(keeper.next()).await, killed(15));
    assert_eq!(timeout(ORPHANS_MAX, keeper.next()).await, Ok(TreeEvent::Gone));
    assert!(!runs(agent[0]));
}

/// The ladder's steps are apart: TERM alone kills nobody who ignores it.
#[tokio::test]
async fn term_is_not_kill() {
    let script = "trap '' TERM; echo ready; while read line; do echo $line; done";
    let (mut stdin, mut stdout, _stderr, mut keeper) = parts(start(&sh(script)));
    lines_to(&mut stdout, "ready").await;
    started(&mut keeper).await;
    keeper.terminate();
    stdin.write_all(b"still there\n").await.expect("write");
    assert_eq!(lines(&mut stdout, 1).await, ["still there"]);
    keeper.kill();
    assert_eq!(soon(keeper.next()).await, killed(9));
    assert_eq!(soon(keeper.next()).await, TreeEvent::Gone);
}

// ---- a server that dies, stops, or is merely slow (F2)

#[test]
fn all_die_when_the_server_is_killed() {
    let (server, brood) = server(&[]);
    server.process.signal(Signal::KILL).expect("kill the server");
    wait_until_none_runs(&brood);
}

#[test]
fn all_die_when_the_server_is_stopped() {
    let (server, brood) = server(&["--silence-ms", "1000"]);
    server.process.signal(Signal::STOP).expect("stop the server");
    wait_until_none_runs(&brood);
}

/// Both at once: the agent dies by its parent-death signal, the rest at the next boot.
#[test]
fn all_marked_die_at_boot_when_server_and_shim_were_killed() {
    let (server, brood) = server(&[]);
    let (agent, shim) = agent_and_shim(&brood);
    let (marked, unmarked): (Vec<Process>, Vec<Process>) = brood
        .iter()
        .partition(|process| proc_text(process.pid, "environ").contains("GREENROOM_DATA="));
    assert_eq!((unmarked.len(), marked.len()), (1, BROOD_SIZE - 1));

    // Stopped first, so that neither can act on the other's death.
    for signal in [Signal::STOP, Signal::KILL] {
        shim.signal(signal).expect("signal the shim");
        server.process.signal(signal).expect("signal the server");
    }
    wait_until_none_runs(&[agent]);
    assert!(!sweep(&server.data).expect("sweep").is_empty());
    wait_until_none_runs(&marked);
    // A cleared environment escapes when both die, as I10 says.
    unmarked[0].signal(Signal::KILL).expect("kill it");
}

/// A sweep leaves a shim the time to kill what only the shim can find.
#[test]
fn a_sweep_lets_a_shim_finish() {
    let (server, brood) = server(&[]);
    let (agent, shim) = agent_and_shim(&brood);
    shim.signal(Signal::STOP).expect("stop the shim");
    server.process.signal(Signal::KILL).expect("kill the server");
    thread::scope(|scope| {
        let sweep = scope.spawn(|| sweep(&server.data).expect("sweep"));
        wait_until_none_runs(&[agent]);
        shim.signal(Signal::CONT).expect("continue the shim");
        assert!(sweep.join().expect("join").contains(&shim.pid));
    });
    wait_until_none_runs(&brood);
}

/// A server that does nothing but live is not silent.
#[tokio::test]
async fn heartbeats_keep_the_agent() {
    let mut launch = sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; exit 5");
    launch.shim_args = vec!["--silence-ms".into(), "400".into()];
    let heartbeat = Heartbeat::start(Duration::from_millis(50)).expect("start the heartbeat");
    let mut child = spawn(launch, &heartbeat, ()).expect("start");
    started(&mut child.keeper).await;
    assert_eq!(soon(child.keeper.next()).await, exited(5));
}

/// And without one, the agent is killed: the counter-proof.
#[tokio::test]
async fn silence_kills_the_agent() {
    let mut launch = sh(&[BROOD, DEAF].concat());
    launch.shim_args = vec!["--silence-ms".into(), "400".into()];
    let (_stdin, stdout, _stderr, mut keeper) = parts(start(&launch));
    let (brood, stdout) = brood(stdout).await;
    started(&mut keeper).await;
    assert_eq!(soon(keeper.next()).await, killed(9));
    all_gone(&brood, stdout, keeper).await;
}

/// A shim that was itself stopped (a frozen container) does not take that for silence.
#[tokio::test]
async fn the_shims_own_pause_is_no_silence() {
    // The agent stops and continues its own keeper, for twice the silence borne.
    let mut launch = sh("kill -STOP $PPID; sleep 1.6; kill -CONT $PPID; sleep 0.2; exit 5");
    launch.shim_args = vec!["--silence-ms".into(), "800".into()];
    let (_stdin, _stdout, _stderr, mut keeper) = parts(start(&launch));
    started(&mut keeper).await;
    assert_eq!(soon(keeper.next()).await, exited(5));
}

// ---- leftovers of earlier runs

#[test]
fn a_sweep_kills_the_marked_and_no_others() {
    let id = uuid::Uuid::now_v7();
    let (ours, theirs) = (Marker::data(id), Marker::data(format!("{id}_not")));
    // Sleeps until this test ends, however it does.
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

/// A server started by hand inside of an agent carries a mark, too.
#[test]
fn a_sweep_spares_its_own_process() {
    let status = helper("marked_sweeper").env("GREENROOM_DATA", "sweep_self").status();
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

// ---- the pieces

fn sh(script: &str) -> Launch {
    let id = uuid::Uuid::now_v7();
    Launch {
        shim: shim(),
        shim_args: Vec::new(),
        command: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: "/".into(),
        umask: None,
        no_new_privs: false,
        rlimits: Rlimits::default(),
        open_files: Some(1024),
        run: Marker::run(format!("run_{id}")),
        data: Marker::data(id),
        reaped: Default::default(),
    }
}

/// The keeper's program, which Cargo builds beside the tests.
fn shim() -> PathBuf {
    let test = std::env::current_exe().expect("find this program");
    let target = test.ancestors().nth(2).expect("it lies in <target>/<profile>/deps");
    target.join("examples/shim")
}

/// Starts an agent that hears no heartbeat for as long as a test takes.
fn start(launch: &Launch) -> Child {
    let heartbeat = Heartbeat::start(Duration::from_secs(3600)).expect("start the heartbeat");
    spawn(launch.clone(), &heartbeat, ()).expect("start the shim")
}

fn parts(child: Child) -> (tokio::net::unix::pipe::Sender, Receiver, Receiver, Keeper) {
    (child.stdin, child.stdout, child.stderr, child.keeper)
}

fn exited(code: i32) -> TreeEvent {
    TreeEvent::Exited { code: Some(code), signal: None }
}

fn killed(signal: i32) -> TreeEvent {
    TreeEvent::Exited { code: None, signal: Some(signal) }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it should have come by now")
}

async fn started(keeper: &mut Keeper) -> Process {
    match soon(keeper.next()).await {
        TreeEvent::Started { pid, start_time } => Process { pid, start_time },
        other => panic!("not started: {other:?}"),
    }
}

/// All that still comes from a pipe, to its end.
async fn rest(pipe: &mut Receiver) -> String {
    let mut text = String::new();
    soon(pipe.read_to_string(&mut text)).await.expect("read to the end");
    text
}

async fn line(pipe: &mut Receiver) -> String {
    let mut line = Vec::new();
    // Byte by byte: what follows the line stays in the pipe.
    while let byte = soon(pipe.read_u8()).await.expect("read a line")
        && byte != b'\n'
    {
        line.push(byte);
    }
    String::from_utf8(line).expect("it is text")
}

async fn lines(pipe: &mut Receiver, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        lines.push(line(pipe).await);
    }
    lines
}

/// The lines before the line `end`.
async fn lines_to(pipe: &mut Receiver, end: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        match line(pipe).await {
            line if line == end => return lines,
            line => lines.push(line),
        }
    }
}

/// The processes of [`BROOD`], once all are there.
async fn brood(mut stdout: Receiver) -> (Vec<Process>, Receiver) {
    let brood = processes(&lines(&mut stdout, BROOD_SIZE).await);
    (brood, stdout)
}

fn processes(pids: &[String]) -> Vec<Process> {
    pids.iter().map(|pid| Process::now(pid.parse().expect("a pid")).expect("it runs")).collect()
}

/// I10 and F9: EOF, the last event, and no process left, each in its time.
async fn all_gone(brood: &[Process], mut stdout: Receiver, mut keeper: Keeper) {
    let last = timeout(ORPHANS_MAX, async { while keeper.next().await != TreeEvent::Gone {} });
    let eof = timeout(EOF_MAX, rest(&mut stdout));
    let (eof, last) = tokio::join!(eof, last);
    assert_eq!(eof.expect("EOF in time"), "");
    last.expect("the last event in time");
    let left: Vec<_> = brood.iter().filter(|process| runs(**process)).collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn eventually_none_runs(brood: &[Process]) {
    let none = async {
        while brood.iter().copied().any(runs) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(ORPHANS_MAX, none).await.expect("all dead in time");
}

fn wait_until_none_runs(brood: &[Process]) {
    let began = Instant::now();
    while brood.iter().copied().any(runs) {
        assert!(began.elapsed() < ORPHANS_MAX, "still running");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and not a zombie.
fn runs(process: Process) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid));
    process.exists() && status.is_ok_and(|status| !field(&status, "State:").starts_with('Z'))
}

fn parent(pid: u32) -> u32 {
    field(&proc_text(pid, "status"), "PPid:").parse().expect("a pid")
}

fn proc_text(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read /proc")
}

/// Of a [`BROOD`] without its server: the agent is what leads a group in the shim's session.
fn agent_and_shim(brood: &[Process]) -> (Process, Process) {
    let above = |process: &Process| Process::now(parent(process.pid)).expect("find its parent");
    let is_shim = |above: &Process| proc_text(above.pid, "comm").trim() == "greenroom-shim";
    let shim = brood.iter().map(above).find(is_shim).expect("find the shim");
    let leads_in_session = |process: &&Process| {
        let status = proc_text(process.pid, "status");
        field(&status, "NSpgid:") == process.pid.to_string()
            && field(&status, "NSsid:") == shim.pid.to_string()
    };
    (*brood.iter().find(leads_in_session).expect("find the agent"), shim)
}

fn field(text: &str, name: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned()
}

fn descriptors(pid: u32) -> Vec<(String, OsString)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors");
    let mut found: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("read one");
            let to = fs::read_link(entry.path()).expect("follow it").into_os_string();
            (entry.file_name().into_string().expect("a number"), to)
        })
        .collect();
    found.sort();
    found
}

/// A server of its own process, with one [`BROOD`] under it.
struct Server {
    child: std::process::Child,
    process: Process,
    data: Marker,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(shim_args: &[&str]) -> (Server, Vec<Process>) {
    let data = uuid::Uuid::now_v7();
    let mut child = helper("brooding_server")
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
    while pids.len() < BROOD_SIZE {
        let line = lines.recv_timeout(SOON).expect("hear from the server");
        pids.extend(line.strip_prefix("brood ").map(str::to_owned));
    }
    (server, processes(&pids))
}

/// This program again, to run one test that is a helper of another.
fn helper(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("find this program"));
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command
}

#[tokio::test]
#[ignore = "run by the tests that need a server to kill"]
async fn brooding_server() {
    let Ok(data) = std::env::var("KEEPER_DATA") else { return };
    let args = std::env::var("KEEPER_SHIM_ARGS").expect("the shim's arguments");
    let shim_args = args.split_whitespace().map(str::to_owned).collect();
    let launch = Launch { data: Marker::data(data), shim_args, ..sh(&[BROOD, DEAF].concat()) };
    let heartbeat = Heartbeat::start(Duration::from_millis(100)).expect("start the heartbeat");
    let (_stdin, stdout, _stderr, mut keeper) =
        parts(spawn(launch, &heartbeat, ()).expect("start"));
    let (brood, _stdout) = brood(stdout).await;
    started(&mut keeper).await;
    println!();
    brood.iter().for_each(|process| println!("brood {}", process.pid));
    // Until it is killed.
    while keeper.next().await != TreeEvent::Gone {}
}
