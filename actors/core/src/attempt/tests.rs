//! Tests of an attempt: its ends, its open tool calls, and its text.

#![allow(clippy::unwrap_used)]
use uuid::Uuid;

use super::*;
use crate::{TEXT_BYTES_MAX, ToolProgress, ToolResult, ToolUpdate};

fn attempt(reason: Option<CancelReason>, summary: OutputSummary) -> Attempt {
    let mut attempt = Attempt::new(RunId(Uuid::nil()), 1);
    attempt.cancel_reason = reason;
    attempt.add_output(&summary);
    attempt
}

fn update(call: &str, ended: bool) -> ToolUpdate {
    let step = if ended {
        ToolProgress::Ended(ToolResult::Completed)
    } else {
        ToolProgress::Called { tool: "x".into(), ended: None }
    };
    ToolUpdate { call: call.into(), step }
}

fn text(text: &str) -> OutputSummary {
    OutputSummary { has_output: true, text: text.into(), ..OutputSummary::default() }
}

#[test]
fn a_success_wins_over_a_late_cancel() {
    use {EndState as T, StopReason as S};
    let stopped = |stop_reason| PromptReply::Stopped { stop_reason, tokens: None };
    let failed =
        PromptReply::Failed { code: -32603, kind: ErrorKind::Passing, message: "x".into() };
    let odd = PromptReply::Unclear { message: "x".into() };
    let own = S::from_agent("_vendor_pause");
    #[rustfmt::skip]
    let cases = [
        ("plain",              None,                   stopped(S::EndTurn),   S::EndTurn,       T::Completed),
        ("refused",            None,                   stopped(S::Refusal),   S::Refusal,       T::Completed),
        ("too late a cancel",  Some(CancelReason::Caller),    stopped(S::EndTurn),   S::EndTurn,       T::Completed),
        ("cancelled",          Some(CancelReason::Caller),    stopped(S::Cancelled), S::Cancelled,     T::Cancelled),
        ("cancelled unasked",  None,                   stopped(S::Cancelled), S::Cancelled,     T::Cancelled),
        ("deadline confirmed", Some(CancelReason::Deadline),  stopped(S::Cancelled), S::Deadline,      T::Interrupted),
        ("too late deadline",  Some(CancelReason::Deadline),  stopped(S::MaxTokens), S::MaxTokens,     T::Completed),
        ("shutdown confirmed", Some(CancelReason::Shutdown),  stopped(S::Cancelled), S::ServerRestart, T::Interrupted),
        ("failed",             None,                   failed.clone(),        S::Error,         T::Failed),
        ("cancel as an error", Some(CancelReason::Caller),    failed,                S::Error,         T::Cancelled),
        ("unclear",            None,                          stopped(S::Unclear),   S::Unclear,       T::Failed),
        ("its own word",       None,                          stopped(own),          own,              T::Failed),
        ("unclear cancel",     Some(CancelReason::Caller),    stopped(own),          own,              T::Cancelled),
        ("unclear deadline",   Some(CancelReason::Deadline),  stopped(S::Unclear),   S::Deadline,      T::Interrupted),
        ("odd error",          None,                          odd.clone(),           S::Error,         T::Failed),
        ("odd cancel",         Some(CancelReason::Caller),    odd,                   S::Error,         T::Cancelled),
    ];
    for (name, reason, reply, stop_reason, state) in cases {
        let settled = attempt(reason, OutputSummary::default()).settle_by_reply(reply);
        assert_eq!((settled.stop_reason, settled.state), (stop_reason, state), "{name}");
        let is_interrupted = state == T::Interrupted;
        assert_eq!(settled.ending.interrupted.is_some(), is_interrupted, "{name}");
    }
}

