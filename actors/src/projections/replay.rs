//! `LogReplay`: projects a group's stored log with core's own `replay` (I13).
//!
//! It begins with the first frame, or with the [`Checkpoint`] that retention stored.
//!
//! It also records where the log contradicts itself. `verify` compares the result with the rows,
//! `repair` stores it as rows, and `retention` stores it as a checkpoint. It reads and writes no
//! database.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use greenroom_core::{
    AgentOutput, Compaction, CompactionId, Digests, EndFrame, EndState, Ending, Exit, Fact, Group,
    Kinds, Lines, Origin, PermissionId, PermissionState, Place, Recorded, RunId, SessionCursor,
    Settings, Task, TaskId, TaskKind, Timestamp, Work,
};
use uuid::Uuid;

use crate::{
    acp::{self, session},
    projections::checkpoint::{
        Checkpoint, ClosedSegments, KnownCompaction, ResidentRun, WaitingTask,
    },
    storage::{Ended, SealedDigests, SegmentRecord, fault_in},
    transcript::frame::{Block, Frame},
};

/// The most of a differing value that is shown, bytes.
const SHOWN_BYTES_MAX: usize = 2_000;

/// A run as it is in its frames.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub agent: String,
    pub pid: Option<u32>,
    pub started_at: Timestamp,
    pub ready_at: Option<Timestamp>,
    pub ended: Option<(Timestamp, Exit)>,
}

/// A permission as it is in its frames.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Permission {
    pub asked: greenroom_core::Permission,
    pub opened_at: Timestamp,
    pub state: PermissionState,
    pub selected: Option<String>,
    /// When it was decided, and who decided it.
    pub resolved: Option<(Timestamp, String)>,
}

/// The log, projected so far.
pub(crate) struct LogReplay {
    pub group: Group,
    /// The tasks' rows: the callers' values are in no frame.
    pub accepted: BTreeMap<TaskId, Task>,
    /// The ended tasks.
    pub tasks: BTreeMap<TaskId, Task>,
    pub runs: BTreeMap<RunId, Run>,
    /// The segments after those that `closed` counts.
    pub segments: BTreeMap<u32, SegmentRecord>,
    pub closed: ClosedSegments,
    pub compactions: BTreeMap<CompactionId, Compaction>,
    pub permissions: BTreeMap<PermissionId, Permission>,
    pub digests: Digests,
    pub sealed_digests: SealedDigests,
    /// The first frame of each compaction and permission.
    pub opened: BTreeMap<Uuid, u64>,
    cursor: SessionCursor,
    /// The last frame.
    pub seq: u64,
    /// The latest time of a frame.
    pub newest_at: Timestamp,
    pub differences: Vec<String>,
}

impl LogReplay {
    /// Begins with the checkpoint, or with the first frame if there is none. `accepted` must have
    /// the tasks that wait in the checkpoint; each further task has to be added before its frames
    /// are projected.
    pub fn new(checkpoint: Option<Checkpoint>, accepted: BTreeMap<TaskId, Task>) -> Self {
        let mut replay = Self {
            group: Group::new(Settings::default()),
            accepted,
            tasks: BTreeMap::new(),
            runs: BTreeMap::new(),
            segments: BTreeMap::new(),
            closed: ClosedSegments::default(),
            compactions: BTreeMap::new(),
            permissions: BTreeMap::new(),
            digests: Digests::default(),
            sealed_digests: SealedDigests::default(),
            opened: BTreeMap::new(),
            cursor: SessionCursor::default(),
            seq: 0,
            newest_at: Timestamp(i64::MIN),
            differences: Vec::new(),
        };
        if let Some(checkpoint) = checkpoint {
            replay.resume(checkpoint);
        }
        replay
    }

