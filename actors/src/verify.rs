//! Whether a group's rows are what its log says: the log is folded again, by the rules' own
//! `replay`, and every derived row compared (I13).
//!
//! Owns the comparison. It writes nothing, and repairs nothing.

use std::{collections::BTreeMap, fmt::Debug};

use crate::{
    agent::{acp, sessions::Reread},
    frames::{self, Block, Frame, Place},
    storage::{
        Archive, FrameFilter, GroupNo, RunRecord, SegmentRecord, Standing, StoreError, TaskFilter,
    },
};
use greenroom_core::{
    Compaction, CompactionId, Ending, Exit, GroupId, Kinds, Lines, RunId, Said, Settings, Task,
    TaskId, TaskKind, TaskState, Timestamp, Write,
};

/// How many rows are read at a time.
const PAGE: usize = 1000;
/// How many bytes of frames are read at a time.
const PAGE_BYTES: usize = 8 << 20;
/// How much of a value is shown that differs.
const SHOWN_BYTES_MAX: usize = 2_000;

/// What the comparison of one group came to.
#[derive(Debug)]
pub struct Verdict {
    /// The group.
    pub group: GroupId,
    /// How many frames were folded.
    pub frames: u64,
    /// What is not as the log says, a sentence each; empty if all is well.
    pub differences: Vec<String>,
}

