//! What an agent starts with: pipes, environment, descriptors, limits, signals, session.

use std::{
    collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path, thread, time::Duration,
};

use greenroom_actors::{
    process::{
        child::{Heartbeat, Launch, TreeEvent, spawn},
        proc::Marker,
    },
    profile::Rlimits,
    working_dir::WorkingDir,
};
use rustix::process::{Resource, Rlimit, getpgid, getrlimit, getsid, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    descriptors, exited, field, killed, lines, lines_to, parent, parts, proc_text, read_all, sh,
    soon, start, started,
};

#[tokio::test]
async fn pipes_pass_data_unchanged_and_close_both_ways() {
    let (stdin, stdout, mut stderr, mut handle) = parts(start(&sh("cat; echo done >&2")));
    let sent: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let (mut stdin, mut stdout) = (stdin, stdout);
    let (mut received, copy) = (Vec::new(), sent.clone());
    // Both at once: no pipe holds 12 MB.
    let write = async move { stdin.write_all(&copy).await.expect("write") };
    let (_, read) = soon(async { tokio::join!(write, stdout.read_to_end(&mut received)) }).await;
    read.expect("read");
    assert!(received == sent, "{} bytes came back", received.len());
    assert_eq!(read_all(&mut stderr).await, "done\n");
    assert!(matches!(soon(handle.next()).await, TreeEvent::Started { .. }));
    assert_eq!(soon(handle.next()).await, exited(0));
    assert_eq!(soon(handle.next()).await, TreeEvent::Gone);
    assert_eq!(soon(handle.next()).await, TreeEvent::Gone, "repeats");
}

