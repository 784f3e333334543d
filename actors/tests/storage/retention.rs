//! Truncated logs: the rest verifies and reads as before; the live state is unchanged.

use std::{cell::Cell, rc::Rc};

use greenroom_actors::{
    projections::{
        retention::pass,
        retention_scan::{RetentionScan, ScanStep},
    },
    storage::{
        Ended, FrameFilter, LogTruncation, ReadStore, Store, StoredCheckpoint, StoredGroup,
        TaskFilter, sqlite::Database,
    },
    transcript::frame::Block,
};
use greenroom_core::{Group, GroupState, RunId, SessionCursor, Task, Timestamp};
use greenroom_testing::world::{Action, actions};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

use super::{
    Engine,
    actor::{Actor, SUBMIT, TURN, commit, differences, group_with_turns},
    conformance::UP,
    gated, open,
};

const ALL_TASKS: TaskFilter = TaskFilter { state: None, kind: None, after: 0, limit: 10_000 };
/// Later than every frame of a history, however its clock was set.
pub const LATE: Timestamp = Timestamp(i64::MAX);

fn everything() -> FrameFilter {
    FrameFilter { frames_max: u64::MAX, bytes_max: usize::MAX, ..FrameFilter::default() }
}

/// Truncates a group's log up to the frame `last`, in the order of the retention.
pub fn truncate(
    store: &mut impl Store,
    read_store: &impl ReadStore,
    no: u32,
    horizon: Timestamp,
    mut last: u64,
) -> Result<(), String> {
    'shorter: loop {
        let Some(mut summary) = RetentionScan::start(read_store, no, LATE, horizon, last).unwrap()
        else {
            return Ok(());
        };
        loop {
            match summary.next_page(read_store).unwrap() {
                ScanStep::Continue(next) => summary = *next,
                ScanStep::Truncate(next, truncation) => {
                    assert!(store.truncate_log(&truncation).unwrap(), "{truncation:?}");
                    summary = *next;
                }
                ScanStep::Rescan(seq) => {
                    assert!(seq < last);
                    last = seq;
                    continue 'shorter;
                }
                ScanStep::Done => return Ok(()),
                ScanStep::Contradiction(difference) => return Err(difference),
            }
        }
    }
}

/// Returns the state that a group's actor would start with.
fn restored(store: &mut impl Store, actor: &mut Actor) -> Option<(GroupState, Group)> {
    let StoredGroup { state, tasks, run, compactions, permissions, epoch, .. } =
        store.adopt(actor.no, UP).unwrap()?;
    actor.epoch = epoch;
    Some((state.clone(), Group::restore(state, tasks, run, None, compactions, permissions)))
}

/// I13, I3: a history that is truncated repeatedly while it continues, with crashes, at any frame:
/// the rest of the log verifies, its frames are those above the truncation, and neither open tasks
/// nor the state that the group's next actor reads changes.
pub fn any_history_may_be_truncated_anywhere<E: Engine>() {
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    let (played, cuts, resident) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |counter: &Cell<u32>, counts| counter.set(counter.get() + u32::from(counts));
    let part = (actions(60), 0..=10_u64, 0..3_usize);
    TestRunner::new(config)
        .run(&vec(part, 1..4), |parts| {
            let (_dir, _engine, mut store, read_store) = open::<E>();
            let mut actor = Actor::new(7);
            for (history, share, sweeps) in parts {
                let facts: Vec<_> = history.iter().filter_map(|next| actor.play(*next)).collect();
                commit(&mut store, &facts);
                prop_assert_eq!(differences(&read_store, 7), Vec::<String>::new());
                let before = restored(&mut store, &mut actor);
                let last = actor.world.group.state().last_seq * share / 10;
                truncate(&mut store, &read_store, 7, LATE, last).map_err(TestCaseError::fail)?;
                for _ in 0..sweeps {
                    store.sweep(7).unwrap();
                }
                let after = restored(&mut store, &mut actor);
                prop_assert_eq!(&before, &after);
                prop_assert_eq!(differences(&read_store, 7), Vec::<String>::new());
                check(&actor, &read_store);
                let base = read_store.checkpoint(7).unwrap();
                count(&cuts, base.is_some());
                let has_run = |base: StoredCheckpoint| base.read().unwrap().run.is_some();
                count(&resident, base.is_some_and(has_run));
                count(&played, true);
            }
            Ok(())
        })
        .unwrap();
    let (played, cuts, resident) = (played.get(), cuts.get(), resident.get());
    let enough = played > 40 && cuts > 20 && resident > 0;
    assert!(enough, "{cuts} of {played} were truncated, {resident} of them under a live run");
}

