//! Digests as rows: which are restored, how they are listed and deleted, and that a rebuild equals
//! them.

use std::{collections::BTreeSet, rc::Rc};

use actix::{Actor as _, Handler};
use greenroom_actors::{
    projections::digest,
    projections::verify::verify,
    storage::{
        Db, DigestRows, EndedAt, EndedFilter, EndedTurn, Query, ReadStore, Store, StoreError,
        TurnFilter, sqlite::Database,
    },
};
use greenroom_core::{
    BootId, Digest, Fact, Recorded, RunId, Timestamp, Uptime,
    digest::{Outcome, SCHEMA_VERSION},
};
use greenroom_testing::world::{Action, AgentMessage, LockReply, actions};
use proptest::{prelude::*, test_runner::TestRunner};
use uuid::Uuid;

use super::{
    Engine,
    actor::{ANSWER, Actor, READY, SUBMIT, commit},
    gated,
    retention::{LATE, truncate},
    sqlite::change,
};

const UP: Uptime = Uptime { boot: BootId(Uuid::nil()), ms: 0 };
const ALL: TurnFilter = TurnFilter { after: 0, before: None, descending: false, limit: 1_000 };
const BURST: Action = Action::Output(AgentMessage::Burst(9));
/// A turn in a group with a live agent.
const TURN: [Action; 4] = [SUBMIT, Action::GrantSlot, BURST, ANSWER];

fn ended() -> EndedFilter {
    EndedFilter { from: None, to: None, after: None, limit: 1_000 }
}

/// Returns a group with this number of ended turns and one that runs; its agent is live.
fn a_group<E: Engine>(engine: &E, no: u32, turns: usize) -> Actor {
    let mut actor = Actor::new(no);
    let mut facts = actor.play_all(&[SUBMIT, Action::GrantSlot, READY, ANSWER]);
    (1..turns).for_each(|_| facts.extend(actor.play_all(&TURN)));
    facts.extend(actor.play_all(&[SUBMIT, Action::GrantSlot, BURST]));
    commit(&mut engine.store(), &facts);
    actor
}

fn rows(read_store: &impl ReadStore, no: u32) -> DigestRows {
    read_store.digest_rows(no).unwrap().unwrap()
}

fn differences(read_store: &impl ReadStore, no: u32) -> Vec<String> {
    verify(read_store, no).unwrap().unwrap().differences
}

/// TD-6: a current digest is restored as it is, whatever its content; one that is not up to the
/// log, or is unreadable, is not.
pub fn only_current_digests_are_restored<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
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

/// AM-18: an unreadable digest counts as missing, and is no failure of the database.
pub fn a_damaged_digest_counts_as_missing<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
    let mut actor = a_group(&engine, 7, 2);
    let first = actor.world.group.run().unwrap().id;
    let exit = Action::Exit(greenroom_core::ExitReason::Exited);
    commit(&mut store, &actor.play_all(&[exit, SUBMIT]));
    let mut restarted = Vec::new();
    restarted.extend(
        [Action::Resume, Action::GrantSlot, READY].iter().filter_map(|next| actor.play(*next)),
    );
    commit(&mut store, &restarted);
    let second = actor.world.group.run().unwrap().id;
    let mut rows = rows(&read_store, 7);
    (rows.group, rows.run) = ("{".into(), Some("{".into()));
    rows.sealed.runs.values_mut().for_each(|run| *run = "{".into());
    rows.sealed.turns.values_mut().for_each(|turn| turn.digest = "{".into());
    store.put_digests(7, 1, &rows).unwrap();
    assert_eq!(read_store.digest(7).unwrap(), None);
    for run in [first, second] {
        let summary = read_store.run_digest(run).unwrap().unwrap();
        assert_eq!((summary.group, summary.digest), (7, None));
    }
    assert!(read_store.ended_turns(&ended()).unwrap().is_empty());
    assert!(!differences(&read_store, 7).is_empty());
}

/// I14.
pub fn digests_of_an_earlier_owner_are_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
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
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
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
    let second = actor.world.reference.tasks().nth(1).unwrap().last_frame().unwrap().seq;
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

