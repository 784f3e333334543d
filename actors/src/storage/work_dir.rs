//! The directories that groups without a `cwd` work in: where they are, and their removal.

mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use tree::NotRemoved;

use super::GroupNo;

/// The directory's name below the data directory.
const NAME: &str = "work";
/// Begins the name of a directory whose group is purged.
const PURGED: &str = ".purged-";

/// The parent of the groups' own directories.
#[derive(Clone, Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// The one of a data directory. It exists once a group needs it.
    pub fn below(data: &Path) -> Self {
        Self(data.join(NAME))
    }

    /// Returns the directory of the group with this number.
    pub fn of(&self, group: GroupNo) -> PathBuf {
        self.0.join(group.to_string())
    }

    /// Removes a purged group's directory. It first gets another name, so that [`Self::sweep`]
    /// removes what this call leaves. Blocks.
    ///
    /// # Errors
    ///
    /// Some entries are left.
    pub(crate) fn remove(&self, group: GroupNo) -> Result<(), NotRemoved> {
        let purged = self.0.join(format!("{PURGED}{group}"));
        // Fails if there is none, or if an earlier purge of it left something.
        _ = fs::rename(self.of(group), &purged);
        tree::remove(&purged)?;
        tree::remove(&self.of(group))
    }

    /// Removes what is left of purged groups. Blocks.
    pub fn sweep(&self) {
        for purged in self.purged() {
            if let Err(err) = tree::remove(&purged) {
                log::warn!(
                    target: "greenroom::group", path:% = purged.display(), err:%;
                    "what is left of a purged group's directory could not be removed; remove it, \
                     or the next start tries again"
                );
            }
        }
    }

    fn purged(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let is_purged = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(PURGED))
        };
        entries.map(|entry| entry.path()).filter(is_purged).collect()
    }

    /// Whether a group has a directory here: its name is a number.
    pub(crate) fn has_groups(&self) -> bool {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| {
            let name = name.as_encoded_bytes();
            !name.is_empty() && name.iter().all(u8::is_ascii_digit)
        })
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
