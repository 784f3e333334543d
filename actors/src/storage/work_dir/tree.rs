//! Removes a directory tree that an agent left: of any depth and size, without following a link.
//!
//! The standard library recurses, one stack frame and one descriptor a level: a tree 20,000 deep
//! ends the process. Here each directory is first moved to the top of the tree, so that only two
//! are open at a time, and every name is looked up in a descriptor.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, chmod, fchmod, fstat, openat, renameat, unlinkat},
    io::Errno,
};

/// What could not be removed, and with it the directories above it.
#[derive(Debug, thiserror::Error)]
#[error("{entries} entries could not be removed, the first is {first:?}: {source}")]
pub struct NotRemoved {
    entries: u64,
    first: CString,
    source: io::Error,
}

/// Removes what is at `path`: a link or a file as such, a directory with everything below it. The
/// directories that stand between are opened by their owner's rights, which are added if they are
/// missing. Blocks. Nothing at `path` is a success.
///
/// # Errors
///
/// Some entries could not be removed; all others are.
pub fn remove(path: &Path) -> Result<(), NotRemoved> {
    let failed = |err: Errno| {
        let first = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
        NotRemoved { entries: 1, first, source: err.into() }
    };
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(err) => return Err(failed(err)),
    }
    let mut tree = Tree { top: open(CWD, path).map_err(failed)?, moved: 0, gone: 0, failure: None };
    loop {
        let gone = tree.gone;
        tree.clear_top().map_err(failed)?;
        match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Directories that were moved to the top while it was read.
            Err(Errno::NOTEMPTY | Errno::EXIST) if tree.gone > gone => {}
            Err(err) => return Err(tree.failure.unwrap_or_else(|| failed(err))),
        }
    }
}

struct Tree {
    top: OwnedFd,
    /// How many directories were moved to the top.
    moved: u64,
    /// How many entries were moved or removed.
    gone: u64,
    /// What could not be removed in the last pass.
    failure: Option<NotRemoved>,
}

impl Tree {
    /// Removes the entries of the top; the directories in one of them become entries of the top.
    fn clear_top(&mut self) -> Result<(), Errno> {
        self.failure = None;
        let mut entries = Dir::read_from(&self.top)?;
        while let Some(name) = next(&mut entries)? {
            let top = self.top.as_fd();
            let removed = match unlinkat(top, &*name, AtFlags::empty()) {
                Err(Errno::ISDIR) => open(top, &*name).and_then(|child| {
                    self.clear(child.as_fd())?;
                    unlinkat(&self.top, &*name, AtFlags::REMOVEDIR)
                }),
                removed => removed,
            };
            self.note(&name, removed);
        }
        Ok(())
    }

    /// Removes the entries of a directory below the top, and moves its directories to the top.
    fn clear(&mut self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut entries = Dir::read_from(dir)?;
        while let Some(name) = next(&mut entries)? {
            let removed = match unlinkat(dir, &*name, AtFlags::empty()) {
                Err(Errno::ISDIR) => self.move_to_top(dir, &name),
                removed => removed,
            };
            self.note(&name, removed);
        }
        Ok(())
    }

    fn move_to_top(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let mut has_rights = false;
        loop {
            self.moved += 1;
            match renameat(dir, name, &self.top, format!(".removed-{}", self.moved)) {
                // The name is taken.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => {}
                // A directory is written to when it is moved: its `..` changes.
                Err(Errno::ACCESS) if !has_rights => {
                    give_rights(dir, name)?;
                    has_rights = true;
                }
                moved => return moved,
            }
        }
    }

    fn note(&mut self, name: &CStr, removed: Result<(), Errno>) {
        match removed {
            Ok(()) | Err(Errno::NOENT) => self.gone += 1,
            // Because of another entry, which is noted or is read in the next pass.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(err) => {
                let first =
                    || NotRemoved { entries: 0, first: name.to_owned(), source: err.into() };
                self.failure.get_or_insert_with(first).entries += 1;
            }
        }
    }
}

/// Returns the next entry's name.
fn next(entries: &mut Dir) -> Result<Option<CString>, Errno> {
    loop {
        let Some(entry) = entries.next().transpose()? else { return Ok(None) };
        if ![c".", c".."].contains(&entry.file_name()) {
            return Ok(Some(entry.file_name().to_owned()));
        }
    }
}

/// Opens a directory, itself and not what a link there names, with all rights of its owner.
fn open<P: rustix::path::Arg + Copy>(parent: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            give_rights(&parent, name)?;
            openat(&parent, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    if !Mode::from_raw_mode(fstat(&dir)?.st_mode).contains(Mode::RWXU) {
        // Another user's directory: what cannot be removed from it is said by its entries.
        _ = fchmod(&dir, Mode::RWXU);
    }
    Ok(dir)
}

/// Gives a directory's owner all rights, by its descriptor in `/proc`: only a readable directory
/// can be opened otherwise.
fn give_rights<P: rustix::path::Arg>(parent: impl AsFd, name: P) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), Mode::RWXU)
}

#[cfg(test)]
mod tests;
