//! The server under its fault: the real binary, under strace if a system call has to fail.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use greenroom_test_support::{
    Home, Log, poll,
    process::{self, Process},
    server::under,
};

use crate::{Result, plan::Fault};

/// How long a start, or a requested end, may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the tracer may take to write its log.
const TRACED: Duration = Duration::from_secs(5);

/// The state of a listening socket in `/proc`.
const LISTENING: &str = "0A";

const YEAR_SECONDS: i64 = 365 * 86_400;

/// One life of the server. Dropping it kills it, and leaves its log in the directory.
pub struct Server {
    pub process: Process,
    log: PathBuf,
    trace: PathBuf,
}

impl Server {
    /// Starts the server on the directory, under the `fault`.
    pub fn start(home: &Home, life: usize, fault: Option<&Fault>) -> Result<Self> {
        let (log, trace) = (home.file(&format!("log-{life}")), home.file(&format!("trace-{life}")));
        let (traced, clock) = (trace.to_string_lossy(), home.file("clock"));
        let inject = fault.and_then(inject);
        // -D: the server stays this program's child. -b execve: the programs it starts are not
        // traced.
        let mut wrapper = vec!["strace", "-D", "-f", "-b", "execve", "-qq", "-o", &traced];
        match &inject {
            Some((calls, fails)) => wrapper.extend(["-e", calls, "-e", fails]),
            None => wrapper.clear(),
        }
        let mut command = under(&wrapper, home, &["serve"]);
        let offset = match fault {
            Some(Fault::Clock { .. }) => Some(0),
            Some(Fault::WrongClock { years, .. }) => Some(years * YEAR_SECONDS),
            _ => None,
        };
        if let Some(offset) = offset {
            fs::write(&clock, format!("{offset:+}"))?;
            command
                .env("LD_PRELOAD", fake_clock()?)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1");
        }
        let process =
            Process::spawn(&mut command, &Log::default()).map_err(|err| match inject {
                Some(_) => format!("strace cannot be started ({err}): apt-get install strace"),
                None => format!("the server cannot be started: {err}"),
            })?;
        Ok(Self { process, log, trace })
    }

    /// Waits until the server listens; `None` if it ended before, or does not listen.
    pub fn wait_listening(&mut self) -> Option<SocketAddr> {
        poll(PATIENCE, || {
            if self.process.exited().is_some() {
                return Some(None);
            }
            listening(self.process.pid()).map(Some)
        })?
    }

    /// Waits until the server logs its address; `None` if it ended before.
    pub fn wait_ready(&mut self) -> Result<Option<SocketAddr>> {
        let found = poll(PATIENCE, || {
            if self.process.exited().is_some() {
                return Some(None);
            }
            let log = self.process.log.lines();
            let ready = log.iter().find(|line| line.contains(" ready; "))?;
            let address = ready.split(" address=").nth(1)?.split(' ').next()?;
            Some(address.parse().ok())
        });
        Ok(found.ok_or_else(|| format!("the server was not ready in {PATIENCE:?}"))?)
    }

    /// Whether SIGKILL ended it at the sync of the fault.
    pub fn died_at_its_sync(&mut self) -> bool {
        if self.process.exited().is_none_or(|status| status.signal() != Some(9)) {
            return false;
        }
        // The tracer may still be writing the call that never returned.
        let cut_off = |line: &str| line.contains("sync") && line.ends_with("= ?");
        poll(TRACED, || self.traced().lines().any(cut_off).then_some(())).is_some()
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
        self.process.log.lines().join("\n")
    }

    /// Whether it is stopped, as by SIGSTOP.
    pub fn is_stopped(&self) -> bool {
        process::stat(self.process.pid()).is_some_and(|fields| fields[0] == "T")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill();
        if let Err(err) = fs::write(&self.log, self.logged()) {
            println!("  {} is lost: {err}", self.log.display());
        }
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

/// Returns the local address on which the process listens, by `/proc`.
fn listening(pid: u32) -> Option<SocketAddr> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let own: HashSet<_> = links.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).collect();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    sockets.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let port = u16::from_str_radix(local.split_once(':')?.1, 16).ok()?;
        let is_own = own.contains(Path::new(&format!("socket:[{inode}]")));
        (*state == LISTENING && is_own).then(|| SocketAddr::from(([127, 0, 0, 1], port)))
    })
}

/// Debian's path of libfaketime.
fn fake_clock() -> Result<PathBuf> {
    let places = fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = places
        .map(|place: PathBuf| place.join("faketime/libfaketimeMT.so.1"))
        .find(|library| Path::exists(library));
    Ok(found.ok_or("libfaketime is missing: apt-get install faketime")?)
}
