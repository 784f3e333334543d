//! Digests over random play: folded in steps and at once, sealed at every ending, and counted once
//! more by simple code.

#![allow(clippy::unwrap_used)]

mod tally;
mod world;

use std::collections::BTreeMap;

use greenroom_core::{
    Digest, Digests, Kinds, Lines, RunId, Said, TaskId, Timestamp, Write,
    digest::{Closed, Outcome, RunDigest},
};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestRunner},
};
use tally::{Fact, Tally, facts, tally};
use world::{Move, World, moves, situations::situations};

const MOVES_MAX: usize = 200;
/// Where the seeds of failures are kept, within the package.
const REGRESSIONS: &str = "proptest-regressions/digest.txt";

/// What was played: the facts of each step, and what was said in it.
type History = Vec<(Move, Timestamp, Vec<Write>)>;

fn played(moves: &[Move]) -> History {
    let mut world = World::default();
    let play = |next: &Move| world.play(*next).unwrap().map(|(at, writes)| (*next, at, writes));
    moves.iter().filter_map(play).collect()
}

fn histories() -> impl Strategy<Value = History> {
    let given = select(situations()).prop_map(|(_, given)| given);
    (given, moves(MOVES_MAX)).prop_map(|(given, moves)| played(&[given, moves].concat()))
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..ProptestConfig::default()
    }
}

fn json(digests: &Digests) -> String {
    serde_json::to_string(digests).unwrap()
}

/// The digests as the next server reads them.
fn stored(digests: &Digests) -> Digests {
    serde_json::from_str(&json(digests)).unwrap()
}

/// What is closed, as its rows hold it in the end.
#[derive(Debug, Default, PartialEq)]
struct Rows {
    runs: BTreeMap<RunId, RunDigest>,
    turns: BTreeMap<TaskId, Digest>,
}

impl Rows {
    fn put(&mut self, closed: Option<Closed>) {
        match closed {
            None => {}
            Some(Closed::Run(run)) => _ = self.runs.insert(run.run, *run),
            Some(Closed::Turn(task, digest)) => _ = self.turns.insert(task, *digest),
        }
    }
}

fn folded(history: &History) -> (Digests, Rows) {
    let (mut digests, mut rows) = (Digests::default(), Rows::default());
    for (_, at, writes) in history {
        writes.iter().for_each(|write| rows.put(digests.take(write, *at)));
    }
    (digests, rows)
}

/// What was said at once, line by line: as its frames are read again.
fn line_by_line(next: Move, write: &Write) -> Vec<Write> {
    let (Write::Said(said), Move::Say(spoken)) = (write, next) else { return vec![write.clone()] };
    let line = |(line, fold): (String, _)| {
        let kinds = Kinds::All("session/update".into());
        let lines = Lines { count: 1, kinds, text: line.into() };
        Write::Said(Said { lines, fold, ..said.clone() })
    };
    spoken.parts().into_iter().map(line).collect()
}

fn all_facts(history: &History) -> Vec<Fact> {
    let steps: Vec<_> = history.iter().map(|(_, at, writes)| (*at, writes.clone())).collect();
    facts(&steps)
}

