//! A task takes the settings in force at START, and what runs keeps what it began with: SEEDS DQ-1,
//! I7, ARCHITECTURE 4 and 5.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    CompactionStatus as C, Continuity, Effect, Event, ExitReason, Expiry, Retry, RunPhase,
    SessionId, Settings, Stop, StopReason, Strategy, TaskId, TaskState as T, Write,
};
use hand::{Hand, held, kinds, taken};

type Does = fn(&mut Hand);

/// The profile is another from here on, as the group's actor says it with the next event.
fn compacts_by(hand: &mut Hand, strategy: Strategy, text: &str) {
    hand.terms.compaction = Some(hand::order(strategy, text));
}

/// The text of the prompt that was sent last.
fn sent(hand: &Hand) -> Option<String> {
    hand.effects.iter().rev().find_map(|effect| match effect {
        Effect::Prompt { prompt, .. } => {
            let blocks: Vec<serde_json::Value> = serde_json::from_str(prompt.as_str()).unwrap();
            Some(blocks.last().unwrap()["text"].as_str().unwrap().to_owned())
        }
        _ => None,
    })
}

fn unsupported() -> Option<(T, Option<String>)> {
    Some((T::Skipped, Some("compaction_unsupported".into())))
}

/// How the compaction of an idle group came to wait, and what lets it go on.
#[rustfmt::skip]
const WAITS: &[(&str, Does, Does)] = &[
    ("for its slot", |_| {}, |hand| {
        hand.lock(taken());
        hand.grant();
    }),
    ("for the lock", |hand| drop(hand.lock(held())), |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Lock(..)));
        hand.lock(taken());
        hand.grant();
    }),
    ("in a paused group", |hand| drop(hand.apply(Event::Paused)), |hand| {
        hand.apply(Event::Resumed);
        hand.lock(taken());
        hand.grant();
    }),
    ("for its agent", |hand| {
        hand.exit(ExitReason::Exited);
        hand.lock(taken());
        hand.grant();
    }, |hand| {
        if hand.group.run().is_some_and(|run| run.phase == RunPhase::Stopping) {
            hand.exit(ExitReason::Stopped);
        }
        hand.ready("s", None);
    }),
    ("for its next attempt", |hand| {
        hand.terms.retry = Retry::NoOutput;
        hand.exit(ExitReason::Exited);
        hand.lock(taken());
        hand.grant();
        hand.exit(ExitReason::StartFailed);
    }, |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Backoff(..)));
        hand.lock(taken());
        hand.grant();
        hand.ready("s", None);
    }),
];

/// A compaction takes command and strategy from the profile in force at START, however it waited.
#[test]
fn a_waiting_compaction_takes_the_command_in_force_at_start() {
    for (name, waits, goes_on) in WAITS {
        let mut hand = Hand::idle();
        let task = hand.compact(Strategy::Command);
        waits(&mut hand);
        compacts_by(&mut hand, Strategy::Command, "/shrink");
        hand.configure("other", None);
        if hand.group.current().is_none() && hand.group.run().is_some() {
            hand.exit(ExitReason::Stopped);
            goes_on(&mut hand);
            hand.ready("s", None);
        } else {
            goes_on(&mut hand);
        }
        assert_eq!(hand.group.current().map(|own| own.id), Some(task), "{name}");
        assert_eq!(sent(&hand).as_deref(), Some("/shrink"), "{name}");
    }
}

/// Likewise without a word of a caller: a server was restarted with another configuration.
#[test]
fn a_compaction_takes_the_strategy_in_force_at_start() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    compacts_by(&mut hand, Strategy::Rotate, "sum it up");
    hand.lock(taken());
    hand.grant();
    assert_eq!(sent(&hand).as_deref(), Some("sum it up"));
    hand.say("all of it");
    hand.answer(StopReason::EndTurn);
    hand.open(Ok("s2"));
    assert_eq!(hand.ended(task), Some((T::Completed, None)));
    assert_eq!((hand.count(), hand.group.head().lead_in.as_deref()), (1, Some("all of it")));
}

