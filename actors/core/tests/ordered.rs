//! Compactions that somebody ordered, and those that the group orders by itself: SEEDS DQ-3 to
//! DQ-6, HL, I12.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    CompactionStatus as C, Effect, Event, Exit, ExitReason, Expiry, Finding, LockAnswer, Settings,
    Sign, Source, StopReason, Strategy, TaskId, TaskState as T, Write,
};
use hand::{Hand, blocks, held, kinds, taken};

fn code(code: &str) -> Option<String> {
    Some(code.to_owned())
}

/// Runs the compaction that the group ordered by itself to its end, which frees nothing if `used`
/// is as before.
fn compact_to(hand: &mut Hand, used: u64) {
    hand.lock(taken());
    hand.grant();
    hand.signal(Source::Acp, Sign::Completed);
    hand.usage(used);
    hand.answer(StopReason::EndTurn);
}

/// DQ-3: the compaction that waits or runs is the one to wait for.
#[test]
fn dq_3_a_second_compaction_is_the_first() {
    let mut hand = Hand::idle();
    let first = hand.compact(Strategy::Command);
    let second = || {
        let work = greenroom_core::Work::Compaction {
            focus: None,
            prompt: blocks("/c"),
            strategy: Strategy::Rotate,
        };
        let id = TaskId(uuid::Uuid::from_u128(999));
        Event::Submitted(Box::new(greenroom_core::Task::new(id, work, greenroom_core::Origin::Api)))
    };
    let offer = |hand: &mut Hand| {
        let mut fresh = || uuid::Uuid::nil();
        hand.group.apply(second(), hand.moment(), &hand.terms, &mut fresh).map(|_| ())
    };
    let same = Err(greenroom_core::Rejected::AlreadyCompacting(first));
    assert_eq!(offer(&mut hand), same, "it waits");
    hand.lock(taken());
    hand.grant();
    assert_eq!(offer(&mut hand), same, "it runs");
    hand.answer(StopReason::EndTurn);
    assert_eq!(offer(&mut hand), Ok(()), "it ended");
}

/// DQ-4, DQ-5: at the settlement, behind it, ahead of what waits.
#[test]
fn dq_4_a_full_context_is_compacted_behind_the_turn_and_before_the_next() {
    let mut hand = Hand::in_turn();
    let next = hand.queue_turn();
    hand.usage(80);
    let step = hand.answer(StopReason::EndTurn);
    let stated = ["turn_settled", "task_ended", "task_queued", "lock_asked"];
    assert_eq!(kinds(&step.writes), stated);
    let order: Vec<_> = hand.group.waiting().map(|task| task.id).collect();
    assert_eq!(order, [hand.ordered().unwrap(), next]);
}

/// DQ-4, DQ-6: when one is ordered.
#[test]
fn dq_6_what_orders_a_compaction() {
    type Does = fn(&mut Hand);
    #[rustfmt::skip]
    let cases: &[(&str, Does, bool)] = &[
        ("below",             |hand| { hand.usage(79); hand.answer(StopReason::EndTurn); },                            false),
        ("at the threshold",  |hand| { hand.usage(80); hand.answer(StopReason::EndTurn); },                            true),
        ("no usage told",     |hand| { hand.answer(StopReason::EndTurn); },                                            false),
        ("after a failure",   |hand| { hand.usage(80); hand.fail(-1); },                                               true),
        ("after a refusal",   |hand| { hand.usage(80); hand.answer(StopReason::Refusal); },                            true),
        ("turned off",        |hand| { hand.terms.auto_compact = 0.0; hand.usage(99); hand.answer(StopReason::EndTurn); }, false),
        ("no way to do it",   |hand| { hand.terms.compaction = None; hand.usage(99); hand.answer(StopReason::EndTurn); },  false),
        ("one waits already", |hand| { hand.compact(Strategy::Rotate); hand.usage(99); hand.answer(StopReason::EndTurn); }, false),
        ("compacted in the turn", |hand| { hand.usage(99); hand.signal(Source::Acp, Sign::Completed); hand.answer(StopReason::EndTurn); }, false),
        ("and full again",    |hand| { hand.usage(99); hand.signal(Source::Acp, Sign::Completed); hand.usage(85); hand.answer(StopReason::EndTurn); }, true),
        ("deleted meanwhile", |hand| { hand.usage(99); hand.apply(Event::Archived); hand.answer(StopReason::EndTurn); },    false),
    ];
    for (name, does, ordered) in cases {
        let mut hand = Hand::in_turn();
        does(&mut hand);
        assert_eq!(hand.ordered().is_some(), *ordered, "{name}");
    }
}

