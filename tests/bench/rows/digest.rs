//! Digests: the time to read one by the length of the transcript, and the cost of the projection.

use std::time::Instant;

use crate::{
    Result, Scale,
    frame_path::{FramePath, Work},
    http::Connection,
    rows::fill,
    server::{connect, setup, start},
    table::{Line, median, ratio, us},
};

/// Frames of the short transcript.
const SHORT_FRAMES: usize = 1_000;
/// The reads of one measurement.
const READS: usize = 200;

/// `GET …/digest` of a short transcript and of one a thousand times as long, in turn (TD-11).
pub fn read(scale: &Scale) -> Result<Vec<Line>> {
    let server = start(setup())?;
    let mut client = connect(&server)?;
    fill(&mut client, "short", SHORT_FRAMES)?;
    fill(&mut client, "long", scale.many_frames)?;
    let (mut shorts, mut longs) = (vec![], vec![]);
    for _ in 0..scale.runs * 5 {
        shorts.push(latency(&mut client, "short")?);
        longs.push(latency(&mut client, "long")?);
    }
    let (short, long) = (median(shorts), median(longs));
    Ok(vec![Line {
        name: format!("digest of {} frames, beside that of {SHORT_FRAMES}", scale.many_frames),
        greenroom: us(long),
        limit: us(short),
        ratio: ratio(long, short),
        target: "≤ 1.2",
        holds: Some(long / short <= 1.2),
        ..Line::default()
    }])
}

/// Returns the seconds of a read.
fn latency(client: &mut Connection, group: &str) -> Result<f64> {
    let path = format!("/v1/groups/{group}/digest");
    let start = Instant::now();
    for _ in 0..READS {
        client.get(&path)?;
    }
    Ok(start.elapsed().as_secs_f64() / READS as f64)
}

/// The path of frames from an agent's lines to the disk, with digests and without.
pub fn fold(scale: &Scale) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (work, name) in [(Work::Stream, "a streamed frame"), (Work::Turns, "an empty turn")] {
        let (mut with, mut without) = (FramePath::start(true)?, FramePath::start(false)?);
        let count = scale.frames / if work == Work::Turns { 200 } else { 4 };
        let (mut dear, mut cheap) = (vec![], vec![]);
        with.cpu_seconds(work, count)?;
        without.cpu_seconds(work, count)?;
        for _ in 0..scale.runs * 2 {
            dear.push(with.cpu_seconds(work, count)?);
            cheap.push(without.cpu_seconds(work, count)?);
        }
        let (dear, cheap) = (median(dear), median(cheap));
        lines.push(Line {
            name: format!("processor time of {name} from line to disk, beside it without digests"),
            greenroom: us(dear),
            limit: us(cheap),
            ratio: ratio(dear, cheap),
            target: "≤ 1.15",
            holds: Some(dear / cheap <= 1.15),
            ..Line::default()
        });
    }
    Ok(lines)
}
