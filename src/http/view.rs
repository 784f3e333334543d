//! Groups and tasks as JSON, under the names of the API.

use std::collections::BTreeMap;

use greenroom_actors::{
    clock,
    metrics::LabelValue as _,
    storage::{BrokenGroup, GroupNo, GroupSummary, Listed, TaskView},
};
use greenroom_core::{
    Blocked, Deadline, Ending, GroupId, Interrupted, OnInterrupt, Origin, PermissionPolicy,
    Readable, RunId, SessionId, Source, Stage, Status, StopReason, TaskError, TaskFindings, TaskId,
    TaskKind, TaskState, Timestamp, Usage, Work,
};
use serde::{Serialize, Serializer};

use super::{
    error::ApiError,
    state::{AppState, Phase},
};

/// A time, in JSON as RFC 3339.
#[derive(Clone, Copy)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&clock::rfc3339(self.0))
    }
}

/// A group.
#[derive(Serialize)]
pub struct Group {
    id: GroupId,
    agent: Option<String>,
    status: &'static str,
    blocked_by: Option<Blocked>,
    queue_length: Option<u64>,
    current_task: Option<TaskId>,
    current_run: Option<RunId>,
    session_id: Option<SessionId>,
    segment: Option<u32>,
    /// How full its context is.
    pub usage: Option<Usage>,
    /// Its compactions so far.
    pub compaction: Option<CompactionSummary>,
    last_seq: Option<u64>,
    cwd: Option<String>,
    title: Option<String>,
    auto_compact: Option<f64>,
    permission_policy: Option<PermissionPolicy>,
    on_interrupt: Option<OnInterrupt>,
    metadata: Option<Readable>,
    created_at: Option<Time>,
    /// The stored row that cannot be read.
    broken: Option<String>,
}

/// The compactions of a group so far; absent before the first one (AM-31), unless automatic ones
/// are paused.
#[derive(Clone, Copy, Serialize)]
pub struct CompactionSummary {
    active: bool,
    count: u64,
    last_source: Option<Source>,
    last_started_at: Option<Time>,
    last_completed_at: Option<Time>,
    /// Until when the group orders none by itself.
    paused_until: Option<Time>,
    /// What paused it, if that was the lock of another program.
    blocked_by: Option<Blocked>,
}

impl Group {
    /// Shows a group of a list, also one whose own row cannot be read.
    pub fn listed(state: &AppState, listed: Listed) -> Self {
        match listed.summary {
            Ok(summary) => Self::new(state, listed.no, *summary),
            Err(row) => Self::unreadable(listed.id, row.what),
        }
    }

    /// Shows a group whose own row cannot be read: only its id is known.
    fn unreadable(id: GroupId, broken: String) -> Self {
        Self {
            id,
            agent: None,
            status: BROKEN,
            broken: Some(broken),
            blocked_by: None,
            queue_length: None,
            current_task: None,
            current_run: None,
            session_id: None,
            segment: None,
            usage: None,
            compaction: None,
            last_seq: None,
            cwd: None,
            title: None,
            auto_compact: None,
            permission_policy: None,
            on_interrupt: None,
            metadata: None,
            created_at: None,
        }
    }

    /// Shows a group by its stored summary, and by what this server knows of it: the phase, the
    /// directory of its agent, the rows that cannot be read.
    pub fn new(state: &AppState, no: GroupNo, summary: GroupSummary) -> Self {
        let is_unsettled = state.shared.unsettled.contains(no);
        let group = summary.state;
        let (session_id, usage) = group.session.map(|session| (session.id, session.usage)).unzip();
        let settings = group.settings;
        let compacting = group.compacting;
        let pause = compacting.pause(clock::moment());
        let is_known = compacting.last_source.is_some() || pause.is_some();
        let compaction = is_known.then(|| CompactionSummary {
            active: summary.is_compacting && !is_unsettled,
            count: compacting.count,
            last_source: compacting.last_source,
            last_started_at: compacting.last_started_at.map(Time),
            last_completed_at: compacting.last_completed_at.map(Time),
            paused_until: pause.map(|(due, _)| Time(due.at_wall_clock())),
            blocked_by: pause.filter(|(_, lock_held)| *lock_held).map(|_| Blocked::Lock),
        });
        let broken = state.health().broken(no);
        // The run and the task that have its slot by its row ended with an earlier server.
        let own = |of_row| if is_unsettled { Status::Starting } else { of_row };
        Self {
            id: summary.id,
            agent: Some(settings.agent),
            status: match &broken {
                Some(BrokenGroup { stops: true, .. }) => BROKEN,
                _ => status(own(summary.status), *state.phase.borrow()),
            },
            broken: broken.map(|broken| broken.to_string()),
            blocked_by: state.blocked_by(summary.blocked_by),
            queue_length: Some(summary.queue_length),
            current_task: summary.current_task.filter(|_| !is_unsettled),
            current_run: summary.current_run.filter(|_| !is_unsettled),
            session_id,
            segment: Some(group.segment),
            usage: usage.flatten(),
            compaction,
            last_seq: Some(group.last_seq),
            cwd: settings.cwd.or_else(|| Some(state.shared.work_dir.of(no).display().to_string())),
            title: settings.title,
            auto_compact: settings.auto_compact,
            permission_policy: settings.permission_policy,
            on_interrupt: settings.on_interrupt,
            metadata: settings.metadata.map(Readable::from),
            created_at: group.created_at.map(Time),
        }
    }

    /// Returns its status, as shown.
    pub fn status(&self) -> &'static str {
        self.status
    }
}

