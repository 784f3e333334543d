//! Looking at processes through `/proc`.

use std::{fs, time::Duration};

use greenroom_test_support::process;

use crate::Result;

/// The kernel counts processor time for `/proc` in ticks of this length.
const TICK: Duration = Duration::from_millis(10);

/// Returns the processor time of a process so far.
pub fn cpu(pid: u32) -> Result<Duration> {
    let ticks = |field: usize| -> Result<u32> { Ok(stat(pid, field)?.parse()?) };
    Ok(TICK * (ticks(11)? + ticks(12)?))
}

/// Returns a process's resident memory, in bytes.
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

/// Returns the number of a process's children.
pub fn children(pid: u32) -> Result<usize> {
    let processes =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = pid.to_string();
    Ok(processes.filter(|child| stat(*child, 1).is_ok_and(|ppid| ppid == parent)).count())
}

/// Returns a field of `/proc/PID/stat`, counted from the state, which is 0.
fn stat(pid: u32, field: usize) -> Result<String> {
    let fields = process::stat(pid).ok_or("the process is gone")?;
    Ok(fields.get(field).ok_or("a short stat")?.to_owned())
}
