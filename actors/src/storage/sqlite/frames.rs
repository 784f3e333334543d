//! The rows of frames: blocks, and how they are written, found and read.

use greenroom_core::{Kinds, RunId, TaskId};
use rusqlite::{Connection, Error, OptionalExtension as _, Row, params};
use serde::de::IgnoredAny;

use super::{
    damage::{LeftOut, keyed},
    rows::{corrupt, int, key, seq, text, time, uuid},
    truncation,
};
use crate::{
    storage::{FrameFilter, GroupNo, SEQ_MAX, unreadable::FRAMES},
    transcript::frame::Block,
};

/// Inserts a block.
pub fn insert(conn: &Connection, group: GroupNo, block: &Block) -> rusqlite::Result<()> {
    let joined;
    let kinds: &str = match &block.kinds {
        Kinds::All(kind) => kind,
        Kinds::Each(kinds) => {
            joined = kinds.join("\n");
            &joined
        }
    };
    conn.prepare_cached(
        "INSERT INTO blocks (key, count, at, segment, run, task, kinds, text) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        key(group, block.first_seq),
        int(block.count),
        block.at.0,
        block.segment,
        block.run.as_ref().map(|id| id.0.as_bytes()),
        block.task.as_ref().map(|id| id.0.as_bytes()),
        kinds,
        &*block.text,
    ])?;
    Ok(())
}

/// The columns of a block in the order that [`block`] reads them.
const COLUMNS: &str = "key, count, at, segment, run, task, kinds, text";

/// Reads a block from [`COLUMNS`].
fn block(row: &Row<'_>) -> rusqlite::Result<Block> {
    let kinds = text(row, 6)?.ok_or_else(|| corrupt(6, "no kinds"))?;
    let count: i64 = row.get(1)?;
    let kinds_count = 1 + memchr::memchr_iter(b'\n', kinds.as_bytes()).count() as i64;
    let first_seq = seq(row.get(0)?);
    let last_max = (SEQ_MAX - first_seq) as i64 + 1;
    if !(1..=last_max).contains(&count) || ![1, count].contains(&kinds_count) {
        return Err(corrupt(1, "it is not the number of frames"));
    }
    let payloads = row.get_ref(7)?.as_blob().map_err(|_| corrupt(7, "no bytes"))?;
    // Readers get them unchanged: a truncated payload would break the page that it is in.
    let (mut lines, mut from) = (0, 0);
    for to in memchr::memchr_iter(b'\n', payloads).chain([payloads.len()]) {
        if !is_whole(&payloads[from..to]) {
            return Err(corrupt(7, "a payload is not a JSON value"));
        }
        (lines, from) = (lines + 1, to + 1);
    }
    if lines != count {
        return Err(corrupt(7, "the number of payloads is not that of frames"));
    }
    std::str::from_utf8(payloads).map_err(|err| Error::Utf8Error(7, err))?;
    Ok(Block {
        first_seq,
        count: count as u64,
        at: time(row, 2)?,
        segment: row.get(3)?,
        run: uuid(row, 4)?.map(RunId),
        task: uuid(row, 5)?.map(TaskId),
        kinds: if kinds.contains('\n') {
            Kinds::Each(kinds.split('\n').map(|kind| kind.to_owned().into()).collect())
        } else {
            Kinds::All(kinds.to_owned().into())
        },
        text: row.get::<_, Vec<u8>>(7)?.into(),
    })
}

/// Whether a payload looks like a JSON value. Nearly all are objects, and parsing each would cost
/// as much as sending it.
fn is_whole(payload: &[u8]) -> bool {
    match payload {
        [b'{', .., b'}'] => true,
        _ => match payload.trim_ascii() {
            [b'{', object @ ..] => object.ends_with(b"}"),
            value => serde_json::from_slice::<IgnoredAny>(value).is_ok(),
        },
    }
}

