//! Digests as rows: which are restored, how they are listed and deleted, and that a rebuild equals
//! them.

use std::{collections::BTreeSet, rc::Rc};

use greenroom_actors::{
    projections::digest,
    storage::{
        Db, DigestRows, EndedAt, EndedFilter, EndedTurn, ReadStore, Store, StoreError, TurnFilter,
        sqlite::Database,
    },
};
use greenroom_core::{
    Digest, ExitReason, Fact, Recorded, RunId, Timestamp,
    digest::{Outcome, SCHEMA_VERSION},
};
use greenroom_testing::world::{Action, LockReply, actions};
use proptest::{prelude::*, test_runner::TestRunner};
use uuid::Uuid;

use super::{
    Engine,
    actor::{ANSWER, Actor, OUTPUT, READY, SUBMIT, commit, differences, group_with_turns},
    conformance::UP,
    gated, open,
    retention::{LATE, truncate},
    sqlite::change,
};

const ALL: TurnFilter = TurnFilter { after: 0, before: None, descending: false, limit: 1_000 };

fn ended() -> EndedFilter {
    EndedFilter { from: None, to: None, after: None, limit: 1_000 }
}

/// Stores a group with this number of ended turns and one that runs; its agent is live.
fn a_group(engine: &impl Engine, no: u32, turns: usize) -> Actor {
    let mut actor = group_with_turns(engine, no, turns);
    commit(&mut engine.store(), &actor.play_all(&[SUBMIT, Action::GrantSlot, OUTPUT]));
    actor
}

fn rows(read_store: &impl ReadStore, no: u32) -> DigestRows {
    read_store.digest_rows(no).unwrap().unwrap()
}

/// TD-6: a current digest is restored as it is, whatever its content; one that is not up to the
/// log, or is unreadable, is not.
pub fn only_current_digests_are_restored<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    let actor = a_group(&engine, 7, 2);
    let sound = rows(&read_store, 7);
    let mut restored = |rows: &DigestRows| {
        let epoch = store.adopt(7, UP).unwrap().unwrap().epoch;
        store.put_digests(7, epoch, rows).unwrap();
        store.adopt(7, UP).unwrap().unwrap().digests
    };
    assert_eq!(restored(&sound), Some(actor.digests.clone()));
    let mut marked = actor.digests.clone();
    marked.group.turn_count = 1_000_000;
    let group = serde_json::to_string(&marked.group).unwrap();
    assert_eq!(restored(&DigestRows { group, ..sound.clone() }), Some(marked), "restored as it is");
    let bad = || "{".to_owned();
    let up_to = |watermark_seq| {
        let digest = Digest { watermark_seq, ..actor.digests.group.clone() };
        serde_json::to_string(&digest).unwrap()
    };
    let last = actor.digests.group.watermark_seq;
    for (name, rows) in [
        ("too early", DigestRows { group: up_to(last - 1), ..sound.clone() }),
        ("too late", DigestRows { group: up_to(last + 1), ..sound.clone() }),
        ("a damaged digest", DigestRows { group: bad(), ..sound.clone() }),
        ("no digest", DigestRows { group: "null".into(), ..sound.clone() }),
        ("a damaged run", DigestRows { run: Some(bad()), ..sound.clone() }),
        ("a damaged open state", DigestRows { open: bad(), ..sound.clone() }),
    ] {
        assert_eq!(restored(&rows), None, "{name}");
    }
}

