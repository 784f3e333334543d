//! The same rows as greenroom stores, written directly.

use std::{path::Path, time::Instant};

use greenroom_test_support::programs::built;
use rusqlite::{Connection, Transaction, params};
use tempfile::TempDir;
use uuid::Uuid;

use crate::Result;

const SCHEMA: &str = include_str!("../../actors/src/storage/sqlite/0001.sql");
/// The size of a turn's facts.
const FACTS: &str = concat!(
    r#"{"task":"tsk_00000000-0000-0000-0000-000000000000","kind":"turn","origin":"api"}"#,
    "\n",
    r#"{"task":"tsk_00000000-0000-0000-0000-000000000000","attempt":1,"run":"run_0"}"#,
    "\n",
    r#"{"task":"tsk_00000000-0000-0000-0000-000000000000","prompt":[{"type":"text","text":""}]}"#,
    "\n",
    r#"{"jsonrpc":"2.0","id":1,"method":"session/prompt","params":{"sessionId":"b","prompt":[]}}"#,
);

/// A database with greenroom's schema and settings.
pub struct Database(Connection);

impl Database {
    /// Creates an empty database, in a directory that is deleted on drop.
    pub fn make() -> Result<(Self, TempDir)> {
        let directory = TempDir::with_prefix_in("bench-", built("")?)?;
        let conn = Connection::open(directory.path().join("bare.db"))?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "wal_autocheckpoint", 4000)?;
        conn.execute_batch(SCHEMA)?;
        conn.execute_batch(
            "CREATE TABLE frames (key INTEGER PRIMARY KEY, at INTEGER NOT NULL, \
             kind TEXT NOT NULL, text BLOB NOT NULL) STRICT",
        )?;
        Ok((Self(conn), directory))
    }

    /// Runs one transaction.
    pub fn commit(&mut self, write: impl FnOnce(&Rows<'_>) -> Result<()>) -> Result<()> {
        let rows = Rows(self.0.transaction()?);
        write(&rows)?;
        Ok(rows.0.commit()?)
    }
}

/// The writes of a transaction.
pub struct Rows<'a>(Transaction<'a>);

