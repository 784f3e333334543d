//! Committing, fencing, reading back, deleting.

use std::collections::BTreeMap;

use greenroom_actors::{
    agent::acp,
    storage::{
        Archive, FrameFilter, Hydration, KeyUse, Store, StoreError, Tally, TaskFilter, TaskView,
        Writes,
    },
};
use greenroom_core::{
    Blocked, Compaction, Group, RunId, SessionId, Sign, Source, Task, TaskId, TaskKind, TaskState,
    Timestamp, Trust, Write,
    lock::{BootId, Uptime},
};
use proptest::{prelude::*, test_runner::TestRunner};
use uuid::Uuid;

use crate::{
    Engine,
    actor::{ANSWER, Actor, READY, SUBMIT, commit, refused},
    world::{Bound, Move, Seen, Spoken, moves},
};

const EVERYTHING: FrameFilter = FrameFilter {
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
const ALL_TASKS: TaskFilter = TaskFilter { state: None, kind: None, after: 0, limit: 10_000 };
/// No lock of these tests expires.
pub const UP: Uptime = Uptime { boot: BootId(Uuid::nil()), ms: 0 };
/// Whatever the facts are, they have a time.
const NOW: Timestamp = Timestamp(5_000);

fn tasks(archive: &impl Archive, no: u32) -> Vec<Task> {
    archive.tasks(no, &ALL_TASKS).unwrap().into_iter().map(|view| view.task).collect()
}

pub fn groups_of_one_batch_are_stored_together<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut actors = [Actor::new(1), Actor::new(2), Actor::new(3)];
    let batch: Vec<Writes> =
        actors.iter_mut().flat_map(|actor| actor.play_all(&[SUBMIT, Move::Grant, READY])).collect();
    commit(&mut engine.store(), &batch);
    let archive = engine.archive();
    for actor in &actors {
        assert_eq!(archive.group(actor.no).unwrap(), Some(actor.standing()));
        assert_eq!(archive.blocks(actor.no, &EVERYTHING).unwrap(), actor.blocks);
        let all: Vec<Task> = actor.world.reference.tasks().cloned().collect();
        assert_eq!(tasks(&archive, actor.no), all);
    }
    assert_eq!(archive.group(4).unwrap(), None);
    let busy = archive.group_index().unwrap();
    let expected: Vec<_> = actors.iter().map(|actor| (actor.no, actor.id.clone(), true)).collect();
    assert_eq!(busy.groups, expected);
    let census = BTreeMap::from([("running".to_owned(), 3)]);
    assert_eq!(archive.census(&[]).unwrap(), (census, 0));
}

/// I14.
pub fn a_later_owner_fences_the_earlier_one_and_nobody_else<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let [mut fenced, mut other] = [Actor::new(1), Actor::new(2)];
    commit(&mut store, &[fenced.play(SUBMIT).unwrap(), other.play(SUBMIT).unwrap()]);
    let before = fenced.standing();
    assert_eq!(store.adopt(1, UP).unwrap().unwrap().epoch, 2);

    let late = fenced.play_all(&[SUBMIT, Move::Grant]);
    let fine = other.play(SUBMIT).unwrap();
    let mut batch = late;
    batch.insert(1, fine);
    let answers = store.commit(&batch).unwrap();
    let fenced_out = |answer: &Result<(), StoreError>| matches!(answer, Err(StoreError::Fenced));
    let seen: Vec<bool> = answers.iter().map(fenced_out).collect();
    assert_eq!(seen, [true, false, true], "{answers:?}");
    let archive = engine.archive();
    assert_eq!(archive.group(1).unwrap(), Some(before), "nothing of the old owner is stored");
    assert_eq!((tasks(&archive, 1).len(), tasks(&archive, 2).len()), (1, 2));
    assert_eq!(archive.group(2).unwrap(), Some(other.standing()));
}

pub fn adopting_gives_the_next_epoch_and_the_open_tasks_in_order<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    assert!(store.adopt(1, UP).unwrap().is_none(), "a group that nobody made");
    let mut actor = Actor::new(1);
    let history = [SUBMIT, Move::Grant, READY, SUBMIT, SUBMIT, Move::Compact, ANSWER];
    commit(&mut store, &actor.play_all(&history));
    for epoch in 2..5 {
        let Hydration { epoch: given, head, tasks, run, .. } = store.adopt(1, UP).unwrap().unwrap();
        assert_eq!((given, &head), (epoch, actor.world.group.head()));
        let ordinals: Vec<u64> = tasks.iter().map(|task| task.ordinal).collect();
        assert_eq!(ordinals, [2, 3, 4], "the first one has ended");
        assert_eq!(run.map(|run| run.id), actor.world.group.run().map(|run| run.id));
    }
}

