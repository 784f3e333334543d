//! A task uses the settings in force at START, and a run keeps the settings it started with: DQ-1,
//! I7, A-4 and A-5.

use greenroom_core::{
    CompactionStatus as C, Effect, Event, ExitReason, Fact, RetryPolicy, RunPhase, Settings, Stop,
    StopReason, Strategy, TaskId, TaskState as T, Timer,
};
use greenroom_testing::driver::{Driver, acquired, busy, kinds};

type Action = fn(&mut Driver);

/// Changes the profile, which the group's actor passes with the next event.
fn compacts_by(driver: &mut Driver, strategy: Strategy, text: &str) {
    driver.settings.compaction = Some(greenroom_testing::driver::order(strategy, text));
}

/// Returns the text of the last prompt.
fn sent(driver: &Driver) -> Option<String> {
    driver.facts.iter().rev().find_map(|fact| match fact {
        Fact::PromptSent { prompt, .. } => {
            let blocks: Vec<serde_json::Value> = serde_json::from_str(prompt.as_str()).unwrap();
            Some(blocks.last().unwrap()["text"].as_str().unwrap().to_owned())
        }
        _ => None,
    })
}

fn unsupported() -> Option<(T, Option<String>)> {
    Some((T::Skipped, Some("compaction_unsupported".into())))
}

/// What the compaction of an idle group waits for, and what ends the wait.
#[rustfmt::skip]
const WAITS: &[(&str, Action, Action)] = &[
    ("for its slot", |_| {}, |driver| {
        driver.lock(acquired());
        driver.grant();
    }),
    ("for the lock", |driver| drop(driver.lock(busy())), |driver| {
        driver.expire(|timer| matches!(timer, Timer::Lock(..)));
        driver.lock(acquired());
        driver.grant();
    }),
    ("in a paused group", |driver| drop(driver.apply(Event::Paused)), |driver| {
        driver.apply(Event::Resumed);
        driver.lock(acquired());
        driver.grant();
    }),
    ("for its agent", |driver| {
        driver.exit(ExitReason::Exited);
        driver.lock(acquired());
        driver.grant();
    }, |driver| {
        if driver.group.run().is_some_and(|run| run.phase == RunPhase::Stopping) {
            driver.exit(ExitReason::Stopped);
        }
        driver.ready("s", None);
    }),
    ("for its next attempt", |driver| {
        driver.settings.retry = RetryPolicy::NoOutput;
        driver.exit(ExitReason::Exited);
        driver.lock(acquired());
        driver.grant();
        driver.exit(ExitReason::StartFailed);
    }, |driver| {
        driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
        driver.lock(acquired());
        driver.grant();
        driver.ready("s", None);
    }),
];

/// A compaction takes command and strategy from the profile in force at START, after any wait.
#[test]
fn a_waiting_compaction_uses_the_command_in_force_at_start() {
    for (name, wait, resume) in WAITS {
        let mut driver = Driver::idle();
        let task = driver.compact(Strategy::Command);
        wait(&mut driver);
        compacts_by(&mut driver, Strategy::Command, "/shrink");
        driver.configure("other", None);
        if driver.group.current().is_none() && driver.group.run().is_some() {
            driver.exit(ExitReason::Stopped);
            resume(&mut driver);
            driver.ready("s", None);
        } else {
            resume(&mut driver);
        }
        assert_eq!(driver.group.current().map(|current| current.id), Some(task), "{name}");
        assert_eq!(sent(&driver).as_deref(), Some("/shrink"), "{name}");
    }
}

/// Likewise without a caller's change: the server restarted with another configuration.
#[test]
fn a_compaction_uses_the_strategy_in_force_at_start() {
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    compacts_by(&mut driver, Strategy::Rotate, "sum it up");
    driver.lock(acquired());
    driver.grant();
    assert_eq!(sent(&driver).as_deref(), Some("sum it up"));
    driver.say("all of it");
    driver.answer(StopReason::EndTurn);
    driver.open_session(Ok("s2"));
    assert_eq!(driver.ended(task), Some((T::Completed, None)));
    assert_eq!(
        (driver.count(), driver.group.state().pending_summary.as_deref()),
        (1, Some("all of it"))
    );
}

