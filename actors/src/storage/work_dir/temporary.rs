//! The directories for temporary files of runs in a sandbox, one a run, beside those of groups.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use greenroom_core::RunId;

use super::{PURGED, WorkDir, names};

/// Begins the name of such a directory.
const PREFIX: &str = ".tmp-";
/// How much of a run's id is in it: enough to be its own, and short, as the path of a Unix socket
/// has 108 bytes.
const ID_CHARS: usize = 12;

/// The directory for temporary files of one run. It exists if the run has a sandbox. Dropped when
/// the run's processes are gone, and then removed, by a thread of its own or by the next start.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    work: WorkDir,
}

impl Temporary {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl WorkDir {
    /// Returns the directory of `run`, without creating it.
    pub fn temporary(&self, run: RunId) -> Temporary {
        let id = run.to_string();
        let (_, id) = id.split_at(id.len().saturating_sub(ID_CHARS));
        Temporary { path: self.path.join(format!("{PREFIX}{id}")), work: self.clone() }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if set_aside(&self.path) {
            self.work.remove_set_aside();
        }
    }
}

/// Has the directories removed that an earlier server left.
pub(super) fn set_aside_all(work: &Path) {
    for name in names(work).iter().filter(|name| name.starts_with(PREFIX)) {
        set_aside(&work.join(name));
    }
}

/// Gives one the name of a directory that is to be removed. Returns false if there is none.
fn set_aside(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().display();
    match fs::rename(path, path.with_file_name(format!("{PURGED}{name}"))) {
        Ok(()) => true,
        Err(err) if err.kind() == io::ErrorKind::NotFound => false,
        Err(err) => {
            log::warn!(
                target: "greenroom::run", path:% = path.display(), err:%;
                "a run's directory for temporary files cannot be removed"
            );
            false
        }
    }
}