/// I14.
pub fn digests_of_an_earlier_owner_are_refused<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    a_group(&engine, 7, 1);
    let mut other = rows(&read_store, 7);
    let sound = other.clone();
    assert_eq!(store.adopt(7, UP).unwrap().unwrap().epoch, 2);
    other.group = "{}".into();
    other.sealed.turns.values_mut().for_each(|turn| turn.digest = "{}".into());
    for (no, epoch) in [(7, 1), (7, 3), (8, 2)] {
        for refused in
            [store.put_digests(no, epoch, &other), store.put_sealed(no, epoch, &other.sealed)]
        {
            assert!(matches!(refused, Err(StoreError::Fenced)), "{no} {epoch}: {refused:?}");
        }
    }
    assert_eq!(rows(&read_store, 7), sound);
    store.put_sealed(7, 2, &other.sealed).unwrap();
    let sealed = other.sealed.clone();
    assert_eq!(rows(&read_store, 7), DigestRows { sealed, ..sound }, "no other row is stored");
    store.put_digests(7, 2, &other).unwrap();
    assert_eq!(rows(&read_store, 7), other);
}

/// A purge deletes only its group's digests; a truncation those of the tasks that it deletes.
pub fn digests_are_deleted_with_their_tasks<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    let actor = a_group(&engine, 7, 3);
    a_group(&engine, 8, 2);
    let neighbour = rows(&read_store, 8);
    let listed = |no: u32| -> Vec<Timestamp> {
        let of_group = |turn: &EndedTurn| turn.group == no;
        let all = read_store.ended_turns(&ended()).unwrap();
        all.into_iter().filter(of_group).map(|turn| turn.place.at).collect()
    };
    let before = listed(7);
    assert_eq!((before.len(), listed(8).len()), (3, 2));
    let second = actor.world.tasks()[1].last_frame().unwrap().seq;
    truncate(&mut store, &read_store, 7, LATE, second).unwrap();
    assert_eq!(listed(7), before[2..], "two tasks are deleted");
    assert_eq!(read_store.turns(7, &ALL).unwrap().len(), 2, "one of them runs");
    assert!(read_store.digest(7).unwrap().unwrap().turn_count == 3, "the group still counts them");
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    store.purge(7, Some(1)).unwrap();
    assert_eq!((read_store.digest_rows(7).unwrap(), listed(7).len()), (None, 0));
    assert_eq!(read_store.digest(7).unwrap(), None);
    assert_eq!((rows(&read_store, 8), listed(8).len()), (neighbour, 2));
}

/// Ended tasks of all groups by the time of their end: windows are half open, and a page continues
/// after the last place of the previous one, even if several end in one millisecond.
pub fn ended_turns_are_listed_by_end_time<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    group_with_turns(&engine, 8, 3);
    group_with_turns(&engine, 7, 3);
    let of_another_agent = [Action::Configure(2), SUBMIT, Action::GrantSlot, READY, ANSWER];
    commit(&mut store, &Actor::new(9).play_all(&of_another_agent));
    let list = |filter: &EndedFilter| -> Vec<EndedAt> {
        read_store.ended_turns(filter).unwrap().into_iter().map(|turn| turn.place).collect()
    };
    let places = list(&ended());
    assert!(places.is_sorted() && places.len() == 7, "{places:?}");
    let times: BTreeSet<_> = places.iter().map(|place| place.at).collect();
    assert!(times.len() < places.len(), "some end in one millisecond");
    for at in times.iter().flat_map(|at| [Timestamp(at.0 - 1), *at, Timestamp(at.0 + 1)]) {
        let (before, since) = places.split_at(places.partition_point(|place| place.at < at));
        assert_eq!(list(&EndedFilter { to: Some(at), ..ended() }), before);
        assert_eq!(list(&EndedFilter { from: Some(at), ..ended() }), since);
    }
    for limit in 1..4 {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = list(&EndedFilter { after, limit, ..ended() });
            let Some(last) = page.last() else { break };
            after = Some(*last);
            paged.extend(page);
        }
        assert_eq!(paged, places, "by {limit}");
    }
    let late = list(&EndedFilter { from: Some(places[2].at), after: Some(places[4]), ..ended() });
    assert_eq!(late, places[5..]);
    let all = read_store.ended_turns(&ended()).unwrap();
    let of_agent = |agent| all.iter().filter(|turn| turn.agent.as_deref() == Some(agent)).count();
    assert_eq!(["one", "two", "three"].map(of_agent), [6, 1, 0]);
}

