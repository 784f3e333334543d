//! The process tree of an agent in a sandbox: its signals, its exit code and its end (C25, I10).

use std::collections::BTreeSet;

use greenroom_actors::{
    process::{
        child::{Launch, TreeEvent},
        sandbox::{Confinement, Network},
    },
    profile::SandboxLevel,
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    all_gone, eventually_none_runs, exited, line, lines, parts, proc_text, processes, read_all, sh,
    soon, start, started,
};

/// The levels that hold an agent.
const LEVELS: [SandboxLevel; 2] = [SandboxLevel::Landlock, SandboxLevel::Bubblewrap];

fn confined(level: SandboxLevel, script: &str) -> (Launch, TempDir) {
    let dir = TempDir::new().expect("make a directory");
    let own = ["home", "tmp"].map(|name| dir.path().join(name));
    let confinement = Confinement {
        level,
        own: own.to_vec(),
        read: Vec::new(),
        write: Vec::new(),
        hidden: Vec::new(),
        home: None,
        network: Network::AllBut(BTreeSet::from([1])),
        search: "/usr/bin:/bin:/usr/local/bin".into(),
    };
    let cwd = greenroom_actors::working_dir::WorkingDir::open(dir.path()).expect("open it");
    (Launch { confinement: Some(confinement), cwd, ..sh(script) }, dir)
}

/// The three streams and the exit code pass through.
#[tokio::test]
async fn streams_and_exit_codes_pass_a_sandbox() {
    for level in LEVELS {
        let (launch, _dir) = confined(level, "echo out; echo err >&2; read line; exit 7");
        let (stdin, mut stdout, mut stderr, mut handle) = parts(start(&launch));
        started(&mut handle).await;
        assert_eq!(lines(&mut stdout, 1).await, ["out"], "{level:?}");
        assert_eq!(line(&mut stderr).await, "err", "{level:?}");
        drop(stdin);
        assert_eq!(soon(handle.next()).await, exited(7), "{level:?}");
        assert_eq!(soon(handle.next()).await, TreeEvent::Gone, "{level:?}");
        assert_eq!(read_all(&mut stderr).await, "", "{level:?}");
    }
}

/// AM-42: TERM reaches the agent, and gives it time to end by itself, also below `bwrap`.
#[tokio::test]
async fn term_reaches_the_agent_in_a_sandbox() {
    const SAVES: &str = "trap 'sleep 0.2; echo saved; exit 5' TERM; echo ready; \
                         while :; do sleep 0.05; done";
    for level in LEVELS {
        let (launch, _dir) = confined(level, SAVES);
        let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
        started(&mut handle).await;
        assert_eq!(line(&mut stdout).await, "ready");
        handle.terminate();
        assert_eq!(line(&mut stdout).await, "saved", "{level:?}");
        assert_eq!(soon(handle.next()).await, exited(5), "{level:?}");
    }
}

/// Returns the processes with this entry in their environment, except the shim.
fn marked(entry: &str, shim: u32) -> Vec<String> {
    let is_marked = |pid: &String| {
        let environ = std::fs::read(format!("/proc/{pid}/environ"));
        environ.is_ok_and(|all| all.split(|byte| *byte == 0).any(|it| it == entry.as_bytes()))
    };
    std::fs::read_dir("/proc")
        .expect("list processes")
        .filter_map(|found| found.ok()?.file_name().into_string().ok())
        .filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != shim))
        .filter(is_marked)
        .collect()
}

/// I10: a kill ends all, and so does the death of the shim; the processes carry the run's mark.
#[tokio::test]
async fn a_kill_ends_all_in_a_sandbox() {
    const FAMILY: &str = "setsid sh -c 'sleep 1000; :' & ( sh -c 'sleep 1000; :' & ); \
                          echo ready; read line";
    for level in LEVELS {
        for end in ["kill", "shim"] {
            let (launch, _dir) = confined(level, FAMILY);
            let mark = launch.run.entry();
            let entry = format!("{}={}", mark.0, mark.1);
            let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
            let agent = started(&mut handle).await;
            assert_eq!(line(&mut stdout).await, "ready");
            let shim = crate::support::parent(agent.pid);
            // One that is just in an exec shows no environment.
            let marked = soon(async {
                loop {
                    let found = marked(&entry, shim);
                    if found.len() >= 3 {
                        return found;
                    }
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let tree = processes(&marked);
            if end == "kill" {
                handle.kill();
                all_gone(&tree, stdout, handle).await;
                continue;
            }
            assert_eq!(proc_text(shim, "comm").trim(), "greenroom-shim");
            greenroom_actors::process::proc::Process::now(shim)
                .and_then(|shim| shim.signal(Signal::KILL))
                .expect("kill the shim");
            // The first process of a namespace is killed, has no memory and so no mark, and waits
            // for the others. A server adopts it and waits, too; this test is no subreaper.
            all_gone(&[], stdout, handle).await;
            eventually_none_runs(&tree).await;
        }
    }
}
