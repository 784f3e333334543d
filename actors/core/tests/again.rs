//! Attempts that came to nothing, and permissions beyond any number: I7, I11, RELIABILITY F7, F8.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    Answer, Effect, Event, Exit, ExitReason, Expiry, Json, Kinds, Lines, PermissionAsked,
    PermissionOption, PermissionShown, PermissionState, PromptReply, Retry, Status, Stop,
    StopReason, TaskState as T, Write,
};
use hand::{Hand, PATIENCE, kinds};

/// How an attempt comes to nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    NotStarted,
    Exit(ExitReason),
    Error(i64),
}

impl Ends {
    fn happen(self, hand: &mut Hand) {
        if self != Self::NotStarted {
            hand.ready("s", None);
        }
        let exits = |hand: &mut Hand, reason| {
            hand.apply(Event::AgentExited { run: hand.run(), exit: Exit::unseen(reason, "") })
        };
        match self {
            Self::NotStarted => drop(exits(hand, ExitReason::StartFailed)),
            Self::Exit(reason) => drop(exits(hand, reason)),
            Self::Error(code) => drop(hand.fail(code)),
        }
    }
}

/// ARCHITECTURE 4: by what it failed of, and what its policy says.
#[test]
fn i7_what_is_made_again() {
    use Retry::{Never, NoOutput, Undelivered};
    let sent = [false, false, true];
    #[rustfmt::skip]
    let cases = [
        (Ends::NotStarted,                      [false, true, true]),
        (Ends::Exit(ExitReason::Exited),        sent),
        (Ends::Exit(ExitReason::Protocol),      [false; 3]),
        (Ends::Exit(ExitReason::Storage),       [false; 3]),
        (Ends::Exit(ExitReason::ServerRestart), [false; 3]),
        (Ends::Error(-32603),                   sent),
        (Ends::Error(-32700),                   sent),
        (Ends::Error(1),                        sent),
        (Ends::Error(-32000),                   [false; 3]),
        (Ends::Error(-32600),                   [false; 3]),
        (Ends::Error(-32601),                   [false; 3]),
        (Ends::Error(-32602),                   [false; 3]),
    ];
    for (ends, again) in cases {
        for (policy, again) in [Never, Undelivered, NoOutput].into_iter().zip(again) {
            let mut hand = Hand::new();
            hand.terms.retry = policy;
            let task = hand.turn();
            ends.happen(&mut hand);
            let state = hand.group.task(task).map(|task| (task.state, task.attempt));
            assert_eq!(state, again.then_some((T::Retrying, 1)), "{ends:?} {policy:?}");
            let over = hand.ended(task).map(|(state, _)| state.is_terminal());
            assert_eq!(over, (!again).then_some(true), "{ends:?} {policy:?}");
        }
    }
}

/// I7: whatever the agent showed of having taken the prompt in stands against it.
#[test]
fn i7_output_or_a_cut_is_the_end_of_it() {
    type Does = fn(&mut Hand);
    let nothing: Does = |hand| drop(hand.usage(5));
    let speaks: Does = |hand| drop(hand.say("so"));
    let asks: Does = |hand| drop(ask(hand, 1));
    let cancelled: Does = |hand| {
        let task = hand.group.current().unwrap().id;
        hand.apply(Event::CancelRequested(task));
    };
    let late: Does = |hand| drop(hand.expire(|expiry| matches!(expiry, Expiry::Turn(_))));
    let cases = [
        ("usage only", nothing, T::Retrying, T::Retrying),
        ("speaks", speaks, T::Interrupted, T::Failed),
        ("asks", asks, T::Interrupted, T::Failed),
        ("cancelled", cancelled, T::Cancelled, T::Cancelled),
        ("too late", late, T::Interrupted, T::Interrupted),
    ];
    for (name, does, died, failed) in cases {
        for (ends, state) in [(Ends::Exit(ExitReason::Exited), died), (Ends::Error(1), failed)] {
            let mut hand = Hand::in_turn();
            hand.terms.retry = Retry::NoOutput;
            let task = hand.group.current().unwrap().id;
            does(&mut hand);
            match ends {
                Ends::Error(code) => drop(hand.fail(code)),
                _ => {
                    let exit = Exit::unseen(ExitReason::Exited, "");
                    hand.apply(Event::AgentExited { run: hand.run(), exit });
                }
            }
            let own = hand.group.task(task).map(|task| task.state);
            let own = own.or_else(|| hand.ended(task).map(|(state, _)| state));
            assert_eq!(own, Some(state), "{name}, {ends:?}");
        }
    }
}

