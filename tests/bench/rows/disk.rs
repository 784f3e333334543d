//! The size of a frame on disk.

use std::fs;

use crate::{
    Result, Scale,
    database::checkpoint,
    rows::{GROUP, fill},
    server::{connect, setup, start},
    table::{Line, ratio},
};

const FRAME_BYTES: f64 = 200.0;

/// Bytes of the database for each frame, after the write-ahead log was moved into it.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let mut server = start(setup())?;
    let database = server.home.file("data/greenroom.db");
    let empty = fs::metadata(&database)?.len();
    let frames = fill(&mut connect(&server)?, GROUP, scale.history)? as f64;
    let log = fs::metadata(server.home.file("data/greenroom.db-wal"))?.len() as f64;
    server.terminate();
    server.wait_exit();
    checkpoint(&database)?;
    let bytes = (fs::metadata(&database)?.len() - empty) as f64 / frames;
    Ok(vec![Line {
        name: "disk for each 200-byte frame".into(),
        greenroom: format!("{bytes:.0} B (log meanwhile {:.0} MiB)", log / f64::from(1 << 20)),
        limit: format!("{FRAME_BYTES} B"),
        ratio: ratio(bytes, FRAME_BYTES),
        published: "291 B",
        target: "≤ 247 B",
        holds: Some(bytes <= 247.0),
    }])
}
