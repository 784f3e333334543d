//! A group's working directory: which directories may be one, and how one is opened.
//!
//! Other processes may change a path at any time, an agent of another group too. So the start of a
//! run opens the directory once, checks what it opened, and starts the agent in that descriptor,
//! not in the path (C12). Links are followed when a group is configured, and only then: its stored
//! path has none below its root.

mod beneath;

use std::{
    fs::DirBuilder,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{
        AtFlags, CWD, FsWord, Mode, OFlags, PROC_SUPER_MAGIC, Stat, fstat, fstatfs, mkdirat, statat,
    },
    io::Errno,
};
use tokio::sync::oneshot;

use crate::{awake, profile::Profile};

/// How a directory is opened: nothing is read through the descriptor, so that the right to enter
/// the directory is enough.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How long a file system may take to answer about a directory.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The most directories between a working directory and the root: as many as a path has room for.
const DEPTH_MAX: usize = 2048;

/// An open working directory.
#[derive(Clone, Debug)]
pub struct WorkingDir {
    path: PathBuf,
    dir: Arc<OwnedFd>,
}

/// Where a group's agent works.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the group's own directory, which is created on demand. Its parent may be a link.
    Own(PathBuf),
    /// In the directory that the group's settings name.
    Named {
        /// Its canonical path, as [`check`] returned it.
        cwd: PathBuf,
        /// What is no working directory.
        reserved: Reserved,
    },
}

/// The directories of greenroom itself. None of them is a working directory, whatever the path
/// that leads there, except for the group's own and those below it.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// The data directory.
    pub data: PathBuf,
    /// The parent of the groups' own directories. It may be a link out of the data directory.
    pub work: PathBuf,
    /// The group's own directory; `None` if the group does not exist yet.
    pub own: Option<PathBuf>,
}

impl WorkingDir {
    /// Opens the directory at `path`, and follows links.
    ///
    /// # Errors
    ///
    /// It is missing, no directory, or may not be reached.
    pub fn open(path: &Path) -> io::Result<Self> {
        let dir = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        Ok(Self { path: path.to_owned(), dir: Arc::new(dir) })
    }

    /// Its path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for WorkingDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Place {
    /// Opens the directory for an agent of `profile`, on a thread of its own: one on a hung mount
    /// would block an arbiter, and so all of its groups (I15).
    ///
    /// # Errors
    ///
    /// As [`check`]; or a part of the path below its root is a link, which it was not when the
    /// group was configured.
    pub async fn open(self, profile: Arc<Profile>) -> io::Result<WorkingDir> {
        off_thread(move || match self {
            Self::Own(path) => open_own(&path).map_err(named(&path)),
            Self::Named { cwd, reserved } => open_named(&cwd, &cwd, &profile, &reserved),
        })
        .await
    }
}

/// Checks that `cwd` is a directory where an agent of `profile` may work, and returns its canonical
/// path. With roots, an error does not show what exists outside of them.
///
/// # Errors
///
/// The directory is missing, is none, may not be entered, is not under the profile's roots, is a
/// reserved one or of `/proc`; or its file system did not answer within 5 s.
pub async fn check(cwd: PathBuf, profile: Arc<Profile>, reserved: Reserved) -> io::Result<PathBuf> {
    off_thread(move || {
        let real = cwd.canonicalize().map_err(|err| match &*profile.cwd_roots {
            [] => named(&cwd)(err),
            _ => not_under(&cwd, &profile),
        })?;
        open_named(&real, &cwd, &profile, &reserved).map(|opened| opened.path)
    })
    .await
}

async fn off_thread<T: Send + 'static>(
    inspect: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // Not a thread of the runtime, which panics if the system has no thread left (F34).
    thread::Builder::new().name("directory".into()).spawn(move || _ = done.send(inspect()))?;
    match awake::timeout(ANSWER_MAX, result).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(io::Error::other("the check of a directory panicked")),
        Err(_) => {
            let max = ANSWER_MAX.as_secs();
            Err(io::Error::other(format!("its file system did not answer within {max} s")))
        }
    }
}

