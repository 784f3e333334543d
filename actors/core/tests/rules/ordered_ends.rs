//! How an ordered compaction ends, and what it leaves: its tokens, the group's usage, a doubt about
//! the next answer. RA, AM-28, DQ-5, I12.

use greenroom_core::{
    CompactionStatus as C, Event, ExitReason, Fact, LockAnswer, OutputSummary, SignalKind, Source,
    StopReason, Strategy, TaskState as T, Timer, ToolProgress, ToolUpdate, UsageAfter,
};
use greenroom_testing::driver::{Driver, acquired, signal};

type Action = fn(&mut Driver);

/// Returns a group that compacts, with `used` tokens of 100 in use before.
fn compacting_with(used: u64, strategy: Strategy) -> Driver {
    let mut driver = Driver::idle();
    driver.run_turn_to(used);
    Driver::compacting_in(driver, strategy)
}

/// Ends the running prompt, and returns how its task and its compaction ended.
fn end(driver: &mut Driver, answer: StopReason) -> (T, Option<String>, C) {
    let task = driver.group.current().unwrap().id;
    driver.answer(answer);
    let (state, error) = driver.ended(task).unwrap();
    (state, error, driver.last_ended().unwrap().status)
}

fn used(driver: &Driver) -> Option<u64> {
    driver.group.state().usage().map(|usage| usage.used)
}

/// Returns the tokens after the last completed compaction.
fn tokens_after(driver: &Driver) -> Option<u64> {
    let completed = driver.group.compactions().filter(|known| known.status == C::Completed);
    completed.last().unwrap().details.tokens_after
}

/// RA, DQ-12: an agent may obey a cancel with any stop reason. Only a context that became smaller,
/// or a detector, shows that the cancel came too late. No pause follows (HL-14).
#[test]
fn a_cancelled_command_ends_cancelled_unless_it_surely_compacted() {
    let listens: Action = |driver| {
        *driver = Driver::compacting_in(Driver::listening(), Strategy::Command);
    };
    #[rustfmt::skip]
    let cases: [(&str, Action, (T, C)); 8] = [
        ("no sign",              |_| {},                                                                  (T::Cancelled, C::Cancelled)),
        ("its start was seen",   |driver| drop(driver.signal(Source::Acp, SignalKind::Started)),          (T::Cancelled, C::Cancelled)),
        ("it would be reported", listens,                                                                 (T::Cancelled, C::Cancelled)),
        ("usage of zero",        |driver| drop(driver.usage(0)),                                          (T::Cancelled, C::Cancelled)),
        ("usage as before",      |driver| drop(driver.usage(50)),                                         (T::Cancelled, C::Cancelled)),
        ("some words",           |driver| drop(driver.say("stopped")),                                    (T::Cancelled, C::Cancelled)),
        ("usage fell",           |driver| drop(driver.usage(20)),                                         (T::Completed, C::Completed)),
        ("its end was seen",     |driver| drop(driver.signal(Source::Acp, SignalKind::Completed)),        (T::Completed, C::Completed)),
    ];
    for (name, act, expected) in cases {
        for answer in [StopReason::EndTurn, StopReason::MaxTokens, StopReason::Refusal] {
            let mut driver = compacting_with(50, Strategy::Command);
            act(&mut driver);
            let task = driver.group.current().unwrap().id;
            driver.apply(Event::CancelRequested(task));
            let (state, error, status) = end(&mut driver, answer);
            assert_eq!((state, status), expected, "{name}, {answer:?}");
            assert_eq!(error, None, "{name}, {answer:?}");
            let rests =
                driver.facts.iter().any(|fact| matches!(fact, Fact::CompactionRests { .. }));
            assert!(!rests, "{name}, {answer:?}");
        }
    }
}