/// Reads the wanted blocks; one that is unreadable is left out.
pub fn blocks(
    conn: &Connection,
    left_out: &LeftOut,
    group: GroupNo,
    filter: &FrameFilter,
) -> rusqlite::Result<Vec<Block>> {
    let sql = format!(
        "SELECT {} FROM blocks WHERE key >= ?1 AND key < ?2 \
         AND (?3 IS NULL OR instr(kinds, ?3)) AND (?4 IS NULL OR task = ?4) \
         AND (?5 IS NULL OR segment = ?5) \
         AND (?6 IS NULL OR segment IN (0, ?6) OR task = ?7) ORDER BY key {}",
        COLUMNS,
        if filter.descending { "DESC" } else { "ASC" }
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let task = filter.task.as_ref().map(|id| id.0.as_bytes());
    let view = filter.view.map(|view| view.segment);
    let spans = filter.view.and_then(|view| view.task).map(|id| id.0.into_bytes());
    let (mut blocks, mut frames, mut bytes) = (Vec::new(), 0, 0);
    for (from, to) in ranges(conn, group, filter)? {
        let mut found =
            statement.query(params![from, to, filter.kind, task, filter.segment, view, spans])?;
        while frames < filter.frames_max && bytes < filter.bytes_max {
            let Some(row) = found.next()? else { break };
            let block = keyed(FRAMES, block)(row);
            let Some(block) = left_out.readable(conn, block)? else { continue };
            if filter.frames_max < u64::MAX {
                let wanted = block.frames().filter(|frame| filter.takes(&block, *frame));
                frames += wanted.count() as u64;
            }
            bytes += block.text.len();
            blocks.push(block);
        }
    }
    Ok(blocks)
}

/// Returns the ranges of keys of the wanted blocks, in the order in which they are read: a
/// segment is a small part of a long transcript.
fn ranges(
    conn: &Connection,
    group: GroupNo,
    filter: &FrameFilter,
) -> rusqlite::Result<Vec<(i64, i64)>> {
    let kept = truncation::seq(conn, group)?.unwrap_or_default() + 1;
    let least = filter.after.saturating_add(1).max(kept);
    let most = filter.before.unwrap_or(u64::MAX);
    let mut wanted = match (filter.view, filter.segment) {
        (Some(view), _) => vec![(least, most.min(view.first_opened)), (view.from, most)],
        (None, Some(segment)) => {
            let (opened, closed) = extent(conn, group, segment)?;
            vec![(opened, most.min(closed))]
        }
        (None, None) => vec![(least, most)],
    };
    if filter.descending {
        wanted.reverse();
    }
    let mut start = conn.prepare_cached(
        "SELECT coalesce(max(key), ?1) FROM blocks WHERE key >= ?1 AND key <= ?2",
    )?;
    let keys = wanted.into_iter().map(|(from, to)| (from.max(least), to));
    keys.filter(|(from, to)| from < to)
        .map(|(from, to)| {
            // A block that begins before the first wanted frame may hold it. No block spans the
            // truncation.
            let from = start.query_row([key(group, kept), key(group, from)], |row| row.get(0))?;
            let to = if to == u64::MAX { key(group + 1, 0) } else { key(group, to) };
            Ok((from, to))
        })
        .collect()
}

/// Returns the numbers of a segment's first frame, and of the first frame after it.
fn extent(conn: &Connection, group: GroupNo, segment: u32) -> rusqlite::Result<(u64, u64)> {
    let mut found = conn.prepare_cached(
        "SELECT opened_seq, closed_seq FROM segments WHERE no = ? AND segment = ?",
    )?;
    // Segment 0 ends where segment 1 begins, and has no row.
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?));
    let extent = found.query_row([group, segment.max(1)], row).optional()?;
    let after = |last: i64| last as u64 + 1;
    Ok(match (segment, extent) {
        (0, Some((opened, _))) => (0, opened as u64),
        (_, Some((opened, closed))) => (opened as u64, closed.map_or(u64::MAX, after)),
        (_, None) => (0, u64::MAX),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::sqlite::Database;

    /// AM-11: a segment has all frames from its first to its last; those before the first session
    /// are segment 0.
    #[test]
    fn a_segment_extends_from_its_first_frame_to_its_last() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
        let conn = Connection::open(database.path()).unwrap();
        conn.execute_batch(
            "INSERT INTO segments (no, segment, session, opened_seq, opened_at, closed_seq, \
             closed_at, end_reason) VALUES (7, 1, 'one', 3, 0, 8, 0, 'compacted'), \
             (7, 2, 'two', 9, 0, NULL, NULL, NULL)",
        )
        .unwrap();
        let extents = [0, 1, 2, 3].map(|segment| extent(&conn, 7, segment).unwrap());
        assert_eq!(extents, [(0, 3), (3, 9), (9, u64::MAX), (0, u64::MAX)]);
    }

    #[test]
    fn a_truncated_payload_is_not_whole() {
        for whole in ["{}", "{\"a\":1}", " {\"a\":1} \r", "7", "[1]", "\"a\"", "null"] {
            assert!(is_whole(whole.as_bytes()), "{whole}");
        }
        for truncated in ["", " ", "{", "}", "{\"a\":1", "\"a\":1}", "[1", "nul", "\"a"] {
            assert!(!is_whole(truncated.as_bytes()), "{truncated}");
        }
    }
}
