//! The server under its fault: the real binary, under strace if a system call has to fail.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use greenroom_test_support::{
    process,
    programs::{built, clean},
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::{Result, home::Home, plan::Fault};

/// How long a start, or a requested end, may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the tracer may take to write its log.
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
    /// Starts the server on the directory, under the `fault`.
    pub fn start(home: &Home, life: usize, fault: Option<&Fault>) -> Result<Self> {
        let (log, trace) = (home.file(&format!("log-{life}")), home.file(&format!("trace-{life}")));
        let inject = fault.and_then(inject);
        let mut command = match &inject {
            Some(inject) => {
                let mut command = Command::new("strace");
                // -D: the server stays this program's child. -b execve: the programs it starts are
                // not traced.
                command.args(["-D", "-f", "-b", "execve", "-qq", "-o"]).arg(&trace);
                command.args(["-e", inject.0, "-e", &inject.1]).arg(built("greenroom")?);
                command
            }
            None => Command::new(built("greenroom")?),
        };
        clean(&mut command);
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

    /// Waits until the server logs its address; `None` if it ended before.
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

    /// Returns how it ended, if it did.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits for its end; `None` if it still runs.
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

    /// Ends it with SIGKILL, unless it is gone, and waits for its end.
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

    /// Whether SIGKILL ended it at the sync of the fault.
    pub fn died_at_its_sync(&mut self) -> Result<bool> {
        if self.exited()?.is_none_or(|status| status.signal() != Some(9)) {
            return Ok(false);
        }
        // The tracer may still be writing the call that never returned.
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

    /// Returns the number of calls that strace failed.
    pub fn failed_calls(&self) -> usize {
        // The tracer writes a line when the call returns.
        self.traced().lines().filter(|line| line.contains("(INJECTED)")).count()
    }

    fn traced(&self) -> String {
        fs::read_to_string(&self.trace).unwrap_or_default()
    }

    /// Returns its log.
    pub fn logged(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Returns the number of its open descriptors.
    pub fn descriptors(&self) -> Result<u64> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count() as u64)
    }

    /// Sets the limit of its open descriptors. Returns the old limit.
    pub fn limit_descriptors(&self, limit: Rlimit) -> Result<Rlimit> {
        Ok(prlimit(Some(id(self.pid())?), Resource::Nofile, limit)?)
    }

    /// Whether it is stopped, as by SIGSTOP.
    pub fn is_stopped(&self) -> bool {
        process::stat(self.pid()).is_some_and(|fields| fields[0] == "T")
    }

    /// Returns its peak resident memory, in bytes; 0 if it is gone.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or(0) * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server is discarded; a failure here changes nothing.
        drop(self.kill());
    }
}

/// Returns strace's arguments: the calls to trace, and how they fail.
fn inject(fault: &Fault) -> Option<(&'static str, String)> {
    const SYNCS: &str = "fsync,fdatasync";
    let syncs = "trace=fsync,fdatasync";
    match fault {
        Fault::SyncKill { at } => Some((syncs, format!("inject={SYNCS}:signal=KILL:when={at}"))),
        Fault::SyncError { at } => Some((syncs, format!("inject={SYNCS}:error=EIO:when={at}"))),
        Fault::Full { at, facts } => {
            let to = at + facts;
            Some(("trace=pwrite64", format!("inject=pwrite64:error=ENOSPC:when={at}..{to}")))
        }
        _ => None,
    }
}

/// Debian's path of libfaketime.
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