/// I12: two that freed less than a tenth are enough, until one helped or somebody acted.
#[test]
fn i12_two_that_freed_too_little_are_enough() {
    type Acts = fn(&mut Hand);
    let nobody: Acts = |_| {};
    let compacts: Acts = |hand| {
        hand.compact(Strategy::Command);
        compact_to(hand, 85);
    };
    let changes: Acts = |hand| {
        let settings = Settings { title: Some("new".into()), ..Settings::default() };
        hand.apply(Event::Configured(settings));
    };
    let helps: Acts = |hand| {
        hand.turn();
        hand.signal(Source::Acp, Sign::Completed);
        hand.usage(40);
        hand.answer(StopReason::EndTurn);
    };
    let cases = [
        ("nobody acts", nobody, false),
        ("a caller compacts", compacts, true),
        ("a caller changes the group", changes, true),
        ("a later one helps", helps, true),
    ];
    for (name, acts, ordered) in cases {
        let mut hand = Hand::idle();
        for number in 1..=2 {
            hand.turn_to(90);
            assert!(hand.ordered().is_some(), "{name}: {number} is ordered");
            compact_to(&mut hand, 82);
        }
        hand.turn_to(90);
        assert!(hand.ordered().is_none(), "{name}: a third is not");
        acts(&mut hand);
        hand.turn_to(90);
        assert_eq!(hand.ordered().is_some(), ordered, "{name}");
    }
}

#[test]
fn i12_one_that_helped_ends_the_streak() {
    let mut hand = Hand::idle();
    for used in [82, 20, 82, 20, 82] {
        hand.turn_to(90);
        assert!(hand.ordered().is_some(), "before {used}");
        compact_to(&mut hand, used);
    }
}

/// HL-2, HL-8, HL-9, HL-10: what becomes of the task by what becomes of its lock.
#[test]
fn hl_2_no_lock_no_compaction() {
    let absent = LockAnswer::Absent;
    let cases = [
        ("taken", taken(), true, None),
        ("held", held(), false, None),
        ("absent", absent, true, None),
        ("unknown", LockAnswer::Failed, false, code("lock_failed")),
    ];
    for (name, answer, starts, ended) in cases {
        let mut hand = Hand::idle();
        let task = hand.compact(Strategy::Command);
        assert!(!hand.group.wants_slot(), "{name}: not before its lock");
        hand.lock(answer);
        hand.grant();
        let started = hand.group.current().is_some_and(|current| current.id == task);
        assert_eq!(started, starts, "{name}");
        let skipped = ended.map(|code| (T::Skipped, Some(code)));
        assert_eq!(hand.ended(task), skipped, "{name}");
        let bypassed = hand.writes.iter().any(|write| matches!(write, Write::LockBypassed { .. }));
        assert_eq!(bypassed, name == "absent", "I16: {name}");
        let count = hand.writes.iter().filter(|w| matches!(w, Write::CompactionStarted(_))).count();
        assert_eq!(count, usize::from(starts), "{name}: the compactor is called only with a lock");
    }
}

/// HL-8: a missing lock is gone past once, and the next compaction asks again.
#[test]
fn hl_8_a_bypass_is_for_one_compaction() {
    let mut hand = Hand::idle();
    for number in 1..=2 {
        hand.compact(Strategy::Command);
        assert_eq!(hand.asks(), number);
        hand.lock(LockAnswer::Absent);
        hand.grant();
        let step = hand.answer(StopReason::EndTurn);
        assert_eq!(hand.count(), number as u64);
        assert!(!kinds(&step.writes).contains(&"lock_released"), "{step:?}");
    }
}

