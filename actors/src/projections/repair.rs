//! Repair: rebuilds a group's rows from its log, if one of them is unreadable.
//!
//! It owns which values come from the log and which only the rows have. It does not repair a log:
//! if the log contradicts itself, the repair changes nothing.

use std::collections::BTreeMap;

use greenroom_core::{
    Deadline, EndFrame, EndState, Ending, Fact, GroupId, Json, Origin, Permission, PermissionShown,
    Strategy, Task, TaskError, TaskId, TaskKind, Timestamp, Work,
};

use crate::{
    acp, clock,
    projections::digest,
    projections::replay::{LogReplay, Run},
    storage::{
        FrameFilter, GroupCommit, GroupNo, GroupSummary, PermissionRecord, ReadStore, Rebuilt,
        RunRecord, Salvage, SalvagedTask, SegmentRecord, StoreError, StoredCheckpoint, once,
    },
    transcript::frame::{self, Block},
};

/// The bytes of frames that are read at a time.
const PAGE_BYTES: usize = 8 << 20;

/// The result of a repair.
#[derive(Debug)]
pub enum Repair {
    /// The rebuilt rows, and what could not be restored, a sentence each.
    Rows(Box<Rebuilt>, Vec<String>),
    /// The log itself is damaged, so no row can be rebuilt from it.
    Damaged(Vec<String>),
}

/// Rebuilds the rows of the group `id` from its log and the readable columns of its rows. `store`
/// must show one moment, and no server may use the database.
///
/// # Errors
///
/// The database's error.
pub fn repair(
    store: &dyn ReadStore,
    no: GroupNo,
    id: GroupId,
    salvage: Salvage,
) -> Result<Repair, StoreError> {
    let checkpoint = match store
        .checkpoint(no)
        .map(|checkpoint| checkpoint.as_ref().map(StoredCheckpoint::read).transpose())
    {
        Ok(Ok(checkpoint)) => checkpoint,
        Ok(Err(err)) => return Ok(damaged(format!("the checkpoint cannot be read: {err}"))),
        Err(StoreError::Unreadable(row)) => return Ok(damaged(row.to_string())),
        Err(err) => return Err(err),
    };
    let mut tasks = Tasks { salvage: salvage.tasks, ..Tasks::default() };
    let checkpoint_seq = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq());
    if let Some(checkpoint) = &checkpoint {
        tasks.last = checkpoint.state.tasks;
        for waiting in &checkpoint.waiting {
            tasks.accept(waiting.ordinal, waiting.id, waiting.kind, checkpoint.newest_at);
        }
    }
    each_block(store, no, checkpoint_seq, &mut |block| tasks.read_block(block))?;
    let AcceptedTasks { tasks, unlogged, lost, mut losses } = tasks.accepted();
    let mut replay = LogReplay::new(checkpoint, tasks);
    each_block(store, no, checkpoint_seq, &mut |block| replay.read_block(block))?;
    let mut damage = once(store.left_out());
    damage.append(&mut replay.differences);
    if replay.seq < salvage.last_seq {
        // The repair would undo the lost facts: an ended task would run again.
        damage.push(format!(
            "the log ends with frame {}, the group's row has frame {}",
            replay.seq, salvage.last_seq
        ));
    }
    if !damage.is_empty() {
        return Ok(Repair::Damaged(damage));
    }
    let rows = Salvage { tasks: BTreeMap::new(), ..salvage };
    let facts = end_lost(&mut replay, no, &id, &lost, &mut losses);
    let rebuilt = rebuilt(replay, no, id, (rows, unlogged), checkpoint_seq, facts);
    Ok(Repair::Rows(Box::new(rebuilt), losses))
}

fn damaged(what: String) -> Repair {
    Repair::Damaged(vec![what])
}