proptest! {
    #![proptest_config(config(150))]

    /// SEEDS TD-5, byte for byte: what was stored and read back at any cut goes on as if it had
    /// been folded at once, and so do a batch's lines by themselves.
    #[test]
    fn in_steps_is_at_once(history in histories(), cuts in any::<u64>()) {
        let (at_once, rows) = folded(&history);
        let (mut cut, mut lines) = (Digests::default(), Digests::default());
        let (mut cut_rows, mut line_rows) = (Rows::default(), Rows::default());
        let mut cuts = (0..64).map(|bit| cuts >> bit & 1 == 1).cycle();
        for (next, at, writes) in &history {
            for write in writes {
                cut_rows.put(cut.take(write, *at));
                for line in line_by_line(*next, write) {
                    line_rows.put(lines.take(&line, *at));
                }
                if cuts.next().unwrap() {
                    (cut, lines) = (stored(&cut), stored(&lines));
                }
            }
        }
        prop_assert_eq!(json(&cut), json(&at_once));
        prop_assert_eq!(json(&lines), json(&at_once));
        prop_assert_eq!(&cut_rows, &rows);
        prop_assert_eq!(&line_rows, &rows);
    }

    /// SEEDS TD-8, TD-9 and all sums: the group's, each run's and each turn's are what a simple
    /// walk counts, and each started task that ended is closed exactly once.
    #[test]
    fn the_sums_are_what_a_simple_walk_counts(history in histories()) {
        let (digests, rows) = folded(&history);
        let all = all_facts(&history);
        prop_assert_eq!(Tally::from(&digests.group), tally(&all, |_| true));
        let mut runs = rows.runs.clone();
        runs.extend(digests.live_run().map(|live| (live.run, live.clone())));
        let started = all.iter().filter_map(|fact| match &fact.write {
            Write::RunStarted { run, .. } => Some(*run),
            _ => None,
        });
        prop_assert!(started.eq(runs.keys().copied()));
        for (run, own) in runs {
            prop_assert_eq!(Tally::from(&own.digest), tally(&all, |fact| fact.run == Some(run)));
        }
        let is_started = |task: TaskId| all.iter().any(|fact| {
            matches!(&fact.write, Write::TaskStarted { task: own, .. } if *own == task)
        });
        let ended = all.iter().filter_map(|fact| match &fact.write {
            Write::TaskEnded { task, .. } => Some(*task).filter(|task| is_started(*task)),
            _ => None,
        });
        prop_assert_eq!(
            ended.collect::<std::collections::BTreeSet<_>>(),
            rows.turns.keys().copied().collect()
        );
        for (task, own) in &rows.turns {
            prop_assert_eq!(Tally::from(own), tally(&all, |fact| fact.turn == Some(*task)));
        }
    }

    /// SEEDS TD-1, TD-2 (I6): at every ending of a run its digest is there, up to its last frame
    /// and with an outcome; so it stays. A deleted group's outcome is that, until it is revived.
    #[test]
    fn every_ending_seals(history in histories()) {
        let (mut digests, mut rows) = (Digests::default(), Rows::default());
        let (mut seq, mut sealed, mut archived) = (0, BTreeMap::new(), false);
        let writes = history.iter().flat_map(|(_, at, own)| own.iter().map(|own| (*at, own)));
        for (at, write) in writes {
            seq += write.frames();
            let closed = digests.take(write, at);
            match write {
                Write::RunExited { run, exit } => {
                    let Some(Closed::Run(own)) = &closed else {
                        return Err(TestCaseError::fail(format!("{closed:?}")));
                    };
                    prop_assert_eq!((own.run, own.digest.watermark_seq), (*run, seq));
                    prop_assert_eq!(own.digest.outcome(), Some(exit.into()));
                    prop_assert!(digests.live_run().is_none());
                    sealed.insert(*run, own.as_ref().clone());
                    let expected = if archived { Outcome::Deleted } else { exit.into() };
                    prop_assert_eq!(digests.group.outcome(), Some(expected));
                }
                Write::RunStarted { run, .. } => {
                    prop_assert_eq!(digests.live_run().map(|own| own.run), Some(*run));
                    prop_assert_eq!(digests.group.outcome, Some(None));
                }
                Write::GroupArchived {} => {
                    archived = true;
                    let alone = digests.live_run().is_none();
                    let outcome = alone.then_some(Outcome::Deleted);
                    prop_assert_eq!(digests.group.outcome(), outcome);
                }
                Write::GroupChanged(_) if archived => {
                    archived = false;
                    prop_assert_eq!(digests.group.outcome, Some(None));
                }
                _ => {}
            }
            prop_assert_eq!(digests.group.watermark_seq, seq);
            rows.put(closed);
        }
        prop_assert_eq!(rows.runs, sealed);
    }

    /// SEEDS TD-3, TD-7: what comes once more, or late, counts as frames, and changes neither how
    /// it ended nor what was found.
    #[test]
    fn what_is_sealed_stays_so(history in histories()) {
        let mut digests = Digests::default();
        let writes = history.iter().flat_map(|(_, at, own)| own.iter().map(|own| (*at, own)));
        let mut said = None;
        for (at, write) in writes {
            digests.take(write, at);
            match write {
                Write::Said(own) => said = Some(own.clone()),
                Write::RunExited { run, .. } => {
                    let late = said.take().filter(|own| own.run == *run).map(Write::Said);
                    let mut again = digests.clone();
                    let mut frames = 0;
                    for late in [Some(write.clone()), late].into_iter().flatten() {
                        frames += late.frames();
                        let closed = again.take(&late, at);
                        prop_assert!(matches!(closed, Some(Closed::Run(_))), "{:?}", closed);
                    }
                    let run = again.run.unwrap().digest;
                    let before = digests.run.clone().unwrap().digest;
                    for (after, before) in [(&run, &before), (&again.group, &digests.group)] {
                        prop_assert_eq!(after.outcome, before.outcome);
                        prop_assert_eq!(&after.outcomes, &before.outcomes);
                        prop_assert_eq!(&after.findings, &before.findings);
                        prop_assert_eq!(after.frame_count, before.frame_count + frames);
                        prop_assert_eq!(after.watermark_seq, before.watermark_seq + frames);
                    }
                }
                _ => {}
            }
        }
    }

    /// A group's is the merge of its runs' and of what was between them. What was between is folded
    /// by itself here: so only what needs no knowledge of what came before is compared.
    #[test]
    fn a_group_is_the_merge_of_its_runs(history in histories()) {
        let (digests, rows) = folded(&history);
        let mut merged = Digest::default();
        let mut between = Digests::default();
        let all = all_facts(&history);
        for fact in &all {
            match &fact.write {
                Write::RunExited { run, .. } => merged.merge(&rows.runs[run].digest),
                write if fact.run.is_none() => {
                    between.group.watermark_seq = fact.seq - write.frames();
                    let mut one = between.clone();
                    one.take(write, fact.at);
                    merged.merge(&one.group);
                }
                _ => {}
            }
        }
        merged.merge(&digests.live_run().map(|own| own.digest.clone()).unwrap_or_default());
        let comparable = |digest: &Digest| Digest {
            turn_count: 0,
            stop_reasons: BTreeMap::new(),
            latency: Default::default(),
            compactions: Default::default(),
            context: None,
            outcome: None,
            ..digest.clone()
        };
        prop_assert_eq!(comparable(&merged), comparable(&digests.group));
    }

    /// Merging is associative, and commutative but for what is newest.
    #[test]
    fn merging_knows_no_order(history in histories(), ends in prop::array::uniform2(0.0..1.0_f64)) {
        let all = all_facts(&history);
        let mut ends = ends.map(|end| (end * all.len() as f64) as usize);
        ends.sort_unstable();
        let mut digests = Digests::default();
        let pieces = [&all[..ends[0]], &all[ends[0]..ends[1]], &all[ends[1]..]].map(|piece| {
            digests.group = Digest {
                watermark_seq: digests.group.watermark_seq,
                ..Digest::default()
            };
            piece.iter().for_each(|fact| _ = digests.take(&fact.write, fact.at));
            digests.group.clone()
        });
        let merge = |one: &Digest, other: &Digest| {
            let mut merged = one.clone();
            merged.merge(other);
            merged
        };
        let [a, b, c] = &pieces;
        let whole = merge(&merge(a, b), c);
        prop_assert_eq!(&whole, &merge(a, &merge(b, c)));
        prop_assert_eq!(&whole, &folded(&history).0.group);
        let sums = |digest: &Digest| {
            let mut digest = Digest { context: None, outcome: None, ..digest.clone() };
            digest.findings.newest.clear();
            digest.errors.for_each(|class| class.samples.clear());
            digest
        };
        prop_assert_eq!(sums(&whole), sums(&merge(c, &merge(b, a))));
    }
}

