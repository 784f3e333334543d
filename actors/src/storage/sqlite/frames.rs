//! The rows of frames: blocks, and how they are written.

use greenroom_core::Kinds;
use rusqlite::{Connection, params};

use super::rows::{int, key};
use crate::{storage::GroupNo, transcript::frame::Block};

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
