//! Digests as rows: which are gone on from, how they are listed, what takes them away, and that
//! they are made again as they were.

use std::{collections::BTreeSet, rc::Rc};

use actix::{Actor as _, Arbiter, Handler, SyncArbiter};
use greenroom_actors::{
    digest,
    storage::{
        Archive, DigestRows, EndedAt, EndedFilter, EndedTurn, Ledger, Query, Reader, Storage,
        StorageHealth, Store, StoreError, TurnFilter, sqlite::Database,
    },
    verify::verify,
};
use greenroom_core::{
    Digest, RunId, Timestamp, Write,
    digest::{Outcome, SCHEMA_VERSION},
    lock::{BootId, Uptime},
};
use proptest::{prelude::*, test_runner::TestRunner};
use uuid::Uuid;

use crate::{
    Engine,
    actor::{ANSWER, Actor, READY, SUBMIT, commit},
    retention::{LATE, cut},
    sqlite::change,
    world::{Move, Spoken, moves},
};

const UP: Uptime = Uptime { boot: BootId(Uuid::nil()), ms: 0 };
const ALL: TurnFilter = TurnFilter { after: 0, before: None, descending: false, limit: 1_000 };
const BURST: Move = Move::Say(Spoken::Burst(9));
/// A turn in a group whose agent is there.
const TURN: [Move; 4] = [SUBMIT, Move::Grant, BURST, ANSWER];

fn ended() -> EndedFilter {
    EndedFilter { from: None, to: None, after: None, limit: 1_000 }
}

/// A group with so many turns, the last of which runs; its agent is there.
fn a_group<E: Engine>(engine: &E, no: u32, turns: usize) -> Actor {
    let mut actor = Actor::new(no);
    let mut writes = actor.play_all(&[SUBMIT, Move::Grant, READY, ANSWER]);
    (1..turns).for_each(|_| writes.extend(actor.play_all(&TURN)));
    writes.extend(actor.play_all(&[SUBMIT, Move::Grant, BURST]));
    commit(&mut engine.store(), &writes);
    actor
}

fn rows(archive: &impl Archive, no: u32) -> DigestRows {
    archive.digest_rows(no).unwrap().unwrap()
}

fn differences(archive: &impl Archive, no: u32) -> Vec<String> {
    verify(archive, no).unwrap().unwrap().differences
}

/// SEEDS TD-6: what is current is gone on from as it is, whatever is in it; what is behind the log,
/// or cannot be read, is not.
pub fn only_digests_up_to_the_last_frame_are_gone_on_from<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let actor = a_group(&engine, 7, 2);
    let sound = rows(&archive, 7);
    let mut hydrated = |rows: &DigestRows| {
        let epoch = store.adopt(7, UP).unwrap().unwrap().epoch;
        store.put_digests(7, epoch, rows).unwrap();
        store.adopt(7, UP).unwrap().unwrap().digests
    };
    assert_eq!(hydrated(&sound), Some(actor.digests.clone()));
    let mut marked = actor.digests.clone();
    marked.group.turn_count = 1_000_000;
    let group = serde_json::to_string(&marked.group).unwrap();
    assert_eq!(hydrated(&DigestRows { group, ..sound.clone() }), Some(marked), "as it is");
    let bad = || "{".to_owned();
    let up_to = |watermark_seq| {
        let digest = Digest { watermark_seq, ..actor.digests.group.clone() };
        serde_json::to_string(&digest).unwrap()
    };
    let last = actor.digests.group.watermark_seq;
    for (name, rows) in [
        ("behind", DigestRows { group: up_to(last - 1), ..sound.clone() }),
        ("ahead", DigestRows { group: up_to(last + 1), ..sound.clone() }),
        ("a damaged digest", DigestRows { group: bad(), ..sound.clone() }),
        ("no digest", DigestRows { group: "null".into(), ..sound.clone() }),
        ("a damaged run", DigestRows { run: Some(bad()), ..sound.clone() }),
        ("a damaged carry", DigestRows { carry: bad(), ..sound.clone() }),
    ] {
        assert_eq!(hydrated(&rows), None, "{name}");
    }
}

