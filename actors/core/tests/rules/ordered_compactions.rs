//! Compactions that a caller or the group itself orders, and their lock: DQ-3 to DQ-6, HL, I12.

use greenroom_core::{
    CompactionStatus as C, Effect, Event, Exit, ExitReason, Fact, LockAnswer, OutputSummary,
    Settings, SignalKind, Source, StopReason, Strategy, TaskId, TaskState as T, Timer,
    ToolProgress, ToolUpdate, Usage,
};
use greenroom_testing::driver::{Driver, acquired, blocks, busy, kinds};

fn code(code: &str) -> Option<String> {
    Some(code.to_owned())
}

/// Runs the automatic compaction to its end, which leaves `used` tokens in use.
fn compact_to(driver: &mut Driver, used: u64) {
    driver.lock(acquired());
    driver.grant();
    driver.signal(Source::Acp, SignalKind::Completed);
    driver.usage(used);
    driver.answer(StopReason::EndTurn);
}

/// DQ-3: a second request is rejected with the id of the compaction that waits or runs.
#[test]
fn a_second_compaction_request_is_rejected_until_the_first_ends() {
    let mut driver = Driver::idle();
    let first = driver.compact(Strategy::Command);
    let second = || {
        let work = greenroom_core::Work::Compaction {
            focus: None,
            prompt: blocks("/c"),
            strategy: Strategy::Rotate,
        };
        let id = TaskId(uuid::Uuid::from_u128(999));
        Event::Submitted(Box::new(greenroom_core::Task::new(id, work, greenroom_core::Origin::Api)))
    };
    let offer = |driver: &mut Driver| {
        let mut fresh = || uuid::Uuid::nil();
        driver.group.apply(second(), driver.moment(), &driver.settings, &mut fresh).map(|_| ())
    };
    let same = Err(greenroom_core::Rejected::AlreadyCompacting(first));
    assert_eq!(offer(&mut driver), same, "the first waits");
    driver.lock(acquired());
    driver.grant();
    assert_eq!(offer(&mut driver), same, "the first runs");
    driver.answer(StopReason::EndTurn);
    assert_eq!(offer(&mut driver), Ok(()), "the first ended");
}

/// DQ-4, DQ-5: the group queues it after the settlement and ahead of the waiting tasks.
#[test]
fn a_full_context_is_compacted_after_the_turn_and_before_the_next() {
    let mut driver = Driver::in_turn();
    let next = driver.queue_turn();
    driver.usage(80);
    let step = driver.answer(StopReason::EndTurn);
    let stated = ["turn_settled", "task_ended", "task_queued", "lock_asked"];
    assert_eq!(kinds(&step.facts), stated);
    let order: Vec<_> = driver.group.waiting().map(|task| task.id).collect();
    assert_eq!(order, [driver.ordered().unwrap(), next]);
}

/// DQ-4, DQ-6: the conditions under which the group orders one.
#[test]
fn a_settled_turn_over_the_threshold_orders_a_compaction() {
    type Action = fn(&mut Driver);
    #[rustfmt::skip]
    let cases: &[(&str, Action, bool)] = &[
        ("the window is unknown", |driver| { let usage = Some(Usage { used: 80, size: 0, cost: None }); driver.output(OutputSummary { usage, ..OutputSummary::default() }); driver.answer(StopReason::EndTurn); }, false),
        ("below",                 |driver| { driver.usage(79); driver.answer(StopReason::EndTurn); },                            false),
        ("at the threshold",      |driver| { driver.usage(80); driver.answer(StopReason::EndTurn); },                            true),
        ("no usage reported",     |driver| { driver.answer(StopReason::EndTurn); },                                            false),
        ("after a failure",       |driver| { driver.usage(80); driver.fail(-1); },                                               true),
        ("after a refusal",       |driver| { driver.usage(80); driver.answer(StopReason::Refusal); },                            true),
        ("turned off",            |driver| { driver.settings.auto_compact = 0.0; driver.usage(99); driver.answer(StopReason::EndTurn); }, false),
        ("no way to compact",     |driver| { driver.settings.compaction = None; driver.usage(99); driver.answer(StopReason::EndTurn); },  false),
        ("one already waits",     |driver| { driver.compact(Strategy::Rotate); driver.usage(99); driver.answer(StopReason::EndTurn); }, false),
        ("compacted in the turn", |driver| { driver.usage(99); driver.signal(Source::Acp, SignalKind::Completed); driver.answer(StopReason::EndTurn); }, false),
        ("and full again",        |driver| { driver.usage(99); driver.signal(Source::Acp, SignalKind::Completed); driver.usage(85); driver.answer(StopReason::EndTurn); }, true),
        ("deleted meanwhile",     |driver| { driver.usage(99); driver.apply(Event::Archived); driver.answer(StopReason::EndTurn); },    false),
    ];
    for (name, act, ordered) in cases {
        let mut driver = Driver::in_turn();
        act(&mut driver);
        assert_eq!(driver.ordered().is_some(), *ordered, "{name}");
    }
}

