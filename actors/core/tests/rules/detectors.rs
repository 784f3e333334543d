//! One compaction makes one record, one count and one rotation, whichever detectors report it and
//! in whatever order greenroom reads their pipes (AM-29, AM-30).
//!
//! Stdout, with ACP's updates and hermes' `_meta`, keeps its order, and so does stderr; nothing of
//! a turn is read before its prompt was sent. Beyond that, any order may occur. The tests assume
//! the following, as otherwise the pipes do not hold the information:
//!
//! - Stderr lines that name no session are read before the next prompt is sent. Later, a late line
//!   of the last turn looks like a line of this one. Lines with sessions may come at any time.
//! - A compaction with a start on stderr and no reported end is the last in its turn.
//! - If `_meta` reports several compactions at once, as one from the first session to the last, it
//!   counts as one of them; which one gets its details is open.

use greenroom_core::SignalKind;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::TestCaseError,
};

use crate::detector_scenarios::{Acp, Attempt, HermesMeta, Scenario, Stderr};

const ACP: Acp =
    Acp { keys: true, starts: true, repeats_completion: false, shows_unsuccessful: false };
const STDERR: Stderr = Stderr { ids: true, names_old: false, starts: true, late_turns: 1 };

/// Returns what ACP may show, and nothing.
fn acps() -> Vec<Option<Acp>> {
    let all = [
        ACP,
        Acp { keys: false, ..ACP },
        Acp { starts: false, ..ACP },
        Acp { repeats_completion: true, ..ACP },
        Acp { shows_unsuccessful: true, ..ACP },
        Acp { keys: false, starts: false, ..ACP },
        Acp { repeats_completion: true, shows_unsuccessful: true, ..ACP },
    ];
    std::iter::once(None).chain(all.map(Some)).collect()
}

fn stderrs() -> Vec<Option<Stderr>> {
    let all = [
        STDERR,
        Stderr { late_turns: 2, ..STDERR },
        Stderr { names_old: true, ..STDERR },
        Stderr { starts: false, ..STDERR },
        Stderr { ids: false, late_turns: 0, ..STDERR },
        Stderr { ids: false, starts: false, late_turns: 0, ..STDERR },
    ];
    std::iter::once(None).chain(all.map(Some)).collect()
}

/// Returns all scenarios in which two or three detectors report.
fn scenarios(turns: &[Vec<Attempt>]) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for acp in acps() {
        for stderr in stderrs() {
            for (rotates, hermes_meta) in [
                (false, HermesMeta::Silent),
                (true, HermesMeta::Silent),
                (true, HermesMeta::Each),
                (true, HermesMeta::AtEnd),
                (true, HermesMeta::Spans),
            ] {
                let reporters =
                    [acp.is_some(), stderr.is_some(), hermes_meta != HermesMeta::Silent];
                if reporters.into_iter().filter(|reports| *reports).count() >= 2 {
                    scenarios.push(Scenario {
                        turns: turns.to_vec(),
                        rotates,
                        acp,
                        hermes_meta,
                        stderr,
                    });
                }
            }
        }
    }
    scenarios
}

fn check_all(histories: &[Vec<Vec<Attempt>>]) -> u64 {
    let (mut orders, mut wrong, mut all) = (0, Vec::new(), 0);
    for scenario in histories.iter().flat_map(|turns| scenarios(turns)) {
        all += 1;
        match scenario.read_in_every_order() {
            Ok(count) => orders += count,
            Err(why) => wrong.push(why),
        }
    }
    let first = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {all} scenarios:\n{first}", wrong.len());
    orders
}

use Attempt::{Done, Restarted, Silent, Unsuccessful};

#[test]
fn all_orders_of_one_compaction_make_one_record() {
    let histories = [vec![vec![Done]], vec![vec![Done], vec![]], vec![vec![], vec![Done], vec![]]];
    println!("{} orders", check_all(&histories));
}

#[test]
fn all_orders_of_two_compactions_make_two_records() {
    let histories = [
        vec![vec![Done, Done]],
        vec![vec![Done], vec![Done]],
        vec![vec![Done, Done], vec![]],
        vec![vec![Done], vec![], vec![Done], vec![]],
    ];
    println!("{} orders", check_all(&histories));
}

/// One compaction, with an unsuccessful attempt before or after it.
#[test]
fn unsuccessful_attempts_do_not_confuse_the_detectors() {
    let mut histories = Vec::new();
    for unsuccessful in
        [Unsuccessful(SignalKind::Failed), Unsuccessful(SignalKind::Skipped), Restarted]
    {
        histories.push(vec![vec![unsuccessful, Done]]);
        histories.push(vec![vec![unsuccessful, Done], vec![]]);
    }
    for unsuccessful in [Unsuccessful(SignalKind::Cancelled), Unsuccessful(SignalKind::Noop)] {
        histories.push(vec![vec![unsuccessful, Done]]);
        histories.push(vec![vec![Done, unsuccessful], vec![]]);
    }
    println!("{} orders", check_all(&histories));
}

#[test]
fn an_unfinished_compaction_does_not_absorb_the_next() {
    let histories =
        [vec![vec![Silent], vec![Done]], vec![vec![Silent], vec![], vec![Done], vec![]]];
    println!("{} orders", check_all(&histories));
}

/// AM-29: stderr starts the first attempt twice and ends it once, all after ACP has reported it. So
/// one record never gets an end from stderr, and must not take that of a later attempt.
#[test]
fn a_detector_ends_the_compaction_that_it_started_last() {
    let failed = Unsuccessful(SignalKind::Failed);
    let scenario = Scenario {
        turns: vec![vec![Restarted, failed], vec![failed, Done, failed, Done]],
        rotates: true,
        acp: Some(Acp { shows_unsuccessful: true, ..ACP }),
        hermes_meta: HermesMeta::Each,
        stderr: Some(STDERR),
    };
    let order = "ooo ee oo ooooo eeeee o eeee ooooo".chars().filter(|pipe| *pipe != ' ');
    scenario.read_in_order(order.map(|pipe| pipe == 'e')).unwrap();
}

fn turn() -> impl Strategy<Value = Attempt> {
    let end = select(vec![
        SignalKind::Failed,
        SignalKind::Cancelled,
        SignalKind::Skipped,
        SignalKind::Noop,
    ]);
    prop_oneof![4 => Just(Done), 2 => end.prop_map(Unsuccessful), 1 => Just(Restarted)]
}

/// Up to three compactions in up to three turns, with up to three attempts before each.
fn turns() -> impl Strategy<Value = Vec<Vec<Attempt>>> {
    vec(vec(turn(), 0..5), 1..4).prop_map(|mut turns| {
        let mut done = 0;
        for turn in &mut turns {
            turn.retain(|attempt| {
                done += usize::from(*attempt == Done);
                *attempt != Done || done <= 3
            });
            // An attempt that restarts does end.
            if turn.last() == Some(&Restarted) {
                turn.push(Unsuccessful(SignalKind::Failed));
            }
        }
        turns
    })
}

/// A scenario of some turns with two or three detectors.
fn scenario() -> impl Strategy<Value = Scenario> {
    (turns(), any::<Index>()).prop_map(|(turns, which)| {
        let all = scenarios(&turns);
        all[which.index(all.len())].clone()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Each case reads one scenario in twenty orders.
    #[test]
    fn random_orders_of_up_to_three_compactions_make_one_record_each(
        scenario in scenario(),
        orders in vec(vec(any::<bool>(), 60), 20),
    ) {
        for order in orders {
            scenario.read_in_order(order.into_iter()).map_err(TestCaseError::fail)?;
        }
    }
}
