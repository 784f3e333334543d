//! The system has no free descriptors, or no free processes (F34).

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Signal};

use crate::support::{Server, eventually, process, strace::Strace};

/// A number of descriptors that suffices for a request, but not for an agent.
const FEW: usize = 3;

/// Limits the server to `more` descriptors beyond its open ones; `None`: removes the limit.
///
/// The limit applies to descriptor numbers, and the system always assigns the lowest free one.
fn limit_descriptors(server: &Server, more: Option<usize>) {
    let open = process::descriptors(server.pid());
    let mut free = (0..).filter(|number| !open.contains(number));
    let limit = more.and_then(|more| free.nth(more)).map(u64::from);
    process::limit(server.pid(), Resource::Nofile, limit).unwrap();
}

/// A start that fails because of too few descriptors fails its task with a clear error; running
/// turns continue, and starts succeed again when there are free descriptors.
#[test]
fn without_descriptors_starts_fail_and_running_turns_continue() {
    let server = Server::usual();
    let running = server.submit("living", "[[gate:go]][[reply:done]]");
    server.journal.wait_gate("go");
    limit_descriptors(&server, Some(FEW));
    for number in 0..5 {
        let failed = server.turn(&format!("new-{number}"), "x");
        assert_eq!(failed["state"], "failed", "{failed}");
        assert_eq!(failed["error"]["code"], "agent_start_failed", "{failed}");
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains("open files"), "{failed}");
    }
    assert_eq!(server.get("/readyz").status, 200);
    server.journal.open_gate("go");
    assert_eq!(server.finish_as(&running, "completed")["text"], "done");
    server.complete("living", "x");
    limit_descriptors(&server, None);
    for number in 0..5 {
        server.complete(&format!("new-{number}"), "y");
    }
    assert_eq!(server.journal.prompts().len(), 7, "no prompt of a failed task was sent");
}

/// With more connections than descriptors the server neither ends nor spins, its agents continue,
/// and it answers as soon as some connections are closed.
#[test]
fn without_descriptors_for_connections_the_server_does_not_spin() {
    const MEASURED: Duration = Duration::from_secs(2);
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]][[reply:done]]");
    server.journal.wait_gate("go");
    limit_descriptors(&server, Some(4));
    let connections: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let (before, began) = (process::cpu(server.pid()), Instant::now());
    server.journal.open_gate("go");
    server.log.wait("the end of a task", |line| line.contains("task ended"));
    // The share of the processor is measured over this time.
    thread::sleep(MEASURED);
    let used = process::cpu(server.pid()) - before;
    assert!(used < began.elapsed() / 4, "{used:?} of {:?}", began.elapsed());
    drop(connections);
    eventually("an answer", &server.log, || {
        let reply = server.try_request("GET", "/readyz", &[], None).ok()?;
        (reply.status == 200).then_some(())
    });
    assert_eq!(server.finish_as(&running, "completed")["text"], "done");
    limit_descriptors(&server, None);
    server.complete("other", "x");
}

/// If a shim is killed while there are no free descriptors, its leftover processes are found as
/// soon as there are some again (I10).
#[test]
fn leftovers_are_found_after_a_shortage_of_descriptors() {
    let server = Server::usual();
    let mut orphans = process::KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    let agent = server.journal.agent_pid();
    orphans.0.push(agent);
    // No descriptors at all, not even those that the end of the run frees.
    process::limit(server.pid(), Resource::Nofile, Some(0)).unwrap();
    process::signal(process::parent(agent), Signal::KILL);
    server.log.wait("a failed search", |line| line.contains("cannot kill what a run left"));
    limit_descriptors(&server, None);
    eventually("the end of all processes", &server.log, || orphans.all_gone().then_some(()));
    server.complete("work", "next");
}

/// If no process can be started, tasks fail with a clear error, and later ones run.
#[test]
fn without_processes_tasks_fail_and_later_ones_run() {
    let server = Server::usual();
    let running = server.submit("living", "[[gate:go]][[reply:done]]");
    server.journal.wait_gate("go");
    let forks = "clone,clone3,fork,vfork";
    let (trace, inject) = (format!("trace={forks}"), format!("inject={forks}:error=EAGAIN"));
    let no_forks = Strace::attach(&server, &["-e", &trace, "-e", &inject]);
    for group in ["a", "b"] {
        let failed = server.turn(group, "x");
        assert_eq!(failed["state"], "failed", "{failed}");
        assert_eq!(failed["error"]["code"], "agent_start_failed", "{failed}");
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains("temporarily unavailable"), "{failed}");
    }
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    no_forks.end(&server);
    for group in ["a", "b", "living"] {
        server.complete(group, "y");
    }
}
