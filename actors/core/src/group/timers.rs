//! Limits in time: which timers run now, and what follows when one fires.

use super::{
    Current, Group,
    decide::Transition,
    lock::{LOCK_RETRY_MS, LockState},
};
use crate::{
    CancelReason, CompactionId, CompactionOrder, Now, OnInterrupt, PermissionId, PermissionPolicy,
    RetryPolicy, RunId, RunPhase, Stop, Task, TaskId, TaskKind, pool::Activity,
};

/// How long an agent may take to answer a cancel before its process tree is stopped.
const CANCEL_MS: u64 = 10_000;

/// What is limited in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// An attempt.
    Attempt(TaskId),
    /// The cancel of a running task.
    Cancel(TaskId),
    /// A compaction, ordered or detected (AM-28).
    Compaction(CompactionId),
    /// The wait before the next request for a refused lock, and the number of requests so far.
    Lock(TaskId, u64),
    /// A permission.
    Permission(PermissionId),
    /// The backoff of a task, and the number of the attempt that failed.
    Backoff(TaskId, u32),
    /// The wait before the next run, and how many in a row settled no attempt.
    Launch(u32),
    /// The wait before the next start of an agent that wants a login, and how many starts in a row
    /// found that.
    Login(u32),
    /// A task that has to start by a deadline.
    Queued(TaskId),
    /// An idle run, since the frame with this number.
    Idle(RunId, u64),
}

/// The limits that [`Group::timers`] and [`Group::apply`] use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One attempt, milliseconds.
    pub turn_ms: u64,
    /// A compaction, and the wait for its lock, milliseconds.
    pub compaction_ms: u64,
    /// An idle run, milliseconds.
    pub idle_ms: u64,
    /// A permission, milliseconds.
    pub permission_ms: u64,
    /// The backoff before the first retry, milliseconds.
    pub retry_base_ms: u64,
    /// The number of waiting tasks.
    pub queue_max: usize,
    /// The bytes of waiting prompts and their metadata.
    pub queue_bytes_max: usize,
}

/// A group's settings combined with its agent's profile and the server's limits.
///
/// The actor passes them with each event, and a decision uses those in force at that moment. What
/// an attempt keeps to its end is in its [`Task`] (deadline, prompt, strategy) and in its
/// [`Run`](crate::Run) (agent, directory, detectors).
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveSettings {
    /// The limits of every group.
    pub limits: Limits,
    /// The share of the context window at which the group orders a compaction; 0: never.
    pub auto_compact: f64,
    /// Which failed attempts are retried.
    pub retry: RetryPolicy,
    /// What happens to the queue after a turn was interrupted.
    pub on_interrupt: OnInterrupt,
    /// Who decides on permissions.
    pub permissions: PermissionPolicy,
    /// How the profile's agent is ordered to compact; `None`: it cannot be.
    pub compaction: Option<CompactionOrder>,
    /// Whether the profile has detectors beyond ACP. A run keeps the value of its launch.
    pub has_detectors: bool,
    /// Whether the server shuts down: the group then begins nothing, and requests no lock (DQ-11).
    pub is_draining: bool,
    /// Whether the server has room for another pending permission.
    pub has_permission_room: bool,
}

impl Group {
    /// Returns the timers that run now, each with its milliseconds from the moment that it began.
    pub fn timers(&self, limits: &Limits, now: Now) -> impl Iterator<Item = (Timer, u64)> {
        let ready = self.run.as_ref().filter(|run| run.phase == RunPhase::Ready);
        let active = self.recent.active().map(|active| active.id);
        let task = ready.and(self.current.as_ref()).and_then(|Current { task, attempt }| {
            let attempt = attempt.as_ref()?;
            if attempt.cancel_reason.is_some() {
                return Some((Timer::Cancel(task.id), CANCEL_MS));
            }
            let limit = match task.kind() {
                TaskKind::Turn => limits.turn_ms,
                TaskKind::Compaction => limits.compaction_ms,
            };
            Some((Timer::Attempt(task.id), task.deadline_ms.unwrap_or(limit)))
        });
        let idle = ready
            .filter(|_| self.activity() == Some(Activity::Idle) && self.permissions.is_empty())
            .map(|run| (Timer::Idle(run.id, self.state.last_seq), limits.idle_ms));
        let lock = match self.lock {
            LockState::Refused { task, tries, .. } if self.may_request_lock() => {
                Some((Timer::Lock(task, tries), LOCK_RETRY_MS))
            }
            _ => None,
        };
        let compaction = active.map(|id| (Timer::Compaction(id), limits.compaction_ms));
        let launch = self.state.crash_loop.waits();
        let launch = launch.filter(|wait| wait.logins > 0 || self.run.is_none());
        let launch = launch.map(|wait| {
            let timer = match wait.logins {
                0 => Timer::Launch(self.state.crash_loop.crashes),
                starts => Timer::Login(starts),
            };
            (timer, wait.due.left_ms(now))
        });
        // A retried task is first in the queue, and nothing else starts before it.
        let backoff = self.waiting.front().and_then(|task| {
            Some((Timer::Backoff(task.id, task.attempt), task.retry_at()?.left_ms(now)))
        });
        let permission_ms = limits.permission_ms;
        let permissions = self
            .permissions
            .iter()
            .map(move |open| (Timer::Permission(open.permission), permission_ms));
        let timers = [compaction, task, idle, lock, launch, backoff, self.next_to_expire(now)];
        timers.into_iter().flatten().chain(permissions)
    }

    /// Returns the timer of the task that has to start first.
    pub(super) fn next_to_expire(&self, now: Now) -> Option<(Timer, u64)> {
        let unsent = self.current.iter().filter(|current| current.attempt.is_none());
        let unsent = unsent.map(|current| &current.task);
        let waiting = self.waiting.iter().take(if self.expiring > 0 { usize::MAX } else { 0 });
        let left = |task: &Task| Some((Timer::Queued(task.id), task.start_within(now)?));
        unsent.chain(waiting).filter_map(left).min_by_key(|(_, left)| *left)
    }
}

impl Transition<'_> {
    /// Decides what follows from a timer. One whose subject is gone has no effect.
    pub(super) fn timer_fired(&mut self, timer: Timer) {
        match timer {
            Timer::Attempt(id) if self.group.current().is_some_and(|task| task.id == id) => {
                self.interrupt(CancelReason::Deadline);
            }
            Timer::Cancel(id) if self.group.current().is_some_and(|task| task.id == id) => {
                self.stop(Stop::Firmly);
            }
            Timer::Idle(run, seq) if self.group.state.last_seq == seq => self.evict(run),
            Timer::Compaction(id) => self.compaction_expired(id),
            Timer::Lock(task, tries) => self.lock_expired(task, tries),
            Timer::Permission(id) => self.permission_expired(id),
            Timer::Backoff(task, attempt) => self.backoff_ended(task, attempt),
            Timer::Launch(_) | Timer::Login(_) => self.launch_allowed(timer),
            Timer::Queued(task) => self.task_expired(task),
            Timer::Attempt(_) | Timer::Cancel(_) | Timer::Idle(..) => {}
        }
    }
}
