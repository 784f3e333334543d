//! Properties of the SQLite implementation beyond the suite.

mod verify;

use std::{collections::BTreeSet, fs};

use actix::SyncArbiter;
use greenroom_actors::{
    storage::{
        FrameFilter, GroupCommit, Query, ReadStore, Reader, Store as _, StoreError, TaskFilter,
        sqlite::{Database, SqliteStore},
    },
    transcript::frame::Block,
};
use greenroom_core::{Deadline, Existence, Fact, TaskId};
use greenroom_testing::world::Action;
use rusqlite::Connection;

use super::{
    Engine,
    actor::{Actor, READY, SUBMIT, commit, differences},
    conformance::UP,
    open,
};

/// Changes rows past the store.
pub fn change(path: &std::path::Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// All reads of one query see the same state, even if a commit comes in between; the next query
/// sees the commit.
#[test]
fn one_query_reads_one_snapshot() {
    let (_dir, database, mut store, _) = open::<Database>();
    let mut actor = Actor::new(7);
    commit(&mut store, &actor.play_all(&[SUBMIT, SUBMIT]));
    let tasks: Vec<TaskId> = actor.world.group.waiting().map(|task| task.id).collect();
    let more: Vec<GroupCommit> = actor.play_all(&[Action::GrantSlot, READY, SUBMIT]);
    actix_rt::System::new().block_on(async {
        let opener = database.opener();
        let readers = SyncArbiter::start(1, move || {
            let opener = opener.clone();
            Reader::new(move || opener.read_store())
        });
        let read_all = |read_store: &dyn ReadStore, tasks: &[TaskId]| {
            let filter = TaskFilter { state: None, kind: None, after: 0, limit: 9 };
            let listed = read_store.tasks(7, &filter).unwrap();
            let alone = tasks.iter().map(|task| read_store.task(*task).unwrap().unwrap());
            let views = listed.into_iter().chain(alone).map(|view| (view.task, view.position));
            let views: Vec<_> = views.collect();
            let filter = FrameFilter { frames_max: 99, bytes_max: 9_999, ..Default::default() };
            let blocks = read_store.blocks(7, &filter).unwrap();
            let seqs: Vec<u64> = blocks.iter().map(Block::last_seq).collect();
            let summary = read_store.group(7).unwrap().unwrap();
            let snapshot = read_store.snapshot(7).unwrap().unwrap();
            assert_eq!(snapshot.summary.state.last_seq, summary.state.last_seq);
            read_store.gauges(&[]).unwrap();
            (views, summary.state.last_seq, seqs)
        };
        let (done, answer) = tokio::sync::oneshot::channel();
        let known = tasks.clone();
        readers.do_send(Query(Box::new(move |read_store| {
            let read_store = read_store.unwrap();
            let before = read_all(read_store, &known);
            commit(&mut store, &more);
            assert_eq!(read_all(read_store, &known), before);
            _ = done.send(before);
        })));
        let before = answer.await.unwrap();
        let (done, answer) = tokio::sync::oneshot::channel();
        readers.do_send(Query(Box::new(move |read_store| {
            _ = done.send(read_all(read_store.unwrap(), &tasks));
        })));
        assert_ne!(answer.await.unwrap(), before);
    });
}

/// I2: the rows of the tasks decide which tasks wait. A different count in the group's row breaks
/// the group only if a row is hidden or missing.
#[test]
fn a_wrong_count_breaks_no_group() {
    let (_dir, database, mut store, _) = open::<Database>();
    let mut actor = Actor::new(7);
    commit(&mut store, &actor.play_all(&[SUBMIT, SUBMIT, SUBMIT]));
    let waiting = |store: &mut SqliteStore| match store.adopt(7, UP) {
        Ok(stored) => Ok(stored.unwrap().tasks.len()),
        Err(StoreError::Unreadable(row)) => Err(row.what),
        Err(err) => panic!("{err}"),
    };
    for counted in [0, 9] {
        change(database.path(), &format!("UPDATE heads SET queue_length = {counted}"));
        assert_eq!(waiting(&mut store), Ok(3), "{counted}");
    }
    // As earlier versions ended a task that they could not read.
    change(database.path(), "UPDATE tasks SET state = 'failed', error = '{' WHERE key & 15 = 3");
    assert_eq!(waiting(&mut store), Ok(2));
    change(database.path(), "UPDATE tasks SET state = 'unknown' WHERE key & 15 = 2");
    assert!(waiting(&mut store).unwrap_err().contains("2 are open"));
    change(database.path(), "UPDATE tasks SET state = 'queued' WHERE key & 15 = 2");
    assert_eq!(waiting(&mut store), Ok(2));
    change(database.path(), "DELETE FROM tasks WHERE key & 15 > 1");
    assert!(waiting(&mut store).unwrap_err().contains("2 are open"));
}

/// I7: without its first frame the output of a running task cannot be read back.
#[test]
fn a_running_task_without_a_first_frame_cannot_be_read() {
    let (_dir, database, mut store, _) = open::<Database>();
    commit(&mut store, &Actor::new(7).play_all(&[SUBMIT, Action::GrantSlot, READY]));
    change(database.path(), "UPDATE tasks SET seq_first = 0 WHERE state = 'running'");
    let answer = store.adopt(7, UP);
    assert!(matches!(answer, Err(StoreError::Unreadable(_))), "{answer:?}");
}

/// I13: of a row that contradicts itself its state counts, and `verify` reports the rest.
#[test]
fn a_task_with_columns_that_its_state_cannot_have_is_read_and_reported() {
    let due = serde_json::to_string(&Deadline::default()).unwrap();
    #[rustfmt::skip]
    let cases = [
        ("queued, with an end",     "ended_at = 1, seq_last = 2 WHERE state = 'queued'", "Queued"),
        ("queued, with a run",      "run = randomblob(16) WHERE state = 'queued'", "Queued"),
        ("queued, with a START",    "started_at = 1, run = randomblob(16), segment = 1, seq_first = 1 \
                                     WHERE state = 'queued'", "Queued"),
        ("queued, with a backoff",  "retry_at = $due WHERE state = 'queued'", "Queued"),
        ("running, with an end",    "ended_at = 1, seq_last = 2 WHERE state = 'running'", "Running"),
        ("running, with an error",  "error = '{\"code\":\"x\",\"message\":\"\"}' WHERE state = 'running'", "Running"),
        ("running, unclaimed",      "claimed_at = NULL WHERE state = 'running'", "Running"),
        ("ended, with half an end", "state = 'failed', ended_at = 1 WHERE state = 'queued'", "Ended"),
        ("ended, with a backoff",   "state = 'failed', retry_at = $due WHERE state = 'queued'", "Ended"),
    ];
    for (name, set, stage) in cases {
        let (_dir, database, mut store, read_store) = open::<Database>();
        let play = [SUBMIT, Action::GrantSlot, READY, SUBMIT];
        commit(&mut store, &Actor::new(7).play_all(&play));
        assert_eq!(read_store.contradictory_tasks(7).unwrap(), BTreeSet::new(), "{name}");
        change(
            database.path(),
            &format!("UPDATE tasks SET {}", set.replace("$due", &format!("'{due}'"))),
        );
        let found = read_store.contradictory_tasks(7).unwrap();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(read_store.contradictory_tasks(6).unwrap(), BTreeSet::new(), "{name}");
        let filter = TaskFilter { state: None, kind: None, after: 0, limit: 9 };
        let tasks = read_store.tasks(7, &filter).unwrap();
        let stages = tasks.iter().map(|view| format!("{:?}", view.task.stage));
        assert_eq!(stages.filter(|found| found.starts_with(stage)).count(), 1, "{name}");
    }
}

/// AM-4: a group whose purge was ordered is still to be purged after a restart.
#[test]
fn an_ordered_purge_survives_a_restart() {
    let (dir, database, mut store, read_store) = open::<Database>();
    let mut actor = Actor::new(7);
    commit(&mut store, &actor.play_all(&[SUBMIT, Action::GrantSlot, READY]));
    let at = actor.world.now;
    let mut ordered = actor.forge(at, vec![Fact::GroupArchived {}, Fact::PurgeOrdered {}]);
    ordered.summary.state.existence = Existence::Purging;
    commit(&mut store, &[ordered]);
    drop((store, database));
    let mut store = <Database as Engine>::open(dir.path()).unwrap().store().unwrap();
    assert_eq!(store.adopt(7, UP).unwrap().unwrap().state.existence, Existence::Purging);
    let found = differences(&read_store, 7);
    assert!(!found.iter().any(|line| line.starts_with("head:")), "{found:?}");
}

/// F37, F24: a database of a later version and a file that is no database are refused, never
/// changed and never created again.
#[test]
fn a_file_that_cannot_be_used_is_refused_and_left_alone() {
    let (dir, database, ..) = open::<Database>();
    let later = database.path().to_owned();
    drop(database);
    let conn = Connection::open(&later).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    conn.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(conn);
    let other = dir.path().join("other.db");
    let text = "not a database, and longer than a header of one would be. ".repeat(20);
    fs::write(&other, text).unwrap();
    for path in [later, other] {
        let before = fs::read(&path).unwrap();
        match Database::open(&path) {
            Err(StoreError::TooNew { found: 99, .. }) if path.ends_with("greenroom.db") => {}
            Err(StoreError::Unusable { .. }) if path.ends_with("other.db") => {}
            opened => panic!("{path:?}: {opened:?}"),
        }
        assert_eq!(fs::read(&path).unwrap(), before, "no byte is changed");
        assert!(!path.with_extension("db-wal").exists());
    }
}

/// AM-13: a group that starts knows a session that it left thousands of segments ago, as it would
/// if its server had not stopped.
#[test]
fn a_session_of_long_ago_is_known_after_a_restart() {
    let (_dir, database, mut store, _) = open::<Database>();
    commit(&mut store, &Actor::new(7).play_all(&[SUBMIT, Action::GrantSlot, READY]));
    let known = |store: &mut SqliteStore| store.adopt(7, UP).unwrap().unwrap().known_sessions;
    let before = known(&mut store);
    assert_eq!(before.len(), 1, "{before:?}");
    change(database.path(), "UPDATE heads SET segment = 3000");
    change(
        database.path(),
        "WITH RECURSIVE later (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM later WHERE n < 3000) \
         INSERT INTO segments (no, segment, parent, session, opened_seq, opened_at, closed_seq, \
         closed_at, end_reason) SELECT 7, n, n - 1, 'later', 1, 1, 1, 1, 'compaction' FROM later",
    );
    let after = known(&mut store);
    assert_eq!((after.len(), after.front()), (2, before.front()), "{after:?}");
}
