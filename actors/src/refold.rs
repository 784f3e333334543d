//! A group's log folded by the rules' own `replay`: from nothing, or from the [`Base`] that
//! retention left (I13).
//!
//! Owns the fold, and notices where the log contradicts itself. What comes out of it is compared
//! with the rows by [`verify`](crate::verify), and kept as a base by
//! [`retention`](crate::retention). It reads and writes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use greenroom_core::{
    Compaction, CompactionId, Digests, Ending, Exit, Group, Kinds, Lines, Origin, PermissionId,
    PermissionState, RunId, Said, Settings, Task, TaskId, TaskKind, Timestamp, Work, Write,
};

use uuid::Uuid;

use crate::{
    agent::{acp, sessions::Reread},
    base::{Base, ClosedSegments, Ended, KnownCompaction, ResidentRun, WaitingTask},
    frames::{Block, Frame, Place},
    storage::{ClosedRows, SegmentRecord, fault_in},
};

/// How much of a value is shown that differs.
const SHOWN_BYTES_MAX: usize = 2_000;

/// A run as its frames tell of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub agent: String,
    pub pid: Option<u32>,
    pub started_at: Timestamp,
    pub ready_at: Option<Timestamp>,
    pub ended: Option<(Timestamp, Exit)>,
}

/// A permission as its frames tell of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Permission {
    pub asked: greenroom_core::Permission,
    pub opened_at: Timestamp,
    pub state: PermissionState,
    pub selected: Option<String>,
    /// When it was decided on, and by whom.
    pub resolved: Option<(Timestamp, String)>,
}

/// The log, folded so far.
pub(crate) struct Refold {
    pub group: Group,
    /// The tasks' rows: what callers gave is in no frame but these.
    pub accepted: BTreeMap<TaskId, Task>,
    /// The tasks that ended.
    pub tasks: BTreeMap<TaskId, Task>,
    pub runs: BTreeMap<RunId, Run>,
    /// All but those that `closed` counts.
    pub segments: BTreeMap<u32, SegmentRecord>,
    pub closed: ClosedSegments,
    pub compactions: BTreeMap<CompactionId, Compaction>,
    pub permissions: BTreeMap<PermissionId, Permission>,
    pub digests: Digests,
    pub closed_digests: ClosedRows,
    /// The frames that tell first of a compaction, or of a permission.
    pub opened: BTreeMap<Uuid, u64>,
    /// What the next frame belongs to.
    pub place: Place,
    reread: Reread,
    /// The last frame.
    pub seq: u64,
    /// The latest time of a frame.
    pub newest_at: Timestamp,
    pub differences: Vec<String>,
}

impl Refold {
    /// Begins where a cut log does, or else with its first frame. Of the tasks, those that waited
    /// at the cut have to be `accepted`, and each further one before its frames are folded.
    pub fn new(base: Option<Base>, accepted: BTreeMap<TaskId, Task>) -> Self {
        let mut refold = Self {
            group: Group::new(Settings::default()),
            accepted,
            tasks: BTreeMap::new(),
            runs: BTreeMap::new(),
            segments: BTreeMap::new(),
            closed: ClosedSegments::default(),
            compactions: BTreeMap::new(),
            permissions: BTreeMap::new(),
            digests: Digests::default(),
            closed_digests: ClosedRows::default(),
            opened: BTreeMap::new(),
            place: Place::default(),
            reread: Reread::default(),
            seq: 0,
            newest_at: Timestamp(i64::MIN),
            differences: Vec::new(),
        };
        if let Some(base) = base {
            refold.resume(base);
        }
        refold
    }

    fn resume(&mut self, base: Base) {
        (self.seq, self.newest_at) = (base.seq(), base.newest_at);
        self.digests = base.digests();
        let Base {
            head,
            waiting,
            run,
            compactions,
            segment,
            closed,
            reread,
            newest_at: _,
            digests: _,
        } = base;
        let waiting = waiting.into_iter().map(|WaitingTask { id, ordinal, kind, origin }| {
            self.accepted_task(id, ordinal, kind, origin)
        });
        let waiting = waiting.collect();
        let run = run.map(|ResidentRun { run, agent, pid, started_at, ready_at }| {
            let row = Run { agent, pid, started_at, ready_at, ended: None };
            self.runs.insert(run.id, row);
            run
        });
        self.place.run = run.as_ref().map(|run| run.id);
        let compactions = compactions.into_iter().map(|known: KnownCompaction| known.whole());
        let compactions: Vec<Compaction> = compactions.collect();
        self.compactions = compactions.iter().map(|own| (own.id, own.clone())).collect();
        self.group = Group::restore(head, waiting, run, None, compactions, Vec::new());
        self.segments = segment.into_iter().map(|open| (open.segment, open)).collect();
        (self.closed, self.reread) = (closed, reread);
    }

    /// Whether the log may be cut behind the last frame.
    pub fn may_be_cut(&self) -> bool {
        self.differences.is_empty() && self.group.is_between_tasks()
    }