/// HL-2: a lock that stays held is waited for as long as a compaction may take, and no longer.
#[test]
fn hl_2_a_held_lock_is_waited_for() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    let turn = hand.queue_turn();
    for number in 1..=4 {
        assert_eq!((hand.asks(), hand.ended(task)), (number, None));
        assert_eq!(hand.group.blocked_by(), Some(greenroom_core::Blocked::Lock), "HL-13");
        hand.lock(held());
        if number < 4 {
            hand.expire(|expiry| matches!(expiry, Expiry::Lock(..)));
        }
    }
    assert_eq!(
        hand.ended(task),
        Some((T::Skipped, code("lock_held"))),
        "3,000 ms after the first request"
    );
    assert_eq!(hand.last_ended().unwrap().status, C::Skipped);
    hand.grant();
    assert_eq!(hand.group.current().map(|task| task.id), Some(turn));
}

/// HL-10: who had the lock before did the work.
#[test]
fn hl_10_a_session_that_was_compacted_meanwhile_is_left_alone() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    hand.lock(held());
    hand.signal(Source::Acp, Sign::Completed);
    hand.expire(|expiry| matches!(expiry, Expiry::Lock(..)));
    hand.lock(taken());
    assert_eq!(hand.ended(task), Some((T::Skipped, code("already_compacted"))));
    assert_eq!((hand.count(), hand.group.lease()), (1, None), "HL-7");
}

/// HL-10: another session is no sign that it was compacted; it is another lock.
#[test]
fn another_session_is_another_lock() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    let (_, first) = hand.asked().unwrap();
    hand.name("other");
    let step = hand.lock(taken());
    assert_eq!(kinds(&step.writes), ["lock_taken", "lock_released", "lock_asked"]);
    let released =
        matches!(&step.writes[1], Write::LockReleased { key, fences: false, .. } if *key == first);
    assert!(released, "{step:?}");
    let (again, second) = hand.asked().unwrap();
    assert_eq!((again, &*second.0), (task, "other"));
    hand.lock(taken());
    hand.grant();
    assert_eq!(hand.group.lease().unwrap().0, &second);
}

#[test]
fn a_lock_that_comes_too_late_is_given_back() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    let key = hand.asked().unwrap().1;
    hand.apply(Event::CancelRequested(task));
    hand.name("other");
    let step = hand.lock(taken());
    let (holder, token) = ("we".to_owned(), 7);
    assert_eq!(
        step.effects,
        [Effect::DropLock { key, holder, token }],
        "the one that was asked for"
    );
}

/// HL-2: a lock that is lost before it was used.
#[test]
fn a_compaction_that_lost_its_lock_is_not_begun() {
    for claimed in [false, true] {
        let mut hand = Hand::idle();
        if claimed {
            let exit = Exit::unseen(ExitReason::Exited, "");
            hand.apply(Event::AgentExited { run: hand.run(), exit });
        }
        let task = hand.compact(Strategy::Command);
        hand.lock(taken());
        if claimed {
            hand.grant();
        }
        hand.apply(Event::LockLost { task });
        assert_eq!(hand.ended(task), Some((T::Skipped, code("lock_lost"))), "{claimed}");
        if claimed {
            let step = hand.ready("s", None);
            assert!(!step.effects.iter().any(|e| matches!(e, Effect::Prompt { .. })), "{step:?}");
        }
    }
}

