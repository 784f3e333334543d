//! Verify: compares a group's rows with a replay of its log (I13). It never writes.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{GroupId, Task, TaskId, TaskKind, TaskState};

use crate::{
    projections::checkpoint::ClosedSegments,
    projections::replay::{LogReplay, Permission, Run},
    storage::{
        DigestRows, FrameFilter, GroupNo, GroupSummary, PermissionFilter, PermissionRecord,
        ReadStore, RunRecord, SegmentRecord, StoreError, StoredCheckpoint, TaskFilter, Unreadable,
        once,
    },
};

/// The rows that are read at a time.
const PAGE: usize = 1000;
/// The bytes of frames that are read at a time.
const PAGE_BYTES: usize = 8 << 20;

/// The result of the comparison of one group.
#[derive(Debug)]
pub struct Verdict {
    /// The group.
    pub group: GroupId,
    /// The number of replayed frames.
    pub frames: u64,
    /// The differences, a sentence each; empty if there are none.
    pub differences: Vec<String>,
}

/// Replays a group's log and compares every derived row. `store` must show one moment.
///
/// # Errors
///
/// The database's error. An unreadable row is a difference (AM-18).
pub fn verify(store: &dyn ReadStore, no: GroupNo) -> Result<Option<Verdict>, StoreError> {
    let summary = match store.group(no) {
        Ok(Some(summary)) => summary,
        Ok(None) => return Ok(None),
        Err(StoreError::Unreadable(row)) => return unreadable(store, no, &row),
        Err(err) => return Err(err),
    };
    store.left_out();
    let mut accepted = BTreeMap::new();
    loop {
        let after = accepted.values().map(|task: &Task| task.ordinal).max().unwrap_or_default();
        let page = store.tasks(no, &TaskFilter { after, limit: PAGE, ..TaskFilter::default() })?;
        if page.is_empty() {
            break;
        }
        accepted.extend(page.into_iter().map(|view| (view.task.id, view.task)));
    }
    let checkpoint = match store.checkpoint(no) {
        Err(StoreError::Unreadable(row)) => return unreadable(store, no, &row),
        checkpoint => checkpoint?,
    };
    let checkpoint_seq = checkpoint.as_ref().map_or(0, |stored| stored.seq);
    let (checkpoint, unread) = match checkpoint.as_ref().map(StoredCheckpoint::read) {
        None => (None, None),
        Some(Ok(checkpoint)) => (Some(checkpoint), None),
        Some(Err(err)) => {
            (None, Some(format!("the checkpoint at frame {checkpoint_seq} cannot be read: {err}")))
        }
    };
    let mut replay = LogReplay::new(checkpoint, accepted);
    replay.differences.extend(unread);
    let what = "the frame at which the log was cut";
    replay.same(what, replay.seq, checkpoint_seq);
    replay.seq = checkpoint_seq;
    loop {
        let filter = FrameFilter {
            after: replay.seq,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        let before = replay.seq;
        for block in store.blocks(no, &filter)? {
            replay.read_block(&block);
        }
        if replay.seq == before {
            break;
        }
    }
    replay.compare(store, no, &summary)?;
    let LogReplay { seq, mut differences, .. } = replay;
    let mut unread = store.left_out();
    unread.retain(|row| row.group == no);
    differences.extend(once(unread));
    Ok(Some(Verdict { group: summary.id, frames: seq - checkpoint_seq, differences }))
}

/// The verdict on a group whose own row, or checkpoint, is unreadable: nothing can be compared.
fn unreadable(
    store: &dyn ReadStore,
    no: GroupNo,
    row: &Unreadable,
) -> Result<Option<Verdict>, StoreError> {
    let index = store.group_index()?;
    let known = index.groups.into_iter().find(|(known_no, ..)| *known_no == no);
    let differences = vec![format!("the group's own row cannot be read: {row}")];
    Ok(known.map(|(_, group, _)| Verdict { group, frames: 0, differences }))
}

impl LogReplay {
    fn compare(
        &mut self,
        store: &dyn ReadStore,
        no: GroupNo,
        summary: &GroupSummary,
    ) -> Result<(), StoreError> {
        self.compare_group(summary);
        self.compare_tasks(&store.contradictory_tasks(no)?);
        let mut before = None;
        loop {
            let page = store.runs(no, before, PAGE)?;
            let Some(last) = page.last() else { break };
            before = Some(last.id);
            page.into_iter().for_each(|run| self.compare_run(run));
        }
        let unstored: Vec<_> = std::mem::take(&mut self.runs).into_keys().collect();
        self.same("runs without a row", unstored, Vec::new());
        let mut stored = store.segments(no, 0, usize::MAX >> 1)?;
        let projected = std::mem::take(&mut self.segments);
        let before = self.closed.count as usize;
        self.same("number of segments", before + projected.len(), stored.len());
        let mut closed = ClosedSegments::default();
        let later = stored.split_off(before.min(stored.len()));
        stored.iter().for_each(|segment| closed.push(segment));
        self.same("segments before the cut", self.closed.clone(), closed);
        for (projected, stored) in projected.into_values().zip(later) {
            let what = format!("segment {}", stored.segment);
            // Provenance that becomes known late is in no frame (AM-13).
            let provenance = stored.provenance.clone();
            self.same(&what, SegmentRecord { provenance, ..projected }, stored);
        }
        let stored = store.compactions(no, None, usize::MAX >> 1)?;
        let mut projected = std::mem::take(&mut self.compactions);
        for (_, stored) in stored {
            let what = format!("compaction {}", stored.id);
            self.same(&what, projected.remove(&stored.id), Some(stored));
        }
        self.same("compactions without a row", projected.into_keys().collect(), Vec::new());
        self.compare_permissions(store, no)?;
        for row in store.contradictory_rows(no)? {
            self.differ(format!("{row}: the row has columns that its state cannot have"));
        }
        self.compare_digests(store, no)
    }

    /// Compares digests byte for byte (I6).
    fn compare_digests(&mut self, store: &dyn ReadStore, no: GroupNo) -> Result<(), StoreError> {
        let projected = std::mem::take(&mut self.sealed_digests).into_rows(&self.digests);
        // Digests of another form are not compared: the next server rebuilds them.
        let Some(stored) = store.digest_rows(no)? else { return Ok(()) };
        let DigestRows { group, run, open: carry, sealed } = projected;
        self.same("I6: digest", group, stored.group);
        self.same("I6: digest of the last run", run, stored.run);
        self.same("what the digests fold on from", carry, stored.open);
        self.same("I6: digests of runs", sealed.runs, stored.sealed.runs);
        self.same("digests of turns", sealed.turns, stored.sealed.turns);
        Ok(())
    }

    fn compare_permissions(
        &mut self,
        store: &dyn ReadStore,
        no: GroupNo,
    ) -> Result<(), StoreError> {
        let mut filter =
            PermissionFilter { group: Some(no), limit: PAGE, ..PermissionFilter::default() };
        loop {
            let page = store.permissions(&filter)?;
            let Some(last) = page.last() else { break };
            filter.after = Some(last.permission.permission);
            page.into_iter().for_each(|stored| self.compare_permission(stored));
        }
        let unstored: Vec<_> = std::mem::take(&mut self.permissions).into_keys().collect();
        self.same("permissions without a row", unstored, Vec::new());
        Ok(())
    }

    fn compare_permission(&mut self, stored: PermissionRecord) {
        let PermissionRecord { permission: asked, opened_at, state, selected, .. } = stored;
        let id = asked.permission;
        let resolved = stored.resolved_at.zip(stored.resolved_by);
        let mut projected = self.permissions.remove(&id);
        if let Some(projected) = &mut projected {
            // The tool call is in the agent's own frame, and the deadline in none.
            projected.asked.shown.clone_from(&asked.shown);
            projected.asked.expires_at = asked.expires_at;
        }
        let stored = Permission { asked, opened_at, state, selected, resolved };
        self.same(&format!("permission {id}"), projected, Some(stored));
    }

    fn compare_group(&mut self, summary: &GroupSummary) {
        let mut state = self.group.state().clone();
        // The next run's backoff is in no frame, nor its end.
        state.crash_loop.launch_wait = summary.state.crash_loop.launch_wait;
        if let Some(session) = &mut state.session {
            session.provenance = summary.state.provenance().cloned();
        }
        // Nor is the pause of automatic compaction.
        state.compacting.copy_pause(&summary.state.compacting);
        state.forget_unstored(&summary.state);
        self.same("head", state, summary.state.clone());
        self.same("status", self.group.status(), summary.status);
        let waiting = self.group.waiting().len() as u64;
        self.same("queue length", waiting, summary.queue_length);
        // Whether another holder has the lock, and whether a backoff has ended, is in no frame.
        let waits = |task: &Task| {
            task.kind() == TaskKind::Compaction || task.state() == TaskState::Retrying
        };
        let waits =
            self.group.waiting().any(waits) || self.group.state().crash_loop.launch_wait.is_some();
        if !waits {
            self.same("blocked_by", self.group.blocked_by(), summary.blocked_by);
        }
        let current = self.group.current().map(|task| task.id);
        self.same("current task", current, summary.current_task);
        self.same("current run", self.group.run().map(|run| run.id), summary.current_run);
        let active = self.group.active_compaction().is_some();
        self.same("is_compacting", active, summary.is_compacting);
    }

    fn compare_tasks(&mut self, contradictory: &BTreeSet<TaskId>) {
        let open = self.group.current().into_iter().chain(self.group.waiting());
        self.tasks.extend(open.map(|task| (task.id, task.clone())).collect::<Vec<_>>());
        let mut projected = std::mem::take(&mut self.tasks);
        for (id, stored) in std::mem::take(&mut self.accepted) {
            let Some(mut task) = projected.remove(&id) else {
                self.differ(format!("I2: {id} has a row and was never accepted"));
                continue;
            };
            // The time of acceptance and the reported tokens are in no frame of their own.
            task.created_at = stored.created_at;
            task.set_unlogged(stored.retry_at(), stored.ending().tokens.clone());
            if stored.error().is_none() {
                task.forget_attempt_error();
            }
            let differences = self.differences.len();
            self.same(&format!("task {id}"), task, stored);
            if differences == self.differences.len() && contradictory.contains(&id) {
                self.differ(format!("task {id}: the row has columns that its state cannot have"));
            }
        }
        self.same("tasks without a row", projected.into_keys().collect(), Vec::new());
    }

    fn compare_run(&mut self, stored: RunRecord) {
        let RunRecord { id, agent, pid, started_at, ready_at, ended } = stored;
        let stored = Run { agent, pid, started_at, ready_at, ended };
        let projected = self.runs.remove(&id);
        self.same(&format!("run {id}"), projected, Some(stored));
    }
}
