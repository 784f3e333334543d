//! What is counted in a row, and what is remembered of a cut: I7, I12, I13, RELIABILITY 1.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    Cause, CutBy, Effect, Event, ExitReason, Expiry, Group, Held, OnInterrupt, Recovery,
    SideEffects, Status, Stop, StopReason, Strategy, TaskState as T, Write,
};
use hand::{Hand, kinds, taken};

/// A turn that spoke, and whose agent died.
fn cut_off(hand: &mut Hand) {
    if hand.group.turn().is_none() {
        hand.turn();
    }
    if hand.group.turn().is_none() {
        hand.ready("s", None);
    }
    hand.say("so");
    hand.exit(ExitReason::Exited);
}

fn auto() -> Hand {
    let mut hand = Hand::in_turn();
    hand.terms.on_interrupt = OnInterrupt::Auto;
    hand
}

/// "Two in a row" is about turns: the end of a compaction says nothing of the turns around it.
#[test]
fn a_compaction_between_two_turns_that_were_cut_off_changes_nothing() {
    type Ends = fn(&mut Hand);
    let completed: Ends = |hand| drop(hand.answer(StopReason::EndTurn));
    let failed: Ends = |hand| drop(hand.fail(-1));
    let cancelled: Ends = |hand| drop(hand.answer(StopReason::Cancelled));
    for (name, ends) in [("completed", completed), ("failed", failed), ("cancelled", cancelled)] {
        let mut hand = auto();
        cut_off(&mut hand);
        assert_eq!(hand.group.head().interruptions, 1, "{name}");
        hand.compact(Strategy::Command);
        hand.lock(taken());
        hand.grant();
        hand.ready("s", None);
        ends(&mut hand);
        assert_eq!(hand.group.head().interruptions, 1, "{name}");
        cut_off(&mut hand);
        assert_eq!(hand.group.head().held, Some(Held::InterruptedTwice), "{name}");
    }
    let mut hand = auto();
    cut_off(&mut hand);
    hand.turn();
    hand.ready("s", None);
    hand.answer(StopReason::EndTurn);
    cut_off(&mut hand);
    assert_eq!(hand.group.head().held, None, "a turn that settled does");
}

/// A log of before the rule has no word of it, and is folded as it was written (I13).
#[test]
fn an_earlier_log_is_folded_by_the_earlier_rule() {
    let mut hand = auto();
    cut_off(&mut hand);
    let mut earlier = hand.group.clone();
    hand.forget();
    hand.compact(Strategy::Command);
    hand.lock(taken());
    hand.grant();
    hand.ready("s", None);
    hand.answer(StopReason::EndTurn);
    for write in &hand.writes {
        match write {
            Write::TaskEnded { .. } => {
                let payload = write.payload().replace(r#""kind":"compaction","#, "");
                let read = Write::read(write.kind(), &payload).unwrap().unwrap();
                assert!(!payload.contains("kind"), "{payload}");
                earlier.replay(&read, hand.now);
            }
            write => earlier.replay(write, hand.now),
        }
    }
    assert_eq!((hand.group.head().interruptions, earlier.head().interruptions), (1, 0));
}

/// A group that was deleted begins its next life with a clean slate.
#[test]
fn a_revived_group_goes_on() {
    type Does = fn(&mut Hand);
    let cut: Does = cut_off;
    let cut_while_deleted: Does = |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Turn(_)));
        hand.apply(Event::Archived);
        hand.exit(ExitReason::Stopped);
    };
    let paused: Does = |hand| {
        hand.exit(ExitReason::Exited);
        hand.apply(Event::Paused);
    };
    let paused_and_cut: Does = |hand| {
        hand.apply(Event::Paused);
        cut_off(hand);
    };
    let held: Does = |hand| {
        hand.terms.on_interrupt = OnInterrupt::Hold;
        cut_off(hand);
    };
    for (name, does) in [
        ("cut off", cut),
        ("cut off as it was deleted", cut_while_deleted),
        ("paused", paused),
        ("paused, and cut off", paused_and_cut),
        ("held", held),
    ] {
        let mut hand = auto();
        does(&mut hand);
        hand.apply(Event::Archived);
        hand.configure("", None);
        let head = hand.group.head();
        let slate = (head.archived, head.paused, head.held, head.interruptions, head.crashes);
        assert_eq!(slate, (false, false, None, 0, 0), "{name}");
        assert_eq!(hand.group.status(), Status::Idle, "{name}");
        hand.queue_turn();
        assert!(hand.group.wants_slot(), "{name}");
    }
}

/// What is changed about a group that lives takes no pause back.
#[test]
fn a_change_ends_no_pause() {
    let mut hand = Hand::idle();
    hand.apply(Event::Paused);
    hand.configure("other", None);
    assert!(hand.group.head().paused);
}

/// The turn of a life that is over says nothing of the next one, also if it ends later.
#[test]
fn a_turn_of_an_earlier_life_is_not_counted() {
    for on_interrupt in [OnInterrupt::Auto, OnInterrupt::Hold] {
        let mut hand = auto();
        hand.terms.on_interrupt = on_interrupt;
        hand.expire(|expiry| matches!(expiry, Expiry::Turn(_)));
        hand.apply(Event::Archived);
        hand.configure("", None);
        hand.exit(ExitReason::Stopped);
        let head = hand.group.head();
        assert_eq!((head.interruptions, head.held), (0, None), "{on_interrupt:?}");
    }
}