fn each_block(
    store: &dyn ReadStore,
    no: GroupNo,
    mut after: u64,
    visit: &mut dyn FnMut(&Block),
) -> Result<(), StoreError> {
    loop {
        let filter = FrameFilter {
            after,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        let before = after;
        for block in store.blocks(no, &filter)? {
            after = after.max(block.last_seq());
            visit(&block);
        }
        if after == before {
            return Ok(());
        }
    }
}

/// The tasks in the log, with their callers' values.
#[derive(Default)]
struct Tasks {
    salvage: BTreeMap<u64, SalvagedTask>,
    /// The last ordinal.
    last: u64,
    /// The last frame that was read.
    last_seq: u64,
    accepted: BTreeMap<TaskId, Accepted>,
    prompts: BTreeMap<TaskId, Json>,
    /// The strategies of compactions that ran with another one than they were accepted with.
    strategies: BTreeMap<TaskId, Strategy>,
}

/// The tasks in the log.
struct AcceptedTasks {
    /// As they were accepted.
    tasks: BTreeMap<TaskId, Task>,
    unlogged: Unlogged,
    /// Those without a prompt.
    lost: Vec<TaskId>,
    /// What could not be restored, a sentence each.
    losses: Vec<String>,
}

/// When the next attempt of a task is due, and the tokens that its agent reported.
type Unlogged = BTreeMap<TaskId, (Option<Deadline>, Option<Json>)>;

struct Accepted {
    ordinal: u64,
    kind: TaskKind,
    at: Timestamp,
}

impl Tasks {
    fn accept(&mut self, ordinal: u64, id: TaskId, kind: TaskKind, at: Timestamp) {
        self.accepted.insert(id, Accepted { ordinal, kind, at });
    }

    fn read_block(&mut self, block: &Block) {
        for frame in block.frames() {
            if frame.seq <= self.last_seq {
                continue;
            }
            self.last_seq = frame.seq;
            match Fact::read(frame.kind, frame.payload) {
                Some(Ok(Fact::TaskQueued { task, kind, .. })) => {
                    self.last += 1;
                    self.accept(self.last, task, kind, block.at);
                }
                Some(Ok(Fact::TurnStarted { task, prompt, strategy, .. })) => {
                    self.prompts.insert(task, prompt);
                    self.strategies.extend(strategy.map(|strategy| (task, strategy)));
                }
                _ => {}
            }
        }
    }

    /// Returns the tasks as they were accepted.
    fn accepted(mut self) -> AcceptedTasks {
        let (mut tasks, mut unlogged) = (BTreeMap::new(), BTreeMap::new());
        let (mut lost, mut losses) = (Vec::new(), Vec::new());
        for (id, Accepted { ordinal, kind, at }) in self.accepted {
            let row = self.salvage.remove(&ordinal).unwrap_or_else(SalvagedTask::missing);
            let prompt = self.prompts.remove(&id).or(row.prompt);
            if prompt.is_none() {
                lost.push(id);
            }
            for column in row.lost {
                losses.push(format!(
                    "{id}: {column} cannot be read and is in no frame; it is left out"
                ));
            }
            let prompt = prompt.unwrap_or_else(acp::empty_prompt);
            let work = match kind {
                TaskKind::Turn => Work::Turn { prompt },
                TaskKind::Compaction => Work::Compaction {
                    focus: row.focus,
                    prompt,
                    strategy: self
                        .strategies
                        .remove(&id)
                        .or(row.strategy)
                        .unwrap_or(Strategy::Command),
                },
            };
            let task = Task {
                ordinal,
                metadata: row.metadata,
                deadline_ms: row.deadline_ms,
                expires: row.expires,
                retry_of: row.retry_of,
                created_at: row.created_at.unwrap_or(at),
                ..Task::new(id, work, Origin::Api)
            };
            tasks.insert(id, task);
            unlogged.insert(id, (row.retry_at, row.tokens));
        }
        AcceptedTasks { tasks, unlogged, lost, losses }
    }
}

/// Fails the open tasks whose prompt is lost, as no agent can run them. It does so by facts, so
/// that the log has their end (I2).
fn end_lost(
    replay: &mut LogReplay,
    no: GroupNo,
    id: &GroupId,
    lost: &[TaskId],
    losses: &mut Vec<String>,
) -> Option<GroupCommit> {
    let before = replay.group.clone();
    let at = clock::now().max(replay.newest_at);
    let mut facts = Vec::new();
    for id in lost {
        let Some(task) = replay.group.task(*id).cloned() else { continue };
        let message = "the stored prompt could not be read, so the task was not run".to_owned();
        let error = Some(TaskError { code: "unreadable".into(), message });
        let frame = EndFrame { at, seq: replay.group.next_seq() };
        let (kind, attempt) = (task.kind(), task.attempt);
        let ending = Ending { error, ..Ending::default() };
        let fact = Fact::task_ended(kind, task.ended(attempt, EndState::Failed, frame, ending));
        facts.push(replay.group.record(fact, at));
        losses.push(format!("{id}: its prompt cannot be read; the task is failed"));
    }
    if facts.is_empty() {
        return None;
    }
    let blocks = frame::pack(at, &facts);
    let mut digests = replay.digests.clone();
    let digests = digest::project(&mut digests, &facts, at);
    let summary = GroupSummary::of(id.clone(), &replay.group);
    replay.group = before;
    Some(GroupCommit { group: no, epoch: 0, at, summary, facts, blocks, digests, key: None })
}

fn rebuilt(
    mut replay: LogReplay,
    no: GroupNo,
    id: GroupId,
    (rows, mut unlogged): (Salvage, Unlogged),
    checkpoint_seq: u64,
    facts: Option<GroupCommit>,
) -> Rebuilt {
    let mut summary = GroupSummary::of(id.clone(), &replay.group);
    summary.state.crash_loop.launch_wait = rows.launch_wait;
    if let (Some(session), Some(provenance)) = (&mut summary.state.session, &rows.provenance) {
        session.provenance = Some(provenance.clone());
    }
    let open = replay.group.current().into_iter().chain(replay.group.waiting()).cloned();
    let ended = std::mem::take(&mut replay.tasks).into_values();
    let tasks = open.chain(ended).map(|mut task| {
        if let Some(row) = replay.accepted.get(&task.id) {
            task.created_at = row.created_at;
        }
        let (backoff, tokens) = unlogged.remove(&task.id).unwrap_or_default();
        task.set_unlogged(backoff, tokens);
        task
    });
    let tasks = tasks.collect();
    let runs = std::mem::take(&mut replay.runs).into_iter().map(|(id, run)| {
        let Run { agent, pid, started_at, ready_at, ended } = run;
        RunRecord { id, agent, pid, started_at, ready_at, ended }
    });
    let segments = std::mem::take(&mut replay.segments).into_values().map(|segment| {
        let provenance = rows.segments.get(&segment.segment).cloned().or(segment.provenance);
        SegmentRecord { provenance, ..segment }
    });
    let compactions = std::mem::take(&mut replay.compactions).into_values().map(|compaction| {
        let opened = replay.opened.get(&compaction.id.0).or(rows.compactions.get(&compaction.id));
        (opened.copied().unwrap_or(checkpoint_seq), compaction)
    });
    let permissions = std::mem::take(&mut replay.permissions).into_values().map(|replayed| {
        let seq =
            replay.opened.get(&replayed.asked.permission.0).copied().unwrap_or(checkpoint_seq);
        let row = rows.permissions.get(&seq).cloned().unwrap_or_default();
        let shown = row.tool_call.zip(row.options);
        let shown = shown.map(|(tool_call, options)| PermissionShown { tool_call, options });
        let (resolved_at, resolved_by) = replayed.resolved.unzip();
        let expires_at = row.expires_at.unwrap_or(replayed.opened_at);
        let permission = Permission { expires_at, shown: shown.map(Box::new), ..replayed.asked };
        let (opened_at, state, selected) = (replayed.opened_at, replayed.state, replayed.selected);
        let group = id.clone();
        let record = PermissionRecord {
            group,
            permission,
            opened_at,
            state,
            selected,
            resolved_by,
            resolved_at,
        };
        (seq, record)
    });
    Rebuilt {
        tasks,
        runs: runs.collect(),
        segments: segments.collect(),
        segments_kept: replay.closed.count,
        compactions: compactions.collect(),
        permissions: permissions.collect(),
        group: GroupCommit {
            group: no,
            epoch: 0,
            at: clock::now(),
            summary,
            facts: Vec::new(),
            blocks: Vec::new(),
            digests: Some(replay.sealed_digests.into_rows(&replay.digests)),
            key: None,
        },
        facts,
    }
}
