//! Output of other sessions, and the moves of an agent to one: AM-13, I7.

use greenroom_core::{
    CompactionStatus, Effect, Event, Group, KNOWN_SESSIONS_MAX, OutputSummary, RetryPolicy,
    SignalKind, Source, StopReason, Strategy, TaskState, ToolProgress, ToolUpdate,
};
use greenroom_testing::driver::{Driver, kinds};

/// AM-13: a session that greenroom opens or left, that of a subagent, and one that speaks while no
/// turn runs are no move of the agent. Their output is a sign that it acted, and no answer.
#[test]
fn output_of_another_session_does_not_move_the_group() {
    let mut driver = Driver::compacting(Strategy::Rotate);
    driver.settings.retry = RetryPolicy::NoOutput;
    driver.say("all of it");
    driver.answer(StopReason::EndTurn);
    driver.say_in("s2", "greenroom is opening the session");
    driver.open_session(Ok("s2"));
    assert_eq!(driver.segment(), 2);
    driver.say_in("background", "while idle");
    let turn = driver.turn();
    driver.say_in("s", "a late word, or the agent's answer");
    driver.fail(-32603);
    assert_eq!(driver.ended(turn).map(|(state, _)| state), Some(TaskState::Failed), "I7");
    let pending = driver.group.state().pending_summary.as_deref();
    assert_eq!(pending, Some("all of it"), "I16: the new session got nothing for sure");
    driver.turn();
    driver.say_in("s", "a late word");
    driver.answer(StopReason::EndTurn);
    let turn = driver.turn();
    driver.say_in("s2", "I delegate. ");
    driver.say_in("child", "thinks");
    driver.say_in("s2", "The answer is 42.");
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.segment(), 2);
    assert_eq!(driver.answer_text(turn).unwrap(), "I delegate. The answer is 42.");
}

/// AM-13, I7: the agent has moved if it ends its turn in another session; its answer continues
/// there. The output is a sign that it acted.
#[test]
fn the_agent_moves_at_the_end_of_the_turn() {
    let mut driver = Driver::in_turn();
    driver.say_in("s", "one, ");
    driver.say_in("other", "two");
    let turn = driver.group.current().unwrap().id;
    let step = driver.answer(StopReason::EndTurn);
    let expected = ["segment_ended", "segment_started", "turn_settled", "task_ended"];
    assert_eq!(kinds(&step.facts), expected);
    let follows = |effect: &Effect| match effect {
        Effect::FollowSession { session, .. } => &*session.0 == "other",
        _ => false,
    };
    assert!(step.effects.iter().any(follows), "its compactions count from here on: {step:?}");
    assert_eq!(driver.answer_text(turn).unwrap(), "one, two");
    let turn = driver.turn();
    driver.say_in("other", "three, ");
    driver.say_in("s", "late, ");
    driver.say_in("other", "four");
    driver.answer(StopReason::EndTurn);
    assert_eq!((driver.answer_text(turn).unwrap().as_str(), driver.segment()), ("three, four", 2));
    let turn = driver.turn();
    driver.say_in("third", "only there");
    driver.fail(-32603);
    assert_eq!(driver.ended(turn).map(|(state, _)| state), Some(TaskState::Failed));
    assert_eq!(driver.segment(), 2, "an error shows no move");
    let turn = driver.turn();
    driver.say_in("third", "only there");
    driver.apply(Event::CancelRequested(turn));
    driver.answer(StopReason::Cancelled);
    assert_eq!(driver.segment(), 2, "nor does a turn that was cut");
    driver.turn();
    let step = ToolProgress::Called { tool: "task".into(), ended: None };
    let tools = vec![ToolUpdate { call: "1".into(), step }];
    driver.output(OutputSummary { has_output: true, tools, ..OutputSummary::default() });
    driver.say_in("third", "a subagent");
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.segment(), 2, "nor a session that may be an open tool's");
}