/// I3: a log that had a gap would have it for ever, and later frames would collide.
pub fn facts_that_do_not_follow_the_log_are_not_written<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let (mut actor, mut other) = (Actor::new(1), Actor::new(2));
    commit(&mut store, &actor.play_all(&[SUBMIT]));
    let before = actor.standing();
    let [second, third] = [actor.play(SUBMIT).unwrap(), actor.play(SUBMIT).unwrap()];
    let mut batch = [third, other.play(SUBMIT).unwrap()];
    let answers = store.commit(&batch).unwrap();
    assert!(matches!(answers[..], [Err(StoreError::Fenced), Ok(())]), "{answers:?}");
    assert_eq!(engine.archive().group(1).unwrap(), Some(before));
    commit(&mut store, &[second]);
    batch.swap(0, 1);
    commit(&mut store, &batch[1..]);
    let answers = store.commit(&batch[1..]).unwrap();
    assert!(matches!(answers[..], [Err(StoreError::Fenced)]), "twice: {answers:?}");
    assert_eq!(engine.archive().group(1).unwrap(), Some(actor.standing()));
}

/// I1, though the actor forgot it.
pub fn a_second_claimed_task_is_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, SUBMIT, Move::Grant]));
    let second = actor.world.group.waiting().next().unwrap().id;
    let before = engine.archive().task(second).unwrap().unwrap().task;
    let claim = actor.forge(NOW, vec![Write::TaskClaimed { task: second }]);
    refused(&mut store, claim);
    let run = RunId(Uuid::from_u128(1));
    let start = actor.forge(NOW, vec![Write::TaskStarted { task: second, attempt: 1, run }]);
    refused(&mut store, start);
    assert_eq!(engine.archive().task(second).unwrap().unwrap().task, before);

    let mut other = Actor::new(2);
    commit(&mut store, &other.play_all(&[SUBMIT, Move::Grant]));
}

/// I9.
pub fn a_terminal_state_is_not_written_over<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, Move::Grant, READY, ANSWER]));
    let ended = tasks(&engine.archive(), 1).remove(0);
    assert_eq!(ended.state, TaskState::Completed);
    let record = Box::new(Task { state: TaskState::Failed, ..ended.clone() });
    let again = Write::TaskEnded {
        task: ended.id,
        kind: ended.kind(),
        attempt: 1,
        state: TaskState::Failed,
        stop_reason: None,
        error: None,
        interrupted: None,
        findings: Vec::new(),
        record,
    };
    let again = actor.forge(NOW, vec![again]);
    refused(&mut store, again);
    assert_eq!(tasks(&engine.archive(), 1), [ended]);
}

/// AM-1 and I4, though the actor forgot them.
pub fn a_second_living_run_and_a_second_open_segment_are_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    commit(&mut store, &actor.play_all(&[SUBMIT, Move::Grant, READY]));
    let run = RunId(Uuid::from_u128(9));
    let second =
        actor.forge(NOW, vec![Write::RunStarted { run, agent: "one".into(), listens: false }]);
    refused(&mut store, second);
    let session = SessionId("fork".into());
    for segment in [1, 2] {
        let session = session.clone();
        let (parent, provenance) = (Some(segment), None);
        let fork = Write::SegmentStarted { segment: segment + 1, parent, session, provenance };
        let fork = actor.forge(NOW, vec![fork]);
        refused(&mut store, fork);
    }
}

pub fn what_is_refused_leaves_nothing_behind<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let [mut one, mut other] = [Actor::new(1), Actor::new(2)];
    commit(&mut store, &[one.play(SUBMIT).unwrap()]);
    let before = one.standing();
    let mut bad = one.play(SUBMIT).unwrap();
    let twice = bad.writes[0].clone();
    bad.standing.head.last_seq += twice.frames();
    bad.writes.push(twice);
    let answer = store.commit(&[other.play(SUBMIT).unwrap(), bad]);
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    let archive = engine.archive();
    assert_eq!(archive.group(1).unwrap(), Some(before));
    assert_eq!(archive.group(2).unwrap(), None, "all of a transaction, or none");
}