/// AM-28, API-2: a compaction that its deadline or the shutdown cut is abandoned, and its task is
/// interrupted, with whatever word the agent obeys.
#[test]
fn a_compaction_that_is_cut_ends_as_an_interrupted_turn() {
    let attempt: Action = |driver| drop(driver.expire(|timer| matches!(timer, Timer::Attempt(_))));
    let compaction: Action =
        |driver| drop(driver.expire(|timer| matches!(timer, Timer::Compaction(_))));
    let shutdown: Action = |driver| drop(driver.apply(Event::DrainTimedOut));
    let cases = [
        ("attempt", attempt, "deadline", StopReason::Deadline),
        ("compaction", compaction, "deadline", StopReason::Deadline),
        ("shutdown", shutdown, "server_restarted", StopReason::ServerRestart),
    ];
    for strategy in [Strategy::Command, Strategy::Rotate] {
        for (name, cut, code, stop_reason) in cases {
            for answer in [StopReason::EndTurn, StopReason::Cancelled, StopReason::MaxTokens] {
                let mut driver = compacting_with(50, strategy);
                driver.say("so far");
                cut(&mut driver);
                let name = format!("{strategy:?}, {name}, {answer:?}");
                let expected = (T::Interrupted, Some(code.to_owned()), C::Abandoned);
                assert_eq!(end(&mut driver, answer), expected, "{name}");
                let settled = driver.facts.iter().find_map(|fact| match fact {
                    Fact::TurnSettled { stop_reason, .. } => Some(*stop_reason),
                    _ => None,
                });
                assert_eq!(settled, Some(stop_reason), "{name}");
                assert_eq!((driver.count(), driver.segment()), (0, 1), "{name}");
            }
        }
    }
}

/// I12, I16: a compaction whose run lost the context has nothing to compact. That says nothing
/// about what compactions free, and starts no pause.
#[test]
fn a_compaction_in_a_lost_context_counts_nothing() {
    let mut driver = Driver::idle();
    for _ in 0..2 {
        driver.run_turn_to(90);
        let task = driver.ordered().unwrap();
        driver.exit(ExitReason::Exited);
        driver.lock(acquired());
        driver.grant();
        driver.ready_lost("other");
        assert_eq!(driver.ended(task), Some((T::Skipped, None)));
        let ended = driver.last_ended().unwrap();
        assert_eq!((ended.status, ended.is_unstarted), (C::Noop, true));
        assert!(driver.group.lease().is_none(), "HL-7");
    }
    let rests = driver.facts.iter().any(|fact| matches!(fact, Fact::CompactionRests { .. }));
    assert!(!rests, "HL-14");
    driver.run_turn_to(90);
    assert!(driver.ordered().is_some(), "none of them was ineffective");
}

/// DQ-5, RA: the tokens after a compaction are those of the usage around its end: a report shortly
/// before it that fell, or the first one after it, also after the turn. The group's usage is that
/// of the new context, or unknown.
#[test]
fn usage_around_the_end_measures_a_compaction() {
    /// What it shows, what happens, `tokens_after`, and the tokens that the group then uses.
    type Case<'a> = (&'a str, &'a [Action], Option<u64>, Option<u64>);
    let done: Action = |driver| drop(driver.signal(Source::Acp, SignalKind::Completed));
    let settled: Action = |driver| drop(driver.answer(StopReason::EndTurn));
    let uses: [Action; 4] = [
        |driver| drop(driver.usage(0)),
        |driver| drop(driver.usage(20)),
        |driver| drop(driver.usage(30)),
        |driver| drop(driver.usage(50)),
    ];
    let [zero, twenty, thirty, fifty] = uses;
    let next: Action = |driver| {
        driver.turn();
    };
    let says: Action = |driver| {
        let mut completed = signal(Source::Acp, SignalKind::Completed, None, None);
        completed.details.tokens_after = Some(7);
        driver.report(completed);
    };
    #[rustfmt::skip]
    let cases: &[Case] = &[
        ("before the end",           &[twenty, done],                  Some(20), Some(20)),
        ("before and after it",      &[twenty, done, thirty, settled], Some(20), Some(30)),
        ("the old one before it",    &[fifty, done],                   None,     None),
        ("the old one, then a new",  &[fifty, done, twenty],           Some(20), Some(20)),
        ("after the end",            &[done, twenty, thirty, settled], Some(20), Some(30)),
        ("after the answer",         &[done, settled, twenty],         Some(20), Some(20)),
        ("in the next turn",         &[done, settled, next, thirty],   Some(30), Some(30)),
        ("zero is none",             &[zero, done, zero, twenty],      Some(20), Some(20)),
        ("the agent says it",        &[twenty, says, thirty],          Some(7),  Some(30)),
        ("and no usage",             &[says, settled],                 Some(7),  Some(7)),
        ("never",                    &[done, settled],                 None,     None),
        ("unseen, usage before",     &[twenty, settled],               Some(20), Some(20)),
        ("unseen, usage after",      &[settled, twenty],               Some(20), Some(20)),
    ];
    for (name, actions, after, in_use) in cases {
        let mut driver = compacting_with(50, Strategy::Command);
        actions.iter().for_each(|act| act(&mut driver));
        assert_eq!((tokens_after(&driver), used(&driver)), (*after, *in_use), "{name}");
    }
    let mut driver = Driver::idle();
    driver.run_turn_to(50);
    driver.turn();
    [done, twenty, settled].iter().for_each(|act| act(&mut driver));
    assert_eq!((tokens_after(&driver), used(&driver)), (Some(20), Some(20)), "by the agent itself");
}