#[tokio::test]
async fn arguments_of_any_length_arrive() {
    let mut launch = sh(r#"echo $# ${#2} "$3""#);
    let (long, odd) = ("x".repeat(100_000), "quote\" back\\ new\nline é");
    launch.args.extend(["sh".into(), long.clone(), long.clone(), odd.into()]);
    launch.args.extend(std::iter::repeat_n(long, 7));
    let (_stdin, mut stdout, _stderr, _handle) = parts(start(&launch));
    assert_eq!(read_all(&mut stdout).await, format!("10 100000 {odd}\n"));
}

/// F5: the shim reports how the agent ended.
#[tokio::test]
async fn exit_code_or_signal_is_reported() {
    #[rustfmt::skip]
    let cases = [
        ("exit 0",        exited(0)),
        ("exit 7",        exited(7)),
        ("kill -SEGV $$", killed(11)),
        ("kill -KILL $$", killed(9)),
    ];
    for (script, expected) in cases {
        let (_stdin, _stdout, _stderr, mut handle) = parts(start(&sh(script)));
        let process = started(&mut handle).await;
        assert_eq!(soon(handle.next()).await, expected, "{script}");
        assert_eq!(soon(handle.next()).await, TreeEvent::Gone, "{script}");
        assert!(!process.exists(), "{script}");
    }
}

/// F7: a failed start reports which part of the launch was wrong.
#[tokio::test]
async fn a_failed_start_reports_its_cause() {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = |name: &str, text: &str, mode| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set its mode");
        path
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let script = file("script", "#!/no/such/interpreter\n", 0o755);
    let missing = Path::new("/no/such");
    #[rustfmt::skip]
    let cases = [
        (missing,               Some(2),  "command /no/such was not found"),
        (Path::new("no-su"),    Some(2),  "command no-su was not found"),
        (&plain,                Some(13), "is not executable"),
        (&script,               Some(2),  "interpreter"),
        (Path::new("./script"), Some(2),  "interpreter"),
        (Path::new("./no-su"),  Some(2),  "command ./no-su was not found"),
        (Path::new("a\0b"),     None,     "cannot be started"),
    ];
    for (command, code, text) in cases {
        let cwd = WorkingDir::open(dir.path()).expect("open the directory");
        let launch = Launch { command: command.into(), cwd, ..sh("") };
        let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
        match soon(handle.next()).await {
            TreeEvent::SpawnFailed { errno, message } => {
                assert!(message.contains(text) && errno == code, "{errno:?}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
        assert_eq!(read_all(&mut stdout).await, "", "{text}");
        assert_eq!(soon(handle.next()).await, TreeEvent::Gone, "{text}");
    }
}

/// C12: the agent starts in the directory that was opened, whatever has its name by then.
#[tokio::test]
async fn the_agent_starts_in_the_open_directory() {
    let dir = tempfile::tempdir().expect("make a directory");
    let (opened, moved) = (dir.path().join("opened"), dir.path().join("moved"));
    fs::create_dir(&opened).expect("make a directory");
    let cwd = WorkingDir::open(&opened).expect("open it");
    fs::rename(&opened, &moved).expect("move it");
    std::os::unix::fs::symlink("/", &opened).expect("make a link");
    let launch = Launch { cwd, ..sh("pwd -P; read line") };
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    drop(launch);
    let agent = started(&mut handle).await;
    let moved = moved.canonicalize().expect("find it");
    assert_eq!(lines(&mut stdout, 1).await, [moved.display().to_string()]);
    let shims = descriptors(parent(agent.pid));
    assert!(shims.iter().all(|(_, to)| *to != moved), "{shims:?}");
}

/// C11: the agent's environment is the given one; the shim's environment and command line hold no
/// secret.
#[tokio::test]
async fn the_environment_is_cleared() {
    let mut launch = sh("env; echo; read line");
    launch.env.push(("API_KEY".into(), "s3cret=with=signs".into()));
    launch.args.extend(["sh".into(), "s3cret-argument".into()]);
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    let agent = started(&mut handle).await;
    let found: BTreeSet<String> = lines_to(&mut stdout, "").await.into_iter().collect();
    let marker = |marker: &Marker| format!("{}={}", marker.entry().0, marker.entry().1);
    let (run, data) = (marker(&launch.run), marker(&launch.data));
    let shells = ["PATH=", "PWD=", "_=", "OLDPWD=", "SHLVL="]; // the shell adds these
    let given: Vec<_> =
        found.iter().filter(|e| !shells.iter().any(|name| e.starts_with(name))).collect();
    assert_eq!(given, ["API_KEY=s3cret=with=signs", &data, &run]);

    let shim = parent(agent.pid);
    let environ = fs::read(format!("/proc/{shim}/environ")).expect("read the shim's environment");
    let environ = String::from_utf8(environ).expect("it is text");
    let environ: BTreeSet<_> = environ.split_terminator('\0').collect();
    assert_eq!(environ, BTreeSet::from([run.as_str(), &data]));
    let cmdline = fs::read(format!("/proc/{shim}/cmdline")).expect("read its command line");
    assert!(!String::from_utf8_lossy(&cmdline).contains("s3cret"));
}

/// C13: the agent has three descriptors and no other, even if the server leaks one; the shim
/// keeps no end of the agent's pipes.
#[tokio::test]
async fn the_agent_has_three_descriptors() {
    let leaked = fs::File::open("/dev/null").expect("open a file");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("make it inheritable");
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&sh("echo ready; read line")));
    let agent = started(&mut handle).await;
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
            for (stdin, mut stdout, _stderr, mut handle) in agents {
                drop(stdin);
                assert_eq!(read_all(&mut stdout).await, "");
                started(&mut handle).await;
                assert_eq!(soon(handle.next()).await, exited(0));
            }
        });
    };
    thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(start_some))));
}

