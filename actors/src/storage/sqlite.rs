//! The SQLite implementation: opening, migrating, and who may open it.
//!
//! This module and those below it alone name rusqlite.

mod archive;
mod backup;
pub mod checkpoint;
mod clock;
mod cuts;
mod digests;
mod exports;
mod files;
mod flaws;
mod hydrate;
mod locks;
mod permissions;
mod repair;
mod rows;
mod store;
mod tally;
mod tasks;
mod upkeep;
mod wal;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use rustix::fs::FlockOperation;

use self::files::Files;
pub use self::{
    archive::SqliteArchive,
    backup::BackupError,
    checkpoint::{Checkpointer, Rhythm},
    store::SqliteStore,
};
use super::{Fault, StoreError, Unreadable, fault::Broken};

/// Numbered migrations: the database's version is how many of them it has had.
const MIGRATIONS: [&str; 5] = [
    include_str!("sqlite/0001.sql"),
    include_str!("sqlite/0002.sql"),
    include_str!("sqlite/0003.sql"),
    include_str!("sqlite/0004.sql"),
    include_str!("sqlite/0005.sql"),
];
/// To how many bytes the log's file is cut when it begins anew after it grew, as under a backup.
const LOG_BYTES_KEPT: u32 = 32 << 20;
/// How long a lock that another program holds on the database is waited out.
const BUSY: Duration = Duration::from_secs(5);

/// How long a start waits for a process that only reads the files, as `greenroom verify` does.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// The file by whose lock a data directory is one server's.
const LOCK: &str = "greenroom.lock";

/// A data directory that is this process's alone, and the database in it.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    /// Holding it open holds the lock; the kernel gives the lock back however the process ends.
    _lock: File,
}

impl Database {
    /// Takes the directory of `path` for this process, makes what is missing (the directory 0700,
    /// the database 0600: RELIABILITY C14), and brings the schema up to date.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another server has the directory, [`StoreError::TooNew`] if a later
    /// version wrote the database, [`StoreError::Unusable`] if something cannot be made or read, or
    /// if the database is missing and was there before. Then it was left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files::make_dir(dir).map_err(cannot_make(dir))?;
        let dir = dir.canonicalize().map_err(cannot_make(dir))?;
        let path = dir.join(path.file_name().unwrap_or_else(|| "greenroom.db".as_ref()));
        let lock = dir.join(LOCK);
        let all = [lock.clone(), path.clone(), files::beside(&path, "-wal")];
        files::warn_of_open(&dir, &all);
        let private = |path: &Path| {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(0o600).open(path).map_err(cannot_make(path))
        };
        let lock = private(&lock)?;
        files::own(&lock, LOOKED_AT).map_err(|_| StoreError::InUse(dir.display().to_string()))?;
        files::refuse_remains(&path)?;
        refuse_damaged_log(&path)?;
        private(&path)?;
        // The names of the files, before anything is acknowledged that is in them.
        files::sync_dir(&dir).map_err(cannot_make(&dir))?;
        let database = Self { path, _lock: lock };
        database.begin().map_err(unusable(&database.path))?;
        Ok(database)
    }

    fn begin(&self) -> Result<(), StoreError> {
        // Before the first connection that writes anything: a later version's file stays as it is.
        let reader =
            connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("opened"))?;
        version(&reader)?;
        drop(reader);
        migrate(&mut self.writer()?)
    }

    /// What to tell whoever started a server that met `err` before it served anybody.
    pub fn refusal(&self, err: StoreError) -> StoreError {
        unusable(&self.path)(err)
    }

    /// The data directory, absolute.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The database file, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection that writes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    fn writer(&self) -> Result<Connection, StoreError> {
        let open = || -> rusqlite::Result<_> {
            let conn = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            // `auto_vacuum` counts only before the first table is made.
            conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            conn.pragma_update(None, "journal_mode", "WAL")?;
            conn.pragma_update(None, "synchronous", "FULL")?;
            // A checkpoint within a commit keeps its errors to itself, a failed sync too: see
            // `checkpoint`, and `Store::check` for what happens if nobody does it.
            conn.pragma_update(None, "wal_autocheckpoint", 0)?;
            conn.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
            Ok(conn)
        };
        open().map_err(failed("opened"))
    }

    /// The writing side of the store. One at a time.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn store(&self) -> Result<SqliteStore, StoreError> {
        let conn = self.writer()?;
        // Left by a probe that was cut off. It also opens the log.
        conn.execute(upkeep::FORGET_TRIAL, []).map_err(failed("opened"))?;
        let files = Files::of(&self.path).map_err(|err| broken("opened", Fault::Replaced, err))?;
        Ok(SqliteStore::new(conn, Some(files)))
    }

    /// What moves the write-ahead log, with a connection of its own.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn checkpointer(&self, rhythm: Rhythm) -> Result<Checkpointer, StoreError> {
        let conn = self.writer()?;
        conn.busy_timeout(checkpoint::BUSY).map_err(failed("opened"))?;
        Ok(Checkpointer::new(conn, rhythm))
    }

    /// What opens reading sides of the store.
    pub fn opener(&self) -> Opener {
        Opener(self.path.clone())
    }
}

