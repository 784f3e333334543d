//! The plan of a commit: which rows its facts change, in which order. It knows no database.
//!
//! A store executes the changes in their order: a segment is closed before the next is opened.

use greenroom_core::{
    AgentOutput, Compaction, Continuity, Deadline, EndReason, Exit, Fact, Json, Permission,
    PermissionId, PermissionState, Provenance, Recorded, RunId, SessionId, Settings, Strategy,
    Task, TaskError, TaskId, Timestamp,
};

use super::{GroupCommit, KeyUse, SegmentRecord, TurnRow};
use crate::transcript::frame::Block;

#[cfg(test)]
mod tests;

/// What a store does for one commit.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The settings of the group, if the commit creates it: its rows are inserted first.
    pub created: Option<&'a Settings>,
    /// The last frame before those of the commit. A log that ends elsewhere refuses the commit, as
    /// it would have a gap for ever (I3).
    pub last_seq_before: u64,
    /// The changes after the group's own row is updated.
    pub changes: Vec<RowChange<'a>>,
}

/// A change of one row.
#[derive(Debug)]
pub enum RowChange<'a> {
    /// Replaces the group's settings.
    ChangeSettings(&'a Settings),

    /// Inserts an accepted task, with its attempt if that starts in the same commit.
    AcceptTask {
        /// The task.
        task: &'a Task,
        /// Its attempt.
        start: Option<AttemptStart>,
    },
    /// The task has the group's slot.
    ClaimTask(TaskId),
    /// The task no longer has it.
    ReleaseTask(TaskId),
    /// An attempt of the task starts.
    StartTask {
        /// The task.
        task: TaskId,
        /// The attempt.
        start: AttemptStart,
    },
    /// A compaction runs with another prompt and strategy than it was accepted with.
    ChangeCompactionTask {
        /// The task.
        task: TaskId,
        /// The prompt.
        prompt: &'a Json,
        /// The strategy.
        strategy: Strategy,
    },
    /// A caller requested the running task's cancellation.
    RequestCancel(TaskId),
    /// An attempt failed, and the task is retried.
    ScheduleRetry {
        /// The task.
        task: TaskId,
        /// The failed attempt's number.
        attempt: u32,
        /// What it failed with.
        error: &'a TaskError,
        /// The backoff's end.
        due: &'a Deadline,
    },
    /// The task's backoff ended.
    EndBackoff(TaskId),
    /// The task ends, unless it has ended: a terminal state is never overwritten (I9).
    EndTask(&'a Task),
    /// Appends message text that the agent wrote after its answer to an ended task's.
    AddLateText {
        /// The task.
        task: TaskId,
        /// The text.
        text: &'a str,
    },

    /// Inserts a pending permission.
    OpenPermission {
        /// Its frame.
        seq: u64,
        /// The permission.
        permission: &'a Permission,
    },
    /// A pending permission is resolved.
    ResolvePermission {
        /// The permission.
        permission: PermissionId,
        /// How.
        state: PermissionState,
        /// The selected option.
        selected: Option<&'a str>,
        /// Who resolved it.
        resolved_by: &'a str,
    },

    /// Inserts a run that is being launched.
    StartRun {
        /// The run.
        run: RunId,
        /// Its launch profile.
        agent: &'a str,
    },
    /// The run takes prompts.
    SetRunReady {
        /// The run.
        run: RunId,
        /// Its process id.
        pid: u32,
        /// Its session.
        session: &'a SessionId,
        /// Whether the context was restored.
        continuity: Continuity,
    },
    /// The run ended.
    EndRun {
        /// The run.
        run: RunId,
        /// How.
        exit: &'a Exit,
    },

    /// A segment is closed.
    CloseSegment {
        /// Its number.
        segment: u32,
        /// Its last frame.
        seq: u64,
        /// Why.
        end_reason: EndReason,
    },
    /// Inserts an open segment.
    OpenSegment(SegmentRecord),
    /// Sets the provenance of the open segment.
    SetProvenance(&'a Provenance),

    /// Inserts or updates a compaction. The row keeps its first frame.
    PutCompaction {
        /// The frame.
        seq: u64,
        /// The compaction.
        compaction: &'a Compaction,
    },
    /// Releases a lock. The commit fails if `fences` and the group no longer has it (HL-11).
    ReleaseLock {
        /// The session.
        key: &'a SessionId,
        /// The name that the group holds it under.
        holder: &'a str,
        /// The fencing token.
        token: u64,
        /// Whether the commit depends on it.
        fences: bool,
    },

    /// Inserts a block of frames.
    InsertBlock(&'a Block),
    /// Stores the digest of an ended run.
    SealRun {
        /// The run.
        run: RunId,
        /// The digest, JSON.
        digest: &'a str,
    },
    /// Stores the digest of an ended task.
    SealTurn {
        /// The task.
        task: TaskId,
        /// The task's ordinal, if it ends in this commit.
        ordinal: Option<u64>,
        /// The digest.
        turn: &'a TurnRow,
    },
    /// Stores an idempotency key. The commit fails if a task that still exists has used it.
    UseKey(&'a KeyUse),
}

/// A task's attempt at its start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttemptStart {
    /// Its number, from 1.
    pub attempt: u32,
    /// Its run.
    pub run: RunId,
    /// The open segment.
    pub segment: u32,
    /// Its first frame.
    pub seq: u64,
}

/// Plans a commit.
pub fn plan(commit: &GroupCommit) -> Plan<'_> {
    let first = commit.facts.first();
    let mut changes = fact_changes(commit);
    changes.extend(commit.blocks.iter().map(RowChange::InsertBlock));
    if let Some(rows) = &commit.digests {
        let runs = rows.sealed.runs.iter();
        changes.extend(runs.map(|(run, digest)| RowChange::SealRun { run: *run, digest }));
        changes.extend(rows.sealed.turns.iter().map(|(task, turn)| RowChange::SealTurn {
            task: *task,
            ordinal: ordinal_of_ended(commit, *task),
            turn,
        }));
    }
    changes.extend(commit.key.iter().map(RowChange::UseKey));
    let frames: u64 = commit.facts.iter().map(|recorded| recorded.fact.frames()).sum();
    Plan {
        created: first.and_then(|first| match &first.fact {
            Fact::GroupCreated(settings) => Some(settings),
            _ => None,
        }),
        // Not by the first fact's place: a fact that is lost or repeated on the way is found here.
        last_seq_before: commit.summary.state.last_seq.saturating_sub(frames),
        changes,
    }
}

/// Returns the ordinal of a task that ends in this commit, which saves a lookup.
fn ordinal_of_ended(commit: &GroupCommit, id: TaskId) -> Option<u64> {
    commit.facts.iter().find_map(|recorded| match &recorded.fact {
        Fact::TaskEnded { task, record, .. } if *task == id => Some(record.ordinal),
        _ => None,
    })
}

/// Plans the facts. A task that starts in the commit that accepts it is written once: an accepted
/// task is held back until the next fact that does not start a task.
fn fact_changes(commit: &GroupCommit) -> Vec<RowChange<'_>> {
    let mut changes = Vec::new();
    let mut accepted = None;
    let accept = |task| RowChange::AcceptTask { task, start: None };
    for Recorded { place, fact } in &commit.facts {
        match fact {
            Fact::TaskQueued { record, .. } => {
                changes.extend(accepted.replace(&**record).map(accept));
            }
            Fact::TaskStarted { task, attempt, run } => {
                let (segment, seq) = (place.segment, place.seq);
                let start = AttemptStart { attempt: *attempt, run: *run, segment, seq };
                changes.push(match accepted.take_if(|accepted| accepted.id == *task) {
                    Some(task) => RowChange::AcceptTask { task, start: Some(start) },
                    None => RowChange::StartTask { task: *task, start },
                });
            }
            fact => {
                changes.extend(accepted.take().map(accept));
                changes.extend(row_change(fact, place.seq, commit.at));
                if let Fact::RunReady { provenance: Some(provenance), .. } = fact {
                    changes.push(RowChange::SetProvenance(provenance));
                }
            }
        }
    }
    changes.extend(accepted.map(accept));
    changes
}

/// Returns the row that a fact changes by itself, if it changes one.
fn row_change(fact: &Fact, seq: u64, at: Timestamp) -> Option<RowChange<'_>> {
    Some(match fact {
        Fact::GroupChanged(settings) => RowChange::ChangeSettings(settings),
        Fact::TaskClaimed { task } => RowChange::ClaimTask(*task),
        Fact::TaskReleased { task } => RowChange::ReleaseTask(*task),
        Fact::CancelRequested { task } => RowChange::RequestCancel(*task),
        Fact::TurnStarted { task, prompt, strategy: Some(strategy), .. } => {
            RowChange::ChangeCompactionTask { task: *task, prompt, strategy: *strategy }
        }
        Fact::TaskRetrying { task, attempt, error, due, .. } => {
            RowChange::ScheduleRetry { task: *task, attempt: *attempt, error, due }
        }
        Fact::BackoffEnded { task } => RowChange::EndBackoff(*task),
        Fact::TaskEnded { record, .. } => RowChange::EndTask(record),
        Fact::AgentOutput(AgentOutput { summary, late: Some(task), .. })
            if !summary.text.is_empty() =>
        {
            RowChange::AddLateText { task: *task, text: &summary.text }
        }
        Fact::PermissionOpened(permission) => RowChange::OpenPermission { seq, permission },
        Fact::PermissionResolved { permission, state, selected, resolved_by, .. } => {
            RowChange::ResolvePermission {
                permission: *permission,
                state: *state,
                selected: selected.as_deref(),
                resolved_by,
            }
        }
        Fact::RunStarted { run, agent, .. } => RowChange::StartRun { run: *run, agent },
        Fact::RunReady { run, pid, session, continuity, .. } => {
            RowChange::SetRunReady { run: *run, pid: *pid, session, continuity: *continuity }
        }
        Fact::RunExited { run, exit } => RowChange::EndRun { run: *run, exit },
        Fact::SegmentEnded { segment, end_reason } => {
            RowChange::CloseSegment { segment: *segment, seq, end_reason: *end_reason }
        }
        Fact::SegmentStarted { .. } => {
            RowChange::OpenSegment(SegmentRecord::opened(fact, (seq, at))?)
        }
        Fact::ProvenanceNoted { provenance } => RowChange::SetProvenance(provenance),
        Fact::LockReleased { key, holder, token, fences } => {
            RowChange::ReleaseLock { key, holder, token: *token, fences: *fences }
        }
        Fact::CompactionStarted(compaction)
        | Fact::CompactionUpdated(compaction)
        | Fact::CompactionEnded(compaction) => RowChange::PutCompaction { seq, compaction },
        // Planned by `fact_changes`, and the group's own row.
        Fact::TaskQueued { .. } | Fact::TaskStarted { .. } | Fact::GroupCreated(_) => return None,
        Fact::GroupArchived {}
        | Fact::PurgeOrdered {}
        | Fact::GroupPaused {}
        | Fact::GroupResumed {}
        | Fact::GroupHeld { .. }
        | Fact::AgentDegraded { .. }
        | Fact::AgentAuthRequired { .. }
        | Fact::LaunchAllowed {}
        | Fact::TurnStarted { strategy: None, .. }
        | Fact::CancelSent { .. }
        | Fact::CompactionRests { .. }
        | Fact::PromptSent { .. }
        | Fact::AgentOutput(_)
        | Fact::AgentOutputRejected { .. }
        | Fact::RequestRefused { .. }
        | Fact::TurnCut { .. }
        | Fact::PromptAnswered(_)
        | Fact::TurnSettled { .. }
        | Fact::RunStopping { .. }
        | Fact::SummaryGiven { .. }
        | Fact::LockAsked { .. }
        | Fact::LockRefused { .. }
        | Fact::LockTaken { .. }
        | Fact::LockBypassed { .. }
        | Fact::LockLost { .. }
        | Fact::AgentWedged { .. }
        | Fact::StderrMatched { .. }
        | Fact::ContextLost { .. } => return None,
    })
}
