//! The rest that an automatic compaction takes after one that was not completed: SEEDS HL-14, I12.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    Event, ExitReason, Expiry, Group, LockAnswer, RunPhase, Sign, Source, StopReason, Strategy,
    TaskId, TaskState as T,
};
use hand::{Hand, held, taken};

/// A name, what becomes of an ordered compaction, and how its task ends.
type InVain = (&'static str, fn(&mut Hand, TaskId), T);

/// The ways in which an ordered compaction is not completed.
#[rustfmt::skip]
const IN_VAIN: &[InVain] = &[
    ("it failed", |hand, _| {
        hand.lock(taken());
        hand.grant();
        hand.fail(-1);
    }, T::Failed),
    ("it was cancelled", |hand, task| {
        hand.lock(taken());
        hand.grant();
        hand.apply(Event::CancelRequested(task));
        hand.answer(StopReason::Cancelled);
    }, T::Cancelled),
    ("it was cancelled as it waited", |hand, task| {
        hand.apply(Event::CancelRequested(task));
        hand.lock(held());
    }, T::Cancelled),
    ("it took too long", |hand, _| {
        hand.lock(taken());
        hand.grant();
        hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
        hand.answer(StopReason::Cancelled);
    }, T::Interrupted),
    ("its agent died", |hand, _| {
        hand.lock(taken());
        hand.grant();
        hand.exit(ExitReason::Exited);
    }, T::Interrupted),
    ("its agent did not start", |hand, _| {
        hand.exit(ExitReason::Exited);
        hand.lock(taken());
        hand.grant();
        hand.exit(ExitReason::StartFailed);
    }, T::Failed),
    ("the lock is held", |hand, _| {
        for _ in 0..3 {
            hand.lock(held());
            hand.expire(|expiry| matches!(expiry, Expiry::Lock(..)));
        }
        hand.lock(held());
    }, T::Skipped),
    ("the lock is unknown", |hand, _| drop(hand.lock(LockAnswer::Failed)), T::Skipped),
    ("the lock is lost", |hand, task| {
        hand.lock(taken());
        hand.apply(Event::LockLost { task });
    }, T::Skipped),
];

/// A group that ordered a compaction by itself, which was not completed.
fn in_vain(ends: fn(&mut Hand, TaskId)) -> (Hand, TaskId) {
    let mut hand = Hand::idle();
    hand.turn_to(90);
    let task = hand.ordered().unwrap();
    ends(&mut hand, task);
    (hand, task)
}

/// A turn that leaves the context too full; whether that orders a compaction.
fn orders_one(hand: &mut Hand) -> bool {
    hand.turn();
    if hand.group.turn().is_none() {
        hand.ready("s", None);
    }
    hand.say("done");
    hand.usage(90);
    hand.answer(StopReason::EndTurn);
    hand.ordered().is_some()
}

/// SEEDS HL-14, I12: a rest follows an ordered compaction that was not completed, for whatever
/// reason: else a lock that another program keeps would delay turn after turn.
#[test]
fn hl_14_a_rest_follows_one_that_was_not_completed() {
    for (name, ends, state) in IN_VAIN {
        for (waited_ms, ordered) in [(0, false), (599_999, false), (600_000, true)] {
            let (mut hand, task) = in_vain(*ends);
            assert_eq!(hand.ended(task).map(|(state, _)| state), Some(*state), "{name}");
            hand.up_ms += waited_ms;
            assert_eq!(orders_one(&mut hand), ordered, "{name}, after {waited_ms} ms");
        }
    }
}

/// Likewise one that a caller ordered.
#[test]
fn skipped_compaction_starts_the_rest() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    hand.lock(LockAnswer::Failed);
    assert_eq!(hand.ended(task), Some((T::Skipped, Some("lock_failed".into()))));
    assert!(!orders_one(&mut hand));
    hand.up_ms += 600_000;
    assert!(orders_one(&mut hand));
}

