//! A group's rows made from its log: for a group with a row that cannot be read.
//!
//! Owns which values come from the log and which only the rows have. It does not repair a log: if
//! the log contradicts itself, the repair changes nothing.

use std::collections::BTreeMap;

use greenroom_core::{
    GroupId, Json, Origin, Permission, PermissionShown, Strategy, Task, TaskError, TaskId,
    TaskKind, TaskState, Timestamp, Work, Write,
};

use crate::{
    agent::acp,
    clock, digest,
    frames::{self, Block},
    refold::{Refold, Run},
    storage::{
        Archive, FrameFilter, GroupNo, PermissionRecord, Rebuilt, RunRecord, Salvage, SalvagedTask,
        SegmentRecord, Standing, StoreError, StoredBase, Writes, once,
    },
};

/// How many bytes of frames are read at a time.
const PAGE_BYTES: usize = 8 << 20;

/// The result of a repair.
#[derive(Debug)]
pub enum Repair {
    /// The rows as the log gives them, and what could not be restored, a sentence each.
    Rows(Box<Rebuilt>, Vec<String>),
    /// The log itself is damaged, so that no row can be made from it.
    Damaged(Vec<String>),
}

/// Makes the rows of the group `id` from its log and what can be read of its rows. `archive` must
/// show one moment only, and no server may use the database.
///
/// # Errors
///
/// The database's error.
pub fn repair(
    archive: &dyn Archive,
    no: GroupNo,
    id: GroupId,
    salvage: Salvage,
) -> Result<Repair, StoreError> {
    let base = match archive.base(no).map(|base| base.as_ref().map(StoredBase::read).transpose()) {
        Ok(Ok(base)) => base,
        Ok(Err(err)) => return Ok(damaged(format!("the base cannot be read: {err}"))),
        Err(StoreError::Unreadable(row)) => return Ok(damaged(row.to_string())),
        Err(err) => return Err(err),
    };
    let mut tasks = Tasks { salvage: salvage.tasks, ..Tasks::default() };
    let cut = base.as_ref().map_or(0, |base| base.seq());
    if let Some(base) = &base {
        tasks.last = base.head.tasks;
        for waiting in &base.waiting {
            tasks.accept(waiting.ordinal, waiting.id, waiting.kind, base.newest_at);
        }
    }
    each_block(archive, no, cut, &mut |block| tasks.hear(block))?;
    let (accepted, lost, mut said) = tasks.accepted();
    let mut refold = Refold::new(base, accepted);
    each_block(archive, no, cut, &mut |block| refold.block(block))?;
    let mut damage = once(archive.left_out());
    damage.append(&mut refold.differences);
    if refold.seq < salvage.last_seq {
        // Its lost facts would be undone: a task that ended would run again.
        damage.push(format!(
            "the log ends with frame {}, it went to {}",
            refold.seq, salvage.last_seq
        ));
    }
    if !damage.is_empty() {
        return Ok(Repair::Damaged(damage));
    }
    let rows = Salvage { tasks: BTreeMap::new(), ..salvage };
    let facts = end_lost(&mut refold, no, &id, &lost, &mut said);
    Ok(Repair::Rows(Box::new(rebuilt(refold, no, id, rows, cut, facts)), said))
}

fn damaged(what: String) -> Repair {
    Repair::Damaged(vec![what])
}