    /// Cuts the log behind the last frame: what it came to, and what ended since the last cut and
    /// is forgotten here.
    pub fn cut(&mut self) -> (Base, Ended) {
        let tasks: Vec<TaskId> = std::mem::take(&mut self.tasks).into_keys().collect();
        tasks.iter().for_each(|task| _ = self.accepted.remove(task));
        let runs = self.runs.extract_if(.., |_, run| run.ended.is_some()).map(|(id, _)| id);
        let runs = runs.collect();
        let heard: BTreeSet<_> = self.group.compactions().map(|own| own.id).collect();
        let compactions = self.compactions.extract_if(.., |id, _| !heard.contains(id));
        let compactions = compactions.map(|(id, _)| id).collect();
        for segment in self.segments.extract_if(.., |_, own| own.closed.is_some()) {
            self.closed.push(&segment.1);
        }
        let decided = |_: &_, own: &mut Permission| own.resolved.is_some();
        let permissions = self.permissions.extract_if(.., decided).map(|(id, _)| id).collect();
        let base = Base {
            head: self.group.head().clone(),
            waiting: self.group.waiting().map(WaitingTask::of).collect(),
            run: self.group.run().and_then(|run| {
                let Run { agent, pid, started_at, ready_at, .. } = self.runs.get(&run.id)?.clone();
                Some(ResidentRun { run: run.clone(), agent, pid, started_at, ready_at })
            }),
            compactions: self
                .group
                .compactions()
                .filter_map(|own| self.compactions.get(&own.id).map(KnownCompaction::of))
                .collect(),
            segment: self.segments.values().next_back().cloned(),
            closed: self.closed.clone(),
            reread: self.reread.clone(),
            newest_at: self.newest_at,
            digests: Some(self.digests.clone()),
        };
        self.closed_digests = ClosedRows::default();
        self.opened.clear();
        (base, Ended { tasks, runs, compactions, permissions })
    }

    pub fn block(&mut self, block: &Block) {
        self.newest_at = self.newest_at.max(block.at);
        for frame in block.frames() {
            // What was read begins with the block that holds the last frame read before.
            if frame.seq <= self.seq {
                continue;
            }
            if frame.seq != self.seq + 1 {
                self.differ(format!("I3: frame {} follows frame {}", frame.seq, self.seq));
            }
            self.seq = frame.seq;
            self.digests.group.watermark_seq = frame.seq - 1;
            if let Some(write) = self.read(frame) {
                self.belongs(block, &write);
                self.take(write, block.at);
            }
            let segment = self.group.head().segment;
            if block.segment != segment {
                let (seq, stored) = (frame.seq, block.segment);
                self.differ(format!("frame {seq} is stored in segment {stored}, not {segment}"));
            }
        }
    }

    /// A frame is stored under the run and the task that it belongs to.
    fn belongs(&mut self, block: &Block, write: &Write) {
        self.place.enter(write);
        let task = match write {
            // Not that of a task which is only claimed: an old run may still be speaking.
            Write::Said(said) => said.task,
            fact => fact.task().or(self.place.task),
        };
        let what = format!("run and task of frame {}", self.seq);
        self.same(&what, (self.place.run, task), (block.run, block.task));
        self.place.leave(write);
    }

