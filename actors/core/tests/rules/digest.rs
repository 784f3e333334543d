//! Digests over random histories: projected in steps and at once, compared with a simple count,
//! merged from pieces, and sealed at every end of a run.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    AgentOutput, Digest, Digests, Fact, Kinds, Lines, Place, Recorded, RunId, TaskId, Timestamp,
    digest::{Findings, Outcome, RunDigest, Sealed},
};
use greenroom_testing::world::{Action, World, actions, situations::situations};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestRunner},
};

use crate::counted_digest::{LoggedFact, count, facts};

const ACTIONS_MAX: usize = 200;
/// The file with the seeds of failures, relative to the package.
const REGRESSIONS: &str = "proptest-regressions/digest.txt";

/// Each fact of a history, after the action that made it.
type History = Vec<(Action, Timestamp, Recorded)>;

fn histories() -> impl Strategy<Value = History> {
    let given = select(situations()).prop_map(|(_, given)| given);
    (given, actions(ACTIONS_MAX)).prop_map(|(given, actions)| {
        let mut world = World::default();
        let mut history = Vec::new();
        for next in [given, actions].concat() {
            let (at, facts) = world.play(next).unwrap().unwrap_or_default();
            history.extend(facts.into_iter().map(|fact| (next, at, fact)));
        }
        history
    })
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..ProptestConfig::default()
    }
}

/// Digests, and the sealed ones, as their rows hold them in the end.
#[derive(Debug, Default, PartialEq)]
struct Projected {
    digests: Digests,
    runs: BTreeMap<RunId, RunDigest>,
    turns: BTreeMap<TaskId, Digest>,
}

impl Projected {
    fn all(history: &History) -> Self {
        let mut all = Self::default();
        history.iter().for_each(|(_, at, fact)| all.apply(fact, *at));
        all
    }

    fn apply(&mut self, fact: &Recorded, at: Timestamp) {
        match self.digests.apply(fact, at) {
            None => {}
            Some(Sealed::Run(run)) => _ = self.runs.insert(run.run, *run),
            Some(Sealed::Turn(task, digest)) => _ = self.turns.insert(task, *digest),
        }
    }

    /// As the next server reads the digests back.
    fn restore(&mut self) {
        self.digests = serde_json::from_str(&self.json()).unwrap();
    }

    fn json(&self) -> String {
        serde_json::to_string(&self.digests).unwrap()
    }
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
        let fact = Fact::AgentOutput(AgentOutput { lines, summary, late: None });
        Recorded { place: Place { seq, ..*place }, fact }
    };
    (place.seq..).zip(message.parts()).map(line).collect()
}

fn merge(one: &Digest, other: &Digest) -> Digest {
    let mut merged = one.clone();
    merged.merge(other);
    merged
}