/// The other way round: a command opens no session, whatever the task was accepted as.
#[test]
fn a_compaction_that_starts_as_a_command_does_not_rotate() {
    let mut hand = Hand::idle();
    hand.compact(Strategy::Rotate);
    compacts_by(&mut hand, Strategy::Command, "/compact");
    hand.lock(taken());
    hand.grant();
    hand.say("done");
    let step = hand.answer(StopReason::EndTurn);
    assert!(!kinds(&step.writes).contains(&"summary_given"), "{step:?}");
    assert_eq!((hand.count(), hand.group.head().lead_in.as_deref()), (1, None));
}

/// Prompt and strategy of the START are in the facts: a fold of the log knows them as well (I13).
#[test]
fn the_facts_tell_how_a_compaction_was_started() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    compacts_by(&mut hand, Strategy::Rotate, "sum it up");
    hand.lock(taken());
    hand.grant();
    let told = hand.writes.iter().find_map(|write| match write {
        Write::TurnStarted { task: own, prompt, strategy } if *own == task => {
            Some((prompt.clone(), *strategy))
        }
        _ => None,
    });
    let prompt = hand.terms.compaction.as_ref().unwrap().prompt(None);
    assert_eq!(told, Some((prompt, Some(Strategy::Rotate))));
}

/// The caller's focus is kept with each profile.
#[test]
fn the_focus_outlives_a_change_of_the_profile() {
    for (strategy, text, expected) in [
        (Strategy::Command, "/shrink", "/shrink the plan"),
        (Strategy::Rotate, "sum it up", "sum it up\nKeep in view above all: the plan"),
    ] {
        let mut hand = Hand::idle();
        hand.compact_on(Some("the plan"));
        compacts_by(&mut hand, strategy, text);
        hand.lock(taken());
        hand.grant();
        assert_eq!(sent(&hand).as_deref(), Some(expected));
    }
}

/// A profile that has no way to compact: the task says so, the session is as it was, and what
/// waits after it can start. It waits for no lock.
#[test]
fn a_compaction_that_no_profile_can_do_is_skipped() {
    for (name, waits, goes_on) in WAITS {
        let mut hand = Hand::idle();
        let task = hand.compact(Strategy::Command);
        let turn = hand.queue_turn();
        waits(&mut hand);
        hand.terms.compaction = None;
        hand.configure("other", None);
        if hand.ended(task).is_none() {
            goes_on(&mut hand);
        }
        assert_eq!(hand.ended(task), unsupported(), "{name}");
        assert_eq!(hand.last_ended().unwrap().status, C::Skipped, "{name}");
        assert_eq!((hand.count(), hand.segment(), hand.group.lease()), (0, 1, None), "{name}");
        assert!(sent(&hand).is_none_or(|sent| sent == "do it"), "{name}");
        let mut next = hand.group.current().into_iter().chain(hand.group.waiting());
        assert_eq!(next.next().map(|own| own.id), Some(turn), "{name}");
    }
}

/// Likewise one that the group ordered by itself.
#[test]
fn an_ordered_compaction_that_no_profile_can_do_is_skipped() {
    let mut hand = Hand::idle();
    hand.turn_to(90);
    let task = hand.ordered().unwrap();
    hand.terms.compaction = None;
    hand.configure("other", None);
    assert_eq!(hand.ended(task), unsupported());
}