/// HL-11: without its lock a compaction publishes nothing, whoever says that it is done.
#[test]
fn hl_11_a_compaction_that_lost_its_lock_publishes_nothing() {
    type Ends = fn(&mut Hand);
    let seen: Ends = |hand| {
        for source in [Source::HermesStderr, Source::HermesMeta, Source::Acp] {
            hand.signal(source, Sign::Completed);
        }
        hand.answer(StopReason::EndTurn);
    };
    let unseen: Ends = |hand| {
        hand.answer(StopReason::EndTurn);
    };
    let opened: Ends = |hand| {
        hand.say("all of it");
        hand.answer(StopReason::EndTurn);
        hand.open(Ok("s2"));
    };
    let stranded: Ends = |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
        hand.signal(Source::Acp, Sign::Completed);
        hand.answer(StopReason::EndTurn);
    };
    let cases = [
        ("seen", Strategy::Command, seen),
        ("unseen", Strategy::Command, unseen),
        ("rotated", Strategy::Rotate, opened),
        ("too long", Strategy::Command, stranded),
    ];
    for (name, strategy, ends) in cases {
        let mut hand = Hand::compacting(strategy);
        let task = hand.group.current().unwrap().id;
        hand.apply(Event::LockLost { task });
        ends(&mut hand);
        assert_eq!((hand.count(), hand.segment()), (0, 1), "{name}");
        let (state, _) = hand.ended(task).unwrap();
        assert!(matches!(state, T::Failed), "{name}: {state:?}");
    }
}

/// HL-7, HL-11: with its lock it publishes and gives it back in one step.
#[test]
fn hl_11_publication_and_release_are_one_step() {
    let mut hand = Hand::compacting(Strategy::Command);
    let step = hand.signal(Source::Acp, Sign::Completed);
    let stated = ["compaction_ended", "segment_ended", "segment_started", "lock_released"];
    assert_eq!(kinds(&step.writes), stated);
    assert!(matches!(step.writes[3], Write::LockReleased { fences: true, .. }));
    let step = hand.answer(StopReason::EndTurn);
    assert_eq!(kinds(&step.writes), ["turn_settled", "task_ended"]);
}

/// HL-7: released on every way out.
#[test]
fn hl_7_a_lock_is_released_on_every_way_out() {
    type Ends = fn(&mut Hand);
    let ends: [(&str, Ends); 8] = [
        ("success", |hand| drop(hand.answer(StopReason::EndTurn))),
        ("failure", |hand| drop(hand.fail(-1))),
        ("abort", |hand| {
            hand.signal(Source::HermesStderr, Sign::Failed);
            hand.answer(StopReason::EndTurn);
        }),
        ("cancel", |hand| drop(hand.answer(StopReason::Cancelled))),
        ("death", |hand| {
            let exit = Exit::unseen(ExitReason::Exited, "");
            hand.apply(Event::AgentExited { run: hand.run(), exit });
        }),
        ("deadline", |hand| {
            hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
            hand.answer(StopReason::Cancelled);
        }),
        ("nothing done", |hand| {
            hand.signal(Source::HermesStderr, Sign::Noop);
            hand.answer(StopReason::EndTurn);
        }),
        ("somebody else", |hand| {
            hand.signal(Source::HermesStderr, Sign::Skipped);
            hand.answer(StopReason::EndTurn);
        }),
    ];
    for (name, end) in ends {
        let mut hand = Hand::compacting(Strategy::Command);
        assert!(hand.group.lease().is_some());
        end(&mut hand);
        let released =
            hand.writes.iter().filter(|w| matches!(w, Write::LockReleased { .. })).count();
        assert_eq!((released, hand.group.lease(), hand.active()), (1, None, false), "{name}");
    }
}

/// A paused group and one that shuts down keep nobody from compacting.
#[test]
fn a_lock_that_is_not_used_soon_is_not_kept() {
    let mut hand = Hand::idle();
    hand.compact(Strategy::Command);
    hand.lock(taken());
    hand.apply(Event::Paused);
    assert_eq!((hand.group.lease(), hand.asks()), (None, 1));
    hand.apply(Event::Resumed);
    assert_eq!(hand.asks(), 2);
    hand.lock(taken());
    hand.apply(Event::Shutdown);
    assert_eq!((hand.group.lease(), hand.asks()), (None, 2), "DQ-11: nothing is claimed any more");
}

