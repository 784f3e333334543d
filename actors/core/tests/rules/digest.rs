//! Digests over random histories: projected in steps and at once, sealed at every end of a run, and
//! compared with a simple count.

use std::collections::BTreeMap;

use greenroom_core::{
    AgentOutput, Digest, Digests, Fact, Kinds, Lines, Place, Recorded, RunId, TaskId, Timestamp,
    digest::{Outcome, RunDigest, Sealed},
};
use greenroom_testing::world::{Action, World, actions, situations::situations};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestRunner},
};

use crate::counted_digest::{CountedDigest, LoggedFact, count, facts};

const ACTIONS_MAX: usize = 200;
/// The file with the seeds of failures, relative to the package.
const REGRESSIONS: &str = "proptest-regressions/digest.txt";

/// The steps of a history: each action and its facts.
type History = Vec<(Action, Timestamp, Vec<Recorded>)>;

fn played(actions: &[Action]) -> History {
    let mut world = World::default();
    let play = |next: &Action| world.play(*next).unwrap().map(|(at, facts)| (*next, at, facts));
    actions.iter().filter_map(play).collect()
}

fn histories() -> impl Strategy<Value = History> {
    let given = select(situations()).prop_map(|(_, given)| given);
    (given, actions(ACTIONS_MAX)).prop_map(|(given, actions)| played(&[given, actions].concat()))
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

/// The digests as the next server reads them back.
fn stored(digests: &Digests) -> Digests {
    serde_json::from_str(&json(digests)).unwrap()
}

/// The sealed digests, as their rows hold them in the end.
#[derive(Debug, Default, PartialEq)]
struct Rows {
    runs: BTreeMap<RunId, RunDigest>,
    turns: BTreeMap<TaskId, Digest>,
}

impl Rows {
    fn put(&mut self, closed: Option<Sealed>) {
        match closed {
            None => {}
            Some(Sealed::Run(run)) => _ = self.runs.insert(run.run, *run),
            Some(Sealed::Turn(task, digest)) => _ = self.turns.insert(task, *digest),
        }
    }
}

fn projected(history: &History) -> (Digests, Rows) {
    let (mut digests, mut rows) = (Digests::default(), Rows::default());
    for (_, at, facts) in history {
        facts.iter().for_each(|fact| rows.put(digests.apply(fact, *at)));
    }
    (digests, rows)
}

/// A batch of output line by line, as its frames are read back.
fn line_by_line(next: Action, recorded: &Recorded) -> Vec<Recorded> {
    let Recorded { place, fact } = recorded;
    let (Fact::AgentOutput(_), Action::Output(message)) = (fact, next) else {
        return vec![recorded.clone()];
    };
    let line = |(seq, (line, summary)): (u64, (String, _))| {
        let kinds = Kinds::All("session/update".into());
        let lines = Lines { count: 1, kinds, text: line.into() };
        let fact = Fact::AgentOutput(AgentOutput { lines, summary });
        Recorded { place: Place { seq, ..*place }, fact }
    };
    (place.seq..).zip(message.parts()).map(line).collect()
}

fn all_facts(history: &History) -> Vec<LoggedFact> {
    let steps: Vec<_> = history.iter().map(|(_, at, facts)| (*at, facts.clone())).collect();
    facts(&steps)
}

proptest! {
    #![proptest_config(config(150))]

    /// TD-5, byte for byte: digests that are stored and read back at any point continue as if they
    /// had been projected at once, and so do the single lines of a batch.
    #[test]
    fn incremental_digests_equal_digests_computed_at_once(
        history in histories(),
        restores in any::<u64>(),
    ) {
        let (at_once, rows) = projected(&history);
        let (mut restored, mut lines) = (Digests::default(), Digests::default());
        let (mut restored_rows, mut line_rows) = (Rows::default(), Rows::default());
        let mut restores = (0..64).map(|bit| restores >> bit & 1 == 1).cycle();
        for (next, at, facts) in &history {
            for fact in facts {
                restored_rows.put(restored.apply(fact, *at));
                for line in line_by_line(*next, fact) {
                    line_rows.put(lines.apply(&line, *at));
                }
                if restores.next().unwrap() {
                    (restored, lines) = (stored(&restored), stored(&lines));
                }
            }
        }
        prop_assert_eq!(json(&restored), json(&at_once));
        prop_assert_eq!(json(&lines), json(&at_once));
        prop_assert_eq!(&restored_rows, &rows);
        prop_assert_eq!(&line_rows, &rows);
    }

    /// TD-8, TD-9 and all sums: the digests of the group, of each run and of each turn equal a
    /// simple count, and each started task that ended is sealed exactly once.
    #[test]
    fn digest_sums_equal_a_simple_count(history in histories()) {
        let (digests, rows) = projected(&history);
        let all = all_facts(&history);
        prop_assert_eq!(CountedDigest::from(&digests.group), count(&all, |_| true));
        let mut runs = rows.runs.clone();
        runs.extend(digests.live_run().map(|live| (live.run, live.clone())));
        let started = all.iter().filter_map(|fact| match &fact.fact {
            Fact::RunStarted { run, .. } => Some(*run),
            _ => None,
        });
        prop_assert!(started.eq(runs.keys().copied()));
        for (run, stored) in runs {
            let counted = count(&all, |fact| fact.run == Some(run));
            prop_assert_eq!(CountedDigest::from(&stored.digest), counted);
        }
        let is_started = |task: TaskId| all.iter().any(|fact| {
            matches!(&fact.fact, Fact::TaskStarted { task: started, .. } if *started == task)
        });
        let ended = all.iter().filter_map(|fact| match &fact.fact {
            Fact::TaskEnded { task, .. } => Some(*task).filter(|task| is_started(*task)),
            _ => None,
        });
        prop_assert_eq!(
            ended.collect::<std::collections::BTreeSet<_>>(),
            rows.turns.keys().copied().collect()
        );
        for (task, digest) in &rows.turns {
            let counted = count(&all, |fact| fact.turn == Some(*task));
            prop_assert_eq!(CountedDigest::from(digest), counted);
        }
    }

    /// TD-1, TD-2 (I6): every end of a run seals its digest, up to its last frame and with an
    /// outcome, for good. The outcome of a deleted group is `deleted` until the group is revived.
    #[test]
    fn every_end_of_a_run_seals_its_digest(history in histories()) {
        let (mut digests, mut rows) = (Digests::default(), Rows::default());
        let (mut seq, mut sealed, mut archived) = (0, BTreeMap::new(), false);
        let facts = history.iter().flat_map(|(_, at, facts)| facts.iter().map(|fact| (*at, fact)));
        for (at, recorded) in facts {
            let fact = &recorded.fact;
            seq += fact.frames();
            let closed = digests.apply(recorded, at);
            match fact {
                Fact::RunExited { run, exit } => {
                    let Some(Sealed::Run(ended)) = &closed else {
                        return Err(TestCaseError::fail(format!("{closed:?}")));
                    };
                    prop_assert_eq!((ended.run, ended.digest.watermark_seq), (*run, seq));
                    prop_assert_eq!(ended.digest.outcome(), Some(exit.into()));
                    prop_assert!(digests.live_run().is_none());
                    sealed.insert(*run, ended.as_ref().clone());
                    let expected = if archived { Outcome::Deleted } else { exit.into() };
                    prop_assert_eq!(digests.group.outcome(), Some(expected));
                }
                Fact::RunStarted { run, .. } => {
                    prop_assert_eq!(digests.live_run().map(|live| live.run), Some(*run));
                    prop_assert_eq!(digests.group.outcome, Some(None));
                }
                Fact::GroupArchived {} => {
                    archived = true;
                    let alone = digests.live_run().is_none();
                    let outcome = alone.then_some(Outcome::Deleted);
                    prop_assert_eq!(digests.group.outcome(), outcome);
                }
                Fact::GroupChanged(_) if archived => {
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

    /// TD-3, TD-7: a repeated or late frame counts as a frame, and changes neither the outcome nor
    /// the findings.
    #[test]
    fn late_frames_change_no_sealed_outcome(history in histories()) {
        let mut digests = Digests::default();
        let facts = history.iter().flat_map(|(_, at, facts)| facts.iter().map(|fact| (*at, fact)));
        let mut last_output = None;
        for (at, recorded) in facts {
            digests.apply(recorded, at);
            match &recorded.fact {
                Fact::AgentOutput(_) => last_output = Some(recorded.clone()),
                Fact::RunExited { run, .. } => {
                    let late = last_output.take().filter(|output| output.place.run == Some(*run));
                    let mut again = digests.clone();
                    let mut frames = 0;
                    for mut late in [Some(recorded.clone()), late].into_iter().flatten() {
                        late.place.seq = again.group.watermark_seq + 1;
                        frames += late.fact.frames();
                        let closed = again.apply(&late, at);
                        prop_assert!(matches!(closed, Some(Sealed::Run(_))), "{:?}", closed);
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

    /// The digest of a group is the merge of its runs' digests and of the facts between them. Those
    /// facts are projected alone here, so the test compares only fields that need no earlier fact.
    #[test]
    fn a_group_digest_is_the_merge_of_its_runs(history in histories()) {
        let (digests, rows) = projected(&history);
        let mut merged = Digest::default();
        let all = all_facts(&history);
        for fact in &all {
            match &fact.fact {
                Fact::RunExited { run, .. } => merged.merge(&rows.runs[run].digest),
                _ if fact.run.is_none() => {
                    let mut one = Digests::default();
                    one.apply(&fact.recorded, fact.at);
                    merged.merge(&one.group);
                }
                _ => {}
            }
        }
        merged.merge(&digests.live_run().map(|live| live.digest.clone()).unwrap_or_default());
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

    /// Merging is associative, and commutative except for the newest values.
    #[test]
    fn merging_is_associative_and_commutative(
        history in histories(),
        ends in prop::array::uniform2(0.0..1.0_f64),
    ) {
        let all = all_facts(&history);
        let mut ends = ends.map(|end| (end * all.len() as f64) as usize);
        ends.sort_unstable();
        let mut digests = Digests::default();
        let pieces = [&all[..ends[0]], &all[ends[0]..ends[1]], &all[ends[1]..]].map(|piece| {
            digests.group = Digest {
                watermark_seq: digests.group.watermark_seq,
                ..Digest::default()
            };
            piece.iter().for_each(|fact| _ = digests.apply(&fact.recorded, fact.at));
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
        prop_assert_eq!(&whole, &projected(&history).0.group);
        let sums = |digest: &Digest| {
            let mut digest = Digest { context: None, outcome: None, ..digest.clone() };
            digest.findings.newest.clear();
            digest.errors.for_each(|class| class.samples.clear());
            digest
        };
        prop_assert_eq!(sums(&whole), sums(&merge(c, &merge(b, a))));
    }
}

/// The random histories reach every field, or the properties prove nothing.
#[test]
fn random_histories_fill_every_digest_field() {
    let mut runner = TestRunner::deterministic();
    let mut sums = Digest::default();
    for _ in 0..300 {
        let history = histories().new_tree(&mut runner).unwrap().current();
        sums.merge(&projected(&history).0.group);
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
        assert!(text.get(field).is_some_and(|value| !empty(value)), "{field}: {text:#}");
    }
    let some =
        [&text["compactions"], &text["permissions"]].map(|counts| counts.as_object().unwrap());
    for (name, count) in some.into_iter().flatten() {
        assert!(*count != 0 || name.starts_with("tokens"), "{name}: {text:#}");
    }
    let failed = sums.tools.iter().map(|(_, tool)| tool.failed).sum::<u64>();
    assert!(failed > 0 && sums.costs.iter().len() == 2, "{text:#}");
    assert!(sums.outcomes.len() >= 6, "{text:#}");
}