/// TD-8: a group's turns by acceptance, in both directions, page by page.
pub fn turns_are_listed_in_both_directions<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
    let mut actor = a_group(&engine, 7, 3);
    a_group(&engine, 8, 1);
    let waits = [SUBMIT, Action::Compact];
    commit(&mut store, &actor.play_all(&waits));
    let listed = |after, before, descending, limit| -> Vec<u64> {
        let filter = TurnFilter { after, before, descending, limit };
        read_store.turns(7, &filter).unwrap().into_iter().map(|turn| turn.task.ordinal).collect()
    };
    assert_eq!(listed(0, None, false, 9), [1, 2, 3, 4], "neither waiting tasks nor compactions");
    assert_eq!(listed(0, None, true, 9), [4, 3, 2, 1]);
    assert_eq!(listed(1, None, false, 2), [2, 3]);
    assert_eq!(listed(0, Some(4), true, 2), [3, 2]);
    assert_eq!(listed(1, Some(3), false, 9), [2]);
    assert_eq!(listed(4, None, false, 9), [0_u64; 0]);
    let digests: Vec<_> =
        read_store.turns(7, &ALL).unwrap().into_iter().map(|turn| turn.digest).collect();
    assert_eq!(digests.iter().filter(|digest| digest.is_some()).count(), 3, "the last one runs");
    assert!(digests[3].is_none());
    let frames = |digest: &Digest| (digest.turn_count, digest.frame_count > 7);
    assert!(
        digests[1..3].iter().flatten().all(|digest| frames(digest) == (1, true)),
        "{digests:#?}"
    );
}

/// Ended tasks of all groups by the time of their end: windows are half open, and a page continues
/// after the last place of the previous one, even if several end in one millisecond.
pub fn ended_turns_are_listed_by_end_time<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let read_store = engine.read_store();
    for no in [8, 7, 9] {
        let mut actor = Actor::new(no);
        let agent = if no == 9 { 2 } else { 0 };
        let mut facts = actor.play_all(&[Action::Configure(agent), SUBMIT, Action::GrantSlot]);
        facts.extend(actor.play_all(&[READY, ANSWER]));
        let more = if no == 9 { 0 } else { 2 };
        (0..more).for_each(|_| facts.extend(actor.play_all(&TURN)));
        commit(&mut engine.store(), &facts);
    }
    let list = |filter: &EndedFilter| -> Vec<EndedAt> {
        read_store.ended_turns(filter).unwrap().into_iter().map(|turn| turn.place).collect()
    };
    let all = read_store.ended_turns(&ended()).unwrap();
    let places = list(&ended());
    assert!(places.is_sorted() && places.len() == 7, "{places:?}");
    let times: BTreeSet<_> = places.iter().map(|place| place.at).collect();
    assert!(times.len() < places.len(), "some end in one millisecond");
    for at in times.iter().flat_map(|at| [Timestamp(at.0 - 1), *at, Timestamp(at.0 + 1)]) {
        let before = list(&EndedFilter { to: Some(at), ..ended() });
        let since = list(&EndedFilter { from: Some(at), ..ended() });
        assert!(
            before.iter().all(|place| place.at < at) && since.iter().all(|place| place.at >= at)
        );
        assert_eq!([before, since].concat(), places, "split at {at:?}");
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
    for (agent, count) in [("one", 6), ("two", 1), ("three", 0)] {
        let of_agent = all.iter().filter(|turn| turn.agent.as_deref() == Some(agent));
        assert_eq!(of_agent.count(), count, "{agent}");
    }
}

