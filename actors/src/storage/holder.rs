//! The holder of greenroom's own locks, and the proof that another holder's process is gone (HL-5).

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use greenroom_core::lock::{self, Holder, PidState, Process};
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use uuid::Uuid;

use crate::{clock, process::proc};

/// Returns a unique holder for one acquisition by this process.
pub fn fresh() -> Holder {
    let nonce = Uuid::now_v7();
    this_process().map_or_else(|| Holder::unprovable(nonce), |process| Holder::of(&process, nonce))
}

/// Whether no other program may have the name: it is one of this server's own locks, or could be.
pub fn is_reserved(holder: &Holder) -> bool {
    holder.is_reserved(this_process().as_ref())
}

/// Whether the holder's process is provably gone.
pub fn is_dead(holder: &Holder) -> bool {
    this_process().is_some_and(|this| lock::is_provably_dead(holder, &this, inspect))
}

/// Returns this process, if everything is known that a proof needs: `/proc` must be of this
/// process's own pid namespace.
fn this_process() -> Option<Process> {
    let pid = std::process::id();
    if fs::read_link("/proc/self").ok()? != Path::new(&pid.to_string()) {
        return None;
    }
    let pid_ns = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let boot = clock::boot();
    let start = proc::start_time(pid).ok()?;
    (boot.0 != Uuid::nil()).then_some(Process { pid, start, pid_ns, boot })
}

/// Returns what `/proc` shows of the process `pid`. It may hide the processes of other users; the
/// null signal finds them.
fn inspect(pid: u32) -> PidState {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return PidState::Gone;
    };
    if test_kill_process(number) == Err(Errno::SRCH) {
        return PidState::Gone;
    }
    proc::start_time(pid).map_or(PidState::Unknown, PidState::Started)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    /// HL-5, with real processes.
    #[test]
    fn a_holder_is_dead_once_its_process_is_gone() {
        let this = this_process().unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process =
            Process { pid: child.id(), start: proc::start_time(child.id()).unwrap(), ..this };
        let held_by = |process: &Process| Holder::of(process, Uuid::nil());
        assert!(!is_dead(&held_by(&process)), "alive");
        let earlier = Process { start: process.start - 1, ..process };
        assert!(is_dead(&held_by(&earlier)), "another process has its pid");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_dead(&held_by(&process)), "gone");
        let foreign = Process { pid_ns: this.pid_ns + 1, ..process };
        assert!(!is_dead(&held_by(&foreign)), "gone, or in another namespace");
    }

    /// HL-5.
    #[test]
    fn own_holders_are_unique_and_never_dead() {
        let (first, second) = (fresh(), fresh());
        assert_ne!(first, second);
        assert_eq!(first.process(), this_process(), "{first}");
        assert!(!is_dead(&first));
        let earlier = Process { start: 0, ..this_process().unwrap() };
        assert!(!is_dead(&Holder::of(&earlier, Uuid::nil())), "never this process's own pid");
    }
}
