//! Opens a directory below another one without following a link.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat},
    io::Errno,
};

use super::DIRECTORY;

/// Opens the directory `below` of `root`, which is a path of names only.
///
/// # Errors
///
/// `ELOOP` if a part of the path is a link; the system's error otherwise.
pub(super) fn open(root: BorrowedFd<'_>, below: &Path) -> io::Result<OwnedFd> {
    if !below.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    match at_once(root, below) {
        // Linux before 5.6, or a filter of system calls that does not know this one.
        Err(Errno::NOSYS | Errno::PERM) => Ok(in_steps(root, below)?),
        opened => Ok(opened?),
    }
}

fn at_once(root: BorrowedFd<'_>, below: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    openat2(root, path, DIRECTORY, Mode::empty(), resolve)
}

fn in_steps(root: BorrowedFd<'_>, below: &Path) -> Result<OwnedFd, Errno> {
    let mut dir = openat(root, ".", DIRECTORY, Mode::empty())?;
    for name in below {
        let opened = openat(&dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        dir = opened.map_err(|err| match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => Errno::LOOP,
            _ => err,
        })?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::fd::AsFd as _, os::unix::fs::symlink};

    use super::*;
    use crate::working_dir::WorkingDir;

    /// C12: with one system call and in steps alike, no link is followed, wherever it leads.
    #[test]
    fn no_link_is_followed_below_a_root() {
        let root = tempfile::TempDir::new().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("a/b")).unwrap();
        fs::write(path("file"), "").unwrap();
        symlink(path("a"), path("inside")).unwrap();
        symlink("/", path("outside")).unwrap();
        symlink("nowhere", path("a/dangling")).unwrap();
        symlink("a", path("relative")).unwrap();
        let opened = WorkingDir::open(root.path()).unwrap();
        let inode = |dir: OwnedFd| rustix::fs::fstat(dir).unwrap().st_ino;
        #[rustfmt::skip]
        let cases = [
            ("",           Ok(".")),
            ("a",          Ok("a")),
            ("a/b",        Ok("a/b")),
            ("missing",    Err(Errno::NOENT)),
            ("file",       Err(Errno::NOTDIR)),
            ("file/b",     Err(Errno::NOTDIR)),
            ("inside",     Err(Errno::LOOP)),
            ("inside/b",   Err(Errno::LOOP)),
            ("relative",   Err(Errno::LOOP)),
            ("outside",    Err(Errno::LOOP)),
            ("outside/etc", Err(Errno::LOOP)),
            ("a/dangling", Err(Errno::LOOP)),
        ];
        for (below, expected) in cases {
            let expected = expected.map(|name| {
                inode(WorkingDir::open(&path(name)).unwrap().as_fd().try_clone_to_owned().unwrap())
            });
            let dir = opened.as_fd();
            assert_eq!(at_once(dir, Path::new(below)).map(inode), expected, "{below}");
            assert_eq!(in_steps(dir, Path::new(below)).map(inode), expected, "{below}, in steps");
        }
        for below in ["..", "a/../..", "/etc", "./a/../../x"] {
            let refused = open(opened.as_fd(), Path::new(below)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidFilename, "{below}");
        }
    }
}