/// A run is suspected of not surviving a cancel only if one was sent to it.
#[test]
fn a_run_to_which_no_cancel_was_sent_is_not_cancelled() {
    let cancelled = |hand: &Hand| hand.group.run().unwrap().cancelled;
    let cancels =
        |hand: &Hand| hand.effects.iter().any(|effect| matches!(effect, Effect::Cancel { .. }));
    let mut hand = Hand::compacting(Strategy::Rotate);
    let task = hand.group.current().unwrap().id;
    hand.say("all of it");
    hand.answer(StopReason::EndTurn);
    hand.apply(Event::CancelRequested(task));
    assert_eq!((cancelled(&hand), cancels(&hand)), (false, false), "it was opening a session");
    assert_eq!(hand.ended(task).map(|(state, _)| state), Some(T::Cancelled));

    for event in [Event::Stopped, Event::Archived] {
        let mut hand = Hand::in_turn();
        hand.apply(event);
        assert_eq!((cancelled(&hand), cancels(&hand)), (false, false), "its process is ended");
        let step = hand.fail(-32603);
        assert!(!kinds(&step.writes).contains(&"agent_wedged"), "{step:?}");
    }

    let mut hand = Hand::in_turn();
    let task = hand.group.current().unwrap().id;
    hand.apply(Event::CancelRequested(task));
    assert_eq!((cancelled(&hand), cancels(&hand)), (true, true));
    let mut hand = Hand::in_turn();
    hand.expire(|expiry| matches!(expiry, Expiry::Turn(_)));
    assert_eq!((cancelled(&hand), cancels(&hand)), (true, true));
}

/// RELIABILITY 1: what cut a turn off is its cause, also if the server dies before it ends.
#[test]
fn a_cut_outlives_the_server() {
    type Cuts = fn(&mut Hand);
    let deadline: Cuts = |hand| drop(hand.expire(|expiry| matches!(expiry, Expiry::Turn(_))));
    let caller: Cuts = |hand| {
        let task = hand.group.current().unwrap().id;
        hand.apply(Event::CancelRequested(task));
    };
    let shutdown: Cuts = |hand| drop(hand.apply(Event::Shutdown));
    let both: Cuts = |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Turn(_)));
        let task = hand.group.current().unwrap().id;
        hand.apply(Event::CancelRequested(task));
    };
    let reversed: Cuts = |hand| {
        let task = hand.group.current().unwrap().id;
        hand.apply(Event::CancelRequested(task));
        assert_eq!(hand.group.turn().unwrap().cut, Some(CutBy::Caller));
    };
    let nobody: Cuts = |_| {};
    let (restart, late) = (Some(Cause::ServerRestart), Some(Cause::Deadline));
    #[rustfmt::skip]
    let cases = [
        ("nobody",              nobody,   StopReason::ServerRestart, T::Interrupted, restart),
        ("the deadline",        deadline, StopReason::Deadline,      T::Interrupted, late),
        ("a caller",            caller,   StopReason::ServerRestart, T::Cancelled,   None),
        ("the server",          shutdown, StopReason::ServerRestart, T::Interrupted, restart),
        ("the deadline first",  both,     StopReason::Deadline,      T::Interrupted, late),
        ("the caller first",    reversed, StopReason::ServerRestart, T::Cancelled,   None),
    ];
    for (name, cuts, stop_reason, state, cause) in cases {
        let mut hand = Hand::in_turn();
        cuts(&mut hand);
        let (head, tasks) =
            (hand.group.head().clone(), vec![hand.group.current().unwrap().clone()]);
        let (run, turn) = (hand.group.run().cloned(), hand.group.turn().cloned());
        hand.group = Group::restore(head, tasks, run, turn, None, Vec::new());
        let step = hand.apply(Event::Recovered(Recovery::Restart));
        let ended = step.writes.iter().find_map(|write| match write {
            Write::TaskEnded { state, stop_reason, interrupted, .. } => {
                Some((*stop_reason, *state, interrupted.clone()))
            }
            _ => None,
        });
        let (told, as_what, interrupted) = ended.unwrap();
        let told = (told, as_what, interrupted.as_ref().map(|own| own.cause));
        assert_eq!(told, (Some(stop_reason), state, cause), "{name}");
        if let Some(own) = interrupted {
            // What it said last was perhaps not read.
            assert_eq!(own.side_effects, SideEffects::Unknown, "{name}");
        }
    }
}

/// The end of an agent's process is seen: then nothing was left unread.
#[test]
fn a_cut_whose_end_was_seen_tells_what_was_observed() {
    let mut hand = Hand::in_turn();
    hand.expire(|expiry| matches!(expiry, Expiry::Turn(_)));
    let step = hand.exit(ExitReason::Stopped);
    let told = step.writes.iter().find_map(|write| match write {
        Write::TaskEnded { interrupted, .. } => interrupted.clone(),
        _ => None,
    });
    let told = told.unwrap();
    assert_eq!((told.cause, told.side_effects), (Cause::Deadline, SideEffects::NoneObserved));
}

/// A group whose turn is cut and that is deleted after that ends its run at once.
#[test]
fn a_deleted_group_ends_its_run() {
    let mut hand = auto();
    let step = hand.apply(Event::Archived);
    let run = hand.run();
    assert_eq!(step.effects, [Effect::Stop { run, how: Stop::Firmly }]);
}