/// TD-1, TD-2: a run's digest, read by the run's id.
pub fn the_digest_of_a_run_is_found_by_its_id<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, read_store) = (engine.store(), engine.read_store());
    let mut actor = a_group(&engine, 7, 1);
    let run = actor.world.group.run().unwrap().id;
    let stored = || read_store.run_digest(run).unwrap().unwrap();
    let (live, known) = (stored(), actor.digests.run.clone());
    assert_eq!((live.group, live.digest), (7, known), "the run is live");
    let exit = actor.play_all(&[Action::Exit(greenroom_core::ExitReason::Exited)]);
    commit(&mut store, &exit);
    let sealed = stored().digest.unwrap();
    assert_eq!(sealed.digest.outcome(), Some(Outcome::Crashed));
    commit(&mut store, &actor.play_all(&[Action::Archive]));
    assert_eq!(stored().digest, Some(sealed), "the group continued");
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
            let dir = tempfile::tempdir().unwrap();
            let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
            let mut actor = Actor::new(7);
            let mut facts: Vec<_> = actor.play(SUBMIT).into_iter().collect();
            facts.extend(history.iter().filter_map(|next| actor.play(*next)));
            let mut store = Engine::store(&database);
            commit(&mut store, &facts);
            let last = actor.world.group.state().last_seq * share / 10;
            truncate(&mut store, &database.read_store(), 7, LATE, last)
                .map_err(TestCaseError::fail)?;
            let facts: Vec<_> = more.iter().filter_map(|next| actor.play(*next)).collect();
            commit(&mut store, &facts);
            drop(store);
            let read_store = database.read_store();
            let sound = rows(&read_store, 7);
            let db = || db(&database);
            actix_rt::System::new().block_on(async {
                let db = db();
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

/// Truncates the log before it answers this query; the first query is number 1.
struct TruncateBefore {
    query: u32,
    asked: u32,
    database: Rc<Database>,
}

impl actix::Actor for TruncateBefore {
    type Context = actix::Context<Self>;
}

impl Handler<Query> for TruncateBefore {
    type Result = ();

    fn handle(&mut self, Query(ask): Query, _: &mut Self::Context) {
        self.asked += 1;
        let read_store = self.database.read_store();
        if self.asked == self.query {
            let mut store = Engine::store(&*self.database);
            truncate(&mut store, &read_store, 7, LATE, u64::MAX).unwrap();
            assert!(store.sweep(7).unwrap().frames > 0);
        }
        ask(Ok(&read_store));
    }
}

/// TD-6: counts that retention deletes during a rebuild are not missing in the result.
#[test]
fn a_log_truncated_during_a_rebuild_loses_no_counts() {
    for query in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("greenroom.db");
        let database = Rc::new(Database::open(&path).unwrap());
        let actor = a_group(&*database, 7, 3);
        change(&path, "UPDATE heads SET digest_version = NULL, digest = NULL");
        let was_truncated = actix_rt::System::new().block_on(async {
            let between = TruncateBefore { query, asked: 0, database: Rc::clone(&database) };
            let db = Db { query: between.start().recipient(), ..db(&database) };
            rebuild_on_adoption(&db, 7).await;
            db.read(|read_store| read_store.checkpoint(7)).await.unwrap().is_some()
        });
        assert!(was_truncated);
        let read_store = database.read_store();
        assert_eq!(differences(&read_store, 7), Vec::<String>::new(), "before query {query}");
        assert_eq!(read_store.digest(7).unwrap(), Some(actor.digests.group), "{query}");
    }
}

/// A checkpoint of a version without digests has no counts of the part it covers; the live run
/// still has its digest, and later facts count.
#[test]
fn a_checkpoint_without_digests_starts_new_digests() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let mut actor = a_group(&database, 7, 2);
    let mut store = Engine::store(&database);
    commit(&mut store, &actor.play_all(&[ANSWER]));
    commit(&mut store, &actor.play_all(&[Action::Compact]));
    truncate(&mut store, &database.read_store(), 7, LATE, u64::MAX).unwrap();
    let old = "UPDATE bases SET state = json_remove(state, '$.digests'); \
               UPDATE heads SET digest_version = NULL";
    change(database.path(), old);
    let run = actor.world.group.run().unwrap().id;
    let read_store = database.read_store();
    let truncated_at = read_store.checkpoint(7).unwrap().unwrap().seq;
    drop(store);
    actix_rt::System::new().block_on(rebuild_on_adoption(&db(&database), 7));
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    let live = read_store.run_digest(run).unwrap().unwrap().digest.unwrap();
    assert_eq!((live.schema_version, live.agent.as_str()), (SCHEMA_VERSION, "one"));
    assert_eq!((live.digest.watermark_seq, live.digest.frame_count), (truncated_at, 0));

    let mut store = Engine::store(&database);
    let found = store.adopt(7, UP).unwrap().unwrap();
    (actor.epoch, actor.digests) = (found.epoch, found.digests.unwrap());
    let lock = Action::AnswerLock(LockReply::Acquired);
    let mut facts: Vec<_> = [lock, Action::GrantSlot, ANSWER, Action::Stop]
        .into_iter()
        .filter_map(|next| actor.play(next))
        .collect();
    facts.extend(actor.play(Action::Exit(greenroom_core::ExitReason::Stopped)));
    let is_compaction = |stated: &Recorded| matches!(stated.fact, Fact::TaskEnded { .. });
    assert!(facts.iter().flat_map(|commit| &commit.facts).any(is_compaction));
    commit(&mut store, &facts);
    assert_eq!(differences(&read_store, 7), Vec::<String>::new());
    let sealed = read_store.run_digest(run).unwrap().unwrap().digest.unwrap();
    assert_eq!(sealed.digest.outcome(), Some(Outcome::Stopped));
    let group = read_store.digest(7).unwrap().unwrap();
    assert_eq!((group.turn_count, group.outcome()), (0, Some(Outcome::Stopped)));
}
