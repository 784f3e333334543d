//! Logs that are cut: what is left verifies, and is read as it was; what lives notices nothing.

use std::cell::Cell;

use greenroom_actors::{
    agent::sessions::Reread,
    base::Ended,
    frames::Block,
    retention::fold::{Fold, Found},
    storage::{Archive, Cut, FrameFilter, Store, StoredBase, TaskFilter},
    verify::verify,
};
use greenroom_core::{
    Compaction, Group, Head, RunId, Task, Timestamp,
    lock::{BootId, Uptime},
};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use uuid::Uuid;

use crate::{
    Engine,
    actor::{ANSWER, Actor, READY, SUBMIT, commit},
    world::{Move, Spoken, moves},
};

const ALL_TASKS: TaskFilter = TaskFilter { state: None, kind: None, after: 0, limit: 10_000 };
const UP: Uptime = Uptime { boot: BootId(Uuid::nil()), ms: 0 };
/// However a history's clock was set, its frames are older.
pub const LATE: Timestamp = Timestamp(i64::MAX);

fn everything() -> FrameFilter {
    FrameFilter { frames_max: u64::MAX, bytes_max: usize::MAX, ..FrameFilter::default() }
}

/// What there is to cut of a group, up to the frame `last`, in the order in which it is cut.
pub fn cut(
    store: &mut impl Store,
    archive: &impl Archive,
    no: u32,
    horizon: Timestamp,
    mut last: u64,
) -> Result<(), String> {
    'again: loop {
        let Some(mut fold) = Fold::begin(archive, no, LATE, horizon, last).unwrap() else {
            return Ok(());
        };
        loop {
            match fold.go_on(archive).unwrap() {
                Found::More(next) => fold = *next,
                Found::Cut(next, cut) => {
                    assert!(store.cut(&cut).unwrap(), "{cut:?}");
                    fold = *next;
                }
                Found::Beyond(seq) => {
                    assert!(seq < last);
                    last = seq;
                    continue 'again;
                }
                Found::Nothing => return Ok(()),
                Found::Differs(difference) => return Err(difference),
            }
        }
    }
}

/// What a group's actor would begin with.
fn restored(store: &mut impl Store, actor: &mut Actor) -> Option<(Head, Group)> {
    let found = store.adopt(actor.no, UP).unwrap()?;
    actor.epoch = found.epoch;
    let head = found.head.clone();
    Some((
        head,
        Group::restore(
            found.head,
            found.tasks,
            found.run,
            None,
            found.compactions,
            found.permissions,
        ),
    ))
}

fn differences(archive: &impl Archive, no: u32) -> Vec<String> {
    verify(archive, no).unwrap().map(|verdict| verdict.differences).unwrap_or_default()
}

/// I13, I3: a history that is cut again and again while it goes on, with crashes, at whatever frame
/// may be the last that goes: the log that is left verifies, its frames are those above the cut,
/// and neither what is open nor what a group's next actor reads is touched.
pub fn any_history_may_be_cut_anywhere<E: Engine>() {
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    let (played, cuts, resident) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |counter: &Cell<u32>, counts| counter.set(counter.get() + u32::from(counts));
    let part = (moves(60), 0..=10_u64, 0..3_usize);
    TestRunner::new(config)
        .run(&vec(part, 1..4), |parts| {
            let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (engine, uncut) = (E::open(dir.path()).unwrap(), E::open(whole.path()).unwrap());
            let (mut store, archive) = (engine.store(), engine.archive());
            let mut uncut_store = uncut.store();
            let mut actor = Actor::new(7);
            let mut twin = Actor::new(7);
            for (history, share, sweeps) in parts {
                let writes: Vec<_> = history.iter().filter_map(|next| actor.play(*next)).collect();
                let same: Vec<_> = history.iter().filter_map(|next| twin.play(*next)).collect();
                commit(&mut store, &writes);
                commit(&mut uncut_store, &same);
                prop_assert_eq!(differences(&uncut.archive(), 7), Vec::<String>::new());
                let before = restored(&mut store, &mut actor);
                let last = actor.world.group.head().last_seq * share / 10;
                cut(&mut store, &archive, 7, LATE, last).map_err(TestCaseError::fail)?;
                for _ in 0..sweeps {
                    store.sweep(7).unwrap();
                }
                let after = restored(&mut store, &mut actor);
                prop_assert_eq!(&before, &after);
                prop_assert_eq!(differences(&archive, 7), Vec::<String>::new());
                check(&actor, &archive, last);
                let base = archive.base(7).unwrap();
                count(&cuts, base.is_some());
                let has_run = |base: StoredBase| base.read().unwrap().run.is_some();
                count(&resident, base.is_some_and(has_run));
                count(&played, true);
            }
            Ok(())
        })
        .unwrap();
    let (played, cuts, resident) = (played.get(), cuts.get(), resident.get());
    let enough = played > 40 && cuts > 20 && resident > 0;
    assert!(enough, "{cuts} of {played} were cut, {resident} of them under a living run");
}