/// Five times, each wait twice the last, and then it failed: nobody has to fear that it was begun.
#[test]
fn i7_five_times_and_no_more() {
    for ends in [Ends::NotStarted, Ends::Exit(ExitReason::Exited), Ends::Error(1)] {
        let mut hand = Hand::new();
        hand.terms.retry = Retry::NoOutput;
        let task = hand.turn();
        let mut waits = Vec::new();
        for _ in 0..9 {
            match ends {
                // Its agent lives on, and has the next attempt at once.
                Ends::Error(code) if hand.group.turn().is_some() => drop(hand.fail(code)),
                _ => ends.happen(&mut hand),
            }
            let now = hand.moment();
            let wait = hand.group.patience(&PATIENCE, now).find_map(|(expiry, ms)| match expiry {
                Expiry::Backoff(own, _) if own == task => Some(ms),
                _ => None,
            });
            let Some(wait) = wait else { break };
            waits.push(wait);
            assert!(!hand.group.wants_slot() && hand.group.current().is_none(), "it holds no slot");
            hand.expire(|expiry| matches!(expiry, Expiry::Backoff(..)));
            hand.grant();
        }
        assert_eq!(waits, [5_000, 10_000, 20_000, 40_000, 80_000], "{ends:?}");
        assert_eq!(hand.ended(task).map(|(state, _)| state), Some(T::Failed), "{ends:?}");
        let last = hand.writes.iter().find_map(|write| match write {
            Write::TaskEnded { record, .. } => {
                Some((record.attempt, record.ending.interrupted.clone()))
            }
            _ => None,
        });
        assert_eq!(last, Some((6, None)), "{ends:?}");
    }
}

/// Several timers may fire at once, and what one of them led to makes another mean nothing.
#[test]
fn a_wait_is_ended_by_its_own_timer_only() {
    let mut hand = Hand::new();
    hand.terms.retry = Retry::NoOutput;
    let task = hand.turn();
    Ends::NotStarted.happen(&mut hand);
    hand.expire(|expiry| matches!(expiry, Expiry::Backoff(..)));
    hand.grant();
    Ends::NotStarted.happen(&mut hand);
    let queued = hand.queue_turn();
    for stale in [Expiry::Backoff(task, 1), Expiry::Backoff(queued, 2), Expiry::Backoff(queued, 0)]
    {
        let step = hand.apply(Event::Expired(stale));
        assert!(step.writes.is_empty(), "{stale:?}: {step:?}");
    }
    assert_eq!(
        kinds(&hand.apply(Event::Expired(Expiry::Backoff(task, 2))).writes),
        ["backoff_ended"]
    );
}

