//! The lock of an ordered compaction: when it starts, waits, is skipped, publishes: HL.

use greenroom_core::{
    CompactionStatus as C, Effect, Event, Exit, ExitReason, Fact, LockAnswer, SignalKind, Source,
    StopReason, Strategy, TaskId, TaskState as T, Timer,
};
use greenroom_testing::driver::{Driver, acquired, busy, kinds};

fn code(code: &str) -> Option<String> {
    Some(code.to_owned())
}

/// HL-2, HL-8, HL-9, HL-10: the answer to the lock request decides the task's end.
#[test]
fn a_compaction_starts_only_with_its_lock() {
    let absent = LockAnswer::Absent;
    let cases = [
        ("acquired", acquired(), true, None),
        ("busy", busy(), false, None),
        ("absent", absent, true, None),
        ("unknown", LockAnswer::Failed, false, code("lock_failed")),
    ];
    for (name, answer, starts, ended) in cases {
        let mut driver = Driver::idle();
        let task = driver.compact(Strategy::Command);
        assert!(!driver.group.wants_slot(), "{name}: no slot is wanted before the lock");
        driver.lock(answer);
        driver.grant();
        let started = driver.group.current().is_some_and(|current| current.id == task);
        assert_eq!(started, starts, "{name}");
        let skipped = ended.map(|code| (T::Skipped, Some(code)));
        assert_eq!(driver.ended(task), skipped, "{name}");
        let bypassed = driver.facts.iter().any(|fact| matches!(fact, Fact::LockBypassed { .. }));
        assert_eq!(bypassed, name == "absent", "I16: {name}");
        let count = driver.facts.iter().filter(|w| matches!(w, Fact::CompactionStarted(_))).count();
        assert_eq!(count, usize::from(starts), "{name}: the compactor is called only with a lock");
    }
}

/// HL-8: a missing lock table is bypassed once; the next compaction requests the lock again.
#[test]
fn a_lock_bypass_lasts_for_one_compaction() {
    let mut driver = Driver::idle();
    for number in 1..=2 {
        driver.compact(Strategy::Command);
        assert_eq!(driver.lock_requests(), number);
        driver.lock(LockAnswer::Absent);
        driver.grant();
        let step = driver.answer(StopReason::EndTurn);
        assert_eq!(driver.count(), number as u64);
        assert!(!kinds(&step.facts).contains(&"lock_released"), "{step:?}");
    }
}

/// HL-2: a compaction waits for a busy lock as long as a compaction may take, and no longer.
#[test]
fn a_compaction_waits_for_a_busy_lock_until_its_deadline() {
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    let turn = driver.queue_turn();
    for number in 1..=4 {
        assert_eq!((driver.lock_requests(), driver.ended(task)), (number, None));
        assert_eq!(driver.group.blocked_by(), Some(greenroom_core::Blocked::Lock), "HL-13");
        let step = driver.lock(busy());
        if number < 4 {
            let is_repeated = number > 1;
            let refused = |fact: &Fact| match fact {
                Fact::LockRefused { again, .. } => *again == is_repeated,
                _ => false,
            };
            assert!(refused(&step.facts[0]), "{number}: {step:?}");
            driver.expire(|timer| matches!(timer, Timer::Lock(..)));
        }
    }
    assert_eq!(
        driver.ended(task),
        Some((T::Skipped, code("lock_held"))),
        "3,000 ms after the first request"
    );
    assert_eq!(driver.last_ended().unwrap().status, C::Skipped);
    driver.grant();
    assert_eq!(driver.group.current().map(|task| task.id), Some(turn));
}

/// HL-2, HL-14, I12: a compaction that the group ordered by itself does not wait for a busy lock:
/// the turns after it start at once, and the group shows why it compacts no more.
#[test]
fn an_automatic_compaction_steps_back_from_a_busy_lock() {
    let mut driver = Driver::idle();
    driver.run_turn_to(90);
    let (task, turn) = (driver.ordered().unwrap(), driver.queue_turn());
    driver.lock(busy());
    assert_eq!(driver.ended(task), Some((T::Skipped, code("lock_held"))));
    driver.grant();
    assert_eq!(driver.group.current().map(|task| task.id), Some(turn));
    let shown = |driver: &Driver| {
        let pause = driver.group.state().compacting.pause(driver.moment());
        pause.map(|(due, lock_held)| (due.ms, lock_held))
    };
    assert_eq!(shown(&driver), Some((600_000, true)));
    driver.up_ms += 600_000;
    assert_eq!(shown(&driver), None);
}

