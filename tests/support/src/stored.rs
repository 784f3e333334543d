//! What a server leaves in its database: checked with greenroom's own reader, which
//! `greenroom verify` uses, and with the invariants that a log alone shows.

use std::path::Path;

use greenroom_actors::{
    projections::verify::verify,
    storage::{FrameFilter, GroupNo, ReadStore, StoreError, sqlite::Opener},
};
use greenroom_testing::invariants::{LogFrame, check_log};

const EVERYTHING: FrameFilter = FrameFilter {
    after: 0,
    before: None,
    kind: None,
    task: None,
    segment: None,
    view: None,
    descending: false,
    frames_max: u64::MAX,
    bytes_max: usize::MAX,
};

/// Returns all damage, all differences between the logs and the rows (I13), and how each broken
/// invariant of a log is broken first.
///
/// # Errors
///
/// The database cannot be read.
pub fn violations(database: &Path) -> Result<Vec<String>, StoreError> {
    let read_store = Opener::at(database).inspect()?;
    let mut found = read_store.damage()?;
    found.extend(read_store.strays()?);
    for (no, group, _) in read_store.group_index()?.groups {
        let verdict = verify(&read_store, no)?;
        let mut of_group = verdict.map(|verdict| verdict.differences).unwrap_or_default();
        of_group.extend(of_log(&read_store, no)?);
        found.extend(of_group.into_iter().map(|what| format!("{group}: {what}")));
    }
    Ok(found)
}

/// Checks a log that is kept from its first frame.
fn of_log(read_store: &impl ReadStore, no: GroupNo) -> Result<Vec<String>, StoreError> {
    let blocks = read_store.blocks(no, &EVERYTHING)?;
    if blocks.first().is_none_or(|first| first.first_seq != 1) {
        return Ok(Vec::new());
    }
    let frames = blocks.iter().flat_map(|block| {
        block.frames().map(|frame| LogFrame {
            place: block.place(frame),
            kind: frame.kind,
            payload: frame.payload,
        })
    });
    Ok(check_log(frames))
}
