//! The rows of digests.

use greenroom_core::{
    Digest, Digests, RunId, TaskId, Timestamp,
    digest::{RunDigest, SCHEMA_VERSION},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    readable,
    rows::{self, int, key, seq},
};
use crate::{
    digest::{ClosedRows, DigestRows, TurnRow},
    storage::{EndedAt, EndedFilter, EndedTurn, GroupNo, RunStanding, TurnEntry, TurnFilter},
};

/// Stores a group's digests after a commit's facts, whose tasks and runs have their rows.
pub fn store(conn: &Connection, group: GroupNo, rows: &DigestRows) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO digests (no, schema_version, watermark_seq, digest, run, carry) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (no) DO UPDATE SET \
         schema_version = ?2, watermark_seq = ?3, digest = ?4, run = ?5, carry = ?6",
    )?
    .execute(params![
        group,
        SCHEMA_VERSION,
        int(rows.watermark_seq),
        rows.group,
        rows.run,
        rows.carry
    ])?;
    for (run, digest) in &rows.closed.runs {
        conn.prepare_cached("UPDATE runs SET digest = ? WHERE id = ?")?
            .execute(params![digest, run.0.as_bytes()])?;
    }
    for (task, TurnRow { ended_at, agent, digest }) in &rows.closed.turns {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO turns (ended_at, key, agent, digest) \
             SELECT ?, key, ?, ? FROM tasks WHERE id = ?",
        )?
        .execute(params![ended_at.0, agent, digest, task.0.as_bytes()])?;
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
        "SELECT digest, run, carry FROM digests \
         WHERE no = ? AND schema_version = ? AND watermark_seq = ?",
    )?;
    let found = statement.query_row(params![group, SCHEMA_VERSION, int(last_seq)], |row| {
        let [group, run, carry] = [row.get_ref(0)?, row.get_ref(1)?, row.get_ref(2)?];
        let read = || -> Option<Digests> {
            Some(Digests {
                group: serde_json::from_str(group.as_str().ok()?).ok()?,
                run: match run.as_str_or_null().ok()? {
                    Some(run) => Some(serde_json::from_str(run).ok()?),
                    None => None,
                },
                carry: serde_json::from_str(carry.as_str().ok()?).ok()?,
            })
        };
        Ok(read())
    });
    Ok(found.optional()?.flatten())
}

/// See [`crate::storage::Archive::digest`].
pub fn digest(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<Digest>> {
    let mut statement =
        conn.prepare_cached("SELECT digest FROM digests WHERE no = ? AND schema_version = ?")?;
    let found = statement.query_row(params![group, SCHEMA_VERSION], |row| rows::read(row, 0));
    found.optional()
}

/// See [`crate::storage::Archive::run_digest`].
pub fn run_digest(conn: &Connection, run: RunId) -> rusqlite::Result<Option<RunStanding>> {
    let mut statement = conn.prepare_cached("SELECT no, digest FROM runs WHERE id = ?")?;
    let found = statement
        .query_row([run.0.as_bytes()], |row| {
            Ok((row.get::<_, GroupNo>(0)?, rows::from_json::<RunDigest>(row, 1)?))
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

/// That of a group's last run.
fn live(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<RunDigest>> {
    let mut statement = conn.prepare_cached("SELECT run FROM digests WHERE no = ?")?;
    let found = statement.query_row([group], |row| rows::from_json(row, 0));
    Ok(found.optional()?.flatten())
}

/// See [`crate::storage::Archive::digest_rows`].
pub fn digest_rows(conn: &Connection, group: GroupNo) -> rusqlite::Result<Option<DigestRows>> {
    let mut statement =
        conn.prepare_cached("SELECT watermark_seq, digest, run, carry FROM digests WHERE no = ?")?;
    let found = statement.query_row([group], |row| {
        Ok(DigestRows {
            watermark_seq: row.get::<_, i64>(0)? as u64,
            group: row.get(1)?,
            run: row.get(2)?,
            carry: row.get(3)?,
            closed: ClosedRows::default(),
        })
    });
    let Some(mut rows) = found.optional()? else { return Ok(None) };
    let mut runs =
        conn.prepare_cached("SELECT id, digest FROM runs WHERE no = ? AND digest IS NOT NULL")?;
    let run = |row: &Row<'_>| Ok((RunId(rows::id(row, 0)?), row.get(1)?));
    rows.closed.runs = runs.query_map([group], run)?.collect::<Result<_, _>>()?;
    let mut turns = conn.prepare_cached(
        "SELECT tasks.id, turns.ended_at, turns.agent, turns.digest FROM tasks \
         JOIN turns ON turns.ended_at = tasks.ended_at AND turns.key = tasks.key \
         WHERE tasks.key >= ? AND tasks.key < ?",
    )?;
    let turn = |row: &Row<'_>| {
        let ended_at = Timestamp(row.get(1)?);
        let turn = TurnRow { ended_at, agent: row.get(2)?, digest: row.get(3)? };
        Ok((TaskId(rows::id(row, 0)?), turn))
    };
    let range = [key(group, 0), key(group + 1, 0)];
    rows.closed.turns = turns.query_map(range, turn)?.collect::<Result<_, _>>()?;
    Ok(Some(rows))
}

/// See [`crate::storage::Archive::turns`].
pub fn turns(
    conn: &Connection,
    group: GroupNo,
    filter: &TurnFilter,
) -> rusqlite::Result<Vec<TurnEntry>> {
    let sql = format!(
        "SELECT {}, (SELECT digest FROM turns WHERE turns.ended_at = tasks.ended_at \
         AND turns.key = tasks.key) FROM tasks WHERE key > ?1 AND key < ?2 AND kind = 'turn' \
         AND seq_first IS NOT NULL ORDER BY key {} LIMIT ?3",
        rows::TASK_COLUMNS,
        if filter.descending { "DESC" } else { "ASC" }
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let before = filter.before.map_or(key(group + 1, 0), |before| key(group, before));
    let entry = |row: &Row<'_>| {
        Ok(TurnEntry { task: rows::task(row)?, digest: rows::from_json(row, rows::TASK_WIDTH)? })
    };
    let found = statement
        .query_map(params![key(group, filter.after), before, filter.limit as i64], entry)?;
    found.filter_map(readable).collect()
}

/// See [`crate::storage::Archive::ended_turns`].
pub fn ended_turns(conn: &Connection, filter: &EndedFilter) -> rusqlite::Result<Vec<EndedTurn>> {
    let mut statement = conn.prepare_cached(
        "SELECT ended_at, key, agent, digest FROM turns WHERE (ended_at, key) > (?1, ?2) \
         AND ended_at < ?3 AND (?4 IS NULL OR agent = ?4) ORDER BY ended_at, key LIMIT ?5",
    )?;
    let from = filter.from.map(|from| EndedAt { at: from, key: i64::MIN });
    let least = EndedAt { at: Timestamp(i64::MIN), key: i64::MIN };
    let after = from.max(filter.after).unwrap_or(least);
    let to = filter.to.map_or(i64::MAX, |to| to.0);
    let turn = |row: &Row<'_>| {
        let place = EndedAt { at: Timestamp(row.get(0)?), key: row.get(1)? };
        let group = (place.key >> 36) as GroupNo;
        let (ordinal, agent) = (seq(place.key), row.get(2)?);
        Ok(EndedTurn { place, group, ordinal, agent, digest: rows::read(row, 3)? })
    };
    let parameters = params![after.at.0, after.key, to, filter.agent, filter.limit as i64];
    let found = statement.query_map(parameters, turn)?;
    found.filter_map(readable).collect()
}