/// Folds a group's log again and compares. `archive` must show one moment only.
///
/// # Errors
///
/// The database's error. A record that cannot be understood is a difference (SEEDS AM-18).
pub fn verify(archive: &dyn Archive, no: GroupNo) -> Result<Option<Verdict>, StoreError> {
    let Some(standing) = archive.group(no)? else {
        let index = archive.group_index()?;
        let known = index.groups.into_iter().find(|(own, ..)| *own == no);
        let differences = vec!["the group's own row cannot be read".into()];
        return Ok(known.map(|(_, group, _)| Verdict { group, frames: 0, differences }));
    };
    let mut accepted = BTreeMap::new();
    loop {
        let after = accepted.values().map(|task: &Task| task.ordinal).max().unwrap_or_default();
        let page =
            archive.tasks(no, &TaskFilter { after, limit: PAGE, ..TaskFilter::default() })?;
        if page.is_empty() {
            break;
        }
        accepted.extend(page.into_iter().map(|view| (view.task.id, view.task)));
    }
    let mut refold = Refold::new(accepted);
    loop {
        let filter = FrameFilter {
            after: refold.seq,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        let before = refold.seq;
        for block in archive.blocks(no, &filter)? {
            refold.block(&block);
        }
        if refold.seq == before {
            break;
        }
    }
    refold.compare(archive, no, &standing)?;
    let Refold { seq, differences, .. } = refold;
    Ok(Some(Verdict { group: standing.id, frames: seq, differences }))
}

/// A run as its frames tell of it.
#[derive(Debug, PartialEq)]
struct Run {
    agent: String,
    pid: Option<u32>,
    started_at: Timestamp,
    ready_at: Option<Timestamp>,
    ended: Option<(Timestamp, Exit)>,
}

/// The log, folded so far.
struct Refold {
    group: greenroom_core::Group,
    /// The tasks' rows: what callers gave is in no frame but these.
    accepted: BTreeMap<TaskId, Task>,
    tasks: BTreeMap<TaskId, Task>,
    runs: BTreeMap<RunId, Run>,
    segments: BTreeMap<u32, SegmentRecord>,
    compactions: BTreeMap<CompactionId, Compaction>,
    /// What the next frame belongs to.
    place: Place,
    reread: Reread,
    seq: u64,
    differences: Vec<String>,
}

impl Refold {
    fn new(accepted: BTreeMap<TaskId, Task>) -> Self {
        Self {
            group: greenroom_core::Group::new(Settings::default()),
            accepted,
            tasks: BTreeMap::new(),
            runs: BTreeMap::new(),
            segments: BTreeMap::new(),
            compactions: BTreeMap::new(),
            place: Place::default(),
            reread: Reread::default(),
            seq: 0,
            differences: Vec::new(),
        }
    }

    fn block(&mut self, block: &Block) {
        for frame in block.frames() {
            // What was read begins with the block that holds the last frame read before.
            if frame.seq <= self.seq {
                continue;
            }
            if frame.seq != self.seq + 1 {
                self.differ(format!("I3: frame {} follows frame {}", frame.seq, self.seq));
            }
            self.seq = frame.seq;
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
            fact => frames::task_of(fact).or(self.place.task),
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
                self.differ(format!("frame {} is no prompt: {err}", frame.seq));
                None
            }
        }
    }

    /// Gives a fact the record that its frame does not hold.
    fn complete(&mut self, write: Write) -> Write {
        match write {
            Write::TaskQueued { task, kind, origin, .. } => {
                let row = self.accepted.get(&task);
                if let Some(stored) = row.map(Task::kind).filter(|stored| *stored != kind) {
                    self.differ(format!("task {task} is a {stored:?}, the log says {kind:?}"));
                }
                let row = self.accepted.get(&task);
                let record = match row {
                    Some(row) => Task {
                        ordinal: self.group.head().tasks + 1,
                        metadata: row.metadata.clone(),
                        deadline_ms: row.deadline_ms,
                        expires: row.expires,
                        retry_of: row.retry_of,
                        ..Task::new(task, row.work.clone(), origin)
                    },
                    None => {
                        self.differ(format!("I2: {task} was accepted and has no row"));
                        let work = greenroom_core::Work::Turn { prompt: acp::empty_prompt() };
                        Task::new(task, work, origin)
                    }
                };
                Write::TaskQueued { task, kind, origin, record: Box::new(record) }
            }
            Write::TaskEnded {
                task,
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
                let record =
                    open.map(|open| Task { attempt, state, ending, retry_at: None, ..open });
                let record = record.map_or_else(
                    || {
                        self.differ(format!("I9: {task} ended and was not open"));
                        Box::new(Task::new(
                            task,
                            greenroom_core::Work::Turn { prompt: acp::empty_prompt() },
                            greenroom_core::Origin::Api,
                        ))
                    },
                    Box::new,
                );
                Write::TaskEnded {
                    task,
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

    fn take(&mut self, write: Write, at: Timestamp) {
        match &write {
            Write::TaskEnded { task, record, .. } => {
                let ended =
                    Task { ended_at: Some(at), seq_last: Some(self.seq), ..Task::clone(record) };
                self.tasks.insert(*task, ended);
            }
            Write::TurnStarted { task, prompt } => {
                let stored = self.accepted.get(task).map(|row| row.prompt().clone());
                self.same(&format!("prompt of {task}"), Some(prompt.clone()), stored);
            }
            Write::RunStarted { run, agent } => {
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
            _ => {}
        }
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
        self.compactions.insert(compaction.id, compaction);
    }

    fn differ(&mut self, difference: String) {
        self.differences.push(difference);
    }

    fn same<T: Debug + PartialEq>(&mut self, what: &str, folded: T, stored: T) {
        if folded != stored {
            let (folded, stored) = (shortened(&folded), shortened(&stored));
            self.differ(format!("{what}: the log says {folded}, the row {stored}"));
        }
    }

    fn compare(
        &mut self,
        archive: &dyn Archive,
        no: GroupNo,
        standing: &Standing,
    ) -> Result<(), StoreError> {
        self.compare_head(standing);
        self.compare_tasks();
        let mut before = None;
        loop {
            let page = archive.runs(no, before, PAGE)?;
            let Some(last) = page.last() else { break };
            before = Some(last.id);
            page.into_iter().for_each(|run| self.compare_run(run));
        }
        let unstored: Vec<_> = std::mem::take(&mut self.runs).into_keys().collect();
        self.same("runs without a row", unstored, Vec::new());
        let stored = archive.segments(no, 0, usize::MAX >> 1)?;
        let folded = std::mem::take(&mut self.segments);
        self.same("number of segments", folded.len(), stored.len());
        for (folded, stored) in folded.into_values().zip(stored) {
            let what = format!("segment {}", stored.segment);
            // Late provenance is no frame (SEEDS AM-13).
            let provenance = stored.provenance.clone();
            self.same(&what, SegmentRecord { provenance, ..folded }, stored);
        }
        let stored = archive.compactions(no, None, usize::MAX >> 1)?;
        let mut folded = std::mem::take(&mut self.compactions);
        for (_, stored) in stored {
            let what = format!("compaction {}", stored.id);
            self.same(&what, folded.remove(&stored.id), Some(stored));
        }
        self.same("compactions without a row", folded.into_keys().collect(), Vec::new());
        Ok(())
    }

    fn compare_head(&mut self, standing: &Standing) {
        let mut head = self.group.head().clone();
        // Until when the next run waits is in no frame, nor that it waited long enough.
        head.launch_due = standing.head.launch_due;
        head.provenance.clone_from(&standing.head.provenance);
        self.same("head", head, standing.head.clone());
        self.same("status", self.group.status(), standing.status);
        let waiting = self.group.waiting().len() as u64;
        self.same("queue length", waiting, standing.queue_length);
        // Whether somebody else has the lock is in no frame.
        let locks = self.group.waiting().any(|task| task.kind() == TaskKind::Compaction);
        if !locks {
            self.same("blocked_by", self.group.blocked_by(), standing.blocked_by);
        }
        let current = self.group.current().map(|task| task.id);
        self.same("current task", current, standing.current_task);
        self.same("current run", self.group.run().map(|run| run.id), standing.current_run);
        let active = self.group.active_compaction().is_some();
        self.same("is_compacting", active, standing.is_compacting);
    }

    fn compare_tasks(&mut self) {
        let open = self.group.current().into_iter().chain(self.group.waiting());
        self.tasks.extend(open.map(|task| (task.id, task.clone())).collect::<Vec<_>>());
        let mut folded = std::mem::take(&mut self.tasks);
        for (id, stored) in std::mem::take(&mut self.accepted) {
            let Some(mut task) = folded.remove(&id) else {
                self.differ(format!("I2: {id} has a row and was never accepted"));
                continue;
            };
            // When it was accepted and what the agent says it spent are in no frame of their own.
            task.created_at = stored.created_at;
            task.ending.tokens.clone_from(&stored.ending.tokens);
            if task.state == TaskState::Queued {
                task.ending = stored.ending.clone();
            }
            // Likewise a task's own wait.
            task.retry_at = stored.retry_at.filter(|_| task.state == TaskState::Retrying);
            self.same(&format!("task {id}"), task, stored);
        }
        self.same("tasks without a row", folded.into_keys().collect(), Vec::new());
    }

    fn compare_run(&mut self, stored: RunRecord) {
        let RunRecord { id, agent, pid, started_at, ready_at, ended } = stored;
        let stored = Run { agent, pid, started_at, ready_at, ended };
        let folded = self.runs.remove(&id);
        self.same(&format!("run {id}"), folded, Some(stored));
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