fn each_block(
    archive: &dyn Archive,
    no: GroupNo,
    mut after: u64,
    take: &mut dyn FnMut(&Block),
) -> Result<(), StoreError> {
    loop {
        let filter = FrameFilter {
            after,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        let before = after;
        for block in archive.blocks(no, &filter)? {
            after = after.max(block.last_seq());
            take(&block);
        }
        if after == before {
            return Ok(());
        }
    }
}

/// The tasks that the log tells of, and what callers gave with them.
#[derive(Default)]
struct Tasks {
    salvage: BTreeMap<u64, SalvagedTask>,
    /// The last ordinal.
    last: u64,
    /// The last frame that was heard.
    heard: u64,
    accepted: BTreeMap<TaskId, Accepted>,
    prompts: BTreeMap<TaskId, Json>,
    /// How compactions were done that were done otherwise than they were accepted.
    strategies: BTreeMap<TaskId, Strategy>,
}

struct Accepted {
    ordinal: u64,
    kind: TaskKind,
    at: Timestamp,
}

impl Tasks {
    fn accept(&mut self, ordinal: u64, id: TaskId, kind: TaskKind, at: Timestamp) {
        self.accepted.insert(id, Accepted { ordinal, kind, at });
    }

    fn hear(&mut self, block: &Block) {
        for frame in block.frames() {
            if frame.seq <= self.heard {
                continue;
            }
            self.heard = frame.seq;
            match Write::read(frame.kind, frame.payload) {
                Some(Ok(Write::TaskQueued { task, kind, .. })) => {
                    self.last += 1;
                    self.accept(self.last, task, kind, block.at);
                }
                Some(Ok(Write::TurnStarted { task, prompt, strategy })) => {
                    self.prompts.insert(task, prompt);
                    self.strategies.extend(strategy.map(|strategy| (task, strategy)));
                }
                _ => {}
            }
        }
    }

    /// The tasks as they were accepted; those whose prompt is nowhere; and what else is lost.
    fn accepted(mut self) -> (BTreeMap<TaskId, Task>, Vec<TaskId>, Vec<String>) {
        let (mut tasks, mut lost, mut said) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (id, Accepted { ordinal, kind, at }) in self.accepted {
            let row = self.salvage.remove(&ordinal).unwrap_or_else(SalvagedTask::missing);
            let prompt = self.prompts.remove(&id).or(row.prompt);
            if prompt.is_none() {
                lost.push(id);
            }
            for column in row.lost {
                said.push(format!(
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
            let mut task = Task {
                ordinal,
                metadata: row.metadata,
                deadline_ms: row.deadline_ms,
                expires: row.expires,
                retry_of: row.retry_of,
                retry_at: row.retry_at,
                created_at: row.created_at.unwrap_or(at),
                ..Task::new(id, work, Origin::Api)
            };
            task.ending.tokens = row.tokens;
            tasks.insert(id, task);
        }
        (tasks, lost, said)
    }
}

/// Ends the open tasks whose prompt is lost, as no agent can run them. As facts, so that the log
/// says what became of them (I2).
fn end_lost(
    refold: &mut Refold,
    no: GroupNo,
    id: &GroupId,
    lost: &[TaskId],
    said: &mut Vec<String>,
) -> Option<Writes> {
    let before = refold.group.clone();
    let at = clock::now().max(refold.newest_at);
    let mut writes = Vec::new();
    for id in lost {
        let Some(task) = refold.group.task(*id).cloned() else { continue };
        let message = "the stored prompt could not be read, so the task was not run".to_owned();
        let error = Some(TaskError { code: "unreadable".into(), message });
        let seq_last = Some(refold.group.head().last_seq + 1);
        let (kind, attempt, state) = (task.kind(), task.attempt, TaskState::Failed);
        let mut record = Task { state, retry_at: None, ended_at: Some(at), seq_last, ..task };
        record.ending.error.clone_from(&error);
        let write = Write::TaskEnded {
            task: *id,
            kind,
            attempt,
            state,
            stop_reason: None,
            error,
            interrupted: None,
            findings: Vec::new(),
            record: Box::new(record),
        };
        refold.group.replay(&write, at);
        writes.push(write);
        said.push(format!("{id}: its prompt cannot be read; the task is failed"));
    }
    if writes.is_empty() {
        return None;
    }
    (refold.place.last_seq, refold.place.segment) = (refold.seq, refold.group.head().segment);
    let blocks = frames::pack(&mut refold.place, at, &writes);
    let mut digests = refold.digests.clone();
    let digests = digest::fold(&mut digests, &writes, at);
    let standing = standing(refold, id.clone());
    refold.group = before;
    Some(Writes { group: no, epoch: 0, at, standing, writes, blocks, digests, key: None })
}

fn standing(refold: &Refold, id: GroupId) -> Standing {
    let group = &refold.group;
    Standing {
        id,
        head: group.head().clone(),
        status: group.status(),
        blocked_by: group.blocked_by(),
        queue_length: group.waiting().len() as u64,
        current_task: group.current().map(|task| task.id),
        current_run: group.run().map(|run| run.id),
        is_compacting: group.active_compaction().is_some(),
    }
}

fn rebuilt(
    mut refold: Refold,
    no: GroupNo,
    id: GroupId,
    rows: Salvage,
    cut: u64,
    facts: Option<Writes>,
) -> Rebuilt {
    let mut standing = standing(&refold, id.clone());
    standing.head.launch_due = rows.launch_due;
    if rows.provenance.is_some() {
        standing.head.provenance.clone_from(&rows.provenance);
    }
    let open = refold.group.current().into_iter().chain(refold.group.waiting()).cloned();
    let ended = std::mem::take(&mut refold.tasks).into_values();
    let tasks = open.chain(ended).map(|mut task| {
        if let Some(row) = refold.accepted.get(&task.id) {
            task.created_at = row.created_at;
            task.ending.tokens.clone_from(&row.ending.tokens);
            task.retry_at = row.retry_at.filter(|_| task.state == TaskState::Retrying);
        }
        task
    });
    let tasks = tasks.collect();
    let runs = std::mem::take(&mut refold.runs).into_iter().map(|(id, run)| {
        let Run { agent, pid, started_at, ready_at, ended } = run;
        RunRecord { id, agent, pid, started_at, ready_at, ended }
    });
    let segments = std::mem::take(&mut refold.segments).into_values().map(|segment| {
        let provenance = rows.segments.get(&segment.segment).cloned().or(segment.provenance);
        SegmentRecord { provenance, ..segment }
    });
    let compactions = std::mem::take(&mut refold.compactions).into_values().map(|compaction| {
        let opened = refold.opened.get(&compaction.id.0).or(rows.compactions.get(&compaction.id));
        (opened.copied().unwrap_or(cut), compaction)
    });
    let permissions = std::mem::take(&mut refold.permissions).into_values().map(|own| {
        let seq = refold.opened.get(&own.asked.permission.0).copied().unwrap_or(cut);
        let row = rows.permissions.get(&seq).cloned().unwrap_or_default();
        let shown = row.tool_call.zip(row.options);
        let shown = shown.map(|(tool_call, options)| PermissionShown { tool_call, options });
        let (resolved_at, resolved_by) = own.resolved.unzip();
        let expires_at = row.expires_at.unwrap_or(own.opened_at);
        let permission = Permission { expires_at, shown: shown.map(Box::new), ..own.asked };
        let (opened_at, state, selected) = (own.opened_at, own.state, own.selected);
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
        segments_kept: refold.closed.count,
        compactions: compactions.collect(),
        permissions: permissions.collect(),
        head: Writes {
            group: no,
            epoch: 0,
            at: clock::now(),
            standing,
            writes: Vec::new(),
            blocks: Vec::new(),
            digests: Some(refold.closed_digests.into_rows(&refold.digests)),
            key: None,
        },
        facts,
    }
}
