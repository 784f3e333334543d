//! The rows of digests: how they are written and read.

use greenroom_core::{
    Digest, Digests, RunId, TaskId, Timestamp,
    digest::{RunDigest, SCHEMA_VERSION},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::de::DeserializeOwned;

use super::{
    damage::{LeftOut, is_unreadable, keyed, numbered, of_group},
    rows::{self, int, key, seq},
};
use crate::storage::{
    DigestRows, EndedAt, EndedFilter, EndedTurn, GroupNo, RunDigestRow, SealedDigests, TurnEntry,
    TurnFilter, TurnRow,
};

const OF_GROUP: &str = "SELECT digest FROM heads WHERE no = ? AND digest_version = ?";
const OF_RUN: &str = "SELECT no, digest FROM runs WHERE id = ?";
const OF_LAST_RUN: &str = "SELECT run_digest FROM heads WHERE no = ?";

#[cfg(test)]
mod tests;

/// Stores rebuilt digests of ended runs and tasks. Returns `false` if the group has a later owner.
pub fn put_sealed(
    conn: &Connection,
    group: GroupNo,
    epoch: u64,
    rows: &SealedDigests,
) -> rusqlite::Result<bool> {
    let is_owner = conn
        .prepare_cached("SELECT 1 FROM heads WHERE no = ? AND epoch = ?")?
        .exists(params![group, int(epoch)])?;
    if is_owner {
        store_sealed(conn, rows)?;
    }
    Ok(is_owner)
}

/// Stores a group's rebuilt digests. Returns `false` if the group has a later owner.
pub fn put(
    conn: &Connection,
    group: GroupNo,
    epoch: u64,
    rows: &DigestRows,
) -> rusqlite::Result<bool> {
    let changed = conn
        .prepare_cached(
            "UPDATE heads SET digest_version = ?, digest = ?, run_digest = ?, carry = ? \
             WHERE no = ? AND epoch = ?",
        )?
        .execute(params![SCHEMA_VERSION, rows.group, rows.run, rows.open, group, int(epoch)])?;
    if changed == 1 {
        store_sealed(conn, &rows.sealed)?;
    }
    Ok(changed == 1)
}

/// Stores sealed digests of runs and tasks that have rows.
pub fn store_sealed(conn: &Connection, sealed: &SealedDigests) -> rusqlite::Result<()> {
    sealed.runs.iter().try_for_each(|(run, digest)| seal_run(conn, *run, digest))?;
    sealed.turns.iter().try_for_each(|(task, turn)| seal_turn(conn, *task, None, turn))
}

/// Stores the digest of a run that ended.
pub fn seal_run(conn: &Connection, run: RunId, digest: &str) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE runs SET digest = ? WHERE id = ?")?
        .execute(params![digest, run.0.as_bytes()])?;
    Ok(())
}

/// Stores the digest of a task that ended. Its key saves a lookup, if it is known.
pub fn seal_turn(
    conn: &Connection,
    task: TaskId,
    key: Option<i64>,
    TurnRow { ended_at, agent, digest }: &TurnRow,
) -> rusqlite::Result<()> {
    match key {
        Some(key) => conn
            .prepare_cached(
                "INSERT OR REPLACE INTO turns (ended_at, key, agent, digest) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![ended_at.0, key, agent, digest])?,
        None => conn
            .prepare_cached(
                "INSERT OR REPLACE INTO turns (ended_at, key, agent, digest) \
                 SELECT ?, key, ?, ? FROM tasks WHERE id = ?",
            )?
            .execute(params![ended_at.0, agent, digest, task.0.as_bytes()])?,
    };
    Ok(())
}

/// Reads the digests that a group's actor continues, if they have this version's form and reach
/// `last_seq`.
pub fn load(conn: &Connection, group: GroupNo, last_seq: u64) -> rusqlite::Result<Option<Digests>> {
    let mut statement = conn.prepare_cached(
        "SELECT digest, run_digest, carry FROM heads WHERE no = ? AND digest_version = ?",
    )?;
    let digests = |row: &Row<'_>| {
        let (group, run, open) =
            (rows::read(row, 0)?, rows::from_json(row, 1)?, rows::read(row, 2)?);
        Ok(Digests { group, run, open })
    };
    let found = statement.query_row(params![group, SCHEMA_VERSION], digests).optional();
    // An unreadable row counts as none: all of it can be rebuilt from the frames.
    let found = unless_unreadable(found)?.flatten();
    Ok(found.filter(|digests| digests.group.watermark_seq == last_seq))
}