    fn resume(&mut self, checkpoint: Checkpoint) {
        (self.seq, self.newest_at) = (checkpoint.seq(), checkpoint.newest_at);
        self.digests = checkpoint.digests();
        let Checkpoint {
            state,
            waiting,
            run,
            compactions,
            segment,
            closed,
            cursor,
            message_owners,
            newest_at: _,
            digests: _,
        } = checkpoint;
        let waiting = waiting.into_iter().map(|WaitingTask { id, ordinal, kind, origin }| {
            self.accepted_task(id, ordinal, kind, origin)
        });
        let waiting = waiting.collect();
        let run = run.map(|ResidentRun { run, agent, pid, started_at, ready_at }| {
            let row = Run { agent, pid, started_at, ready_at, ended: None };
            self.runs.insert(run.id, row);
            run
        });
        let compactions =
            compactions.into_iter().map(|known: KnownCompaction| known.into_compaction());
        let compactions: Vec<Compaction> = compactions.collect();
        self.compactions = compactions.iter().map(|known| (known.id, known.clone())).collect();
        self.group = Group::restore(state, waiting, run, None, compactions, Vec::new())
            .with_message_owners(message_owners);
        self.segments = segment.into_iter().map(|open| (open.segment, open)).collect();
        (self.closed, self.cursor) = (closed, cursor);
    }

    /// Whether the log can be truncated after the last frame.
    pub fn can_be_truncated(&self) -> bool {
        self.differences.is_empty() && self.group.is_between_tasks()
    }

    /// Truncates the log after the last frame. Returns the checkpoint, and what ended since the
    /// last one; that is removed from the replay.
    pub fn truncate(&mut self) -> (Checkpoint, Ended) {
        let tasks: Vec<TaskId> = std::mem::take(&mut self.tasks).into_keys().collect();
        tasks.iter().for_each(|task| _ = self.accepted.remove(task));
        let runs = self.runs.extract_if(.., |_, run| run.ended.is_some()).map(|(id, _)| id);
        let runs = runs.collect();
        let known: BTreeSet<_> = self.group.compactions().map(|compaction| compaction.id).collect();
        let compactions = self.compactions.extract_if(.., |id, _| !known.contains(id));
        let compactions = compactions.map(|(id, _)| id).collect();
        for segment in self.segments.extract_if(.., |_, segment| segment.closed.is_some()) {
            self.closed.push(&segment.1);
        }
        let decided = |_: &_, permission: &mut Permission| permission.resolved.is_some();
        let permissions = self.permissions.extract_if(.., decided).map(|(id, _)| id).collect();
        let checkpoint = Checkpoint {
            state: self.group.state().clone(),
            waiting: self.group.waiting().map(WaitingTask::of).collect(),
            run: self.group.run().and_then(|run| {
                let Run { agent, pid, started_at, ready_at, .. } = self.runs.get(&run.id)?.clone();
                Some(ResidentRun { run: run.clone(), agent, pid, started_at, ready_at })
            }),
            compactions: self
                .group
                .compactions()
                .filter_map(|known| self.compactions.get(&known.id).map(KnownCompaction::of))
                .collect(),
            segment: self.segments.values().next_back().cloned(),
            closed: self.closed.clone(),
            cursor: self.cursor.clone(),
            message_owners: self.group.message_owners().clone(),
            newest_at: self.newest_at,
            digests: Some(self.digests.clone()),
        };
        self.sealed_digests = SealedDigests::default();
        self.opened.clear();
        (checkpoint, Ended { tasks, runs, compactions, permissions })
    }

    pub fn read_block(&mut self, block: &Block) {
        self.newest_at = self.newest_at.max(block.at);
        for frame in block.frames() {
            // The first block may repeat frames that were read before.
            if frame.seq <= self.seq {
                continue;
            }
            if frame.seq != self.seq + 1 {
                self.differ(format!("I3: frame {} follows frame {}", frame.seq, self.seq));
            }
            self.seq = frame.seq;
            let stored = block.place(frame);
            let fact = self.read(frame, stored.task, block.at);
            let segment = match fact {
                Some(fact) => {
                    let place = self.check_place(&fact, stored);
                    self.project(Recorded { place, fact }, block.at);
                    place.segment
                }
                None => self.group.state().segment,
            };
            if stored.segment != segment {
                let (seq, stored) = (stored.seq, stored.segment);
                self.differ(format!("frame {seq} is stored in segment {stored}, not {segment}"));
            }
        }
    }

    /// Checks that a frame is stored under its run and task. Returns its place by the rules.
    fn check_place(&mut self, fact: &Fact, stored: Place) -> Place {
        let place = Place { seq: stored.seq, ..self.group.place(fact) };
        let what = format!("run and task of frame {}", stored.seq);
        self.same(&what, (place.run, place.task), (stored.run, stored.task));
        place
    }