/// The statements are worth what the histories reach.
#[test]
fn random_digests_hold_everything() {
    let mut runner = TestRunner::deterministic();
    let mut sums = Digest::default();
    for _ in 0..300 {
        let history = histories().new_tree(&mut runner).unwrap().current();
        sums.merge(&folded(&history).0.group);
    }
    let text = serde_json::to_value(&sums).unwrap();
    let empty = |value: &serde_json::Value| *value == 0 || *value == serde_json::json!({});
    for field in [
        "turn_count",
        "tokens",
        "by_model",
        "costs",
        "stop_reasons",
        "errors",
        "tools",
        "permissions",
        "compactions",
        "latency",
        "outcomes",
        "findings",
    ] {
        assert!(text.get(field).is_some_and(|own| !empty(own)), "{field}: {text:#}");
    }
    let some = [&text["compactions"], &text["permissions"]].map(|own| own.as_object().unwrap());
    for (name, count) in some.into_iter().flatten() {
        assert!(*count != 0 || name.starts_with("tokens"), "{name}: {text:#}");
    }
    let failed = sums.tools.iter().map(|(_, own)| own.failed).sum::<u64>();
    assert!(failed > 0 && sums.costs.iter().len() == 2, "{text:#}");
    assert!(sums.outcomes.len() >= 6, "{text:#}");
}
