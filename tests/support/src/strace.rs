//! `strace` on a running server: it makes system calls fail, or delays them.

use std::{fs, process::Command};

use rustix::process::Signal;

use super::{
    Log, Server, TIMEOUT, eventually,
    process::{self, Process},
};

/// A tracer of all threads of a server. The server survives its end.
pub struct Strace(Process);

impl Strace {
    /// Attaches with these arguments, such as `-e inject=…`, to every thread. Child processes of
    /// the server are detached at their `execve`.
    #[track_caller]
    pub fn attach(server: &Server, arguments: &[&str]) -> Self {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-b", "execve", "-qq", "-o", "/dev/null"])
            .args(arguments)
            .args(["-p", &server.pid().to_string()]);
        let strace = Process::spawn(&mut command, &Log::default()).expect("strace is installed");
        wait_traced(server.pid(), true, &server.log);
        Self(strace)
    }

    /// Delays every commit of the server by this time.
    #[track_caller]
    pub fn delay_commits(server: &Server, microseconds: u32) -> Self {
        let log = server.home.data().join("greenroom.db-wal");
        let delay = format!("inject=fdatasync:delay_exit={microseconds}");
        Self::attach(server, &["-P", log.to_str().unwrap(), "-e", &delay])
    }

    /// Detaches.
    #[track_caller]
    pub fn end(mut self, server: &Server) {
        process::signal(self.0.pid(), Signal::INT);
        self.0.wait_exit(TIMEOUT).expect("strace ends");
        wait_traced(server.pid(), false, &server.log);
    }
}

/// Waits until all threads of the process are traced, or none.
#[track_caller]
fn wait_traced(pid: u32, traced: bool, log: &Log) {
    eventually("strace", log, || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let mut status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")));
        status.all(|status| status.unwrap().contains("TracerPid:\t0\n") != traced).then_some(())
    });
}
