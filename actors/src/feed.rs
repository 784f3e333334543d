//! What wakes a group's readers: the last frame's number, and a bounded tail of encoded frames.
//!
//! A reader that keeps up is served from the tail, which all readers share. One that falls behind
//! it reads from the database at its own pace and costs no memory (I11).

use std::sync::Arc;

use bytes::Bytes;
use greenroom_core::GroupId;
use tokio::sync::watch;

use crate::frames::{Block, FrameWriter};

/// The tail never holds more than this, but for one chunk that is larger.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// The writing end of a group's feed. It outlives the group's actor, so that readers stay through
/// a rebuild.
pub type Feed = watch::Sender<Arc<Tail>>;

/// What the readers of a group see at one moment.
#[derive(Debug, Default)]
pub struct Tail {
    /// The last durable frame (I3).
    pub last_seq: u64,
    /// The newest frames, encoded as Server-Sent Events, oldest first, without a gap.
    pub chunks: Vec<Chunk>,
    /// Whether the group is no more.
    pub gone: bool,
}

/// Consecutive frames, encoded once for all readers.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The first frame's number.
    pub first_seq: u64,
    /// The last frame's number.
    pub last_seq: u64,
    /// The frames as Server-Sent Events.
    pub events: Bytes,
}

impl Chunk {
    /// Encodes the frames of `blocks` whose numbers are above `after`.
    pub fn encode(group: &GroupId, blocks: &[Block], after: u64) -> Option<Self> {
        let (first, last) = (blocks.first()?, blocks.last()?);
        let text: usize = blocks.iter().map(|block| block.text.len()).sum();
        let count: u64 = blocks.iter().map(|block| block.count).sum();
        let mut events = Vec::with_capacity(text + usize::try_from(count).unwrap_or(0) * 320);
        for block in blocks {
            let writer = FrameWriter::new(group, block);
            for frame in block.frames().filter(|frame| frame.seq > after) {
                writer.event(frame, &mut events);
            }
        }
        Some(Self {
            first_seq: first.first_seq.max(after + 1),
            last_seq: last.last_seq(),
            events: events.into(),
        })
    }
}

/// Shows freshly stored `blocks` to the readers.
pub fn publish(feed: &Feed, group: &GroupId, blocks: &[Block], last_seq: u64) {
    let read = feed.receiver_count() > 0;
    let mut chunks = if read { feed.borrow().chunks.clone() } else { Vec::new() };
    if read && let Some(chunk) = Chunk::encode(group, blocks, 0) {
        chunks.push(chunk);
        let mut bytes: usize = chunks.iter().map(|chunk| chunk.events.len()).sum();
        let mut surplus = 0;
        while bytes > TAIL_BYTES_MAX && surplus + 1 < chunks.len() {
            bytes -= chunks[surplus].events.len();
            surplus += 1;
        }
        chunks.drain(..surplus);
    }
    feed.send_replace(Arc::new(Tail { last_seq, chunks, gone: false }));
}

/// Tells the readers that the group is no more.
pub fn end(feed: &Feed) {
    feed.send_replace(Arc::new(Tail { gone: true, ..Tail::default() }));
}
