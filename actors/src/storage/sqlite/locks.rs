//! The rows of the compaction lock: how they are written and read.

use greenroom_core::{
    BootId, Now, Timestamp, Uptime,
    lock::{self, Acquisition, Holder, Lease, Lock, LockKey, TTL_MS_MAX, Ttl},
};
use rusqlite::{
    Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params, types::Type,
};
use uuid::Uuid;

use super::{damage::is_unreadable, failed, rows::int};
use crate::storage::{GroupNo, LockError, LockGrant, LockRequest};

#[cfg(test)]
mod tests;

/// The columns of a lock in the order that [`read`] reads them.
const COLUMNS: &str = "token, key, holder, ttl_ms, acquired_at, expires_boot_ms, boot";

/// See [`crate::storage::Store::lock_acquire`]. In one transaction: deletes a stale lease, inserts
/// the requested one if the lock is free, and answers with what is then stored (HL-3).
pub fn acquire(
    conn: &mut Connection,
    request: &LockRequest,
    now: Now,
    is_dead: &dyn Fn(&Holder) -> bool,
) -> Result<LockGrant, LockError> {
    let transaction = begin(conn)?;
    let row = find(&transaction, &request.key)?;
    let granted = match lock::acquire(row.as_ref(), &request.holder, request.ttl, now, is_dead)? {
        Acquisition::Extend(lock) => {
            extend(&transaction, &lock)?;
            LockGrant { lock, fresh: false }
        }
        Acquisition::Take => {
            let key = request.key.as_str();
            transaction.prepare_cached("DELETE FROM locks WHERE key = ?")?.execute([key])?;
            insert(&transaction, request, now)?;
            match find(&transaction, &request.key)? {
                Some(lock) if lock.lease.holder == request.holder => {
                    LockGrant { lock, fresh: true }
                }
                Some(lock) => return Err(lock.conflict(now).into()),
                None => return Err(LockError::Lost),
            }
        }
    };
    transaction.commit()?;
    Ok(granted)
}

/// See [`crate::storage::Store::lock_refresh`].
pub fn refresh(conn: &mut Connection, lease: &Lease, now: Now) -> Result<Lock, LockError> {
    let transaction = begin(conn)?;
    let lock = lock::refresh(find(&transaction, &lease.key)?.as_ref(), lease, now)?;
    extend(&transaction, &lock)?;
    transaction.commit()?;
    Ok(lock)
}

/// Deletes the lease if its holder still has it under this token, even if it has expired. Returns
/// `false`, without a change, if the holder has lost it.
///
/// Within the transaction that publishes the compaction's result it is the fence: if the lease is
/// lost, the transaction must be rolled back (HL-11).
pub fn release_published(
    conn: &Connection,
    key: &str,
    holder: &str,
    token: u64,
) -> rusqlite::Result<bool> {
    let released = conn
        .prepare_cached("DELETE FROM locks WHERE key = ? AND holder = ? AND token = ?")?
        .execute(params![key, holder, int(token)])?;
    Ok(released == 1)
}

/// See [`crate::storage::Store::lock_release`].
pub fn release(conn: &Connection, lease: &Lease) -> Result<bool, LockError> {
    let (key, holder) = (lease.key.as_str(), lease.holder.as_str());
    Ok(release_published(conn, key, holder, lease.token)?)
}

/// Reads the lock that is stored under a key, even if it has expired.
pub fn get(conn: &Connection, key: &LockKey) -> Result<Option<Lock>, LockError> {
    Ok(find(conn, key)?)
}

