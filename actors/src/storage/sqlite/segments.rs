//! The rows of segments: how they are written.

use greenroom_core::{EndReason, Provenance, Timestamp};
use rusqlite::{Connection, params};

use super::rows::{int, json};
use crate::{
    storage::{GroupNo, SegmentRecord},
    wire_name::wire_name,
};

/// Inserts a segment, open or closed.
pub fn insert(conn: &Connection, group: GroupNo, segment: &SegmentRecord) -> rusqlite::Result<()> {
    let closed = segment.closed.as_ref();
    conn.prepare_cached(
        "INSERT INTO segments (no, segment, parent, session, provenance, opened_seq, opened_at, \
         closed_seq, closed_at, end_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        group,
        segment.segment,
        segment.parent,
        &*segment.session.0,
        segment.provenance.as_ref().map(json),
        int(segment.opened.0),
        segment.opened.1.0,
        closed.map(|(seq, ..)| int(*seq)),
        closed.map(|(_, at, _)| at.0),
        closed.map(|(.., reason)| wire_name(reason)),
    ])?;
    Ok(())
}

/// Closes a segment; `last` is its last frame, and when that was stored.
pub fn close(
    conn: &Connection,
    group: GroupNo,
    segment: u32,
    end_reason: EndReason,
    last: (u64, Timestamp),
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE segments SET closed_seq = ?, closed_at = ?, end_reason = ? \
         WHERE no = ? AND segment = ?",
    )?
    .execute(params![int(last.0), last.1.0, wire_name(&end_reason), group, segment])?;
    Ok(())
}

/// Sets which of hermes' sessions the open segment has.
pub fn set_provenance(
    conn: &Connection,
    group: GroupNo,
    provenance: &Provenance,
) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE segments SET provenance = ? WHERE no = ? AND closed_seq IS NULL")?
        .execute(params![json(provenance), group])?;
    Ok(())
}