/// I13 through the database, I3, and byte for byte (AM-10): every history, stored in batches of
/// any size and read back by a new server, is the state that made it.
pub fn any_history_is_read_back_as_it_was<E: Engine>() {
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    let strategy = (moves(150), prop::collection::vec((1..6_usize, any::<bool>()), 1..8));
    TestRunner::new(config)
        .run(&strategy, |(history, batches)| {
            let dir = tempfile::tempdir().unwrap();
            let mut engine = E::open(dir.path()).unwrap();
            let mut store = engine.store();
            let mut actor = Actor::new(7);
            let mut batch: Vec<Writes> = Vec::new();
            let mut sizes = batches.iter().cycle();
            let (mut size, mut merged) = (1, false);
            for next in history {
                if matches!(next, Move::Crash) {
                    commit(&mut store, &batch);
                    batch.clear();
                    drop((store, engine));
                    engine = E::open(dir.path()).unwrap();
                    store = engine.store();
                    check(&actor, &mut store, &engine.archive());
                    actor.epoch += u64::from(actor.world.group.head().created_at.is_some());
                }
                // Facts of one moment may be one commit.
                let moment = actor.world.now;
                actor.world.now.0 -= i64::from(merged && !batch.is_empty());
                let Some(writes) = actor.play(next) else {
                    actor.world.now = actor.world.now.max(moment);
                    continue;
                };
                match batch.last_mut() {
                    Some(last) if merged && last.at == writes.at => {
                        last.standing = writes.standing;
                        last.writes.extend(writes.writes);
                        last.blocks.extend(writes.blocks);
                    }
                    _ => batch.push(writes),
                }
                if batch.len() >= size {
                    commit(&mut store, &batch);
                    batch.clear();
                    (size, merged) = *sizes.next().unwrap();
                }
            }
            commit(&mut store, &batch);
            check(&actor, &mut store, &engine.archive());
            if actor.world.group.head().created_at.is_some() {
                check_tally(&actor, &engine.archive());
            }
            Ok(())
        })
        .unwrap();
}

/// I13: a task that is made again is given back, after a restart, what its first attempt was seen
/// to compact.
pub fn what_an_earlier_attempt_compacted_is_read_back<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, mut actor) = (engine.store(), Actor::new(7));
    let (source, sign) = (Source::HermesStderr, Sign::Completed);
    let done = Move::Signal(Seen { source, sign, key: 0, lineage: (1, 0) });
    let again = [Move::AnswerError(-32603), Move::ExpireA(Bound::Backoff), Move::Grant];
    for next in [Move::Terms(0, 12), SUBMIT, Move::Grant, READY, done].into_iter().chain(again) {
        let writes = actor.play(next);
        commit(&mut store, writes.as_slice());
    }
    let current = actor.world.group.current().unwrap();
    assert_eq!((current.state, current.attempt), (TaskState::Running, 2));
    assert_eq!(actor.world.reference.kept().len(), 1);
    check(&actor, &mut store, &engine.archive());
}

/// Compactions as far as a row holds them: what a run still waits to hear of them ends with it.
fn shown(compactions: &[Compaction]) -> Vec<(String, Timestamp, Option<Timestamp>)> {
    let text = |compaction| serde_json::to_string(compaction).unwrap();
    compactions.iter().map(|own| (text(own), own.started_at, own.ended_at)).collect()
}

