//! The system has no more descriptors, or no more processes, to give (RELIABILITY F34).

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::support::strace::Strace;
use crate::support::{Server, eventually, process};

/// Descriptors that a request needs, and an agent does not get by with.
const FEW: usize = 3;

/// Leaves the server `more` descriptors beside those that it has; `None`: as many as it had before.
///
/// The limit is of their numbers, of which the lowest free one is always taken.
fn limit_descriptors(server: &Server, more: Option<usize>) {
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let open: BTreeSet<u64> =
        open.map(|fd| fd.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    let mut free = (0..).filter(|number| !open.contains(number));
    let current = more.map_or(maximum, |more| free.nth(more));
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// Processor time that the process has taken.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap()
}

/// A start that fails for want of descriptors fails its task, clearly; what runs goes on, and when
/// there are descriptors again, so do starts.
#[test]
fn without_descriptors_for_an_agent() {
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
    assert_eq!(server.journal.prompts().len(), 7, "none of those that failed was sent");
}

/// More connections than descriptors: the server neither ends nor spins, its agents work on, and it
/// answers as soon as some are closed.
#[test]
fn without_descriptors_for_connections() {
    const LOOK: Duration = Duration::from_secs(2);
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]][[reply:done]]");
    server.journal.wait_gate("go");
    limit_descriptors(&server, Some(4));
    let crowd: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let (before, began) = (processor_time(server.pid()), Instant::now());
    server.journal.open_gate("go");
    server.log.wait("the end of a task", |line| line.contains("task ended"));
    // A share of the processor is measured over a time.
    thread::sleep(LOOK);
    let taken = processor_time(server.pid()) - before;
    assert!(taken < began.elapsed() / 4, "{taken:?} of {:?}", began.elapsed());
    drop(crowd);
    eventually("an answer", &server.log, || {
        let reply = server.try_request("GET", "/readyz", &[], None).ok()?;
        (reply.status == 200).then_some(())
    });
    assert_eq!(server.finish_as(&running, "completed")["text"], "done");
    limit_descriptors(&server, None);
    server.complete("other", "x");
}

/// A keeper that is killed while there are no descriptors: what it leaves is found all the same, as
/// soon as there are some again (I10).
#[test]
fn leftovers_are_found_without_descriptors() {
    let server = Server::usual();
    let mut doomed = process::Doomed::reported(&server.complete("work", "[[spawn-orphans]]"));
    let agent = server.journal.agent_pid();
    doomed.0.push(agent);
    // Not even those that the run gives back when it ends.
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(0), maximum }).unwrap();
    process::signal(process::parent(agent), Signal::KILL);
    server.log.wait("a search that failed", |line| line.contains("cannot clear up after shim"));
    limit_descriptors(&server, None);
    eventually("the end of all processes", &server.log, || doomed.all_gone().then_some(()));
    server.complete("work", "next");
}

/// No process can be started: tasks fail, clearly, and later ones run.
#[test]
fn without_processes() {
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
