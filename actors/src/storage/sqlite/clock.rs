//! The row of the trusted time.

use greenroom_core::{BootId, Timestamp, Trust, Uptime};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use uuid::Uuid;

use super::{damage::is_unreadable, rows::int};

/// The newest time of the groups' last frames and of the idempotency keys. A time beyond the limit
/// is from a clock that was ahead, and is ignored.
const NEWEST: &str = "SELECT max(at) FROM (SELECT at FROM idempotency UNION ALL \
     SELECT (SELECT at FROM blocks WHERE key >= heads.no << 36 \
     AND key < heads.no + 1 << 36 ORDER BY key DESC LIMIT 1) FROM heads) WHERE at <= ?";

/// See [`crate::storage::Store::trust`]. An unreadable row counts as none.
pub fn get(conn: &Connection) -> rusqlite::Result<Option<Trust>> {
    let sql = "SELECT at, boot, up_ms, ahead_ms, confirmed_ms FROM clock";
    let number = |value: i64| u64::try_from(value).unwrap_or_default();
    let found = conn.query_row(sql, [], |row| {
        let boot = Uuid::try_parse(&row.get::<_, String>(1)?).unwrap_or_default();
        Ok(Trust {
            at: Timestamp(row.get(0)?),
            up: Uptime { boot: BootId(boot), ms: number(row.get(2)?) },
            ahead_ms: row.get::<_, i64>(3)?.max(0),
            confirmed_ms: number(row.get(4)?),
        })
    });
    match found.optional() {
        Err(err) if is_unreadable(&err) => Ok(None),
        found => found,
    }
}

/// See [`crate::storage::Store::newest`].
pub fn newest(conn: &Connection, until: Timestamp) -> rusqlite::Result<Option<Timestamp>> {
    conn.query_row(NEWEST, [until.0], |row| Ok(row.get::<_, Option<i64>>(0)?.map(Timestamp)))
}

/// See [`crate::storage::Store::put_trust`].
pub fn put(conn: &mut Connection, trust: &Trust, set_ms: i64) -> rusqlite::Result<()> {
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute(
        "INSERT OR REPLACE INTO clock (id, at, boot, up_ms, ahead_ms, confirmed_ms) \
         VALUES (1, ?, ?, ?, ?, ?)",
        params![
            trust.at.0,
            trust.up.boot.0.to_string(),
            int(trust.up.ms),
            trust.ahead_ms,
            int(trust.confirmed_ms),
        ],
    )?;
    if set_ms != 0 {
        // The ages of the keys stay the same.
        transaction.execute("UPDATE idempotency SET at = at + ?", [set_ms])?;
    }
    transaction.commit()
}
