//! An ended task as a span.
//!
//! Owns which attribute says what, by the [conventions for generative AI][semconv] where they have
//! a word for it. No prompt, no answer, no metadata, no message of an error and no name of a tool
//! ever goes into a span: whoever may read traces need not be allowed to read those.
//!
//! [semconv]: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/

use greenroom_actors::storage::{Archive, EndedTurn, StoreError, TaskFilter, TaskView};
use greenroom_core::{Digest, Task, TaskId, TaskKind, TaskState, Timestamp};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::wire::{Attribute, Span, SpanId, SpanKind, Status, TraceId, Value};

/// A chain of tasks that are each other's repetition is followed so far back.
const CHAIN_MAX: usize = 100;

/// The span of an ended task; `None` if the task was deleted meanwhile.
///
/// # Errors
///
/// The database's error.
pub fn read(archive: &dyn Archive, ended: &EndedTurn) -> Result<Option<Span>, StoreError> {
    let after = ended.ordinal.saturating_sub(1);
    let filter = TaskFilter { state: None, kind: None, after, limit: 1 };
    let mut found = archive.tasks(ended.group, &filter)?;
    let Some(view) = found.pop().filter(|view| view.task.ordinal == ended.ordinal) else {
        return Ok(None);
    };
    let first = first_of(archive, &view.task)?;
    Ok(span(&view, first, ended.agent.as_deref(), &ended.digest))
}

/// The task that this one is the repetition of, or the repetition's repetition: all of them are one
/// trace.
fn first_of(archive: &dyn Archive, task: &Task) -> Result<TaskId, StoreError> {
    let (mut first, mut earlier) = (task.id, task.retry_of);
    for _ in 0..CHAIN_MAX {
        let Some(named) = earlier else { break };
        first = named;
        earlier = archive.task(named)?.and_then(|view| view.task.retry_of);
    }
    Ok(first)
}

/// A span, if the task was started and is over.
///
/// Its ids depend on the tasks' names only, so that one that is sent again is the same one.
pub fn span(
    TaskView { task, group, .. }: &TaskView,
    first: TaskId,
    agent: Option<&str>,
    digest: &Digest,
) -> Option<Span> {
    let (started_at, ended_at) = (task.started_at?, task.ended_at?);
    let operation = match task.kind() {
        TaskKind::Turn => "invoke_agent",
        TaskKind::Compaction => "compact",
    };
    let error = error(task);
    let mut attributes = vec![
        Attribute::new("gen_ai.operation.name", operation),
        // The conventions demand one. Whose models an agent uses is not known here.
        Attribute::new("gen_ai.provider.name", "greenroom"),
        Attribute::new("gen_ai.conversation.id", group.as_str()),
    ];
    let mut say = |key, value: Option<Value>| {
        attributes.extend(value.map(|value| Attribute::new(key, value)));
    };
    say("gen_ai.agent.name", agent.map(Value::from));
    let model = digest.by_model.iter().next().filter(|_| digest.by_model.iter().len() == 1);
    say("gen_ai.response.model", model.map(|(model, _)| model.into()));
    let reason = task.ending.stop_reason.as_ref().map(word);
    say("gen_ai.response.finish_reasons", reason.map(|word| vec![word.into()].into()));
    let tokens = &digest.tokens;
    let some = |tokens: u64| Some(tokens).filter(|tokens| *tokens != 0).map(Value::from);
    say("gen_ai.usage.input_tokens", some(tokens.input));
    say("gen_ai.usage.output_tokens", some(tokens.output));
    say("gen_ai.usage.cache_read.input_tokens", some(tokens.cached));
    say("error.type", error.clone().map(Value::from));
    say("greenroom.group", Some(group.as_str().into()));
    say("greenroom.task", Some(task.id.to_string().into()));
    say("greenroom.kind", Some(word(&task.kind()).into()));
    say("greenroom.origin", Some(word(&task.origin).into()));
    say("greenroom.state", Some(word(&task.state).into()));
    say("greenroom.attempt", Some(u64::from(task.attempt).into()));
    say("greenroom.run", task.run.map(|run| run.to_string().into()));
    say("greenroom.retry_of", task.retry_of.map(|task| task.to_string().into()));
    say("greenroom.queue_wait_ms", Some(since(task.created_at, started_at).into()));
    say("greenroom.frames", Some(digest.frame_count.into()));
    let sum = |count: fn(&_) -> u64| digest.tools.iter().map(|(_, tool)| count(tool)).sum::<u64>();
    say("greenroom.tools.calls", Some(sum(|tool| tool.calls).into()));
    say("greenroom.tools.failed", Some(sum(|tool| tool.failed).into()));
    Some(Span {
        trace_id: TraceId(first.0.as_u128()),
        span_id: span_id(task.id),
        name: agent.map_or_else(|| operation.to_owned(), |agent| format!("{operation} {agent}")),
        kind: SpanKind::Internal,
        start_time_unix_nano: nanos(started_at),
        // A clock that was set back in between must not make a span that ends before it begins.
        end_time_unix_nano: nanos(ended_at.max(started_at)),
        attributes,
        status: error.map(Status::error).unwrap_or_default(),
    })
}

/// What went wrong, in one word of greenroom's.
fn error(task: &Task) -> Option<String> {
    if !matches!(task.state, TaskState::Failed | TaskState::Interrupted) {
        return None;
    }
    let ending = &task.ending;
    let code = ending.error.as_ref().map(|error| error.code.clone());
    let cause = || ending.interrupted.as_ref().map(|interrupted| word(&interrupted.cause));
    Some(code.or_else(cause).unwrap_or_else(|| "_OTHER".into()))
}

/// The first bytes of the name's hash. All zero would be no id.
fn span_id(task: TaskId) -> SpanId {
    let hash = Sha256::digest(task.0.as_bytes());
    let first: [u8; 8] = std::array::from_fn(|at| hash[at]);
    SpanId(u64::from_be_bytes(first).max(1))
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.0).unwrap_or_default().saturating_mul(1_000_000)
}

fn since(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.0 - from.0).unwrap_or_default()
}

/// A value that is one of a few, as the API has it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