/// HL-2: several timers may fire at once, and a pause can make one void.
#[test]
fn a_refused_lock_is_requested_again_only_by_its_own_timer() {
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    driver.lock(busy());
    let fire = |driver: &mut Driver, timer| kinds(&driver.apply(Event::TimerFired(timer)).facts);
    let other = TaskId(uuid::Uuid::nil());
    for stale in [Timer::Lock(task, 2), Timer::Lock(other, 1)] {
        assert!(fire(&mut driver, stale).is_empty(), "{stale:?}");
    }
    driver.apply(Event::Paused);
    assert!(fire(&mut driver, Timer::Lock(task, 1)).is_empty(), "the group is paused");
    driver.apply(Event::Resumed);
    assert_eq!(fire(&mut driver, Timer::Lock(task, 1)), ["lock_asked"]);
}

/// HL-10: the earlier holder of the lock did the work.
#[test]
fn a_session_compacted_by_another_holder_is_not_compacted_again() {
    let mut driver = Driver::idle();
    let task = driver.compact(Strategy::Command);
    driver.lock(busy());
    driver.signal(Source::Acp, SignalKind::Completed);
    driver.expire(|timer| matches!(timer, Timer::Lock(..)));
    driver.lock(acquired());
    assert_eq!(driver.ended(task), Some((T::Skipped, code("already_compacted"))));
    assert_eq!((driver.count(), driver.group.lease()), (1, None), "HL-7");
}

/// Returns a group whose agent starts, for a turn that was cancelled meanwhile.
fn starting() -> Driver {
    let mut driver = Driver::idle();
    driver.exit(ExitReason::Exited);
    let turn = driver.turn();
    driver.apply(Event::CancelRequested(turn));
    driver.clear();
    driver
}

/// HL-10: a new session does not mean that it was compacted; it needs its own lock.
#[test]
fn a_new_session_needs_a_new_lock() {
    let mut driver = starting();
    let task = driver.compact(Strategy::Command);
    let (_, first) = driver.requested_lock().unwrap();
    driver.ready("other", None);
    let step = driver.lock(acquired());
    assert_eq!(kinds(&step.facts), ["lock_taken", "lock_released", "lock_asked"]);
    let released =
        matches!(&step.facts[1], Fact::LockReleased { key, fences: false, .. } if *key == first);
    assert!(released, "{step:?}");
    let (requester, second) = driver.requested_lock().unwrap();
    assert_eq!((requester, &*second.0), (task, "other"));
    driver.lock(acquired());
    driver.grant();
    assert_eq!(driver.group.lease().unwrap().0, &second);
}

#[test]
fn a_lock_acquired_too_late_is_released() {
    let mut driver = starting();
    let task = driver.compact(Strategy::Command);
    let key = driver.requested_lock().unwrap().1;
    driver.apply(Event::CancelRequested(task));
    driver.ready("other", None);
    let step = driver.lock(acquired());
    let (holder, token) = ("we".to_owned(), 7);
    assert_eq!(step.effects, [Effect::ReleaseLock { key, holder, token }], "the requested lock");
}

/// HL-2: the lock is lost before its use.
#[test]
fn a_compaction_that_lost_its_lock_does_not_start() {
    for claimed in [false, true] {
        let mut driver = Driver::idle();
        if claimed {
            let exit = Exit::unseen(ExitReason::Exited, "");
            driver.apply(Event::AgentExited { run: driver.run(), exit });
        }
        let task = driver.compact(Strategy::Command);
        driver.lock(acquired());
        if claimed {
            driver.grant();
        }
        driver.apply(Event::LockLost { task });
        assert_eq!(driver.ended(task), Some((T::Skipped, code("lock_lost"))), "{claimed}");
        if claimed {
            let step = driver.ready("s", None);
            assert!(!step.effects.iter().any(|e| matches!(e, Effect::Prompt { .. })), "{step:?}");
        }
    }
}