/// Holds what is read against what happened.
fn check(actor: &Actor, archive: &impl Archive, last: u64) {
    let cut_at = archive.earliest_seq(7).unwrap() - 1;
    assert!(cut_at <= last || last == 0 && cut_at == 0 || cut_at <= actor.standing().head.last_seq);
    let kept: Vec<Block> =
        actor.blocks.iter().filter(|block| block.first_seq > cut_at).cloned().collect();
    for after in [0, cut_at.saturating_sub(1), cut_at] {
        let filter = FrameFilter { after, ..everything() };
        assert_eq!(archive.blocks(7, &filter).unwrap(), kept, "after {after}");
    }
    let mut backwards =
        archive.blocks(7, &FrameFilter { descending: true, ..everything() }).unwrap();
    backwards.reverse();
    assert_eq!(backwards, kept);
    let seqs: Vec<u64> = kept.iter().flat_map(|b| b.frames().map(|f| f.seq)).collect();
    assert_eq!(seqs, (cut_at + 1..=actor.standing().head.last_seq).collect::<Vec<_>>());
    let stored = archive.tasks(7, &ALL_TASKS).unwrap();
    let stored: Vec<Task> = stored.into_iter().map(|view| view.task).collect();
    let is_kept = |task: &&Task| !task.state.is_terminal() || task.seq_last > Some(cut_at);
    let all: Vec<Task> = actor.world.reference.tasks().filter(is_kept).cloned().collect();
    assert_eq!(stored, all, "cut at {cut_at}");
    // No transcript of a task is kept in part.
    for task in all {
        assert!(task.seq_first.is_none_or(|first| cut_at < first), "cut at {cut_at}: {task:?}");
    }
    let runs = archive.runs(7, None, 10_000).unwrap();
    let alive: Vec<RunId> = runs.iter().filter(|r| r.ended.is_none()).map(|run| run.id).collect();
    let living = actor.world.group.run().map(|run| run.id);
    assert_eq!(alive, living.into_iter().collect::<Vec<_>>());
    let segments = archive.segments(7, 0, 10_000).unwrap();
    assert_eq!(segments.len(), actor.standing().head.segment as usize, "lineage stays");
    let stored = archive.compactions(7, None, 10_000).unwrap();
    let known = |id| actor.world.reference.compactions().any(|own: &Compaction| own.id == id);
    assert!(stored.iter().all(|(_, compaction)| known(compaction.id)));
    let view = archive.current_view(7).unwrap();
    let shown = FrameFilter { view: Some(view), ..everything() };
    let shown = archive.blocks(7, &shown).unwrap();
    let frames = shown.iter().flat_map(|block| block.frames().map(move |frame| (block, frame)));
    let frames: Vec<u64> = frames
        .filter(|(block, frame)| {
            FrameFilter { view: Some(view), ..everything() }.takes(block, *frame)
        })
        .map(|(_, frame)| frame.seq)
        .collect();
    let in_force = |block: &&Block| [0, view.segment].contains(&block.segment);
    let open: Vec<u64> = kept
        .iter()
        .filter(in_force)
        .flat_map(|block| block.frames().map(|frame| frame.seq))
        .collect();
    assert!(open.iter().all(|seq| frames.contains(seq)), "{view:?}: {frames:?} lacks of {open:?}");
}

/// A turn, with an answer.
const TURN: [Move; 4] = [SUBMIT, Move::Grant, Move::Say(Spoken::Chunk(1)), ANSWER];

fn a_group_with_turns<E: Engine>(engine: &E, no: u32, turns: usize) -> Actor {
    let mut actor = Actor::new(no);
    let mut writes = actor.play_all(&[SUBMIT, Move::Grant, READY, ANSWER]);
    for _ in 0..turns {
        writes.extend(actor.play_all(&TURN));
    }
    commit(&mut engine.store(), &writes);
    actor
}