/// F8: from the sixth in a row on, up to five minutes; an answer, or somebody who acts, ends it.
#[test]
fn f8_a_crash_loop_waits_longer_and_longer() {
    let mut hand = Hand::new();
    let mut waits = Vec::new();
    for number in 1..=16 {
        let task = hand.turn();
        assert!(number < 7 || hand.group.current().is_none(), "{number} has to wait");
        if number > 6 {
            let now = hand.moment();
            let bounds = hand.group.patience(&PATIENCE, now);
            let wait = bounds.filter(|(expiry, _)| matches!(expiry, Expiry::Launch(_)));
            waits.extend(wait.map(|(_, ms)| ms / 1_000));
            assert_eq!(hand.group.status(), Status::Degraded);
            hand.expire(|expiry| matches!(expiry, Expiry::Launch(_)));
            hand.grant();
        }
        Ends::NotStarted.happen(&mut hand);
        assert_eq!(hand.ended(task).map(|(state, _)| state), Some(T::Failed), "{number}");
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    hand.apply(Event::Resumed);
    assert_eq!((hand.group.head().crashes, hand.group.status()), (0, Status::Idle));
}

fn ask(hand: &mut Hand, request: u32) -> Vec<Effect> {
    let option = |kind: &str| PermissionOption { id: kind.into(), kind: kind.into() };
    let json = |text: &str| Json::parse(text.into()).unwrap();
    let asked = PermissionAsked {
        request: Json::write(&request).unwrap(),
        tool_kind: None,
        options: vec![option("allow_once"), option("reject_once")],
        shown: PermissionShown { tool_call: json("{}"), options: json("[]") },
    };
    let kind = Kinds::All("session/request_permission".into());
    let lines = Lines { count: 1, kinds: kind, text: "{}".to_owned().into() };
    let run = hand.run();
    hand.apply(Event::PermissionAsked { run, lines, asked: Box::new(asked) }).effects
}

/// I11: an agent that asks without end fills no memory, and is told no.
#[test]
fn i11_a_hundred_permissions_are_open_at_most() {
    let mut hand = Hand::in_turn();
    for request in 1..=103 {
        let answers = ask(&mut hand, request);
        let refused: Vec<_> = answers
            .iter()
            .map(|effect| match effect {
                Effect::Answer { answer, .. } => answer.selected.as_deref(),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected: &[_] = if request > 100 { &[Some("reject_once")] } else { &[] };
        assert_eq!(refused, expected, "{request}");
    }
    assert_eq!(hand.group.permissions().len(), 100);
    assert!(ask(&mut hand, 7).is_empty(), "F14: it is open already");
    hand.forget();
    let step = hand.reply(PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None });
    let void = |write: &&Write| {
        matches!(write, Write::PermissionResolved { state: PermissionState::Void, .. })
    };
    assert_eq!(step.writes.iter().filter(void).count(), 100);
    assert_eq!(kinds(&step.writes)[100..], ["turn_settled", "task_ended"], "before the settlement");
    assert_eq!(step.effects.len(), 100, "the agent is told");
}

/// DQ-7: a permission that is asked for outside of a turn keeps no place from other groups; within
/// one it does. It becomes void with the run.
#[test]
fn a_permission_outside_of_a_turn_keeps_no_place() {
    let mut hand = Hand::in_turn();
    ask(&mut hand, 1);
    assert!(hand.group.needs_run(), "its turn does");
    hand.say("so");
    hand.answer(StopReason::EndTurn);
    ask(&mut hand, 2);
    assert_eq!((hand.group.permissions().len(), hand.group.needs_run()), (1, false));
    let now = hand.moment();
    let idle = |(expiry, _): &(Expiry, u64)| matches!(expiry, Expiry::Idle(..));
    assert!(!hand.group.patience(&PATIENCE, now).any(|bound| idle(&bound)), "no other run waits");
    let evicted = Expiry::Idle(hand.run(), hand.group.head().last_seq);
    let run = hand.run();
    let step = hand.apply(Event::Expired(evicted));
    let void = |write: &Write| {
        matches!(write, Write::PermissionResolved { state: PermissionState::Void, .. })
    };
    assert!(step.writes.iter().any(void), "it is void before an answer is lost: {step:?}");
    let answer = Answer { request: Json::write(&2).unwrap(), selected: None };
    let told = [Effect::Answer { run, answer }, Effect::Stop { run, how: Stop::Gently }];
    assert_eq!(step.effects, told, "the agent gets the answer before its stdin is closed");
}

/// I7, DQ-11: a prompt that a server withheld as it shut down was not run, so its task keeps its
/// place, whatever the retry policy; unless its caller cancelled it meanwhile.
#[test]
fn i7_withheld_prompt_keeps_its_place() {
    for policy in [Retry::Never, Retry::NoOutput] {
        let mut hand = Hand::in_turn();
        hand.terms.retry = policy;
        let task = hand.group.current().unwrap().id;
        let behind = hand.queue_turn();
        let id = hand.group.turn().unwrap().prompt_id;
        let stale = Event::PromptWithheld { run: hand.run(), id: id + 1 };
        assert!(hand.apply(stale).writes.is_empty());
        let step = hand.apply(Event::PromptWithheld { run: hand.run(), id });
        assert_eq!(kinds(&step.writes), ["turn_settled", "task_retrying"], "{policy:?}");
        let order: Vec<_> = hand.group.waiting().map(|task| task.id).collect();
        assert_eq!((order, hand.group.current()), (vec![task, behind], None));
        hand.expire(|expiry| matches!(expiry, Expiry::Backoff(..)));
        hand.grant();
        assert_eq!(hand.group.current().map(|task| (task.id, task.attempt)), Some((task, 2)));
        hand.say("done");
        hand.answer(StopReason::EndTurn);
        assert_eq!(hand.ended(task), Some((T::Completed, None)));
    }
    let mut hand = Hand::in_turn();
    let task = hand.group.current().unwrap().id;
    hand.apply(Event::CancelRequested(task));
    let id = hand.group.turn().unwrap().prompt_id;
    hand.apply(Event::PromptWithheld { run: hand.run(), id });
    assert_eq!(hand.ended(task).map(|(state, _)| state), Some(T::Cancelled));
}
