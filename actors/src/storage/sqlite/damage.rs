//! Unreadable rows: separates them from a database that fails.
//!
//! An unreadable row of a list is left out, and reported once. An unreadable row that a group needs
//! is an error of that group.

use std::cell::{Cell, RefCell};

use rusqlite::{Connection, Error, OptionalExtension as _, Row, Rows, types::ValueRef};

use super::{RowsError, failed, rows::seq};
use crate::storage::{GroupNo, StoreError, Unreadable};

/// The most left-out rows that are kept between two calls of [`LeftOut::take`].
pub const LEFT_OUT_MAX: usize = 100;

/// What is wrong with a row.
#[derive(Debug)]
pub struct Damage {
    pub group: GroupNo,
    pub what: String,
}

/// A row's value, or its damage.
pub type RowResult<T> = rusqlite::Result<Result<T, Damage>>;

impl Damage {
    /// Adds the group's name. `stops`: the group cannot work without the row.
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
) -> impl Fn(&Row<'_>) -> RowResult<T> {
    move |row| {
        let key: i64 = row.get(0)?;
        let group = GroupNo::try_from(key >> 36).unwrap_or_default();
        read_row(row, group, || format!("{noun} {}", seq(key)), &read)
    }
}

/// Reads a row of `group`; `noun` names the row.
pub fn of_group<T>(
    noun: &'static str,
    group: GroupNo,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> RowResult<T> {
    move |row| read_row(row, group, || noun.to_owned(), &read)
}

/// Reads a row of `group`, named by `noun` and one of its columns.
pub fn numbered<T>(
    noun: &'static str,
    group: GroupNo,
    column: &'static str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> RowResult<T> {
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
    move |row| read_row(row, group, || name(row), &read)
}

/// Reads a group's own row, whose first column is its number.
pub fn group_row<T>(
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> impl Fn(&Row<'_>) -> RowResult<T> {
    move |row| {
        let no: i64 = row.get(0)?;
        let group = GroupNo::try_from(no).unwrap_or_default();
        read_row(row, group, || "the group".to_owned(), &read)
    }
}

fn read_row<T>(
    row: &Row<'_>,
    group: GroupNo,
    noun: impl Fn() -> String,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> RowResult<T> {
    let err = match read(row) {
        Ok(value) => return Ok(Ok(value)),
        Err(err) => err,
    };
    let (column, reason) = unreadable_column(err)?;
    let column = row.as_ref().column_name(column).unwrap_or("a column");
    Ok(Err(Damage { group, what: format!("{}: {column} cannot be read: {reason}", noun()) }))
}

/// Returns the unreadable column, and why it is unreadable. The reasons quote no stored text: they
/// go to the log and to all clients (C16).
fn unreadable_column(err: Error) -> Result<(usize, String), Error> {
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

/// Whether `err` means that a row is unreadable, and not that the database fails.
pub fn is_unreadable(err: &Error) -> bool {
    matches!(
        err,
        Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..)
    )
}

/// The unreadable row that `err` reports, of an unknown group.
pub fn of_unknown(err: &Error) -> Unreadable {
    Unreadable { group: 0, name: "unknown".into(), what: err.to_string(), stops: false }
}

/// Returns the row. If it is unreadable, its group cannot work.
pub fn required<T>(conn: &Connection, row: RowResult<T>) -> Result<T, RowsError> {
    Ok(row?.map_err(|damage| damage.named(conn, true))?)
}

/// Returns the row that a caller requests. If it is unreadable, its group still works.
pub fn requested<T>(conn: &Connection, row: RowResult<T>) -> Result<T, RowsError> {
    Ok(row?.map_err(|damage| damage.named(conn, false))?)
}

/// Turns an error of a group's request, which occurred while the database `operation`, into the
/// store's: an unreadable row is one of this group. `stops`: the group cannot work after the error.
pub fn store_error<'a>(
    conn: &'a Connection,
    group: GroupNo,
    operation: &'static str,
    stops: bool,
) -> impl Fn(RowsError) -> StoreError + 'a {
    move |err| match err {
        RowsError::Sqlite(err)
            if err.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
        {
            let what = format!("rows that the database refused while it {operation}: {err}");
            Damage { group, what }.named(conn, stops).into()
        }
        RowsError::Sqlite(err) => match unreadable_column(err) {
            Ok((_, reason)) => {
                let what = format!("a row that was read while the database {operation}: {reason}");
                Damage { group, what }.named(conn, stops).into()
            }
            Err(err) => failed(operation)(err),
        },
        err => err.into(),
    }
}

/// Rows that were left out of lists: unreadable ones, which must not hide the others (AM-18), and
/// those after a list's limit of bytes (I11).
#[derive(Debug, Default)]
pub struct LeftOut {
    unreadable: RefCell<Vec<Unreadable>>,
    /// The bytes that lists may still read; `None`: all.
    bytes: Cell<Option<usize>>,
    /// Whether a list ended at its limit of bytes.
    is_cut: Cell<bool>,
}

impl LeftOut {
    /// Returns the first `limit` readable rows: fewer if their bytes reach the limit, but one at
    /// least. `read` is called with each row.
    pub fn keep<T>(
        &self,
        conn: &Connection,
        rows: &mut Rows<'_>,
        limit: usize,
        read: impl Fn(&Row<'_>) -> RowResult<T>,
    ) -> rusqlite::Result<Vec<T>> {
        let mut kept = Vec::new();
        while kept.len() < limit && !self.ends_after(kept.len()) {
            let Some(row) = rows.next()? else { break };
            self.count(row);
            kept.extend(self.readable(conn, read(row))?);
        }
        Ok(kept)
    }

    /// Sets how many bytes the next lists may read together.
    pub fn limit_bytes(&self, bytes: Option<usize>) {
        self.bytes.set(bytes);
        self.is_cut.set(false);
    }

    /// Whether a list has ended at the limit of bytes since it was set.
    pub fn is_cut(&self) -> bool {
        self.is_cut.get()
    }

    /// Whether a list ends here that has `items`, because its bytes reached the limit.
    pub fn ends_after(&self, items: usize) -> bool {
        let ends = items > 0 && self.bytes.get() == Some(0);
        self.is_cut.set(self.is_cut.get() || ends);
        ends
    }

    /// Counts the bytes of a row that a list reads.
    pub fn count(&self, row: &Row<'_>) {
        let Some(left) = self.bytes.get() else { return };
        let columns = 0..row.as_ref().column_count();
        let bytes = columns.map(|column| match row.get_ref(column) {
            Ok(ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => bytes.len(),
            _ => size_of::<i64>(),
        });
        self.bytes.set(Some(left.saturating_sub(bytes.sum())));
    }

    /// Returns the row if it is readable, and otherwise keeps it as left out.
    pub fn readable<T>(&self, conn: &Connection, row: RowResult<T>) -> rusqlite::Result<Option<T>> {
        match row? {
            Ok(value) => Ok(Some(value)),
            Err(damage) => {
                self.put(damage.named(conn, false));
                Ok(None)
            }
        }
    }

    /// Keeps a row that was left out.
    pub fn put(&self, row: Unreadable) {
        let mut rows = self.unreadable.borrow_mut();
        if rows.len() < LEFT_OUT_MAX {
            rows.push(row);
        }
    }

    /// Takes the rows that were left out since the last call.
    pub fn take(&self) -> Vec<Unreadable> {
        self.unreadable.take()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rusqlite::types::FromSql;

    use super::*;

    fn described<T: FromSql>(value: &str) -> String {
        let conn = Connection::open_in_memory().unwrap();
        let read = of_group("a run", 7, |row| row.get::<_, T>("state"));
        let found = conn.query_row(&format!("SELECT 1, {value} AS state"), [], read).unwrap();
        let damage = found.map(|_| ()).unwrap_err();
        assert_eq!(damage.group, 7);
        damage.what
    }

    /// AM-18, C16: an unreadable row is reported with its column and the reason, without the text
    /// that is stored there.
    #[test]
    fn damage_names_the_column_and_the_reason_and_quotes_no_text() {
        let cases = [
            (described::<i64>("'hidden'"), "Text is stored there"),
            (described::<u8>("-1"), "-1 is out of range"),
            (
                described::<String>("CAST(x'68696464656eff' AS TEXT)"),
                "invalid utf-8 sequence of 1 bytes from index 6",
            ),
            (
                described::<[u8; 2]>("x'68696464656e'"),
                "Cannot read 2 byte value out of 6 byte blob",
            ),
        ];
        for (what, reason) in cases {
            assert_eq!(what, format!("a run: state cannot be read: {reason}"));
        }
    }

    /// A report of one hundred rows is bounded (I11), and the next begins empty.
    #[test]
    fn a_bounded_number_of_rows_is_reported() {
        let left_out = LeftOut::default();
        let row =
            |n: usize| Unreadable { group: 7, name: "g".into(), what: n.to_string(), stops: false };
        (0..=LEFT_OUT_MAX).for_each(|n| left_out.put(row(n)));
        let kept = left_out.take();
        assert_eq!((kept.len(), &*kept[0].what), (LEFT_OUT_MAX, "0"));
        assert!(left_out.take().is_empty());
    }
}
