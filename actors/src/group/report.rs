//! What the logs tell of a group: one line an event, so that a person can follow it.

use greenroom_core::{GroupId, Status, Task, Timestamp, Write};

use crate::{storage::Standing, word::word};

/// One line for a change of status.
pub fn tell_status(from: Status, standing: &Standing, current: Option<&Task>) {
    let (group, to, queued) = (&standing.id, standing.status, standing.queue_length);
    match current {
        Some(task) => log::info!(
            target: "greenroom::group",
            group:%, from:% = word(&from), to:% = word(&to), task:% = task.id,
            kind:% = word(&task.kind()), queued;
            "status"
        ),
        None => log::info!(
            target: "greenroom::group",
            group:%, from:% = word(&from), to:% = word(&to), queued;
            "status"
        ),
    }
}

/// One line for a fact that somebody would want to know of.
pub fn tell(group: &GroupId, write: &Write, at: Timestamp) {
    match write {
        Write::TaskEnded { task, record, .. } => {
            let since = record.started_at.unwrap_or(record.created_at);
            let stop_reason = record.ending.stop_reason.map(|reason| word(&reason));
            log::info!(
                target: "greenroom::task",
                group:%, task:%, kind:% = word(&record.kind()), state:% = word(&record.state),
                stop_reason:% = stop_reason.as_deref().unwrap_or("none"),
                error = record.ending.error.as_ref().map_or("none", |error| &error.message),
                waited_ms = since.0 - record.created_at.0, took_ms = at.0 - since.0;
                "task ended"
            );
        }
        Write::RunReady { run, pid, session, continuity } => log::info!(
            target: "greenroom::run",
            group:%, run:%, pid, session:%, continuity:% = word(continuity);
            "run ready"
        ),
        Write::RunExited { run, exit } => log::info!(
            target: "greenroom::run",
            group:%, run:%, pid:% = or_none(exit.pid), code:% = or_none(exit.code),
            signal:% = or_none(exit.signal),
            reason:% = word(&exit.reason), detail = exit.detail,
            stderr_dropped = exit.stderr_dropped;
            "run exited"
        ),
        Write::ContextLost { session } => log::warn!(
            target: "greenroom::group", group:%, session:%;
            "context lost: the agent could not take its session up again and starts afresh"
        ),
        Write::AgentOutputRejected { run, reason, .. } => log::warn!(
            target: "greenroom::run", group:%, run:%, reason; "agent output rejected"
        ),
        _ => {}
    }
}

fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}
