//! How a process tree ends: exit, kill, TERM, and the loss of its shim (F9, I10, AM-42).

use std::{sync::mpsc, thread, time::Duration};

use greenroom_actors::process::{
    child::{Heartbeat, Launch, TreeEvent, spawn},
    proc::{Process, become_subreaper},
};
use rustix::process::Signal;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::support::{
    EOF_MAX, ORPHANS_MAX, PROCESS_TREE, SOON, UNTIL_EOF, UNTIL_SIGNAL, all_gone,
    eventually_none_runs, exited, killed, lines, lines_to, parent, parts, processes, read_all,
    runs, sh, soon, start, started, tree,
};

/// However a run ends, all processes of its tree die, the end is reported once, and the pipes reach
/// EOF. The value that the tree holds is dropped only when no process is left: its permit of the
/// pool is such a value.
#[tokio::test]
async fn all_die_and_the_held_value_is_dropped_however_the_run_ends() {
    struct OnDrop(Vec<Process>, mpsc::Sender<bool>, mpsc::Receiver<Vec<Process>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.extend(self.2.try_iter().flatten());
            // The receiver may have failed.
            _ = self.1.send(!self.0.is_empty() && !self.0.iter().copied().any(runs));
        }
    }
    become_subreaper().expect("become a subreaper");
    for end in ["exit", "drop", "kill", "shim"] {
        let ((dropped, was_dropped), (send_tree, tree_sent)) = (mpsc::channel(), mpsc::channel());
        let heartbeat = Heartbeat::start(SOON).expect("start the heartbeat");
        let launch =
            sh(&[PROCESS_TREE, if end == "exit" { UNTIL_EOF } else { UNTIL_SIGNAL }].concat());
        let child =
            spawn(launch, &heartbeat, OnDrop(Vec::new(), dropped, tree_sent)).expect("start");
        let (stdin, stdout, _stderr, mut handle) = parts(child);
        let (tree, mut stdout) = tree(stdout).await;
        let agent = started(&mut handle).await;
        send_tree.send(tree.clone()).expect("the value is still held");
        assert!(was_dropped.try_recv().is_err(), "{end}: it is held while the tree lives");
        match end {
            "drop" => {
                drop(handle);
                timeout(EOF_MAX, read_all(&mut stdout)).await.expect("EOF in time");
            }
            "shim" => {
                let shim = Process::now(parent(agent.pid)).expect("find the shim");
                shim.signal(Signal::KILL).expect("kill the shim");
                all_gone(&tree, stdout, handle).await;
            }
            "exit" => {
                drop(stdin);
                assert_eq!(soon(handle.next()).await, exited(3));
                all_gone(&tree, stdout, handle).await;
            }
            _ => {
                (0..100).for_each(|_| handle.kill());
                assert_eq!(soon(handle.next()).await, killed(9));
                all_gone(&tree, stdout, handle).await;
            }
        }
        let was_dropped = tokio::task::spawn_blocking(move || was_dropped.recv_timeout(SOON));
        assert_eq!(was_dropped.await.expect("wait for it"), Ok(true), "{end}");
    }
    // A tree that cannot be started holds no value.
    let ((dropped, was_dropped), (_send_tree, tree_sent)) = (mpsc::channel(), mpsc::channel());
    let heartbeat = Heartbeat::start(SOON).expect("start the heartbeat");
    let launch = Launch { shim: "/no/such/shim".into(), ..sh("") };
    spawn(launch, &heartbeat, OnDrop(Vec::new(), dropped, tree_sent))
        .expect_err("there is no such shim");
    was_dropped.try_recv().expect("it was dropped");
}

/// The server also kills processes without a mark: it adopts them.
#[tokio::test]
async fn all_die_when_the_shim_is_killed() {
    become_subreaper().expect("become a subreaper");
    let (_stdin, stdout, _stderr, mut handle) =
        parts(start(&sh(&[PROCESS_TREE, UNTIL_SIGNAL].concat())));
    let (tree, stdout) = tree(stdout).await;
    let agent = started(&mut handle).await;
    // A second run with a live shim is no orphan, and must survive.
    let (_in, mut other_out, _err, mut other) = parts(start(&sh("echo ready; read line")));
    lines_to(&mut other_out, "ready").await;
    let other_agent = started(&mut other).await;
    let shim = Process::now(parent(agent.pid)).expect("find the shim");
    shim.signal(Signal::KILL).expect("kill the shim");
    all_gone(&tree, stdout, handle).await;
    // No zombie is left either: the server reaped what it adopted.
    assert!(!tree.iter().any(|process| process.exists()) && !shim.exists());
    assert!(runs(other_agent));
}