/// I12: two compactions that free less than a tenth stop automatic compaction, until one is
/// effective or a caller acts.
#[test]
fn two_ineffective_compactions_stop_automatic_compaction() {
    type Action = fn(&mut Driver);
    let none: Action = |_| {};
    let compacts: Action = |driver| {
        driver.compact(Strategy::Command);
        compact_to(driver, 85);
    };
    let changes: Action = |driver| {
        let settings = Settings { title: Some("new".into()), ..Settings::default() };
        driver.apply(Event::Configured(settings));
    };
    let effective: Action = |driver| {
        driver.turn();
        driver.signal(Source::Acp, SignalKind::Completed);
        driver.usage(40);
        driver.answer(StopReason::EndTurn);
    };
    let cases = [
        ("no action", none, false),
        ("a caller compacts", compacts, true),
        ("a caller changes the group", changes, true),
        ("a later one is effective", effective, true),
    ];
    for (name, act, ordered) in cases {
        let mut driver = Driver::idle();
        for number in 1..=2 {
            driver.run_turn_to(90);
            assert!(driver.ordered().is_some(), "{name}: {number} is ordered");
            compact_to(&mut driver, 82);
        }
        driver.run_turn_to(90);
        assert!(driver.ordered().is_none(), "{name}: a third is not");
        act(&mut driver);
        driver.run_turn_to(90);
        assert_eq!(driver.ordered().is_some(), ordered, "{name}");
    }
}

