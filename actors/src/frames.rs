//! Frames as they are stored and shown: from a step's facts to blocks, from blocks to JSON.
//!
//! A block is a row of frames that share run, task and segment. Packing frames is worth three
//! times the rate of a row for each; `tests/bench` measures it.

use std::fmt::Write as _;

use bytes::Bytes;
use greenroom_core::{FrameKind, GroupId, Kinds, Lines, RunId, TaskId, Timestamp, Write};

use crate::{agent::acp, clock};

/// A block's text is no longer than this, but for a longer frame, which is a block of its own.
const BLOCK_BYTES: usize = 64 << 10;

/// Consecutive frames of a group that share run, task, segment and the time they were stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The first frame's number; the others follow without a gap (I3).
    pub first_seq: u64,
    /// How many frames.
    pub count: u64,
    /// When they were stored.
    pub at: Timestamp,
    /// The segment they belong to.
    pub segment: u32,
    /// The run that was alive.
    pub run: Option<RunId>,
    /// The task within which they came.
    pub task: Option<TaskId>,
    /// What each one is.
    pub kinds: Kinds,
    /// Their payloads, each one JSON value on one line, with a line feed between them.
    pub text: Bytes,
}

/// One frame of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame<'a> {
    /// Its number.
    pub seq: u64,
    /// What it is.
    pub kind: &'a str,
    /// Its payload, one JSON value.
    pub payload: &'a str,
}

impl Block {
    /// The last frame's number.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.count - 1
    }

    /// The frames in order.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let text = std::str::from_utf8(&self.text).unwrap_or_default();
        let seqs = self.first_seq..=self.last_seq();
        seqs.zip(text.split('\n')).enumerate().map(|(at, (seq, payload))| Frame {
            seq,
            kind: match &self.kinds {
                Kinds::All(kind) => kind,
                // A stored block may have been damaged (SEEDS AM-18).
                Kinds::Each(kinds) => kinds.get(at).map_or("", |kind| kind),
            },
            payload,
        })
    }
}

/// What is in force while facts are packed: what a frame belongs to beside its own words.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The last frame's number so far.
    pub last_seq: u64,
    /// The open segment.
    pub segment: u32,
    /// The run that is alive.
    pub run: Option<RunId>,
    /// The task that has its slot.
    pub task: Option<TaskId>,
}

/// Packs the facts of a step into blocks, from `place` on, and moves `place` behind them.
pub fn pack(place: &mut Place, at: Timestamp, writes: &[Write]) -> Vec<Block> {
    let mut packer = Packer { at, blocks: Vec::new(), open: None };
    for write in writes {
        place.enter(write);
        match write {
            Write::Said(said) => packer.take_lines(place, said.run, said.task, &said.lines),
            Write::PromptSent { id, session, prompt } => {
                let line = acp::prompt_line(*id, session, prompt);
                packer.take(place, None, write.kind(), &line);
            }
            _ if write.frames() == 0 => {}
            fact => {
                packer.take(place, fact.task(), fact.kind(), &fact.payload());
            }
        }
        place.leave(write);
    }
    packer.close();
    packer.blocks
}

impl Place {
    /// What is in force for the fact's own frame.
    pub(crate) fn enter(&mut self, write: &Write) {
        match write {
            Write::SegmentStarted { segment, .. } => self.segment = *segment,
            Write::RunStarted { run, .. } => self.run = Some(*run),
            Write::TaskClaimed { task } | Write::TaskStarted { task, .. } => {
                self.task = Some(*task);
            }
            _ => {}
        }
    }

    /// What is in force after it.
    pub(crate) fn leave(&mut self, write: &Write) {
        match write {
            Write::RunExited { .. } => self.run = None,
            Write::TaskEnded { task, .. }
            | Write::TaskReleased { task }
            | Write::TaskRetrying { task, .. }
                if self.task == Some(*task) =>
            {
                self.task = None;
            }
            _ => {}
        }
    }
}

struct Packer {
    at: Timestamp,
    blocks: Vec<Block>,
    open: Option<Open>,
}

/// A block of facts that still grows.
struct Open {
    first_seq: u64,
    segment: u32,
    run: Option<RunId>,
    task: Option<TaskId>,
    kinds: Vec<FrameKind>,
    text: String,
}

