//! The SQLite implementation: opening, migrating, and who may open it.
//!
//! This module and those below it alone name rusqlite.

mod archive;
mod cuts;
mod locks;
mod rows;
mod store;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::FlockOperation;

pub use self::{archive::SqliteArchive, store::SqliteStore};
use super::StoreError;

/// Numbered migrations: the database's version is how many of them it has had.
const MIGRATIONS: [&str; 3] = [
    include_str!("sqlite/0001.sql"),
    include_str!("sqlite/0002.sql"),
    include_str!("sqlite/0003.sql"),
];
/// Pages of the write-ahead log, 16 MiB, from which a commit moves them into the database. Four
/// times SQLite's own limit: a page that is written again and again is moved once. More would
/// lengthen the start after a crash, which reads the log.
const CHECKPOINT_PAGES: u32 = 4000;
/// How long a lock that another program holds on the database is waited out.
const BUSY: Duration = Duration::from_secs(5);

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
    /// version wrote the database, [`StoreError::Database`] if something cannot be made or read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let made = |source: io::Error| failed("made the data directory")(source);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(made)?;
        let dir = dir.canonicalize().map_err(made)?;
        let private = |path: &Path| {
            OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(made)
        };
        let lock = private(&dir.join("greenroom.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::InUse(dir.display().to_string()))?;
        let name = path.file_name().unwrap_or_else(|| "greenroom.db".as_ref());
        let path = dir.join(name);
        private(&path)?;
        // Before the first connection that writes anything: a later version's file stays as it is.
        let reader = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("opened"))?;
        version(&reader)?;
        drop(reader);
        let database = Self { path, _lock: lock };
        migrate(&mut database.writer()?)?;
        Ok(database)
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
            conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
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
        self.writer().map(SqliteStore::new)
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
        let conn = connect(&self.0, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed("opened"))?;
        version(&conn)?;
        conn.pragma_update(None, "query_only", true).map_err(failed("opened"))?;
        Ok(SqliteArchive::new(conn))
    }

    /// A reading side.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub fn archive(&self) -> Result<SqliteArchive, StoreError> {
        connect(&self.0, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map(SqliteArchive::new)
            .map_err(failed("opened"))
    }
}

fn connect(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
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
fn failed<E: std::error::Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl Fn(E) -> StoreError {
    move |source| StoreError::Database { operation, source: Arc::new(source) }
}

/// Why one group's facts are not stored.
#[derive(Debug)]
enum Failure {
    /// SQLite's error.
    Sqlite(rusqlite::Error),
    /// The lease that the facts needed is another's, or nobody's (SEEDS HL-11).
    LeaseLost,
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

/// Leaves out a row that cannot be understood, and says so: one bad record must not take the
/// others with it (SEEDS AM-18).
fn readable<T>(row: rusqlite::Result<T>) -> Option<rusqlite::Result<T>> {
    match row {
        Err(
            err @ (rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)),
        ) => {
            log::error!(err:%; "stored row skipped: it cannot be understood");
            None
        }
        row => Some(row),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// I2 hangs on it: both are of a connection, and only the writer's own word counts.
    #[test]
    fn the_writer_syncs_fully_and_writes_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
        let writer = database.writer().unwrap();
        let number =
            |pragma| writer.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap();
        let mode: String =
            writer.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!((&*mode, number("synchronous")), ("wal", 2), "2 is FULL");
        assert_eq!((number("busy_timeout"), number("auto_vacuum")), (5_000, 2));
    }
}