/// TD-1, TD-2, AM-18: a run's digest, read by the run's id. An unreadable one counts as missing,
/// and is no failure of the database.
pub fn the_digest_of_a_run_is_found_by_its_id<E: Engine>() {
    let (_dir, engine, mut store, read_store) = open::<E>();
    let mut actor = a_group(&engine, 7, 1);
    let run = actor.world.group.run().unwrap().id;
    let stored = || {
        let found = read_store.run_digest(run).unwrap().unwrap();
        assert_eq!(found.group, 7);
        found.digest
    };
    let damage = |store: &mut E::Store| {
        let sound = rows(&read_store, 7);
        let mut damaged = sound.clone();
        (damaged.group, damaged.run) = ("{".into(), Some("{".into()));
        damaged.sealed.runs.values_mut().for_each(|run| *run = "{".into());
        damaged.sealed.turns.values_mut().for_each(|turn| turn.digest = "{".into());
        store.put_digests(7, 1, &damaged).unwrap();
        assert_eq!((stored(), read_store.digest(7).unwrap()), (None, None));
        assert!(read_store.ended_turns(&ended()).unwrap().is_empty());
        assert!(!differences(&read_store, 7).is_empty());
        store.put_digests(7, 1, &sound).unwrap();
    };
    assert_eq!(stored(), actor.digests.run, "the run is live");
    damage(&mut store);
    commit(&mut store, &actor.play_all(&[Action::Exit(ExitReason::Exited)]));
    damage(&mut store);
    let sealed = stored().unwrap();
    assert_eq!(sealed.digest.outcome(), Some(Outcome::Crashed));
    commit(&mut store, &actor.play_all(&[Action::Archive]));
    assert_eq!(stored(), Some(sealed), "the group continued");
    let group = read_store.digest(7).unwrap().unwrap();
    assert_eq!(group.outcome(), Some(Outcome::Deleted));
    assert!(read_store.run_digest(RunId(Uuid::from_u128(1))).unwrap().is_none());
}

fn db(database: &Database) -> Db {
    gated::start(database, database.store().unwrap())
}

/// Rebuilds the digests as a group's actor does when it finds no current ones.
async fn rebuild_on_adoption(db: &Db, no: u32) {
    let found = db.adopt(no).await.unwrap().unwrap();
    assert!(found.digests.is_none(), "the digests need no rebuild");
    digest::rebuild(db, no, found.epoch, found.state.last_seq).await.unwrap();
    let found = db.adopt(no).await.unwrap().unwrap();
    assert!(found.digests.is_some(), "the digests are current after the rebuild");
}

/// TD-6, I6: damaged or missing rows are rebuilt byte for byte, with their outcome, also from a
/// truncated log.
#[test]
fn rebuilt_digests_equal_the_stored_ones() {
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() };
    TestRunner::new(config)
        .run(&(actions(120), actions(60), 0..=10_u64), |(history, more, share)| {
            let (_dir, database, mut store, read_store) = open::<Database>();
            let mut actor = Actor::new(7);
            let mut facts: Vec<_> = actor.play(SUBMIT).into_iter().collect();
            facts.extend(history.iter().filter_map(|next| actor.play(*next)));
            commit(&mut store, &facts);
            let last = actor.world.group.state().last_seq * share / 10;
            truncate(&mut store, &read_store, 7, LATE, last).map_err(TestCaseError::fail)?;
            let facts: Vec<_> = more.iter().filter_map(|next| actor.play(*next)).collect();
            commit(&mut store, &facts);
            drop(store);
            let sound = rows(&read_store, 7);
            actix_rt::System::new().block_on(async {
                let db = db(&database);
                for sql in [
                    "UPDATE heads SET digest_version = digest_version - 1",
                    "UPDATE heads SET digest = '{}'",
                    "UPDATE heads SET carry = '['",
                    "UPDATE heads SET digest_version = NULL, digest = NULL, run_digest = NULL, \
                     carry = NULL; \
                     UPDATE runs SET digest = NULL; DELETE FROM turns",
                ] {
                    change(database.path(), sql);
                    rebuild_on_adoption(&db, 7).await;
                    assert_eq!(rows(&read_store, 7), sound, "{sql}");
                }
            });
            prop_assert_eq!(differences(&read_store, 7), Vec::<String>::new());
            Ok(())
        })
        .unwrap();
}

