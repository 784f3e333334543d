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
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// The parent of a living process.
pub fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit(')').next().unwrap();
    rest.split_whitespace().nth(1).unwrap().parse().unwrap()
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
