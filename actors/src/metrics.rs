//! Metrics: the counters and histograms of groups and agents, in the form that Prometheus reads.
//!
//! It has the one place that counts facts, after their commit. All metrics are atomics without a
//! lock, and a batch is counted as a whole. What is in the database is not counted here: each
//! scrape reads it.

mod family;
pub mod histogram;

use greenroom_core::{
    CompactionStatus, EndState, ExitReason, Fact, Origin, Recorded, Source, StopReason, Task,
    TaskId, TaskKind, Timestamp,
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

pub use self::{
    family::{Family, LabelKey, LabelValue, Labels},
    histogram::Histogram,
};
use crate::{process::child::Counters, storage::GroupCommit};

/// Upper bounds of durations from milliseconds to hours, seconds.
const SECONDS: &[f64] = &[
    0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0,
];

/// The metrics of all groups and agents of a server.
#[derive(Debug)]
pub struct Metrics {
    accepted: Family<(TaskKind, Origin), Counter>,
    ended: Family<(TaskKind, EndState), Counter>,
    queue_wait: Histogram,
    turn: Family<StopReason, Histogram>,
    compaction: Family<(Source, CompactionStatus), Histogram>,
    retries: Counter,
    frames: Counter,
    frame_bytes: Counter,
    runs_started: Counter,
    runs_ended: Family<ExitReason, Counter>,
    lines_rejected: Counter,
    stderr_dropped: Counter,
    lock_bypasses: Counter,
    lock_losses: Counter,
    /// What is found at the ends of runs, and at the start.
    pub ends: Counters,
    /// Arbiters that are blocked now: see [`crate::watchdog`].
    pub arbiters_stalled: Gauge,
    /// How often an arbiter was blocked.
    pub arbiter_stalls: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            accepted: Family::new(|_| Counter::default()),
            ended: Family::new(|_| Counter::default()),
            queue_wait: Histogram::new(SECONDS),
            turn: Family::new(|_| Histogram::new(SECONDS)),
            compaction: Family::only(
                |(_, status): (Source, CompactionStatus)| status != CompactionStatus::InProgress,
                |_| Histogram::new(SECONDS),
            ),
            retries: Counter::default(),
            frames: Counter::default(),
            frame_bytes: Counter::default(),
            runs_started: Counter::default(),
            runs_ended: Family::new(|_| Counter::default()),
            lines_rejected: Counter::default(),
            stderr_dropped: Counter::default(),
            lock_bypasses: Counter::default(),
            lock_losses: Counter::default(),
            ends: Counters::default(),
            arbiters_stalled: Gauge::default(),
            arbiter_stalls: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics, with their names and help texts.
    #[rustfmt::skip]
    pub fn register(&self, to: &mut Registry) {
        to.register("tasks_accepted", "Tasks that were accepted", self.accepted.clone());
        to.register("tasks_ended", "Tasks that reached a terminal state", self.ended.clone());
        to.register("task_retries", "Failed attempts without output, after which the task is retried", self.retries.clone());
        to.register("queue_wait_seconds", "Time from a task's acceptance to the START of its first attempt; a first attempt whose agent did not start is left out", self.queue_wait.clone());
        to.register("turn_seconds", "Time from the START of a turn's attempt to its settlement", self.turn.clone());
        to.register("compaction_seconds", "Time from a compaction's start to its end, by the detector that reported it first; 0 if only its end was reported", self.compaction.clone());
        to.register("frames", "Frames that were stored", self.frames.clone());
        to.register("frame_bytes", "Bytes of the frames that were stored", self.frame_bytes.clone());
        to.register("runs_started", "Runs whose agent was ordered to start", self.runs_started.clone());
        to.register("runs_ended", "Runs that ended, by reason", self.runs_ended.clone());
        to.register("agent_lines_rejected", "Lines of agents that are not protocol messages", self.lines_rejected.clone());
        to.register("stderr_lines_dropped", "Lines on agents' stderr that were not kept, counted at the end of their run", self.stderr_dropped.clone());
        to.register("lock_bypasses", "Compactions that continued without a lock, as the database has no table of locks", self.lock_bypasses.clone());
        to.register("lock_losses", "Compactions whose lock was lost", self.lock_losses.clone());
        to.register("orphans_reaped", "Processes that outlived their run or their server, found and killed", self.ends.reaped.clone());
        to.register("shim_claims_refuted", "Shims that reported the end of a run that had left processes, which were killed", self.ends.refuted.clone());
        to.register("arbiters_stalled", "Actor threads that have been blocked for a second", self.arbiters_stalled.clone());
        to.register("arbiter_stalls", "How often an actor thread was blocked for a second", self.arbiter_stalls.clone());
    }

    /// Counts a durable commit. `now` returns a task of the group as it is after the commit.
    pub fn observe<'a>(&self, stored: &'a GroupCommit, now: impl Fn(TaskId) -> Option<&'a Task>) {
        self.frames.inc_by(stored.blocks.iter().map(|block| block.count).sum());
        let bytes: usize = stored.blocks.iter().map(|block| block.text.len()).sum();
        self.frame_bytes.inc_by(bytes as u64);
        for Recorded { fact, .. } in &stored.facts {
            let task = |id: TaskId| now(id).or_else(|| ended_in(stored, id));
            self.count(fact, stored.at, task);
        }
    }

    fn count<'a>(&self, fact: &Fact, at: Timestamp, task: impl Fn(TaskId) -> Option<&'a Task>) {
        match fact {
            Fact::TaskQueued { kind, origin, .. } => inc(self.accepted.of((*kind, *origin))),
            Fact::TaskStarted { task: id, attempt: 1, .. } => {
                if let Some(task) = task(*id) {
                    self.queue_wait.observe_ms(task.created_at.0, at.0);
                }
            }
            Fact::TurnSettled { task: id, stop_reason, .. } => {
                let turn = task(*id).filter(|task| task.kind() == TaskKind::Turn);
                let started = turn.and_then(Task::start);
                if let (Some(started), Some(seconds)) =
                    (started, self.turn.of(stop_reason.counted()))
                {
                    seconds.observe_ms(started.at.0, at.0);
                }
            }
            Fact::TaskRetrying { .. } => _ = self.retries.inc(),
            Fact::TaskEnded { state, record, .. } => {
                inc(state.end().and_then(|state| self.ended.of((record.kind(), state))));
            }
            Fact::CompactionEnded(compaction) => {
                let key = (compaction.source, compaction.status);
                if let Some(seconds) = self.compaction.of(key) {
                    seconds.observe_ms(compaction.started_at.0, at.0);
                }
            }
            Fact::RunStarted { .. } => _ = self.runs_started.inc(),
            Fact::RunExited { exit, .. } => {
                inc(self.runs_ended.of(exit.reason));
                self.stderr_dropped.inc_by(exit.stderr_dropped);
            }
            Fact::AgentOutputRejected { .. } => _ = self.lines_rejected.inc(),
            Fact::LockBypassed { .. } => _ = self.lock_bypasses.inc(),
            Fact::LockLost { .. } => _ = self.lock_losses.inc(),
            _ => {}
        }
    }
}

