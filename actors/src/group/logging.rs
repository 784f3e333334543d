//! The log lines of a group: one line an event, so that a person can follow it.

use greenroom_core::{
    Compaction, CompactionStatus, Fact, GroupId, HoldReason, Status, Task, Timestamp,
};

use crate::{storage::GroupSummary, wire_name::wire_name};

/// Logs a change of status.
pub fn log_status(from: Status, summary: &GroupSummary, current: Option<&Task>) {
    let (group, to, queued) = (&summary.id, summary.status, summary.queue_length);
    match current {
        Some(task) => log::info!(
            target: "greenroom::group",
            group:%, from:% = wire_name(&from), to:% = wire_name(&to), task:% = task.id,
            kind:% = wire_name(&task.kind()), queued;
            "status"
        ),
        None => log::info!(
            target: "greenroom::group",
            group:%, from:% = wire_name(&from), to:% = wire_name(&to), queued;
            "status"
        ),
    }
}

/// Logs a fact, if an operator may want to know of it. Of rejected lines, [`RejectedLog`] logs.
///
/// [`RejectedLog`]: super::rejected_log::RejectedLog
pub fn log_fact(group: &GroupId, fact: &Fact, at: Timestamp) {
    match fact {
        Fact::TaskEnded { task, record, .. } => {
            let since = record.start().map_or(record.created_at, |start| start.at);
            let stop_reason = record.ending().stop_reason.map(|reason| wire_name(&reason));
            log::info!(
                target: "greenroom::task",
                group:%, task:%, kind:% = wire_name(&record.kind()),
                state:% = wire_name(&record.state()),
                stop_reason:% = stop_reason.as_deref().unwrap_or("none"),
                error = record.ending().error.as_ref().map_or("none", |error| &error.message),
                waited_ms = since.0 - record.created_at.0, took_ms = at.0 - since.0;
                "task ended"
            );
        }
        Fact::RunReady { run, pid, session, continuity, .. } => log::info!(
            target: "greenroom::run",
            group:%, run:%, pid, session:%, continuity:% = wire_name(continuity);
            "run ready"
        ),
        Fact::RunExited { run, exit } => log::info!(
            target: "greenroom::run",
            group:%, run:%, pid:% = or_none(exit.pid), code:% = or_none(exit.code),
            signal:% = or_none(exit.signal),
            reason:% = wire_name(&exit.reason), detail = exit.detail,
            stderr_dropped = exit.stderr_dropped;
            "run exited"
        ),
        Fact::TaskRetrying { task, attempt, error, wait_ms, .. } => log::info!(
            target: "greenroom::task",
            group:%, task:%, attempt, error = error.message, wait_ms;
            "attempt failed without output; the task is retried"
        ),
        Fact::GroupHeld { reason } => {
            // The warning about the lost context came right before.
            let level = if *reason == HoldReason::ContextLost {
                log::Level::Info
            } else {
                log::Level::Warn
            };
            log::log!(
                target: "greenroom::group", level, group:%, reason:% = wire_name(reason);
                "group held: a turn was interrupted; the queue waits until the group is resumed"
            );
        }
        Fact::AgentDegraded { runs, wait_ms, .. } => log::warn!(
            target: "greenroom::run", group:%, runs, wait_ms;
            "agent fails repeatedly; the next run waits"
        ),
        Fact::AgentAuthRequired { agent, starts, error, wait_ms, .. } => log::warn!(
            target: "greenroom::run", group:%, agent, starts, error, wait_ms,
            remedy:% = format_args!(
                "log in to the agent of profile \"{agent}\" as the server's user and with the \
                 profile's environment, then: greenroom resume {group}"
            );
            "agent_auth: the agent wants a login; the queue waits"
        ),
        Fact::PermissionOpened(permission) => log::info!(
            target: "greenroom::permission",
            group:%, permission:% = permission.permission, task:% = or_none(permission.task),
            tool = permission.tool_kind.as_deref().unwrap_or("none");
            "permission opened"
        ),
        Fact::PermissionResolved { permission, state, selected, resolved_by, .. } => log::info!(
            target: "greenroom::permission",
            group:%, permission:%, state:% = wire_name(state),
            selected = selected.as_deref().unwrap_or("none"), by = &**resolved_by;
            "permission resolved"
        ),
        Fact::ContextLost { session, cause } => log::warn!(
            target: "greenroom::group", group:%, session:%,
            cause = cause.as_deref().unwrap_or("unknown");
            "context lost: the agent could not restore its session and starts a new one"
        ),
        Fact::CompactionStarted(compaction) => log::info!(
            target: "greenroom::compaction",
            group:%, compaction:% = compaction.id, task:% = or_none(compaction.task),
            source:% = wire_name(&compaction.source), segment = compaction.from_segment;
            "compaction started"
        ),
        Fact::CompactionEnded(compaction) => log_compaction(group, compaction, at),
        Fact::SegmentStarted { segment, session, .. } => log::info!(
            target: "greenroom::group", group:%, segment, session:%; "segment started"
        ),
        Fact::LockRefused { task, holder, again: false } => log::info!(
            target: "greenroom::compaction", group:%, task:%, holder;
            "compaction waits for the session's lock"
        ),
        Fact::LockBypassed { task, remedy } => log::warn!(
            target: "greenroom::compaction", group:%, task:%, remedy = &**remedy;
            "lock_bypassed: the compaction continues without a lock"
        ),
        Fact::LockLost { task } => log::warn!(
            target: "greenroom::compaction", group:%, task:%;
            "compaction lost its lock and is not counted"
        ),
        Fact::AgentWedged { run, sign } => log::warn!(
            target: "greenroom::run", group:%, run:%, sign = &**sign;
            "agent wedged by a cancel: it is restarted, and its session restored"
        ),
        _ => {}
    }
}

fn log_compaction(group: &GroupId, compaction: &Compaction, at: Timestamp) {
    let details = &compaction.details;
    let sources: Vec<String> = compaction.sources.iter().map(wire_name).collect();
    let level = match compaction.status {
        CompactionStatus::Failed | CompactionStatus::Abandoned => log::Level::Warn,
        _ => log::Level::Info,
    };
    log::log!(
        target: "greenroom::compaction", level,
        group:%, compaction:% = compaction.id, task:% = or_none(compaction.task),
        status:% = wire_name(&compaction.status), sources:% = sources.join(","),
        tokens_before:% = or_none(details.tokens_before),
        tokens_after:% = or_none(details.tokens_after),
        error = details.error.as_deref().unwrap_or("none"),
        took_ms = at.0 - compaction.started_at.0;
        "compaction ended"
    );
}

fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}