impl Rows<'_> {
    /// Writes a row with one frame.
    pub fn frame(&self, seq: u64, text: &str) -> Result<()> {
        let mut insert = self.0.prepare_cached("INSERT INTO frames VALUES (?, 0, ?, ?)")?;
        insert.execute(params![seq as i64, "session/update", text.as_bytes()])?;
        Ok(())
    }

    /// Writes rows with many frames each.
    pub fn block(&self, group: u64, seq: u64, count: usize, text: &str) -> Result<()> {
        const BLOCK_BYTES: usize = 64 << 10;
        let mut insert = self.0.prepare_cached(
            "INSERT INTO blocks (key, count, at, segment, run, task, kinds, text) \
             VALUES (?, ?, 0, 1, ?, ?, ?, ?)",
        )?;
        let (mut text, mut seq) = (text.as_bytes(), seq);
        let id: &[u8] = &[0; 16];
        while !text.is_empty() {
            let end = if text.len() <= BLOCK_BYTES {
                text.len()
            } else {
                memchr::memrchr(b'\n', &text[..BLOCK_BYTES]).unwrap_or(text.len())
            };
            let key = (group << 36) as i64 + seq as i64;
            insert.execute(params![key, count as i64, id, id, "session/update", &text[..end]])?;
            seq += memchr::memchr_iter(b'\n', &text[..end]).count() as u64 + 1;
            text = text.get(end + 1..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes what greenroom writes before it sends a prompt.
    pub fn start(&self, group: u64, turn: u64) -> Result<()> {
        self.state(group, turn, "running")?;
        let (key, id) = ids(group, turn);
        self.0
            .prepare_cached(
                "INSERT INTO tasks (key, id, kind, origin, prompt, created_at, state) \
                 VALUES (?, ?, 'turn', 'api', '[]', 0, 'queued')",
            )?
            .execute(params![key, id])?;
        self.0
            .prepare_cached(
                "UPDATE tasks SET state = 'running', claimed_at = 0, attempt = 1, started_at = 0, \
                 run = ?, segment = 1, seq_first = 1 WHERE id = ?",
            )?
            .execute(params![id, id])?;
        self.block(group, turn * 6, 4, FACTS)
    }

    /// Writes what greenroom writes after a prompt's answer.
    pub fn settle(&self, group: u64, turn: u64) -> Result<()> {
        self.state(group, turn, "idle")?;
        let (_, id) = ids(group, turn);
        self.0
            .prepare_cached(
                "UPDATE tasks SET state = 'completed', ended_at = 0, seq_last = 1, text = '', \
                 stop_reason = 'end_turn' WHERE id = ? AND state IN ('queued', 'running')",
            )?
            .execute([id])?;
        self.block(group, turn * 6 + 4, 2, FACTS)
    }

    fn state(&self, group: u64, turn: u64, status: &str) -> Result<()> {
        self.0
            .prepare_cached(
                "INSERT INTO heads (no, epoch, last_seq, tasks, segment, paused, archived, status, \
                 queue_length) VALUES (?, 1, ?, ?, 1, 0, 0, ?, 0) \
                 ON CONFLICT (no) DO UPDATE SET last_seq = excluded.last_seq, \
                 tasks = excluded.tasks, status = excluded.status",
            )?
            .execute(params![group as i64, turn as i64, turn as i64, status])?;
        Ok(())
    }
}

fn ids(group: u64, turn: u64) -> (i64, [u8; 16]) {
    let key = (group << 36) + turn;
    // Ordered by time, as UUIDv7 is.
    let id = (u128::from(turn) << 64) + u128::from(group);
    (key as i64, id.to_be_bytes())
}

/// Returns the 200-byte rows a second that become durable, with this number in each transaction.
pub fn row_rate(batch: u64, rows: u64) -> Result<f64> {
    let (mut database, _directory) = Database::make()?;
    let text = "x".repeat(200);
    let start = Instant::now();
    for first in (0..rows).step_by(usize::try_from(batch)?) {
        database
            .commit(|rows| (first..first + batch).try_for_each(|seq| rows.frame(seq, &text)))?;
    }
    Ok(rows as f64 / start.elapsed().as_secs_f64())
}

/// Returns the seconds to read all blocks of a database in order.
pub fn read_blocks(path: &Path) -> Result<f64> {
    let conn = Connection::open(path)?;
    let start = Instant::now();
    let mut blocks = conn.prepare("SELECT text FROM blocks ORDER BY key")?;
    let mut rows = blocks.query([])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        bytes += row.get_ref(0)?.as_blob()?.len();
    }
    if bytes == 0 {
        return Err("no blocks".into());
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Moves the write-ahead log into the database.
pub fn checkpoint(path: &Path) -> Result<()> {
    Ok(Connection::open(path)?.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
}

/// Copies the only group of a database, `g0`, until there are `groups` of them, each with ids of
/// its own. No server may use the database.
pub fn multiply_group(path: &Path, groups: usize) -> Result<()> {
    let mut conn = Connection::open(path)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    let rows = conn.transaction()?;
    let id = |sql: &str| rows.query_row(sql, [], |row| row.get::<_, [u8; 16]>(0));
    let (task, run) = (id("SELECT id FROM tasks")?, id("SELECT id FROM runs")?);
    rows.execute_batch(
        "CREATE TEMP TABLE one_group AS SELECT * FROM main.groups; \
         CREATE TEMP TABLE one_head AS SELECT * FROM heads; \
         CREATE TEMP TABLE one_task AS SELECT * FROM tasks; \
         CREATE TEMP TABLE one_run AS SELECT * FROM runs; \
         CREATE TEMP TABLE one_segment AS SELECT * FROM segments; \
         CREATE TEMP TABLE some_blocks AS SELECT * FROM blocks",
    )?;
    let (mut last_task, mut last_run) = (task, run);
    for number in 1..groups {
        let no = i64::try_from(number)? + 1;
        let [next_task, next_run] = [task, run].map(|id| numbered(id, number));
        let ids = [(last_task, next_task), (last_run, next_run)];
        rows.execute("UPDATE one_group SET no = ?, id = ?", params![no, format!("g{number}")])?;
        rows.execute(
            "UPDATE one_head SET no = ?, current_task = ?, current_run = ?",
            params![no, next_task, next_run],
        )?;
        rows.execute(
            "UPDATE one_task SET key = (? << 36) | (key & (1 << 36) - 1), id = ?, run = ?",
            params![no, next_task, next_run],
        )?;
        rows.execute("UPDATE one_run SET no = ?, id = ?", params![no, next_run])?;
        rows.execute("UPDATE one_segment SET no = ?", [no])?;
        rows.execute(
            "UPDATE some_blocks SET key = (? << 36) | (key & (1 << 36) - 1), \
             task = iif(task IS NULL, NULL, ?), run = iif(run IS NULL, NULL, ?)",
            params![no, next_task, next_run],
        )?;
        for (last, next) in ids.map(|(last, next)| (text(last), text(next))) {
            rows.execute(
                "UPDATE some_blocks SET text = CAST(replace(CAST(text AS TEXT), ?, ?) AS BLOB)",
                [&last, &next],
            )?;
            rows.execute(
                "UPDATE one_head SET digest = replace(digest, ?1, ?2), \
                 run_digest = replace(run_digest, ?1, ?2), carry = replace(carry, ?1, ?2)",
                [&last, &next],
            )?;
        }
        rows.execute_batch(
            "INSERT INTO main.groups SELECT * FROM one_group; \
             INSERT INTO heads SELECT * FROM one_head; \
             INSERT INTO tasks SELECT * FROM one_task; \
             INSERT INTO runs SELECT * FROM one_run; \
             INSERT INTO segments SELECT * FROM one_segment; \
             INSERT INTO blocks SELECT * FROM some_blocks",
        )?;
        (last_task, last_run) = (next_task, next_run);
    }
    Ok(rows.commit()?)
}

/// Returns the id with this number in its last four bytes.
fn numbered(mut id: [u8; 16], number: usize) -> [u8; 16] {
    id[12..].copy_from_slice(&(number as u32).to_be_bytes());
    id
}

/// Returns an id as frames have it.
fn text(id: [u8; 16]) -> String {
    Uuid::from_bytes(id).to_string()
}
