//! Finds what earlier servers of a data directory left running, by the markers of their agents.
//!
//! A directory may have been moved since, so its name alone is not enough: the runs of its database
//! are its own wherever it is. `sweep` ends the processes.

use std::{
    cell::RefCell, collections::HashSet, ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path,
};

use super::{
    cgroup::Cgroup,
    proc::{Marker, Variables},
    sweep::{self, SweepError},
};

/// Which processes earlier servers of a data directory left running.
pub struct Leftovers<'a> {
    /// The data directory, absolute.
    pub dir: &'a Path,
    /// Whether a run, by its name, is in the directory's database.
    pub knows_run: &'a dyn Fn(&str) -> bool,
    /// Whether another server uses this data directory. It may be the original of a copied
    /// database, which knows the same runs.
    pub is_in_use: &'a dyn Fn(&Path) -> bool,
}

impl Leftovers<'_> {
    /// Kills them until none is left, also the members of their control groups without a marker:
    /// see [`sweep::sweep`]. Called before this server starts any run. Returns the pids that were
    /// found.
    ///
    /// # Errors
    ///
    /// As [`sweep::sweep`].
    pub fn sweep(&self) -> Result<Vec<u32>, SweepError> {
        let spared = RefCell::default();
        let pids = sweep::sweep_by(|variables| self.is_leftover(variables, &spared))?;
        let spared = spared.into_inner();
        for (run, group) in Cgroup::all() {
            if !spared.contains(&run) && (self.knows_run)(&run) {
                group.kill();
                group.remove();
            }
        }
        Ok(pids)
    }

    /// Whether a process is one of them. Adds the runs of another server to `spared`.
    fn is_leftover(&self, variables: &Variables, spared: &RefCell<HashSet<String>>) -> bool {
        let own = self.dir.as_os_str().as_bytes();
        if variables.named(Marker::DATA).any(|dir| dir == own) {
            return true;
        }
        let runs = variables.named(Marker::RUN).flat_map(std::str::from_utf8);
        let mut runs = runs.filter(|run| (self.knows_run)(run)).peekable();
        if runs.peek().is_none() {
            return false;
        }
        let mut dirs = variables.named(Marker::DATA).map(OsStr::from_bytes).map(Path::new);
        let is_spared = dirs.any(self.is_in_use);
        if is_spared {
            spared.borrow_mut().extend(runs.map(str::to_owned));
        }
        !is_spared
    }
}