    fn read(&mut self, frame: Frame<'_>) -> Option<Write> {
        let fold = self.reread.meaning(frame.kind, frame.payload);
        match Write::read(frame.kind, frame.payload) {
            Some(Ok(write)) => return Some(self.complete(write)),
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
        let run = self.place.run?;
        let in_turn = self.group.turn().is_some_and(|turn| turn.run == run);
        let task = self.group.current().filter(|_| in_turn).map(|task| task.id);
        let kinds = Kinds::All(frame.kind.to_owned().into());
        let lines = Lines { count: 1, kinds, text: frame.payload.to_owned().into() };
        Some(Write::Said(Said { run, task, lines, fold }))
    }

    fn prompt(&mut self, frame: Frame<'_>) -> Option<Write> {
        match acp::prompt_sent(frame.payload) {
            Ok((id, session, prompt)) => Some(Write::PromptSent { id, session, prompt }),
            Err(err) => {
                self.differ(format!("frame {} is no prompt: {}", frame.seq, fault_in(&err)));
                None
            }
        }
    }

    /// Gives a fact the record that its frame does not hold.
    fn complete(&mut self, write: Write) -> Write {
        match write {
            Write::TaskQueued { task, kind, origin, .. } => {
                let ordinal = self.group.head().tasks + 1;
                let record = Box::new(self.accepted_task(task, ordinal, kind, origin));
                Write::TaskQueued { task, kind, origin, record }
            }
            Write::TaskEnded {
                task,
                kind,
                attempt,
                state,
                stop_reason,
                error,
                interrupted,
                findings,
                ..
            } => {
                let open = self.group.task(task).cloned();
                let heard = self
                    .group
                    .turn()
                    .filter(|_| self.group.current().is_some_and(|current| current.id == task));
                let ending = Ending {
                    stop_reason,
                    error: error.clone(),
                    interrupted: interrupted.clone(),
                    findings: findings.clone(),
                    ..heard.map(greenroom_core::Turn::heard).unwrap_or_default()
                };
                let record = open.map(|open| Task {
                    attempt: if attempt == 0 { open.attempt } else { attempt },
                    state,
                    ending,
                    retry_at: None,
                    ..open
                });
                let record = record.map_or_else(
                    || {
                        self.differ(format!("I9: {task} ended and was not open"));
                        Box::new(Task::new(
                            task,
                            Work::Turn { prompt: acp::empty_prompt() },
                            Origin::Api,
                        ))
                    },
                    Box::new,
                );
                Write::TaskEnded {
                    task,
                    kind,
                    attempt,
                    state,
                    stop_reason,
                    error,
                    interrupted,
                    findings,
                    record,
                }
            }
            write => write,
        }
    }

    /// A task as it was accepted: its row has what the caller gave.
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
            self.differ(format!("task {id} is a {stored:?}, the log says {kind:?}"));
        }
        task
    }

    fn take(&mut self, write: Write, at: Timestamp) {
        match &write {
            Write::TaskEnded { task, record, .. } => {
                let ended =
                    Task { ended_at: Some(at), seq_last: Some(self.seq), ..Task::clone(record) };
                self.tasks.insert(*task, ended);
            }
            // A compaction that is started again may be another profile's by then: its row has the
            // last prompt, and is compared as a whole.
            Write::TurnStarted { task, prompt, .. } => {
                let row = self.accepted.get(task);
                if row.is_none_or(|row| row.kind() == TaskKind::Turn) {
                    let stored = row.map(|row| row.prompt().clone());
                    self.same(&format!("prompt of {task}"), Some(prompt.clone()), stored);
                }
            }
            Write::RunStarted { run, agent, .. } => {
                let agent = agent.clone();
                let run_row = Run { agent, pid: None, started_at: at, ready_at: None, ended: None };
                self.runs.insert(*run, run_row);
            }
            Write::RunReady { run, pid, .. } => {
                if let Some(run) = self.runs.get_mut(run) {
                    (run.pid, run.ready_at) = (Some(*pid), Some(at));
                }
            }
            Write::RunExited { run, exit } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.pid = exit.pid.or(run.pid);
                    run.ended = Some((at, Exit { pid: run.pid, ..exit.clone() }));
                }
            }
            Write::SegmentEnded { segment, end_reason } => {
                if let Some(segment) = self.segments.get_mut(segment) {
                    segment.closed = Some((self.seq, at, *end_reason));
                }
            }
            Write::SegmentStarted { segment, parent, session, provenance } => {
                let record = SegmentRecord {
                    segment: *segment,
                    parent: *parent,
                    session: session.clone(),
                    provenance: provenance.clone(),
                    opened: (self.seq, at),
                    closed: None,
                };
                self.segments.insert(*segment, record);
            }
            Write::CompactionStarted(compaction)
            | Write::CompactionUpdated(compaction)
            | Write::CompactionEnded(compaction) => self.compaction(compaction, at),
            Write::PermissionOpened(asked) => {
                let permission = Permission {
                    asked: greenroom_core::Permission::clone(asked),
                    opened_at: at,
                    state: PermissionState::Pending,
                    selected: None,
                    resolved: None,
                };
                self.opened.insert(asked.permission.0, self.seq);
                self.permissions.insert(asked.permission, permission);
            }
            Write::PermissionResolved { permission, state, selected, resolved_by, .. } => {
                if let Some(permission) = self.permissions.get_mut(permission) {
                    (permission.state, permission.selected) = (*state, selected.clone());
                    permission.resolved = Some((at, resolved_by.to_string()));
                }
            }
            _ => {}
        }
        self.closed_digests.fold(&mut self.digests, &write, at);
        self.group.replay(&write, at);
    }

    fn compaction(&mut self, compaction: &Compaction, at: Timestamp) {
        let known = self.compactions.get(&compaction.id);
        let mut compaction = compaction.clone();
        compaction.started_at = known.map_or(at, |known| known.started_at);
        let ended_at = known.filter(|known| known.status == compaction.status);
        compaction.ended_at = match ended_at {
            Some(known) => known.ended_at,
            None if compaction.is_active() => None,
            None => Some(at),
        };
        self.opened.entry(compaction.id.0).or_insert(self.seq);
        self.compactions.insert(compaction.id, compaction);
    }

    pub fn differ(&mut self, difference: String) {
        self.differences.push(difference);
    }

    pub fn same<T: Debug + PartialEq>(&mut self, what: &str, folded: T, stored: T) {
        if folded != stored {
            let (folded, stored) = (shortened(&folded), shortened(&stored));
            self.differ(format!("{what}: the log says {folded}, the row {stored}"));
        }
    }
}

/// A value in words that fit a terminal.
fn shortened(value: &impl Debug) -> String {
    let mut text = format!("{value:?}");
    if text.len() > SHOWN_BYTES_MAX {
        text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX));
        text.push('…');
    }
    text
}
