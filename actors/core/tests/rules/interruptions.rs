//! Interruptions in a row, and the reason of a cancel over a restart: I7, I12, I13, R-1.

use greenroom_core::{
    CancelReason, Cause, Effect, Event, ExitReason, Fact, Group, Hold, HoldReason, OnInterrupt,
    Recovery, RunHealth, SideEffects, Status, Stop, StopReason, Strategy, TaskState as T, Timer,
};
use greenroom_testing::driver::{Driver, acquired, kinds};

/// Interrupts a turn: it has output, and its agent dies.
fn interrupt(driver: &mut Driver) {
    if driver.group.attempt().is_none() {
        driver.turn();
    }
    if driver.group.attempt().is_none() {
        driver.ready("s", None);
    }
    driver.say("so");
    driver.exit(ExitReason::Exited);
}

fn auto() -> Driver {
    let mut driver = Driver::in_turn();
    driver.settings.on_interrupt = OnInterrupt::Auto;
    driver
}

/// Only turns count as "two in a row": a compaction between them changes nothing.
#[test]
fn a_compaction_does_not_reset_the_count_of_interruptions() {
    type Ends = fn(&mut Driver);
    let completed: Ends = |driver| drop(driver.answer(StopReason::EndTurn));
    let failed: Ends = |driver| drop(driver.fail(-1));
    let cancelled: Ends = |driver| drop(driver.answer(StopReason::Cancelled));
    for (name, ends) in [("completed", completed), ("failed", failed), ("cancelled", cancelled)] {
        let mut driver = auto();
        interrupt(&mut driver);
        assert_eq!(driver.group.state().hold.interruptions, 1, "{name}");
        driver.compact(Strategy::Command);
        driver.lock(acquired());
        driver.grant();
        driver.ready("s", None);
        ends(&mut driver);
        assert_eq!(driver.group.state().hold.interruptions, 1, "{name}");
        interrupt(&mut driver);
        assert_eq!(driver.group.state().hold.reason, Some(HoldReason::InterruptedTwice), "{name}");
    }
    let mut driver = auto();
    interrupt(&mut driver);
    driver.turn();
    driver.ready("s", None);
    driver.answer(StopReason::EndTurn);
    interrupt(&mut driver);
    assert_eq!(driver.group.state().hold.reason, None, "a settled turn resets the count");
}