/// HL-14: the rest is a time that passes, and no wall clock's (RELIABILITY F27); after a reboot
/// there is no other.
#[test]
fn hl_14_a_clock_that_is_set_neither_lengthens_nor_ends_the_rest() {
    type Does = fn(&mut Hand);
    let (stays, reboots): (Does, Does) = (|_| {}, |hand| hand.boot += 1);
    #[rustfmt::skip]
    let cases = [
        ("set back",                  stays,   0,       -9_000_000, false),
        ("set back, and over",        stays,   600_000, -9_000_000, true),
        ("set forward",               stays,   0,       9_000_000,  false),
        ("set forward, just before",  stays,   599_999, 9_000_000,  false),
        ("rebooted, just before",     reboots, 0,       599_999,    false),
        ("rebooted, over",            reboots, 0,       600_000,    true),
        ("rebooted, and set back",    reboots, 0,       -9_000_000, false),
    ];
    for (name, does, up_ms, wall_ms, ordered) in cases {
        let (mut hand, _) = in_vain(IN_VAIN[0].1);
        does(&mut hand);
        hand.up_ms += up_ms;
        hand.now.0 += wall_ms;
        assert_eq!(orders_one(&mut hand), ordered, "{name}");
    }
}

/// HL-14: a caller who changes the group or orders a compaction ends the rest, and so does a
/// completed compaction.
#[test]
fn hl_14_what_ends_the_rest() {
    type Acts = fn(&mut Hand);
    let changes: Acts = |hand| drop(hand.configure("other", None));
    let compacts: Acts = |hand| {
        hand.compact(Strategy::Command);
        hand.lock(taken());
        hand.grant();
        hand.signal(Source::Acp, Sign::Completed);
        hand.usage(20);
        hand.answer(StopReason::EndTurn);
    };
    let by_itself: Acts = |hand| {
        hand.turn();
        hand.signal(Source::Acp, Sign::Completed);
        hand.usage(20);
        hand.answer(StopReason::EndTurn);
    };
    for (name, acts) in [("a change", changes), ("an order", compacts), ("the agent", by_itself)] {
        let (mut hand, _) = in_vain(IN_VAIN[0].1);
        assert!(!orders_one(&mut hand), "{name}: it rests");
        acts(&mut hand);
        if hand.group.run().is_some_and(|run| run.phase == RunPhase::Stopping) {
            hand.exit(ExitReason::Stopped);
        }
        assert!(orders_one(&mut hand), "{name}");
    }
}

/// No rest follows one that had nothing to do (two of them stop it, see I12), nor one that another
/// program completed.
#[test]
fn what_was_not_needed_is_followed_by_no_rest() {
    let (mut hand, _) = in_vain(|hand, _| {
        hand.lock(taken());
        hand.grant();
        hand.signal(Source::HermesStderr, Sign::Noop);
        hand.answer(StopReason::EndTurn);
    });
    assert!(orders_one(&mut hand), "nothing to compact");
    let (mut hand, task) = in_vain(|hand, _| {
        hand.lock(held());
        hand.signal(Source::Acp, Sign::Completed);
        hand.expire(|expiry| matches!(expiry, Expiry::Lock(..)));
        hand.lock(taken());
    });
    assert_eq!(hand.ended(task), Some((T::Skipped, Some("already_compacted".into()))));
    assert!(orders_one(&mut hand), "it was compacted, and is full again");
}

/// The rest of an earlier version is kept by the wall clock, and lasts no longer than it was meant.
#[test]
fn a_rest_of_an_earlier_version_is_read() {
    let (mut hand, _) = in_vain(IN_VAIN[0].1);
    let mut head = hand.group.head().clone();
    let earlier = serde_json::json!({
        "count": 0, "last_source": "task", "last_started_at": null, "last_completed_at": null,
        "measured": true, "before": null, "streak": 0, "failed_at": hand.now.0,
    });
    head.compacting = serde_json::from_value(earlier).unwrap();
    let run = hand.group.run().cloned();
    for (passed_ms, ordered) in [(0, false), (599_999, false), (600_000, true), (-1, true)] {
        let mut hand = Hand::idle();
        hand.now.0 += passed_ms;
        let (head, run) = (head.clone(), run.clone());
        hand.group = Group::restore(head, Vec::new(), run, None, None, Vec::new());
        assert_eq!(orders_one(&mut hand), ordered, "after {passed_ms} ms");
    }
    let stored = serde_json::to_value(&hand.group.head().compacting).unwrap();
    assert!(stored.get("failed_at").is_none() && stored.get("rest").is_some(), "{stored}");
    hand.forget();
}
