//! SQLite: opens and migrates the database file, and keeps other servers out of its directory.
//!
//! Only this module and its submodules use rusqlite.

mod backup;
pub mod checkpoint;
mod clock;
mod compactions;
mod contradictions;
mod damage;
mod digests;
mod exports;
mod files;
mod frames;
mod gauges;
mod groups;
mod keys;
mod locks;
mod permissions;
mod read_store;
mod repair;
mod rows;
mod runs;
mod segments;
mod store;
mod stored_group;
mod tasks;
mod truncation;
mod upkeep;
mod wal;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use rustix::fs::FlockOperation;

use self::files::Files;
pub use self::{
    backup::BackupError,
    checkpoint::{CheckpointSchedule, Checkpointer},
    read_store::SqliteReadStore,
    store::SqliteStore,
};
use super::{Fault, StoreError, Unreadable, fault::FaultError};

/// The migrations in order: the database's version is the number of migrations that it has had.
const MIGRATIONS: [&str; 5] = [
    include_str!("sqlite/0001.sql"),
    include_str!("sqlite/0002.sql"),
    include_str!("sqlite/0003.sql"),
    include_str!("sqlite/0004.sql"),
    include_str!("sqlite/0005.sql"),
];
/// The size to which SQLite truncates the write-ahead log when it restarts it after it grew, as
/// during a backup, bytes.
const LOG_BYTES_KEPT: u32 = 32 << 20;
/// How long a connection waits for a lock of another program.
const BUSY: Duration = Duration::from_secs(5);
/// How long a start waits for a process that only reads the files, as `greenroom verify` does.
const READERS_WAIT: Duration = Duration::from_secs(30);

/// The file whose lock reserves a data directory for one server.
const LOCK: &str = "greenroom.lock";

/// The database in a data directory that this process has reserved.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    /// The open file holds the lock; the kernel releases it however the process ends.
    lock: File,
    /// The database's own file, locked too: it may have a second path. Never closed while this
    /// process uses the database, as that would release SQLite's locks on it.
    _file: File,
}

impl Database {
    /// Reserves the directory of `path` and the file itself for this process, creates what is
    /// missing (the directory 0700, the database 0600: C14), and migrates the schema.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another server has the directory or the file,
    /// [`StoreError::TooNew`] if a later version wrote the database, [`StoreError::Unusable`] if
    /// something cannot be created or read, or if an earlier database is missing. Then nothing of
    /// the database was changed.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files::make_dir(dir).map_err(cannot_make(dir))?;
        let dir = dir.canonicalize().map_err(cannot_make(dir))?;
        let path = dir.join(path.file_name().unwrap_or_else(|| "greenroom.db".as_ref()));
        let lock = dir.join(LOCK);
        let all = [lock.clone(), path.clone(), files::beside(&path, "-wal")];
        files::warn_of_access(&dir, &all);
        let private = |path: &Path| {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(0o600).open(path).map_err(cannot_make(path))
        };
        let lock = private(&lock)?;
        files::lock_exclusively(&lock, READERS_WAIT)
            .map_err(|_| StoreError::InUse(dir.display().to_string()))?;
        files::refuse_missing(&path)?;
        // Creates the file only where no log is left over.
        let file = private(&path)?;
        files::lock_database(&file, READERS_WAIT)
            .map_err(|_| StoreError::InUse(path.display().to_string()))?;
        refuse_damaged_log(&path)?;
        // Makes the files' names durable before the first commit is acknowledged.
        files::sync_dir(&dir).map_err(cannot_make(&dir))?;
        let database = Self { path, lock, _file: file };
        database.migrate().map_err(unusable(&database.path))?;
        Ok(database)
    }

    fn migrate(&self) -> Result<(), StoreError> {
        // Before the first connection that writes: a later version's file is not changed.
        let reader =
            connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("opened"))?;
        version(&reader)?;
        drop(reader);
        migrate(&mut self.writer()?)
    }

    /// Turns an error of the start into one that names the database file, for the operator.
    pub fn refusal(&self, err: StoreError) -> StoreError {
        unusable(&self.path)(err)
    }

    /// The data directory, absolute.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Whether the process of another server uses this data directory.
    pub fn is_in_use(&self, dir: &Path) -> bool {
        let Ok(lock) = File::open(dir.join(LOCK)) else { return false };
        let file = |lock: &File| lock.metadata().map(|found| (found.dev(), found.ino())).ok();
        // By another name, it may be this one.
        file(&lock) != file(&self.lock)
            && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
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
            // `auto_vacuum` has an effect only before the first table is created.
            conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            conn.pragma_update(None, "journal_mode", "WAL")?;
            conn.pragma_update(None, "synchronous", "FULL")?;
            // A checkpoint within a commit hides its errors, even a failed sync. See `checkpoint`,
            // and `Store::check` for what happens if the checkpointer fails.
            conn.pragma_update(None, "wal_autocheckpoint", 0)?;
            conn.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
            // Deleted text is overwritten with zeros. `FAST` would do so only within pages that
            // are still in use, and a long text has pages of its own, which it leaves as they are.
            // Turns write as many bytes either way; a purge writes each page that it frees.
            conn.pragma_update(None, "secure_delete", "ON")?;
            Ok(conn)
        };
        open().map_err(failed("opened"))
    }

    /// Opens the writing store. There must be only one at a time.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn store(&self) -> Result<SqliteStore, StoreError> {
        let conn = self.writer()?;
        // An interrupted probe may have left it. This also opens the write-ahead log.
        conn.execute(upkeep::FORGET_TRIAL, []).map_err(failed("opened"))?;
        let files =
            Files::of(&self.path).map_err(|err| database_error("opened", Fault::Replaced, err))?;
        Ok(SqliteStore::new(conn, Some(files)))
    }

    /// Creates the checkpointer, with a connection of its own.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn checkpointer(&self, schedule: CheckpointSchedule) -> Result<Checkpointer, StoreError> {
        let conn = self.writer()?;
        conn.busy_timeout(checkpoint::BUSY).map_err(failed("opened"))?;
        Ok(Checkpointer::new(conn, schedule))
    }

    /// Returns the opener of read stores.
    pub fn opener(&self) -> Opener {
        Opener(self.path.clone())
    }
}