/// A log from before the rule lacks the task's kind, and is replayed as it was written (I13).
#[test]
fn an_earlier_log_is_replayed_by_the_earlier_rule() {
    let mut driver = auto();
    interrupt(&mut driver);
    let mut earlier = driver.group.clone();
    driver.clear();
    driver.compact(Strategy::Command);
    driver.lock(acquired());
    driver.grant();
    driver.ready("s", None);
    driver.answer(StopReason::EndTurn);
    for fact in &driver.facts {
        match fact {
            Fact::TaskEnded { .. } => {
                let payload = fact.payload().replace(r#""kind":"compaction","#, "");
                let read = Fact::read(fact.kind(), &payload).unwrap().unwrap();
                assert!(!payload.contains("kind"), "{payload}");
                earlier.record(read, driver.now);
            }
            fact => _ = earlier.record(fact.clone(), driver.now),
        }
    }
    assert_eq!(
        (driver.group.state().hold.interruptions, earlier.state().hold.interruptions),
        (1, 0)
    );
}

/// A deleted group that is revived starts without counts, pause and hold.
#[test]
fn a_revived_group_starts_without_counts_and_holds() {
    type Action = fn(&mut Driver);
    let interrupted: Action = interrupt;
    let interrupted_while_deleted: Action = |driver| {
        driver.expire(|timer| matches!(timer, Timer::Attempt(_)));
        driver.apply(Event::Archived);
        driver.exit(ExitReason::Stopped);
    };
    let paused: Action = |driver| {
        driver.exit(ExitReason::Exited);
        driver.apply(Event::Paused);
    };
    let paused_and_interrupted: Action = |driver| {
        driver.apply(Event::Paused);
        interrupt(driver);
    };
    let held: Action = |driver| {
        driver.settings.on_interrupt = OnInterrupt::Hold;
        interrupt(driver);
    };
    for (name, act) in [
        ("interrupted", interrupted),
        ("interrupted while deleted", interrupted_while_deleted),
        ("paused", paused),
        ("paused and interrupted", paused_and_interrupted),
        ("held", held),
    ] {
        let mut driver = auto();
        act(&mut driver);
        driver.apply(Event::Archived);
        driver.configure("", None);
        let state = driver.group.state();
        let kept = (state.is_archived(), state.paused, state.hold, state.crash_loop.crashes);
        assert_eq!(kept, (false, false, Hold::default(), 0), "{name}");
        assert_eq!(driver.group.status(), Status::Idle, "{name}");
        driver.queue_turn();
        assert!(driver.group.wants_slot(), "{name}");
    }
}

/// A change of settings does not resume a paused group.
#[test]
fn changing_a_group_does_not_resume_it() {
    let mut driver = Driver::idle();
    driver.apply(Event::Paused);
    driver.configure("other", None);
    assert!(driver.group.state().paused);
}

/// A turn that began before the deletion does not count for the revived group, even if it ends
/// later.
#[test]
fn a_turn_from_before_a_deletion_is_not_counted() {
    for on_interrupt in [OnInterrupt::Auto, OnInterrupt::Hold] {
        let mut driver = auto();
        driver.settings.on_interrupt = on_interrupt;
        driver.expire(|timer| matches!(timer, Timer::Attempt(_)));
        driver.apply(Event::Archived);
        driver.configure("", None);
        let mut paused = driver.group.clone();
        driver.exit(ExitReason::Stopped);
        let state = driver.group.state();
        assert_eq!(state.hold, Hold::default(), "{on_interrupt:?}");
        std::mem::swap(&mut driver.group, &mut paused);
        driver.apply(Event::Paused);
        driver.exit(ExitReason::Stopped);
        let state = driver.group.state();
        assert_eq!((state.paused, state.hold.reason), (true, None), "{on_interrupt:?}");
        driver.apply(Event::Resumed);
        assert_eq!(driver.group.state().hold, Hold::default(), "{on_interrupt:?}");
    }
}

/// The group suspects that a run is wedged by a cancel only if it sent one.
#[test]
fn a_run_counts_as_cancelled_only_after_a_cancel_was_sent() {
    let cancelled = |driver: &Driver| driver.group.run().unwrap().health == RunHealth::Cancelled;
    let cancels = |driver: &Driver| {
        driver.effects.iter().any(|effect| matches!(effect, Effect::Cancel { .. }))
    };
    let mut driver = Driver::compacting(Strategy::Rotate);
    let task = driver.group.current().unwrap().id;
    driver.say("all of it");
    driver.answer(StopReason::EndTurn);
    driver.apply(Event::CancelRequested(task));
    assert_eq!(
        (cancelled(&driver), cancels(&driver)),
        (false, false),
        "no prompt is in flight while a session opens"
    );
    assert_eq!(driver.ended(task).map(|(state, _)| state), Some(T::Cancelled));

    for event in [Event::Stopped, Event::Archived] {
        let mut driver = Driver::in_turn();
        driver.apply(event);
        assert_eq!(
            (cancelled(&driver), cancels(&driver)),
            (false, false),
            "its process is stopped"
        );
        let step = driver.fail(-32603);
        assert!(!kinds(&step.facts).contains(&"agent_wedged"), "{step:?}");
    }

    let mut driver = Driver::in_turn();
    let task = driver.group.current().unwrap().id;
    driver.apply(Event::CancelRequested(task));
    assert_eq!((cancelled(&driver), cancels(&driver)), (true, true));
    let mut driver = Driver::in_turn();
    driver.expire(|timer| matches!(timer, Timer::Attempt(_)));
    assert_eq!((cancelled(&driver), cancels(&driver)), (true, true));
}

/// I7: a run has survived its cancel once it answers a later prompt, and not with an error.
#[test]
fn an_answer_to_a_later_prompt_shows_that_a_run_survived_its_cancel() {
    use {RunHealth::*, StopReason as R};
    let again = |driver: &mut Driver| {
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::CancelRequested(task));
        driver.answer(R::EndTurn);
    };
    type Action<'a> = &'a dyn Fn(&mut Driver);
    let answers = |reason| move |driver: &mut Driver| drop(driver.answer(reason));
    let fails = |driver: &mut Driver| drop(driver.fail(-1));
    let cases: [(&str, Action<'_>, RunHealth); 5] = [
        ("an answer", &answers(R::EndTurn), Sound),
        ("a refusal", &answers(R::Refusal), Sound),
        ("a cancel by itself", &answers(R::Cancelled), Cancelled),
        ("an error", &fails, Cancelled),
        ("cancelled again, too late", &again, Cancelled),
    ];
    for (name, act, health) in cases {
        let mut driver = Driver::in_turn();
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::CancelRequested(task));
        driver.answer(R::Cancelled);
        assert_eq!(driver.group.run().unwrap().health, Cancelled, "{name}: the cancelled prompt");
        driver.turn();
        act(&mut driver);
        assert_eq!(driver.group.run().unwrap().health, health, "{name}");
    }
}