/// DQ-5: the usage of the prompt that asks for a summary is not that of the session after it.
#[test]
fn a_rotation_is_measured_by_the_first_prompt_of_its_session() {
    let mut driver = compacting_with(50, Strategy::Rotate);
    driver.say("all of it");
    driver.usage(45);
    driver.answer(StopReason::EndTurn);
    driver.open_session(Ok("s2"));
    assert_eq!((tokens_after(&driver), used(&driver)), (None, None));
    driver.usage(46);
    assert_eq!(tokens_after(&driver), None, "a late word of the old session");
    driver.run_turn_to(10);
    assert_eq!((tokens_after(&driver), used(&driver)), (Some(10), Some(10)));
}

/// I13: a log of an earlier version says nothing of the usage after a compaction, and left it.
#[test]
fn a_compaction_of_an_earlier_version_leaves_the_usage() {
    let mut driver = compacting_with(50, Strategy::Command);
    driver.signal(Source::Acp, SignalKind::Completed);
    let ended = driver.last_ended().unwrap().clone();
    assert_eq!(ended.usage_after, Some(UsageAfter::Unknown));
    let mut earlier = serde_json::to_value(&ended).unwrap();
    assert!(earlier.as_object_mut().unwrap().remove("usage_after").is_some());
    let mut driver = compacting_with(50, Strategy::Command);
    let earlier = Box::new(serde_json::from_value(earlier).unwrap());
    driver.group.record(Fact::CompactionEnded(earlier), driver.now);
    assert_eq!(used(&driver), Some(50));
}

/// Whether the running turn, which ends well, has the finding.
fn is_answered_by_compaction(driver: &mut Driver) -> bool {
    driver.answer(StopReason::EndTurn);
    has_summary_finding(driver)
}

/// Whether the task that ended last has the finding.
fn has_summary_finding(driver: &Driver) -> bool {
    let ended = driver.facts.iter().rev().find_map(|fact| match fact {
        Fact::TaskEnded { findings, .. } => Some(*findings),
        _ => None,
    });
    ended.unwrap().is_answered_by_compaction
}

/// Calls a tool.
fn call(driver: &mut Driver) {
    let step = ToolProgress::Called { tool: "x".into(), ended: None };
    let tools = vec![ToolUpdate { call: "1".into(), step }];
    driver.output(OutputSummary { has_output: true, tools, ..OutputSummary::default() });
}

/// Writes a summary as gemini and qwen do.
fn snapshot(driver: &mut Driver) {
    driver.say("<state_snapshot>\nall");
    driver.say(" of it</state_snapshot>\n");
}

/// Writes a summary, which leaves a tenth less in use.
fn shrinks(driver: &mut Driver) {
    driver.say("## Goal");
    driver.usage(45);
}