/// Whether there is anything to do is asked of the profile in force, too.
#[test]
fn whether_there_is_something_to_compact_is_asked_at_start() {
    let rotated = || {
        let mut hand = Hand::compacting(Strategy::Rotate);
        hand.say("all of it");
        hand.answer(StopReason::EndTurn);
        hand.open(Ok("s2"));
        hand.forget();
        hand
    };
    let mut hand = rotated();
    let task = hand.compact(Strategy::Rotate);
    assert_eq!(hand.ended(task), Some((T::Skipped, None)), "nothing but the summary is in it");
    assert_eq!((hand.last_ended().unwrap().status, hand.asks()), (C::Noop, 0));
    let mut hand = rotated();
    compacts_by(&mut hand, Strategy::Command, "/compact");
    let task = hand.compact(Strategy::Command);
    assert_eq!(hand.ended(task), Some((T::Skipped, None)), "no prompt was sent in it");
}

/// A session that could not be restored is another one, and nothing is in it: a compaction that
/// was meant for the old one has nothing to do, and counts for nothing.
#[test]
fn a_compaction_of_a_lost_session_is_none() {
    let mut hand = Hand::idle();
    let task = hand.compact(Strategy::Command);
    hand.lock(taken());
    hand.configure("other", None);
    hand.exit(ExitReason::Stopped);
    hand.grant();
    let (run, session) = (hand.run(), SessionId("fresh".into()));
    let (continuity, provenance) = (Continuity::Lost, None);
    hand.apply(Event::AgentReady { run, pid: 2, session, continuity, provenance });
    assert_eq!(hand.ended(task), Some((T::Skipped, None)));
    assert_eq!((hand.last_ended().unwrap().status, hand.count()), (C::Noop, 0));
    assert_eq!(hand.group.lease(), None);
}

/// The run of a claimed task is of the profile and in the directory that are in force at START.
#[test]
fn an_outdated_run_is_replaced_before_start() {
    let starting: Does = |hand| {
        hand.turn();
    };
    let twice: Does = |hand| {
        hand.turn();
        hand.configure("c", Some("/c"));
    };
    let back: Does = |hand| {
        hand.turn();
        hand.configure("b", None);
        hand.configure("", None);
    };
    let idle: Does = |hand| {
        hand.turn();
        hand.ready("s", None);
        hand.answer(StopReason::EndTurn);
    };
    let in_turn: Does = |hand| {
        hand.turn();
        hand.ready("s", None);
        hand.queue_turn();
    };
    let opening: Does = |hand| {
        hand.turn();
        hand.ready("s", None);
        hand.say("hello");
        hand.answer(StopReason::EndTurn);
        hand.compact(Strategy::Rotate);
        hand.lock(taken());
        hand.grant();
        hand.say("all of it");
        hand.answer(StopReason::EndTurn);
    };
    for (name, given) in [
        ("starting", starting),
        ("starting, changed twice", twice),
        ("starting, changed back", back),
        ("idle", idle),
        ("in a turn", in_turn),
        ("opening a session", opening),
    ] {
        for (agent, cwd) in [("b", None), ("", Some("/b"))] {
            let mut hand = Hand::new();
            given(&mut hand);
            let first = hand.group.run().unwrap().id;
            hand.configure(agent, cwd);
            let runs = hand.group.turn().is_some();
            if runs && hand.group.turn().unwrap().opening.is_some() {
                hand.open(Ok("s2"));
            } else if runs {
                hand.answer(StopReason::EndTurn);
            }
            hand.forget();
            let run = hand.group.run().unwrap();
            assert_eq!((run.id, run.phase), (first, RunPhase::Stopping), "{name}");
            // Its report that it is ready is too late.
            let step = hand.ready("s", None);
            assert_eq!(step.effects, [], "{name}");
            if hand.group.current().is_none() {
                hand.queue_turn();
                hand.grant();
            }
            let step = hand.exit(ExitReason::Stopped);
            let launched = |effect: &Effect| matches!(effect, Effect::Launch { .. });
            assert!(step.effects.iter().any(launched), "{name}: {step:?}");
            let told = step.writes.iter().find_map(|write| match write {
                Write::RunStarted { agent, .. } => Some(agent.as_str()),
                _ => None,
            });
            assert_eq!(told, Some(agent), "{name}");
            let attempt = hand.group.current().unwrap().attempt;
            assert_eq!(attempt, 0, "{name}: it is no attempt of its own");
            hand.ready("s", None);
            assert!(hand.group.turn().is_some(), "{name}");
        }
    }
}