/// TD-6: counts that retention deletes during a rebuild are not missing in the result.
#[test]
fn a_log_truncated_during_a_rebuild_loses_no_counts() {
    for query in 1..=4 {
        let (_dir, database, _, read_store) = open::<Database>();
        let database = Rc::new(database);
        let actor = a_group(&*database, 7, 3);
        change(database.path(), "UPDATE heads SET digest_version = NULL, digest = NULL");
        let was_truncated = actix_rt::System::new().block_on(async {
            let db = gated::before(&db(&database), &database, query, |database| {
                let mut store = Engine::store(database);
                truncate(&mut store, &Engine::read_store(database), 7, LATE, u64::MAX).unwrap();
                assert!(store.sweep(7).unwrap().frames > 0);
            });
            rebuild_on_adoption(&db, 7).await;
            db.read(|read_store| read_store.checkpoint(7)).await.unwrap().is_some()
        });
        assert!(was_truncated);
        assert_eq!(differences(&read_store, 7), Vec::<String>::new(), "before query {query}");
        assert_eq!(read_store.digest(7).unwrap(), Some(actor.digests.group), "{query}");
    }
}

/// A checkpoint of a version without digests has no counts of the part it covers; the live run
/// still has its digest, and later facts count.
#[test]
fn a_checkpoint_without_digests_starts_new_digests() {
    let (_dir, database, mut store, read_store) = open::<Database>();
    let mut actor = a_group(&database, 7, 2);
    commit(&mut store, &actor.play_all(&[ANSWER, Action::Compact]));
    truncate(&mut store, &read_store, 7, LATE, u64::MAX).unwrap();
    let old = "UPDATE bases SET state = json_remove(state, '$.digests'); \
               UPDATE heads SET digest_version = NULL";
    change(database.path(), old);
    let run = actor.world.group.run().unwrap().id;
    let digest = || read_store.run_digest(run).unwrap().unwrap().digest.unwrap();
    let truncated_at = read_store.checkpoint(7).unwrap().unwrap().seq;
    drop(store);
    actix_rt::System::new().block_on(rebuild_on_adoption(&db(&database), 7));
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    let live = digest();
    assert_eq!((live.schema_version, live.agent.as_str()), (SCHEMA_VERSION, "one"));
    assert_eq!((live.digest.watermark_seq, live.digest.frame_count), (truncated_at, 0));

    let mut store = Engine::store(&database);
    let found = store.adopt(7, UP).unwrap().unwrap();
    (actor.epoch, actor.digests) = (found.epoch, found.digests.unwrap());
    let lock = Action::AnswerLock(LockReply::Acquired);
    let stop = [Action::Stop, Action::Exit(ExitReason::Stopped)];
    let later = [&[lock, Action::GrantSlot, ANSWER], &stop[..]].concat();
    let facts: Vec<_> = later.iter().filter_map(|next| actor.play(*next)).collect();
    let is_compaction = |stated: &Recorded| matches!(stated.fact, Fact::TaskEnded { .. });
    assert!(facts.iter().flat_map(|commit| &commit.facts).any(is_compaction));
    commit(&mut store, &facts);
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    assert_eq!(digest().digest.outcome(), Some(Outcome::Stopped));
    let group = read_store.digest(7).unwrap().unwrap();
    assert_eq!((group.turn_count, group.outcome()), (0, Some(Outcome::Stopped)));
}
