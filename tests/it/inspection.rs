//! What an agent can see of the server and of its shim, and do to them, as the same user.
//!
//! The server and the agent run without the capabilities that let root look into every process: so
//! these tests show the same as root and as another user.

use std::{fs, os::unix::fs::PermissionsExt as _};

use rustix::process::{Signal, getuid};

use crate::support::{
    Setup,
    process::{self, KillOnDrop},
    setup::scripted_agent,
};

/// Removes the capabilities to look into the processes and files of others.
const WITHOUT: [&str; 2] =
    ["setpriv", "--bounding-set=-sys_ptrace,-sys_admin,-perfmon,-dac_override,-dac_read_search"];

/// The agent's program: tries to look into the shim, the server and, as the counter-proof, into a
/// process that it starts; writes what worked to `$SCRIPT_DIR/open`; then is the scripted agent.
const PROBE: &str = r#"#!/bin/sh
sleep 1000 </dev/null >/dev/null 2>&1 &
own=$!
shim=$PPID
server=$(sed -n 's/^PPid:\t//p' /proc/$shim/status)
until [ "$(cat /proc/$own/comm)" = sleep ]; do :; done
for name in own shim server; do
    eval pid=\$$name
    for file in environ maps auxv; do
        grep -qa . /proc/$pid/$file && echo $name $file
    done
    (: <>/proc/$pid/mem) && echo $name mem
    for link in cwd exe root fd/0; do
        readlink /proc/$pid/$link >/dev/null && echo $name $link
    done
    (echo '{"event":"gone"}' >/proc/$pid/fd/0) && echo $name report
    # pidfd_open(2) and pidfd_getfd(2); a report of the end, if it gets the control socket.
    perl -e 'my $pidfd = syscall(434, $ARGV[0] + 0, 0);
        for my $number (0 .. 63) {
            my $fd = syscall(438, $pidfd, $number, 0);
            next if $fd < 0;
            print "$ARGV[1] descriptor\n";
            open my $taken, ">&=", $fd or next;
            syswrite $taken, "{\"event\":\"gone\"}\n" if -S $taken;
            last;
        }' $pid $name
done >"$SCRIPT_DIR/open" 2>"$SCRIPT_DIR/closed"
kill $own
exec "#;

/// Sets up an unprivileged server whose agent is [`PROBE`].
fn setup(directory: &tempfile::TempDir) -> Setup {
    let probe = directory.path().join("probe");
    fs::write(&probe, format!("{PROBE}{:?} \"$@\"\n", scripted_agent())).unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755)).unwrap();
    unprivileged(Setup::new()).text("agents.scripted", "command", probe.to_str().unwrap())
}

fn unprivileged(setup: Setup) -> Setup {
    if getuid().is_root() { setup.under(&WITHOUT) } else { setup }
}

/// C24: an agent cannot read the memory, the environment or the descriptors of server and shim,
/// take a descriptor of theirs, or report to the server as the shim.
#[test]
fn an_agent_cannot_look_into_the_server_and_its_shim() {
    let directory = tempfile::TempDir::new().unwrap();
    let server = setup(&directory).environment("IT_SECRET_TOKEN", "canary").start();
    server.complete("work", "x");
    let open = fs::read_to_string(server.home.script().join("open")).unwrap();
    let found = |name: &str| {
        let of = open.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(' '));
        of.collect::<Vec<_>>().join(" ")
    };
    let all = "environ maps auxv mem cwd exe root fd/0 report descriptor";
    assert_eq!(found("own"), all, "the probe works");
    assert_eq!(found("shim"), "", "{open}");
    assert_eq!(found("server"), "", "{open}");
    let agent = server.journal.agent_pid();
    server.complete("work", "its run still lives");
    assert_eq!(server.journal.agent_pid(), agent);
    assert_eq!(server.scrape().value("greenroom_shim_claims_refuted_total", &[]), 0.0);
}

/// C24: no value of the server's environment is left in its process, not even for root's tools; an
/// agent still gets what its profile passes on.
#[test]
fn secrets_leave_the_servers_environment() {
    let server = Setup::new()
        .environment("IT_PASSED", "canary-passed")
        .environment("IT_OTHER", "canary-other")
        .environment("GREENROOM_OTLP_HEADERS", "authorization=canary-header")
        .set("agents.scripted", "env_pass", "[\"IT_PASSED\"]")
        .start();
    let task = server.complete("work", "[[env]]");
    assert!(task["text"].as_str().unwrap().split(' ').any(|name| name == "IT_PASSED"), "{task}");
    let agent = fs::read(format!("/proc/{}/environ", server.journal.agent_pid())).unwrap();
    assert!(String::from_utf8_lossy(&agent).contains("IT_PASSED=canary-passed\0"));
    match fs::read(format!("/proc/{}/environ", server.pid())) {
        Ok(left) => {
            let left = String::from_utf8_lossy(&left).into_owned();
            assert!(left.contains("IT_PASSED=\0") && left.contains("PATH=/"), "{left:?}");
            assert!(!left.contains("canary"), "{left:?}");
        }
        Err(err) => assert!(!getuid().is_root(), "{err}"),
    }
}

/// I10: a server that may not read its shims' environments still finds one that an earlier server
/// left, and ends it.
#[test]
fn a_leftover_shim_is_found_although_it_cannot_be_inspected() {
    let mut server = unprivileged(Setup::new()).start();
    server.complete("work", "x");
    let agent = server.journal.agent_pid();
    let shim = process::parent(agent);
    // The agent may end with its input.
    let left = KillOnDrop(vec![shim]);
    // It cannot notice the end of its server.
    process::signal(shim, Signal::STOP);
    server.kill();
    assert!(left.all_live());
    server.boot();
    assert!(left.all_gone(), "before the server was ready");
    server.complete("work", "next");
}
