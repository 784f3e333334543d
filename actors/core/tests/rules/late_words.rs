//! What an agent writes after its answer: AM-9, I7.

use greenroom_core::{
    Continuity, Event, ExitReason, Fact, MessageKey, OutputSummary, RetryPolicy, StopReason,
    Strategy, TaskId, TaskState, ToolProgress, ToolUpdate,
};
use greenroom_testing::driver::Driver;

fn chunk(message: Option<&str>, text: &str) -> OutputSummary {
    let message = message.map(MessageKey::new);
    let text = text.to_owned();
    OutputSummary { has_output: true, has_answer: true, text, message, ..Default::default() }
}

fn call() -> OutputSummary {
    let step = ToolProgress::Called { tool: "sh".into(), ended: None };
    let tools = vec![ToolUpdate { call: "t".into(), step }];
    OutputSummary { has_output: true, has_answer: true, tools, ..Default::default() }
}

fn refusal(driver: &Driver) -> Event {
    Event::RequestRefused { run: driver.run(), method: "fs/read_text_file".into() }
}

/// Returns the earlier task that the last output belongs to, if it is late.
fn late(driver: &Driver) -> Option<TaskId> {
    driver.facts.iter().rev().find_map(|fact| match fact {
        Fact::AgentOutput(output) => Some(output.late),
        _ => None,
    })?
}

/// A group whose first turn was answered in the message `a`, and its task.
fn answered() -> (Driver, TaskId) {
    let mut driver = Driver::in_turn();
    driver.settings.retry = RetryPolicy::NoOutput;
    let first = driver.group.current().unwrap().id;
    driver.output(chunk(Some("a"), "head "));
    driver.answer(StopReason::EndTurn);
    (driver, first)
}

/// AM-9: between two attempts, output belongs to the turn before. What agents send unasked belongs
/// to none.
#[test]
fn output_between_turns_belongs_to_the_last_one() {
    let (mut driver, first) = answered();
    for message in [Some("a"), Some("new"), None] {
        driver.output(chunk(message, "tail"));
        assert_eq!(late(&driver), Some(first), "{message:?}");
    }
    driver.usage(7);
    assert_eq!(late(&driver), None);
    let second = driver.turn();
    driver.output(chunk(Some("b"), "its own"));
    assert_eq!(late(&driver), None);
    driver.answer(StopReason::EndTurn);
    driver.output(chunk(None, "tail"));
    assert_eq!(late(&driver), Some(second));
    driver.output(chunk(Some("a"), "tail"));
    assert_eq!(late(&driver), Some(first));
    assert_eq!(driver.answer_text(second).unwrap(), "its own");
}

/// AM-9, I7: while an attempt runs, output is late if its message began in an earlier turn, or if
/// greenroom read it before it sent the prompt. All else may be the attempt's.
#[test]
fn a_message_or_a_moment_shows_whose_output_is() {
    let own = chunk(Some("b"), "own");
    #[rustfmt::skip]
    let cases = [
        ("a chunk of the earlier message",          vec![],            chunk(Some("a"), "x"), true,  true),
        ("likewise, after output of its own",       vec![own.clone()], chunk(Some("a"), "x"), true,  true),
        ("a chunk of another message",              vec![],            chunk(Some("c"), "x"), true,  false),
        ("likewise, after output of its own",       vec![own.clone()], chunk(Some("c"), "x"), true,  false),
        ("a chunk of no message",                   vec![],            chunk(None, "x"),      true,  false),
        ("likewise, after output of its own",       vec![own],         chunk(None, "x"),      true,  false),
        ("a chunk of no message, before the prompt", vec![],           chunk(None, "x"),      false, true),
        ("another message, before the prompt",      vec![],            chunk(Some("c"), "x"), false, true),
    ];
    for (name, before, output, is_after, is_late) in cases {
        let (mut driver, first) = answered();
        let second = driver.turn();
        let has_own = !before.is_empty();
        before.into_iter().for_each(|own| _ = driver.output(own));
        if is_after {
            driver.output(output);
        } else {
            driver.output_before(output);
        }
        assert_eq!(late(&driver), is_late.then_some(first), "{name}");
        driver.fail(-32603);
        let state = driver.group.task(second).map(|task| task.state());
        let is_retried = state == Some(TaskState::Retrying);
        assert_eq!(is_retried, is_late && !has_own, "I7: {name}: {state:?}");
    }
}

/// Plays what an agent writes within the backoff of its prompt.
type Late = fn(&mut Driver);