#[tokio::test]
async fn all_die_when_their_runtime_ends() {
    // The heartbeat runs all the time, and still holds no socket.
    let heartbeat = Heartbeat::start(Duration::from_millis(1)).expect("start the heartbeat");
    let runs_in_another = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("build a runtime").block_on(async {
            let launch = sh(&[PROCESS_TREE, UNTIL_SIGNAL].concat());
            let (stdin, stdout, stderr, handle) =
                parts(spawn(launch, &heartbeat, ()).expect("start"));
            let (tree, stdout) = tree(stdout).await;
            // Forgotten, so that only the runtime's end closes them.
            std::mem::forget((stdin, stdout, stderr, handle, heartbeat));
            tree
        })
    };
    let tree = thread::spawn(runs_in_another).join().expect("run it");
    eventually_none_runs(&tree).await;
}

/// The agent can stop its shim, as the same user. The server then ends the tree itself.
#[tokio::test]
async fn all_die_when_the_shim_is_stopped() {
    become_subreaper().expect("become a subreaper");
    let script = format!("kill -STOP $PPID; {PROCESS_TREE} {UNTIL_SIGNAL}");
    let (_stdin, stdout, _stderr, mut handle) = parts(start(&sh(&script)));
    let (tree, _stdout) = tree(stdout).await;
    handle.kill();
    // The start may or may not be reported before the stop.
    soon(async { while handle.next().await != TreeEvent::Gone {} }).await;
    assert!(!tree.iter().copied().any(runs));
}

/// AM-42: the wrapper ends at TERM without forwarding it; the wrapped agent still gets TERM, and
/// time to save its state.
#[tokio::test]
async fn a_wrapped_agent_gets_term_and_time() {
    let agent =
        r#"trap "sleep 0.3; echo saved; exit 0" TERM; echo ready; while :; do sleep 0.05; done"#;
    let launch = sh(&format!("sh -c '{agent}' & wait"));
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    lines_to(&mut stdout, "ready").await;
    started(&mut handle).await;
    (0..3).for_each(|_| handle.terminate());
    assert_eq!(soon(handle.next()).await, killed(15));
    assert_eq!(read_all(&mut stdout).await, "saved\n");
    assert_eq!(soon(handle.next()).await, TreeEvent::Gone);
}

/// A process that a wrapper left and that ignores TERM is killed without a further order.
#[tokio::test]
async fn a_wrapped_agent_that_ignores_term_is_killed() {
    let launch = sh("sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1000; done' & wait");
    let (_stdin, mut stdout, _stderr, mut handle) = parts(start(&launch));
    let agent = processes(&lines(&mut stdout, 1).await);
    started(&mut handle).await;
    handle.terminate();
    assert_eq!(soon(handle.next()).await, killed(15));
    assert_eq!(timeout(ORPHANS_MAX, handle.next()).await, Ok(TreeEvent::Gone));
    assert!(!runs(agent[0]));
}

/// The steps of the escalation are separate: TERM alone kills no agent that ignores it.
#[tokio::test]
async fn term_alone_does_not_kill() {
    let script = "trap '' TERM; echo ready; while read line; do echo $line; done";
    let (mut stdin, mut stdout, _stderr, mut handle) = parts(start(&sh(script)));
    lines_to(&mut stdout, "ready").await;
    started(&mut handle).await;
    handle.terminate();
    stdin.write_all(b"still there\n").await.expect("write");
    assert_eq!(lines(&mut stdout, 1).await, ["still there"]);
    handle.kill();
    assert_eq!(soon(handle.next()).await, killed(9));
    assert_eq!(soon(handle.next()).await, TreeEvent::Gone);
}
