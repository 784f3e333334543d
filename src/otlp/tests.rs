//! Tests of the spans' attributes, as golden JSON, and of the size of a batch.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use greenroom_actors::storage::TaskView;
use greenroom_core::{
    Cause, Digest, End, EndFrame, EndState, Ending, Interrupted, Json, Origin, SideEffects, Stage,
    Start, StopReason, Strategy, Task, TaskError, TaskId, TaskKind, Timestamp, Tokens, Work,
};
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "canary";

fn id(last: u8) -> TaskId {
    format!("tsk_01a1fa75-0000-7000-8000-0000000000{last:02x}").parse().unwrap()
}

/// A task that was accepted at 1,000,000 ms, started 250 ms later and ended at 1,001,500 ms. Every
/// field that must not be exported contains [`SECRET`].
fn task(kind: TaskKind, state: EndState) -> Task {
    let prompt: Json = Json::parse(format!(r#"[{{"type":"text","text":"{SECRET}"}}]"#)).unwrap();
    let work = match kind {
        TaskKind::Turn => Work::Turn { prompt },
        TaskKind::Compaction => {
            let focus: Option<Arc<str>> = Some(SECRET.into());
            Work::Compaction { focus, prompt, strategy: Strategy::Command }
        }
    };
    let mut task = Task::new(id(1), work, Origin::Api);
    task.metadata = Some(Json::parse(format!(r#"{{"who":"{SECRET}"}}"#)).unwrap());
    task.attempt = 1;
    task.created_at = Timestamp(1_000_000);
    let (at, run) = (Timestamp(1_000_250), "run_01a1fa75-0000-7000-8000-0000000000ff");
    let start = Start { at, run: run.parse().unwrap(), segment: 1, seq: 1 };
    task.stage = Stage::Ended(Box::new(End {
        state,
        claimed_at: Some(at),
        start: Some(start),
        frame: Some(EndFrame { at: Timestamp(1_001_500), seq: 9 }),
        ending: Ending { text: SECRET.into(), ..Ending::default() },
    }));
    task
}

fn end(task: &mut Task) -> &mut End {
    match &mut task.stage {
        Stage::Ended(end) => end,
        open => panic!("it has not ended: {open:?}"),
    }
}

fn digest_with_usage() -> Digest {
    let mut digest = Digest { frame_count: 9, ..Digest::default() };
    digest.tokens = Tokens { input: 1200, output: 34, cached: 1000 };
    *digest.by_model.slot("model-1") = digest.tokens;
    digest.tools.slot(SECRET).calls = 3;
    digest.tools.slot("other").failed = 1;
    digest.tools.slot("other").calls = 2;
    digest
}

/// The span as it is sent, with its attributes as a table.
fn shown(task: Task, first: TaskId, agent: Option<&str>, digest: &Digest) -> Value {
    let view = TaskView { task, group: "work".parse().unwrap(), position: None, blocked_by: None };
    let span = span::span(&view, first, agent, digest).unwrap();
    let text = serde_json::to_string(&span).unwrap();
    assert!(!text.contains(SECRET), "{text}");
    let mut span: Value = serde_json::from_str(&text).unwrap();
    let attributes = span["attributes"].as_array().unwrap();
    let pair = |attribute: &Value| {
        (attribute["key"].as_str().unwrap().to_owned(), attribute["value"].clone())
    };
    let table: serde_json::Map<String, Value> = attributes.iter().map(pair).collect();
    assert_eq!(table.len(), attributes.len(), "a duplicate attribute: {text}");
    span["attributes"] = table.into();
    span
}

/// The common part of the expected spans, with `changes`; null removes a field.
fn expected(changes: Value) -> Value {
    let mut span = json!({
        "traceId": "01a1fa75000070008000000000000001",
        "spanId": "a2181aa141b7bbd3",
        "name": "invoke_agent demo",
        "kind": 1,
        "startTimeUnixNano": "1000250000000",
        "endTimeUnixNano": "1001500000000",
        "attributes": {
            "gen_ai.operation.name": { "stringValue": "invoke_agent" },
            "gen_ai.provider.name": { "stringValue": "greenroom" },
            "gen_ai.conversation.id": { "stringValue": "work" },
            "gen_ai.agent.name": { "stringValue": "demo" },
            "greenroom.group": { "stringValue": "work" },
            "greenroom.task": { "stringValue": "tsk_01a1fa75-0000-7000-8000-000000000001" },
            "greenroom.kind": { "stringValue": "turn" },
            "greenroom.origin": { "stringValue": "api" },
            "greenroom.state": { "stringValue": "completed" },
            "greenroom.attempt": { "intValue": "1" },
            "greenroom.run": { "stringValue": "run_01a1fa75-0000-7000-8000-0000000000ff" },
            "greenroom.queue_wait_ms": { "intValue": "250" },
            "greenroom.frames": { "intValue": "0" },
            "greenroom.tools.calls": { "intValue": "0" },
            "greenroom.tools.failed": { "intValue": "0" },
        },
        "status": {},
    });
    for (key, value) in changes.as_object().unwrap() {
        let is_attribute =
            key.starts_with("gen_ai.") || key.starts_with("greenroom.") || key == "error.type";
        let place = if is_attribute { &mut span["attributes"] } else { &mut span };
        match value {
            Value::Null => _ = place.as_object_mut().unwrap().remove(key),
            value => place[key] = value.clone(),
        }
    }
    span
}

#[test]
fn the_span_of_a_completed_turn() {
    let mut turn = task(TaskKind::Turn, EndState::Completed);
    end(&mut turn).ending.stop_reason = Some(StopReason::EndTurn);
    let reasons = json!({ "arrayValue": { "values": [{ "stringValue": "end_turn" }] } });
    let all = json!({
        "gen_ai.response.model": { "stringValue": "model-1" },
        "gen_ai.response.finish_reasons": reasons,
        "gen_ai.usage.input_tokens": { "intValue": "1200" },
        "gen_ai.usage.output_tokens": { "intValue": "34" },
        "gen_ai.usage.cache_read.input_tokens": { "intValue": "1000" },
        "greenroom.frames": { "intValue": "9" },
        "greenroom.tools.calls": { "intValue": "5" },
        "greenroom.tools.failed": { "intValue": "1" },
    });
    let mut digest = digest_with_usage();
    assert_eq!(shown(turn.clone(), id(1), Some("demo"), &digest), expected(all.clone()));
    // With two models, none is *the* model.
    digest.by_model.slot("model-2").output = 1;
    let mut two = all;
    two["gen_ai.response.model"] = Value::Null;
    assert_eq!(shown(turn, id(1), Some("demo"), &digest), expected(two));
}

#[test]
fn the_span_of_a_failed_turn() {
    let mut turn = task(TaskKind::Turn, EndState::Failed);
    turn.attempt = 6;
    end(&mut turn).ending.stop_reason = Some(StopReason::Error);
    end(&mut turn).ending.error =
        Some(TaskError { code: "agent_error".into(), message: SECRET.into() });
    let reasons = json!({ "arrayValue": { "values": [{ "stringValue": "_error" }] } });
    let failed = expected(json!({
        "gen_ai.response.finish_reasons": reasons,
        "error.type": { "stringValue": "agent_error" },
        "greenroom.state": { "stringValue": "failed" },
        "greenroom.attempt": { "intValue": "6" },
        "status": { "code": 2, "message": "agent_error" },
    }));
    assert_eq!(shown(turn, id(1), Some("demo"), &Digest::default()), failed);
}

#[test]
fn the_span_of_an_interrupted_turn() {
    let mut turn = task(TaskKind::Turn, EndState::Interrupted);
    end(&mut turn).ending.stop_reason = Some(StopReason::ServerRestart);
    let cause = Cause::ServerRestart;
    let open_tools = vec![SECRET.into()];
    let side_effects = SideEffects::Unknown;
    end(&mut turn).ending.interrupted = Some(Interrupted { cause, side_effects, open_tools });
    // The clock was set back before it ended.
    end(&mut turn).frame = Some(EndFrame { at: Timestamp(900_000), seq: 9 });
    let reasons = json!({ "arrayValue": { "values": [{ "stringValue": "_server_restart" }] } });
    let mut interrupted = expected(json!({
        "name": "invoke_agent",
        "endTimeUnixNano": "1000250000000",
        "gen_ai.agent.name": null,
        "gen_ai.response.finish_reasons": reasons,
        "error.type": { "stringValue": "server_restart" },
        "greenroom.state": { "stringValue": "interrupted" },
        "status": { "code": 2, "message": "server_restart" },
    }));
    assert_eq!(shown(turn.clone(), id(1), None, &Digest::default()), interrupted);
    let code = "server_restarted";
    end(&mut turn).ending.error = Some(TaskError { code: code.into(), message: SECRET.into() });
    interrupted["attributes"]["error.type"]["stringValue"] = code.into();
    interrupted["status"]["message"] = code.into();
    assert_eq!(shown(turn, id(1), None, &Digest::default()), interrupted);
}

/// The same trace as the task that it retries, with another span id.
#[test]
fn the_span_of_a_retried_turn() {
    let mut turn = task(TaskKind::Turn, EndState::Cancelled);
    turn.id = id(3);
    turn.origin = Origin::Retry;
    turn.retry_of = Some(id(2));
    let retried = expected(json!({
        "spanId": "c63528f8e484374e",
        "greenroom.task": { "stringValue": id(3).to_string() },
        "greenroom.origin": { "stringValue": "retry" },
        "greenroom.retry_of": { "stringValue": id(2).to_string() },
        "greenroom.state": { "stringValue": "cancelled" },
    }));
    assert_eq!(shown(turn, id(1), Some("demo"), &Digest::default()), retried);
}

#[test]
fn the_span_of_a_compaction() {
    let compaction = task(TaskKind::Compaction, EndState::Skipped);
    let skipped = expected(json!({
        "name": "compact demo",
        "gen_ai.operation.name": { "stringValue": "compact" },
        "greenroom.kind": { "stringValue": "compaction" },
        "greenroom.state": { "stringValue": "skipped" },
    }));
    assert_eq!(shown(compaction, id(1), Some("demo"), &Digest::default()), skipped);
}

#[test]
fn a_task_that_was_not_started_or_has_not_ended_has_no_span() {
    let view = |task| {
        let group = "work".parse().unwrap();
        TaskView { task, group, position: None, blocked_by: None }
    };
    let mut never = task(TaskKind::Turn, EndState::Cancelled);
    let start = end(&mut never).start.take().unwrap();
    let stage = Stage::Running { claimed_at: start.at, start };
    let running = Task { stage, ..never.clone() };
    for task in [running, never] {
        assert!(span::span(&view(task), id(1), None, &Digest::default()).is_none());
    }
}

/// I11: the largest batch is below 1 MiB.
#[test]
fn a_batch_is_bounded() {
    let mut turn = task(TaskKind::Turn, EndState::Failed);
    turn.attempt = u32::MAX;
    turn.retry_of = Some(id(2));
    end(&mut turn).ending.stop_reason = Some(StopReason::ServerRestart);
    let code = "agent_output_rejected".into();
    end(&mut turn).ending.error = Some(TaskError { code, message: SECRET.into() });
    let mut digest = Digest { frame_count: u64::MAX, ..Digest::default() };
    digest.tokens = Tokens { input: u64::MAX, output: u64::MAX, cached: u64::MAX };
    // The longest name that a digest keeps, in JSON's longest encoding.
    digest.by_model.slot(&"\u{1}".repeat(1000)).input = 1;
    let group = "g".repeat(128).parse().unwrap();
    let view = TaskView { task: turn, group, position: None, blocked_by: None };
    let agent = "a".repeat(64);
    let spans: Vec<Span> =
        (0..SPANS_MAX).map(|_| span::span(&view, id(1), Some(&agent), &digest).unwrap()).collect();
    let resource = resource(&"\u{1}".repeat(255));
    let scope = Scope { name: "greenroom", version: "0" };
    let bytes = serde_json::to_vec(&Request::new(&resource, &scope, &spans)).unwrap().len();
    assert!(bytes < 1 << 20, "{bytes}");
}

#[test]
fn a_request_has_otlps_form() {
    let resource = resource("service");
    let scope = Scope { name: "greenroom", version: "1" };
    let request = serde_json::to_value(Request::new(&resource, &scope, &[])).unwrap();
    let version = json!({ "stringValue": env!("CARGO_PKG_VERSION") });
    let attributes = json!([
        { "key": "service.name", "value": { "stringValue": "service" } },
        { "key": "service.version", "value": version },
    ]);
    let spans = json!([{ "scope": { "name": "greenroom", "version": "1" }, "spans": [] }]);
    let resource = json!({ "attributes": attributes });
    let expected = json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": spans }] });
    assert_eq!(request, expected);
}
