//! Frames as they are packed and shown: gap-free, byte for byte, JSON, one line each.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use greenroom_actors::{
    agent::acp,
    feed::{self, Chunk, Feed},
    frames::{Block, FrameWriter, Place, pack},
};
use greenroom_core::{
    GroupId, Json, Kinds, Lines, RunId, Said, SessionId, TaskId, Timestamp, Write,
};
use proptest::{collection::vec, prelude::*, sample::select};
use uuid::Uuid;
use world::{World, moves};

const BLOCK_BYTES: usize = 64 << 10;
const AT: Timestamp = Timestamp(1_795_199_999_007);

/// One frame as it should come out.
type Plain = (u64, String, String);

fn group() -> GroupId {
    "19:team@thread.v2".parse().unwrap()
}

/// Facts with the worst that callers and agents may put into them, small and large.
fn writes() -> impl Strategy<Value = Vec<Write>> {
    let nasty = select(&["", "\"\\", "\r\n", "\u{2028}data: x", "\0\u{1b}[1m", "ä🦀", "]]>"][..]);
    let size = prop_oneof![8 => 0..50_usize, 1 => 60_000..70_000_usize];
    let one = (nasty, size, 0..6_u8, 1..5_usize).prop_map(|(nasty, size, which, count)| {
        let text = format!("{nasty}{}", "x".repeat(size));
        let (run, task) = (RunId(Uuid::from_u128(1)), TaskId(Uuid::from_u128(2)));
        match which {
            0 => Write::AgentOutputRejected { run, reason: text, bytes: "eA==".into() },
            1 => {
                let pretty = format!("[\r\n{}\n]", serde_json::to_string(&text).unwrap());
                Write::TurnStarted { task, prompt: Json::parse(pretty).unwrap(), strategy: None }
            }
            2 => Write::PromptSent {
                id: 7,
                session: SessionId(text.clone().into()),
                prompt: Json::write(&[text]).unwrap(),
            },
            3 => Write::SegmentStarted {
                segment: 1,
                parent: None,
                session: SessionId(text.into()),
                provenance: None,
            },
            4 => Write::RunStopping { run },
            _ => {
                let line = format!("{{\"n\":{}}}", serde_json::to_string(&text).unwrap());
                let kinds = (0..count).map(|n| if n % 2 == 0 { "a/b" } else { "c" }.into());
                let lines = Lines {
                    count: count as u64,
                    kinds: Kinds::Each(kinds.collect()),
                    text: vec![line; count].join("\n").into(),
                };
                let fold = greenroom_core::Fold::default();
                Write::Said(Said { run, task: Some(task), lines, fold })
            }
        }
    });
    vec(one, 0..12)
}

/// What the facts are as frames, by their own words.
fn plainly(first_seq: u64, writes: &[Write]) -> Vec<Plain> {
    let mut frames: Vec<(String, String)> = Vec::new();
    for write in writes {
        match write {
            Write::Said(said) => {
                for (number, line) in said.lines.text.split('\n').enumerate() {
                    let kind = match &said.lines.kinds {
                        Kinds::All(kind) => kind.to_string(),
                        Kinds::Each(kinds) => kinds[number].to_string(),
                    };
                    frames.push((kind, line.to_owned()));
                }
            }
            Write::PromptSent { id, session, prompt } => {
                frames.push((write.kind().into(), acp::prompt_line(*id, session, prompt)));
            }
            _ if write.frames() == 0 => {}
            _ => frames.push((write.kind().into(), write.payload())),
        }
    }
    (first_seq..).zip(frames).map(|(seq, (kind, payload))| (seq, kind, payload)).collect()
}

fn shown(blocks: &[Block]) -> Vec<Plain> {
    let frames = blocks.iter().flat_map(|block| block.frames());
    frames.map(|f| (f.seq, f.kind.to_owned(), f.payload.to_owned())).collect()
}

