//! Reading frames: any blocks with any filter, compared with a plain list of frames.

use greenroom_actors::{
    storage::{FrameFilter, GroupCommit, ReadStore},
    transcript::frame::{Block, Frame, payload},
};
use greenroom_core::{Fact, Kinds, Place, Recorded, RunId, TaskId, Timestamp};
use greenroom_testing::world::Action;
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use uuid::Uuid;

use super::{
    Engine,
    actor::{Actor, commit},
    open,
};

/// One frame of the plain list.
#[derive(Clone, Debug, PartialEq)]
struct Plain {
    seq: u64,
    kind: String,
    payload: String,
    task: Option<TaskId>,
    segment: u32,
}

/// A block's kinds and payload sizes, its task and whether a new segment begins.
type Shape = (Vec<(&'static str, usize)>, Option<u128>, bool);

const KINDS: [&str; 4] = ["session/update", "session/update_more", "greenroom/task_queued", "x"];

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let frames = vec((select(&KINDS[..]), 0..40_usize), 1..6);
    vec((frames, prop::option::of(0..3_u128), any::<bool>()), 1..12)
}

fn filters() -> impl Strategy<Value = FrameFilter> {
    let seq = prop_oneof![8 => 0..40_u64, 1 => Just(u64::MAX), 1 => Just(1 << 36)];
    (
        seq.clone(),
        prop::option::of(seq),
        prop::option::of(select(&["session/update", "x", "session", "none"][..])),
        prop::option::of(0..4_u128),
        prop::option::of(0..5_u32),
        any::<bool>(),
    )
        .prop_map(|(after, before, kind, task, segment, descending)| FrameFilter {
            after,
            before,
            kind: kind.map(str::to_owned),
            task: task.map(|task| TaskId(Uuid::from_u128(task))),
            segment,
            view: None,
            descending,
            frames_max: u64::MAX,
            bytes_max: usize::MAX,
        })
}

/// Stores a group with blocks of these shapes. Returns its blocks, and its frames as a plain list.
fn stored<E: Engine>(engine: &E, shapes: &[Shape]) -> (Vec<Block>, Vec<Plain>) {
    let mut actor = Actor::new(5);
    let mut made = actor.play(Action::Configure(0)).unwrap();
    let mut neighbours = [Actor::new(4), Actor::new(6)];
    let around: Vec<GroupCommit> =
        neighbours.iter_mut().map(|actor| actor.play(Action::Configure(0)).unwrap()).collect();
    let mut blocks = std::mem::take(&mut made.blocks);
    for (frames, task, rotates) in shapes {
        let last = blocks.last().unwrap();
        let kinds: Vec<_> = frames.iter().map(|(kind, _)| (*kind).into()).collect();
        let alike = kinds.windows(2).all(|pair: &[greenroom_core::FrameKind]| pair[0] == pair[1]);
        let payloads: Vec<String> =
            frames.iter().map(|(_, bytes)| format!("\"{}\"", "ü".repeat(*bytes))).collect();
        blocks.push(Block {
            first_seq: last.last_seq() + 1,
            count: frames.len() as u64,
            at: Timestamp(7),
            segment: last.segment + u32::from(*rotates),
            run: Some(RunId(Uuid::from_u128(1))),
            task: task.map(|task| TaskId(Uuid::from_u128(task))),
            kinds: if alike { Kinds::All(kinds[0].clone()) } else { Kinds::Each(kinds) },
            text: payloads.join("\n").into(),
        });
    }
    made.summary.state.last_seq = blocks.last().unwrap().last_seq();
    // Its fact is its first frame: the other frames get a placeholder fact each.
    let first = made.facts[0].place;
    made.facts.extend((first.seq + 1..=made.summary.state.last_seq).map(|seq| {
        let place = Place { seq, ..first };
        Recorded { place, fact: Fact::GroupArchived {} }
    }));
    made.blocks = blocks.clone();
    let mut store = engine.store();
    commit(&mut store, &around);
    commit(&mut store, &[made]);
    let plain = blocks.iter().flat_map(|block| {
        block.frames().map(|frame| Plain {
            seq: frame.seq,
            kind: frame.kind.to_owned(),
            payload: frame.payload.to_owned(),
            task: block.task,
            segment: block.segment,
        })
    });
    let plain = plain.collect();
    (blocks, plain)
}

fn matching(blocks: &[Block], filter: &FrameFilter) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for block in blocks {
        let mut frames: Vec<Frame> = block.frames().filter(|f| filter.takes(block, *f)).collect();
        if filter.descending {
            frames.reverse();
        }
        all.extend(frames.into_iter().map(|frame| (frame.seq, frame.payload.to_owned())));
    }
    all
}