/// Opens reading sides of the store, as many as wanted.
#[derive(Clone, Debug)]
pub struct Opener(PathBuf);

impl Opener {
    /// What opens reading sides of a database that may be another process's.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// A reading side that may bring back what a killed server left in the write-ahead log, which
    /// one that may not write cannot.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`], [`StoreError::TooNew`].
    pub fn inspect(&self) -> Result<SqliteArchive, StoreError> {
        let conn = self.for_repair()?;
        conn.pragma_update(None, "query_only", true).map_err(failed("opened"))?;
        Ok(SqliteArchive::new(conn))
    }

    fn for_repair(&self) -> Result<Connection, StoreError> {
        // SQLite would delete the log of an empty database.
        files::refuse_remains(&self.0)?;
        // And it would leave out what stands behind damage in the log, and delete that, too.
        let lock = File::open(self.0.with_file_name(LOCK));
        let held = |lock: &File| rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared);
        if lock.as_ref().is_ok_and(|lock| held(lock).is_ok()) {
            refuse_damaged_log(&self.0)?;
        }
        let open = || {
            let conn =
                connect(&self.0, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed("opened"))?;
            version(&conn)?;
            Ok(conn)
        };
        open().map_err(unusable(&self.0))
    }

    /// A reading side.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn archive(&self) -> Result<SqliteArchive, StoreError> {
        let open = || -> rusqlite::Result<_> {
            let conn = connect(&self.0, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            // SQLite opens the log with the first read, and makes one if it was removed meanwhile
            // (RELIABILITY F25): so that is now.
            conn.pragma_query_value(None, "schema_version", |_| Ok(()))?;
            Ok(SqliteArchive::new(conn))
        };
        open().map_err(failed("opened"))
    }
}

fn connect(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// Refuses to open a database of whose log SQLite would leave out commits that were synced
/// (RELIABILITY F24).
fn refuse_damaged_log(database: &Path) -> Result<(), StoreError> {
    let log = files::beside(database, "-wal");
    let file = log.display().to_string();
    let why = match wal::damage(&log) {
        Ok(None) => return Ok(()),
        Ok(Some(at)) => format!(
            "it is damaged at byte {at}, and commits stand behind that; keep it, and restore a \
             backup"
        ),
        Err(err) => return Err(cannot_make(&log)(err)),
    };
    Err(StoreError::Unusable { file, why, source: None })
}

/// How many migrations the database has had, if they are known here.
fn version(conn: &Connection) -> Result<u32, StoreError> {
    let found: u32 = conn
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("read its version"))?;
    let known = MIGRATIONS.len() as u32;
    if found > known { Err(StoreError::TooNew { found, known }) } else { Ok(found) }
}

