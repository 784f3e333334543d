//! The backup: copies a database while a server writes to it.
//!
//! `VACUUM INTO` reads one committed state from beginning to end. In WAL mode it blocks no commit,
//! and commits do not restart it, as they restart SQLite's backup API when that copies in steps. It
//! reads every row, so damage is detected. While it runs, the write-ahead log cannot restart and
//! grows.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Opener, connect, failed, files};
use crate::storage::StoreError;

/// Why there is no backup. An incomplete one is deleted.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file has the name of the target or of the partial copy; it was not changed.
    #[error("{} exists; a backup never overwrites anything", .0.display())]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("{} cannot be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// The database cannot be read, or its copy cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The copy was verified, and is damaged.
    #[error("the copy is damaged: {0}")]
    Damaged(String),
}

impl Opener {
    /// Copies the current state of the database to `target`, readable for its owner only. The file
    /// gets its name once it is complete, verified and synced. Returns its size in bytes.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; then no file of it is left.
    pub fn backup(&self, target: &Path) -> Result<u64, BackupError> {
        let failed_write = |err| BackupError::Write(target.to_owned(), err);
        let target = std::path::absolute(target).map_err(failed_write)?;
        if target.symlink_metadata().is_ok() {
            return Err(BackupError::Exists(target));
        }
        let partial = files::beside(&target, ".partial");
        let conn = self.for_repair()?;
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = match made {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                return Err(BackupError::Exists(partial));
            }
            made => made.map_err(|err| BackupError::Write(partial.clone(), err))?,
        };
        let copied = copy(&conn, &partial, &file, &target);
        if copied.is_err() {
            // This process created it just now.
            _ = fs::remove_file(&partial);
        }
        copied
    }
}

fn copy(conn: &Connection, partial: &Path, file: &File, target: &Path) -> Result<u64, BackupError> {
    let failed_write = |err: io::Error| BackupError::Write(target.to_owned(), err);
    let name =
        partial.to_str().ok_or_else(|| failed_write(io::ErrorKind::InvalidFilename.into()))?;
    conn.execute("VACUUM INTO ?", [name]).map_err(failed("was copied"))?;
    verify(partial)?;
    file.sync_all().map_err(failed_write)?;
    let bytes = file.metadata().map_err(failed_write)?.len();
    match renameat_with(CWD, partial, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(BackupError::Exists(target.to_owned())),
        // Not every file system supports it. A hard link does not replace a file either.
        Err(_) => {
            fs::hard_link(partial, target).map_err(failed_write)?;
            fs::remove_file(partial).map_err(failed_write)?;
        }
    }
    let dir = target.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed_write)?;
    Ok(bytes)
}

/// Reads the whole copy.
fn verify(copy: &Path) -> Result<(), BackupError> {
    let conn = connect(copy, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("was copied"))?;
    let found: String = conn
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(failed("was copied"))?;
    if found == "ok" { Ok(()) } else { Err(BackupError::Damaged(found)) }
}