/// Counts the locks whose lease has not expired.
pub fn count(conn: &Connection, now: Uptime) -> Result<u64, LockError> {
    let sql = "SELECT count(*) FROM locks WHERE boot = ? AND expires_boot_ms > ?";
    let parameters = params![now.boot.0.to_string(), int(now.ms)];
    let count = conn.prepare_cached(sql)?.query_row(parameters, |row| row.get::<_, i64>(0))?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// Deletes the leases that greenroom acquired for a group whose owner has changed. Does nothing in
/// a database without the table (HL-8).
pub fn forget_group(conn: &Connection, group: GroupNo) -> rusqlite::Result<()> {
    let sql = "DELETE FROM locks WHERE group_no = ?";
    let delete = || conn.prepare_cached(sql)?.execute([group]);
    match delete() {
        Err(err) if !is_absent(&err) => Err(err),
        _ => Ok(()),
    }
}

/// Deletes stale leases: from another boot, or expired for longer than any lease lasts. Returns how
/// many.
pub fn forget_old(conn: &Connection, now: Uptime) -> Result<usize, LockError> {
    let (earliest, latest) = (now.ms.saturating_sub(TTL_MS_MAX), now.ms.saturating_add(TTL_MS_MAX));
    let sql = "DELETE FROM locks \
               WHERE boot <> ? OR expires_boot_ms < ? OR expires_boot_ms > ?";
    Ok(conn.execute(sql, params![now.boot.0.to_string(), int(earliest), int(latest)])?)
}

/// Reopens a group's last segment if it is closed, has no successor and its session's lock is free:
/// the rotation that closed it did not finish (HL-12). Returns the group's name and the segment.
pub fn reopen_orphan(
    conn: &Connection,
    group: GroupNo,
    now: Uptime,
) -> rusqlite::Result<Option<(String, u32)>> {
    let sql = "SELECT groups.id, segment, session FROM segments JOIN groups USING (no) \
               WHERE no = ?1 AND segment = (SELECT max(segment) FROM segments WHERE no = ?1) \
               AND NOT EXISTS (SELECT 1 FROM segments WHERE no = ?1 AND closed_seq IS NULL)";
    let last = conn
        .prepare_cached(sql)?
        .query_row([group], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))
        .optional()?;
    let Some((id, segment, session)) = last else { return Ok(None) };
    let lock = match session.parse().map(|key| find(conn, &key)) {
        Ok(Err(err)) if !is_absent(&err) => return Err(err),
        Ok(Ok(lock)) => lock,
        // No lock can have such a key, or the table is absent.
        Ok(Err(_)) | Err(_) => None,
    };
    if lock.is_some_and(|lock| lock.is_live(now)) {
        return Ok(None);
    }
    conn.execute(
        "UPDATE segments SET closed_seq = NULL, closed_at = NULL, end_reason = NULL \
         WHERE no = ? AND segment = ?",
        params![group, segment],
    )?;
    Ok(Some((id, segment)))
}

fn begin(conn: &mut Connection) -> Result<Transaction<'_>, LockError> {
    Ok(conn.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn insert(conn: &Connection, request: &LockRequest, now: Now) -> rusqlite::Result<usize> {
    let expires = request.ttl.end(now.up);
    conn.prepare_cached(
        "INSERT OR IGNORE INTO locks \
         (key, holder, group_no, ttl_ms, acquired_at, expires_boot_ms, boot) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        request.key.as_str(),
        request.holder.as_str(),
        request.group,
        int(request.ttl.ms()),
        now.wall.0,
        int(expires.ms),
        expires.boot.0.to_string(),
    ])
}

fn extend(conn: &Connection, lock: &Lock) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "UPDATE locks SET ttl_ms = ?, expires_boot_ms = ?, boot = ? WHERE token = ?",
    )?
    .execute(params![
        int(lock.ttl.ms()),
        int(lock.expires.ms),
        lock.expires.boot.0.to_string(),
        int(lock.lease.token),
    ])
}

/// Reads a lock. An unreadable row counts as free, and the next acquisition replaces it.
fn find(conn: &Connection, key: &LockKey) -> rusqlite::Result<Option<Lock>> {
    let sql = format!("SELECT {COLUMNS} FROM locks WHERE key = ?");
    let row = conn.prepare_cached(&sql)?.query_row([key.as_str()], read).optional();
    match row {
        Err(err) if is_unreadable(&err) => {
            log::warn!(err:%; "a stored lease cannot be read; it counts as free");
            Ok(None)
        }
        row => row,
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Lock> {
    let text = |column| row.get::<_, String>(column);
    Ok(Lock {
        lease: Lease {
            key: valid(1, text(1)?.parse())?,
            holder: valid(2, text(2)?.parse())?,
            token: row.get::<_, i64>(0)? as u64,
        },
        ttl: valid(3, Ttl::from_ms(row.get::<_, i64>(3)? as u64))?,
        acquired_at: Timestamp(row.get(4)?),
        expires: Uptime {
            boot: BootId(valid(6, Uuid::try_parse(&text(6)?))?),
            ms: row.get::<_, i64>(5)? as u64,
        },
    })
}

fn valid<T, E>(column: usize, value: Result<T, E>) -> rusqlite::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    value
        .map_err(|err| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(err)))
}

/// Whether the table of locks is absent, which is not a failure of the database (HL-8).
pub fn is_absent(err: &rusqlite::Error) -> bool {
    err.to_string().contains("no such table: locks")
}

impl From<rusqlite::Error> for LockError {
    fn from(err: rusqlite::Error) -> Self {
        if is_absent(&err) { Self::Absent } else { Self::Store(failed("used a lock")(err)) }
    }
}
