//! Commits, fencing, restoring and deleting.

use std::collections::BTreeMap;

use greenroom_actors::storage::{
    Ended, FrameFilter, GROUP_MAX, GroupCommit, KeyUse, Left, LogTruncation, ReadStore, SEQ_MAX,
    Store, StoreError, StoredCheckpoint, StoredGroup, TaskFilter, TaskView,
};
use greenroom_core::{
    AgentOutput, Blocked, BootId, EndState, Fact, RunId, SessionId, Stage, TEXT_BYTES_MAX, Task,
    TaskId, TaskKind, TaskState, Timestamp, Trust, Uptime,
};
use greenroom_testing::world::{Action, AgentMessage, chunk_line};
use uuid::Uuid;

use super::{
    Engine,
    actor::{ANSWER, Actor, READY, SUBMIT, commit, differences, refused},
    open,
};

pub const EVERYTHING: FrameFilter = FrameFilter {
    view: None,
    after: 0,
    before: None,
    kind: None,
    task: None,
    segment: None,
    descending: false,
    frames_max: u64::MAX,
    bytes_max: usize::MAX,
};
pub const ALL_TASKS: TaskFilter = TaskFilter { state: None, kind: None, after: 0, limit: 10_000 };
/// No lock of these tests expires.
pub const UP: Uptime = Uptime { boot: BootId(Uuid::nil()), ms: 0 };
/// The time of the forged facts.
const NOW: Timestamp = Timestamp(5_000);

/// Returns the stored tasks of a group.
pub fn tasks(read_store: &impl ReadStore, no: u32) -> Vec<Task> {
    read_store.tasks(no, &ALL_TASKS).unwrap().into_iter().map(|view| view.task).collect()
}

pub fn groups_of_one_batch_are_stored_together<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut actors = [Actor::new(1), Actor::new(2), Actor::new(3)];
    let batch: Vec<GroupCommit> = actors
        .iter_mut()
        .flat_map(|actor| actor.play_all(&[SUBMIT, Action::GrantSlot, READY]))
        .collect();
    commit(&mut engine.store(), &batch);
    let read_store = engine.read_store();
    for actor in &actors {
        assert_eq!(read_store.group(actor.no).unwrap(), Some(actor.summary()));
        assert_eq!(read_store.blocks(actor.no, &EVERYTHING).unwrap(), actor.blocks);
        let all = actor.world.tasks();
        assert_eq!(tasks(&read_store, actor.no), all);
    }
    assert_eq!(read_store.group(4).unwrap(), None);
    let busy = read_store.group_index().unwrap();
    let expected: Vec<_> =
        actors.iter().map(|actor| (actor.no, actor.id.clone(), Left::Unsettled)).collect();
    assert_eq!(busy.groups, expected);
    let counts = BTreeMap::from([("running".to_owned(), 3)]);
    assert_eq!(read_store.status_counts(&[]).unwrap(), (counts, 0));
}

/// I14: neither a stale owner's purge nor a truncation that was decided under one deletes anything.
pub fn only_the_owner_deletes<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, Action::GrantSlot, READY, ANSWER]));
    let (stored, blocks) =
        (read_store.group(1).unwrap(), read_store.blocks(1, &EVERYTHING).unwrap());
    let truncation = |epoch| LogTruncation {
        group: 1,
        epoch,
        checkpoint: StoredCheckpoint { seq: 1, state: String::new() },
        ended: Ended::default(),
        keys_before: Timestamp(0),
    };
    assert_eq!(read_store.epoch(1).unwrap(), Some(1));
    assert_eq!(store.adopt(1, UP).unwrap().unwrap().epoch, 2);
    assert_eq!(store.claim(1).unwrap(), Some(3));
    assert_eq!(read_store.epoch(1).unwrap(), Some(3));
    for stale in [None, Some(1), Some(2), Some(4)] {
        let purged = store.purge(1, stale);
        assert!(matches!(purged, Err(StoreError::Fenced)), "{stale:?}: {purged:?}");
        let truncated = store.truncate_log(&truncation(stale));
        assert!(matches!(truncated, Err(StoreError::Fenced)), "{stale:?}: {truncated:?}");
    }
    assert_eq!(read_store.group(1).unwrap(), stored);
    assert_eq!(read_store.blocks(1, &EVERYTHING).unwrap(), blocks);
    assert_eq!(read_store.checkpoint(1).unwrap(), None);

    assert!(store.truncate_log(&truncation(Some(3))).unwrap());
    store.purge(1, Some(3)).unwrap();
    assert_eq!(read_store.group(1).unwrap(), None);
    assert_eq!((read_store.epoch(1).unwrap(), store.claim(1).unwrap()), (None, None));
}

