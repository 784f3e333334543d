//! What greenroom counts while it runs, for a Prometheus to read.
//!
//! It owns the counters, and the one place that turns facts into them, after their commit. All of
//! them are atomics that are found without a lock; a batch is counted, not its lines. What the
//! database knows is not counted here: it is read when somebody asks.

mod each;
mod histogram;

use greenroom_core::{
    CompactionStatus, ExitReason, Origin, Source, StopReason, Task, TaskId, TaskKind, TaskState,
    Timestamp, Write,
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

pub use self::{
    each::{Closed, Each, Key, Labels},
    histogram::Histogram,
};
use crate::storage::Writes;

/// Upper bounds for what takes from a moment to hours, seconds.
const SECONDS: &[f64] = &[
    0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0,
];
/// Upper bounds for a commit, seconds.
const COMMIT_SECONDS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Upper bounds for the groups of one transaction.
const GROUPS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// What all groups and agents of a server count.
#[derive(Debug)]
pub struct Metrics {
    accepted: Each<(TaskKind, Origin), Counter>,
    ended: Each<(TaskKind, TaskState), Counter>,
    queue_wait: Histogram,
    turn: Each<StopReason, Histogram>,
    compaction: Each<(Source, CompactionStatus), Histogram>,
    retries: Counter,
    frames: Counter,
    frame_bytes: Counter,
    runs_started: Counter,
    runs_ended: Each<ExitReason, Counter>,
    lines_rejected: Counter,
    stderr_dropped: Counter,
    lock_bypasses: Counter,
    lock_losses: Counter,
    /// Processes that outlived their run or their server, and were found and killed.
    pub orphans_reaped: Counter,
    /// Arbiters that do not turn now: see [`crate::watchdog`].
    pub arbiters_stalled: Gauge,
    /// How often an arbiter stopped turning.
    pub arbiter_stalls: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            accepted: Each::new(|_| Counter::default()),
            ended: Each::only(
                |(_, state): (TaskKind, TaskState)| state.is_terminal(),
                |_| Counter::default(),
            ),
            queue_wait: Histogram::new(SECONDS),
            turn: Each::new(|_| Histogram::new(SECONDS)),
            compaction: Each::only(
                |(_, status): (Source, CompactionStatus)| status != CompactionStatus::InProgress,
                |_| Histogram::new(SECONDS),
            ),
            retries: Counter::default(),
            frames: Counter::default(),
            frame_bytes: Counter::default(),
            runs_started: Counter::default(),
            runs_ended: Each::new(|_| Counter::default()),
            lines_rejected: Counter::default(),
            stderr_dropped: Counter::default(),
            lock_bypasses: Counter::default(),
            lock_losses: Counter::default(),
            orphans_reaped: Counter::default(),
            arbiters_stalled: Gauge::default(),
            arbiter_stalls: Counter::default(),
        }
    }
}

