//! Who holds greenroom's own locks, and whether another holder's process is gone (SEEDS HL-5).

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use greenroom_core::lock::{self, Holder, Process, Sight};
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use uuid::Uuid;

use crate::{agent::tree, clock};

/// A holder that nobody had, for one acquisition by this process.
pub fn fresh() -> Holder {
    let nonce = Uuid::now_v7();
    own().map_or_else(|| Holder::unprovable(nonce), |process| Holder::of(&process, nonce))
}

/// Whether the holder's process is gone beyond doubt.
pub fn is_dead(holder: &Holder) -> bool {
    own().is_some_and(|own| lock::is_provably_dead(holder, &own, look))
}

/// This process, if all can be said of it that a proof needs, by a `/proc` that counts processes
/// as this one does.
fn own() -> Option<Process> {
    let pid = std::process::id();
    if fs::read_link("/proc/self").ok()? != Path::new(&pid.to_string()) {
        return None;
    }
    let pid_ns = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let boot = clock::boot();
    let start = tree::start_time(pid).ok()?;
    (boot.0 != Uuid::nil()).then_some(Process { pid, start, pid_ns, boot })
}

/// What is to be seen of the process `pid`. `/proc` may hide the processes of other users; a
/// signal that is not sent finds them.
fn look(pid: u32) -> Sight {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Sight::Gone };
    if test_kill_process(number) == Err(Errno::SRCH) {
        return Sight::Gone;
    }
    tree::start_time(pid).map_or(Sight::Unknown, Sight::Started)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    /// HL-5, with real processes: the dead one is told from the living.
    #[test]
    fn a_holder_is_dead_once_its_process_is_gone() {
        let own = own().unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process =
            Process { pid: child.id(), start: tree::start_time(child.id()).unwrap(), ..own };
        let held_by = |process: &Process| Holder::of(process, Uuid::nil());
        assert!(!is_dead(&held_by(&process)), "alive");
        let earlier = Process { start: process.start - 1, ..process };
        assert!(is_dead(&held_by(&earlier)), "another one has its pid");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_dead(&held_by(&process)), "gone");
        let foreign = Process { pid_ns: own.pid_ns + 1, ..process };
        assert!(!is_dead(&held_by(&foreign)), "gone, or in another namespace");
    }

    /// HL-5.
    #[test]
    fn own_holders_are_unique_and_never_dead() {
        let (first, second) = (fresh(), fresh());
        assert_ne!(first, second);
        assert_eq!(first.process(), own(), "{first}");
        assert!(!is_dead(&first));
        let earlier = Process { start: 0, ..own().unwrap() };
        assert!(!is_dead(&Holder::of(&earlier, Uuid::nil())), "never the own pid");
    }
}
