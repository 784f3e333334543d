//! How far ended tasks were handed on.

use greenroom_actors::storage::{Archive as _, EndedAt, EndedFilter, Store as _, TaskFilter};
use greenroom_core::Timestamp;

use crate::{
    Engine,
    actor::{ANSWER, Actor, READY, SUBMIT, commit},
    world::Move,
};

/// The place outlives the process, and each who is handed something has their own.
pub fn the_place_up_to_which_tasks_were_handed_on_is_kept<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let place = |at, key| EndedAt { at: Timestamp(at), key };
    {
        let engine = E::open(dir.path()).unwrap();
        let mut store = engine.store();
        assert_eq!(engine.archive().exported("one").unwrap(), None);
        store.put_exported("one", place(5, 7)).unwrap();
        store.put_exported("other", place(i64::MIN, i64::MAX)).unwrap();
        store.put_exported("one", place(4, 9)).unwrap();
    }
    let engine = E::open(dir.path()).unwrap();
    let archive = engine.archive();
    // Back as well: a clock may have been set.
    assert_eq!(archive.exported("one").unwrap(), Some(place(4, 9)));
    assert_eq!(archive.exported("other").unwrap(), Some(place(i64::MIN, i64::MAX)));
    assert_eq!(archive.exported("third").unwrap(), None);
}

/// From what is said of an ended task, its row is found.
pub fn an_ended_task_is_found_by_its_group_and_ordinal<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut actor = Actor::new(3);
    let writes = actor.play_all(&[SUBMIT, Move::Grant, READY, ANSWER, SUBMIT, Move::Grant, ANSWER]);
    commit(&mut engine.store(), &writes);
    let archive = engine.archive();
    let all = EndedFilter { from: None, to: None, after: None, limit: 10 };
    let ended = archive.ended_turns(&all).unwrap();
    assert_eq!(ended.iter().map(|turn| turn.ordinal).collect::<Vec<_>>(), [1, 2]);
    for turn in ended {
        let one = TaskFilter { state: None, kind: None, after: turn.ordinal - 1, limit: 1 };
        let tasks = archive.tasks(turn.group, &one).unwrap();
        let found = (tasks[0].task.ordinal, tasks[0].task.ended_at);
        assert_eq!((turn.group, found), (3, (turn.ordinal, Some(turn.place.at))));
    }
}