/// I14.
pub fn a_later_owner_fences_only_the_earlier_one<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let [mut fenced, mut other] = [Actor::new(1), Actor::new(2)];
    commit(&mut store, &[fenced.play(SUBMIT).unwrap(), other.play(SUBMIT).unwrap()]);
    let before = fenced.summary();
    assert_eq!(store.adopt(1, UP).unwrap().unwrap().epoch, 2);

    let late = fenced.play_all(&[SUBMIT, Action::GrantSlot]);
    let valid = other.play(SUBMIT).unwrap();
    let mut batch = late;
    batch.insert(1, valid);
    let answers = store.commit(&batch).unwrap();
    let fenced_out = |answer: &Result<(), StoreError>| matches!(answer, Err(StoreError::Fenced));
    let fenced_answers: Vec<bool> = answers.iter().map(fenced_out).collect();
    assert_eq!(fenced_answers, [true, false, true], "{answers:?}");
    let read_store = engine.read_store();
    assert_eq!(read_store.group(1).unwrap(), Some(before), "no fact of the old owner is stored");
    assert_eq!((tasks(&read_store, 1).len(), tasks(&read_store, 2).len()), (1, 2));
    assert_eq!(read_store.group(2).unwrap(), Some(other.summary()));
}

pub fn adopting_returns_the_next_epoch_and_the_open_tasks_in_order<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    assert!(store.adopt(1, UP).unwrap().is_none(), "a group that was never created");
    let mut actor = Actor::new(1);
    let history = [SUBMIT, Action::GrantSlot, READY, SUBMIT, SUBMIT, Action::Compact, ANSWER];
    commit(&mut store, &actor.play_all(&history));
    for epoch in 2..5 {
        let StoredGroup { epoch: given, state, tasks, run, .. } =
            store.adopt(1, UP).unwrap().unwrap();
        assert_eq!((given, &state), (epoch, actor.world.group.state()));
        let ordinals: Vec<u64> = tasks.iter().map(|task| task.ordinal).collect();
        assert_eq!(ordinals, [2, 3, 4], "the first task has ended");
        assert_eq!(run.map(|run| run.id), actor.world.group.run().map(|run| run.id));
    }
}

/// I3: a gap in a log would stay for ever, and later frames would collide.
pub fn facts_that_do_not_follow_the_log_are_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let (mut actor, mut other) = (Actor::new(1), Actor::new(2));
    commit(&mut store, &actor.play_all(&[SUBMIT]));
    let before = actor.summary();
    let [second, third] = [actor.play(SUBMIT).unwrap(), actor.play(SUBMIT).unwrap()];
    let mut batch = [third, other.play(SUBMIT).unwrap()];
    let answers = store.commit(&batch).unwrap();
    assert!(matches!(answers[..], [Err(StoreError::Fenced), Ok(())]), "{answers:?}");
    assert_eq!(engine.read_store().group(1).unwrap(), Some(before));
    commit(&mut store, &[second]);
    batch.swap(0, 1);
    commit(&mut store, &batch[1..]);
    let answers = store.commit(&batch[1..]).unwrap();
    assert!(matches!(answers[..], [Err(StoreError::Fenced)]), "a repeated commit: {answers:?}");
    assert_eq!(engine.read_store().group(1).unwrap(), Some(actor.summary()));
}

/// I11: the greatest number of a group is stored. Any later one, and a frame or a task after the
/// greatest number of those, is refused as such.
pub fn numbers_after_the_greatest_are_refused<E: Engine>() {
    let (_dir, _, mut store, read_store) = open::<E>();
    let first = |no| Actor::new(no).play(SUBMIT).unwrap();
    let mut exhausted = |refused: GroupCommit| {
        let answer = store.commit(&[refused]);
        assert!(matches!(answer, Err(StoreError::Exhausted(_))), "{answer:?}");
    };
    exhausted(first(GROUP_MAX + 1));
    let mut late = first(7);
    late.summary.state.last_seq = SEQ_MAX + 1;
    exhausted(late);
    let mut late = first(7);
    late.summary.state.tasks = SEQ_MAX + 1;
    exhausted(late);
    commit(&mut store, &[first(GROUP_MAX)]);
    let stored = [7, GROUP_MAX, GROUP_MAX + 1].map(|no| read_store.group(no).unwrap().is_some());
    assert_eq!(stored, [false, true, false]);
}

