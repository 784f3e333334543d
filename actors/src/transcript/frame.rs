//! Frames: packs a step's facts into blocks, and writes blocks as JSON and Server-Sent Events.
//!
//! A block is one row with frames that share run, task and segment. That triples the rate of one
//! row a frame; `tests/bench` measures it.

use std::fmt::Write as _;

use bytes::Bytes;
use greenroom_core::{
    Fact, FrameKind, GroupId, Kinds, Lines, Place, Recorded, RunId, TaskId, Timestamp, json,
};

use crate::{acp, clock};

/// The greatest length of a block's text. A longer frame is a block of its own.
const BLOCK_BYTES: usize = 64 << 10;

/// Consecutive frames of a group that share run, task, segment and the time they were stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The first frame's number; the others follow without a gap (I3).
    pub first_seq: u64,
    /// The number of frames.
    pub count: u64,
    /// When they were stored.
    pub at: Timestamp,
    /// The segment they belong to.
    pub segment: u32,
    /// The run that was alive.
    pub run: Option<RunId>,
    /// The task that they belong to.
    pub task: Option<TaskId>,
    /// The kind of each frame.
    pub kinds: Kinds,
    /// Their payloads, one JSON value on one line each, with a line feed between them.
    pub text: Bytes,
}

/// One frame of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame<'a> {
    /// Its number.
    pub seq: u64,
    /// Its kind.
    pub kind: &'a str,
    /// Its payload, one JSON value.
    pub payload: &'a str,
}

impl Block {
    /// The last frame's number.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }

    /// Returns the place in the log under which a frame of the block is stored.
    pub fn place(&self, frame: Frame<'_>) -> Place {
        Place { seq: frame.seq, segment: self.segment, run: self.run, task: self.task }
    }

    /// The frames in order.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let text = std::str::from_utf8(&self.text).unwrap_or_default();
        let seqs = self.first_seq..=self.last_seq();
        seqs.zip(text.split('\n')).enumerate().map(|(at, (seq, payload))| Frame {
            seq,
            kind: match &self.kinds {
                Kinds::All(kind) => kind,
                // A stored block may have been damaged (AM-18).
                Kinds::Each(kinds) => kinds.get(at).map_or("", |kind| kind),
            },
            payload,
        })
    }
}

/// Returns the payload of the frame with the number `seq`, if one of the blocks holds it.
pub fn payload(blocks: &[Block], seq: u64) -> Option<&str> {
    let block = blocks.iter().find(|block| (block.first_seq..=block.last_seq()).contains(&seq))?;
    block.frames().find(|frame| frame.seq == seq).map(|frame| frame.payload)
}

/// Packs the facts of a step into blocks.
pub fn pack(at: Timestamp, facts: &[Recorded]) -> Vec<Block> {
    let mut packer = Packer { at, blocks: Vec::new(), open: None };
    for Recorded { place, fact } in facts {
        match fact {
            Fact::AgentOutput(output) => packer.push_lines(place, &output.lines),
            Fact::PromptSent { session, prompt } => {
                let line = acp::prompt_line(place.seq, session, prompt);
                packer.push(place, fact.kind(), &line);
            }
            _ if fact.frames() == 0 => {}
            fact => packer.push(place, fact.kind(), &fact.payload()),
        }
    }
    packer.flush();
    packer.blocks
}

/// Collects blocks.
struct Packer {
    at: Timestamp,
    blocks: Vec<Block>,
    open: Option<OpenBlock>,
}

/// A block that still grows.
struct OpenBlock {
    /// The place of its first frame.
    place: Place,
    kinds: Vec<FrameKind>,
    text: String,
}

impl Packer {
    fn push(&mut self, place: &Place, kind: &'static str, payload: &str) {
        let fits = self.open.as_ref().is_some_and(|open| {
            Place { seq: place.seq, ..open.place } == *place
                && open.text.len() + 1 + payload.len() <= BLOCK_BYTES
        });
        if !fits {
            self.flush();
        }
        let open = self.open.get_or_insert_with(|| OpenBlock {
            place: *place,
            kinds: Vec::new(),
            text: String::new(),
        });
        if !open.kinds.is_empty() {
            open.text.push('\n');
        }
        open.kinds.push(kind.into());
        open.text.push_str(payload);
    }

