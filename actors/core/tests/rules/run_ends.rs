//! Who ends a run for the server: the drain, an eviction, a purge. DQ-7, DQ-11.

use greenroom_core::{
    CancelReason, Effect, Event, ExitReason, HoldReason, OnInterrupt, RunId, Stop, StopReason,
    Strategy, TaskState, Timer, pool::Activity,
};
use greenroom_testing::driver::{Driver, Step, acquired, kinds};
use uuid::Uuid;

/// A group whose only task waits for its agent.
fn claimed() -> Driver {
    let mut driver = Driver::default();
    driver.turn();
    driver.clear();
    driver
}

/// A group whose agent compacts between turns.
fn compacting_by_itself() -> Driver {
    let mut driver = Driver::idle();
    driver.signal(greenroom_core::Source::Acp, greenroom_core::SignalKind::Started);
    driver.clear();
    driver
}

fn stopping() -> Driver {
    let mut driver = Driver::idle();
    driver.apply(Event::Stopped);
    driver.clear();
    driver
}

fn stops(step: &Step) -> Vec<Stop> {
    let stop = |effect: &Effect| match effect {
        Effect::Stop { how, .. } => Some(*how),
        _ => None,
    };
    step.effects.iter().filter_map(stop).collect()
}

/// DQ-11: a drain puts back a task that has not started, and waits for one that runs. Then it
/// interrupts that one. A lock that no compaction used yet becomes free at once.
#[test]
fn a_drain_releases_what_has_not_started_and_later_interrupts_what_runs() {
    let mut driver = claimed();
    let step = driver.apply(Event::DrainStarted);
    assert_eq!(kinds(&step.facts), ["task_released", "run_stopping"]);
    assert_eq!(stops(&step), [Stop::Firmly]);

    let mut driver = Driver::in_turn();
    assert_eq!(driver.apply(Event::DrainStarted), Step::default(), "the turn may finish");
    driver.apply(Event::DrainTimedOut);
    let cancelled = driver.group.attempt().unwrap().cancel_reason;
    assert_eq!(cancelled, Some(CancelReason::Shutdown));

    let mut driver = Driver::idle();
    driver.compact(Strategy::Command);
    driver.lock(acquired());
    let step = driver.apply(Event::DrainStarted);
    assert_eq!(kinds(&step.facts), ["lock_released"]);
    assert_eq!(driver.apply(Event::DrainTimedOut), Step::default());
}

/// The end of the drain stops every run, and records nothing: the run's exit is the fact.
#[test]
fn the_end_of_a_drain_stops_the_run_and_records_nothing() {
    for (name, mut driver, how) in [
        ("no run", Driver::default(), None),
        ("starting", claimed(), Some(Stop::Firmly)),
        ("in a turn", Driver::in_turn(), Some(Stop::Firmly)),
        ("idle", Driver::idle(), Some(Stop::Gently)),
        ("stopping", stopping(), Some(Stop::Gently)),
    ] {
        let step = driver.apply(Event::DrainEnded);
        assert_eq!(step.facts, [], "{name}");
        assert_eq!((step.effects.len(), stops(&step).pop()), (usize::from(how.is_some()), how));
    }
}

/// DQ-7: the pool gets the place of an idle run only.
#[test]
fn only_an_idle_run_is_evicted() {
    for (name, mut driver, activity) in [
        ("claimed", claimed(), Activity::Busy),
        ("in a turn", Driver::in_turn(), Activity::Busy),
        ("compacting by itself", compacting_by_itself(), Activity::Busy),
        ("idle", Driver::idle(), Activity::Idle),
        ("stopping", stopping(), Activity::Stopping),
        ("forgetful in a turn", forgetful_in_turn(), Activity::BusyForgetful),
        ("forgetful and idle", forgetful(), Activity::IdleForgetful),
        ("forgetful with nothing to forget", forgetful_and_fresh(), Activity::Idle),
    ] {
        assert_eq!(driver.group.activity(), Some(activity), "{name}");
        let other = RunId(Uuid::from_u128(0xff));
        assert_eq!(driver.apply(Event::Evicted { run: other }), Step::default(), "{name}");
        let run = driver.run();
        let step = driver.apply(Event::Evicted { run });
        let expected = [Stop::Gently];
        assert_eq!(stops(&step), &expected[..usize::from(activity.is_idle())], "{name}");
        assert_eq!(step.facts.is_empty(), !activity.is_idle(), "{name}");
    }
    let mut driver = Driver::default();
    assert_eq!(driver.group.activity(), None, "it has no run");
    driver.configure("", None);
    driver.apply(Event::Archived);
    driver.apply(Event::PurgeOrdered);
    let evicted = driver.apply(Event::Evicted { run: RunId(Uuid::nil()) });
    assert_eq!(evicted, Step::default(), "a refused eviction orders nothing, no purge either");
}