/// I1, even if the actor breaks it.
pub fn a_second_claimed_task_is_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, SUBMIT, Action::GrantSlot]));
    let second = actor.world.group.waiting().next().unwrap().id;
    let before = engine.read_store().task(second).unwrap().unwrap().task;
    let claim = actor.forge(NOW, vec![Fact::TaskClaimed { task: second }]);
    refused(&mut store, claim);
    let run = RunId(Uuid::from_u128(1));
    let start = actor.forge(NOW, vec![Fact::TaskStarted { task: second, attempt: 1, run }]);
    refused(&mut store, start);
    assert_eq!(engine.read_store().task(second).unwrap().unwrap().task, before);

    let mut other = Actor::new(2);
    commit(&mut store, &other.play_all(&[SUBMIT, Action::GrantSlot]));
}

/// I9.
pub fn a_terminal_state_is_not_overwritten<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, Action::GrantSlot, READY, ANSWER]));
    let ended = tasks(&engine.read_store(), 1).remove(0);
    assert_eq!(ended.state(), TaskState::Completed);
    let (task, last, ending) = (ended.clone(), ended.last_frame().unwrap(), ended.ending().clone());
    let second_end = Fact::task_ended(ended.kind(), task.ended(1, EndState::Failed, last, ending));
    refused(&mut store, actor.forge(NOW, vec![second_end]));
    assert_eq!(tasks(&engine.read_store(), 1), [ended]);
}

/// AM-9, I11: late words are added to the text of their ended task up to its limit. A text that was
/// cut gets no more, also what would fit.
pub fn a_late_text_is_cut_at_the_limit<E: Engine>() {
    let (_dir, _, mut store, read_store) = open::<E>();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, Action::GrantSlot, READY, ANSWER]));
    let task = tasks(&read_store, 1).remove(0);
    let full = "x".repeat(TEXT_BYTES_MAX - 1 - task.ending().text.len());
    for (late, is_cut) in [(&*full, false), ("ä", true), ("y", true)] {
        let (lines, summary) = chunk_line(late);
        let late = Some(task.id);
        let output = Fact::AgentOutput(AgentOutput { lines, summary, late });
        let recorded = actor.world.group.record(output, NOW);
        commit(&mut store, &[actor.state(NOW, vec![recorded])]);
        let ending = tasks(&read_store, 1).remove(0).ending().clone();
        assert_eq!((ending.text.len(), ending.text_truncated), (TEXT_BYTES_MAX - 1, is_cut));
        assert_eq!(differences(&read_store, 1), [] as [String; 0], "I13");
    }
}

/// AM-1 and I4, even if the actor breaks them.
pub fn a_second_live_run_and_a_second_open_segment_are_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, Action::GrantSlot, READY]));
    let run = RunId(Uuid::from_u128(9));
    let second =
        actor.forge(NOW, vec![Fact::RunStarted { run, agent: "one".into(), has_detectors: false }]);
    refused(&mut store, second);
    let session = SessionId("fork".into());
    for segment in [1, 2] {
        let session = session.clone();
        let (parent, provenance) = (Some(segment), None);
        let fork = Fact::SegmentStarted { segment: segment + 1, parent, session, provenance };
        let fork = actor.forge(NOW, vec![fork]);
        refused(&mut store, fork);
    }
}

pub fn a_refused_batch_stores_nothing<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let [mut one, mut other] = [Actor::new(1), Actor::new(2)];
    commit(&mut store, &[one.play(SUBMIT).unwrap()]);
    let before = one.summary();
    let mut bad = one.play(SUBMIT).unwrap();
    bad.summary.state.last_seq += bad.facts[0].fact.frames();
    bad.facts.push(bad.facts[0].clone());
    let answer = store.commit(&[other.play(SUBMIT).unwrap(), bad]);
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    let read_store = engine.read_store();
    assert_eq!(read_store.group(1).unwrap(), Some(before));
    assert_eq!(
        read_store.group(2).unwrap(),
        None,
        "a transaction is stored as a whole or not at all"
    );
}

