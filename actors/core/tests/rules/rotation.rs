//! Compaction by a summary and another session, and a wedged agent: I4, I7, I16.

use greenroom_core::{
    CompactionStatus as C, Effect, Event, Exit, ExitReason, Fact, OutputSummary, PromptReply,
    SessionId, SignalKind, Source, Stop, StopReason, Strategy, TaskState as T, Timer, Usage,
};
use greenroom_testing::driver::{Driver, acquired, blocks, kinds};

fn rotated() -> Driver {
    rotated_in(Driver::idle())
}

fn rotated_in(driver: Driver) -> Driver {
    let mut driver = Driver::compacting_in(driver, Strategy::Rotate);
    driver.say("all of it");
    driver.answer(StopReason::EndTurn);
    driver.open_session(Ok("s2"));
    driver.clear();
    driver
}

/// Returns the blocks of the last prompt, and its session.
fn sent(driver: &Driver) -> (Vec<serde_json::Value>, SessionId) {
    let sent = driver.facts.iter().rev().find_map(|fact| match fact {
        Fact::PromptSent { prompt, session, .. } => Some((prompt.as_str(), session.clone())),
        _ => None,
    });
    let (prompt, session) = sent.unwrap();
    (serde_json::from_str(prompt).unwrap(), session)
}

fn carries_summary(driver: &Driver) -> bool {
    let (blocks, _) = sent(driver);
    assert_eq!(
        blocks.last().unwrap()["text"],
        "do it",
        "AM-2: the caller's prompt follows the summary"
    );
    let carries = blocks.len() == 2 && blocks[0]["text"].as_str().unwrap().contains("all of it");
    assert!(carries || blocks.len() == 1, "{blocks:?}");
    carries
}

#[test]
fn the_summary_opens_a_session_and_precedes_the_next_prompt() {
    let mut driver = Driver::compacting(Strategy::Rotate);
    let task = driver.group.current().unwrap().id;
    driver.say("all ");
    driver.say("of it");
    let step = driver.answer(StopReason::EndTurn);
    assert_eq!(kinds(&step.facts), ["summary_given"]);
    assert!(matches!(step.effects[..], [Effect::OpenSession { .. }]), "{step:?}");
    assert!(driver.active() && driver.group.attempt().is_some());
    let step = driver.open_session(Ok("s2"));
    #[rustfmt::skip]
    let stated = [
        "compaction_ended", "segment_ended", "segment_started", "lock_released", "turn_settled",
        "task_ended",
    ];
    assert_eq!(kinds(&step.facts), stated);
    assert_eq!(driver.ended(task), Some((T::Completed, None)));
    assert_eq!((driver.count(), driver.segment()), (1, 2));
    let ended = driver.last_ended().unwrap();
    assert_eq!(
        (ended.details.summary.as_deref(), ended.carries_summary),
        (Some("all of it"), true)
    );

    driver.clear();
    let turn = driver.turn();
    assert!(carries_summary(&driver));
    assert_eq!(&*sent(&driver).1.0, "s2");
    let shown = driver.facts.iter().find_map(|fact| match fact {
        Fact::TurnStarted { task, prompt, .. } if *task == turn => Some(prompt.clone()),
        _ => None,
    });
    assert_eq!(shown, Some(blocks("do it")), "AM-2: the caller's prompt");
}

/// I13, AM-13: the text of another session than the one that was prompted last is stored apart,
/// until the agent has moved there.
#[test]
fn output_counts_for_the_prompted_session() {
    let counted = |driver: &Driver| -> String {
        let text = |fact: &Fact| match fact {
            Fact::AgentOutput(output) => Some(output.summary.text.clone()),
            _ => None,
        };
        driver.facts.iter().filter_map(text).collect()
    };
    let mut driver = Driver::in_turn();
    driver.say_in("other", "no");
    driver.say_in("s", "yes");
    driver.say_in("moved", "no");
    driver.answer(StopReason::EndTurn);
    driver.say_in("s", "no");
    driver.say_in("moved", ", too");
    assert_eq!(counted(&driver), "yes, too");

    let mut driver = rotated();
    driver.say_in("s", "not prompted");
    driver.say_in("s2", "no");
    driver.turn();
    driver.say_in("s", "no");
    driver.say_in("s2", ", prompted");
    assert_eq!(counted(&driver), "not prompted, prompted");
}