/// A run in a turn, whose agent can restore no session.
fn forgetful_in_turn() -> Driver {
    let mut driver = Driver::default();
    driver.turn();
    driver.ready_forgetful("s");
    driver.say("so");
    driver
}

/// An idle run whose agent can restore no session.
fn forgetful() -> Driver {
    let mut driver = forgetful_in_turn();
    driver.answer(StopReason::EndTurn);
    driver
}

/// An idle run whose agent can restore no session, and got no prompt.
fn forgetful_and_fresh() -> Driver {
    let mut driver = Driver::default();
    let task = driver.turn();
    driver.apply(Event::CancelRequested(task));
    driver.ready_forgetful("s");
    driver
}

/// I16: no idle time ends a run with which a context would be lost; if it ends all the same, the
/// loss is reported, and `on_interrupt` decides whether the next task starts.
#[test]
fn no_context_is_lost_for_idleness() {
    let idles = |driver: &Driver| {
        let now = driver.moment();
        driver
            .group
            .timers(&driver.settings.limits, now)
            .any(|(timer, _)| matches!(timer, Timer::Idle(..)))
    };
    assert!(idles(&Driver::idle()), "it can be restored");
    assert!(idles(&forgetful_and_fresh()), "nothing is lost with it");
    for (on_interrupt, holds) in
        [(OnInterrupt::Hold, true), (OnInterrupt::Auto, false), (OnInterrupt::Continue, false)]
    {
        let mut driver = forgetful();
        assert!(!idles(&driver));
        driver.settings.on_interrupt = on_interrupt;
        driver.apply(Event::Stopped);
        driver.exit(ExitReason::Stopped);
        let task = driver.turn();
        let step = driver.ready_forgetful("t");
        let kinds = kinds(&step.facts);
        assert!(kinds.contains(&"context_lost"), "{on_interrupt:?}: {kinds:?}");
        assert_eq!(driver.group.attempt().is_none(), holds, "{on_interrupt:?}: {kinds:?}");
        let reason = driver.group.state().hold.reason;
        assert_eq!(reason, holds.then_some(HoldReason::ContextLost), "{on_interrupt:?}");
        assert!(driver.group.task(task).is_some(), "{on_interrupt:?}");
    }
}

/// The rows are deleted once the order is stored and the run is over, and not before.
#[test]
fn a_purge_waits_for_the_end_of_the_run() {
    let purges = |step: &Step| step.effects.contains(&Effect::Purge);
    let mut driver = Driver::in_turn();
    assert!(!purges(&driver.apply(Event::PurgeOrdered)), "the group is not archived");
    driver.apply(Event::Archived);
    assert!(!purges(&driver.apply(Event::PurgeOrdered)), "its run lives");
    assert!(purges(&driver.exit(ExitReason::Stopped)));

    let mut driver = Driver::idle();
    driver.exit(ExitReason::Exited);
    assert!(!purges(&driver.apply(Event::Archived)), "no purge was ordered");
    assert!(purges(&driver.apply(Event::PurgeOrdered)));
}

/// I7, I12: a turn that is granted a slot after the agent closed its stdout waits for the next run.
#[test]
fn an_agent_that_closed_stdout_gets_no_prompt() {
    let prompted = |step: &Step| step.effects.iter().any(|e| matches!(e, Effect::Prompt { .. }));
    let mut driver = Driver::default();
    let first = driver.turn();
    assert!(prompted(&driver.ready("s", None)), "the first turn is sent");
    driver.apply(Event::CancelRequested(first));
    driver.answer(StopReason::EndTurn);
    assert!(driver.group.current().is_none(), "the answer settled it");

    let closed = driver.run();
    driver.apply(Event::AgentClosed(closed));
    driver.clear();
    driver.turn();
    let step = driver.exit(ExitReason::Exited);
    let sent = driver.effects.iter().any(|effect| matches!(effect, Effect::Prompt { .. }));
    assert!(!sent, "{:?}", driver.effects);
    let launched = |effect: &Effect| matches!(effect, Effect::Launch { run, .. } if *run != closed);
    assert!(step.effects.iter().any(launched), "{step:?}");
    let current = driver.group.current().unwrap();
    assert_eq!(current.state(), TaskState::Queued, "it is claimed and has not failed");
}