/// Conversely: a command opens no session, whichever strategy the task was accepted with.
#[test]
fn a_compaction_started_as_a_command_does_not_rotate() {
    let mut driver = Driver::idle();
    driver.compact(Strategy::Rotate);
    compacts_by(&mut driver, Strategy::Command, "/compact");
    driver.lock(acquired());
    driver.grant();
    driver.say("done");
    let step = driver.answer(StopReason::EndTurn);
    assert!(!kinds(&step.facts).contains(&"summary_given"), "{step:?}");
    assert_eq!((driver.count(), driver.group.state().pending_summary.as_deref()), (1, None));
}

/// The facts hold prompt and strategy of the START, so a projection of the log knows them as well
/// (I13).
#[test]
fn the_facts_state_prompt_and_strategy_of_a_compaction() {
    for (strategy, text, changed) in [
        (Strategy::Command, "/compact", None),
        (Strategy::Command, "/shrink", Some(Strategy::Command)),
        (Strategy::Rotate, "sum it up", Some(Strategy::Rotate)),
    ] {
        let mut driver = Driver::idle();
        let task = driver.compact(Strategy::Command);
        compacts_by(&mut driver, strategy, text);
        driver.lock(acquired());
        driver.grant();
        let stated = driver.facts.iter().find_map(|fact| match fact {
            Fact::TurnStarted { task: started, prompt, strategy, .. } if *started == task => {
                Some((prompt.clone(), *strategy))
            }
            _ => None,
        });
        let prompt = driver.settings.compaction.as_ref().unwrap().prompt(None);
        assert_eq!(stated, Some((prompt, changed)), "{text}: no strategy if nothing changed");
    }
}

/// The caller's focus survives a change of the profile.
#[test]
fn the_focus_survives_a_change_of_the_profile() {
    for (strategy, text, expected) in [
        (Strategy::Command, "/shrink", "/shrink the plan"),
        (Strategy::Rotate, "sum it up", "sum it up\nKeep in view above all: the plan"),
    ] {
        let mut driver = Driver::idle();
        driver.compact_on(Some("the plan"));
        compacts_by(&mut driver, strategy, text);
        driver.lock(acquired());
        driver.grant();
        assert_eq!(sent(&driver).as_deref(), Some(expected));
    }
}

/// A group without a session has nothing to compact, whether or not its profile could.
#[test]
fn a_compaction_without_a_session_is_a_no_op() {
    for has_way in [true, false] {
        let mut driver = Driver::default();
        driver.configure("", None);
        driver.apply(Event::Paused);
        let task = driver.compact(Strategy::Command);
        driver.settings.compaction = driver.settings.compaction.take().filter(|_| has_way);
        driver.apply(Event::Resumed);
        assert_eq!(driver.ended(task), Some((T::Skipped, None)), "{has_way}");
        assert_eq!(driver.last_ended().unwrap().status, C::Noop, "{has_way}");
    }
}

/// The profile has no way to compact: the task ends so, the session is unchanged, the next task can
/// start, and no lock is awaited.
#[test]
fn a_compaction_without_a_way_to_compact_is_skipped() {
    for (name, wait, resume) in WAITS {
        let mut driver = Driver::idle();
        let task = driver.compact(Strategy::Command);
        let turn = driver.queue_turn();
        wait(&mut driver);
        driver.settings.compaction = None;
        driver.configure("other", None);
        if driver.ended(task).is_none() {
            resume(&mut driver);
        }
        assert_eq!(driver.ended(task), unsupported(), "{name}");
        assert_eq!(driver.last_ended().unwrap().status, C::Skipped, "{name}");
        assert_eq!(
            (driver.count(), driver.segment(), driver.group.lease()),
            (0, 1, None),
            "{name}"
        );
        assert!(sent(&driver).is_none_or(|sent| sent == "do it"), "{name}");
        let mut next = driver.group.current().into_iter().chain(driver.group.waiting());
        assert_eq!(next.next().map(|task| task.id), Some(turn), "{name}");
    }
}