fn migrate(conn: &mut Connection) -> Result<(), StoreError> {
    let migrated = failed("migrated");
    let found = version(conn)?;
    for (version, sql) in (1..).zip(MIGRATIONS).skip(found as usize) {
        let apply = |conn: &mut Connection| {
            let transaction = conn.transaction()?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()
        };
        apply(conn).map_err(&migrated)?;
        log::info!(version; "database migrated");
    }
    Ok(())
}

/// Turns SQLite's error, met while the database `operation`, into the store's.
fn failed(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| {
        if flaws::is_flaw(&source) {
            return flaws::of_unknown(&source).into();
        }
        let fault = fault(&source);
        match &source {
            // The first are general words; the second say what exactly could not be done.
            rusqlite::Error::SqliteFailure(code, Some(words)) => {
                broken(operation, fault, format!("{words} ({code})"))
            }
            _ => broken(operation, fault, source),
        }
    }
}

fn broken(
    operation: &'static str,
    fault: Fault,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    let source = Arc::new(Broken { fault, cause: cause.into() });
    StoreError::Database { operation, source }
}

/// What SQLite's error means for whoever runs it.
fn fault(err: &rusqlite::Error) -> Fault {
    let rusqlite::Error::SqliteFailure(ffi::Error { code, extended_code }, _) = err else {
        return Fault::Other;
    };
    match code {
        ErrorCode::DiskFull => Fault::DiskFull,
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Fault::ReadOnly,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Fault::Locked,
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Fault::Corrupt,
        ErrorCode::SystemIoFailure => match *extended_code {
            ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC => Fault::Unsynced,
            _ => Fault::Io,
        },
        ErrorCode::CannotOpen => Fault::Io,
        _ => Fault::Other,
    }
}

/// Why nothing can be begun with `file`.
fn unusable(file: &Path) -> impl Fn(StoreError) -> StoreError {
    let file = file.display().to_string();
    move |err| {
        let Some(fault) = err.fault() else { return err };
        let why = match fault {
            Fault::DiskFull => "its disk is full",
            Fault::ReadOnly => "this user may not write to it",
            Fault::Locked => "another program holds its lock",
            Fault::Corrupt => "it is damaged; keep it, and restore a backup",
            Fault::Replaced => "somebody changes its directory",
            Fault::Unsynced => "its disk does not sync",
            Fault::Io | Fault::Other => "it cannot be opened",
        };
        StoreError::Unusable { file: file.clone(), why: why.into(), source: Some(Arc::new(err)) }
    }
}

/// Why `path` cannot be made.
fn cannot_make(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let file = path.display().to_string();
    move |source| StoreError::Unusable {
        file: file.clone(),
        why: "it cannot be made or opened".into(),
        source: Some(Arc::new(source)),
    }
}

/// Why one group's facts are not stored.
#[derive(Debug)]
enum Failure {
    /// SQLite's error.
    Sqlite(rusqlite::Error),
    /// The lease that the facts needed is another's, or nobody's (SEEDS HL-11).
    LeaseLost,
    /// A row of the group cannot be understood.
    Unreadable(Unreadable),
    /// The group's keys have no room for more.
    Exhausted(&'static str),
}

impl From<Unreadable> for Failure {
    fn from(row: Unreadable) -> Self {
        Self::Unreadable(row)
    }
}

impl Failure {
    /// The store's error, met while the database `operation`.
    fn met(operation: &'static str) -> impl Fn(Self) -> StoreError {
        move |failure| match failure {
            Self::Sqlite(err) => failed(operation)(err),
            failure => failure.into(),
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(err: rusqlite::Error) -> Self {
        Self::Sqlite(err)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sqlite(err) => write_failed(err),
            Failure::LeaseLost => Self::LeaseLost,
            Failure::Unreadable(row) => row.into(),
            Failure::Exhausted(what) => Self::Exhausted(what),
        }
    }
}

/// Tells facts that break the schema from a database that does not work.
fn write_failed(source: rusqlite::Error) -> StoreError {
    let missed = matches!(source, rusqlite::Error::StatementChangedRows(_));
    if missed || source.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) {
        StoreError::Refused(Arc::new(source))
    } else {
        failed("wrote")(source)
    }
}

#[cfg(test)]
mod tests;
