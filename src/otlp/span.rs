//! Builds the span of an ended task.
//!
//! Owns the attributes, which follow the [conventions for generative AI][semconv] where those
//! define one. A span never contains a prompt, an answer, metadata, an error's message or a tool's
//! name: a reader of traces may lack the permission to read those.
//!
//! [semconv]: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/

use greenroom_actors::storage::{EndedTurn, ReadStore, StoreError, TaskFilter, TaskView};
use greenroom_core::{Digest, Task, TaskId, TaskKind, TaskState, Timestamp};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::wire::{Attribute, Span, SpanId, SpanKind, Status, TraceId, Value};

/// Maximum length of a chain of retries that is followed back to its first task.
const CHAIN_MAX: usize = 100;

/// Reads the span of an ended task; `None` if the task was deleted meanwhile.
///
/// # Errors
///
/// The database cannot be read.
pub fn read(store: &dyn ReadStore, ended: &EndedTurn) -> Result<Option<Span>, StoreError> {
    let after = ended.ordinal.saturating_sub(1);
    let filter = TaskFilter { state: None, kind: None, after, limit: 1 };
    let mut found = store.tasks(ended.group, &filter)?;
    let Some(view) = found.pop().filter(|view| view.task.ordinal == ended.ordinal) else {
        return Ok(None);
    };
    let first = first_of(store, &view.task)?;
    Ok(span(&view, first, ended.agent.as_deref(), &ended.digest))
}

/// Returns the first task of the chain of retries that `task` belongs to: the chain is one trace.
fn first_of(store: &dyn ReadStore, task: &Task) -> Result<TaskId, StoreError> {
    let (mut first, mut earlier) = (task.id, task.retry_of);
    for _ in 0..CHAIN_MAX {
        let Some(retried) = earlier else { break };
        first = retried;
        earlier = store.task(retried)?.and_then(|view| view.task.retry_of);
    }
    Ok(first)
}

/// Builds the span of a task that was started and has ended; `None` for any other task.
///
/// The span's ids depend only on the tasks' ids, so that a span that is sent twice is the same
/// span.
pub fn span(
    TaskView { task, group, .. }: &TaskView,
    first: TaskId,
    agent: Option<&str>,
    digest: &Digest,
) -> Option<Span> {
    let (start, end) = (task.start()?, task.last_frame()?);
    let operation = match task.kind() {
        TaskKind::Turn => "invoke_agent",
        TaskKind::Compaction => "compact",
    };
    let error = error(task);
    let mut attributes = vec![
        Attribute::new("gen_ai.operation.name", operation),
        // The conventions require a provider; greenroom does not know the agent's.
        Attribute::new("gen_ai.provider.name", "greenroom"),
        Attribute::new("gen_ai.conversation.id", group.as_str()),
    ];
    let mut attribute = |key, value: Option<Value>| {
        attributes.extend(value.map(|value| Attribute::new(key, value)));
    };
    attribute("gen_ai.agent.name", agent.map(Value::from));
    let model = digest.by_model.iter().next().filter(|_| digest.by_model.iter().len() == 1);
    attribute("gen_ai.response.model", model.map(|(model, _)| model.into()));
    let reason = task.ending().stop_reason.as_ref().map(wire_name);
    attribute("gen_ai.response.finish_reasons", reason.map(|reason| vec![reason.into()].into()));
    let tokens = &digest.tokens;
    let some = |tokens: u64| Some(tokens).filter(|tokens| *tokens != 0).map(Value::from);
    attribute("gen_ai.usage.input_tokens", some(tokens.input));
    attribute("gen_ai.usage.output_tokens", some(tokens.output));
    attribute("gen_ai.usage.cache_read.input_tokens", some(tokens.cached));
    attribute("error.type", error.clone().map(Value::from));
    attribute("greenroom.group", Some(group.as_str().into()));
    attribute("greenroom.task", Some(task.id.to_string().into()));
    attribute("greenroom.kind", Some(wire_name(&task.kind()).into()));
    attribute("greenroom.origin", Some(wire_name(&task.origin).into()));
    attribute("greenroom.state", Some(wire_name(&task.state()).into()));
    attribute("greenroom.attempt", Some(u64::from(task.attempt).into()));
    attribute("greenroom.run", Some(start.run.to_string().into()));
    attribute("greenroom.retry_of", task.retry_of.map(|task| task.to_string().into()));
    attribute("greenroom.queue_wait_ms", Some(since(task.created_at, start.at).into()));
    attribute("greenroom.frames", Some(digest.frame_count.into()));
    let sum = |count: fn(&_) -> u64| digest.tools.iter().map(|(_, tool)| count(tool)).sum::<u64>();
    attribute("greenroom.tools.calls", Some(sum(|tool| tool.calls).into()));
    attribute("greenroom.tools.failed", Some(sum(|tool| tool.failed).into()));
    Some(Span {
        trace_id: TraceId(first.0.as_u128()),
        span_id: span_id(task.id),
        name: agent.map_or_else(|| operation.to_owned(), |agent| format!("{operation} {agent}")),
        kind: SpanKind::Internal,
        start_time_unix_nano: nanos(start.at),
        // If the clock was set back meanwhile, the span must not end before it starts.
        end_time_unix_nano: nanos(end.at.max(start.at)),
        attributes,
        status: error.map(Status::error).unwrap_or_default(),
    })
}

/// Returns the error's code, or the cause of the interruption.
fn error(task: &Task) -> Option<String> {
    if !matches!(task.state(), TaskState::Failed | TaskState::Interrupted) {
        return None;
    }
    let ending = task.ending();
    let code = ending.error.as_ref().map(|error| error.code.clone());
    let cause = || ending.interrupted.as_ref().map(|interrupted| wire_name(&interrupted.cause));
    Some(code.or_else(cause).unwrap_or_else(|| "_OTHER".into()))
}

/// Returns the first bytes of the hash of the task's id. Zero is not a valid id.
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

/// Returns the API's word for an enum value.
fn wire_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