/// What an ordered compaction comes to, by what the agent shows.
#[test]
fn an_ordered_compaction_ends_as_it_was_seen_to_end() {
    type Does = fn(&mut Hand);
    let no: Does = |_| {};
    let done: Does = |hand| drop(hand.signal(Source::Acp, Sign::Completed));
    let begun: Does = |hand| drop(hand.signal(Source::Acp, Sign::Started));
    let failed: Does = |hand| drop(hand.signal(Source::Acp, Sign::Failed));
    let skipped: Does = |hand| drop(hand.signal(Source::HermesStderr, Sign::Skipped));
    let noop: Does = |hand| drop(hand.signal(Source::HermesStderr, Sign::Noop));
    let tries: Does = |hand| {
        hand.signal(Source::HermesStderr, Sign::Failed);
        hand.signal(Source::HermesStderr, Sign::Started);
        hand.signal(Source::HermesStderr, Sign::Completed);
    };
    let listens: Does = |hand| *hand = Hand::compacting_in(Hand::listening(), Strategy::Command);
    let end = StopReason::EndTurn;
    let failure = || code("compaction_failed");
    #[rustfmt::skip]
    let cases = [
        ("shown done",               done,    end,                   T::Completed, None,      C::Completed),
        ("shown done, cancelled",    done,    StopReason::Cancelled, T::Completed, None,      C::Completed),
        ("nothing is ever shown",    no,      end,                   T::Completed, None,      C::Completed),
        ("it would have been shown", listens, end,                   T::Skipped,   None,      C::Noop),
        ("shown begun",              begun,   end,                   T::Failed,    failure(), C::Abandoned),
        ("shown failed",             failed,  end,                   T::Failed,    failure(), C::Failed),
        ("skipped",                  skipped, end,                   T::Skipped,   None,      C::Skipped),
        ("no progress",              noop,    end,                   T::Skipped,   None,      C::Noop),
        ("cancelled",                no,      StopReason::Cancelled, T::Cancelled, None,      C::Cancelled),
        ("the second try",           tries,   end,                   T::Completed, None,      C::Completed),
    ];
    for (name, does, answer, state, error, status) in cases {
        let mut hand = Hand::compacting(Strategy::Command);
        does(&mut hand);
        let task = hand.group.current().unwrap().id;
        hand.answer(answer);
        assert_eq!(hand.ended(task), Some((state, error)), "{name}");
        assert_eq!(hand.last_ended().unwrap().status, status, "{name}");
    }
}

/// AM-28: an ordered compaction is cut off at its deadline, and the cancel ladder follows.
#[test]
fn am_28_the_deadline_of_an_ordered_compaction_cuts_it_off() {
    let mut hand = Hand::compacting(Strategy::Command);
    let task = hand.group.current().unwrap().id;
    let step = hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
    assert_eq!(kinds(&step.writes), ["compaction_ended", "turn_cut", "cancel_sent"]);
    assert!(matches!(step.effects[..], [Effect::Cancel { .. }]), "{step:?}");
    hand.expire(|expiry| matches!(expiry, Expiry::Cancel(_)));
    let exit = Exit::unseen(ExitReason::Stopped, "");
    hand.apply(Event::AgentExited { run: hand.run(), exit });
    assert_eq!(hand.ended(task).unwrap().0, T::Interrupted);
    assert_eq!((hand.count(), hand.segment()), (0, 1), "DQ-12: the session is unchanged");
}

/// A turn that says nothing and does nothing is completed, and odd.
#[test]
fn an_answer_without_an_answer_is_a_finding() {
    type Does = fn(&mut Hand);
    let cases: [(&str, Does, bool); 3] = [
        ("nothing", |_| {}, true),
        ("usage", |hand| drop(hand.usage(5)), true),
        ("text", |hand| drop(hand.say("hello")), false),
    ];
    for (name, does, odd) in cases {
        let mut hand = Hand::in_turn();
        does(&mut hand);
        let step = hand.answer(StopReason::EndTurn);
        let odd_ones = [Finding::EmptyAnswer];
        let found = step.writes.iter().any(
            |write| matches!(write, Write::TaskEnded { findings, .. } if findings[..] == odd_ones),
        );
        assert_eq!(found, odd, "{name}");
    }
}