/// AM-13: after a rotation the usage is that of the next session, or unknown: the one before may
/// still report its own.
#[test]
fn a_session_that_was_left_reports_no_usage_of_the_group() {
    let report = |driver: &mut Driver, session: &str, used| {
        let usage = Some(Usage { used, size: 100, cost: None });
        let summary = OutputSummary { usage, ..OutputSummary::default() };
        driver.output_in(Some(SessionId(session.into())), summary);
        driver.group.state().usage().map(|usage| usage.used)
    };
    let mut driver = rotated();
    assert_eq!(driver.group.state().usage(), None);
    assert_eq!(report(&mut driver, "s", 90), None);
    driver.turn();
    assert_eq!(report(&mut driver, "s", 90), None);
    assert_eq!(report(&mut driver, "s2", 10), Some(10));
}

/// I7, I16: each prompt carries the summary until a turn has output.
#[test]
fn the_summary_is_carried_until_the_agent_has_output() {
    type Ends = fn(&mut Driver);
    let died: Ends = |driver| {
        let exit = Exit::unseen(ExitReason::Exited, "");
        driver.apply(Event::AgentExited { run: driver.run(), exit });
        driver.queue_turn();
        driver.grant();
        let step = driver.ready_lost("s3");
        assert!(
            !kinds(&step.facts).contains(&"context_lost"),
            "no further context is lost: {step:?}"
        );
    };
    let failed: Ends = |driver| {
        driver.fail(-1);
        driver.turn();
    };
    let silent: Ends = |driver| {
        driver.answer(StopReason::EndTurn);
        driver.turn();
    };
    let answered: Ends = |driver| {
        driver.say("so");
        driver.answer(StopReason::EndTurn);
        driver.turn();
    };
    let answered_and_failed: Ends = |driver| {
        driver.say("so");
        driver.fail(-1);
        driver.turn();
    };
    let cases = [
        ("died", died, true),
        ("failed", failed, true),
        ("silent", silent, true),
        ("had output", answered, false),
        ("had output and failed", answered_and_failed, false),
    ];
    for (name, end, carried) in cases {
        let mut driver = rotated();
        driver.turn();
        assert!(carries_summary(&driver), "{name}");
        end(&mut driver);
        assert_eq!(carries_summary(&driver), carried, "{name}");
    }
}

/// Answers with the summary, so that the agent is asked to open the other session.
fn summarize(driver: &mut Driver) {
    driver.say("all");
    driver.answer(StopReason::EndTurn);
}

/// If any step fails, the old session stays.
#[test]
fn a_failed_rotation_keeps_the_session() {
    type Ends = fn(&mut Driver);
    let cases: [(&str, Ends, T, C); 9] = [
        ("no summary", |driver| drop(driver.answer(StopReason::EndTurn)), T::Failed, C::Failed),
        (
            "refused",
            |driver| {
                driver.say("no");
                driver.answer(StopReason::Refusal);
            },
            T::Failed,
            C::Failed,
        ),
        ("error", |driver| drop(driver.fail(-1)), T::Failed, C::Failed),
        (
            "no session",
            |driver| {
                summarize(driver);
                driver.open_session(Err("too many"));
            },
            T::Failed,
            C::Failed,
        ),
        (
            "died while opening",
            |driver| {
                summarize(driver);
                let exit = Exit::unseen(ExitReason::Exited, "");
                driver.apply(Event::AgentExited { run: driver.run(), exit });
            },
            T::Interrupted,
            C::Abandoned,
        ),
        (
            "deadline while opening",
            |driver| {
                summarize(driver);
                let step = driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
                assert!(step.effects.is_empty(), "no prompt is in flight: {step:?}");
            },
            T::Interrupted,
            C::Abandoned,
        ),
        (
            "cancelled while opening",
            |driver| {
                summarize(driver);
                let task = driver.group.current().unwrap().id;
                let step = driver.apply(Event::CancelRequested(task));
                assert!(step.effects.is_empty(), "no prompt is in flight: {step:?}");
            },
            T::Cancelled,
            C::Cancelled,
        ),
        (
            "cancelled before its summary",
            |driver| {
                let task = driver.group.current().unwrap().id;
                driver.say("all");
                driver.apply(Event::CancelRequested(task));
                let step = driver.answer(StopReason::EndTurn);
                assert!(step.effects.is_empty(), "no other session is opened: {step:?}");
            },
            T::Cancelled,
            C::Cancelled,
        ),
        (
            "cancelled",
            |driver| drop(driver.answer(StopReason::Cancelled)),
            T::Cancelled,
            C::Cancelled,
        ),
    ];
    for (name, end, state, status) in cases {
        let mut driver = Driver::compacting(Strategy::Rotate);
        let task = driver.group.current().unwrap().id;
        end(&mut driver);
        assert_eq!(driver.ended(task).unwrap().0, state, "{name}");
        let ended = driver.last_ended().unwrap();
        assert_eq!(ended.status, status, "{name}");
        let error = ended.details.error.as_deref();
        let is_silent = error == Some("the agent gave no summary; the session is unchanged");
        assert_eq!(is_silent, ["no summary", "refused"].contains(&name), "{name}: {error:?}");
        assert_session_is_kept(driver, name);
    }
}

