//! Reads the state of processes from `/proc`, and sends them signals.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Sends a signal; ignores a process that no longer exists.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    _ = kill_process(pid.unwrap(), signal);
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

/// The most memory that the process ever had resident, in bytes.
pub fn peak_resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}