    /// Reads the fact of a frame that is stored under `task`.
    fn read(&mut self, frame: Frame<'_>, task: Option<TaskId>, at: Timestamp) -> Option<Fact> {
        let summary = session::summarize(&mut self.cursor, frame.kind, frame.payload);
        match Fact::read(frame.kind, frame.payload) {
            Some(Ok(fact)) => return Some(self.complete(fact, at)),
            Some(Err(err)) => {
                let err = fault_in(&err);
                self.differ(format!("frame {} ({}) cannot be read: {err}", frame.seq, frame.kind));
                return None;
            }
            None => {}
        }
        if frame.kind == "session/prompt" {
            return self.prompt(frame);
        }
        if self.group.run().is_none() {
            self.differ(format!("frame {} is output outside a run", frame.seq));
            return None;
        }
        let kinds = Kinds::All(frame.kind.to_owned().into());
        let lines = Lines { count: 1, kinds, text: frame.payload.to_owned().into() };
        let late = self.late(task, frame.seq);
        Some(Fact::AgentOutput(AgentOutput { lines, summary, late }))
    }

    /// Returns the task under which output is stored, if that is not the one that runs: what shows
    /// that the output is late is in no frame.
    fn late(&mut self, stored: Option<TaskId>, seq: u64) -> Option<TaskId> {
        let running = self.group.current().filter(|_| self.group.attempt().is_some());
        let running = running.map(|task| task.id);
        let late = stored.filter(|task| running != Some(*task))?;
        if self.group.task(late).is_some_and(|task| task.attempt == 0) {
            self.differ(format!("frame {seq} is output of {late}, which was not sent"));
        }
        Some(late)
    }

    fn prompt(&mut self, frame: Frame<'_>) -> Option<Fact> {
        match acp::parse_prompt_line(frame.payload) {
            Ok((_, session, prompt)) => Some(Fact::PromptSent { session, prompt }),
            Err(err) => {
                self.differ(format!("frame {} is no prompt: {}", frame.seq, fault_in(&err)));
                None
            }
        }
    }

    /// Adds the record to a fact, which its frame does not have.
    fn complete(&mut self, fact: Fact, at: Timestamp) -> Fact {
        match fact {
            Fact::TaskQueued { task, kind, origin, .. } => {
                let ordinal = self.group.state().tasks + 1;
                let record = Box::new(self.accepted_task(task, ordinal, kind, origin));
                Fact::TaskQueued { task, kind, origin, record }
            }
            Fact::TaskEnded {
                task,
                kind,
                attempt,
                state,
                stop_reason,
                error,
                interrupted,
                findings,
                record: _,
            } => {
                let is_current = self.group.current().is_some_and(|current| current.id == task);
                let so_far = is_current.then(|| self.group.ending_of_attempt(stop_reason));
                let so_far = so_far.unwrap_or_default();
                let ending = Ending { stop_reason, error, interrupted, findings, ..so_far };
                let open = self.group.task(task).cloned().unwrap_or_else(|| {
                    self.differ(format!("I9: {task} ended and was not open"));
                    Task::new(task, Work::Turn { prompt: acp::empty_prompt() }, Origin::Api)
                });
                let attempt = if attempt == 0 { open.attempt } else { attempt };
                let end = state.end().unwrap_or_else(|| {
                    self.differ(format!("task {task} ended as {state:?}, which is no end"));
                    EndState::Failed
                });
                let frame = EndFrame { at, seq: self.seq };
                Fact::task_ended(kind, open.ended(attempt, end, frame, ending))
            }
            fact => fact,
        }
    }

    /// Returns a task as it was accepted, with the caller's values from its row.
    fn accepted_task(&mut self, id: TaskId, ordinal: u64, kind: TaskKind, origin: Origin) -> Task {
        let Some(row) = self.accepted.get(&id) else {
            self.differ(format!("I2: {id} was accepted and has no row"));
            return Task {
                ordinal,
                ..Task::new(id, Work::Turn { prompt: acp::empty_prompt() }, origin)
            };
        };
        let stored = row.kind();
        let task = Task {
            ordinal,
            metadata: row.metadata.clone(),
            deadline_ms: row.deadline_ms,
            expires: row.expires,
            retry_of: row.retry_of,
            ..Task::new(id, row.work.clone(), origin)
        };
        if stored != kind {
            self.differ(format!("task {id} is a {stored:?}, by the log a {kind:?}"));
        }
        task
    }