/// Checks that no rotation took place, and that a late answer changes nothing.
#[track_caller]
fn assert_session_is_kept(mut driver: Driver, name: &str) {
    let state = driver.group.state();
    let session = state.session_id().map(|session| &*session.0);
    assert_eq!((session, state.segment, state.compacting.count), (Some("s"), 1, 0), "{name}");
    assert_eq!((&state.pending_summary, driver.group.lease()), (&None, None), "{name}");
    if driver.group.run().is_some() {
        driver.open_session(Ok("late"));
        driver.clear();
        driver.turn();
        assert_eq!(&*sent(&driver).1.0, "s", "{name}");
    }
}

/// The agent compacts by itself while it opens the other session, which is then not needed.
#[test]
fn a_completion_while_a_session_opens_ends_the_task() {
    let mut driver = Driver::compacting(Strategy::Rotate);
    let task = driver.group.current().unwrap().id;
    summarize(&mut driver);
    driver.signal(Source::Acp, SignalKind::Completed);
    driver.open_session(Ok("s2"));
    assert_eq!(driver.ended(task), Some((T::Completed, None)));
    let state = driver.group.state();
    assert_eq!((state.compacting.count, state.segment, &state.pending_summary), (1, 2, &None));
    assert_eq!(state.session_id(), Some(&SessionId("s".into())));
}

/// AM-2: a command to compact is sent as it is, also if no turn has carried the summary yet.
#[test]
fn a_compaction_carries_no_summary() {
    let mut driver = rotated();
    driver.turn();
    driver.fail(-1);
    driver.compact(Strategy::Command);
    driver.lock(acquired());
    driver.grant();
    assert_eq!(driver.group.state().pending_summary.as_deref(), Some("all of it"));
    let (blocks, _) = sent(&driver);
    assert_eq!((blocks.len(), &blocks[0]["text"]), (1, &"/compact".into()));
}

/// A session that holds only a summary is not summarized again.
#[test]
fn a_session_that_holds_only_a_summary_is_not_rotated() {
    let mut driver = rotated();
    let task = driver.compact(Strategy::Rotate);
    driver.grant();
    assert_eq!((driver.ended(task), driver.lock_requests()), (Some((T::Skipped, None)), 0));
    assert_eq!(driver.last_ended().unwrap().status, C::Noop);
}