pub fn a_purge_deletes_only_its_group<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let history =
        [SUBMIT, Action::GrantSlot, READY, Action::Output(AgentMessage::Chunk(1)), ANSWER, SUBMIT];
    // Neighbours in every order, and the smallest number.
    let mut actors: Vec<Actor> = (1..=3).map(Actor::new).collect();
    for actor in &mut actors {
        let mut batch = actor.play_all(&history);
        let task = actor.world.tasks()[0].id;
        batch[0].key = Some(KeyUse { key: [actor.no as u8; 32], body: [0; 32], task });
        commit(&mut store, &batch);
    }
    store.purge(2, Some(1)).unwrap();
    store.purge(9, None).unwrap();
    let read_store = engine.read_store();
    assert_eq!(read_store.group(2).unwrap(), None);
    assert!(read_store.blocks(2, &EVERYTHING).unwrap().is_empty());
    assert!(store.adopt(2, UP).unwrap().is_none());
    let task = actors[1].world.tasks()[0].id;
    assert!(read_store.task(task).unwrap().is_none());
    assert_eq!(read_store.key(&[2; 32]).unwrap(), None);
    for actor in [&actors[0], &actors[2]] {
        assert_eq!(read_store.group(actor.no).unwrap(), Some(actor.summary()));
        assert_eq!(read_store.blocks(actor.no, &EVERYTHING).unwrap(), actor.blocks);
        assert_eq!(tasks(&read_store, actor.no).len(), 2);
        assert!(read_store.key(&[actor.no as u8; 32]).unwrap().is_some());
    }
    let index = read_store.group_index().unwrap();
    assert_eq!(index.groups.iter().map(|(no, ..)| *no).collect::<Vec<_>>(), [1, 3]);
    store.purge(3, Some(1)).unwrap();
    let index = read_store.group_index().unwrap();
    assert_eq!(index.last_no, 3, "the number of a purged group is not used again");
    store.probe().unwrap();
    // Its name and number can be used again; its runs, segments and blocks are deleted.
    let mut reused = Actor::new(2);
    commit(&mut store, &reused.play_all(&history));
}

/// F27: keys are stored by the trusted time, and move with it when it is set.
pub fn the_trusted_time_decides_the_age_of_keys<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    assert_eq!((store.trust().unwrap(), store.newest(Timestamp(i64::MAX)).unwrap()), (None, None));
    let mut actor = Actor::new(1);
    let mut first = actor.play(SUBMIT).unwrap();
    let task = actor.world.tasks()[0].id;
    first.key = Some(KeyUse { key: [1; 32], body: [2; 32], task });
    let (frame, at) = (first.at, Timestamp(first.at.0 - 1_000));
    store.stamp_keys(at);
    commit(&mut store, &[first]);
    assert_eq!(store.newest(Timestamp(i64::MAX)).unwrap(), Some(frame));
    assert_eq!(store.newest(Timestamp(frame.0 - 1)).unwrap(), Some(at), "later times are left out");

    let up = Uptime { boot: BootId(Uuid::from_u128(7)), ms: 5 };
    let trust = Trust { at, up, ahead_ms: 3, confirmed_ms: 4 };
    store.put_trust(&trust, 0).unwrap();
    assert_eq!(store.trust().unwrap(), Some(trust));
    let leap = 10_000_000;
    let later = Trust { at: Timestamp(at.0 + leap), ahead_ms: 0, confirmed_ms: 0, ..trust };
    store.put_trust(&later, leap).unwrap();
    assert_eq!(store.trust().unwrap(), Some(later));
    assert_eq!(store.forget_keys(later.at).unwrap(), 0, "the key is not older than before");
    assert_eq!(store.forget_keys(Timestamp(later.at.0 + 1)).unwrap(), 1);
}