/// SEEDS AM-18: what cannot be understood is as good as missing, and no failure of the database.
pub fn a_damaged_digest_is_none<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let mut actor = a_group(&engine, 7, 2);
    let first = actor.world.group.run().unwrap().id;
    let exit = Move::Exit(greenroom_core::ExitReason::Exited);
    commit(&mut store, &actor.play_all(&[exit, SUBMIT]));
    let mut again = Vec::new();
    again.extend([Move::Resume, Move::Grant, READY].iter().filter_map(|next| actor.play(*next)));
    commit(&mut store, &again);
    let second = actor.world.group.run().unwrap().id;
    let mut rows = rows(&archive, 7);
    (rows.group, rows.run) = ("{".into(), Some("{".into()));
    rows.closed.runs.values_mut().for_each(|run| *run = "{".into());
    rows.closed.turns.values_mut().for_each(|turn| turn.digest = "{".into());
    store.put_digests(7, 1, &rows).unwrap();
    assert_eq!(archive.digest(7).unwrap(), None);
    for run in [first, second] {
        let standing = archive.run_digest(run).unwrap().unwrap();
        assert_eq!((standing.group, standing.digest), (7, None));
    }
    assert!(archive.ended_turns(&ended()).unwrap().is_empty());
    assert!(!differences(&archive, 7).is_empty());
}

/// I14.
pub fn digests_of_an_earlier_owner_are_refused<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    a_group(&engine, 7, 1);
    let mut other = rows(&archive, 7);
    let sound = other.clone();
    assert_eq!(store.adopt(7, UP).unwrap().unwrap().epoch, 2);
    other.group = "{}".into();
    other.closed.turns.values_mut().for_each(|turn| turn.digest = "{}".into());
    for (no, epoch) in [(7, 1), (7, 3), (8, 2)] {
        for refused in
            [store.put_digests(no, epoch, &other), store.put_closed(no, epoch, &other.closed)]
        {
            assert!(matches!(refused, Err(StoreError::Fenced)), "{no} {epoch}: {refused:?}");
        }
    }
    assert_eq!(rows(&archive, 7), sound);
    store.put_closed(7, 2, &other.closed).unwrap();
    let closed = other.closed.clone();
    assert_eq!(rows(&archive, 7), DigestRows { closed, ..sound }, "nothing else is stored");
    store.put_digests(7, 2, &other).unwrap();
    assert_eq!(rows(&archive, 7), other);
}

/// A purge takes a group's digests, and no other's; a cut those of the tasks that it deletes.
pub fn digests_go_with_what_they_are_about<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let actor = a_group(&engine, 7, 3);
    a_group(&engine, 8, 2);
    let neighbour = rows(&archive, 8);
    let listed = |no: u32| -> Vec<Timestamp> {
        let of_group = |turn: &EndedTurn| turn.group == no;
        let all = archive.ended_turns(&ended()).unwrap();
        all.into_iter().filter(of_group).map(|turn| turn.place.at).collect()
    };
    let before = listed(7);
    assert_eq!((before.len(), listed(8).len()), (3, 2));
    let second = actor.world.reference.tasks().nth(1).unwrap().seq_last.unwrap();
    cut(&mut store, &archive, 7, LATE, second).unwrap();
    assert_eq!(listed(7), before[2..], "two tasks are gone");
    assert_eq!(archive.turns(7, &ALL).unwrap().len(), 2, "one of them runs");
    assert!(archive.digest(7).unwrap().unwrap().turn_count == 3, "and are not forgotten");
    assert_eq!(differences(&archive, 7), Vec::<String>::new());
    store.purge(7).unwrap();
    assert_eq!((archive.digest_rows(7).unwrap(), listed(7).len()), (None, 0));
    assert_eq!(archive.digest(7).unwrap(), None);
    assert_eq!((rows(&archive, 8), listed(8).len()), (neighbour, 2));
}