/// Opens read stores, as many as the caller wants.
#[derive(Clone, Debug)]
pub struct Opener(PathBuf);

impl Opener {
    /// The opener of a database that may be another process's.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Opens a read store that may restore what a killed server left in the write-ahead log. That
    /// needs write access.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`], [`StoreError::TooNew`].
    pub fn inspect(&self) -> Result<SqliteReadStore, StoreError> {
        let conn = self.for_repair()?;
        conn.pragma_update(None, "query_only", true).map_err(failed("opened"))?;
        Ok(SqliteReadStore::new(conn))
    }

    fn for_repair(&self) -> Result<Connection, StoreError> {
        // SQLite would delete the write-ahead log of an empty database.
        files::refuse_missing(&self.0)?;
        // It would also ignore and overwrite the commits after damage in the log.
        self.refuse_foreign_log()?;
        let open = || {
            let conn =
                connect(&self.0, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed("opened"))?;
            version(&conn)?;
            Ok(conn)
        };
        open().map_err(unusable(&self.0))
    }

    /// Refuses a damaged log, if no server uses the database; and a log beside another name of the
    /// database, if a server does: SQLite would find the log by name, and read without it.
    fn refuse_foreign_log(&self) -> Result<(), StoreError> {
        let share = |lock: &File| rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared);
        // Closed before the first connection: that would release SQLite's locks of this process.
        let (lock, file) = (File::open(self.0.with_file_name(LOCK)), File::open(&self.0));
        let is_used = file.as_ref().is_ok_and(|file| share(file).is_err());
        if is_used && !files::beside(&self.0, "-wal").exists() {
            return Err(StoreError::InUse(self.0.display().to_string()));
        }
        if !is_used && lock.as_ref().is_ok_and(|lock| share(lock).is_ok()) {
            refuse_damaged_log(&self.0)?;
        }
        Ok(())
    }

    /// Opens a read store.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn read_store(&self) -> Result<SqliteReadStore, StoreError> {
        let open = || -> rusqlite::Result<_> {
            let conn = connect(&self.0, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            // SQLite opens the log with the first read, and would create one if it was removed
            // meanwhile (F25). So the first read is made here.
            conn.pragma_query_value(None, "schema_version", |_| Ok(()))?;
            Ok(SqliteReadStore::new(conn))
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

/// Refuses a database with a damaged write-ahead log: SQLite would ignore commits in it that were
/// synced (F24).
fn refuse_damaged_log(database: &Path) -> Result<(), StoreError> {
    let log = files::beside(database, "-wal");
    let file = log.display().to_string();
    let why = match wal::damage(&log) {
        Ok(None) => return Ok(()),
        Ok(Some(at)) => format!(
            "it is damaged at byte {at}, before further commits; keep it, and restore a backup"
        ),
        Err(err) => return Err(cannot_make(&log)(err)),
    };
    Err(StoreError::Unusable { file, why, source: None })
}

/// Returns the database's version, if this greenroom knows it.
fn version(conn: &Connection) -> Result<u32, StoreError> {
    let found: u32 = conn
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("read its version"))?;
    let known = MIGRATIONS.len() as u32;
    if found <= known {
        return Ok(found);
    }
    let file = conn.path().unwrap_or("the database").to_owned();
    Err(StoreError::TooNew { file, found, known })
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

/// Turns SQLite's error, which occurred while the database `operation`, into the store's.
fn failed(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| {
        if damage::is_unreadable(&source) {
            return damage::of_unknown(&source).into();
        }
        let fault = fault(&source);
        match &source {
            // The code's text is general; the message is exact.
            rusqlite::Error::SqliteFailure(code, Some(message)) => {
                database_error(operation, fault, format!("{message} ({code})"))
            }
            _ => database_error(operation, fault, source),
        }
    }
}

fn database_error(
    operation: &'static str,
    fault: Fault,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    let source = Arc::new(FaultError { fault, cause: cause.into() });
    StoreError::Database { operation, source }
}

/// Returns the fault that SQLite's error shows.
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

/// Turns a fault of the database into [`StoreError::Unusable`] of `file`.
fn unusable(file: &Path) -> impl Fn(StoreError) -> StoreError {
    let file = file.display().to_string();
    move |err| {
        let Some(fault) = err.fault() else { return err };
        let why = match fault {
            Fault::DiskFull => "its disk is full",
            Fault::ReadOnly => "this user may not write to it",
            Fault::Locked => "another program holds its lock",
            Fault::Corrupt => "it is damaged; keep it, and restore a backup",
            Fault::Replaced => "another process changes its directory",
            Fault::Unsynced => "its disk does not sync",
            Fault::Stalled => "its disk does not answer",
            Fault::Io | Fault::Other => "it cannot be opened",
        };
        StoreError::Unusable { file: file.clone(), why: why.into(), source: Some(Arc::new(err)) }
    }
}

/// Turns an I/O error into [`StoreError::Unusable`] of `path`.
fn cannot_make(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let file = path.display().to_string();
    move |source| StoreError::Unusable {
        file: file.clone(),
        why: "it cannot be created or opened".into(),
        source: Some(Arc::new(source)),
    }
}

/// Why the rows of one group could not be stored or read.
#[derive(Debug)]
enum RowsError {
    /// SQLite's error.
    Sqlite(rusqlite::Error),
    /// The group has another owner than the caller (I14).
    Fenced,
    /// The lease that the facts need is lost (HL-11).
    LeaseLost,
    /// A row of the group is unreadable.
    Unreadable(Unreadable),
    /// A range of numbers is used up.
    Exhausted(&'static str),
}

impl From<Unreadable> for RowsError {
    fn from(row: Unreadable) -> Self {
        Self::Unreadable(row)
    }
}

impl RowsError {
    /// Turns it into the store's error, which occurred while the database `operation`.
    fn during(operation: &'static str) -> impl Fn(Self) -> StoreError {
        move |err| match err {
            Self::Sqlite(err) => failed(operation)(err),
            err => err.into(),
        }
    }
}

impl From<rusqlite::Error> for RowsError {
    fn from(err: rusqlite::Error) -> Self {
        Self::Sqlite(err)
    }
}

impl From<RowsError> for StoreError {
    fn from(err: RowsError) -> Self {
        match err {
            RowsError::Sqlite(err) => write_failed(err),
            RowsError::Fenced => Self::Fenced,
            RowsError::LeaseLost => Self::LeaseLost,
            RowsError::Unreadable(row) => row.into(),
            RowsError::Exhausted(what) => Self::Exhausted(what),
        }
    }
}

/// Separates facts that violate the schema from a database that does not work.
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
