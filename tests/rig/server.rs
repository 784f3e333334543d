//! The server under its fault: the real binary, under strace where a system call is to go wrong.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::Result;
use crate::home::{Home, built};
use crate::plan::Fault;

/// How long a start, or an end that was asked for, may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the tracer may take to write down what it saw.
const TRACED: Duration = Duration::from_secs(5);

const YEAR_SECONDS: i64 = 365 * 86_400;

const POLL: Duration = Duration::from_millis(5);

/// One life of the server. Dropping it kills it.
pub struct Server {
    child: Child,
    log: PathBuf,
    trace: PathBuf,
    ended: Option<ExitStatus>,
}

impl Server {
    /// Starts the server on what is in the directory; `fault` says what it is started under.
    pub fn start(home: &Home, life: usize, fault: Option<&Fault>) -> Result<Self> {
        let (log, trace) = (home.file(&format!("log-{life}")), home.file(&format!("trace-{life}")));
        let inject = fault.and_then(inject);
        let mut command = match &inject {
            Some(inject) => {
                let mut command = Command::new("strace");
                // -D: the server stays this program's child. -b execve: what it starts is let go.
                command.args(["-D", "-f", "-b", "execve", "-qq", "-o"]).arg(&trace);
                command.args(["-e", inject.0, "-e", &inject.1]).arg(built("greenroom")?);
                command
            }
            None => Command::new(built("greenroom")?),
        };
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("GREENROOM_") || name == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        let offset = match fault {
            Some(Fault::Clock { .. }) => Some(0),
            Some(Fault::WrongClock { years, .. }) => Some(years * YEAR_SECONDS),
            _ => None,
        };
        if let Some(offset) = offset {
            fs::write(home.file("clock"), format!("{offset:+}"))?;
            command
                .env("LD_PRELOAD", fake_clock()?)
                .env("FAKETIME_TIMESTAMP_FILE", home.file("clock"))
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1");
        }
        command
            .args(["serve", "--config"])
            .arg(home.config())
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = command.spawn().map_err(|err| match inject {
            Some(_) => format!("strace cannot be started ({err}): apt-get install strace"),
            None => format!("the server cannot be started: {err}"),
        })?;
        Ok(Self { child, log, trace, ended: None })
    }

    /// Waits until the server says where it listens; `None` if it ended before.
    pub fn wait_ready(&mut self) -> Result<Option<SocketAddr>> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.exited()?.is_some() {
                return Ok(None);
            }
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let ready = log.lines().find(|line| line.contains(" ready; "));
            let address = ready.and_then(|line| line.split(" address=").nth(1)?.split(' ').next());
            if let Some(address) = address.and_then(|address| address.parse().ok()) {
                return Ok(Some(address));
            }
            thread::sleep(POLL);
        }
        Err(format!("the server was not ready in {PATIENCE:?}").into())
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits for its end; `None` if it goes on.
    pub fn wait_exit(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        while start.elapsed() < patience {
            if self.exited()?.is_some() {
                break;
            }
            thread::sleep(POLL);
        }
        Ok(self.ended)
    }

    /// Ends it with SIGKILL, unless it is gone, and waits for that.
    pub fn kill(&mut self) -> Result<()> {
        if self.exited()?.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn send(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(id(self.pid())?, signal)?)
    }

    /// Whether SIGKILL ended it at the sync that strace was told of.
    pub fn died_at_its_sync(&mut self) -> Result<bool> {
        if self.exited()?.is_none_or(|status| status.signal() != Some(9)) {
            return Ok(false);
        }
        // The tracer may still be writing down how it went: the call that never returned.
        let start = Instant::now();
        let cut_off = |line: &str| line.contains("sync") && line.ends_with("= ?");
        while !self.traced().lines().any(cut_off) {
            if TRACED < start.elapsed() {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
        Ok(true)
    }

    /// How many calls strace let fail.
    pub fn failed_calls(&self) -> usize {
        // The tracer writes a line when the call returns.
        self.traced().lines().filter(|line| line.contains("(INJECTED)")).count()
    }

    fn traced(&self) -> String {
        fs::read_to_string(&self.trace).unwrap_or_default()
    }

    /// What it logged.
    pub fn logged(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> Result<u64> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count() as u64)
    }

    /// Sets how many descriptors it may have open; gives what it might before.
    pub fn limit_descriptors(&self, limit: Rlimit) -> Result<Rlimit> {
        Ok(prlimit(Some(id(self.pid())?), Resource::Nofile, limit)?)
    }

    /// Whether it is stopped, as by SIGSTOP.
    pub fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    /// The most memory that it had resident, in bytes; 0 if it is gone.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or(0) * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is being given up; what else could be done about a failure?
        drop(self.kill());
    }
}

/// What strace is told: the calls to trace, and how they go wrong.
fn inject(fault: &Fault) -> Option<(&'static str, String)> {
    const SYNCS: &str = "fsync,fdatasync";
    let syncs = "trace=fsync,fdatasync";
    match fault {
        Fault::SyncKill { at } => Some((syncs, format!("inject={SYNCS}:signal=KILL:when={at}"))),
        Fault::SyncError { at } => Some((syncs, format!("inject={SYNCS}:error=EIO:when={at}"))),
        Fault::Full { at, writes } => {
            let to = at + writes;
            Some(("trace=pwrite64", format!("inject=pwrite64:error=ENOSPC:when={at}..{to}")))
        }
        _ => None,
    }
}

/// Where Debian has libfaketime.
fn fake_clock() -> Result<PathBuf> {
    let places = fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = places
        .map(|place: PathBuf| place.join("faketime/libfaketimeMT.so.1"))
        .find(|library| Path::exists(library));
    Ok(found.ok_or("libfaketime is missing: apt-get install faketime")?)
}

fn id(pid: u32) -> Result<Pid> {
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no process id")?)
}

/// Sends a signal to a process that may be gone.
pub fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = id(pid) {
        let _ = kill_process(pid, signal);
    }
}
