//! The auto-compaction pause: after an uncompleted compaction the group orders none by itself for
//! ten minutes: HL-14, I12.

use greenroom_core::{
    CompactionHistory, Event, ExitReason, Group, LockAnswer, RunPhase, SignalKind, Source,
    StopReason, Strategy, TaskId, TaskState as T, Timer,
};
use greenroom_testing::driver::{Driver, acquired, busy};

/// A name, what happens to an ordered compaction, and how its task ends.
type Uncompleted = (&'static str, fn(&mut Driver, TaskId), T);

/// The ways in which an ordered compaction ends uncompleted.
#[rustfmt::skip]
const UNCOMPLETED: &[Uncompleted] = &[
    ("it failed", |driver, _| {
        driver.lock(acquired());
        driver.grant();
        driver.fail(-1);
    }, T::Failed),
    ("its deadline passed", |driver, _| {
        driver.lock(acquired());
        driver.grant();
        driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
        driver.answer(StopReason::Cancelled);
    }, T::Interrupted),
    ("its agent died", |driver, _| {
        driver.lock(acquired());
        driver.grant();
        driver.exit(ExitReason::Exited);
    }, T::Interrupted),
    ("its agent did not start", |driver, _| {
        driver.exit(ExitReason::Exited);
        driver.lock(acquired());
        driver.grant();
        driver.exit(ExitReason::StartFailed);
    }, T::Failed),
    ("the lock is busy", |driver, _| {
        driver.lock(busy());
    }, T::Skipped),
    ("the lock is unknown", |driver, _| drop(driver.lock(LockAnswer::Failed)), T::Skipped),
    ("the lock is lost", |driver, task| {
        driver.lock(acquired());
        driver.apply(Event::LockLost { task });
    }, T::Skipped),
];

/// Returns a group whose automatic compaction ended uncompleted.
fn after_uncompleted(end: fn(&mut Driver, TaskId)) -> (Driver, TaskId) {
    let mut driver = Driver::idle();
    driver.run_turn_to(90);
    let task = driver.ordered().unwrap();
    end(&mut driver, task);
    (driver, task)
}

/// Runs a turn that leaves the context too full. Whether the group then orders a compaction.
fn orders_compaction(driver: &mut Driver) -> bool {
    driver.turn();
    if driver.group.attempt().is_none() {
        driver.ready("s", None);
    }
    driver.say("done");
    driver.usage(90);
    driver.answer(StopReason::EndTurn);
    driver.ordered().is_some()
}

/// HL-14, I12: every uncompleted ordered compaction starts a rest: else a lock that another program
/// keeps would delay turn after turn.
#[test]
fn an_uncompleted_compaction_starts_the_rest() {
    for (name, end, state) in UNCOMPLETED {
        for (waited_ms, ordered) in [(0, false), (599_999, false), (600_000, true)] {
            let (mut driver, task) = after_uncompleted(*end);
            assert_eq!(driver.ended(task).map(|(state, _)| state), Some(*state), "{name}");
            driver.up_ms += waited_ms;
            assert_eq!(orders_compaction(&mut driver), ordered, "{name}, after {waited_ms} ms");
        }
    }
}

/// Likewise a compaction that a caller ordered.
#[test]
fn a_skipped_compaction_of_a_caller_starts_the_rest() {
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    driver.lock(LockAnswer::Failed);
    assert_eq!(driver.ended(task), Some((T::Skipped, Some("lock_failed".into()))));
    assert!(!orders_compaction(&mut driver));
    driver.up_ms += 600_000;
    assert!(orders_compaction(&mut driver));
}

/// HL-14: uptime bounds the rest, not the wall clock (F27); after a reboot only the wall clock is
/// left.
#[test]
fn setting_the_clock_neither_lengthens_nor_ends_the_rest() {
    type Action = fn(&mut Driver);
    let (same_boot, reboots): (Action, Action) = (|_| {}, |driver| driver.boot += 1);
    #[rustfmt::skip]
    let cases = [
        ("set back",                 same_boot,   0,       -9_000_000, false),
        ("set back, and over",       same_boot,   600_000, -9_000_000, true),
        ("set forward",              same_boot,   0,       9_000_000,  false),
        ("set forward, just before", same_boot,   599_999, 9_000_000,  false),
        ("rebooted, just before",    reboots,   0,       599_999,    false),
        ("rebooted, over",           reboots,   0,       600_000,    true),
        ("rebooted, and set back",   reboots,   0,       -9_000_000, false),
    ];
    for (name, act, up_ms, wall_ms, ordered) in cases {
        let (mut driver, _) = after_uncompleted(UNCOMPLETED[0].1);
        act(&mut driver);
        driver.up_ms += up_ms;
        driver.now.0 += wall_ms;
        assert_eq!(orders_compaction(&mut driver), ordered, "{name}");
    }
}

/// HL-14: a caller who changes the group or orders a compaction ends the rest, and so does a
/// completed compaction.
#[test]
fn a_change_an_order_or_a_completion_ends_the_rest() {
    type Action = fn(&mut Driver);
    let changes: Action = |driver| drop(driver.configure("other", None));
    let compacts: Action = |driver| {
        driver.compact(Strategy::Command);
        driver.lock(acquired());
        driver.grant();
        driver.signal(Source::Acp, SignalKind::Completed);
        driver.usage(20);
        driver.answer(StopReason::EndTurn);
    };
    let by_itself: Action = |driver| {
        driver.turn();
        driver.signal(Source::Acp, SignalKind::Completed);
        driver.usage(20);
        driver.answer(StopReason::EndTurn);
    };
    for (name, act) in [("a change", changes), ("an order", compacts), ("the agent", by_itself)] {
        let (mut driver, _) = after_uncompleted(UNCOMPLETED[0].1);
        assert!(!orders_compaction(&mut driver), "{name}: the group rests");
        act(&mut driver);
        if driver.group.run().is_some_and(|run| run.phase == RunPhase::Stopping) {
            driver.exit(ExitReason::Stopped);
        }
        assert!(orders_compaction(&mut driver), "{name}");
    }
}

/// No rest follows a compaction that had nothing to do (two of them stop automatic compaction, see
/// I12), nor one that another program completed, nor one that a caller cancelled: that says
/// nothing about the next one.
#[test]
fn an_unneeded_or_cancelled_compaction_starts_no_rest() {
    let (mut driver, task) = after_uncompleted(|driver, task| {
        driver.lock(acquired());
        driver.grant();
        driver.apply(Event::CancelRequested(task));
        driver.answer(StopReason::Cancelled);
    });
    assert_eq!(driver.ended(task).unwrap().0, T::Cancelled);
    assert!(orders_compaction(&mut driver), "cancelled");
    let (mut driver, task) = after_uncompleted(|driver, task| {
        driver.apply(Event::CancelRequested(task));
        driver.lock(busy());
    });
    assert_eq!(driver.ended(task).unwrap().0, T::Cancelled);
    assert!(orders_compaction(&mut driver), "cancelled as it waited");
    let (mut driver, _) = after_uncompleted(|driver, _| {
        driver.lock(acquired());
        driver.grant();
        driver.signal(Source::HermesStderr, SignalKind::Noop);
        driver.answer(StopReason::EndTurn);
    });
    assert!(orders_compaction(&mut driver), "nothing to compact");
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    driver.lock(busy());
    driver.signal(Source::Acp, SignalKind::Completed);
    driver.expire(|timer| matches!(timer, Timer::Lock(..)));
    driver.lock(acquired());
    assert_eq!(driver.ended(task), Some((T::Skipped, Some("already_compacted".into()))));
    assert!(orders_compaction(&mut driver), "the session was compacted, and is full again");
}

/// HL-14, I13: no frame holds the pause, in either stored form; a replay of the frames copies it.
#[test]
fn the_pause_can_be_copied_to_a_replay_of_the_frames() {
    let (driver, _) = after_uncompleted(UNCOMPLETED[0].1);
    let paused = driver.group.state().compacting.clone();
    let with = |key: &str, value: serde_json::Value| -> CompactionHistory {
        let mut stored = serde_json::to_value(&paused).unwrap();
        let members = stored.as_object_mut().unwrap();
        members.remove("rest").unwrap();
        members.insert(key.into(), value);
        serde_json::from_value(stored).unwrap()
    };
    let (free, earlier) = (with("rest", ().into()), with("failed_at", 9.into()));
    for (name, original, mut replayed) in [
        ("paused", &paused, free.clone()),
        ("by an earlier version", &earlier, free.clone()),
        ("not paused", &free, paused.clone()),
    ] {
        assert_ne!(&replayed, original, "{name}");
        replayed.copy_pause(original);
        assert_eq!(&replayed, original, "{name}");
    }
}

/// A rest that an earlier version stored runs by the wall clock, and lasts no longer than intended.
#[test]
fn a_rest_stored_by_an_earlier_version_is_read() {
    let (mut driver, _) = after_uncompleted(UNCOMPLETED[0].1);
    let mut state = driver.group.state().clone();
    let earlier = serde_json::json!({
        "count": 0, "last_source": "task", "last_started_at": null, "last_completed_at": null,
        "measured": true, "before": null, "streak": 0, "failed_at": driver.now.0,
    });
    state.compacting = serde_json::from_value(earlier).unwrap();
    let run = driver.group.run().cloned();
    for (passed_ms, ordered) in [(0, false), (599_999, false), (600_000, true), (-1, true)] {
        let mut driver = Driver::idle();
        driver.now.0 += passed_ms;
        let (state, run) = (state.clone(), run.clone());
        driver.group = Group::restore(state, Vec::new(), run, None, None, Vec::new());
        assert_eq!(orders_compaction(&mut driver), ordered, "after {passed_ms} ms");
    }
    let stored = serde_json::to_value(&driver.group.state().compacting).unwrap();
    assert!(stored.get("failed_at").is_none() && stored.get("rest").is_some(), "{stored}");
    driver.clear();
}