fn inc(counter: Option<&Counter>) {
    if let Some(counter) = counter {
        counter.inc();
    }
}

/// Returns a task that ended in this commit.
fn ended_in(stored: &GroupCommit, id: TaskId) -> Option<&Task> {
    stored.facts.iter().find_map(|recorded| match &recorded.fact {
        Fact::TaskEnded { task, record, .. } if *task == id => Some(&**record),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use greenroom_core::{Json, Stage, Start, Strategy, Work};
    use prometheus_client::encoding::text;

    use super::*;

    /// Returns the samples of `metrics` that are not zero, in order, without buckets.
    fn samples(metrics: &Metrics) -> Vec<String> {
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
        let start = Start { at: Timestamp(3000), run: crate::clock::run_id(), segment: 1, seq: 1 };
        task.created_at = Timestamp(1000);
        task.stage = Stage::Running { claimed_at: start.at, start };
        task
    }

    /// One line a fact, with the samples that it changes.
    #[test]
    fn each_fact_changes_its_own_metrics_only() {
        let prompt = Json::parse("[]".into()).unwrap();
        let turn = task(Work::Turn { prompt: prompt.clone() });
        let compaction =
            task(Work::Compaction { focus: None, prompt, strategy: Strategy::Command });
        let run = crate::clock::run_id();
        let started = |task: &Task, attempt| Fact::TaskStarted { task: task.id, attempt, run };
        let settled = |task: &Task| Fact::TurnSettled {
            task: task.id,
            stop_reason: StopReason::EndTurn,
            tokens: None,
            early_bytes: 0,
        };
        let wait = ["queue_wait_seconds_sum 4.0", "queue_wait_seconds_count 1"];
        let seconds = [
            r#"turn_seconds_sum{stop_reason="end_turn"} 2.0"#,
            r#"turn_seconds_count{stop_reason="end_turn"} 1"#,
        ];
        #[rustfmt::skip]
        let cases: [(Fact, &[&str]); 9] = [
            (started(&turn, 1),                                                             &wait),
            (started(&turn, 2),                                                             &[]),
            (settled(&turn),                                                                &seconds),
            (settled(&compaction),                                                          &[]),
            (Fact::LockLost { task: turn.id },                                             &["lock_losses_total 1"]),
            (Fact::LockBypassed { task: turn.id, remedy: "".into() },                      &["lock_bypasses_total 1"]),
            (Fact::RunStarted { run, agent: "a".into(), has_detectors: false },                                  &["runs_started_total 1"]),
            (Fact::AgentOutputRejected { run, reason: "".into(), bytes: "".into() },       &["agent_lines_rejected_total 1"]),
            (Fact::CancelRequested { task: turn.id },                                      &[]),
        ];
        for (fact, changed) in cases {
            let metrics = Metrics::default();
            let find = |id| [&turn, &compaction].into_iter().find(|task| task.id == id);
            metrics.count(&fact, Timestamp(5000), find);
            assert_eq!(samples(&metrics), changed, "{fact:?}");
        }
    }
}
