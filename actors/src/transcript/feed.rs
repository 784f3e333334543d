//! A group's feed: wakes its readers with the last frame's number and a bounded tail of new frames.
//!
//! A reader that keeps up is served from the tail, which all readers share. A slower reader reads
//! from the database at its own pace and needs no memory (I11).

use std::sync::Arc;

use bytes::Bytes;
use greenroom_core::GroupId;
use tokio::sync::watch;

use crate::transcript::frame::{Block, FrameWriter};

/// The greatest size of the tail. One larger chunk is kept.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// The writing end of a group's feed. It is the group's, not an actor's: readers stay connected
/// while the actor is rebuilt, and may connect before there is one.
pub type Feed = watch::Sender<Arc<Tail>>;

/// The state of a feed.
#[derive(Debug, Default)]
pub struct Tail {
    /// The last durable frame (I3).
    pub last_seq: u64,
    /// The newest frames, encoded as Server-Sent Events, oldest first, without a gap.
    pub chunks: Vec<Chunk>,
    /// Whether the group is deleted.
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

/// What a reader does next.
#[derive(Clone, Debug)]
pub enum Next {
    /// It sends the frames that directly follow its last one.
    Chunk(Chunk),
    /// It reads the database: the tail does not have the frame after its last one.
    Disk,
    /// It waits: it has the last frame.
    Nothing,
    /// It ends: the group is deleted.
    Gone,
}

impl Tail {
    /// Returns what a reader does next whose last frame is `cursor`. No frame is skipped, whatever
    /// the tail holds (I3).
    pub fn after(&self, cursor: u64) -> Next {
        if self.gone {
            return Next::Gone;
        }
        match self.chunks.iter().find(|chunk| chunk.first_seq == cursor + 1) {
            Some(chunk) => Next::Chunk(chunk.clone()),
            None if cursor < self.last_seq => Next::Disk,
            None => Next::Nothing,
        }
    }
}

impl Chunk {
    /// Encodes the frames of `blocks` with numbers above `after`, up to the first missing one.
    pub fn encode(group: &GroupId, blocks: &[Block], after: u64) -> Option<Self> {
        let blocks = &blocks[blocks.partition_point(|block| block.last_seq() <= after)..];
        let joined = blocks.windows(2).take_while(|two| two[0].last_seq() + 1 == two[1].first_seq);
        let blocks = &blocks[..blocks.len().min(joined.count() + 1)];
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

/// Publishes newly stored `blocks` to the readers.
pub fn publish(feed: &Feed, group: &GroupId, blocks: &[Block], last_seq: u64) {
    let read = feed.receiver_count() > 0;
    let mut chunks = if read { feed.borrow().chunks.clone() } else { Vec::new() };
    if read && let Some(chunk) = Chunk::encode(group, blocks, 0) {
        // If an actor stopped between commit and publish, some frames are only on disk.
        if chunks.last().is_some_and(|last| last.last_seq + 1 != chunk.first_seq) {
            chunks.clear();
        }
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

/// Ends the feed of a deleted group.
pub fn end(feed: &Feed) {
    feed.send_replace(Arc::new(Tail { gone: true, ..Tail::default() }));
}

#[cfg(test)]
mod tests {
    use greenroom_core::{Kinds, Timestamp};

    use super::*;

    fn block(first_seq: u64, count: u64) -> Block {
        Block {
            first_seq,
            count,
            at: Timestamp(0),
            segment: 1,
            run: None,
            task: None,
            kinds: Kinds::All("session/update".into()),
            text: vec!["{}"; usize::try_from(count).unwrap_or_default()].join("\n").into(),
        }
    }

    /// The tail of a feed with one reader after each of these lists was published.
    fn published(blocks: &[&[Block]]) -> Arc<Tail> {
        let feed = Feed::default();
        let reader = feed.subscribe();
        let group = "work".parse().unwrap_or_else(|_| unreachable!());
        for blocks in blocks {
            publish(&feed, &group, blocks, blocks.last().map_or(0, Block::last_seq));
        }
        reader.borrow().clone()
    }

    /// What a reader does whose last frame is `cursor`: a chunk's first and last frame, or a word.
    fn next(tail: &Tail, cursor: u64) -> Result<(u64, u64), &'static str> {
        match tail.after(cursor) {
            Next::Chunk(chunk) => Ok((chunk.first_seq, chunk.last_seq)),
            Next::Disk => Err("disk"),
            Next::Nothing => Err("nothing"),
            Next::Gone => Err("gone"),
        }
    }

    #[test]
    fn a_reader_gets_the_frames_that_directly_follow() {
        let tail = published(&[&[block(1, 2), block(3, 1)], &[block(4, 2)]]);
        let expected =
            [Ok((1, 3)), Err("disk"), Err("disk"), Ok((4, 5)), Err("disk"), Err("nothing")];
        for (cursor, expected) in (0..).zip(expected) {
            assert_eq!(next(&tail, cursor), expected, "{cursor}");
        }
    }

    /// I3: if frame n + 2 is published after frame n, a reader with frame n reads the database.
    #[test]
    fn a_frame_that_was_not_published_is_read_from_disk() {
        let tail = published(&[&[block(1, 3)], &[block(5, 1)]]);
        assert_eq!(next(&tail, 3), Err("disk"));
        assert_eq!(next(&tail, 4), Ok((5, 5)));
        assert_eq!(next(&tail, 0), Err("disk"), "the tail has no gap in it");
        let group = "work".parse().unwrap_or_else(|_| unreachable!());
        let chunk = Chunk::encode(&group, &[block(1, 2), block(5, 1), block(6, 1)], 2);
        assert_eq!(chunk.map(|chunk| (chunk.first_seq, chunk.last_seq)), Some((5, 6)));
        let within = published(&[&[block(1, 1), block(3, 1)]]);
        assert_eq!((next(&within, 0), next(&within, 1)), (Ok((1, 1)), Err("disk")));
    }

    #[test]
    fn a_deleted_group_ends_the_stream() {
        let feed = Feed::default();
        let reader = feed.subscribe();
        end(&feed);
        assert_eq!(next(&reader.borrow(), 0), Err("gone"));
    }
}