/// Holds what was stored against what happened.
fn check(actor: &Actor, store: &mut impl Store, archive: &impl Archive) {
    let (group, reference) = (&actor.world.group, &actor.world.reference);
    let Some(Hydration { head, tasks: open, run, compactions, permissions, .. }) =
        store.adopt(actor.no, UP).unwrap()
    else {
        assert_eq!(group.head().created_at, None);
        return;
    };
    // The phase of a run and who cuts off a turn are not stored: the rules' own tests show that
    // they make no difference.
    assert_eq!(run.map(|run| run.id), reference.run().map(|run| run.id));
    let (kept, run) = (reference.kept(), reference.run().cloned());
    assert_eq!(shown(&compactions), shown(&kept));
    let turn = reference.turn().cloned();
    let restored = Group::restore(head, open, run, turn, kept, permissions);
    assert_eq!(restored, reference.restore());
    let stored = archive.compactions(actor.no, None, 10_000).unwrap();
    let mut stored: Vec<_> = stored.into_iter().map(|(_, compaction)| compaction).collect();
    stored.sort_by_key(|compaction| compaction.id);
    let all: Vec<_> = reference.compactions().cloned().collect();
    assert_eq!(shown(&stored), shown(&all));
    assert_eq!(archive.group(actor.no).unwrap(), Some(actor.standing()));
    let all: Vec<Task> = reference.tasks().cloned().collect();
    assert_eq!(tasks(archive, actor.no), all);
    let blocks = archive.blocks(actor.no, &EVERYTHING).unwrap();
    assert_eq!(blocks, actor.blocks);
    let seqs: Vec<u64> = blocks.iter().flat_map(|b| b.frames().map(|f| f.seq)).collect();
    assert_eq!(seqs, (1..=group.head().last_seq).collect::<Vec<_>>());
    let segments = archive.segments(actor.no, 0, 10_000).unwrap();
    let numbers: Vec<u32> = segments.iter().map(|segment| segment.segment).collect();
    assert_eq!(numbers, (1..=group.head().segment).collect::<Vec<_>>());
    for pair in segments.windows(2) {
        let last = pair[0].closed.as_ref().map(|(seq, ..)| *seq);
        assert_eq!(last, Some(pair[1].opened.0 - 1), "AM-12: {pair:?}");
    }
    assert!(segments.last().is_none_or(|open| open.closed.is_none()), "AM-11: {segments:?}");
    let runs = archive.runs(actor.no, None, 10_000).unwrap();
    let alive: Vec<RunId> = runs.iter().filter(|r| r.ended.is_none()).map(|run| run.id).collect();
    assert_eq!(alive, group.run().map(|run| run.id).into_iter().collect::<Vec<_>>());
    if let (Some(live), Some(task)) = (reference.turn(), group.current()) {
        let mut heard = greenroom_core::Turn::new(live.run, live.prompt_id);
        (heard.cut, heard.past) = (live.cut, live.past);
        let after = task.seq_first.unwrap() - 1;
        let filter = FrameFilter { after, task: Some(task.id), ..EVERYTHING };
        let blocks = archive.blocks(actor.no, &filter).unwrap();
        let said = blocks
            .iter()
            .flat_map(|block| block.frames().filter(|frame| filter.takes(block, *frame)));
        let asked = greenroom_core::Fold { output: true, ..Default::default() };
        for frame in said {
            match acp::hear(frame.payload) {
                _ if frame.kind == "greenroom/request_refused" => heard.hear(&asked),
                Ok(acp::Heard::Notice(notice)) => heard.hear(&notice.fold),
                Ok(acp::Heard::Permission { .. } | acp::Heard::Request { .. })
                    if frame.kind == "session/request_permission" =>
                {
                    heard.hear(&asked);
                }
                _ => {}
            }
        }
        assert_eq!(&heard, live, "what an attempt said is in its frames");
    }
}

/// Holds the numbers of a scrape against the one group that there is.
fn check_tally(actor: &Actor, archive: &impl Archive) {
    let (standing, reference) = (actor.standing(), &actor.world.reference);
    let open: Vec<&Task> = reference.tasks().filter(|task| !task.state.is_terminal()).collect();
    let mut expected = Tally {
        groups: BTreeMap::from([(word(&standing.status), 1)]),
        queued: standing.queue_length,
        wait_for_slot: u64::from(standing.blocked_by == Some(Blocked::Slot)),
        permissions: actor.world.group.permissions().len() as u64,
        compactions: u64::from(standing.is_compacting),
        ..Tally::default()
    };
    for task in &open {
        *expected.tasks.entry((word(&task.kind()), word(&task.state))).or_default() += 1;
        if task.state == TaskState::Running {
            expected.running_since.insert(word(&task.kind()), task.started_at.unwrap());
        }
    }
    // The oldest is the first that was accepted: the wall clock may have been set back since.
    let waits = |task: &&&Task| task.state != TaskState::Running;
    let (claimed, waiting): (Vec<&Task>, Vec<&Task>) =
        open.iter().filter(waits).partition(|task| task.claimed_at.is_some());
    if let Some(first) = waiting.iter().min_by_key(|task| task.ordinal) {
        expected.waiting_since.insert(word(&standing.blocked_by), first.created_at);
    }
    for task in claimed {
        let by = word(&Some(Blocked::Agent));
        let oldest = expected.waiting_since.entry(by).or_insert(task.created_at);
        *oldest = task.created_at.min(*oldest);
    }
    assert_eq!(archive.tally(&[]).unwrap(), expected, "{open:#?}");
}