/// SEEDS TD-8: a group's turns by acceptance, either way, page by page.
pub fn turns_are_listed_either_way<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let mut actor = a_group(&engine, 7, 3);
    a_group(&engine, 8, 1);
    let waits = [SUBMIT, Move::Compact];
    commit(&mut store, &actor.play_all(&waits));
    let listed = |after, before, descending, limit| -> Vec<u64> {
        let filter = TurnFilter { after, before, descending, limit };
        archive.turns(7, &filter).unwrap().into_iter().map(|own| own.task.ordinal).collect()
    };
    assert_eq!(listed(0, None, false, 9), [1, 2, 3, 4], "neither what waits nor a compaction");
    assert_eq!(listed(0, None, true, 9), [4, 3, 2, 1]);
    assert_eq!(listed(1, None, false, 2), [2, 3]);
    assert_eq!(listed(0, Some(4), true, 2), [3, 2]);
    assert_eq!(listed(1, Some(3), false, 9), [2]);
    assert_eq!(listed(4, None, false, 9), [0_u64; 0]);
    let digests: Vec<_> =
        archive.turns(7, &ALL).unwrap().into_iter().map(|own| own.digest).collect();
    assert_eq!(digests.iter().filter(|own| own.is_some()).count(), 3, "the last one runs");
    assert!(digests[3].is_none());
    let frames = |digest: &Digest| (digest.turn_count, digest.frame_count > 7);
    assert!(digests[1..3].iter().flatten().all(|own| frames(own) == (1, true)), "{digests:#?}");
}

/// Ended tasks of all groups, by the time of the end: windows are half open, and a page goes on
/// behind the place where the last one ended, though several end in one millisecond.
pub fn ended_turns_are_listed_by_their_ends<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let archive = engine.archive();
    for no in [8, 7, 9] {
        let mut actor = Actor::new(no);
        let agent = if no == 9 { 2 } else { 0 };
        let mut writes = actor.play_all(&[Move::Configure(agent), SUBMIT, Move::Grant]);
        writes.extend(actor.play_all(&[READY, ANSWER]));
        let more = if no == 9 { 0 } else { 2 };
        (0..more).for_each(|_| writes.extend(actor.play_all(&TURN)));
        commit(&mut engine.store(), &writes);
    }
    let list = |filter: &EndedFilter| -> Vec<EndedAt> {
        archive.ended_turns(filter).unwrap().into_iter().map(|own| own.place).collect()
    };
    let all = archive.ended_turns(&ended()).unwrap();
    let places = list(&ended());
    assert!(places.is_sorted() && places.len() == 7, "{places:?}");
    let times: BTreeSet<_> = places.iter().map(|own| own.at).collect();
    assert!(times.len() < places.len(), "some end in one millisecond");
    for at in times.iter().flat_map(|at| [Timestamp(at.0 - 1), *at, Timestamp(at.0 + 1)]) {
        let before = list(&EndedFilter { to: Some(at), ..ended() });
        let since = list(&EndedFilter { from: Some(at), ..ended() });
        assert!(before.iter().all(|own| own.at < at) && since.iter().all(|own| own.at >= at));
        assert_eq!([before, since].concat(), places, "cut at {at:?}");
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
        let of_agent = all.iter().filter(|own| own.agent.as_deref() == Some(agent));
        assert_eq!(of_agent.count(), count, "{agent}");
    }
}

