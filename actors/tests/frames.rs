//! Frames as they are packed and encoded: without gaps, byte for byte, one line of JSON each.

use greenroom_actors::{
    acp,
    transcript::feed::{self, Chunk, Feed},
    transcript::frame::{Block, FrameWriter, pack},
};
use greenroom_core::{
    AgentOutput, Fact, Group, GroupId, GroupState, Json, Kinds, Lines, Place, Recorded, RunId,
    SessionId, Settings, TaskId, Timestamp,
};
use greenroom_testing::world::{World, actions};
use proptest::{collection::vec, prelude::*, sample::select};
use uuid::Uuid;

const BLOCK_BYTES: usize = 64 << 10;
const AT: Timestamp = Timestamp(1_795_199_999_007);

/// One expected frame: its number, kind and payload.
type Plain = (u64, String, String);

fn group() -> GroupId {
    "19:team@thread.v2".parse().unwrap()
}

/// Facts with the worst texts that callers and agents may send, small and large.
fn facts() -> impl Strategy<Value = Vec<Fact>> {
    let special = select(&["", "\"\\", "\r\n", "\u{2028}data: x", "\0\u{1b}[1m", "ä🦀", "]]>"][..]);
    let size = prop_oneof![8 => 0..50_usize, 1 => 60_000..70_000_usize];
    let one = (special, size, 0..6_u8, 1..5_usize).prop_map(|(special, size, which, count)| {
        let text = format!("{special}{}", "x".repeat(size));
        let (run, task) = (RunId(Uuid::from_u128(1)), TaskId(Uuid::from_u128(2)));
        match which {
            0 => Fact::AgentOutputRejected { run, reason: text, bytes: "eA==".into() },
            1 => {
                let pretty = format!("[\r\n{}\n]", serde_json::to_string(&text).unwrap());
                Fact::TurnStarted {
                    task,
                    prompt: Json::parse(pretty).unwrap(),
                    strategy: None,
                    after_restore: false,
                }
            }
            2 => Fact::PromptSent {
                session: SessionId(text.clone().into()),
                prompt: Json::write(&[text]).unwrap(),
            },
            3 => Fact::SegmentStarted {
                segment: 1,
                parent: None,
                session: SessionId(text.into()),
                provenance: None,
            },
            4 => Fact::RunStopping { run },
            _ => {
                let line = format!("{{\"n\":{}}}", serde_json::to_string(&text).unwrap());
                let kinds = (0..count).map(|n| if n % 2 == 0 { "a/b" } else { "c" }.into());
                let lines = Lines {
                    count: count as u64,
                    kinds: Kinds::Each(kinds.collect()),
                    text: vec![line; count].join("\n").into(),
                };
                let summary = greenroom_core::OutputSummary::default();
                Fact::AgentOutput(AgentOutput { lines, summary, late: None })
            }
        }
    });
    vec(one, 0..12)
}

/// Returns a group whose log ends with the frame `last_seq`.
fn group_at(last_seq: u64) -> Group {
    let state = GroupState { last_seq, ..GroupState::new(Settings::default()) };
    Group::restore(state, Vec::new(), None, None, [], Vec::new())
}

/// Returns the facts at the places that the group gives them.
fn record(group: &mut Group, facts: Vec<Fact>) -> Vec<Recorded> {
    facts.into_iter().map(|fact| group.record(fact, AT)).collect()
}