/// The contract's word for a value.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}

pub fn a_purge_takes_one_group_and_no_other<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let history = [SUBMIT, Move::Grant, READY, Move::Say(Spoken::Chunk(1)), ANSWER, SUBMIT];
    // Neighbours in every order, and the smallest number there is.
    let mut actors: Vec<Actor> = (1..=3).map(Actor::new).collect();
    for actor in &mut actors {
        let mut batch = actor.play_all(&history);
        let task = actor.world.reference.tasks().next().unwrap().id;
        batch[0].key = Some(KeyUse { key: [actor.no as u8; 32], body: [0; 32], task });
        commit(&mut store, &batch);
    }
    store.purge(2).unwrap();
    store.purge(9).unwrap();
    let archive = engine.archive();
    assert_eq!(archive.group(2).unwrap(), None);
    assert!(archive.blocks(2, &EVERYTHING).unwrap().is_empty());
    assert!(store.adopt(2, UP).unwrap().is_none());
    let task = actors[1].world.reference.tasks().next().unwrap().id;
    assert!(archive.task(task).unwrap().is_none());
    assert_eq!(archive.key(&[2; 32]).unwrap(), None);
    for actor in [&actors[0], &actors[2]] {
        assert_eq!(archive.group(actor.no).unwrap(), Some(actor.standing()));
        assert_eq!(archive.blocks(actor.no, &EVERYTHING).unwrap(), actor.blocks);
        assert_eq!(tasks(&archive, actor.no).len(), 2);
        assert!(archive.key(&[actor.no as u8; 32]).unwrap().is_some());
    }
    let index = archive.group_index().unwrap();
    assert_eq!(index.groups.iter().map(|(no, ..)| *no).collect::<Vec<_>>(), [1, 3]);
    store.purge(3).unwrap();
    let index = archive.group_index().unwrap();
    assert_eq!(index.last_no, 3, "the number of a purged group is not used again");
    store.probe().unwrap();
    // Its name and its number can be used again; runs, segments and blocks are really gone.
    let mut again = Actor::new(2);
    commit(&mut store, &again.play_all(&history));
}

/// RELIABILITY F27: keys are stored by the trusted time, and move with it when it is set.
pub fn keys_are_as_old_as_the_trusted_time_says<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    assert_eq!((store.trust().unwrap(), store.newest(Timestamp(i64::MAX)).unwrap()), (None, None));
    let mut actor = Actor::new(1);
    let mut first = actor.play(SUBMIT).unwrap();
    let task = actor.world.reference.tasks().next().unwrap().id;
    first.key = Some(KeyUse { key: [1; 32], body: [2; 32], task });
    let (frame, at) = (first.at, Timestamp(first.at.0 - 1_000));
    store.stamp_keys(at);
    commit(&mut store, &[first]);
    assert_eq!(store.newest(Timestamp(i64::MAX)).unwrap(), Some(frame));
    assert_eq!(store.newest(Timestamp(frame.0 - 1)).unwrap(), Some(at), "others are of no clock");

    let up = Uptime { boot: BootId(Uuid::from_u128(7)), ms: 5 };
    let trust = Trust { at, up, ahead_ms: 3, confirmed_ms: 4 };
    store.put_trust(&trust, 0).unwrap();
    assert_eq!(store.trust().unwrap(), Some(trust));
    let leap = 10_000_000;
    let later = Trust { at: Timestamp(at.0 + leap), ahead_ms: 0, confirmed_ms: 0, ..trust };
    store.put_trust(&later, leap).unwrap();
    assert_eq!(store.trust().unwrap(), Some(later));
    assert_eq!(store.forget_keys(later.at).unwrap(), 0, "it is not older than before");
    assert_eq!(store.forget_keys(Timestamp(later.at.0 + 1)).unwrap(), 1);
}