pub fn an_idempotency_key_is_kept_until_it_is_old<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    let mut first = actor.play(SUBMIT).unwrap();
    let task = actor.world.tasks()[0].id;
    let used = KeyUse { key: [1; 32], body: [2; 32], task };
    first.key = Some(used.clone());
    let at = first.at;
    commit(&mut store, &[first]);
    let read_store = engine.read_store();
    assert_eq!(read_store.key(&[1; 32]).unwrap(), Some(used.clone()));
    assert_eq!(read_store.key(&[3; 32]).unwrap(), None);

    let mut second = actor.play(SUBMIT).unwrap();
    second.key = Some(used.clone());
    refused(&mut store, second);
    assert_eq!(tasks(&read_store, 1).len(), 1, "the same key is not used twice");

    assert_eq!(store.forget_keys(at).unwrap(), 0, "the key is not old enough");
    assert_eq!(read_store.key(&[1; 32]).unwrap(), Some(used));
    assert_eq!(store.forget_keys(Timestamp(at.0 + 1)).unwrap(), 1);
    assert_eq!(read_store.key(&[1; 32]).unwrap(), None);
}

pub fn lists_have_positions_and_pages<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    let start =
        [SUBMIT, Action::GrantSlot, READY, ANSWER, SUBMIT, Action::GrantSlot, SUBMIT, SUBMIT];
    commit(&mut store, &actor.play_all(&start));
    commit(&mut store, &actor.play_all(&[Action::Compact]));
    let read_store = engine.read_store();
    let places = |views: &[TaskView]| -> Vec<(u64, Option<u64>)> {
        views.iter().map(|view| (view.task.ordinal, view.position)).collect()
    };
    let all = read_store.tasks(1, &ALL_TASKS).unwrap();
    assert_eq!(
        places(&all),
        [(1, None), (2, None), (3, Some(1)), (4, Some(2)), (5, Some(0))],
        "the compaction goes before waiting turns"
    );
    let live: Vec<u64> = actor.world.group.waiting().map(|task| task.ordinal).collect();
    assert_eq!(live, [5, 3, 4]);
    assert!(all.iter().all(|view| view.position.is_none() == view.blocked_by.is_none()));
    assert_eq!(all[2].blocked_by, Some(Blocked::Turn));

    let filtered = |filter| places(&read_store.tasks(1, &filter).unwrap());
    let (queued, compaction) = (Some(TaskState::Queued), Some(TaskKind::Compaction));
    assert_eq!(filtered(TaskFilter { state: queued, limit: 1, ..ALL_TASKS }), [(3, Some(1))]);
    assert_eq!(filtered(TaskFilter { kind: compaction, ..ALL_TASKS }), [(5, Some(0))]);
    assert_eq!(filtered(TaskFilter { after: 4, ..ALL_TASKS }), [(5, Some(0))]);
    assert!(read_store.task(TaskId(Uuid::nil())).unwrap().is_none());

    // A claimed task that has not started is the first of the queue.
    let mut claimed = Actor::new(9);
    commit(&mut store, &claimed.play_all(&[SUBMIT, Action::GrantSlot, SUBMIT, SUBMIT]));
    let all = read_store.tasks(9, &ALL_TASKS).unwrap();
    assert!(matches!(all[0].task.stage, Stage::Claimed { retry: None, .. }));
    assert_eq!(places(&all), [(1, Some(0)), (2, Some(1)), (3, Some(2))]);
    let waits: Vec<_> = all.iter().map(|view| view.blocked_by).collect();
    assert_eq!(waits, [Blocked::Agent, Blocked::Turn, Blocked::Turn].map(Some));
    let claimed_view = read_store.task(all[0].task.id).unwrap().unwrap();
    assert_eq!((claimed_view.position, claimed_view.blocked_by), (Some(0), Some(Blocked::Agent)));
    store.purge(9, Some(1)).unwrap();

    let mut others: Vec<Actor> = (2..5).map(Actor::new).collect();
    let batch: Vec<GroupCommit> =
        others.iter_mut().map(|a| a.play(Action::Configure(0)).unwrap()).collect();
    commit(&mut store, &batch);
    let page = |status, after, limit| -> Vec<u32> {
        read_store.groups(status, after, limit).unwrap().iter().map(|listed| listed.no).collect()
    };
    assert_eq!(page(None, 0, 2), [1, 2]);
    assert_eq!(page(None, 2, 9), [3, 4]);
    assert_eq!(page(Some("idle"), 0, 9), [2, 3, 4]);
    assert_eq!(page(Some("running"), 0, 9), [1]);
}

/// F26.
pub fn a_directory_has_one_owner<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let first = E::open(dir.path()).unwrap();
    let second = E::open(dir.path());
    assert!(matches!(second, Err(StoreError::InUse(_))));
    drop(first);
    assert!(E::open(dir.path()).is_ok());
}
