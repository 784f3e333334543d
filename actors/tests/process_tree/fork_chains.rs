//! Processes that fork and exit faster than the shim reads `/proc`: they end with their run, with
//! a control group and without one, and leave few dead processes meanwhile.

use std::{process::Command, time::Duration};

use greenroom_actors::process::{
    child::{Launch, TreeEvent},
    proc::{Marker, descendants},
    sweep::sweep,
};
use tokio::time::timeout;

use crate::support::{lines_to, parent, parts, read_all, sh, start, started};

/// The shim kills for ten seconds before it leaves the rest to the server; a busy machine takes
/// longer.
const END_MAX: Duration = Duration::from_secs(30);
/// The links of a chain that ends by itself, and the most of them that may be dead and not reaped.
const LINKS: usize = 3_000;
const DEAD_MAX: usize = 1_000;

/// Returns a script whose process forks the next and exits, while `condition` holds. Each runs
/// `step` first.
fn chain(condition: &str, step: &str) -> String {
    let link = "my $next = fork; next unless defined $next; POSIX::_exit(0) if $next;";
    format!("use POSIX (); my $n = 0; while ({condition}) {{ {link} $n++; {step} }}")
}

/// Checks that a kill ends the run, whose agent itself stays.
async fn ends_when_killed(name: &str, options: &[&str], step: &str) {
    let chain = chain("1", step);
    let script = format!("for n in 1 2 3; do perl -e '{chain}' & done; echo ready; sleep 1000");
    let shim_args = options.iter().map(|&option| option.into()).collect();
    let launch = Launch { shim_args, ..sh(&script) };
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    lines_to(&mut stdout, "ready").await;
    started(&mut handle).await;
    handle.kill();
    let gone = async {
        while handle.next().await != TreeEvent::Gone {}
        // Every process of a chain holds the agent's stdout.
        read_all(&mut stdout).await
    };
    assert!(timeout(END_MAX, gone).await.is_ok(), "{name}: something still forks");
    let left = launch.run.find().expect("look for what is left");
    assert!(left.is_empty(), "{name}: {left:?}");
}

#[tokio::test]
async fn fork_chains_end_with_their_run() {
    for (name, step) in [("same session", ""), ("own sessions", "POSIX::setsid();")] {
        for options in [&[][..], &["--no-cgroup"]] {
            ends_when_killed(&format!("{name} {options:?}"), options, step).await;
        }
    }
}

#[tokio::test]
async fn fork_chains_leave_few_dead_processes() {
    let chain = chain(&format!("$n < {LINKS}"), "");
    let script = format!("perl -e '{chain} print qq(ready\\n);' & read line");
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&sh(&script)));
    let agent = started(&mut handle).await;
    lines_to(&mut stdout, "ready").await;
    let left = descendants(parent(agent.pid)).expect("look for them").len();
    assert!(left < DEAD_MAX, "{left} of {LINKS} are still there");
}

/// I10: a sweep finds the processes of a dead server and shim by their mark, also while they
/// fork.
#[test]
fn sweep_ends_a_fork_chain() {
    let mark = Marker::run(format!("run_{}", uuid::Uuid::now_v7()));
    let chain = chain("$n < 100_000", "POSIX::setsid();");
    let first = Command::new("perl").args(["-e", &chain]).envs([mark.entry()]).status();
    assert!(first.expect("start perl").success(), "the first link ends at once");
    let swept = sweep(&mark).expect("nothing is left");
    assert!(!swept.is_empty());
    assert_eq!(mark.find().expect("look for what is left"), []);
}

/// I10, F2: orphans of the agent are no heartbeat of a silent server.
#[tokio::test]
async fn orphans_do_not_count_as_heartbeats() {
    let shim_args = vec!["--silence-ms".into(), "1000".into()];
    let script = "echo ready; while :; do (sleep 0.01 &); sleep 0.05; done";
    let launch = Launch { shim_args, ..sh(script) };
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    lines_to(&mut stdout, "ready").await;
    started(&mut handle).await;
    let gone = async { while handle.next().await != TreeEvent::Gone {} };
    assert!(timeout(END_MAX, gone).await.is_ok(), "the agent outlives its server");
}
