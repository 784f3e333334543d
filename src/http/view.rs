//! Groups and tasks as JSON: the names of the contract.

use std::path::Path;

use greenroom_actors::{
    clock,
    storage::{Broken, Standing, TaskView},
};
use greenroom_core::{
    Blocked, Due, Finding, GroupId, Interrupted, Json, OnInterrupt, Origin, PermissionPolicy,
    RunId, SessionId, Source, Status, StopReason, TaskError, TaskId, TaskKind, TaskState,
    Timestamp, Usage, Work,
};
use serde::{Serialize, Serializer};

use super::Phase;

/// A time as RFC 3339.
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
    /// What became of its compactions.
    pub compaction: Option<Compacting>,
    last_seq: Option<u64>,
    cwd: Option<String>,
    title: Option<String>,
    auto_compact: Option<f64>,
    permission_policy: Option<PermissionPolicy>,
    on_interrupt: Option<OnInterrupt>,
    metadata: Option<Json>,
    created_at: Option<Time>,
    /// What of it cannot be read.
    broken: Option<String>,
}

/// What became of a group's compactions; absent before the first one (SEEDS AM-31).
#[derive(Clone, Copy, Serialize)]
pub struct Compacting {
    active: bool,
    count: u64,
    last_source: Option<Source>,
    last_started_at: Option<Time>,
    last_completed_at: Option<Time>,
}

impl Group {
    /// A group whose own row cannot be read: only its name is known.
    pub fn unreadable(id: GroupId, broken: String) -> Self {
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

    /// The group while the server is in `phase`; it works in `own_dir` unless somebody named a
    /// directory. `broken` is what is known of rows of it that cannot be read.
    pub fn new(standing: Standing, phase: Phase, own_dir: &Path, broken: Option<Broken>) -> Self {
        let head = standing.head;
        let settings = head.settings;
        let known = head.compacting;
        let compaction = known.last_source.map(|_| Compacting {
            active: standing.is_compacting,
            count: known.count,
            last_source: known.last_source,
            last_started_at: known.last_started_at.map(Time),
            last_completed_at: known.last_completed_at.map(Time),
        });
        Self {
            id: standing.id,
            agent: Some(settings.agent),
            status: match &broken {
                Some(Broken { stops: true, .. }) => BROKEN,
                _ => status(standing.status, phase),
            },
            broken: broken.map(|broken| broken.to_string()),
            blocked_by: standing.blocked_by,
            queue_length: Some(standing.queue_length),
            current_task: standing.current_task,
            current_run: standing.current_run,
            session_id: head.session,
            segment: Some(head.segment),
            usage: head.usage,
            compaction,
            last_seq: Some(head.last_seq),
            cwd: settings.cwd.or_else(|| Some(own_dir.display().to_string())),
            title: settings.title,
            auto_compact: settings.auto_compact,
            permission_policy: settings.permission_policy,
            on_interrupt: settings.on_interrupt,
            metadata: settings.metadata,
            created_at: head.created_at.map(Time),
        }
    }
}

impl Group {
    /// Whether it cannot work, as a row of it cannot be read.
    pub fn is_broken(&self) -> bool {
        self.status == BROKEN
    }
}

/// The status of a group that cannot work, as a row of it cannot be read.
pub const BROKEN: &str = "broken";

/// The contract's word for a status.
pub fn status(status: Status, phase: Phase) -> &'static str {
    match status {
        Status::Archived => "archived",
        _ if phase != Phase::Serving => "draining",
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
    prompt: Option<Json>,
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
    findings: Vec<Finding>,
    cancel_requested: bool,
    deadline_ms: Option<u64>,
    expires_at: Option<Time>,
    retry_at: Option<Time>,
    created_at: Time,
    started_at: Option<Time>,
    ended_at: Option<Time>,
    deduplicated: bool,
    retry_of: Option<TaskId>,
    metadata: Option<Json>,
}

/// How full the context was when the task ended, and what the agent says it spent on it.
#[derive(Serialize)]
struct TaskUsage {
    #[serde(flatten)]
    context: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Json>,
}

impl Task {
    /// The task as it stands.
    pub fn new(view: TaskView, deduplicated: bool) -> Self {
        let TaskView { task, group, position, blocked_by } = view;
        let kind = task.kind();
        let (prompt, focus) = match task.work {
            Work::Turn { prompt } => (Some(prompt), None),
            Work::Compaction { focus, .. } => (None, focus),
        };
        let ending = task.ending;
        let usage = (ending.usage.is_some() || ending.tokens.is_some())
            .then_some(TaskUsage { context: ending.usage, tokens: ending.tokens });
        Self {
            id: task.id,
            group,
            kind,
            state: task.state,
            blocked_by,
            position,
            origin: task.origin,
            prompt,
            focus,
            attempt: task.attempt,
            stop_reason: ending.stop_reason,
            error: ending.error,
            text: ending.text,
            text_truncated: ending.text_truncated,
            usage,
            run: task.run,
            segment: task.segment,
            seq_first: task.seq_first,
            seq_last: task.seq_last,
            interrupted: ending.interrupted,
            findings: ending.findings,
            cancel_requested: task.cancel_requested,
            deadline_ms: task.deadline_ms,
            expires_at: task.expires.as_ref().map(Due::shown).map(Time),
            retry_at: task.retry_at.as_ref().map(Due::shown).map(Time),
            created_at: Time(task.created_at),
            started_at: task.started_at.map(Time),
            ended_at: task.ended_at.map(Time),
            deduplicated,
            retry_of: task.retry_of,
            metadata: task.metadata,
        }
    }
}

/// A page of a list.
#[derive(Serialize)]
pub struct Page<T> {
    /// What was asked for.
    pub items: Vec<T>,
    /// Where the next page begins, if there is one.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page out of `items`, one more of which was asked for than the page holds; `cursor` names
    /// the last one.
    pub fn cut(mut items: Vec<T>, limit: usize, cursor: impl Fn(&T) -> String) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(cursor);
        Self { items, next_cursor }
    }
}