/// HL-11: without its lock a compaction publishes nothing, whichever detector reports its
/// completion.
#[test]
fn a_compaction_that_lost_its_lock_publishes_nothing() {
    type Ends = fn(&mut Driver);
    let seen: Ends = |driver| {
        for source in [Source::HermesStderr, Source::HermesMeta, Source::Acp] {
            driver.signal(source, SignalKind::Completed);
        }
        driver.answer(StopReason::EndTurn);
    };
    let unseen: Ends = |driver| {
        driver.answer(StopReason::EndTurn);
    };
    let opened: Ends = |driver| {
        driver.say("all of it");
        driver.answer(StopReason::EndTurn);
        driver.open_session(Ok("s2"));
    };
    let late: Ends = |driver| {
        driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
        driver.signal(Source::Acp, SignalKind::Completed);
        driver.answer(StopReason::EndTurn);
    };
    let cases = [
        ("seen", Strategy::Command, seen),
        ("unseen", Strategy::Command, unseen),
        ("rotated", Strategy::Rotate, opened),
        ("after its deadline", Strategy::Command, late),
    ];
    for (name, strategy, ends) in cases {
        let mut driver = Driver::compacting(strategy);
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::LockLost { task });
        ends(&mut driver);
        assert_eq!((driver.count(), driver.segment()), (0, 1), "{name}");
        let (state, _) = driver.ended(task).unwrap();
        let is_cut = name == "after its deadline";
        assert_eq!(state, if is_cut { T::Interrupted } else { T::Failed }, "{name}");
        let opens = |effect: &Effect| matches!(effect, Effect::OpenSession { .. });
        assert!(!driver.effects.iter().any(opens), "{name}: {:?}", driver.effects);
        let error = driver.last_ended().unwrap().details.error.as_deref();
        let lost = "greenroom lost the lock; the session is unchanged";
        assert_eq!(error, (name != "after its deadline").then_some(lost), "{name}");
    }
}

/// HL-7, HL-11: with its lock a compaction publishes and releases the lock in one step.
#[test]
fn publication_and_lock_release_are_one_step() {
    let mut driver = Driver::compacting(Strategy::Command);
    let step = driver.signal(Source::Acp, SignalKind::Completed);
    let stated = ["compaction_ended", "segment_ended", "segment_started", "lock_released"];
    assert_eq!(kinds(&step.facts), stated);
    assert!(matches!(step.facts[3], Fact::LockReleased { fences: true, .. }));
    let step = driver.answer(StopReason::EndTurn);
    assert_eq!(kinds(&step.facts), ["turn_settled", "task_ended"]);
}

/// HL-7: each end of a compaction releases its lock.
#[test]
fn a_lock_is_released_on_every_way_out() {
    type Ends = fn(&mut Driver);
    let ends: [(&str, Ends); 8] = [
        ("success", |driver| drop(driver.answer(StopReason::EndTurn))),
        ("failure", |driver| drop(driver.fail(-1))),
        ("abort", |driver| {
            driver.signal(Source::HermesStderr, SignalKind::Failed);
            driver.answer(StopReason::EndTurn);
        }),
        ("cancel", |driver| drop(driver.answer(StopReason::Cancelled))),
        ("death", |driver| {
            let exit = Exit::unseen(ExitReason::Exited, "");
            driver.apply(Event::AgentExited { run: driver.run(), exit });
        }),
        ("deadline", |driver| {
            driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
            driver.answer(StopReason::Cancelled);
        }),
        ("nothing done", |driver| {
            driver.signal(Source::HermesStderr, SignalKind::Noop);
            driver.answer(StopReason::EndTurn);
        }),
        ("skipped by the agent", |driver| {
            driver.signal(Source::HermesStderr, SignalKind::Skipped);
            driver.answer(StopReason::EndTurn);
        }),
    ];
    for (name, end) in ends {
        let mut driver = Driver::compacting(Strategy::Command);
        assert!(driver.group.lease().is_some());
        end(&mut driver);
        let released =
            driver.facts.iter().filter(|w| matches!(w, Fact::LockReleased { .. })).count();
        assert_eq!((released, driver.group.lease(), driver.active()), (1, None, false), "{name}");
    }
}

/// A paused group and one that shuts down leave the lock to others.
#[test]
fn pause_and_shutdown_release_an_unused_lock() {
    let mut driver = Driver::idle();
    driver.compact(Strategy::Command);
    driver.lock(acquired());
    driver.apply(Event::Paused);
    assert_eq!((driver.group.lease(), driver.lock_requests()), (None, 1));
    driver.apply(Event::Resumed);
    assert_eq!(driver.lock_requests(), 2);
    driver.lock(acquired());
    driver.apply(Event::DrainTimedOut);
    assert_eq!(
        (driver.group.lease(), driver.lock_requests()),
        (None, 2),
        "DQ-11: no task is claimed any more"
    );
}
