//! The rows of digests.

use greenroom_core::{
    Digest, Digests, RunId, TaskId, Timestamp,
    digest::{RunDigest, SCHEMA_VERSION},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::de::DeserializeOwned;

use super::{
    flaws::{LeftOut, is_flaw, keyed, numbered, of_group},
    rows::{self, int, key, seq},
};
use crate::storage::{
    ClosedRows, DigestRows, EndedAt, EndedFilter, EndedTurn, GroupNo, RunStanding, TurnEntry,
    TurnFilter, TurnRow,
};

const OF_GROUP: &str = "SELECT digest FROM heads WHERE no = ? AND digest_version = ?";
const OF_RUN: &str = "SELECT no, digest FROM runs WHERE id = ?";
const OF_LAST_RUN: &str = "SELECT run_digest FROM heads WHERE no = ?";

#[cfg(test)]
mod tests;

/// Stores digests of runs and tasks that were made again; `false` if the group is another owner's
/// by now.
pub fn put_closed(
    conn: &Connection,
    group: GroupNo,
    epoch: u64,
    rows: &ClosedRows,
) -> rusqlite::Result<bool> {
    let owned = conn
        .prepare_cached("SELECT 1 FROM heads WHERE no = ? AND epoch = ?")?
        .exists(params![group, int(epoch)])?;
    if owned {
        store_closed(conn, rows, |_| None)?;
    }
    Ok(owned)
}

/// Stores digests that were made again; `false` if the group is another owner's by now.
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
        .execute(params![SCHEMA_VERSION, rows.group, rows.run, rows.carry, group, int(epoch)])?;
    if changed == 1 {
        store_closed(conn, &rows.closed, |_| None)?;
    }
    Ok(changed == 1)
}

/// Stores the digests of runs and tasks that have their rows. A task's row need not be looked for
/// if `key_of` knows its key.
pub fn store_closed(
    conn: &Connection,
    closed: &ClosedRows,
    key_of: impl Fn(TaskId) -> Option<i64>,
) -> rusqlite::Result<()> {
    for (run, digest) in &closed.runs {
        conn.prepare_cached("UPDATE runs SET digest = ? WHERE id = ?")?
            .execute(params![digest, run.0.as_bytes()])?;
    }
    for (task, TurnRow { ended_at, agent, digest }) in &closed.turns {
        match key_of(*task) {
            Some(key) => conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO turns (ended_at, key, agent, digest) \
                     VALUES (?, ?, ?, ?)",
                )?
                .execute(params![ended_at.0, key, agent, digest])?,
            None => conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO turns (ended_at, key, agent, digest) \
                     SELECT ?, key, ?, ? FROM tasks WHERE id = ?",
                )?
                .execute(params![ended_at.0, agent, digest, task.0.as_bytes()])?,
        };
    }
    Ok(())
}

/// What a group's actor folds on from, if it is of this version's form and up to `last_seq`.
pub fn hydrate(
    conn: &Connection,
    group: GroupNo,
    last_seq: u64,
) -> rusqlite::Result<Option<Digests>> {
    let mut statement = conn.prepare_cached(
        "SELECT digest, run_digest, carry FROM heads WHERE no = ? AND digest_version = ?",
    )?;
    let digests = |row: &Row<'_>| {
        let (group, run, carry) =
            (rows::read(row, 0)?, rows::from_json(row, 1)?, rows::read(row, 2)?);
        Ok(Digests { group, run, carry })
    };
    let found = statement.query_row(params![group, SCHEMA_VERSION], digests).optional();
    // One that cannot be understood is as good as none: all of it is in the frames.
    let found = unless_flawed(found)?.flatten();
    Ok(found.filter(|own| own.group.watermark_seq == last_seq))
}

/// See [`crate::storage::Archive::digest`].
pub fn digest(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<Digest>> {
    let mut statement = conn.prepare_cached(OF_GROUP)?;
    let found = statement.query_row(params![group, SCHEMA_VERSION], |row| Ok(known(row, 0)));
    Ok(found.optional()?.flatten())
}

/// See [`crate::storage::Archive::run_digest`].
pub fn run_digest(conn: &Connection, run: RunId) -> rusqlite::Result<Option<RunStanding>> {
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
        None => live(conn, group)?.filter(|own| own.run == run && is_current(own)),
    };
    Ok(Some(RunStanding { group, digest }))
}

/// A digest; one that cannot be understood is as good as none, and has to be made again.
fn known<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Option<T> {
    rows::from_json(row, column).ok().flatten()
}

fn unless_flawed<T>(found: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match found {
        Err(err) if is_flaw(&err) => Ok(None),
        found => found.map(Some),
    }
}

/// That of a group's last run.
fn live(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<RunDigest>> {
    let mut statement = conn.prepare_cached(OF_LAST_RUN)?;
    let found = statement.query_row([group], |row| Ok(known(row, 0)));
    Ok(found.optional()?.flatten())
}

/// See [`crate::storage::Archive::digest_rows`].
pub fn digest_rows(
    conn: &Connection,
    left: &LeftOut,
    group: GroupNo,
) -> rusqlite::Result<Option<DigestRows>> {
    let mut statement = conn.prepare_cached(
        "SELECT coalesce(digest, ''), run_digest, coalesce(carry, '') FROM heads \
         WHERE no = ? AND digest_version = ?",
    )?;
    let read = of_group("the digests", group, |row| {
        let (group, run, carry) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(DigestRows { group, run, carry, closed: ClosedRows::default() })
    });
    let found = statement.query_row(params![group, SCHEMA_VERSION], read).optional()?;
    let found = found.map(|judged| left.sound(conn, Ok(judged))).transpose()?.flatten();
    let Some(mut rows) = found else { return Ok(None) };
    let mut runs =
        conn.prepare_cached("SELECT id, digest FROM runs WHERE no = ? AND digest IS NOT NULL")?;
    let run = |row: &Row<'_>| Ok((RunId(rows::id(row, 0)?), row.get(1)?));
    let found = runs.query_map([group], numbered("run", group, "id", run))?;
    rows.closed.runs = left.keep(conn, found, usize::MAX)?.into_iter().collect();
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
    let found = turns.query_map(range, numbered("turn", group, "key", turn))?;
    rows.closed.turns = left.keep(conn, found, usize::MAX)?.into_iter().collect();
    Ok(Some(rows))
}

/// See [`crate::storage::Archive::turns`].
pub fn turns(
    conn: &Connection,
    left: &LeftOut,
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
    left.keep(conn, statement.query_map(range, keyed("task", entry))?, filter.limit)
}

/// See [`crate::storage::Archive::ended_turns`].
pub fn ended_turns(
    conn: &Connection,
    left: &LeftOut,
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
    left.keep(conn, statement.query_map(parameters, keyed("turn", turn))?, filter.limit)
}
