//! Compactions that a caller or the group itself orders: DQ-3 to DQ-6, I12.

use greenroom_core::{
    CompactionStatus as C, Effect, Event, Exit, ExitReason, Fact, OutputSummary, Settings,
    SignalKind, Source, StopReason, Strategy, TaskId, TaskState as T, Timer, ToolProgress,
    ToolUpdate, Usage,
};
use greenroom_testing::driver::{Driver, acquired, blocks, kinds};

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
        let is_found = |fact: &Fact| match fact {
            Fact::TaskEnded { findings, .. } => findings.has_empty_answer,
            _ => false,
        };
        let found = step.facts.iter().any(is_found);
        assert_eq!(found, empty, "{name}");
    }
}
