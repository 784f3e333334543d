//! What the logs tell of a group: one line an event, so that a person can follow it.

use greenroom_core::{Compaction, CompactionStatus, GroupId, Held, Status, Task, Timestamp, Write};

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
        Write::RunReady { run, pid, session, continuity, .. } => log::info!(
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
        Write::TaskRetrying { task, attempt, error, wait_ms, .. } => log::info!(
            target: "greenroom::task",
            group:%, task:%, attempt, error = error.message, wait_ms;
            "attempt failed before it began anything; another one is made"
        ),
        Write::GroupHeld { reason } => {
            // A lost context was warned of right before.
            let level =
                if *reason == Held::ContextLost { log::Level::Info } else { log::Level::Warn };
            log::log!(
                target: "greenroom::group", level, group:%, reason:% = word(reason);
                "group held: a turn was cut off; resume it once somebody decided what follows"
            );
        }
        Write::AgentDegraded { runs, wait_ms, .. } => log::warn!(
            target: "greenroom::run", group:%, runs, wait_ms;
            "agent fails again and again; the next run waits"
        ),
        Write::PermissionOpened(permission) => log::info!(
            target: "greenroom::permission",
            group:%, permission:% = permission.permission, task:% = or_none(permission.task),
            tool = permission.tool_kind.as_deref().unwrap_or("none");
            "permission opened"
        ),
        Write::PermissionResolved { permission, state, selected, resolved_by, .. } => log::info!(
            target: "greenroom::permission",
            group:%, permission:%, state:% = word(state),
            selected = selected.as_deref().unwrap_or("none"), by = &**resolved_by;
            "permission resolved"
        ),
        Write::ContextLost { session } => log::warn!(
            target: "greenroom::group", group:%, session:%;
            "context lost: the agent could not take its session up again and starts afresh"
        ),
        Write::CompactionStarted(compaction) => log::info!(
            target: "greenroom::compaction",
            group:%, compaction:% = compaction.id, task:% = or_none(compaction.task),
            source:% = word(&compaction.source), segment = compaction.from_segment;
            "compaction started"
        ),
        Write::CompactionEnded(compaction) => tell_compaction(group, compaction, at),
        Write::SegmentStarted { segment, session, .. } => log::info!(
            target: "greenroom::group", group:%, segment, session:%; "segment started"
        ),
        Write::LockRefused { task, holder, again: false } => log::info!(
            target: "greenroom::compaction", group:%, task:%, holder;
            "compaction waits for the session's lock"
        ),
        Write::LockBypassed { task, remedy } => log::warn!(
            target: "greenroom::compaction", group:%, task:%, remedy = &**remedy;
            "lock_bypassed: the compaction goes on without a lock"
        ),
        Write::LockLost { task } => log::warn!(
            target: "greenroom::compaction", group:%, task:%;
            "compaction lost its lock, and will not count"
        ),
        Write::AgentWedged { run, sign } => log::warn!(
            target: "greenroom::run", group:%, run:%, sign = &**sign;
            "agent wedged by a cancel: it is restarted, and its session taken up again"
        ),
        Write::AgentOutputRejected { run, reason, .. } => log::warn!(
            target: "greenroom::run", group:%, run:%, reason; "agent output rejected"
        ),
        _ => {}
    }
}

fn tell_compaction(group: &GroupId, compaction: &Compaction, at: Timestamp) {
    let details = &compaction.details;
    let sources: Vec<String> = compaction.sources.iter().map(word).collect();
    let level = match compaction.status {
        CompactionStatus::Failed | CompactionStatus::Abandoned => log::Level::Warn,
        _ => log::Level::Info,
    };
    log::log!(
        target: "greenroom::compaction", level,
        group:%, compaction:% = compaction.id, task:% = or_none(compaction.task),
        status:% = word(&compaction.status), sources:% = sources.join(","),
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
