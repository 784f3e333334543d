//! The position up to which ended tasks were exported.

use greenroom_actors::storage::{EndedAt, EndedFilter, ReadStore as _, Store as _, TaskFilter};
use greenroom_core::Timestamp;

use super::{Engine, actor::group_with_turns, open};

/// The position survives the process, and each exporter has its own.
pub fn the_export_position_survives_a_restart<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let place = |at, key| EndedAt { at: Timestamp(at), key };
    {
        let engine = E::open(dir.path()).unwrap();
        let mut store = engine.store();
        assert_eq!(engine.read_store().exported("one").unwrap(), None);
        store.put_exported("one", place(5, 7)).unwrap();
        store.put_exported("other", place(i64::MIN, i64::MAX)).unwrap();
        store.put_exported("one", place(4, 9)).unwrap();
    }
    let engine = E::open(dir.path()).unwrap();
    let read_store = engine.read_store();
    // The position may go back: a clock may have been set.
    assert_eq!(read_store.exported("one").unwrap(), Some(place(4, 9)));
    assert_eq!(read_store.exported("other").unwrap(), Some(place(i64::MIN, i64::MAX)));
    assert_eq!(read_store.exported("third").unwrap(), None);
}

/// The place of an ended task leads to its row.
pub fn an_ended_task_is_found_by_its_group_and_ordinal<E: Engine>() {
    let (_dir, engine, _, read_store) = open::<E>();
    group_with_turns(&engine, 3, 2);
    let all = EndedFilter { from: None, to: None, after: None, limit: 10 };
    let ended = read_store.ended_turns(&all).unwrap();
    assert_eq!(ended.iter().map(|turn| turn.ordinal).collect::<Vec<_>>(), [1, 2]);
    for turn in ended {
        let one = TaskFilter { state: None, kind: None, after: turn.ordinal - 1, limit: 1 };
        let tasks = read_store.tasks(turn.group, &one).unwrap();
        let found = (tasks[0].task.ordinal, tasks[0].task.last_frame().map(|last| last.at));
        assert_eq!((turn.group, found), (3, (turn.ordinal, Some(turn.place.at))));
    }
}
