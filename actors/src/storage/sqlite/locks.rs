//! Locks: the rows of the compaction lock (SEEDS HL).

use greenroom_core::{
    Timestamp,
    lock::{self, Acquisition, BootId, Holder, Lease, Lock, LockKey, Now, TTL_MS_MAX, Ttl, Uptime},
};
use rusqlite::{
    Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params, types::Type,
};
use uuid::Uuid;

use super::{failed, flaws::is_flaw, rows::int};
use crate::storage::{Granted, GroupNo, LockAsk, LockError};

#[cfg(test)]
mod tests;

/// The columns of a lock in the order that [`read`] reads them.
const COLUMNS: &str = "token, key, holder, ttl_ms, acquired_at, expires_boot_ms, boot";

/// See [`crate::storage::Store::lock_acquire`]. In one transaction: what is stale is dropped, the
/// lease inserted if nothing is in its way, and what is then stored is the answer (SEEDS HL-3).
pub fn acquire(
    conn: &mut Connection,
    ask: &LockAsk,
    now: Now,
    is_dead: &dyn Fn(&Holder) -> bool,
) -> Result<Granted, LockError> {
    let transaction = begin(conn)?;
    let row = find(&transaction, &ask.key)?;
    let granted = match lock::acquire(row.as_ref(), &ask.holder, ask.ttl, now, is_dead)? {
        Acquisition::Extend(lock) => {
            extend(&transaction, &lock)?;
            Granted { lock, fresh: false }
        }
        Acquisition::Take => {
            let key = ask.key.as_str();
            transaction.prepare_cached("DELETE FROM locks WHERE key = ?")?.execute([key])?;
            insert(&transaction, ask, now)?;
            match find(&transaction, &ask.key)? {
                Some(lock) if lock.lease.holder == ask.holder => Granted { lock, fresh: true },
                Some(lock) => return Err(lock.held(now).into()),
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

/// Deletes the lease if it is still its holder's by this token: also one that has expired, if
/// nobody has taken it over. `false` if it is not, and then nothing was changed.
///
/// Called within the transaction that publishes what the lease was for, it is the fence: if it is
/// lost, nothing of that transaction may be kept (SEEDS HL-11).
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

/// The lock that is stored under a key, expired or not.
pub fn get(conn: &Connection, key: &LockKey) -> Result<Option<Lock>, LockError> {
    Ok(find(conn, key)?)
}

/// Deletes the leases that greenroom took for a group: their holder is its owner no more. A
/// database without locks has none to delete (SEEDS HL-8).
pub fn forget_group(conn: &Connection, group: GroupNo) -> rusqlite::Result<()> {
    let delete = || conn.execute("DELETE FROM locks WHERE group_no = ?", [group]);
    match delete() {
        Err(err) if !is_absent(&err) => Err(err),
        _ => Ok(()),
    }
}

/// Deletes the rows of leases that nobody can mean any more: from another boot, or expired for
/// longer than any lease lasts.
pub fn forget_old(conn: &Connection, now: Uptime) -> Result<usize, LockError> {
    let (earliest, latest) = (now.ms.saturating_sub(TTL_MS_MAX), now.ms.saturating_add(TTL_MS_MAX));
    let sql = "DELETE FROM locks \
               WHERE boot <> ? OR expires_boot_ms < ? OR expires_boot_ms > ?";
    Ok(conn.execute(sql, params![now.boot.0.to_string(), int(earliest), int(latest)])?)
}

/// Reopens a group's last segment if it is closed, nothing follows it and nobody holds its
/// session's lock: whoever closed it never came to open the next (SEEDS HL-12). Names it and its
/// group.
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
        // No lock has such a key, or there are no locks.
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

fn insert(conn: &Connection, ask: &LockAsk, now: Now) -> rusqlite::Result<usize> {
    let expires = ask.ttl.end(now.up);
    conn.prepare_cached(
        "INSERT OR IGNORE INTO locks \
         (key, holder, group_no, ttl_ms, acquired_at, expires_boot_ms, boot) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        ask.key.as_str(),
        ask.holder.as_str(),
        ask.group,
        int(ask.ttl.ms()),
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

/// A row that cannot be understood is nobody's, and gives way to the next who asks.
fn find(conn: &Connection, key: &LockKey) -> rusqlite::Result<Option<Lock>> {
    let sql = format!("SELECT {COLUMNS} FROM locks WHERE key = ?");
    let row = conn.prepare_cached(&sql)?.query_row([key.as_str()], read).optional();
    match row {
        Err(err) if is_flaw(&err) => {
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
            key: understood(1, text(1)?.parse())?,
            holder: understood(2, text(2)?.parse())?,
            token: row.get::<_, i64>(0)? as u64,
        },
        ttl: understood(3, Ttl::from_ms(row.get::<_, i64>(3)? as u64))?,
        acquired_at: Timestamp(row.get(4)?),
        expires: Uptime {
            boot: BootId(understood(6, Uuid::try_parse(&text(6)?))?),
            ms: row.get::<_, i64>(5)? as u64,
        },
    })
}

fn understood<T, E>(column: usize, value: Result<T, E>) -> rusqlite::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    value
        .map_err(|err| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(err)))
}

/// Whether the database has no locks at all, which is not a failure (SEEDS HL-8).
pub fn is_absent(err: &rusqlite::Error) -> bool {
    err.to_string().contains("no such table: locks")
}

impl From<rusqlite::Error> for LockError {
    fn from(err: rusqlite::Error) -> Self {
        if is_absent(&err) { Self::Absent } else { Self::Store(failed("used a lock")(err)) }
    }
}