/// The run that is outdated is ended as soon as nothing of it runs.
#[test]
fn an_outdated_run_is_ended_once() {
    let mut hand = Hand::in_turn();
    let step = hand.configure("b", None);
    assert_eq!(step.effects, [], "the turn keeps its run");
    let step = hand.answer(StopReason::EndTurn);
    let run = hand.run();
    assert_eq!(step.effects, [Effect::Stop { run, how: Stop::Gently }]);
    let step = hand.configure("c", None);
    assert_eq!(step.effects, [], "it is ending");
}

/// An attempt that failed while its run was outdated is retried in the next run.
#[test]
fn a_retry_goes_to_the_profile_in_force() {
    let mut hand = Hand::in_turn();
    hand.terms.retry = Retry::NoOutput;
    hand.configure("b", None);
    hand.fail(-32603);
    hand.exit(ExitReason::Stopped);
    hand.expire(|expiry| matches!(expiry, Expiry::Backoff(..)));
    let step = hand.grant();
    let told = step
        .writes
        .iter()
        .any(|write| matches!(write, Write::RunStarted { agent, .. } if agent == "b"));
    assert!(told, "{step:?}");
}

/// A run's own profile says what it would have shown, not the one that follows it.
#[test]
fn what_runs_keeps_what_it_listens_to() {
    // That a compaction was not seen says something of an agent that is listened to.
    for (begun, changed, state) in [(false, true, T::Completed), (true, false, T::Skipped)] {
        let mut hand = if begun { Hand::listening() } else { Hand::idle() };
        let task = hand.compact(Strategy::Command);
        hand.lock(taken());
        hand.grant();
        hand.terms.listens = changed;
        hand.configure("other", None);
        hand.answer(StopReason::EndTurn);
        assert_eq!(hand.ended(task).map(|(state, _)| state), Some(state), "{begun} {changed}");
    }
    // So does an answer that comes before the cancel was read.
    for (begun, changed) in [(false, true), (true, false)] {
        let mut hand = Hand::new();
        hand.terms.listens = begun;
        let task = hand.turn();
        hand.ready("s", None);
        hand.say("hello");
        hand.apply(Event::CancelRequested(task));
        hand.terms.listens = changed;
        hand.configure("other", None);
        let step = hand.answer(StopReason::EndTurn);
        assert_eq!(kinds(&step.writes).contains(&"agent_wedged"), begun, "{step:?}");
    }
}

/// What a settled turn calls for is decided by the settings that are in force by then.
#[test]
fn whether_a_compaction_is_ordered_is_decided_at_the_settlement() {
    for (changed, ordered) in [(0.0, false), (0.5, true)] {
        let mut hand = Hand::in_turn();
        hand.usage(60);
        hand.terms.auto_compact = changed;
        hand.configure("", None);
        hand.answer(StopReason::EndTurn);
        assert_eq!(hand.ordered().is_some(), ordered, "{changed}");
    }
}

/// None is ordered that would have nothing to do.
#[test]
fn nothing_is_ordered_where_nothing_can_be_compacted() {
    let mut hand = Hand::compacting(Strategy::Rotate);
    hand.say("all of it");
    hand.answer(StopReason::EndTurn);
    hand.open(Ok("s2"));
    hand.turn();
    hand.usage(90);
    hand.fail(-1);
    assert_eq!(hand.ordered(), None::<TaskId>, "its summary was carried nowhere yet");
}

/// A first task creates the group with the default settings.
#[test]
fn a_first_task_makes_the_group() {
    let mut hand = Hand::new();
    hand.queue_turn();
    assert_eq!(hand.group.head().settings, Settings::default());
}