pub fn a_key_is_kept_until_it_is_forgotten<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    let mut first = actor.play(SUBMIT).unwrap();
    let task = actor.world.reference.tasks().next().unwrap().id;
    let used = KeyUse { key: [1; 32], body: [2; 32], task };
    first.key = Some(used.clone());
    let at = first.at;
    commit(&mut store, &[first]);
    let archive = engine.archive();
    assert_eq!(archive.key(&[1; 32]).unwrap(), Some(used.clone()));
    assert_eq!(archive.key(&[3; 32]).unwrap(), None);

    let mut second = actor.play(SUBMIT).unwrap();
    second.key = Some(used.clone());
    refused(&mut store, second);
    assert_eq!(tasks(&archive, 1).len(), 1, "the same key is not used twice");

    assert_eq!(store.forget_keys(at).unwrap(), 0, "not older than that");
    assert_eq!(archive.key(&[1; 32]).unwrap(), Some(used));
    assert_eq!(store.forget_keys(Timestamp(at.0 + 1)).unwrap(), 1);
    assert_eq!(archive.key(&[1; 32]).unwrap(), None);
}

pub fn lists_tell_positions_and_pages<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actor = Actor::new(1);
    let start = [SUBMIT, Move::Grant, READY, ANSWER, SUBMIT, Move::Grant, SUBMIT, SUBMIT];
    commit(&mut store, &actor.play_all(&start));
    commit(&mut store, &actor.play_all(&[Move::Compact]));
    let archive = engine.archive();
    let places = |views: &[TaskView]| -> Vec<(u64, Option<u64>)> {
        views.iter().map(|view| (view.task.ordinal, view.position)).collect()
    };
    let all = archive.tasks(1, &ALL_TASKS).unwrap();
    assert_eq!(
        places(&all),
        [(1, None), (2, None), (3, Some(1)), (4, Some(2)), (5, Some(0))],
        "the compaction goes before waiting turns"
    );
    let live: Vec<u64> = actor.world.group.waiting().map(|task| task.ordinal).collect();
    assert_eq!(live, [5, 3, 4]);
    assert!(all.iter().all(|view| view.position.is_none() == view.blocked_by.is_none()));
    assert_eq!(all[2].blocked_by, Some(Blocked::Turn));

    let filtered = |filter| places(&archive.tasks(1, &filter).unwrap());
    let (queued, compaction) = (Some(TaskState::Queued), Some(TaskKind::Compaction));
    assert_eq!(filtered(TaskFilter { state: queued, limit: 1, ..ALL_TASKS }), [(3, Some(1))]);
    assert_eq!(filtered(TaskFilter { kind: compaction, ..ALL_TASKS }), [(5, Some(0))]);
    assert_eq!(filtered(TaskFilter { after: 4, ..ALL_TASKS }), [(5, Some(0))]);
    assert!(archive.task(TaskId(Uuid::nil())).unwrap().is_none());

    // A claimed task that has not begun is the first of the queue.
    let mut claimed = Actor::new(9);
    commit(&mut store, &claimed.play_all(&[SUBMIT, Move::Grant, SUBMIT, SUBMIT]));
    let all = archive.tasks(9, &ALL_TASKS).unwrap();
    assert!(all[0].task.claimed_at.is_some() && all[0].task.state == TaskState::Queued);
    assert_eq!(places(&all), [(1, Some(0)), (2, Some(1)), (3, Some(2))]);
    let waits: Vec<_> = all.iter().map(|view| view.blocked_by).collect();
    assert_eq!(waits, [Blocked::Agent, Blocked::Turn, Blocked::Turn].map(Some));
    let again = archive.task(all[0].task.id).unwrap().unwrap();
    assert_eq!((again.position, again.blocked_by), (Some(0), Some(Blocked::Agent)));
    store.purge(9).unwrap();

    let mut others: Vec<Actor> = (2..5).map(Actor::new).collect();
    let batch: Vec<Writes> =
        others.iter_mut().map(|a| a.play(Move::Configure(0)).unwrap()).collect();
    commit(&mut store, &batch);
    let page = |status, after, limit| -> Vec<u32> {
        archive.groups(status, after, limit).unwrap().iter().map(|listed| listed.no).collect()
    };
    assert_eq!(page(None, 0, 2), [1, 2]);
    assert_eq!(page(None, 2, 9), [3, 4]);
    assert_eq!(page(Some("idle"), 0, 9), [2, 3, 4]);
    assert_eq!(page(Some("running"), 0, 9), [1]);
}

/// RELIABILITY F26.
pub fn a_directory_has_one_owner<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let first = E::open(dir.path()).unwrap();
    let second = E::open(dir.path());
    assert!(matches!(second, Err(StoreError::InUse(_))));
    drop(first);
    assert!(E::open(dir.path()).is_ok());
}