fn expected(plain: &[Plain], filter: &FrameFilter) -> Vec<(u64, String)> {
    let mut wanted: Vec<_> = plain
        .iter()
        .filter(|frame| frame.seq > filter.after)
        .filter(|frame| filter.before.is_none_or(|before| frame.seq < before))
        .filter(|frame| filter.kind.as_ref().is_none_or(|kind| frame.kind == *kind))
        .filter(|frame| filter.task.is_none_or(|task| frame.task == Some(task)))
        .filter(|frame| filter.segment.is_none_or(|segment| frame.segment == segment))
        .map(|frame| (frame.seq, frame.payload.clone()))
        .collect();
    if filter.descending {
        wanted.reverse();
    }
    wanted
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// AM-10: without gaps, byte for byte; every filter returns exactly the frames that it names.
pub fn frames_are_read_as_they_were_written<E: Engine>() {
    TestRunner::new(config(60))
        .run(&(shapes(), vec(filters(), 20)), |(shapes, filters)| {
            let (_dir, engine, _, read_store) = open::<E>();
            let (blocks, plain) = stored(&engine, &shapes);
            let seqs: Vec<u64> = plain.iter().map(|frame| frame.seq).collect();
            prop_assert_eq!(&seqs, &(1..=plain.len() as u64).collect::<Vec<_>>());
            for frame in &plain {
                prop_assert_eq!(payload(&blocks, frame.seq), Some(&*frame.payload));
            }
            prop_assert_eq!(payload(&blocks, plain.len() as u64 + 1), None);
            for filter in filters {
                let read = read_store.blocks(5, &filter).unwrap();
                prop_assert!(read.iter().all(|block| blocks.contains(block)));
                prop_assert_eq!(
                    matching(&read, &filter),
                    expected(&plain, &filter),
                    "{:?}",
                    filter
                );
            }
            Ok(())
        })
        .unwrap();
}

/// I11: a read exceeds its limits by at most one block, and the next read continues where it ended.
pub fn a_read_stops_at_its_limits_and_the_next_continues<E: Engine>() {
    let limits = (1..8_u64, prop_oneof![Just(usize::MAX), 1..200_usize]);
    TestRunner::new(config(60))
        .run(&(shapes(), filters(), limits), |(shapes, filter, (frames_max, bytes_max))| {
            let (_dir, engine, _, read_store) = open::<E>();
            let (blocks, plain) = stored(&engine, &shapes);
            let mut filter = FrameFilter { frames_max, bytes_max, ..filter };
            let wanted = expected(&plain, &filter);
            let mut pages = Vec::new();
            for _ in 0..=blocks.len() {
                let read = read_store.blocks(5, &filter).unwrap();
                let Some((last, others)) = read.split_last() else { break };
                let bytes: usize = others.iter().map(|block| block.text.len()).sum();
                let before_last = matching(others, &filter).len() as u64;
                prop_assert!(
                    bytes < bytes_max && before_last < frames_max,
                    "at most one block over the limits"
                );
                pages.extend(matching(&read, &filter));
                if filter.descending {
                    filter.before = Some(last.first_seq);
                } else {
                    filter.after = last.last_seq();
                }
            }
            prop_assert_eq!(pages, wanted);
            Ok(())
        })
        .unwrap();
}