impl Packer {
    fn take(&mut self, place: &mut Place, task: Option<TaskId>, kind: &'static str, payload: &str) {
        let task = task.or(place.task);
        let fits = self.open.as_ref().is_some_and(|open| {
            (open.segment, open.run, open.task) == (place.segment, place.run, task)
                && open.text.len() + 1 + payload.len() <= BLOCK_BYTES
        });
        if !fits {
            self.close();
        }
        place.last_seq += 1;
        let open = self.open.get_or_insert_with(|| Open {
            first_seq: place.last_seq,
            segment: place.segment,
            run: place.run,
            task,
            kinds: Vec::new(),
            text: String::new(),
        });
        if !open.kinds.is_empty() {
            open.text.push('\n');
        }
        open.kinds.push(kind.into());
        open.text.push_str(payload);
    }

    fn take_lines(&mut self, place: &mut Place, run: RunId, task: Option<TaskId>, lines: &Lines) {
        self.close();
        let text = Bytes::from_owner(ArcText(lines.text.clone()));
        let mut from = 0;
        let mut taken = 0;
        while taken < lines.count {
            let (to, count) = cut(&text[from..]);
            let count = count.min(lines.count - taken);
            let kinds = match &lines.kinds {
                Kinds::All(kind) => Kinds::All(kind.clone()),
                Kinds::Each(kinds) => {
                    let at = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
                    Kinds::Each(kinds[at(taken)..at(taken + count)].to_vec())
                }
            };
            self.blocks.push(Block {
                first_seq: place.last_seq + 1,
                count,
                at: self.at,
                segment: place.segment,
                run: Some(run),
                task,
                kinds,
                text: text.slice(from..from + to),
            });
            place.last_seq += count;
            taken += count;
            from += to + 1;
        }
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let mut kinds = open.kinds;
        let count = kinds.len() as u64;
        let alike = kinds.windows(2).all(|pair| pair[0] == pair[1]);
        self.blocks.push(Block {
            first_seq: open.first_seq,
            count,
            at: self.at,
            segment: open.segment,
            run: open.run,
            task: open.task,
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

/// Where the first block of `text` ends, at a line's end, and how many lines are in it.
fn cut(text: &[u8]) -> (usize, u64) {
    if text.len() <= BLOCK_BYTES {
        return (text.len(), memchr::memchr_iter(b'\n', text).count() as u64 + 1);
    }
    let end = memchr::memrchr(b'\n', &text[..BLOCK_BYTES])
        .or_else(|| memchr::memchr(b'\n', text))
        .unwrap_or(text.len());
    (end, memchr::memchr_iter(b'\n', &text[..end]).count() as u64 + 1)
}

/// Writes frames as the API shows them.
pub struct FrameWriter<'a> {
    middle: String,
    block: &'a Block,
}

impl<'a> FrameWriter<'a> {
    /// For the frames of `block`, a block of `group`.
    pub fn new(group: &GroupId, block: &'a Block) -> Self {
        let mut middle = String::with_capacity(192);
        let at = clock::rfc3339(block.at);
        // A group id has no character that JSON would escape.
        _ = write!(middle, r#","at":"{at}","group":"{group}","segment":{},"run":"#, block.segment);
        _ = match block.run {
            Some(run) => write!(middle, r#""{run}","task":"#),
            None => write!(middle, r#"null,"task":"#),
        };
        _ = match block.task {
            Some(task) => write!(middle, r#""{task}","kind":""#),
            None => write!(middle, r#"null,"kind":""#),
        };
        Self { middle, block }
    }

    /// Appends one frame of the block as a JSON object.
    pub fn json(&self, frame: Frame<'_>, out: &mut Vec<u8>) {
        debug_assert!((self.block.first_seq..=self.block.last_seq()).contains(&frame.seq));
        out.extend_from_slice(b"{\"seq\":");
        decimal(frame.seq, out);
        out.extend_from_slice(self.middle.as_bytes());
        out.extend_from_slice(frame.kind.as_bytes());
        out.extend_from_slice(b"\",\"payload\":");
        out.extend_from_slice(frame.payload.as_bytes());
        out.push(b'}');
    }

    /// Appends one frame of the block as a Server-Sent Event.
    pub fn event(&self, frame: Frame<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"id: ");
        decimal(frame.seq, out);
        out.extend_from_slice(b"\nevent: ");
        out.extend_from_slice(frame.kind.as_bytes());
        out.extend_from_slice(b"\ndata: ");
        self.json(frame, out);
        out.extend_from_slice(b"\n\n");
    }
}

fn decimal(mut number: u64, out: &mut Vec<u8>) {
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