proptest! {
    #![proptest_config(config(150))]

    /// TD-4, TD-5, byte for byte: digests that are stored and read back at any point continue as if
    /// they had been projected at once, and so do the single lines of a batch.
    #[test]
    fn incremental_digests_equal_digests_computed_at_once(
        history in histories(),
        restores in any::<u64>(),
    ) {
        let at_once = Projected::all(&history);
        let (mut restored, mut lines) = (Projected::default(), Projected::default());
        let restores = (0..64).map(|bit| restores >> bit & 1 == 1).cycle();
        for ((next, at, fact), restores) in history.iter().zip(restores) {
            restored.apply(fact, *at);
            line_by_line(*next, fact).iter().for_each(|line| lines.apply(line, *at));
            if restores {
                restored.restore();
                lines.restore();
            }
        }
        prop_assert_eq!([restored.json(), lines.json()], [at_once.json(), at_once.json()]);
        prop_assert_eq!(&restored, &at_once);
        prop_assert_eq!(&lines, &at_once);
    }

    /// TD-8, TD-9 and all sums: the digests of the group, of each run and of each turn equal a
    /// simple count, and each started task that ended is sealed exactly once.
    #[test]
    fn digest_sums_equal_a_simple_count(history in histories()) {
        let Projected { digests, mut runs, turns } = Projected::all(&history);
        let all = facts(history.iter().map(|(_, at, fact)| (*at, fact)));
        let sums = |digest: &Digest| {
            Digest { outcome: None, findings: Findings::default(), ..digest.clone() }
        };
        prop_assert_eq!(sums(&digests.group), count(&all, |_| true));
        runs.extend(digests.live_run().map(|live| (live.run, live.clone())));
        let started: Vec<RunId> = all.iter().filter_map(|fact| match &fact.fact {
            Fact::RunStarted { run, .. } => Some(*run),
            _ => None,
        }).collect();
        prop_assert_eq!(started, runs.keys().copied().collect::<Vec<_>>());
        for (run, stored) in runs {
            prop_assert_eq!(sums(&stored.digest), count(&all, |fact| fact.run == Some(run)));
        }
        let ended = |fact: &LoggedFact| match &fact.fact {
            Fact::TaskEnded { task, .. } => fact.turn.filter(|turn| turn == task),
            _ => None,
        };
        let ended: BTreeSet<TaskId> = all.iter().filter_map(ended).collect();
        prop_assert_eq!(ended, turns.keys().copied().collect());
        for (task, digest) in &turns {
            prop_assert_eq!(sums(digest), count(&all, |fact| fact.turn == Some(*task)));
        }
    }

    /// TD-1, TD-2 (I6): every end of a run seals its digest, up to its last frame and with an
    /// outcome, for good. A group has the outcome of its last run until it starts another; that of
    /// a deleted group is `deleted` until the group is revived.
    /// TD-3, TD-7: a repeated end or late output counts as a frame, and changes neither the outcome
    /// nor the findings.
    #[test]
    fn every_end_of_a_run_seals_its_digest(history in histories()) {
        let mut all = Projected::default();
        let (mut seq, mut sealed, mut archived) = (0, BTreeMap::new(), false);
        let (mut outcome, mut last_output) = (None, None);
        for (_, at, recorded) in &history {
            seq += recorded.fact.frames();
            all.apply(recorded, *at);
            let Projected { digests, runs, .. } = &all;
            match &recorded.fact {
                Fact::RunExited { run, exit } => {
                    let ended = &runs[run].digest;
                    prop_assert_eq!(ended.watermark_seq, seq);
                    prop_assert_eq!(ended.outcome(), Some(exit.into()));
                    prop_assert!(digests.live_run().is_none());
                    sealed.insert(*run, runs[run].clone());
                    outcome = Some(Some(if archived { Outcome::Deleted } else { exit.into() }));
                    let output = last_output.take();
                    let output = output.filter(|output: &Recorded| output.place.run == Some(*run));
                    let mut late = digests.clone();
                    for mut frame in [Some(recorded.clone()), output].into_iter().flatten() {
                        frame.place.seq = late.group.watermark_seq + 1;
                        prop_assert!(matches!(late.apply(&frame, *at), Some(Sealed::Run(_))));
                    }
                    let late_run = &late.run.as_ref().unwrap().digest;
                    for (late, before) in [(late_run, ended), (&late.group, &digests.group)] {
                        prop_assert_eq!(late.outcome, before.outcome);
                        prop_assert_eq!(&late.outcomes, &before.outcomes);
                        prop_assert_eq!(&late.findings, &before.findings);
                        let frames = late.watermark_seq - seq;
                        prop_assert_eq!(late.frame_count, before.frame_count + frames);
                    }
                }
                Fact::AgentOutput(_) => last_output = Some(recorded.clone()),
                Fact::RunStarted { run, .. } => {
                    prop_assert_eq!(digests.live_run().map(|live| live.run), Some(*run));
                    outcome = Some(None);
                }
                Fact::GroupArchived {} => {
                    archived = true;
                    outcome = digests.live_run().map_or(Some(Some(Outcome::Deleted)), |_| outcome);
                }
                Fact::GroupChanged(_) if archived => (archived, outcome) = (false, Some(None)),
                _ => {}
            }
            prop_assert_eq!((digests.group.watermark_seq, digests.group.outcome), (seq, outcome));
        }
        prop_assert_eq!(all.runs, sealed);
    }

    /// the digests of any pieces of a log merge to that of the whole. Merging is associative,
    /// and commutative except for the newest values.
    #[test]
    fn merging_is_associative_and_commutative(
        history in histories(),
        ends in prop::array::uniform2(0.0..1.0_f64),
    ) {
        let mut ends = ends.map(|end| (end * history.len() as f64) as usize);
        ends.sort_unstable();
        let mut digests = Digests::default();
        let [first, second] = ends;
        let pieces = [&history[..first], &history[first..second], &history[second..]];
        let [a, b, c] = &pieces.map(|piece| {
            digests.group =
                Digest { watermark_seq: digests.group.watermark_seq, ..Digest::default() };
            piece.iter().for_each(|(_, at, fact)| _ = digests.apply(fact, *at));
            digests.group.clone()
        });
        let whole = merge(&merge(a, b), c);
        prop_assert_eq!(&whole, &merge(a, &merge(b, c)));
        prop_assert_eq!(&whole, &Projected::all(&history).digests.group);
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
        sums.merge(&Projected::all(&history).digests.group);
    }
    let text = serde_json::to_value(&sums).unwrap();
    assert_eq!(text.as_object().unwrap().len(), 18, "fields at their default: {text:#}");
    let some =
        [&text["compactions"], &text["permissions"]].map(|counts| counts.as_object().unwrap());
    for (name, count) in some.into_iter().flatten() {
        assert!(*count != 0 || name.starts_with("tokens"), "{name}: {text:#}");
    }
    let failed = sums.tools.iter().map(|(_, tool)| tool.failed).sum::<u64>();
    assert!(failed > 0 && sums.costs.iter().len() == 2 && sums.outcomes.len() >= 6, "{text:#}");
}
