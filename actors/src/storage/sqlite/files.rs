//! The database's files: checks that they are private, present, and those that were opened.
//!
//! It never changes or deletes one of them.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, FsWord, NFS_SUPER_MAGIC, flock, fstatfs},
    io::Errno,
};

use crate::storage::{Sizes, StoreError, work_dir};

/// The wait between two tries to lock a file that another process reads.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// File systems on which a lock of a whole file and one of a range are of one kind: NFS and SMB.
const NETWORK: [FsWord; 4] = [NFS_SUPER_MAGIC, 0x517b, 0xff53_4d42, 0xfe53_4d42];
/// The database, its write-ahead log, and the log's index.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// Returns the path of a file that SQLite keeps beside the database, or beside the target of a
/// link.
pub fn beside(database: &Path, suffix: &str) -> PathBuf {
    let real = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let mut name = real.into_os_string();
    name.push(suffix);
    name.into()
}

/// Creates a directory that only its owner may use, and its missing parents, durably: they survive
/// a power failure.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // The topmost first: its parent exists.
    for made in missing.into_iter().rev() {
        let parent = made.parent().filter(|dir| !dir.as_os_str().is_empty());
        sync_dir(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Makes the names in a directory durable, if the file system supports that: some refuse to sync a
/// directory.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    unless_unsupported(File::open(dir)?.sync_all())
}

fn unless_unsupported(synced: io::Result<()>) -> io::Result<()> {
    let refused = [Errno::INVAL, Errno::NOTSUP].map(|errno| Some(errno.raw_os_error()));
    match synced {
        Err(err) if refused.contains(&err.raw_os_error()) => Ok(()),
        synced => synced,
    }
}

/// Locks a file exclusively. Waits up to `wait` for processes that share the lock; returns an error
/// at once if another process has it exclusively.
pub fn lock_exclusively(lock: &File, wait: Duration) -> io::Result<()> {
    let began = Instant::now();
    let mut logged = false;
    loop {
        let refused = match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let is_shared = flock(lock, FlockOperation::NonBlockingLockShared).is_ok();
        flock(lock, FlockOperation::Unlock)?;
        if !is_shared || wait < began.elapsed() {
            return Err(refused.into());
        }
        if !std::mem::replace(&mut logged, true) {
            log::info!(
                target: "greenroom::storage",
                "waiting for another process that reads the database"
            );
        }
        thread::sleep(LOCK_RETRY);
    }
}

/// Locks the database's own file as [`lock_exclusively`] does, so that a link to it, a hard link,
/// or a second mount is the same database.
///
/// Does nothing on a network file system: there, the lock would be one of the kind that SQLite uses
/// itself, and keep it out.
pub fn lock_database(file: &File, wait: Duration) -> io::Result<()> {
    if NETWORK.contains(&(fstatfs(file)?.f_type as FsWord)) {
        return Ok(());
    }
    lock_exclusively(file, wait)
}

/// The files that a connection opened, with their device and inode numbers.
#[derive(Debug)]
pub struct Files([(PathBuf, (u64, u64)); 3]);

/// Why a file is not known to be the one that was opened.
#[derive(Debug, thiserror::Error)]
pub enum Changed {
    /// No file has this name.
    #[error("{} was removed while it was open", .0.display())]
    Removed(PathBuf),
    /// Another file has its name.
    #[error("{} was replaced while it was open", .0.display())]
    Replaced(PathBuf),
    /// The file cannot be inspected.
    #[error("{} cannot be inspected", .0.display())]
    Hidden(PathBuf, #[source] io::Error),
}

impl Changed {
    /// Whether the file may still be the same.
    pub fn may_be_same(&self) -> bool {
        matches!(self, Self::Hidden(..))
    }
}

impl Files {
    /// The files that have the names now. Called just after they were opened, in a directory that
    /// this process has reserved.
    pub fn of(database: &Path) -> Result<Self, Changed> {
        let [one, two, three] = SUFFIXES.map(|suffix| {
            let path = beside(database, suffix);
            let found = inspect(&path)?;
            Ok((path, (found.dev(), found.ino())))
        });
        Ok(Self([one?, two?, three?]))
    }

    /// The path of the database itself.
    pub fn database(&self) -> &Path {
        &self.0[0].0
    }

    /// Checks that the files are still the same, and returns their sizes.
    pub fn check(&self) -> Result<Sizes, Changed> {
        let mut bytes = [0; 3];
        for ((path, opened), bytes) in self.0.iter().zip(&mut bytes) {
            let found = inspect(path)?;
            if (found.dev(), found.ino()) != *opened {
                return Err(Changed::Replaced(path.clone()));
            }
            *bytes = found.len();
        }
        Ok(Sizes { database: bytes[0], log: bytes[1] })
    }

    /// Whether only the write-ahead log or its index was removed: then the open log can still be
    /// moved into the database.
    pub fn only_log_removed(&self) -> bool {
        let [(database, opened), beside @ ..] = &self.0;
        let same = inspect(database).is_ok_and(|found| (found.dev(), found.ino()) == *opened);
        same && beside.iter().all(|(path, opened)| match inspect(path) {
            Ok(found) => (found.dev(), found.ino()) == *opened,
            Err(changed) => matches!(changed, Changed::Removed(_)),
        })
    }
}

fn inspect(path: &Path) -> Result<Metadata, Changed> {
    fs::metadata(path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => Changed::Removed(path.to_owned()),
        _ => Changed::Hidden(path.to_owned(), err),
    })
}

/// Logs which of the files other users may access (C14). The modes may be intended, so they stay.
pub fn warn_of_access(dir: &Path, files: &[PathBuf]) {
    for path in std::iter::once(dir).chain(files.iter().map(PathBuf::as_path)) {
        let Ok(found) = fs::metadata(path) else { continue };
        let mode = found.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let mode = format_args!("{mode:04o}");
            log::warn!(
                target: "greenroom::storage", path:% = path.display(), mode:%;
                "other users of this machine may access a file that only greenroom should"
            );
        }
    }
}

/// Refuses to create a database where an earlier one is missing. SQLite would delete the log of a
/// missing or empty database, and new groups would get the directories of old ones.
///
/// # Errors
///
/// [`StoreError::Unusable`].
pub fn refuse_missing(database: &Path) -> Result<(), StoreError> {
    if fs::metadata(database).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let log = beside(database, "-wal");
    let data = database.parent().unwrap_or(Path::new(""));
    let left_over = if fs::metadata(&log).is_ok_and(|found| found.len() > 0) {
        Some(log)
    } else {
        work_dir::with_groups(data)
    };
    let Some(left_over) = left_over else { return Ok(()) };
    Err(StoreError::Unusable {
        file: database.display().to_string(),
        why: format!(
            "it is missing or empty, but {} is still there; put the database back, restore a \
             backup, or move that away to create a new database",
            left_over.display()
        ),
        source: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_sync_directories_is_no_error() {
        let synced = |errno: Errno| {
            unless_unsupported(Err(io::Error::from_raw_os_error(errno.raw_os_error())))
        };
        for errno in [Errno::INVAL, Errno::NOTSUP] {
            assert!(synced(errno).is_ok(), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS] {
            assert!(synced(errno).is_err(), "{errno}");
        }
    }
}