/// what is known of the side effects of an interrupted turn.
#[test]
fn an_interrupted_turn_reports_its_possible_side_effects() {
    let tool = |ended: bool| {
        let mut tools = vec![update("t", false)];
        tools.extend(ended.then(|| update("t", true)));
        OutputSummary { has_output: true, tools, ..OutputSummary::default() }
    };
    #[rustfmt::skip]
    let cases = [
        ("prompt maybe sent",   ExitReason::ServerRestart, OutputSummary::default(), SideEffects::Unknown),
        ("spoke",               ExitReason::ServerRestart, text("hi"),      SideEffects::NoneObserved),
        ("tool ended",          ExitReason::ServerRestart, tool(true),      SideEffects::NoneObserved),
        ("tool open",           ExitReason::ServerRestart, tool(false),     SideEffects::Possible),
        ("agent died silent",   ExitReason::Exited,        OutputSummary::default(), SideEffects::NoneObserved),
        ("agent died in tool",  ExitReason::Exited,        tool(false),     SideEffects::Possible),
        ("subagent's tool",     ExitReason::Exited,        tool(true).of_other_session(&SessionId("c".into())), SideEffects::Possible),
    ];
    for (name, reason, summary, side_effects) in cases {
        let settled = attempt(None, summary).settle_by_exit(reason, "");
        assert_eq!(settled.state, EndState::Interrupted, "{name}");
        assert_eq!(settled.ending.interrupted.unwrap().side_effects, side_effects, "{name}");
    }
}

#[test]
fn text_is_truncated_at_its_limit_between_characters() {
    let mut attempt = attempt(None, text(&"x".repeat(TEXT_BYTES_MAX - 1)));
    attempt.add_output(&text("ä"));
    assert_eq!((attempt.text().len(), attempt.text.is_truncated()), (TEXT_BYTES_MAX - 1, true));
    attempt.add_output(&text("y"));
    let ending = attempt.ending_so_far();
    assert_eq!((ending.text.len(), ending.text_truncated), (TEXT_BYTES_MAX - 1, true));
}

/// I11: tool calls without number use bounded memory, and their side effects stay possible.
#[test]
fn open_tool_calls_are_named_up_to_a_limit() {
    let tool = |number: usize, ended| update(&format!("{number:01024}"), ended);
    let tools = (0..1000).map(|number| tool(number, false)).collect();
    let mut attempt =
        attempt(None, OutputSummary { has_output: true, tools, ..OutputSummary::default() });
    assert_eq!(attempt.interrupted(Cause::AgentExited, true).open_tools.len(), 64);
    let tools = (0..64).map(|number| tool(number, true)).collect();
    attempt.add_output(&OutputSummary { tools, ..OutputSummary::default() });
    let interrupted = attempt.interrupted(Cause::AgentExited, true);
    let found = (interrupted.side_effects, interrupted.open_tools.len());
    assert_eq!(found, (SideEffects::Possible, 0));
    let tools = (1000..1064).map(|number| tool(number, false)).collect();
    attempt.add_output(&OutputSummary { tools, ..OutputSummary::default() });
    let named = attempt.interrupted(Cause::AgentExited, true).open_tools.len();
    assert_eq!(named, 64, "an ended call leaves its room to others");
}

/// the end of a call without a readable id cannot be seen.
#[test]
fn a_call_without_a_name_stays_open() {
    let tools = vec![update("", false), update("", true)];
    let attempt = attempt(None, OutputSummary { has_output: true, tools, ..Default::default() });
    let settled = attempt.settle_by_exit(ExitReason::Exited, "");
    let interrupted = settled.ending.interrupted.unwrap();
    assert_eq!(
        (interrupted.side_effects, interrupted.open_tools.len()),
        (SideEffects::Possible, 0)
    );
}

proptest::proptest! {
    /// I13: live, an agent's lines come in batches; at recovery, one by one.
    #[test]
    fn output_adds_up_the_same_in_any_batches(
        room in 0..8_usize,
        lines in proptest::collection::vec("[aä€🦀]{0,3}", 0..6),
    ) {
        let full = text(&"x".repeat(TEXT_BYTES_MAX - room));
        let (mut at_once, mut one_by_one) = (attempt(None, full.clone()), attempt(None, full));
        at_once.add_output(&text(&lines.concat()));
        lines.iter().for_each(|line| one_by_one.add_output(&text(line)));
        proptest::prop_assert_eq!(&at_once.text, &one_by_one.text);
    }
}