/// Likewise an automatic compaction.
#[test]
fn an_automatic_compaction_without_a_way_to_compact_is_skipped() {
    let mut driver = Driver::idle();
    driver.run_turn_to(90);
    let task = driver.ordered().unwrap();
    driver.settings.compaction = None;
    driver.configure("other", None);
    assert_eq!(driver.ended(task), unsupported());
}

/// The profile in force at START decides whether there is anything to compact.
#[test]
fn a_compaction_with_nothing_to_compact_is_skipped_at_start() {
    let rotated = || {
        let mut driver = Driver::compacting(Strategy::Rotate);
        driver.say("all of it");
        driver.answer(StopReason::EndTurn);
        driver.open_session(Ok("s2"));
        driver.clear();
        driver
    };
    let mut driver = rotated();
    let task = driver.compact(Strategy::Rotate);
    assert_eq!(driver.ended(task), Some((T::Skipped, None)), "the session holds only the summary");
    assert_eq!((driver.last_ended().unwrap().status, driver.lock_requests()), (C::Noop, 0));
    let mut driver = rotated();
    compacts_by(&mut driver, Strategy::Command, "/compact");
    let task = driver.compact(Strategy::Command);
    assert_eq!(driver.ended(task), Some((T::Skipped, None)), "the session got no prompt");
}

/// If the session could not be restored, the new one is empty: a compaction that was ordered for
/// the old session has nothing to do, and does not count.
#[test]
fn a_compaction_of_a_lost_session_is_skipped() {
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    driver.lock(acquired());
    driver.configure("other", None);
    driver.exit(ExitReason::Stopped);
    driver.grant();
    driver.ready_lost("fresh");
    assert_eq!(driver.ended(task), Some((T::Skipped, None)));
    assert_eq!((driver.last_ended().unwrap().status, driver.count()), (C::Noop, 0));
    assert_eq!(driver.group.lease(), None);
}

/// The run of a claimed task has the profile and the directory in force at START.
#[test]
fn an_outdated_run_is_replaced_before_the_next_start() {
    let starting: Action = |driver| {
        driver.turn();
    };
    let changed_twice: Action = |driver| {
        driver.turn();
        driver.configure("c", Some("/c"));
    };
    let changed_back: Action = |driver| {
        driver.turn();
        driver.configure("b", None);
        driver.configure("", None);
    };
    let idle: Action = |driver| {
        driver.turn();
        driver.ready("s", None);
        driver.answer(StopReason::EndTurn);
    };
    let in_turn: Action = |driver| {
        driver.turn();
        driver.ready("s", None);
        driver.queue_turn();
    };
    let opening: Action = |driver| {
        driver.turn();
        driver.ready("s", None);
        driver.say("hello");
        driver.answer(StopReason::EndTurn);
        driver.compact(Strategy::Rotate);
        driver.lock(acquired());
        driver.grant();
        driver.say("all of it");
        driver.answer(StopReason::EndTurn);
    };
    for (name, given) in [
        ("starting", starting),
        ("starting, changed twice", changed_twice),
        ("starting, changed back", changed_back),
        ("idle", idle),
        ("in a turn", in_turn),
        ("opening a session", opening),
    ] {
        for (agent, cwd) in [("b", None), ("", Some("/b"))] {
            let mut driver = Driver::default();
            given(&mut driver);
            let first = driver.group.run().unwrap().id;
            driver.configure(agent, cwd);
            let runs = driver.group.attempt().is_some();
            if runs && driver.group.attempt().unwrap().opening.is_some() {
                driver.open_session(Ok("s2"));
            } else if runs {
                driver.answer(StopReason::EndTurn);
            }
            driver.clear();
            let run = driver.group.run().unwrap();
            assert_eq!((run.id, run.phase), (first, RunPhase::Stopping), "{name}");
            assert_is_replaced(driver, agent, name);
        }
    }
}