/// Nothing younger than asked is cut, though the clock was set back since, and nothing at all while
/// the clock reads earlier than the newest frame.
pub fn only_what_is_old_enough_is_cut<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let mut actor = a_group_with_turns(&engine, 7, 2);
    let young = actor.world.now;
    // An hour ahead for a turn, and right again.
    actor.play(Move::Clock(120));
    let ahead = actor.world.now;
    let mut writes = actor.play_all(&TURN);
    actor.world.now = young;
    writes.extend(actor.play_all(&TURN));
    commit(&mut store, &writes);
    let oldest = actor.blocks.first().unwrap().at;
    let newest = actor.blocks.last().unwrap().at;
    let begin = |now, horizon| Fold::begin(&archive, 7, now, horizon, u64::MAX).unwrap().is_some();
    assert!(!begin(LATE, Timestamp(oldest.0 - 1)), "nothing is old enough");
    assert!(!begin(Timestamp(newest.0 - 1), oldest), "the clock is wrong");
    assert!(begin(newest, oldest));
    cut(&mut store, &archive, 7, young, u64::MAX).unwrap();
    let kept = archive.blocks(7, &everything()).unwrap();
    assert!(kept.first().unwrap().at > ahead && kept.last().unwrap().at == newest, "{kept:?}");
    assert_eq!(archive.tasks(7, &ALL_TASKS).unwrap().len(), 2);
    let base = archive.base(7).unwrap().unwrap().read().unwrap();
    assert_ne!(base.reread, Reread::default(), "the run lives, and its session is in force");
    assert_eq!(differences(&archive, 7), Vec::<String>::new());
    cut(&mut store, &archive, 7, Timestamp(ahead.0 + 1_000), u64::MAX).unwrap();
    assert!(archive.blocks(7, &everything()).unwrap().is_empty(), "all of it");
    assert_eq!(differences(&archive, 7), Vec::<String>::new());
    let mut writes = actor.play_all(&TURN);
    commit(&mut store, &[writes.remove(0)]);
    let first = archive.blocks(7, &everything()).unwrap().remove(0).first_seq;
    assert_eq!(first, archive.earliest_seq(7).unwrap(), "no number is used again");
}

pub fn a_cut_takes_what_has_ended_and_nothing_else<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let mut actor = a_group_with_turns(&engine, 7, 1);
    let neighbour = a_group_with_turns(&engine, 8, 1);
    let ended: Vec<_> = actor.world.reference.tasks().map(|task| task.id).collect();
    let seq = actor.standing().head.last_seq;
    commit(&mut store, &actor.play_all(&[SUBMIT, Move::Grant, SUBMIT]));
    let all: Vec<_> = actor.world.reference.tasks().map(|task| task.id).collect();
    let runs: Vec<_> = archive.runs(7, None, 9).unwrap().iter().map(|run| run.id).collect();
    let order = |group, seq, tasks: &[_]| Cut {
        group,
        base: StoredBase { seq, state: format!("{seq}") },
        ended: Ended { tasks: tasks.to_vec(), runs: runs.clone(), ..Ended::default() },
        keys_before: LATE,
    };
    assert!(!store.cut(&order(9, 1, &all)).unwrap(), "there is no such group");
    assert!(!store.cut(&order(7, 10_000, &all)).unwrap(), "there is no such frame yet");
    assert_eq!(archive.base(7).unwrap(), None);
    assert_eq!(archive.tasks(7, &ALL_TASKS).unwrap().len(), 4);

    // One ended behind the frame, two are open, and the run lives.
    assert!(store.cut(&order(7, seq - 1, &all)).unwrap());
    let kept = |archive: &E::Archive| -> Vec<_> {
        archive.tasks(7, &ALL_TASKS).unwrap().into_iter().map(|view| view.task.id).collect()
    };
    assert_eq!(kept(&archive), all[1..]);
    assert_eq!(archive.runs(7, None, 9).unwrap().len(), 1);
    assert!(!store.cut(&order(7, seq - 1, &all)).unwrap(), "a log is cut forwards only");
    assert!(!store.cut(&order(7, 1, &all)).unwrap());
    assert_eq!(archive.base(7).unwrap().unwrap(), order(7, seq - 1, &all).base);
    assert!(store.cut(&order(7, seq, &all)).unwrap());
    assert_eq!(kept(&archive), all[ended.len()..]);
    assert_eq!(archive.blocks(8, &everything()).unwrap(), neighbour.blocks);

    // A group's base is deleted with it, and no other's.
    assert!(store.cut(&order(8, 1, &[])).unwrap());
    store.purge(7).unwrap();
    assert_eq!((archive.base(7).unwrap(), archive.earliest_seq(7).unwrap()), (None, 1));
    assert_eq!(archive.earliest_seq(8).unwrap(), 2);
}

/// What nobody sees any more is deleted a part at a time, and by whoever comes next if a server is
/// killed in between.
pub fn frames_below_a_cut_are_gone_at_once_and_deleted_in_parts<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let actor = a_group_with_turns(&engine, 7, 150);
    let mut store = engine.store();
    assert_eq!(store.sweep(7).unwrap().frames, 0, "nothing is cut yet");
    cut(&mut store, &engine.archive(), 7, LATE, u64::MAX).unwrap();
    assert!(engine.archive().blocks(7, &everything()).unwrap().is_empty());
    let first = store.sweep(7).unwrap();
    drop((store, engine));

    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut parts = vec![first];
    while parts.last().unwrap().more {
        parts.push(store.sweep(7).unwrap());
    }
    assert!(parts.len() > 2, "{parts:?}");
    let frames: u64 = parts.iter().map(|part| part.frames).sum();
    let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    let all: usize = actor.blocks.iter().map(|block| block.text.len()).sum();
    assert_eq!((frames, bytes), (actor.standing().head.last_seq, all as u64));
    assert_eq!(differences(&engine.archive(), 7), Vec::<String>::new());
}