/// AM-9, I7: an agent that writes after its error has perhaps acted: its prompt is not sent again.
/// What agents send unasked, and the words of an earlier turn, say nothing about it.
#[test]
fn output_within_a_backoff_ends_the_task() {
    #[rustfmt::skip]
    let cases: [(&str, Late, bool); 10] = [
        ("text",                        |driver| drop(driver.output(chunk(None, "x"))),             true),
        ("a new message",               |driver| drop(driver.output(chunk(Some("b"), "x"))),        true),
        ("a tool call",                 |driver| drop(driver.output(call())),                          true),
        ("a subagent",                  |driver| drop(driver.say_in("child", "working")),           true),
        ("a permission request",        |driver| drop(driver.ask(1)),                     true),
        ("a request for a file",        |driver| drop(driver.apply(refusal(driver))),                     true),
        ("half a message",              |driver| drop(driver.reject("eyJqc29u")),                   true),
        ("a line of a log",             |driver| drop(driver.reject("eA==")),                       false),
        ("its usage",                   |driver| drop(driver.usage(7)),                             false),
        ("a message of the turn before", |driver| drop(driver.output(chunk(Some("a"), "tail"))),    false),
    ];
    for (name, late, acted) in cases {
        let (mut driver, first) = answered();
        let second = driver.turn();
        let next = driver.queue_turn();
        driver.fail(-32603);
        late(&mut driver);
        let ended = driver.ended(second);
        let expected = acted.then(|| (TaskState::Failed, Some("agent_error".into())));
        assert_eq!(ended, expected, "{name}");
        assert_eq!(driver.ended(first), Some((TaskState::Completed, None)), "{name}");
        let goes_on = driver.group.waiting().next().map(|task| task.id);
        assert_eq!(goes_on, Some(if acted { next } else { second }), "{name}");
    }
}

/// AM-9: late words are in no summary, and in the text of no later turn.
#[test]
fn late_words_get_into_no_summary() {
    let mut driver = Driver::compacting(Strategy::Rotate);
    let task = driver.group.current().unwrap().id;
    driver.output(chunk(Some("s"), "all of it"));
    driver.output_before(chunk(None, "a late word"));
    driver.answer(StopReason::EndTurn);
    driver.open_session(Ok("s2"));
    let summary = driver.facts.iter().rev().find_map(|fact| match fact {
        Fact::CompactionEnded(ended) => ended.details.summary.clone(),
        _ => None,
    });
    assert_eq!(summary.as_deref(), Some("all of it"), "{task}");
}

/// AM-9: an agent that uses an id again is not taken for silent: it answered in that message, and
/// its ids show nothing from then on.
#[test]
fn an_agent_may_use_its_ids_again() {
    let (mut driver, first) = answered();
    let second = driver.turn();
    driver.output(chunk(Some("a"), "second"));
    assert_eq!(late(&driver), Some(first));
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.answer_text(second).unwrap(), "second");
    assert!(!driver.has_empty_answer(second));
    let third = driver.turn();
    driver.output(chunk(Some("a"), "third"));
    assert_eq!(late(&driver), None);
    driver.fail(-32603);
    let state = driver.ended(third).map(|(state, _)| state);
    assert_eq!(state, Some(TaskState::Failed), "I7");
}

/// AM-9: whatever else the agent did before in the turn, it answered in that message, unless it
/// wrote another one.
#[test]
fn an_agent_that_uses_its_ids_again_may_call_tools_too() {
    let thought = OutputSummary {
        has_output: true,
        message: Some(MessageKey::new("t")),
        ..OutputSummary::default()
    };
    let picture = OutputSummary { has_answer: true, ..thought.clone() };
    let cases = [
        ("a thought", thought, "second"),
        ("a tool call", call(), "second"),
        ("a text of its own", chunk(Some("b"), "its own"), "its own"),
        ("a picture of its own", picture, ""),
    ];
    for (name, before, text) in cases {
        let (mut driver, first) = answered();
        let second = driver.turn();
        driver.output(before);
        driver.output(chunk(Some("a"), "second"));
        assert_eq!(late(&driver), Some(first), "{name}");
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.answer_text(second).unwrap(), text, "{name}");
        assert!(!driver.has_empty_answer(second), "{name}");
    }
}