impl Metrics {
    /// Names all of it.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("tasks_accepted", "Tasks that were accepted, durably", self.accepted.clone());
        to.register("tasks_ended", "Tasks that reached a terminal state", self.ended.clone());
        to.register("task_retries", "Attempts that came to nothing and are made again", self.retries.clone());
        to.register("queue_wait_seconds", "From a task's acceptance to the START of its first attempt; a first attempt whose agent did not start is left out", self.queue_wait.clone());
        to.register("turn_seconds", "From a turn's START to its settlement, each attempt by itself", self.turn.clone());
        to.register("compaction_seconds", "From a compaction's begin to its end, by who told of it first; one that was only seen to end counts as 0", self.compaction.clone());
        to.register("frames", "Frames that were stored", self.frames.clone());
        to.register("frame_bytes", "Bytes of the frames that were stored", self.frame_bytes.clone());
        to.register("runs_started", "Agent processes that were ordered to start", self.runs_started.clone());
        to.register("runs_ended", "Agent processes that ended, by why", self.runs_ended.clone());
        to.register("agent_lines_rejected", "Lines of agents that are no protocol message", self.lines_rejected.clone());
        to.register("stderr_lines_dropped", "Lines on agents' stderr that nobody kept, counted at the end of their run", self.stderr_dropped.clone());
        to.register("lock_bypasses", "Compactions that went on without a lock as there was none to be had", self.lock_bypasses.clone());
        to.register("lock_losses", "Compactions whose lock was taken over or could not be kept", self.lock_losses.clone());
        to.register("orphans_reaped", "Processes that outlived their run or their server, found and killed", self.orphans_reaped.clone());
        to.register("arbiters_stalled", "Threads of actors that have not turned for a second", self.arbiters_stalled.clone());
        to.register("arbiter_stalls", "How often a thread of actors did not turn for a second", self.arbiter_stalls.clone());
    }

    /// Counts what was just made durable. `now` is a task of the group as it is after that.
    pub fn observe<'a>(&self, stored: &'a Writes, now: impl Fn(TaskId) -> Option<&'a Task>) {
        self.frames.inc_by(stored.blocks.iter().map(|block| block.count).sum());
        let bytes: usize = stored.blocks.iter().map(|block| block.text.len()).sum();
        self.frame_bytes.inc_by(bytes as u64);
        for write in &stored.writes {
            let task = |id: TaskId| now(id).or_else(|| ended_in(stored, id));
            self.count(write, stored.at, task);
        }
    }

    fn count<'a>(&self, write: &Write, at: Timestamp, task: impl Fn(TaskId) -> Option<&'a Task>) {
        match write {
            Write::TaskQueued { kind, origin, .. } => inc(self.accepted.of((*kind, *origin))),
            Write::TaskStarted { task: id, attempt: 1, .. } => {
                if let Some(task) = task(*id) {
                    self.queue_wait.observe_ms(task.created_at.0, at.0);
                }
            }
            Write::TurnSettled { task: id, stop_reason, .. } => {
                let turn = task(*id).filter(|task| task.kind() == TaskKind::Turn);
                let started = turn.and_then(|turn| turn.started_at);
                if let (Some(started), Some(seconds)) = (started, self.turn.of(*stop_reason)) {
                    seconds.observe_ms(started.0, at.0);
                }
            }
            Write::TaskRetrying { .. } => _ = self.retries.inc(),
            Write::TaskEnded { state, record, .. } => {
                inc(self.ended.of((record.kind(), *state)));
            }
            Write::CompactionEnded(compaction) => {
                let key = (compaction.source, compaction.status);
                if let Some(seconds) = self.compaction.of(key) {
                    seconds.observe_ms(compaction.started_at.0, at.0);
                }
            }
            Write::RunStarted { .. } => _ = self.runs_started.inc(),
            Write::RunExited { exit, .. } => {
                inc(self.runs_ended.of(exit.reason));
                self.stderr_dropped.inc_by(exit.stderr_dropped);
            }
            Write::AgentOutputRejected { .. } => _ = self.lines_rejected.inc(),
            Write::LockBypassed { .. } => _ = self.lock_bypasses.inc(),
            Write::LockLost { .. } => _ = self.lock_losses.inc(),
            _ => {}
        }
    }
}

fn inc(counter: Option<&Counter>) {
    if let Some(counter) = counter {
        counter.inc();
    }
}

/// A task that ended in the very commit.
fn ended_in(stored: &Writes, id: TaskId) -> Option<&Task> {
    stored.writes.iter().find_map(|write| match write {
        Write::TaskEnded { task, record, .. } if *task == id => Some(&**record),
        _ => None,
    })
}

/// What the one writer counts.
#[derive(Clone, Debug)]
pub struct StorageMetrics {
    /// Transactions that were durable.
    pub(crate) transactions: Counter,
    /// Groups' commits in them.
    pub(crate) commits: Counter,
    /// How many groups' commits one transaction held.
    pub(crate) groups: Histogram,
    /// How long a transaction took, durable or not.
    pub(crate) seconds: Histogram,
    /// Locks that were taken.
    pub(crate) lock_acquisitions: Counter,
    /// Locks that were taken from a holder whose process is provably gone.
    pub(crate) lock_reclaims: Counter,
}

