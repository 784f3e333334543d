//! Compaction by a summary and another session, and an agent that lost track: I4, I7, I16.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    CompactionStatus as C, Continuity, Effect, Event, Exit, ExitReason, Expiry, SessionId, Sign,
    Source, Stop, StopReason, Strategy, TaskState as T, Write,
};
use hand::{Hand, blocks, kinds, taken};

fn rotated() -> Hand {
    let mut hand = Hand::compacting(Strategy::Rotate);
    hand.say("all of it");
    hand.answer(StopReason::EndTurn);
    hand.open(Ok("s2"));
    hand.forget();
    hand
}

/// What the last prompt begins with, and to which session it went.
fn sent(hand: &Hand) -> (Vec<serde_json::Value>, SessionId) {
    let sent = hand.effects.iter().rev().find_map(|effect| match effect {
        Effect::Prompt { prompt, session, .. } => Some((prompt.as_str(), session.clone())),
        _ => None,
    });
    let (prompt, session) = sent.unwrap();
    (serde_json::from_str(prompt).unwrap(), session)
}

fn carries_summary(hand: &Hand) -> bool {
    let (blocks, _) = sent(hand);
    assert_eq!(blocks.last().unwrap()["text"], "do it", "AM-2: the caller's own behind it");
    let lead = blocks.len() == 2 && blocks[0]["text"].as_str().unwrap().contains("all of it");
    assert!(lead || blocks.len() == 1, "{blocks:?}");
    lead
}

#[test]
fn the_summary_opens_another_session_and_leads_the_next_prompt() {
    let mut hand = Hand::compacting(Strategy::Rotate);
    let task = hand.group.current().unwrap().id;
    hand.say("all ");
    hand.say("of it");
    let step = hand.answer(StopReason::EndTurn);
    assert_eq!(kinds(&step.writes), ["summary_given"]);
    assert!(matches!(step.effects[..], [Effect::OpenSession { .. }]), "{step:?}");
    assert!(hand.active() && hand.group.turn().is_some());
    let step = hand.open(Ok("s2"));
    #[rustfmt::skip]
    let stated = [
        "compaction_ended", "segment_ended", "segment_started", "lock_released", "turn_settled",
        "task_ended",
    ];
    assert_eq!(kinds(&step.writes), stated);
    assert_eq!(hand.ended(task), Some((T::Completed, None)));
    assert_eq!((hand.count(), hand.segment()), (1, 2));
    let own = hand.last_ended().unwrap();
    assert_eq!((own.details.summary.as_deref(), own.leads), (Some("all of it"), true));

    hand.forget();
    let turn = hand.turn();
    assert!(carries_summary(&hand));
    assert_eq!(&*sent(&hand).1.0, "s2");
    let shown = hand.writes.iter().find_map(|write| match write {
        Write::TurnStarted { task, prompt, .. } if *task == turn => Some(prompt.clone()),
        _ => None,
    });
    assert_eq!(shown, Some(blocks("do it")), "AM-2: what the caller asked");
}

/// I7, I16: the summary is carried until a turn was heard.
#[test]
fn the_summary_is_carried_until_the_agent_was_heard() {
    type Ends = fn(&mut Hand);
    let died: Ends = |hand| {
        let exit = Exit::unseen(ExitReason::Exited, "");
        hand.apply(Event::AgentExited { run: hand.run(), exit });
        hand.queue_turn();
        hand.grant();
        let (run, continuity, provenance) = (hand.run(), Continuity::Lost, None);
        let session = SessionId("s3".into());
        let step = hand.apply(Event::AgentReady { run, pid: 2, session, continuity, provenance });
        assert!(!kinds(&step.writes).contains(&"context_lost"), "nothing more is lost: {step:?}");
    };
    let failed: Ends = |hand| {
        hand.fail(-1);
        hand.turn();
    };
    let silent: Ends = |hand| {
        hand.answer(StopReason::EndTurn);
        hand.turn();
    };
    let heard: Ends = |hand| {
        hand.say("so");
        hand.answer(StopReason::EndTurn);
        hand.turn();
    };
    let heard_of_failure: Ends = |hand| {
        hand.say("so");
        hand.fail(-1);
        hand.turn();
    };
    let cases = [
        ("died", died, true),
        ("failed", failed, true),
        ("silent", silent, true),
        ("heard", heard, false),
        ("heard, and failed", heard_of_failure, false),
    ];
    for (name, end, carried) in cases {
        let mut hand = rotated();
        hand.turn();
        assert!(carries_summary(&hand), "{name}");
        end(&mut hand);
        assert_eq!(carries_summary(&hand), carried, "{name}");
    }
}