/// SEEDS TD-1, TD-2: a run's digest, where it is asked for by the run's name.
pub fn a_run_is_found_by_its_name<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, archive) = (engine.store(), engine.archive());
    let mut actor = a_group(&engine, 7, 1);
    let run = actor.world.group.run().unwrap().id;
    let told = || archive.run_digest(run).unwrap().unwrap();
    let (live, known) = (told(), actor.digests.run.clone());
    assert_eq!((live.group, live.digest), (7, known), "it lives");
    let exit = actor.play_all(&[Move::Exit(greenroom_core::ExitReason::Exited)]);
    commit(&mut store, &exit);
    let sealed = told().digest.unwrap();
    assert_eq!(sealed.digest.outcome(), Some(Outcome::Crashed));
    commit(&mut store, &actor.play_all(&[Move::Archive]));
    assert_eq!(told().digest, Some(sealed), "the group went on");
    let group = archive.digest(7).unwrap().unwrap();
    assert_eq!(group.outcome(), Some(Outcome::Deleted));
    assert!(archive.run_digest(RunId(Uuid::from_u128(1))).unwrap().is_none());
}

fn ledger(database: &Database) -> Ledger {
    let health = StorageHealth::default();
    let (store, for_actor) = (database.store().unwrap(), health.clone());
    let writer = Storage::start_in_arbiter(&Arbiter::new().handle(), move |_| {
        Storage::new(store, for_actor)
    });
    let opener = database.opener();
    Ledger::new(
        writer,
        SyncArbiter::start(1, move || {
            let opener = opener.clone();
            Reader::new(move || opener.archive())
        }),
        health,
    )
}

/// What a group's actor does when it finds no digests to go on from.
async fn taken_up(ledger: &Ledger, no: u32) {
    let found = ledger.adopt(no).await.unwrap().unwrap();
    assert!(found.digests.is_none(), "they are made again without need");
    digest::rebuild(ledger, no, found.epoch, found.head.last_seq).await.unwrap();
    let found = ledger.adopt(no).await.unwrap().unwrap();
    assert!(found.digests.is_some(), "they are current then");
}

/// SEEDS TD-6, I6: whatever became of the rows, they are made again byte for byte, of a log that
/// was cut as well, and so is the outcome.
#[test]
fn digests_are_made_again_as_they_were() {
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() };
    TestRunner::new(config)
        .run(&(moves(120), moves(60), 0..=10_u64), |(history, more, share)| {
            let dir = tempfile::tempdir().unwrap();
            let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
            let mut actor = Actor::new(7);
            let mut writes: Vec<_> = actor.play(SUBMIT).into_iter().collect();
            writes.extend(history.iter().filter_map(|next| actor.play(*next)));
            let mut store = Engine::store(&database);
            commit(&mut store, &writes);
            let last = actor.world.group.head().last_seq * share / 10;
            cut(&mut store, &database.archive(), 7, LATE, last).map_err(TestCaseError::fail)?;
            let writes: Vec<_> = more.iter().filter_map(|next| actor.play(*next)).collect();
            commit(&mut store, &writes);
            drop(store);
            let archive = database.archive();
            let sound = rows(&archive, 7);
            let ledger = || ledger(&database);
            actix_rt::System::new().block_on(async {
                let ledger = ledger();
                for sql in [
                    "UPDATE heads SET digest_version = digest_version - 1",
                    "UPDATE heads SET digest = '{}'",
                    "UPDATE heads SET carry = '['",
                    "UPDATE heads SET digest_version = NULL, digest = NULL, run_digest = NULL, \
                     carry = NULL; \
                     UPDATE runs SET digest = NULL; DELETE FROM turns",
                ] {
                    change(database.path(), sql);
                    taken_up(&ledger, 7).await;
                    assert_eq!(rows(&archive, 7), sound, "{sql}");
                }
            });
            prop_assert_eq!(differences(&archive, 7), Vec::<String>::new());
            Ok(())
        })
        .unwrap();
}

/// Has the log cut before it answers a question, the first one being number 1.
struct CutBefore {
    question: u32,
    asked: u32,
    database: Rc<Database>,
}

impl actix::Actor for CutBefore {
    type Context = actix::Context<Self>;
}