/// R-1: the reason of a cancel is the turn's cause, even if the server dies before the turn ends.
#[test]
fn the_cancel_reason_survives_a_restart_of_the_server() {
    type Cancels = fn(&mut Driver);
    let deadline: Cancels =
        |driver| drop(driver.expire(|timer| matches!(timer, Timer::Attempt(_))));
    let caller: Cancels = |driver| {
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::CancelRequested(task));
    };
    let shutdown: Cancels = |driver| drop(driver.apply(Event::DrainTimedOut));
    let both: Cancels = |driver| {
        driver.expire(|timer| matches!(timer, Timer::Attempt(_)));
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::CancelRequested(task));
    };
    let reversed: Cancels = |driver| {
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::CancelRequested(task));
        assert_eq!(driver.group.attempt().unwrap().cancel_reason, Some(CancelReason::Caller));
    };
    let none: Cancels = |_| {};
    let (restart, late) = (Some(Cause::ServerRestart), Some(Cause::Deadline));
    #[rustfmt::skip]
    let cases = [
        ("no cancel",          none,   StopReason::ServerRestart, T::Interrupted, restart),
        ("the deadline",       deadline, StopReason::Deadline,      T::Interrupted, late),
        ("a caller",           caller,   StopReason::ServerRestart, T::Cancelled,   None),
        ("the server",         shutdown, StopReason::ServerRestart, T::Interrupted, restart),
        ("the deadline first", both,     StopReason::Deadline,      T::Interrupted, late),
        ("the caller first",   reversed, StopReason::ServerRestart, T::Cancelled,   None),
    ];
    for (name, cancel, stop_reason, state, cause) in cases {
        let mut driver = Driver::in_turn();
        cancel(&mut driver);
        let (stored, tasks) =
            (driver.group.state().clone(), vec![driver.group.current().unwrap().clone()]);
        let (run, turn) = (driver.group.run().cloned(), driver.group.attempt().cloned());
        driver.group = Group::restore(stored, tasks, run, turn, None, Vec::new());
        let step = driver.apply(Event::Recovered(Recovery::Restart));
        let ended = step.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { state, stop_reason, interrupted, .. } => {
                Some((*stop_reason, *state, interrupted.clone()))
            }
            _ => None,
        });
        let (stop, ended_as, interrupted) = ended.unwrap();
        let ending = (stop, ended_as, interrupted.as_ref().map(|interrupted| interrupted.cause));
        assert_eq!(ending, (Some(stop_reason), state, cause), "{name}");
        if let Some(interrupted) = interrupted {
            // Its last output may be unread.
            assert_eq!(interrupted.side_effects, SideEffects::Unknown, "{name}");
        }
    }
}

/// A-4: a line that begins as a message and could not be read may have been a tool call; white
/// space or a byte order mark before it is not stored. A log line says nothing of the kind.
#[test]
fn an_unread_message_leaves_the_side_effects_unknown() {
    let cases = [("eyJp", SideEffects::Unknown), ("eHsi", SideEffects::NoneObserved)];
    for (bytes, side_effects) in cases {
        let mut driver = Driver::in_turn();
        let (run, bytes) = (driver.run(), bytes.into());
        driver.say("so");
        driver.apply(Event::OutputRejected { run, reason: "no JSON".into(), bytes });
        let step = driver.exit(ExitReason::Exited);
        let found = step.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { interrupted: Some(interrupted), .. } => {
                Some(interrupted.side_effects)
            }
            _ => None,
        });
        assert_eq!(found, Some(side_effects));
    }
}

/// Once the agent's exit is observed, all its output was read.
#[test]
fn an_observed_exit_reports_the_observed_side_effects() {
    let mut driver = Driver::in_turn();
    driver.expire(|timer| matches!(timer, Timer::Attempt(_)));
    let step = driver.exit(ExitReason::Stopped);
    let interrupted = step.facts.iter().find_map(|fact| match fact {
        Fact::TaskEnded { interrupted, .. } => interrupted.clone(),
        _ => None,
    });
    let interrupted = interrupted.unwrap();
    assert_eq!(
        (interrupted.cause, interrupted.side_effects),
        (Cause::Deadline, SideEffects::NoneObserved)
    );
}

/// A group that is deleted in a turn stops its run at once.
#[test]
fn deleting_a_group_stops_its_run() {
    let mut driver = auto();
    let step = driver.apply(Event::Archived);
    let run = driver.run();
    assert_eq!(step.effects, [Effect::Stop { run, how: Stop::Firmly }]);
}