/// Returns the expected frames of the facts.
fn expected_frames(first_seq: u64, facts: &[Recorded]) -> Vec<Plain> {
    let mut frames: Vec<(String, String)> = Vec::new();
    for Recorded { place, fact } in facts {
        match fact {
            Fact::AgentOutput(output) => {
                for (number, line) in output.lines.text.split('\n').enumerate() {
                    let kind = match &output.lines.kinds {
                        Kinds::All(kind) => kind.to_string(),
                        Kinds::Each(kinds) => kinds[number].to_string(),
                    };
                    frames.push((kind, line.to_owned()));
                }
            }
            Fact::PromptSent { session, prompt } => {
                frames.push((fact.kind().into(), acp::prompt_line(place.seq, session, prompt)));
            }
            _ if fact.frames() == 0 => {}
            _ => frames.push((fact.kind().into(), fact.payload())),
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

    /// I3, AM-10: no gap, no change, and no block over 64 KiB except for a longer frame.
    #[test]
    fn facts_are_packed_unchanged_and_without_gaps(before in 0..9_u64, facts in facts()) {
        let mut group = group_at(before);
        let facts = record(&mut group, facts);
        let blocks = pack(AT, &facts);
        let expected = expected_frames(before + 1, &facts);
        prop_assert_eq!(group.state().last_seq, before + expected.len() as u64);
        prop_assert_eq!(shown(&blocks), expected);
        check_blocks(&blocks)?;
    }

    /// C15: a frame is one line of JSON with the values of its block.
    #[test]
    fn a_frame_is_one_line_of_json(facts in facts()) {
        let blocks = pack(AT, &record(&mut group_at(0), facts));
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
                prop_assert!(!json.contains(['\r', '\n']), "a line break within data");
            }
        }
    }

    /// AM-16: live readers get the frames that they would have read from the database.
    #[test]
    fn the_feed_has_the_stored_frames(facts in vec(facts(), 1..4)) {
        let feed = Feed::default();
        let _reader = feed.subscribe();
        let mut live = group_at(0);
        let mut expected = Vec::new();
        for facts in facts {
            let blocks = pack(AT, &record(&mut live, facts));
            expected.extend(Chunk::encode(&group(), &blocks, 0).map(|chunk| chunk.events));
            feed::publish(&feed, &group(), &blocks, live.state().last_seq);
        }
        let tail = feed.borrow().clone();
        let mut next = live.state().last_seq;
        prop_assert_eq!(tail.last_seq, next);
        for chunk in tail.chunks.iter().rev() {
            prop_assert_eq!(chunk.last_seq, next, "no gap");
            next = chunk.first_seq - 1;
        }
        let kept: Vec<_> = tail.chunks.iter().map(|chunk| chunk.events.clone()).collect();
        prop_assert_eq!(&kept[..], &expected[expected.len() - kept.len()..], "the newest");
        let bytes: usize = kept.iter().map(|events| events.len()).sum();
        prop_assert!(bytes <= 1 << 20 || kept.len() == 1, "{bytes} bytes are kept");
    }

    /// AM-11, AM-12: the frames of a whole history name their segment, run and task.
    #[test]
    fn frames_name_their_segment_run_and_task(history in actions(120)) {
        let mut world = World::default();
        for next in history {
            let before = world.group.state().last_seq;
            let committed = world.play(next).map_err(TestCaseError::fail)?;
            let Some((at, facts)) = committed else { continue };
            let blocks = pack(at, &facts);
            prop_assert_eq!(shown(&blocks), expected_frames(before + 1, &facts));
            check_blocks(&blocks)?;
            for block in &blocks {
                for frame in block.frames() {
                    let stated = |recorded: &Recorded| {
                        let place = Place { seq: frame.seq, ..recorded.place };
                        (recorded.place.seq..=recorded.last_seq()).contains(&frame.seq)
                            .then_some(place)
                    };
                    prop_assert_eq!(facts.iter().find_map(stated), Some(block.place(frame)));
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

/// A chunk for a reader that has its first frames starts after those.
#[test]
fn a_chunk_starts_after_the_frames_its_reader_has() {
    let facts = vec![Fact::GroupArchived {}, Fact::GroupArchived {}, Fact::GroupArchived {}];
    let blocks = pack(AT, &record(&mut group_at(0), facts));
    let chunk = Chunk::encode(&group(), &blocks, 2).unwrap();
    assert_eq!((chunk.first_seq, chunk.last_seq), (3, 3));
    assert!(chunk.events.starts_with(b"id: 3\n"), "{:?}", chunk.events);
    assert!(Chunk::encode(&group(), &[], 0).is_none());
}

/// I11: the tail that readers share is bounded, except for one larger chunk; without readers the
/// feed keeps nothing.
#[test]
fn the_feed_keeps_a_bounded_tail() {
    const TAIL_BYTES_MAX: usize = 1 << 20;
    let rejected = |bytes: usize| {
        let (run, reason) = (RunId(Uuid::from_u128(1)), "x".repeat(bytes));
        vec![Fact::AgentOutputRejected { run, reason, bytes: String::new() }]
    };
    let feed = Feed::default();
    let mut live = group_at(0);
    let mut publish = |bytes| {
        let blocks = pack(AT, &record(&mut live, rejected(bytes)));
        feed::publish(&feed, &group(), &blocks, live.state().last_seq);
        let tail = feed.borrow();
        let kept: usize = tail.chunks.iter().map(|chunk| chunk.events.len()).sum();
        (tail.chunks.len(), kept)
    };
    assert_eq!(publish(10), (0, 0), "no reader");
    let _reader = feed.subscribe();
    for _ in 0..30 {
        let (_, kept) = publish(100_000);
        assert!(kept <= TAIL_BYTES_MAX, "{kept} bytes");
    }
    assert_eq!(publish(100_000).0, 10);
    assert_eq!(publish(2 * TAIL_BYTES_MAX).0, 1, "the newest is always kept");
}