/// An agent is wedged after a cancel: each of the two signs counts only after a cancel, and only of
/// an agent with more detectors than ACP.
#[test]
fn a_wedged_agent_is_restarted() {
    type Action = fn(&mut Driver);
    let error: Action = |driver| drop(driver.fail(-32603));
    let queued: Action = |driver| {
        driver.say("I will do it later");
        driver.reply(PromptReply::Queued { tokens: None });
    };
    let other_error: Action = |driver| drop(driver.fail(-32602));
    let after_output: Action = |driver| {
        driver.say("so");
        driver.fail(-32603);
    };
    let answer: Action = |driver| {
        driver.say("I will do it later");
        driver.answer(StopReason::EndTurn);
    };
    let cases = [
        ("error", error, true),
        ("queued", queued, true),
        ("another error", other_error, false),
        ("after output", after_output, false),
        ("an answer", answer, false),
    ];
    for (listens, cancelled) in [(true, false), (true, true), (false, true)] {
        for (name, act, wedges) in cases {
            let mut driver = if listens { Driver::listening() } else { Driver::idle() };
            driver.turn();
            driver.clear();
            if cancelled {
                let task = driver.group.current().unwrap().id;
                driver.apply(Event::CancelRequested(task));
            }
            driver.answer(StopReason::Cancelled);
            let task = driver.turn();
            driver.clear();
            act(&mut driver);
            let stated = kinds(&driver.facts).contains(&"agent_wedged");
            assert_eq!(stated, wedges && cancelled && listens, "{name}, {cancelled}, {listens}");
            let stops = |effect: &Effect| matches!(effect, Effect::Stop { how: Stop::Gently, .. });
            assert_eq!(driver.effects.iter().any(stops), stated, "{name}, {cancelled}");
            let ended = driver.ended(task).map(|(state, _)| state);
            let exit = driver.exit(ExitReason::Stopped).facts;
            let says_so = |fact: &Fact| match fact {
                Fact::RunExited { exit, .. } => exit.detail.starts_with("it was wedged by a"),
                _ => false,
            };
            assert_eq!(exit.iter().any(says_so), stated, "{name}, {cancelled}");
            if stated {
                assert_eq!(ended, Some(T::Failed), "{name}");
            } else if name == "queued" {
                assert_eq!(ended, Some(T::Completed), "as any answer");
            }
        }
    }
}

/// A prompt that the server withheld proves nothing: the agent never got it, and may still be
/// wedged.
#[test]
fn a_withheld_prompt_does_not_prove_that_the_agent_survived_its_cancel() {
    let mut driver = Driver::listening();
    driver.turn();
    let task = driver.group.current().unwrap().id;
    driver.apply(Event::CancelRequested(task));
    driver.answer(StopReason::Cancelled);
    driver.turn();
    let id = driver.group.attempt().unwrap().prompt_id;
    driver.apply(Event::PromptWithheld { run: driver.run(), id });
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    driver.grant();
    driver.fail(-32603);
    assert!(kinds(&driver.facts).contains(&"agent_wedged"));
}

/// AM-13: a detector may report a rotation late; the agent's late output of the session that it
/// left still is no change of session.
#[test]
fn a_late_report_of_a_rotation_changes_no_session() {
    let mut driver = rotated();
    let late = driver.signal(Source::HermesStderr, SignalKind::Completed);
    assert_eq!(kinds(&late.facts), ["stderr", "compaction_updated"]);
    driver.turn();
    driver.say_in("s", "late");
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.group.state().session_id(), Some(&SessionId("s2".into())));
}

/// Output of a wedged agent is no summary, and no sign that it read one.
#[test]
fn output_of_a_wedged_agent_is_no_summary() {
    let queued = |driver: &mut Driver| {
        driver.say("I will do it later");
        driver.reply(PromptReply::Queued { tokens: None });
    };
    let cancel = |driver: &mut Driver| {
        let task = driver.turn();
        driver.apply(Event::CancelRequested(task));
        driver.answer(StopReason::Cancelled);
    };
    let mut driver = Driver::listening();
    cancel(&mut driver);
    let task = driver.compact(Strategy::Rotate);
    driver.lock(acquired());
    driver.grant();
    queued(&mut driver);
    assert_eq!(driver.ended(task).map(|(state, _)| state), Some(T::Failed));
    assert!(kinds(&driver.facts).contains(&"agent_wedged"));

    let mut driver = rotated_in(Driver::listening());
    cancel(&mut driver);
    driver.turn();
    queued(&mut driver);
    assert!(kinds(&driver.facts).contains(&"agent_wedged"));
    assert_eq!(driver.group.state().pending_summary.as_deref(), Some("all of it"), "I16");
}