    fn push_lines(&mut self, place: &Place, lines: &Lines) {
        self.flush();
        let text = Bytes::from_owner(ArcText(lines.text.clone()));
        let mut from = 0;
        let mut packed = 0;
        while packed < lines.count {
            let (to, count) = split_block(&text[from..]);
            let count = count.min(lines.count - packed);
            let kinds = match &lines.kinds {
                Kinds::All(kind) => Kinds::All(kind.clone()),
                Kinds::Each(kinds) => {
                    let at = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
                    Kinds::Each(kinds[at(packed)..at(packed + count)].to_vec())
                }
            };
            self.blocks.push(Block {
                first_seq: place.seq + packed,
                count,
                at: self.at,
                segment: place.segment,
                run: place.run,
                task: place.task,
                kinds,
                text: text.slice(from..from + to),
            });
            packed += count;
            from += to + 1;
        }
    }

    fn flush(&mut self) {
        let Some(open) = self.open.take() else { return };
        let mut kinds = open.kinds;
        let count = kinds.len() as u64;
        let alike = kinds.windows(2).all(|pair| pair[0] == pair[1]);
        self.blocks.push(Block {
            first_seq: open.place.seq,
            count,
            at: self.at,
            segment: open.place.segment,
            run: open.place.run,
            task: open.place.task,
            kinds: if alike { Kinds::All(kinds.swap_remove(0)) } else { Kinds::Each(kinds) },
            text: open.text.into(),
        });
    }
}

struct ArcText(std::sync::Arc<String>);

impl AsRef<[u8]> for ArcText {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Returns where the first block of `text` ends, at a line's end, and its number of lines.
fn split_block(text: &[u8]) -> (usize, u64) {
    if text.len() <= BLOCK_BYTES {
        return (text.len(), memchr::memchr_iter(b'\n', text).count() as u64 + 1);
    }
    let end = memchr::memrchr(b'\n', &text[..BLOCK_BYTES])
        .or_else(|| memchr::memchr(b'\n', text))
        .unwrap_or(text.len());
    (end, memchr::memchr_iter(b'\n', &text[..end]).count() as u64 + 1)
}

/// Writes the frames of a block as the API shows them: so that any reader takes them, whatever the
/// agent wrote (C15).
pub struct FrameWriter<'a> {
    middle: String,
    block: &'a Block,
    /// Whether a payload may have a token that readers refuse: one look at the whole block is
    /// cheaper than one at each frame.
    has_odd_token: bool,
}

impl<'a> FrameWriter<'a> {
    /// A writer for the frames of `block`, a block of `group`.
    pub fn new(group: &GroupId, block: &'a Block) -> Self {
        let mut middle = String::with_capacity(192);
        let at = clock::rfc3339(block.at);
        // A group id has no character that JSON escapes.
        _ = write!(middle, r#","at":"{at}","group":"{group}","segment":{},"run":"#, block.segment);
        _ = match block.run {
            Some(run) => write!(middle, r#""{run}","task":"#),
            None => write!(middle, r#"null,"task":"#),
        };
        _ = match block.task {
            Some(task) => write!(middle, r#""{task}","kind":""#),
            None => write!(middle, r#"null,"kind":""#),
        };
        let has_odd_token = std::str::from_utf8(&block.text).is_ok_and(json::has_odd_token);
        Self { middle, block, has_odd_token }
    }

    /// Appends one frame of the block as a JSON object.
    pub fn json(&self, frame: Frame<'_>, out: &mut Vec<u8>) {
        debug_assert!((self.block.first_seq..=self.block.last_seq()).contains(&frame.seq));
        out.extend_from_slice(b"{\"seq\":");
        push_decimal(frame.seq, out);
        out.extend_from_slice(self.middle.as_bytes());
        out.extend_from_slice(frame.kind.as_bytes());
        out.extend_from_slice(b"\",\"payload\":");
        if self.has_odd_token || json::may_nest_too_deep(frame.payload) {
            out.extend_from_slice(json::readable(frame.payload).as_bytes());
        } else {
            out.extend_from_slice(frame.payload.as_bytes());
        }
        out.push(b'}');
    }

    /// Appends one frame of the block as a Server-Sent Event.
    pub fn event(&self, frame: Frame<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"id: ");
        push_decimal(frame.seq, out);
        out.extend_from_slice(b"\nevent: ");
        out.extend_from_slice(frame.kind.as_bytes());
        out.extend_from_slice(b"\ndata: ");
        self.json(frame, out);
        out.extend_from_slice(b"\n\n");
    }
}

fn push_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}
