//! Child processes, and all processes as `/proc` shows them: their state, signals and limits.

use std::{
    collections::BTreeSet,
    fs, io,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;

use super::{Log, poll};

/// The kernel counts processor time for `/proc` in ticks of this length.
const TICK: Duration = Duration::from_millis(10);

/// A child process whose stderr is a [`Log`]; dropping it kills it.
pub struct Process {
    child: Child,
    pub log: Log,
}

impl Process {
    /// Starts the command.
    ///
    /// # Errors
    ///
    /// Its program cannot be started.
    pub fn spawn(command: &mut Command, log: &Log) -> io::Result<Self> {
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        log.follow(child.stderr.take().unwrap());
        Ok(Self { child, log: log.clone() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end; `None` if it still runs after this time.
    pub fn wait_exit(&mut self, patience: Duration) -> Option<ExitStatus> {
        poll(patience, || self.exited())
    }

    /// Ends it with SIGKILL, unless it has ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn id(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap()
}

/// Sends a signal; ignores a process that no longer exists.
pub fn signal(pid: u32, signal: Signal) {
    _ = kill_process(id(pid), signal);
}

/// Limits what a process may use; `None`: as much as this program may.
///
/// # Errors
///
/// The process no longer exists.
pub fn limit(pid: u32, resource: Resource, current: Option<u64>) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let limit = Rlimit { current: current.or(maximum), maximum };
    prlimit(Some(id(pid)), resource, limit)?;
    Ok(())
}

/// The ids of all processes.
pub fn all() -> Vec<u32> {
    numbers("/proc").into_iter().collect()
}

/// The open descriptors of a process; none if it no longer exists.
pub fn descriptors(pid: u32) -> BTreeSet<u32> {
    numbers(&format!("/proc/{pid}/fd"))
}

/// The entries of a directory that are named by a number.
fn numbers(directory: &str) -> BTreeSet<u32> {
    let names = fs::read_dir(directory).into_iter().flatten();
    names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the process is alive. A zombie is not.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X"))
}

/// The fields of `/proc/PID/stat` from the state on; `None` if the process no longer exists.
pub fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// The parent of a process that must exist.
#[track_caller]
pub fn parent(pid: u32) -> u32 {
    parent_of_live(pid).unwrap()
}

/// The parent of a process; `None` if it no longer exists.
pub fn parent_of_live(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// Processes that must end by themselves; dropping kills those that are still alive.
pub struct KillOnDrop(pub Vec<u32>);

impl KillOnDrop {
    /// The processes that `[[spawn-orphans]]` reported in the text of its task.
    #[track_caller]
    pub fn reported(task: &Value) -> Self {
        let text = task["text"].as_str().unwrap_or_default();
        let pids = text.strip_prefix("orphans: ").unwrap_or_else(|| panic!("no pids in {task}"));
        Self(pids.split(' ').map(|pid| pid.parse().unwrap()).collect())
    }

    /// Returns the pids; they are no longer killed.
    pub fn take(mut self) -> Vec<u32> {
        std::mem::take(&mut self.0)
    }

    pub fn all_live(&self) -> bool {
        self.0.iter().all(|pid| is_alive(*pid))
    }

    pub fn all_gone(&self) -> bool {
        !self.0.iter().any(|pid| is_alive(*pid))
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        for pid in self.0.iter().filter(|pid| is_alive(**pid)) {
            signal(*pid, Signal::KILL);
        }
    }
}

/// The bytes that a process has resident by `VmRSS`, or had at most by `VmHWM`.
pub fn memory(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The processor time so far of a process that must exist.
#[track_caller]
pub fn cpu(pid: u32) -> Duration {
    let fields = stat(pid).unwrap();
    TICK * (fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap())
}