/// See [`crate::storage::ReadStore::digest`].
pub fn digest(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<Digest>> {
    let mut statement = conn.prepare_cached(OF_GROUP)?;
    let found = statement.query_row(params![group, SCHEMA_VERSION], |row| Ok(known(row, 0)));
    Ok(found.optional()?.flatten())
}

/// See [`crate::storage::ReadStore::run_digest`].
pub fn run_digest(conn: &Connection, run: RunId) -> rusqlite::Result<Option<RunDigestRow>> {
    let mut statement = conn.prepare_cached(OF_RUN)?;
    let found = statement
        .query_row([run.0.as_bytes()], |row| {
            Ok((row.get::<_, GroupNo>(0)?, known::<RunDigest>(row, 1)))
        })
        .optional()?;
    let Some((group, sealed)) = found else { return Ok(None) };
    let is_current = |digest: &RunDigest| digest.schema_version == SCHEMA_VERSION;
    let digest = match sealed {
        Some(digest) => Some(digest).filter(is_current),
        None => live(conn, group)?.filter(|digest| digest.run == run && is_current(digest)),
    };
    Ok(Some(RunDigestRow { group, digest }))
}

/// Reads a digest. An unreadable one counts as none, and has to be rebuilt.
fn known<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Option<T> {
    rows::from_json(row, column).ok().flatten()
}

fn unless_unreadable<T>(found: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match found {
        Err(err) if is_unreadable(&err) => Ok(None),
        found => found.map(Some),
    }
}

/// Reads the digest of a group's last run.
fn live(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<RunDigest>> {
    let mut statement = conn.prepare_cached(OF_LAST_RUN)?;
    let found = statement.query_row([group], |row| Ok(known(row, 0)));
    Ok(found.optional()?.flatten())
}

/// See [`crate::storage::ReadStore::digest_rows`].
pub fn digest_rows(
    conn: &Connection,
    left_out: &LeftOut,
    group: GroupNo,
) -> rusqlite::Result<Option<DigestRows>> {
    let mut statement = conn.prepare_cached(
        "SELECT coalesce(digest, ''), run_digest, coalesce(carry, '') FROM heads \
         WHERE no = ? AND digest_version = ?",
    )?;
    let read = of_group("the digests", group, |row| {
        let (group, run, open) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(DigestRows { group, run, open, sealed: SealedDigests::default() })
    });
    let found = statement.query_row(params![group, SCHEMA_VERSION], read).optional()?;
    let found = found.map(|row| left_out.readable(conn, Ok(row))).transpose()?.flatten();
    let Some(mut rows) = found else { return Ok(None) };
    let mut runs =
        conn.prepare_cached("SELECT id, digest FROM runs WHERE no = ? AND digest IS NOT NULL")?;
    let run = |row: &Row<'_>| Ok((RunId(rows::id(row, 0)?), row.get(1)?));
    let run = numbered("run", group, "id", run);
    let mut found = runs.query([group])?;
    rows.sealed.runs = left_out.keep(conn, &mut found, usize::MAX, run)?.into_iter().collect();
    let mut turns = conn.prepare_cached(
        "SELECT tasks.id, turns.ended_at, turns.agent, turns.digest, tasks.key FROM tasks \
         JOIN turns ON turns.ended_at = tasks.ended_at AND turns.key = tasks.key \
         WHERE tasks.key >= ? AND tasks.key < ?",
    )?;
    let turn = |row: &Row<'_>| {
        let ended_at = Timestamp(row.get(1)?);
        let turn = TurnRow { ended_at, agent: row.get(2)?, digest: row.get(3)? };
        Ok((TaskId(rows::id(row, 0)?), turn))
    };
    let range = [key(group, 0), key(group + 1, 0)];
    let turn = numbered("turn", group, "key", turn);
    let mut found = turns.query(range)?;
    rows.sealed.turns = left_out.keep(conn, &mut found, usize::MAX, turn)?.into_iter().collect();
    Ok(Some(rows))
}

/// See [`crate::storage::ReadStore::turns`].
pub fn turns(
    conn: &Connection,
    left_out: &LeftOut,
    group: GroupNo,
    filter: &TurnFilter,
) -> rusqlite::Result<Vec<TurnEntry>> {
    let sql = format!(
        "SELECT {}, (SELECT digest FROM turns WHERE turns.ended_at = tasks.ended_at \
         AND turns.key = tasks.key) FROM tasks WHERE key > ?1 AND key < ?2 AND kind = 'turn' \
         AND seq_first IS NOT NULL ORDER BY key {}",
        rows::TASK_COLUMNS,
        if filter.descending { "DESC" } else { "ASC" }
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let before = filter.before.map_or(key(group + 1, 0), |before| key(group, before));
    let entry = |row: &Row<'_>| {
        Ok(TurnEntry { task: rows::task(row)?, digest: known(row, rows::TASK_WIDTH) })
    };
    let range = params![key(group, filter.after), before];
    left_out.keep(conn, &mut statement.query(range)?, filter.limit, keyed("task", entry))
}

/// See [`crate::storage::ReadStore::ended_turns`].
pub fn ended_turns(
    conn: &Connection,
    left_out: &LeftOut,
    filter: &EndedFilter,
) -> rusqlite::Result<Vec<EndedTurn>> {
    let mut statement = conn.prepare_cached(
        "SELECT key, ended_at, agent, digest FROM turns WHERE (ended_at, key) > (?1, ?2) \
         AND ended_at < ?3 ORDER BY ended_at, key",
    )?;
    let from = filter.from.map(|from| EndedAt { at: from, key: i64::MIN });
    let least = EndedAt { at: Timestamp(i64::MIN), key: i64::MIN };
    let after = from.max(filter.after).unwrap_or(least);
    let to = filter.to.map_or(i64::MAX, |to| to.0);
    let turn = |row: &Row<'_>| {
        let place = EndedAt { at: Timestamp(row.get(1)?), key: row.get(0)? };
        let group = (place.key >> 36) as GroupNo;
        let (ordinal, agent) = (seq(place.key), row.get(2)?);
        Ok(EndedTurn { place, group, ordinal, agent, digest: rows::read(row, 3)? })
    };
    let parameters = params![after.at.0, after.key, to];
    left_out.keep(conn, &mut statement.query(parameters)?, filter.limit, keyed("turn", turn))
}