/// Compares the stored rows with the world.
fn check(actor: &Actor, read_store: &impl ReadStore) {
    let truncated_at = read_store.earliest_seq(7).unwrap() - 1;
    assert!(truncated_at <= actor.summary().state.last_seq);
    let kept: Vec<Block> =
        actor.blocks.iter().filter(|block| block.first_seq > truncated_at).cloned().collect();
    for after in [0, truncated_at.saturating_sub(1), truncated_at] {
        let filter = FrameFilter { after, ..everything() };
        assert_eq!(read_store.blocks(7, &filter).unwrap(), kept, "after {after}");
    }
    let mut backwards =
        read_store.blocks(7, &FrameFilter { descending: true, ..everything() }).unwrap();
    backwards.reverse();
    assert_eq!(backwards, kept);
    let seqs: Vec<u64> = kept.iter().flat_map(|b| b.frames().map(|f| f.seq)).collect();
    assert_eq!(seqs, (truncated_at + 1..=actor.summary().state.last_seq).collect::<Vec<_>>());
    let stored = read_store.tasks(7, &ALL_TASKS).unwrap();
    let stored: Vec<Task> = stored.into_iter().map(|view| view.task).collect();
    let is_kept = |task: &Task| task.last_frame().is_none_or(|last| last.seq > truncated_at);
    let all: Vec<Task> = actor.world.tasks().into_iter().filter(is_kept).collect();
    assert_eq!(stored, all, "truncated at {truncated_at}");
    // A task's transcript is kept as a whole or not at all.
    for task in all {
        assert!(
            task.start().is_none_or(|start| truncated_at < start.seq),
            "truncated at {truncated_at}: {task:?}"
        );
    }
    let runs = read_store.runs(7, None, 10_000).unwrap();
    let alive: Vec<RunId> = runs.iter().filter(|r| r.ended.is_none()).map(|run| run.id).collect();
    let living = actor.world.group.run().map(|run| run.id);
    assert_eq!(alive, living.into_iter().collect::<Vec<_>>());
    let segments = read_store.segments(7, 0, 10_000).unwrap();
    assert_eq!(segments.len(), actor.summary().state.segment as usize, "segments stay");
    let stored = read_store.compactions(7, None, 10_000).unwrap();
    let known = |id| actor.world.compactions().any(|known| known.id == id);
    assert!(stored.iter().all(|(_, compaction)| known(compaction.id)));
    let view = read_store.current_view(7).unwrap();
    let shown = FrameFilter { view: Some(view), ..everything() };
    let shown = read_store.blocks(7, &shown).unwrap();
    let filter = FrameFilter { view: Some(view), ..everything() };
    let frames = shown.iter().flat_map(|block| block.frames().map(move |frame| (block, frame)));
    let frames = frames.filter(|(block, frame)| filter.takes(block, *frame));
    let frames: Vec<u64> = frames.map(|(_, frame)| frame.seq).collect();
    let open = kept.iter().filter(|block| [0, view.segment].contains(&block.segment));
    let mut open = open.flat_map(|block| block.frames().map(|frame| frame.seq));
    assert!(open.all(|seq| frames.contains(&seq)), "{view:?}: {frames:?} of {kept:?}");
}

/// No frame younger than the horizon is truncated, even if the clock was set back since, and none
/// while the clock reads earlier than the newest frame.
pub fn only_old_frames_are_truncated<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    let mut actor = group_with_turns(&engine, 7, 3);
    let young = actor.world.now;
    // The clock is an hour ahead for one turn, and then right again.
    actor.play(Action::SetClock(120));
    let ahead = actor.world.now;
    let mut facts = actor.play_all(&TURN);
    actor.world.now = young;
    facts.extend(actor.play_all(&TURN));
    commit(&mut store, &facts);
    let oldest = actor.blocks.first().unwrap().at;
    let newest = actor.blocks.last().unwrap().at;
    let begin = |now, horizon| {
        RetentionScan::start(&read_store, 7, now, horizon, u64::MAX).unwrap().is_some()
    };
    assert!(!begin(LATE, Timestamp(oldest.0 - 1)), "no frame is old enough");
    assert!(!begin(Timestamp(newest.0 - 1), oldest), "the clock is wrong");
    assert!(begin(newest, oldest));
    truncate(&mut store, &read_store, 7, young, u64::MAX).unwrap();
    let kept = read_store.blocks(7, &everything()).unwrap();
    assert!(kept.first().unwrap().at > ahead && kept.last().unwrap().at == newest, "{kept:?}");
    assert_eq!(read_store.tasks(7, &ALL_TASKS).unwrap().len(), 2);
    let base = read_store.checkpoint(7).unwrap().unwrap().read().unwrap();
    assert_ne!(base.cursor, SessionCursor::default(), "the run lives, and its session is in force");
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    truncate(&mut store, &read_store, 7, Timestamp(ahead.0 + 1_000), u64::MAX).unwrap();
    assert!(read_store.blocks(7, &everything()).unwrap().is_empty(), "all frames");
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    let mut facts = actor.play_all(&TURN);
    commit(&mut store, &[facts.remove(0)]);
    let first = read_store.blocks(7, &everything()).unwrap().remove(0).first_seq;
    assert_eq!(first, read_store.earliest_seq(7).unwrap(), "no frame number is used again");
}