/// If anything fails, the old session stays (ARCHITECTURE 5).
#[test]
fn a_rotation_that_fails_leaves_the_session() {
    type Ends = fn(&mut Hand);
    let cases: [(&str, Ends, T, C); 8] = [
        ("no summary", |hand| drop(hand.answer(StopReason::EndTurn)), T::Failed, C::Failed),
        (
            "refused",
            |hand| {
                hand.say("no");
                hand.answer(StopReason::Refusal);
            },
            T::Failed,
            C::Failed,
        ),
        ("error", |hand| drop(hand.fail(-1)), T::Failed, C::Failed),
        (
            "no session",
            |hand| {
                hand.say("all");
                hand.answer(StopReason::EndTurn);
                hand.open(Err("too many"));
            },
            T::Failed,
            C::Failed,
        ),
        (
            "died while opening",
            |hand| {
                hand.say("all");
                hand.answer(StopReason::EndTurn);
                let exit = Exit::unseen(ExitReason::Exited, "");
                hand.apply(Event::AgentExited { run: hand.run(), exit });
            },
            T::Interrupted,
            C::Abandoned,
        ),
        (
            "too long in opening",
            |hand| {
                hand.say("all");
                hand.answer(StopReason::EndTurn);
                let step = hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
                assert!(step.effects.is_empty(), "no prompt is there to cancel: {step:?}");
            },
            T::Interrupted,
            C::Abandoned,
        ),
        (
            "cancelled in opening",
            |hand| {
                hand.say("all");
                hand.answer(StopReason::EndTurn);
                let task = hand.group.current().unwrap().id;
                let step = hand.apply(Event::CancelRequested(task));
                assert!(step.effects.is_empty(), "no prompt is there to cancel: {step:?}");
            },
            T::Cancelled,
            C::Cancelled,
        ),
        ("cancelled", |hand| drop(hand.answer(StopReason::Cancelled)), T::Cancelled, C::Cancelled),
    ];
    for (name, end, state, status) in cases {
        let mut hand = Hand::compacting(Strategy::Rotate);
        let task = hand.group.current().unwrap().id;
        end(&mut hand);
        assert_eq!(hand.ended(task).unwrap().0, state, "{name}");
        assert_eq!(hand.last_ended().unwrap().status, status, "{name}");
        let head = hand.group.head();
        let session = head.session.as_ref().map(|session| &*session.0);
        assert_eq!((session, head.segment, head.compacting.count), (Some("s"), 1, 0), "{name}");
        assert_eq!((&head.lead_in, hand.group.lease()), (&None, None), "{name}");
        if hand.group.run().is_some() {
            hand.open(Ok("late"));
            hand.forget();
            hand.turn();
            assert_eq!(&*sent(&hand).1.0, "s", "{name}");
        }
    }
}

/// The agent compacts by itself while it opens the other session: that one is not needed.
#[test]
fn a_compaction_that_ends_while_a_session_is_opened_ends_its_task() {
    let mut hand = Hand::compacting(Strategy::Rotate);
    let task = hand.group.current().unwrap().id;
    hand.say("all");
    hand.answer(StopReason::EndTurn);
    hand.signal(Source::Acp, Sign::Completed);
    hand.open(Ok("s2"));
    assert_eq!(hand.ended(task), Some((T::Completed, None)));
    let head = hand.group.head();
    assert_eq!((head.compacting.count, head.segment, &head.lead_in), (1, 2, &None));
    assert_eq!(head.session, Some(SessionId("s".into())));
}

/// A session that holds only a summary is not summed up again.
#[test]
fn a_session_that_holds_a_summary_only_is_not_rotated() {
    let mut hand = rotated();
    let task = hand.compact(Strategy::Rotate);
    hand.grant();
    assert_eq!((hand.ended(task), hand.asks()), (Some((T::Skipped, None)), 0));
    assert_eq!(hand.last_ended().unwrap().status, C::Noop);
}

/// hermes lost track after a cancel: both signs, each only after a cancel, and only a sign.
#[test]
fn a_wedged_agent_is_restarted() {
    type Does = fn(&mut Hand);
    let error: Does = |hand| drop(hand.fail(-32603));
    let queued: Does = |hand| {
        hand.say("Queued for the next turn (2 waiting)");
        hand.answer(StopReason::EndTurn);
    };
    let other_error: Does = |hand| drop(hand.fail(-32000));
    let after_output: Does = |hand| {
        hand.say("so");
        hand.fail(-32603);
    };
    let answer: Does = |hand| {
        hand.say("It was queued for the next turn");
        hand.answer(StopReason::EndTurn);
    };
    let cases = [
        ("error", error, true),
        ("queued", queued, true),
        ("another error", other_error, false),
        ("after output", after_output, false),
        ("an answer", answer, false),
    ];
    for cancelled in [false, true] {
        for (name, does, wedges) in cases {
            let mut hand = Hand::in_turn();
            if cancelled {
                let task = hand.group.current().unwrap().id;
                hand.apply(Event::CancelRequested(task));
            }
            hand.answer(StopReason::Cancelled);
            let task = hand.turn();
            hand.forget();
            does(&mut hand);
            let stated = kinds(&hand.writes).contains(&"agent_wedged");
            assert_eq!(stated, wedges && cancelled, "{name}, {cancelled}");
            let stops = |effect: &Effect| matches!(effect, Effect::Stop { how: Stop::Gently, .. });
            assert_eq!(hand.effects.iter().any(stops), stated, "{name}, {cancelled}");
            if stated {
                assert_eq!(hand.ended(task).unwrap().0, T::Failed, "{name}");
            }
        }
    }
}

/// What a wedged agent says is no summary, and no sign that it read one.
#[test]
fn a_wedged_agent_neither_sums_up_nor_reads() {
    let queued = |hand: &mut Hand| {
        hand.say("Queued for the next turn");
        hand.answer(StopReason::EndTurn);
    };
    let cancel = |hand: &mut Hand| {
        let task = hand.turn();
        hand.apply(Event::CancelRequested(task));
        hand.answer(StopReason::Cancelled);
    };
    let mut hand = Hand::idle();
    cancel(&mut hand);
    let task = hand.compact(Strategy::Rotate);
    hand.lock(taken());
    hand.grant();
    queued(&mut hand);
    assert_eq!(hand.ended(task).map(|(state, _)| state), Some(T::Failed));
    assert!(kinds(&hand.writes).contains(&"agent_wedged"));

    let mut hand = rotated();
    cancel(&mut hand);
    hand.turn();
    queued(&mut hand);
    assert!(kinds(&hand.writes).contains(&"agent_wedged"));
    assert_eq!(hand.group.head().lead_in.as_deref(), Some("all of it"), "I16");
}