/// AM-9: what the agent continues before the turn's first own output is of the turn before, also if
/// greenroom read it after it sent the prompt; it does not show that the agent uses its ids again.
#[test]
fn words_before_a_turns_own_output_are_no_answer() {
    let thought = OutputSummary { has_answer: false, tools: Vec::new(), ..call() };
    let refused = |driver: &mut Driver| drop(driver.apply(refusal(driver)));
    type Own<'a> = &'a dyn Fn(&mut Driver);
    #[rustfmt::skip]
    let cases: [(&str, bool, Own<'_>, Option<&str>, bool); 6] = [
        ("a tool call",             false, &|driver| drop(driver.output(call())),          None,           false),
        ("a thought",               false, &|driver| drop(driver.output(thought.clone())), None,           true),
        ("a refused request",       false, &refused,                                       None,           true),
        ("a word after a call",     false, &|driver| drop(driver.output(call())),          Some("second"), false),
        ("a word before the prompt", true, &|driver| drop(driver.output(call())),          Some("second"), false),
        ("likewise, a thought",     true,  &|driver| drop(driver.output(thought.clone())), None,           true),
    ];
    for (name, has_early, own, after, is_empty) in cases {
        let (mut driver, first) = answered();
        let second = driver.turn();
        if has_early {
            driver.output_before(chunk(Some("a"), "tail "));
        }
        driver.output(chunk(Some("a"), "late"));
        own(&mut driver);
        after.into_iter().for_each(|text| drop(driver.output(chunk(Some("a"), text))));
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.answer_text(second).unwrap(), after.unwrap_or_default(), "{name}");
        assert_eq!(driver.has_empty_answer(second), is_empty, "{name}");
        driver.turn();
        driver.output(chunk(Some("a"), "more"));
        assert_eq!(late(&driver), after.is_none().then_some(first), "{name}");
    }
}

/// AM-9: what greenroom read before it sent the prompt is no answer to it, and what the agent
/// continues after it may be.
#[test]
fn words_before_a_prompt_are_no_answer_to_it() {
    for (after, text) in [(None, ""), (Some("second"), "second")] {
        let (mut driver, first) = answered();
        let second = driver.turn();
        driver.output_before(chunk(Some("a"), "tail"));
        assert_eq!(late(&driver), Some(first));
        after.into_iter().for_each(|text| drop(driver.output(chunk(Some("a"), text))));
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.answer_text(second).unwrap(), text);
        assert_eq!(driver.has_empty_answer(second), text.is_empty());
    }
}

/// AM-9, A-4: history that an agent replays into the first turn of a run that restored its session
/// is not the turn's text: it ends with the last words of the user. It still counts as output.
#[test]
fn history_before_the_users_words_is_no_answer() {
    let users = || OutputSummary { has_output: true, is_users: true, ..Default::default() };
    let history = || [chunk(None, "long ago"), users(), call(), chunk(None, "then"), users()];
    #[rustfmt::skip]
    let cases = [
        ("restored",                 Continuity::Loaded,  false, "now"),
        ("resumed",                  Continuity::Resumed, false, "now"),
        ("the second turn",          Continuity::Loaded,  true,  "long agothennow"),
        ("a new session",            Continuity::Lost,    false, "long agothennow"),
    ];
    for (name, continuity, is_second, text) in cases {
        let (mut driver, _) = answered();
        driver.exit(ExitReason::Exited);
        let mut task = driver.turn();
        let session = if continuity == Continuity::Lost { "s2" } else { "s" };
        driver.ready_as(session, continuity, None, false);
        if is_second {
            driver.output(chunk(None, "first"));
            driver.answer(StopReason::EndTurn);
            task = driver.turn();
        }
        history().into_iter().for_each(|replayed| drop(driver.output(replayed)));
        let mut failing = Driver::default();
        failing.group = driver.group.clone();
        failing.settings.retry = RetryPolicy::NoOutput;
        failing.fail(-32603);
        let failed = failing.ended(task).map(|(state, _)| state);
        assert_eq!(failed, Some(TaskState::Failed), "I7: {name}");
        driver.output(chunk(None, "now"));
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.answer_text(task).unwrap(), text, "{name}");
    }
    let (mut driver, _) = answered();
    driver.exit(ExitReason::Exited);
    let task = driver.turn();
    driver.ready("s", None);
    history().into_iter().for_each(|replayed| drop(driver.output(replayed)));
    driver.answer(StopReason::EndTurn);
    assert!(driver.has_empty_answer(task), "only history");
}

/// AM-9: of a turn that was cut short, and of a silent one, late words are no answer.
#[test]
fn late_words_answer_no_turn_that_did_not_end_whole() {
    for (stop_reason, text) in [(StopReason::Cancelled, ""), (StopReason::EndTurn, "late")] {
        let (mut driver, _) = answered();
        let second = driver.turn();
        driver.output(chunk(Some("a"), "late"));
        driver.answer(stop_reason);
        assert_eq!(driver.answer_text(second).unwrap(), text, "{stop_reason:?}");
    }
    let (mut driver, _) = answered();
    let second = driver.turn();
    driver.output_before(chunk(None, "late"));
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.answer_text(second).unwrap(), "");
    assert!(driver.has_empty_answer(second));
}

/// AM-9: another run says nothing about the turns of the last one.
#[test]
fn messages_are_forgotten_with_their_run() {
    let (mut driver, _) = answered();
    driver.exit(ExitReason::Exited);
    let second = driver.turn();
    driver.ready("s", None);
    driver.output(chunk(Some("a"), "again"));
    assert_eq!(late(&driver), None);
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.answer_text(second).unwrap(), "again");
}
