//! Rows that cannot be understood, told apart from a database that fails.
//!
//! A row that a list shows is left out, and named once; a row that a group cannot do without is an
//! error of that group.

use std::cell::RefCell;

use rusqlite::{Connection, Error, OptionalExtension as _, Row};

use super::{Failure, failed, rows::seq};
use crate::storage::{GroupNo, StoreError, Unreadable};

/// The most rows that are remembered between two calls of [`LeftOut::take`].
pub const LEFT_OUT_MAX: usize = 100;

/// What is wrong with a row.
#[derive(Debug)]
pub struct Flaw {
    pub group: GroupNo,
    pub what: String,
}

/// A row's value, or what is wrong with the row.
pub type Judged<T> = rusqlite::Result<Result<T, Flaw>>;

impl Flaw {
    /// The flaw with its group's name. `stops`: the group cannot work without the row.
    pub fn named(self, conn: &Connection, stops: bool) -> Unreadable {
        let Self { group, what } = self;
        let name = conn.query_row("SELECT id FROM groups WHERE no = ?", [group], |row| {
            Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned())
        });
        let name = name.optional().ok().flatten().unwrap_or_else(|| format!("number {group}"));
        Unreadable { group, name, what, stops }
    }
}

/// Reads a row whose first column is a key; `noun` names the row.
pub fn keyed<T>(
    noun: &'static str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> Judged<T> {
    move |row| {
        let key: i64 = row.get(0)?;
        let group = GroupNo::try_from(key >> 36).unwrap_or_default();
        judge(row, group, || format!("{noun} {}", seq(key)), &read)
    }
}

/// Reads a row of `group`; `noun` names the row.
pub fn of_group<T>(
    noun: &'static str,
    group: GroupNo,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> Judged<T> {
    move |row| judge(row, group, || noun.to_owned(), &read)
}

/// Reads a row of `group`, named by `noun` and one of its columns.
pub fn numbered<T>(
    noun: &'static str,
    group: GroupNo,
    column: &'static str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> Judged<T> {
    let name = move |row: &Row<'_>| {
        let value = row.get_ref(column).map(rusqlite::types::Value::try_from);
        match value {
            Ok(Ok(rusqlite::types::Value::Integer(number))) => format!("{noun} {number}"),
            Ok(Ok(rusqlite::types::Value::Blob(id))) => {
                let id: String = id.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                format!("{noun} {id}")
            }
            _ => noun.to_owned(),
        }
    };
    move |row| judge(row, group, || name(row), &read)
}

/// Reads a group's own row, whose first column is its number.
pub fn group_row<T>(
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> Judged<T> {
    move |row| {
        let no: i64 = row.get(0)?;
        let group = GroupNo::try_from(no).unwrap_or_default();
        judge(row, group, || "the group".to_owned(), &read)
    }
}

fn judge<T>(
    row: &Row<'_>,
    group: GroupNo,
    noun: impl Fn() -> String,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Judged<T> {
    let err = match read(row) {
        Ok(value) => return Ok(Ok(value)),
        Err(err) => err,
    };
    let (column, reason) = flaw(err)?;
    let column = row.as_ref().column_name(column).unwrap_or("a column");
    Ok(Err(Flaw { group, what: format!("{}: {column} cannot be read: {reason}", noun()) }))
}

/// In which column a row cannot be understood, and why. The reasons quote no stored text: they are
/// for the log and for every client (RELIABILITY C16).
fn flaw(err: Error) -> Result<(usize, String), Error> {
    Ok(match err {
        Error::FromSqlConversionFailure(column, _, reason) => (column, reason.to_string()),
        Error::InvalidColumnType(column, _, found) => (column, format!("{found} is stored there")),
        Error::IntegralValueOutOfRange(column, value) => {
            (column, format!("{value} is out of range"))
        }
        Error::Utf8Error(column, reason) => (column, reason.to_string()),
        err => return Err(err),
    })
}

/// Whether `err` says that a row cannot be understood, and not that the database fails.
pub fn is_flaw(err: &Error) -> bool {
    matches!(
        err,
        Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..)
    )
}

/// A row that cannot be understood, of a group that is not known here.
pub fn of_unknown(err: &Error) -> Unreadable {
    Unreadable { group: 0, name: "unknown".into(), what: err.to_string(), stops: false }
}

/// A row that its group cannot do without.
pub fn needed<T>(conn: &Connection, judged: Judged<T>) -> Result<T, Failure> {
    Ok(judged?.map_err(|flaw| flaw.named(conn, true))?)
}

/// A row that a caller names; the group works without it.
pub fn asked<T>(conn: &Connection, judged: Judged<T>) -> Result<T, Failure> {
    Ok(judged?.map_err(|flaw| flaw.named(conn, false))?)
}

/// What a group's owner learns of an error that it met while the database `operation`: a row that
/// cannot be understood is one of its own. `stops`: the group cannot work after that error.
pub fn owned<'a>(
    conn: &'a Connection,
    group: GroupNo,
    operation: &'static str,
    stops: bool,
) -> impl Fn(Failure) -> StoreError + 'a {
    move |failure| match failure {
        Failure::Sqlite(err)
            if err.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
        {
            let what = format!("rows that the database refused while it {operation}: {err}");
            Flaw { group, what }.named(conn, stops).into()
        }
        Failure::Sqlite(err) => match flaw(err) {
            Ok((_, reason)) => {
                let what = format!("a row that was read while the database {operation}: {reason}");
                Flaw { group, what }.named(conn, stops).into()
            }
            Err(err) => failed(operation)(err),
        },
        failure => failure.into(),
    }
}

/// Rows that were left out of lists: one bad record must not take the others with it (SEEDS AM-18).
#[derive(Debug, Default)]
pub struct LeftOut(RefCell<Vec<Unreadable>>);

impl LeftOut {
    /// The first `limit` rows that can be understood.
    pub fn keep<T>(
        &self,
        conn: &Connection,
        rows: impl Iterator<Item = Judged<T>>,
        limit: usize,
    ) -> rusqlite::Result<Vec<T>> {
        rows.filter_map(|judged| self.sound(conn, judged).transpose()).take(limit).collect()
    }

    /// The row, if it can be understood.
    pub fn sound<T>(&self, conn: &Connection, judged: Judged<T>) -> rusqlite::Result<Option<T>> {
        match judged? {
            Ok(value) => Ok(Some(value)),
            Err(flaw) => {
                self.put(flaw.named(conn, false));
                Ok(None)
            }
        }
    }

    /// Takes in a row that was left out.
    pub fn put(&self, row: Unreadable) {
        let mut left = self.0.borrow_mut();
        if left.len() < LEFT_OUT_MAX {
            left.push(row);
        }
    }

    /// What was left out since this was last called.
    pub fn take(&self) -> Vec<Unreadable> {
        self.0.take()
    }
}