pub fn a_truncation_deletes_only_ended_tasks<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    let mut actor = group_with_turns(&engine, 7, 2);
    let neighbour = group_with_turns(&engine, 8, 2);
    let ended: Vec<_> = actor.world.tasks().iter().map(|task| task.id).collect();
    let seq = actor.summary().state.last_seq;
    commit(&mut store, &actor.play_all(&[SUBMIT, Action::GrantSlot, SUBMIT]));
    let all: Vec<_> = actor.world.tasks().iter().map(|task| task.id).collect();
    let runs: Vec<_> = read_store.runs(7, None, 9).unwrap().iter().map(|run| run.id).collect();
    let order = |group, seq, tasks: &[_]| LogTruncation {
        group,
        epoch: read_store.epoch(group).unwrap(),
        checkpoint: StoredCheckpoint { seq, state: format!("{seq}") },
        ended: Ended { tasks: tasks.to_vec(), runs: runs.clone(), ..Ended::default() },
        keys_before: LATE,
    };
    assert!(!store.truncate_log(&order(9, 1, &all)).unwrap(), "that group does not exist");
    assert!(!store.truncate_log(&order(7, 10_000, &all)).unwrap(), "that frame does not exist yet");
    assert_eq!(read_store.checkpoint(7).unwrap(), None);
    assert_eq!(read_store.tasks(7, &ALL_TASKS).unwrap().len(), 4);

    // One task ended after the frame, two are open, and the run is live.
    assert!(store.truncate_log(&order(7, seq - 1, &all)).unwrap());
    let kept = |read_store: &E::ReadStore| -> Vec<_> {
        read_store.tasks(7, &ALL_TASKS).unwrap().into_iter().map(|view| view.task.id).collect()
    };
    assert_eq!(kept(&read_store), all[1..]);
    assert_eq!(read_store.runs(7, None, 9).unwrap().len(), 1);
    for seq in [seq - 1, 1] {
        assert!(!store.truncate_log(&order(7, seq, &all)).unwrap(), "truncated forwards only");
    }
    assert_eq!(read_store.checkpoint(7).unwrap().unwrap(), order(7, seq - 1, &all).checkpoint);
    assert!(store.truncate_log(&order(7, seq, &all)).unwrap());
    assert_eq!(kept(&read_store), all[ended.len()..]);
    assert_eq!(read_store.blocks(8, &everything()).unwrap(), neighbour.blocks);

    // A group's base is deleted with it, and no other's.
    assert!(store.truncate_log(&order(8, 1, &[])).unwrap());
    store.purge(7, Some(1)).unwrap();
    assert_eq!((read_store.checkpoint(7).unwrap(), read_store.earliest_seq(7).unwrap()), (None, 1));
    assert_eq!(read_store.earliest_seq(8).unwrap(), 2);
}

/// Hidden frames are deleted part by part, and by the next server if one is killed in between.
pub fn truncated_frames_are_hidden_at_once_and_deleted_in_parts<E: Engine>() {
    let (dir, engine, mut store, read_store) = open::<E>();
    let actor = group_with_turns(&engine, 7, 151);
    assert_eq!(store.sweep(7).unwrap().frames, 0, "no log is truncated yet");
    truncate(&mut store, &read_store, 7, LATE, u64::MAX).unwrap();
    assert!(read_store.blocks(7, &everything()).unwrap().is_empty());
    let first = store.sweep(7).unwrap();
    drop((store, read_store, engine));

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
    assert_eq!((frames, bytes), (actor.summary().state.last_seq, all as u64));
    assert_eq!(differences(&engine.read_store(), 7), Vec::<String>::new());
}

/// I14, I12: retention repeats what it decided before another owner adopted the group, a few
/// times in a pass; the next pass tries again.
#[test]
fn a_group_adopted_during_a_pass_is_truncated_in_the_same_pass() {
    for query in 0..=4 {
        let (_dir, database, ..) = open::<Database>();
        let database = Rc::new(database);
        let actor = group_with_turns(&*database, 7, 2);
        let last_seq = actor.summary().state.last_seq;
        let (deleted, later) = actix_rt::System::new().block_on(async {
            let db = gated::start(&database, database.store().unwrap());
            let fenced = gated::before(&db, &database, query, |database| {
                Engine::store(database).adopt(7, UP).unwrap().unwrap();
            });
            (pass(&fenced, LATE, 1).await.unwrap(), pass(&db, LATE, 1).await.unwrap())
        });
        let epoch = database.read_store().epoch(7).unwrap().unwrap();
        let (at_once, adopted) = if query == 0 { (0, 2..12) } else { (last_seq, 2..3) };
        assert_eq!((deleted.frames, later.frames), (at_once, last_seq - at_once), "{query}");
        assert!(adopted.contains(&epoch), "before query {query}: {epoch}");
    }
}