fn check_blocks(blocks: &[Block]) -> Result<(), TestCaseError> {
    for block in blocks {
        let alone = block.count == 1;
        prop_assert!(alone || block.text.len() <= BLOCK_BYTES, "{} bytes", block.text.len());
        prop_assert_eq!(block.frames().count() as u64, block.count);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// I3, AM-10: no gap, nothing changed, and no block over 64 KiB but a frame that is longer.
    #[test]
    fn facts_are_packed_as_they_are(before in 0..9_u64, writes in writes()) {
        let mut place = Place { last_seq: before, ..Place::default() };
        let blocks = pack(&mut place, AT, &writes);
        prop_assert_eq!(shown(&blocks), plainly(before + 1, &writes));
        prop_assert_eq!(place.last_seq, before + writes.iter().map(Write::frames).sum::<u64>());
        check_blocks(&blocks)?;
    }

    /// RELIABILITY C15: a frame is one line of JSON that says what the block says.
    #[test]
    fn frames_are_shown_as_json_on_one_line(writes in writes()) {
        let blocks = pack(&mut Place::default(), AT, &writes);
        for block in &blocks {
            let writer = FrameWriter::new(&group(), block);
            for frame in block.frames() {
                let mut json = Vec::new();
                writer.json(frame, &mut json);
                let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
                let task = block.task.map(|task| task.to_string());
                let run = block.run.map(|run| run.to_string());
                let payload: serde_json::Value = serde_json::from_str(frame.payload).unwrap();
                prop_assert_eq!(value, serde_json::json!({
                    "seq": frame.seq, "at": "2026-11-20T18:39:59.007Z", "group": group(),
                    "segment": block.segment, "run": run, "task": task, "kind": frame.kind,
                    "payload": payload,
                }));
                let mut event = Vec::new();
                writer.event(frame, &mut event);
                let json = std::str::from_utf8(&json).unwrap();
                let (seq, kind) = (frame.seq, frame.kind);
                let expected = format!("id: {seq}\nevent: {kind}\ndata: {json}\n\n");
                prop_assert_eq!(std::str::from_utf8(&event).unwrap(), expected);
                prop_assert!(!json.contains(['\r', '\n']), "a line's end within data");
            }
        }
    }

    /// AM-16: what live readers get is what they would have read.
    #[test]
    fn the_feed_shows_what_was_stored(writes in vec(writes(), 1..4)) {
        let feed = Feed::default();
        let _reader = feed.subscribe();
        let mut place = Place::default();
        let mut expected = Vec::new();
        for writes in &writes {
            let blocks = pack(&mut place, AT, writes);
            expected.extend(Chunk::encode(&group(), &blocks, 0).map(|chunk| chunk.events));
            feed::publish(&feed, &group(), &blocks, place.last_seq);
        }
        let tail = feed.borrow().clone();
        prop_assert_eq!(tail.last_seq, place.last_seq);
        let mut next = place.last_seq;
        for chunk in tail.chunks.iter().rev() {
            prop_assert_eq!(chunk.last_seq, next, "no gap");
            next = chunk.first_seq - 1;
        }
        let kept: Vec<_> = tail.chunks.iter().map(|chunk| chunk.events.clone()).collect();
        prop_assert_eq!(&kept[..], &expected[expected.len() - kept.len()..], "the newest");
        let bytes: usize = kept.iter().map(|events| events.len()).sum();
        prop_assert!(bytes <= 1 << 20 || kept.len() == 1, "{bytes} bytes are kept");
    }

    /// AM-11, AM-12: a whole history's frames belong to the segment, run and task that they name.
    #[test]
    fn frames_belong_where_they_were_said(history in moves(120)) {
        let mut world = World::default();
        let mut place = Place::default();
        for next in history {
            let committed = world.play(next).map_err(TestCaseError::fail)?;
            let Some((at, writes)) = committed else { continue };
            let blocks = pack(&mut place, at, &writes);
            prop_assert_eq!(shown(&blocks), plainly(place.last_seq + 1 - blocks.iter()
                .map(|block| block.count).sum::<u64>(), &writes));
            check_blocks(&blocks)?;
            prop_assert_eq!(place.last_seq, world.group.head().last_seq);
            prop_assert_eq!(place.segment, world.group.head().segment);
            prop_assert_eq!(place.run, world.group.run().map(|run| run.id));
            prop_assert_eq!(place.task, world.group.current().map(|task| task.id));
            for block in &blocks {
                for frame in block.frames() {
                    let payload: serde_json::Value = serde_json::from_str(frame.payload).unwrap();
                    if let Some(task) = payload["task"].as_str() {
                        let of_block = block.task.map(|task| task.to_string());
                        prop_assert_eq!(Some(task), of_block.as_deref());
                    }
                    let rotates = ["greenroom/segment_ended", "greenroom/segment_started"];
                    if rotates.contains(&frame.kind) {
                        prop_assert_eq!(payload["segment"].as_u64(), Some(block.segment.into()));
                    }
                }
            }
        }
    }
}

/// A chunk for a reader that has some of it begins behind that.
#[test]
fn a_chunk_begins_where_its_reader_is() {
    let writes = vec![Write::GroupArchived {}, Write::GroupArchived {}, Write::GroupArchived {}];
    let blocks = pack(&mut Place::default(), AT, &writes);
    let chunk = Chunk::encode(&group(), &blocks, 2).unwrap();
    assert_eq!((chunk.first_seq, chunk.last_seq), (3, 3));
    assert!(chunk.events.starts_with(b"id: 3\n"), "{:?}", chunk.events);
    assert!(Chunk::encode(&group(), &[], 0).is_none());
}

/// I11: the tail that readers share is bounded, but for one chunk that is larger; nothing is kept
/// for nobody.
#[test]
fn the_feed_keeps_a_bounded_tail() {
    const TAIL_BYTES_MAX: usize = 1 << 20;
    let rejected = |bytes: usize| {
        let (run, reason) = (RunId(Uuid::from_u128(1)), "x".repeat(bytes));
        vec![Write::AgentOutputRejected { run, reason, bytes: String::new() }]
    };
    let feed = Feed::default();
    let mut place = Place::default();
    let mut publish = |bytes| {
        let blocks = pack(&mut place, AT, &rejected(bytes));
        feed::publish(&feed, &group(), &blocks, place.last_seq);
        let tail = feed.borrow();
        let kept: usize = tail.chunks.iter().map(|chunk| chunk.events.len()).sum();
        (tail.chunks.len(), kept)
    };
    assert_eq!(publish(10), (0, 0), "nobody reads");
    let _reader = feed.subscribe();
    for _ in 0..30 {
        let (_, kept) = publish(100_000);
        assert!(kept <= TAIL_BYTES_MAX, "{kept} bytes");
    }
    assert_eq!(publish(100_000).0, 10);
    assert_eq!(publish(2 * TAIL_BYTES_MAX).0, 1, "the newest is always kept");
}
