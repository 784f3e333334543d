//! The database's files: whether they are private, whether one is missing, and whether they are
//! still those that were opened. Nothing here changes or deletes one.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::storage::{Sizes, StoreError, WORK_DIR};

/// Between two tries to lock a file that another process reads.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The database, its write-ahead log, and the log's index.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// The path of a file that SQLite keeps beside the database: beside what a link leads to.
pub fn beside(database: &Path, suffix: &str) -> PathBuf {
    let real = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let mut name = real.into_os_string();
    name.push(suffix);
    name.into()
}

/// Makes a directory that only its owner may use, and those above it that are missing, so that a
/// power loss does not take them away.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // The last one first: what is above it is there.
    for made in missing.into_iter().rev() {
        let above = made.parent().filter(|dir| !dir.as_os_str().is_empty());
        sync_dir(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Makes the names in a directory durable, as far as the file system knows how: some refuse to sync
/// a directory.
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

/// Locks a file for this process alone. Waits for processes that share the lock; refuses at once if
/// another process owns it.
pub fn own(lock: &File, patience: Duration) -> io::Result<()> {
    let began = Instant::now();
    let mut said = false;
    loop {
        let refused = match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let is_shared = flock(lock, FlockOperation::NonBlockingLockShared).is_ok();
        flock(lock, FlockOperation::Unlock)?;
        if !is_shared || patience < began.elapsed() {
            return Err(refused.into());
        }
        if !std::mem::replace(&mut said, true) {
            log::info!(
                target: "greenroom::storage",
                "waiting for another process that reads the database"
            );
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Which files a connection opened.
#[derive(Debug)]
pub struct Files([(PathBuf, (u64, u64)); 3]);

/// A file is not the one that was opened.
#[derive(Debug, thiserror::Error)]
pub enum Changed {
    /// There is none by this name.
    #[error("{} was removed while it was open", .0.display())]
    Removed(PathBuf),
    /// Another has its name.
    #[error("{} was replaced while it was open", .0.display())]
    Replaced(PathBuf),
    /// It cannot be looked at.
    #[error("{} cannot be looked at", .0.display())]
    Hidden(PathBuf, #[source] io::Error),
}

impl Changed {
    /// Whether it is not known to be another.
    pub fn is_hidden(&self) -> bool {
        matches!(self, Self::Hidden(..))
    }
}

impl Files {
    /// The files that have the names now; called just after they were opened, in a directory that
    /// is this process's alone.
    pub fn of(database: &Path) -> Result<Self, Changed> {
        let [one, two, three] = SUFFIXES.map(|suffix| {
            let path = beside(database, suffix);
            let found = look(&path)?;
            Ok((path, (found.dev(), found.ino())))
        });
        Ok(Self([one?, two?, three?]))
    }

    /// The database itself.
    pub fn database(&self) -> &Path {
        &self.0[0].0
    }

    /// Looks whether they are still the same, and how large.
    pub fn check(&self) -> Result<Sizes, Changed> {
        let mut bytes = [0; 3];
        for ((path, opened), bytes) in self.0.iter().zip(&mut bytes) {
            let found = look(path)?;
            if (found.dev(), found.ino()) != *opened {
                return Err(Changed::Replaced(path.clone()));
            }
            *bytes = found.len();
        }
        Ok(Sizes { database: bytes[0], log: bytes[1] })
    }

    /// Whether all that is wrong is that the log, or its index, has no name any more: then what it
    /// holds can still be moved into the database.
    pub fn only_log_removed(&self) -> bool {
        let [(database, opened), beside @ ..] = &self.0;
        let same = look(database).is_ok_and(|found| (found.dev(), found.ino()) == *opened);
        same && beside.iter().all(|(path, opened)| match look(path) {
            Ok(found) => (found.dev(), found.ino()) == *opened,
            Err(changed) => matches!(changed, Changed::Removed(_)),
        })
    }
}

fn look(path: &Path) -> Result<Metadata, Changed> {
    fs::metadata(path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => Changed::Removed(path.to_owned()),
        _ => Changed::Hidden(path.to_owned(), err),
    })
}

/// Says which of the files others may read (RELIABILITY C14). Their modes may be meant: they stay.
pub fn warn_of_open(dir: &Path, files: &[PathBuf]) {
    for path in std::iter::once(dir).chain(files.iter().map(PathBuf::as_path)) {
        let Ok(found) = fs::metadata(path) else { continue };
        let mode = found.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let mode = format_args!("{mode:04o}");
            log::warn!(
                target: "greenroom::storage", path:% = path.display(), mode:%;
                "other users of this machine may open what only greenroom should"
            );
        }
    }
}

/// Refuses to begin anew where a database has been. SQLite would delete the log of a database that
/// is missing or empty, and new groups would find the directories of old ones.
///
/// # Errors
///
/// [`StoreError::Unusable`].
pub fn refuse_remains(database: &Path) -> Result<(), StoreError> {
    if fs::metadata(database).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let log = beside(database, "-wal");
    let work = database.with_file_name(WORK_DIR);
    let remains = if fs::metadata(&log).is_ok_and(|found| found.len() > 0) {
        Some(log)
    } else {
        has_groups(&work).then_some(work)
    };
    let Some(remains) = remains else { return Ok(()) };
    Err(StoreError::Unusable {
        file: database.display().to_string(),
        why: format!(
            "it is missing or empty, but {} is still there; put the database back or restore a \
             backup, or move that away to begin anew",
            remains.display()
        ),
        source: None,
    })
}

/// Whether there are directories of groups: they have numbers for names.
fn has_groups(work: &Path) -> bool {
    let entries = fs::read_dir(work).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| {
        let name = name.as_encoded_bytes();
        !name.is_empty() && name.iter().all(u8::is_ascii_digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_sync_directories_is_passed_over() {
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
