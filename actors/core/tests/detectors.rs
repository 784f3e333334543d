//! One compaction, one entity, one count, one rotation, whichever detectors tell of it and in
//! whatever order their pipes are read (SEEDS AM-29, AM-30).
//!
//! What is read from stdout, ACP's updates and hermes' `_meta` among it, keeps its order, and so
//! does stderr; nothing is read of a turn before its prompt was sent. Beyond that, any order. What
//! must be given, as otherwise the pipes do not hold what it takes:
//!
//! - Stderr lines that name no session are read before the next prompt is sent. Later, nothing
//!   tells a late line of the last turn from a line of this one. Lines with sessions may come at
//!   any time.
//! - A compaction that stderr saw begin and nobody saw end is the last in its turn.
//! - Where `_meta` tells once of several compactions, as of one from the first session to the last,
//!   it counts as one of them, and whose detail it becomes is open.
#![allow(clippy::unwrap_used)]

mod scenes;

use greenroom_core::Sign;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::TestCaseError,
};
use scenes::{Acp, Attempt, Meta, Scene, Stderr};

const ACP: Acp = Acp { keys: true, starts: true, twice: false, vain: false };
const STDERR: Stderr = Stderr { ids: true, names_old: false, starts: true, lag: 1 };

/// What ACP may show, and nothing.
fn acps() -> Vec<Option<Acp>> {
    let all = [
        ACP,
        Acp { keys: false, ..ACP },
        Acp { starts: false, ..ACP },
        Acp { twice: true, ..ACP },
        Acp { vain: true, ..ACP },
        Acp { keys: false, starts: false, ..ACP },
        Acp { twice: true, vain: true, ..ACP },
    ];
    std::iter::once(None).chain(all.map(Some)).collect()
}

fn stderrs() -> Vec<Option<Stderr>> {
    let all = [
        STDERR,
        Stderr { lag: 2, ..STDERR },
        Stderr { names_old: true, ..STDERR },
        Stderr { starts: false, ..STDERR },
        Stderr { ids: false, lag: 0, ..STDERR },
        Stderr { ids: false, starts: false, lag: 0, ..STDERR },
    ];
    std::iter::once(None).chain(all.map(Some)).collect()
}

/// All in which two detectors or three tell.
fn scenes(turns: &[Vec<Attempt>]) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for acp in acps() {
        for stderr in stderrs() {
            for (rotates, meta) in [
                (false, Meta::Silent),
                (true, Meta::Silent),
                (true, Meta::Each),
                (true, Meta::AtEnd),
                (true, Meta::Spans),
            ] {
                let tellers = [acp.is_some(), stderr.is_some(), meta != Meta::Silent];
                if tellers.into_iter().filter(|tells| *tells).count() >= 2 {
                    scenes.push(Scene { turns: turns.to_vec(), rotates, acp, meta, stderr });
                }
            }
        }
    }
    scenes
}

fn all_hold(histories: &[Vec<Vec<Attempt>>]) -> u64 {
    let (mut orders, mut wrong, mut all) = (0, Vec::new(), 0);
    for scene in histories.iter().flat_map(|turns| scenes(turns)) {
        all += 1;
        match scene.read_in_every_order() {
            Ok(own) => orders += own,
            Err(why) => wrong.push(why),
        }
    }
    let told = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {all} scenes:\n{told}", wrong.len());
    orders
}

use Attempt::{Again, Done, Silent, Vain};

#[test]
fn one_compaction() {
    let histories = [vec![vec![Done]], vec![vec![Done], vec![]], vec![vec![], vec![Done], vec![]]];
    println!("{} orders", all_hold(&histories));
}

#[test]
fn two_compactions() {
    let histories = [
        vec![vec![Done, Done]],
        vec![vec![Done], vec![Done]],
        vec![vec![Done, Done], vec![]],
        vec![vec![Done], vec![], vec![Done], vec![]],
    ];
    println!("{} orders", all_hold(&histories));
}

/// Two in one turn, or one in each of two, with what came to nothing before, between and behind.
#[test]
fn what_came_to_nothing_stands_between() {
    let mut histories = Vec::new();
    for vain in [Vain(Sign::Failed), Vain(Sign::Skipped), Again] {
        histories.push(vec![vec![vain, Done]]);
        histories.push(vec![vec![vain, Done], vec![]]);
    }
    for vain in [Vain(Sign::Cancelled), Vain(Sign::Noop)] {
        histories.push(vec![vec![vain, Done]]);
        histories.push(vec![vec![Done, vain], vec![]]);
    }
    println!("{} orders", all_hold(&histories));
}

#[test]
fn what_never_ended_stands_before() {
    let histories =
        [vec![vec![Silent], vec![Done]], vec![vec![Silent], vec![], vec![Done], vec![]]];
    println!("{} orders", all_hold(&histories));
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let vain = select(vec![Sign::Failed, Sign::Cancelled, Sign::Skipped, Sign::Noop]);
    prop_oneof![4 => Just(Done), 2 => vain.prop_map(Vain), 1 => Just(Again)]
}

/// Up to three compactions in up to three turns, with up to three tries before each.
fn turns() -> impl Strategy<Value = Vec<Vec<Attempt>>> {
    vec(vec(attempt(), 0..5), 1..4).prop_map(|mut turns| {
        let mut done = 0;
        for turn in &mut turns {
            turn.retain(|attempt| {
                done += usize::from(*attempt == Done);
                *attempt != Done || done <= 3
            });
            // One that begins again and again does end.
            if turn.last() == Some(&Again) {
                turn.push(Vain(Sign::Failed));
            }
        }
        turns
    })
}

/// What two or three detectors tell of some turns.
fn scene() -> impl Strategy<Value = Scene> {
    (turns(), any::<Index>()).prop_map(|(turns, which)| {
        let all = scenes(&turns);
        all[which.index(all.len())].clone()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Each case reads one scene in twenty orders.
    #[test]
    fn many_compactions(scene in scene(), orders in vec(vec(any::<bool>(), 60), 20)) {
        for order in orders {
            scene.read_in_order(order.into_iter()).map_err(TestCaseError::fail)?;
        }
    }
}