impl Handler<Query> for CutBefore {
    type Result = ();

    fn handle(&mut self, Query(ask): Query, _: &mut Self::Context) {
        self.asked += 1;
        let archive = self.database.archive();
        if self.asked == self.question {
            let mut store = Engine::store(&*self.database);
            cut(&mut store, &archive, 7, LATE, u64::MAX).unwrap();
            assert!(store.sweep(7).unwrap().frames > 0);
        }
        ask(Ok(&archive));
    }
}

/// SEEDS TD-6: what retention deletes while a log is folded again is not missing in what comes out.
#[test]
fn a_log_is_cut_while_it_is_folded_again() {
    for question in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("greenroom.db");
        let database = Rc::new(Database::open(&path).unwrap());
        let actor = a_group(&*database, 7, 3);
        change(&path, "UPDATE heads SET digest_version = NULL, digest = NULL");
        let was_cut = actix_rt::System::new().block_on(async {
            let between = CutBefore { question, asked: 0, database: Rc::clone(&database) };
            let ledger = Ledger { query: between.start().recipient(), ..ledger(&database) };
            taken_up(&ledger, 7).await;
            ledger.read(|archive| archive.base(7)).await.unwrap().is_some()
        });
        assert!(was_cut);
        let archive = database.archive();
        assert_eq!(differences(&archive, 7), Vec::<String>::new(), "before question {question}");
        assert_eq!(archive.digest(7).unwrap(), Some(actor.digests.group), "{question}");
    }
}

/// A base of a version that knew no digests tells nothing of what it covers; what lives there has
/// its digest all the same, and what follows is counted.
#[test]
fn a_base_without_digests() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let mut actor = a_group(&database, 7, 2);
    let mut store = Engine::store(&database);
    commit(&mut store, &actor.play_all(&[ANSWER]));
    commit(&mut store, &actor.play_all(&[Move::Compact]));
    cut(&mut store, &database.archive(), 7, LATE, u64::MAX).unwrap();
    let old = "UPDATE bases SET state = json_remove(state, '$.digests'); \
               UPDATE heads SET digest_version = NULL";
    change(database.path(), old);
    let run = actor.world.group.run().unwrap().id;
    let archive = database.archive();
    let cut_at = archive.base(7).unwrap().unwrap().seq;
    drop(store);
    actix_rt::System::new().block_on(taken_up(&ledger(&database), 7));
    assert_eq!(differences(&archive, 7), Vec::<String>::new());
    let live = archive.run_digest(run).unwrap().unwrap().digest.unwrap();
    assert_eq!((live.schema_version, live.agent.as_str()), (SCHEMA_VERSION, "one"));
    assert_eq!((live.digest.watermark_seq, live.digest.frame_count), (cut_at, 0));

    let mut store = Engine::store(&database);
    let found = store.adopt(7, UP).unwrap().unwrap();
    (actor.epoch, actor.digests) = (found.epoch, found.digests.unwrap());
    let lock = Move::Lock(crate::world::LockSaid::Taken);
    let mut writes: Vec<_> = [lock, Move::Grant, ANSWER, Move::Stop]
        .into_iter()
        .filter_map(|next| actor.play(next))
        .collect();
    writes.extend(actor.play(Move::Exit(greenroom_core::ExitReason::Stopped)));
    let is_compaction = |write: &Write| matches!(write, Write::TaskEnded { .. });
    assert!(writes.iter().flat_map(|own| &own.writes).any(is_compaction));
    commit(&mut store, &writes);
    assert_eq!(differences(&archive, 7), Vec::<String>::new());
    let sealed = archive.run_digest(run).unwrap().unwrap().digest.unwrap();
    assert_eq!(sealed.digest.outcome(), Some(Outcome::Stopped));
    let group = archive.digest(7).unwrap().unwrap();
    assert_eq!((group.turn_count, group.outcome()), (0, Some(Outcome::Stopped)));
}