/// I12: a tenth is enough.
#[test]
fn an_effective_compaction_resets_the_ineffective_count() {
    let mut driver = Driver::idle();
    for used in [82, 81, 82, 20, 82] {
        driver.run_turn_to(90);
        assert!(driver.ordered().is_some(), "before {used}");
        compact_to(&mut driver, used);
    }
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
        assert!(matches!(state, T::Failed), "{name}: {state:?}");
        let opens = |effect: &Effect| matches!(effect, Effect::OpenSession { .. });
        assert!(!driver.effects.iter().any(opens), "{name}: {:?}", driver.effects);
        let error = driver.last_ended().unwrap().details.error.as_deref();
        let lost = "its lock was lost; the session is unchanged";
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

/// The signals of the agent decide the end of an ordered compaction.
#[test]
fn an_ordered_compaction_ends_as_its_detectors_report() {
    type Action = fn(&mut Driver);
    let none: Action = |_| {};
    let done: Action = |driver| drop(driver.signal(Source::Acp, SignalKind::Completed));
    let started: Action = |driver| drop(driver.signal(Source::Acp, SignalKind::Started));
    let failed: Action = |driver| drop(driver.signal(Source::Acp, SignalKind::Failed));
    let skipped: Action = |driver| drop(driver.signal(Source::HermesStderr, SignalKind::Skipped));
    let noop: Action = |driver| drop(driver.signal(Source::HermesStderr, SignalKind::Noop));
    let retried: Action = |driver| {
        driver.signal(Source::HermesStderr, SignalKind::Failed);
        driver.signal(Source::HermesStderr, SignalKind::Started);
        driver.signal(Source::HermesStderr, SignalKind::Completed);
    };
    let has_detectors: Action =
        |driver| *driver = Driver::compacting_in(Driver::listening(), Strategy::Command);
    let end = StopReason::EndTurn;
    let failure = || code("compaction_failed");
    #[rustfmt::skip]
    let cases = [
        ("shown done",               done,    end,                   T::Completed, None,      C::Completed),
        ("shown done, cancelled",    done,    StopReason::Cancelled, T::Completed, None,      C::Completed),
        ("nothing is ever shown",    none,      end,                   T::Completed, None,      C::Completed),
        ("it would have been shown", has_detectors, end,                   T::Skipped,   None,      C::Noop),
        ("shown started",            started,   end,                   T::Failed,    failure(), C::Abandoned),
        ("shown failed",             failed,  end,                   T::Failed,    failure(), C::Failed),
        ("skipped",                  skipped, end,                   T::Skipped,   None,      C::Skipped),
        ("no progress",              noop,    end,                   T::Skipped,   None,      C::Noop),
        ("cancelled",                none,      StopReason::Cancelled, T::Cancelled, None,      C::Cancelled),
        ("the second attempt",       retried,   end,                   T::Completed, None,      C::Completed),
    ];
    for (name, act, answer, state, error, status) in cases {
        let mut driver = Driver::compacting(Strategy::Command);
        act(&mut driver);
        let task = driver.group.current().unwrap().id;
        driver.answer(answer);
        assert_eq!(driver.ended(task), Some((state, error)), "{name}");
        let ended = driver.last_ended().unwrap();
        assert_eq!(ended.status, status, "{name}");
        let why = "the agent gave no reason; the session is unchanged";
        let why = (status == C::Failed).then_some(why);
        assert_eq!(ended.details.error.as_deref(), why, "DQ-12: {name}");
    }
}

/// AM-28: an ordered compaction is cancelled at its deadline, and the escalation follows.
#[test]
fn the_deadline_of_an_ordered_compaction_cancels_it() {
    let mut driver = Driver::compacting(Strategy::Command);
    let task = driver.group.current().unwrap().id;
    let step = driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
    assert_eq!(kinds(&step.facts), ["compaction_ended", "turn_cut", "cancel_sent"]);
    assert!(matches!(step.effects[..], [Effect::Cancel { .. }]), "{step:?}");
    driver.expire(|timer| matches!(timer, Timer::Cancel(_)));
    let exit = Exit::unseen(ExitReason::Stopped, "");
    driver.apply(Event::AgentExited { run: driver.run(), exit });
    assert_eq!(driver.ended(task).unwrap().0, T::Interrupted);
    assert_eq!((driver.count(), driver.segment()), (0, 1), "DQ-12: the session is unchanged");
}

/// A turn without text and tool calls completes, with a finding.
#[test]
fn an_empty_answer_is_a_finding() {
    type Action = fn(&mut Driver);
    let call: Action = |driver| {
        let step = ToolProgress::Called { tool: "x".into(), ended: None };
        let tools = vec![ToolUpdate { call: "1".into(), step }];
        driver.output(OutputSummary { has_output: true, tools, ..OutputSummary::default() });
    };
    let cases = [
        ("a tool call", call, false),
        ("no output", |_| {}, true),
        ("usage", |driver| drop(driver.usage(5)), true),
        ("text", |driver| drop(driver.say("hello")), false),
    ];
    for (name, act, empty) in cases {
        let mut driver = Driver::in_turn();
        act(&mut driver);
        let step = driver.answer(StopReason::EndTurn);
        let found = step
            .facts
            .iter()
            .any(|fact| matches!(fact, Fact::TaskEnded { has_empty_answer: true, .. }));
        assert_eq!(found, empty, "{name}");
    }
}