/// RA: opencode completes a compaction that failed, was cancelled or killed in the next prompt, and
/// answers that with the summary. What surely shows it is a finding, and nothing else is.
#[test]
fn a_turn_whose_only_output_is_a_summary_is_a_finding() {
    let summary = |driver: &mut Driver| {
        let mut completed = signal(Source::Acp, SignalKind::Completed, None, None);
        completed.details.summary = Some("what was said".into());
        driver.report(completed);
    };
    let reported: Action = |driver| {
        driver.signal(Source::Acp, SignalKind::Completed);
        driver.say("42");
        driver.usage(20);
    };
    #[rustfmt::skip]
    let cases: &[(&str, Action, bool)] = &[
        ("an answer",                |driver| drop(driver.say("42")),               false),
        ("one of a snapshot",        snapshot,                                      true),
        ("a snapshot and a tool",    |driver| { snapshot(driver); call(driver) },   false),
        ("a snapshot and an answer", |driver| { snapshot(driver); driver.say("42"); }, false),
        ("the context shrank",       shrinks,                                       true),
        ("hardly",                   |driver| { driver.say("42"); driver.usage(46); },                                      false),
        ("it shrank, and a tool",    |driver| { shrinks(driver); call(driver) },    false),
        ("usage of zero",            |driver| { driver.say("42"); driver.usage(0); }, false),
        ("a compaction, reported",   |driver| drop(driver.signal(Source::Acp, SignalKind::Completed)), true),
        ("and an answer",            reported,                                      false),
    ];
    for (name, act, expected) in cases {
        for way in 0..3 {
            let mut driver = uncompleted(way);
            driver.turn();
            if driver.group.attempt().is_none() {
                driver.ready("s", None);
            }
            act(&mut driver);
            assert_eq!(is_answered_by_compaction(&mut driver), *expected, "{name}, {way}");
            driver.turn();
            act(&mut driver);
            assert!(!is_answered_by_compaction(&mut driver), "{name}, {way}: the next turn");
        }
    }
    let mut driver = uncompleted(0);
    driver.turn();
    driver.say("what was");
    summary(&mut driver);
    driver.say(" said");
    assert!(is_answered_by_compaction(&mut driver), "it is the summary that ACP reported");
    for strategy in [Strategy::Rotate, Strategy::Command] {
        let mut driver = compacting_with(50, strategy);
        driver.signal(Source::Acp, SignalKind::Completed);
        if strategy == Strategy::Rotate {
            driver = compacting_with(50, strategy);
            driver.fail(-1);
        } else {
            driver.answer(StopReason::EndTurn);
        }
        driver.turn();
        snapshot(&mut driver);
        let name = "no command of the agent's is unfinished";
        assert!(!is_answered_by_compaction(&mut driver), "{name}: {strategy:?}");
    }
}

/// RA: nor is a turn that did not end well, or one after a completed compaction or a lost context.
#[test]
fn only_the_next_turn_in_the_same_context_is_answered_by_a_compaction() {
    for stop_reason in [StopReason::MaxTokens, StopReason::Refusal, StopReason::Cancelled] {
        let mut driver = uncompleted(0);
        driver.turn();
        snapshot(&mut driver);
        driver.answer(stop_reason);
        assert!(!has_summary_finding(&driver), "a turn that did not end well: {stop_reason:?}");
    }
    let mut driver = uncompleted(0);
    driver.signal(Source::Acp, SignalKind::Completed);
    driver.turn();
    assert!(!is_answered_by_compaction(&mut driver), "it was completed between turns");
    let mut driver = uncompleted(2);
    driver.turn();
    driver.ready_lost("new");
    snapshot(&mut driver);
    assert!(!is_answered_by_compaction(&mut driver), "the context is another one");
}

/// Returns a group whose ordered compaction failed, was cancelled, or was killed. As opencode does,
/// the first two report a usage of zero; there were two of the cancelled ones.
fn uncompleted(way: u8) -> Driver {
    let mut driver = compacting_with(50, Strategy::Command);
    match way {
        0 => drop(driver.fail(-1)),
        1 => {
            for more in [true, false] {
                let task = driver.group.current().unwrap().id;
                driver.apply(Event::CancelRequested(task));
                driver.usage(0);
                driver.answer(StopReason::EndTurn);
                driver =
                    if more { Driver::compacting_in(driver, Strategy::Command) } else { driver };
            }
        }
        _ => drop(driver.exit(ExitReason::Exited)),
    }
    driver.clear();
    driver
}

/// DQ-11: a server that shuts down requests no lock, takes none and claims nothing, whatever
/// happens.
#[test]
fn a_draining_group_requests_no_lock() {
    let mut driver = Driver::idle();
    driver.compact(Strategy::Command);
    driver.lock(acquired());
    driver.settings.is_draining = true;
    driver.apply(Event::DrainStarted);
    assert_eq!((driver.group.lease(), driver.lock_requests()), (None, 1), "HL-7");
    driver.usage(50);
    driver.queue_turn();
    driver.grant();
    assert_eq!((driver.group.current(), driver.lock_requests()), (None, 1));
    for answer in [acquired(), LockAnswer::Busy { holder: "they".into() }] {
        let mut driver = Driver::idle();
        driver.compact(Strategy::Command);
        driver.settings.is_draining = true;
        driver.apply(Event::DrainStarted);
        driver.lock(answer.clone());
        driver.usage(50);
        let timers = driver.group.timers(&driver.settings.limits, driver.moment());
        let waits: Vec<_> = timers.map(|(timer, _)| timer).collect();
        for timer in waits.into_iter().filter(|timer| matches!(timer, Timer::Lock(..))) {
            driver.apply(Event::TimerFired(timer));
        }
        assert_eq!((driver.group.lease(), driver.lock_requests()), (None, 1), "{answer:?}");
    }
}
