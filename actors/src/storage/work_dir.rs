//! The directories that groups without a `cwd` work in: where they are, and their removal.

// Directories for temporary files.
mod temporary;
// The removal of one directory.
mod tree;

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender},
    thread,
};

use super::GroupNo;
use crate::working_dir::Reserved;

/// The directory's name below the data directory.
const NAME: &str = "work";
/// Begins the name of a directory whose group is purged.
const PURGED: &str = ".purged-";
/// What file systems answer if the new name is taken by a directory with entries.
const TAKEN: [io::ErrorKind; 2] = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists];

/// The parent of the groups' own directories, and the thread that removes those of purged groups:
/// that may take minutes, and the end of the process does not wait for it.
#[derive(Clone, Debug)]
pub struct WorkDir {
    path: PathBuf,
    removal: Sender<()>,
}

impl WorkDir {
    /// Takes the one of a data directory, which exists once a group needs it, and begins to remove
    /// what earlier servers left of purged groups.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(NAME);
        let (removal, wanted) = mpsc::channel();
        let work = path.clone();
        temporary::set_aside_all(&work);
        thread::Builder::new().name("purge".into()).spawn(move || {
            let mut reported = HashSet::new();
            remove_purged(&work, &mut reported);
            while wanted.recv().is_ok() {
                remove_purged(&work, &mut reported);
            }
        })?;
        Ok(Self { path, removal })
    }

    /// Returns the directory of the group with this number.
    pub fn of(&self, group: GroupNo) -> PathBuf {
        self.path.join(group.to_string())
    }

    /// Returns what is no working directory of an agent, but for this group's own: `None` for a
    /// group that does not exist yet.
    pub fn reserved(&self, group: Option<GroupNo>) -> Reserved {
        Reserved {
            data: self.path.parent().unwrap_or(Path::new("/")).to_owned(),
            work: self.path.clone(),
            own: group.map(|group| self.of(group)),
        }
    }

    /// Gives the directory of a group that is to be purged another name, under which it is removed
    /// by [`Self::remove_set_aside`] or by the next start. Blocks.
    pub(crate) fn set_aside(&self, group: GroupNo) {
        let own = self.of(group);
        // A name is taken if an earlier purge of this group failed.
        for number in 0_u64.. {
            match fs::rename(&own, self.path.join(format!("{PURGED}{group}-{number}"))) {
                Err(err) if TAKEN.contains(&err.kind()) => {}
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    log::warn!(
                        target: "greenroom::group", path:% = own.display(), err:%;
                        "the directory of a purged group cannot be removed"
                    );
                    return;
                }
                Ok(()) | Err(_) => return,
            }
        }
    }

    /// Has the directories removed that were set aside.
    pub(crate) fn remove_set_aside(&self) {
        // The thread ends with its last sender.
        _ = self.removal.send(());
    }
}

/// Whether a group has a directory below this data directory: its name is a number. Returns their
/// parent.
pub(crate) fn with_groups(data: &Path) -> Option<PathBuf> {
    let work = data.join(NAME);
    let is_number = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    names(&work).iter().any(|name| is_number(name)).then_some(work)
}

/// Removes the directories of purged groups. Logs once what is left.
fn remove_purged(work: &Path, reported: &mut HashSet<String>) {
    for name in names(work).into_iter().filter(|name| name.starts_with(PURGED)) {
        let path = work.join(&name);
        if let Err(err) = tree::remove(&path)
            && reported.insert(name)
        {
            log::warn!(
                target: "greenroom::group", path:% = path.display(), err:%;
                "a purged group's directory could not be removed; remove it, or the next start \
                 tries again"
            );
        }
    }
}

fn names(work: &Path) -> Vec<String> {
    let entries = fs::read_dir(work).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