fn open_own(path: &Path) -> io::Result<WorkingDir> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let parent = WorkingDir::open(&parent.canonicalize()?)?;
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(err) => return Err(err.into()),
    }
    let dir = beneath::open(parent.as_fd(), Path::new(name))?;
    Ok(WorkingDir { path: parent.path.join(name), dir: Arc::new(dir) })
}

/// Opens the canonical path `real`; `shown` is the path for errors.
fn open_named(
    real: &Path,
    shown: &Path,
    profile: &Profile,
    reserved: &Reserved,
) -> io::Result<WorkingDir> {
    let top = [PathBuf::from("/")];
    let roots = if profile.cwd_roots.is_empty() { &top[..] } else { &profile.cwd_roots };
    let (root, below) = roots
        .iter()
        .filter_map(|root| root.canonicalize().ok())
        .find_map(|root| Some((real.strip_prefix(&root).ok()?.to_owned(), root)))
        .map(|(below, root)| (root, below))
        .ok_or_else(|| not_under(shown, profile))?;
    let open = || {
        let dir = beneath::open(WorkingDir::open(&root)?.as_fd(), &below)?;
        refuse_reserved(dir.as_fd(), reserved)?;
        Ok(WorkingDir { path: real.to_owned(), dir: Arc::new(dir) })
    };
    open().map_err(named(shown))
}

/// Refuses what greenroom keeps for itself, by the open directory and those above it: also one that
/// is mounted in a second place.
fn refuse_reserved(dir: BorrowedFd<'_>, reserved: &Reserved) -> io::Result<()> {
    if fstatfs(dir)?.f_type as FsWord == PROC_SUPER_MAGIC {
        let why = "no agent may work in a file system of processes (/proc)";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let id = |path: &Path, flags| match statat(CWD, path, flags) {
        Ok(found) => Ok(Some(identity(&found))),
        Err(Errno::NOENT) => Ok(None),
        Err(err) => Err(err),
    };
    let own = reserved.own.as_deref().map_or(Ok(None), |own| id(own, AtFlags::SYMLINK_NOFOLLOW))?;
    let [data, work] = [&reserved.data, &reserved.work].map(|path| id(path, AtFlags::empty()));
    let (data, work) = (data?, work?);
    let above = identities_upwards(dir)?;
    let leads_through = |id: Option<_>| id.is_some_and(|id| above.contains(&id));
    if !leads_through(own) && (leads_through(data) || leads_through(work)) {
        let why = "no agent may work in greenroom's data directory or in another group's directory";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Device and inode of a directory and of all above it.
fn identities_upwards(dir: BorrowedFd<'_>) -> io::Result<Vec<(u64, u64)>> {
    let mut found = vec![identity(&fstat(dir)?)];
    let mut above = rustix::fs::openat(dir, "..", DIRECTORY, Mode::empty())?;
    // The root is its own parent.
    while let id = identity(&fstat(&above)?)
        && found.last() != Some(&id)
    {
        if DEPTH_MAX < found.len() {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        found.push(id);
        above = rustix::fs::openat(&above, "..", DIRECTORY, Mode::empty())?;
    }
    Ok(found)
}

fn identity(found: &Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

fn named(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |err| {
        let path = path.display();
        let is_link = err.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        let why = if is_link { "a part of it is a link now".into() } else { err.to_string() };
        io::Error::new(err.kind(), format!("working directory {path}: {why}"))
    }
}

/// The error for all that is missing, or lies outside of the roots: the same one for both.
fn not_under(cwd: &Path, profile: &Profile) -> io::Error {
    let (cwd, agent) = (cwd.display(), &profile.name);
    let why = format!(
        "working directory {cwd}: it is not a directory under one where agent {agent} may work"
    );
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests;