    fn project(&mut self, recorded: Recorded, at: Timestamp) {
        let seq = recorded.place.seq;
        match &recorded.fact {
            Fact::TaskEnded { task, record, .. } => {
                self.tasks.insert(*task, Task::clone(record));
            }
            Fact::AgentOutput(AgentOutput { summary, late: Some(late), .. }) => {
                if let Some(task) = self.tasks.get_mut(late) {
                    task.push_late_text(&summary.text);
                }
            }
            // A retried compaction may run under another profile: its row has the last prompt, and
            // is compared as a whole.
            Fact::TurnStarted { task, prompt, .. } => {
                let row = self.accepted.get(task);
                if row.is_none_or(|row| row.kind() == TaskKind::Turn) {
                    let stored = row.map(|row| row.prompt().clone());
                    self.same(&format!("prompt of {task}"), Some(prompt.clone()), stored);
                }
            }
            Fact::RunStarted { run, agent, .. } => {
                let agent = agent.clone();
                let run_row = Run { agent, pid: None, started_at: at, ready_at: None, ended: None };
                self.runs.insert(*run, run_row);
            }
            Fact::RunReady { run, pid, .. } => {
                if let Some(run) = self.runs.get_mut(run) {
                    (run.pid, run.ready_at) = (Some(*pid), Some(at));
                }
            }
            Fact::RunExited { run, exit } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.pid = exit.pid.or(run.pid);
                    run.ended = Some((at, Exit { pid: run.pid, ..exit.clone() }));
                }
            }
            Fact::SegmentEnded { segment, end_reason } => {
                if let Some(segment) = self.segments.get_mut(segment) {
                    segment.closed = Some((seq, at, *end_reason));
                }
            }
            fact @ Fact::SegmentStarted { segment, .. } => {
                let record = SegmentRecord::opened(fact, (seq, at));
                self.segments.extend(record.map(|record| (*segment, record)));
            }
            Fact::CompactionStarted(compaction)
            | Fact::CompactionUpdated(compaction)
            | Fact::CompactionEnded(compaction) => self.compaction(compaction, (seq, at)),
            Fact::PermissionOpened(asked) => {
                let permission = Permission {
                    asked: greenroom_core::Permission::clone(asked),
                    opened_at: at,
                    state: PermissionState::Pending,
                    selected: None,
                    resolved: None,
                };
                self.opened.insert(asked.permission.0, seq);
                self.permissions.insert(asked.permission, permission);
            }
            Fact::PermissionResolved { permission, state, selected, resolved_by, .. } => {
                if let Some(permission) = self.permissions.get_mut(permission) {
                    (permission.state, permission.selected) = (*state, selected.clone());
                    permission.resolved = Some((at, resolved_by.to_string()));
                }
            }
            _ => {}
        }
        self.sealed_digests.project(&mut self.digests, &recorded, at);
        self.group.replay(&recorded, at);
    }

    fn compaction(&mut self, compaction: &Compaction, (seq, at): (u64, Timestamp)) {
        let known = self.compactions.get(&compaction.id);
        let mut compaction = compaction.clone();
        compaction.started_at = known.map_or(at, |known| known.started_at);
        let ended_at = known.filter(|known| known.status == compaction.status);
        compaction.ended_at = match ended_at {
            Some(known) => known.ended_at,
            None if compaction.is_active() => None,
            None => Some(at),
        };
        self.opened.entry(compaction.id.0).or_insert(seq);
        self.compactions.insert(compaction.id, compaction);
    }

    /// Records a contradiction of the log, or a difference between log and rows.
    pub fn differ(&mut self, difference: String) {
        self.differences.push(difference);
    }

    /// Records a difference if `projected` is not equal to `stored`.
    pub fn same<T: Debug + PartialEq>(&mut self, what: &str, projected: T, stored: T) {
        if projected != stored {
            let (projected, stored) = (shortened(&projected), shortened(&stored));
            self.differ(format!("{what}: the log has {projected}, the row {stored}"));
        }
    }
}

/// Formats a value, shortened to fit a terminal.
fn shortened(value: &impl Debug) -> String {
    let mut text = format!("{value:?}");
    if text.len() > SHOWN_BYTES_MAX {
        text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX));
        text.push('…');
    }
    text
}
