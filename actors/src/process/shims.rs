//! The shims that this process started and has not reaped, known by pid and start time.
//!
//! A child of this process in a session of its own is either one of them, or was adopted from a
//! dead one. Names and command lines decide nothing here: an agent chooses its own.
//!
//! A static, as adoption is a matter of the whole process: every runtime's shims are its children.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::proc::{Marker, Process};

/// The shims, each with the value of its run's marker.
static SHIMS: Mutex<Option<HashMap<Process, String>>> = Mutex::new(None);

/// A shim's entry. Dropped once its run is cleared: until then the run counts as unfinished.
pub(super) struct Registered(Option<Process>);

impl Registered {
    /// Registers the child `pid`, which was not reaped yet, as the shim of a run.
    ///
    /// Call it before the shim gets its launch: it begins a session of its own only after that, and
    /// so no search takes it for an adopted process in between.
    ///
    /// # Errors
    ///
    /// The process cannot be read, as no descriptor or memory is left.
    pub fn new(pid: u32, run: &Marker) -> io::Result<Self> {
        match Process::now(pid) {
            Ok(process) => {
                shims().get_or_insert_default().insert(process, run.entry().1.to_owned());
                Ok(Self(Some(process)))
            }
            // Hidden by the options of this /proc, and so from every search, too.
            Err(err)
                if matches!(
                    Errno::from_io_error(&err),
                    Some(Errno::NOENT | Errno::PERM | Errno::ACCESS)
                ) =>
            {
                Ok(Self(None))
            }
            Err(err) => Err(err),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let (Some(process), Some(shims)) = (self.0, &mut *shims()) {
            shims.remove(&process);
        }
    }
}

/// Whether a process is a shim of this process.
pub(super) fn is_own(process: Process) -> bool {
    shims().as_ref().is_some_and(|shims| shims.contains_key(&process))
}

/// Whether the run with this marker's value was started by this process, and is not cleared yet.
pub(super) fn is_unfinished(run: &[u8]) -> bool {
    shims().as_ref().is_some_and(|shims| shims.values().any(|of| of.as_bytes() == run))
}

fn shims() -> MutexGuard<'static, Option<HashMap<Process, String>>> {
    SHIMS.lock().unwrap_or_else(PoisonError::into_inner)
}