/// Checks that the next START waits for a run of this agent.
#[track_caller]
fn assert_is_replaced(mut driver: Driver, agent: &str, name: &str) {
    // The report of readiness is too late.
    let step = driver.ready("s", None);
    assert_eq!(step.effects, [], "{name}");
    if driver.group.current().is_none() {
        driver.queue_turn();
        driver.grant();
    }
    let step = driver.exit(ExitReason::Stopped);
    let launches = |effect: &Effect| matches!(effect, Effect::Launch { .. });
    assert!(step.effects.iter().any(launches), "{name}: {step:?}");
    let started = step.facts.iter().find_map(|fact| match fact {
        Fact::RunStarted { agent, .. } => Some(agent.as_str()),
        _ => None,
    });
    assert_eq!(started, Some(agent), "{name}");
    let attempt = driver.group.current().unwrap().attempt;
    assert_eq!(attempt, 0, "{name}: it is no attempt");
    driver.ready("s", None);
    assert!(driver.group.attempt().is_some(), "{name}");
}

/// The group stops an outdated run as soon as it is idle.
#[test]
fn an_outdated_run_is_stopped_once() {
    let mut driver = Driver::in_turn();
    let step = driver.configure("b", None);
    assert_eq!(step.effects, [], "the turn keeps its run");
    let step = driver.answer(StopReason::EndTurn);
    let run = driver.run();
    assert_eq!(step.effects, [Effect::Stop { run, how: Stop::Gently }]);
    let step = driver.configure("c", None);
    assert_eq!(step.effects, [], "the run is already stopping");
}

/// An attempt that failed in an outdated run is retried in the next run.
#[test]
fn a_retry_uses_the_profile_in_force() {
    let mut driver = Driver::in_turn();
    driver.settings.retry = RetryPolicy::NoOutput;
    driver.configure("b", None);
    driver.fail(-32603);
    driver.exit(ExitReason::Stopped);
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    let step = driver.grant();
    let started = step
        .facts
        .iter()
        .any(|fact| matches!(fact, Fact::RunStarted { agent, .. } if agent == "b"));
    assert!(started, "{step:?}");
}

/// The profile that a run started with says which signals it would have shown, not the next
/// profile.
#[test]
fn a_run_keeps_the_detectors_it_started_with() {
    // An unseen compaction means something only if the profile has detectors for it.
    for (has_detectors, changed, state) in [(false, true, T::Completed), (true, false, T::Skipped)]
    {
        let mut driver = if has_detectors { Driver::listening() } else { Driver::idle() };
        let task = driver.compact(Strategy::Command);
        driver.lock(acquired());
        driver.grant();
        driver.settings.has_detectors = changed;
        driver.configure("other", None);
        driver.answer(StopReason::EndTurn);
        assert_eq!(
            driver.ended(task).map(|(state, _)| state),
            Some(state),
            "{has_detectors} {changed}"
        );
    }
    // So does an answer from before the agent read the cancel.
    for (has_detectors, changed) in [(false, true), (true, false)] {
        let mut driver = Driver::default();
        driver.settings.has_detectors = has_detectors;
        let task = driver.turn();
        driver.ready("s", None);
        driver.say("hello");
        driver.apply(Event::CancelRequested(task));
        driver.settings.has_detectors = changed;
        driver.configure("other", None);
        let step = driver.answer(StopReason::EndTurn);
        assert_eq!(kinds(&step.facts).contains(&"agent_wedged"), has_detectors, "{step:?}");
    }
}

/// The settings in force at the settlement decide what follows a turn.
#[test]
fn the_threshold_in_force_at_the_settlement_orders_a_compaction() {
    for (changed, ordered) in [(0.0, false), (0.5, true)] {
        let mut driver = Driver::in_turn();
        driver.usage(60);
        driver.settings.auto_compact = changed;
        driver.configure("", None);
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.ordered().is_some(), ordered, "{changed}");
    }
}

/// The group orders no compaction that would have nothing to do.
#[test]
fn no_compaction_is_ordered_with_nothing_to_compact() {
    let mut driver = Driver::compacting(Strategy::Rotate);
    driver.say("all of it");
    driver.answer(StopReason::EndTurn);
    driver.open_session(Ok("s2"));
    driver.turn();
    driver.usage(90);
    driver.fail(-1);
    assert_eq!(driver.ordered(), None::<TaskId>, "no prompt carried its summary yet");
}

/// A first task creates the group with the default settings.
#[test]
fn a_first_task_creates_the_group() {
    let mut driver = Driver::default();
    driver.queue_turn();
    assert_eq!(driver.group.state().settings, Settings::default());
}