/// AM-13, AM-22: a compaction by the agent's command that continues in another session rotates
/// once, to that session. If it freed nothing, the agent moved all the same. A detector's report
/// before the end rotates at once, and the move after it.
#[test]
fn a_command_that_compacts_into_another_session_rotates_once() {
    #[rustfmt::skip]
    let cases = [
        ("unseen",   Some(20), &["compaction_ended", "segment_ended", "segment_started", "lock_released"][..], CompactionStatus::Completed),
        ("in vain",  Some(60), &["compaction_ended", "segment_ended", "segment_started"][..],                  CompactionStatus::Noop),
        ("no usage", None,     &["compaction_ended", "segment_ended", "segment_started", "lock_released"][..], CompactionStatus::Completed),
    ];
    for (name, used, expected, status) in cases {
        let mut driver = Driver::idle();
        driver.run_turn_to(50);
        let mut driver = Driver::compacting_in(driver, Strategy::Command);
        let task = driver.group.current().unwrap().id;
        used.iter().for_each(|used| drop(driver.usage(*used)));
        driver.say_in("s", "I compact. ");
        driver.say_in("other", "Done.");
        let step = driver.answer(StopReason::EndTurn);
        assert_eq!(kinds(&step.facts)[..expected.len()], *expected, "{name}");
        assert_eq!(driver.last_ended().unwrap().status, status, "{name}");
        let session = driver.group.state().session_id().map(|session| &*session.0);
        assert_eq!((session, driver.segment()), (Some("other"), 2), "{name}");
        assert_eq!(driver.answer_text(task).unwrap(), "I compact. Done.", "{name}");
        assert_eq!(driver.group.lease(), None, "HL-7: {name}");
        driver.turn();
        driver.say_in("other", "it is here");
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.segment(), 2, "{name}");
    }
    let mut driver = Driver::compacting(Strategy::Command);
    driver.signal(Source::Acp, SignalKind::Completed);
    driver.say_in("other", "Done.");
    driver.answer(StopReason::EndTurn);
    assert_eq!((driver.count(), driver.segment()), (1, 3));
}

/// AM-13: a compaction that asks for a summary opens its own session, wherever the agent wrote it.
#[test]
fn a_rotation_follows_no_move() {
    let mut driver = Driver::compacting(Strategy::Rotate);
    driver.say_in("s", "all of it");
    driver.say_in("other", "more");
    driver.answer(StopReason::EndTurn);
    driver.open_session(Ok("s2"));
    let session = driver.group.state().session_id().map(|session| &*session.0);
    assert_eq!((session, driver.segment()), (Some("s2"), 2));
    let mut driver = Driver::compacting(Strategy::Rotate);
    driver.say_in("other", "all of it");
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.last_ended().unwrap().status, CompactionStatus::Failed, "no summary");
    let session = driver.group.state().session_id().map(|session| &*session.0);
    assert_eq!((session, driver.segment()), (Some("s"), 1));
}

/// AM-13, AM-17, I11: a group remembers the sessions of its last segments, also over a restart of
/// the server. A late word of one of them is no move.
#[test]
fn the_sessions_of_the_last_segments_are_known() {
    let mut driver = Driver::in_turn();
    for number in 0..KNOWN_SESSIONS_MAX + 3 {
        driver.say_in(&format!("s{number}"), "so");
        driver.answer(StopReason::EndTurn);
        driver.turn();
    }
    let known = driver.group.known_sessions().clone();
    assert_eq!(known.len(), KNOWN_SESSIONS_MAX);
    driver.say_in("s4", "late");
    driver.answer(StopReason::EndTurn);
    let (segment, state) = (driver.segment(), driver.group.state().clone());
    let restored = Group::restore(state, Vec::new(), None, None, None, Vec::new());
    driver.group = restored.with_known_sessions(known);
    driver.turn();
    driver.ready(&format!("s{}", KNOWN_SESSIONS_MAX + 2), None);
    driver.say_in("s4", "late");
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.segment(), segment);
}