/// The groups whose stored status is not theirs: what counts groups by their rows leaves them out.
pub struct CountedApart {
    /// Their numbers.
    pub groups: Vec<GroupNo>,
    /// How many of them are broken.
    pub broken: u64,
    /// How many have to be recovered, and are shown as `starting`.
    starting: u64,
}

impl CountedApart {
    /// Finds them.
    pub fn new(state: &AppState) -> Self {
        let mut groups = state.health().broken_groups();
        let broken = groups.len();
        groups.extend(state.shared.unsettled.all());
        groups.sort_unstable();
        groups.dedup();
        let starting = (groups.len() - broken) as u64;
        Self { groups, broken: broken as u64, starting }
    }

    /// Adds them to the number of groups by status.
    pub fn add_to(&self, groups: &mut BTreeMap<String, u64>) {
        let starting = status(Status::Starting, Phase::Serving);
        for (name, count) in [(BROKEN, self.broken), (starting, self.starting)] {
            if count > 0 {
                *groups.entry(name.into()).or_default() += count;
            }
        }
    }
}

/// The status of a group that accepts no work because a row of it cannot be read.
pub const BROKEN: &str = "broken";

/// The status of every group that is not archived, while the server shuts down.
pub const DRAINING: &str = "draining";

/// Returns the status that a filter names.
///
/// # Errors
///
/// [`ApiError::InvalidQuery`] with all statuses, if there is none of that name.
pub fn status_word(name: &str) -> Result<&'static str, ApiError> {
    let own = Status::ALL.iter().map(|known| status(*known, Phase::Serving));
    let words: Vec<&str> = own.chain([DRAINING, BROKEN]).collect();
    words.iter().find(|word| **word == name).copied().ok_or_else(|| {
        let words = words.join("`, `");
        ApiError::InvalidQuery(format!(
            "status: unknown status `{name}`, expected one of `{words}`"
        ))
    })
}

/// Returns the API's name of a status.
pub fn status(status: Status, phase: Phase) -> &'static str {
    match status {
        Status::Archived => "archived",
        _ if phase != Phase::Serving => DRAINING,
        Status::Idle => "idle",
        Status::Starting => "starting",
        Status::Running => "running",
        Status::Compacting => "compacting",
        Status::Waiting => "waiting",
        Status::Paused => "paused",
        Status::Held => "held",
        Status::Degraded => "degraded",
    }
}

/// A task.
#[derive(Serialize)]
pub struct Task {
    id: TaskId,
    group: GroupId,
    kind: TaskKind,
    state: TaskState,
    blocked_by: Option<Blocked>,
    position: Option<u64>,
    origin: Origin,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Readable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    focus: Option<std::sync::Arc<str>>,
    attempt: u32,
    stop_reason: Option<StopReason>,
    error: Option<TaskError>,
    text: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    text_truncated: bool,
    usage: Option<TaskUsage>,
    run: Option<RunId>,
    segment: Option<u32>,
    seq_first: Option<u64>,
    seq_last: Option<u64>,
    interrupted: Option<Interrupted>,
    findings: TaskFindings,
    cancel_requested: bool,
    deadline_ms: Option<u64>,
    expires_at: Option<Time>,
    retry_at: Option<Time>,
    created_at: Time,
    started_at: Option<Time>,
    ended_at: Option<Time>,
    deduplicated: bool,
    retry_of: Option<TaskId>,
    metadata: Option<Readable>,
}

/// How full the context was when the task ended, and the tokens that the agent reported for it.
#[derive(Serialize)]
struct TaskUsage {
    #[serde(flatten)]
    context: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Readable>,
}

impl Task {
    /// Shows a task; `deduplicated` is whether an earlier request submitted it.
    pub fn new(state: &AppState, view: TaskView, deduplicated: bool) -> Self {
        let TaskView { task, group, position, blocked_by } = view;
        let (kind, task_state) = (task.kind(), task.state());
        let (retry_at, start, error) = (task.retry_at(), task.start(), task.error().cloned());
        let (prompt, focus) = match task.work {
            Work::Turn { prompt } => (Some(prompt.into()), None),
            Work::Compaction { focus, .. } => (None, focus),
        };
        let (frame, ending) = match task.stage {
            Stage::Ended(end) => (end.frame, end.ending),
            Stage::Queued
            | Stage::Claimed { .. }
            | Stage::Running { .. }
            | Stage::Retrying { .. } => (None, Ending::default()),
        };
        let usage = (ending.usage.is_some() || ending.tokens.is_some()).then_some(TaskUsage {
            context: ending.usage,
            tokens: ending.tokens.map(Readable::from),
        });
        Self {
            id: task.id,
            group,
            kind,
            state: task_state,
            blocked_by: state.blocked_by(blocked_by),
            position,
            origin: task.origin,
            prompt,
            focus,
            attempt: task.attempt,
            stop_reason: ending.stop_reason,
            error,
            text: ending.text,
            text_truncated: ending.text_truncated,
            usage,
            run: start.map(|start| start.run),
            segment: start.map(|start| start.segment),
            seq_first: start.map(|start| start.seq),
            seq_last: frame.map(|frame| frame.seq),
            interrupted: ending.interrupted,
            findings: ending.findings,
            cancel_requested: task.cancel_requested,
            deadline_ms: task.deadline_ms,
            expires_at: task.expires.as_ref().map(Deadline::at_wall_clock).map(Time),
            retry_at: retry_at.as_ref().map(Deadline::at_wall_clock).map(Time),
            created_at: Time(task.created_at),
            started_at: start.map(|start| Time(start.at)),
            ended_at: frame.map(|frame| Time(frame.at)),
            deduplicated,
            retry_of: task.retry_of,
            metadata: task.metadata.map(Readable::from),
        }
    }
}