/// C13: the agent gets the limits of the profile, soft and hard alike; without any, the soft limit
/// of open files that the server started with, which the agent may raise, and no core file.
#[tokio::test]
async fn the_agent_gets_the_limits_of_its_profile() {
    // The highest limits that a server may have.
    for resource in [Resource::Core, Resource::Nofile] {
        let maximum = getrlimit(resource).maximum;
        setrlimit(resource, Rlimit { current: maximum, maximum }).expect("raise a limit");
    }
    let maximum = getrlimit(Resource::Nofile).maximum;
    let named = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let hard = named(maximum);
    let some = Rlimits {
        open_files: Some(77),
        processes: Some(30_000),
        core_bytes: Some(1 << 20),
        file_bytes: Some(1 << 30),
        cpu_seconds: Some(600),
    };
    // What /proc shows: name, soft limit, hard limit.
    type Shown<'a> = (&'a str, &'a str, &'a str);
    #[rustfmt::skip]
    let cases: [(Rlimits, Option<u64>, &[Shown<'_>]); 3] = [
        (Rlimits::default(), Some(333), &[("open files", "333", &hard), ("core file size", "0", "0"), ("address space", "unlimited", "unlimited")]),
        (Rlimits::default(), None,      &[("open files", &hard, &hard), ("cpu time", "unlimited", "unlimited")]),
        (some,               Some(333), &[("open files", "77", "77"), ("processes", "30000", "30000"), ("core file size", "1048576", "1048576"),
                                          ("file size", "1073741824", "1073741824"), ("cpu time", "600", "600"), ("address space", "unlimited", "unlimited")]),
    ];
    for (rlimits, open_files, expected) in cases {
        let launch = Launch { rlimits, open_files, ..sh("echo ready; read line") };
        let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
        let agent = started(&mut handle).await;
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

/// A limit that the system does not allow is reported, and no agent starts.
#[tokio::test]
async fn a_refused_limit_is_named() {
    // No process may have more open files than the kernel's own limit, not even root's.
    let rlimits = Rlimits { open_files: Some(1 << 40), ..Rlimits::default() };
    let launch = Launch { rlimits, ..sh("echo ready") };
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    match soon(handle.next()).await {
        TreeEvent::SpawnFailed { message, .. } => {
            assert!(message.contains("open_files cannot be 1099511627776"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(read_all(&mut stdout).await, "");
    assert_eq!(soon(handle.next()).await, TreeEvent::Gone);
}

/// C13: an agent inherits no ignored or blocked signal of the server or its parent, and its shim
/// still learns how it ended.
#[tokio::test]
async fn the_agent_starts_with_default_signals() {
    let mut launch = sh("echo ready; read line; exit 4");
    launch.shim_args = vec![
        "--ignore-signal=HUP,INT,PIPE,CHLD,TSTP,XFSZ,USR1".into(),
        "--block-signal=TERM,USR2,CHLD".into(),
        launch.shim.to_str().expect("it is text").into(),
    ];
    launch.shim = "/usr/bin/env".into();
    let (stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    let agent = started(&mut handle).await;
    lines_to(&mut stdout, "ready").await;
    let status = proc_text(agent.pid, "status");
    // posix_spawn(3) ignores signals 32 and 33, which are the C library's own.
    const OF_THE_LIBRARY: u64 = 0b11 << 31;
    for (set, expected) in [("SigIgn:", OF_THE_LIBRARY), ("SigBlk:", 0)] {
        let found = u64::from_str_radix(&field(&status, set), 16).expect("a mask");
        assert_eq!(found | OF_THE_LIBRARY, expected | OF_THE_LIBRARY, "{set} {found:x}");
    }
    drop(stdin);
    assert_eq!(soon(handle.next()).await, exited(4));
}

/// C13: session and group of its own; `umask` and `no_new_privs` only if the profile sets
/// them.
#[tokio::test]
async fn the_agent_has_its_own_session_and_group() {
    for (umask, no_new_privs) in [(None, false), (Some(0o077), true)] {
        let launch = Launch { umask, no_new_privs, ..sh("echo ready; read line") };
        let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
        let agent = started(&mut handle).await;
        lines_to(&mut stdout, "ready").await;
        let pid = rustix::process::Pid::from_raw(agent.pid.cast_signed());
        assert_eq!(getpgid(pid).expect("read its group"), pid.expect("a pid"));
        let session = getsid(pid).expect("read its session").as_raw_pid();
        assert_eq!(session.cast_unsigned(), parent(agent.pid));

        let (of_test, of_agent) =
            (proc_text(std::process::id(), "status"), proc_text(agent.pid, "status"));
        let expected = umask.map_or(field(&of_test, "Umask:"), |mask| format!("{mask:04o}"));
        assert_eq!(field(&of_agent, "Umask:"), expected);
        assert_eq!(field(&of_agent, "NoNewPrivs:"), u32::from(no_new_privs).to_string());
    }
}