impl Default for StorageMetrics {
    fn default() -> Self {
        Self {
            transactions: Counter::default(),
            commits: Counter::default(),
            groups: Histogram::new(GROUPS),
            seconds: Histogram::new(COMMIT_SECONDS),
            lock_acquisitions: Counter::default(),
            lock_reclaims: Counter::default(),
        }
    }
}

impl StorageMetrics {
    /// Names all of it.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("transactions", "Transactions of groups' facts that were durable", self.transactions.clone());
        to.register("commits", "Groups' commits that were durable; a transaction holds those of several groups", self.commits.clone());
        to.register("transaction_groups", "Groups' commits in one transaction", self.groups.clone());
        to.register("commit_seconds", "How long a transaction of groups' facts took, durable or not", self.seconds.clone());
        to.register("lock_acquisitions", "Compaction locks that were taken, by groups and over HTTP", self.lock_acquisitions.clone());
        to.register("lock_reclaims", "Compaction locks that were taken from a holder whose process is provably gone", self.lock_reclaims.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use greenroom_core::{Json, Strategy, Work};
    use prometheus_client::encoding::text;

    use super::*;

    /// What `metrics` tell that is not zero, in order; no buckets.
    fn told(metrics: &Metrics) -> Vec<String> {
        let (mut registry, mut text) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        text::encode(&mut text, &registry).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let some = samples.filter(|line| !line.contains("_bucket"));
        let some = some.filter(|line| !line.ends_with(" 0") && !line.ends_with(" 0.0"));
        some.map(str::to_owned).collect()
    }

    fn task(work: Work) -> Task {
        let mut task = Task::new(crate::clock::task_id(), work, Origin::Api);
        (task.created_at, task.started_at) = (Timestamp(1000), Some(Timestamp(3000)));
        task
    }

    /// One line a fact: what it moves, and what it leaves alone.
    #[test]
    fn facts_move_what_they_are_about() {
        let prompt = Json::parse("[]".into()).unwrap();
        let turn = task(Work::Turn { prompt: prompt.clone() });
        let compaction =
            task(Work::Compaction { focus: None, prompt, strategy: Strategy::Command });
        let run = crate::clock::run_id();
        let started = |task: &Task, attempt| Write::TaskStarted { task: task.id, attempt, run };
        let settled = |task: &Task| Write::TurnSettled {
            task: task.id,
            stop_reason: StopReason::EndTurn,
            tokens: None,
        };
        let wait = ["queue_wait_seconds_sum 4.0", "queue_wait_seconds_count 1"];
        let seconds = [
            r#"turn_seconds_sum{stop_reason="end_turn"} 2.0"#,
            r#"turn_seconds_count{stop_reason="end_turn"} 1"#,
        ];
        #[rustfmt::skip]
        let cases: [(Write, &[&str]); 9] = [
            (started(&turn, 1),                                                             &wait),
            (started(&turn, 2),                                                             &[]),
            (settled(&turn),                                                                &seconds),
            (settled(&compaction),                                                          &[]),
            (Write::LockLost { task: turn.id },                                             &["lock_losses_total 1"]),
            (Write::LockBypassed { task: turn.id, remedy: "".into() },                      &["lock_bypasses_total 1"]),
            (Write::RunStarted { run, agent: "a".into(), listens: false },                                  &["runs_started_total 1"]),
            (Write::AgentOutputRejected { run, reason: "".into(), bytes: "".into() },       &["agent_lines_rejected_total 1"]),
            (Write::CancelRequested { task: turn.id },                                      &[]),
        ];
        for (write, moved) in cases {
            let metrics = Metrics::default();
            let find = |id| [&turn, &compaction].into_iter().find(|task| task.id == id);
            metrics.count(&write, Timestamp(5000), find);
            assert_eq!(told(&metrics), moved, "{write:?}");
        }
    }
}
