//! Whether a group's rows are what its log says: the log is folded again, and every derived row
//! compared (I13).
//!
//! Owns the comparison. It writes nothing, and repairs nothing.

use std::collections::BTreeMap;

use greenroom_core::{GroupId, Task, TaskKind, TaskState};

use crate::{
    base::ClosedSegments,
    refold::{Permission, Refold, Run},
    storage::{
        Archive, DigestRows, FrameFilter, GroupNo, PermissionFilter, PermissionRecord, RunRecord,
        SegmentRecord, Standing, StoreError, StoredBase, TaskFilter, Unreadable, once,
    },
};

/// How many rows are read at a time.
const PAGE: usize = 1000;
/// How many bytes of frames are read at a time.
const PAGE_BYTES: usize = 8 << 20;

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
    let standing = match archive.group(no) {
        Ok(Some(standing)) => standing,
        Ok(None) => return Ok(None),
        Err(StoreError::Unreadable(row)) => return unreadable(archive, no, &row),
        Err(err) => return Err(err),
    };
    archive.left_out();
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
    let base = match archive.base(no) {
        Err(StoreError::Unreadable(row)) => return unreadable(archive, no, &row),
        base => base?,
    };
    let cut = base.as_ref().map_or(0, |stored| stored.seq);
    let (base, unread) = match base.as_ref().map(StoredBase::read) {
        None => (None, None),
        Some(Ok(base)) => (Some(base), None),
        Some(Err(err)) => (None, Some(format!("the base of frame {cut} cannot be read: {err}"))),
    };
    let mut refold = Refold::new(base, accepted);
    refold.differences.extend(unread);
    let what = "the frame at which the log was cut";
    refold.same(what, refold.seq, cut);
    refold.seq = cut;
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
    let Refold { seq, mut differences, .. } = refold;
    let mut unread = archive.left_out();
    unread.retain(|row| row.group == no);
    differences.extend(once(unread));
    Ok(Some(Verdict { group: standing.id, frames: seq - cut, differences }))
}

/// Nothing can be compared with a group's own row that cannot be read.
fn unreadable(
    archive: &dyn Archive,
    no: GroupNo,
    row: &Unreadable,
) -> Result<Option<Verdict>, StoreError> {
    let index = archive.group_index()?;
    let known = index.groups.into_iter().find(|(own, ..)| *own == no);
    let differences = vec![format!("the group's own row cannot be read: {row}")];
    Ok(known.map(|(_, group, _)| Verdict { group, frames: 0, differences }))
}

impl Refold {
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
        let mut stored = archive.segments(no, 0, usize::MAX >> 1)?;
        let folded = std::mem::take(&mut self.segments);
        let before = self.closed.count as usize;
        self.same("number of segments", before + folded.len(), stored.len());
        let mut closed = ClosedSegments::default();
        let behind = stored.split_off(before.min(stored.len()));
        stored.iter().for_each(|segment| closed.push(segment));
        self.same("segments before the cut", self.closed.clone(), closed);
        for (folded, stored) in folded.into_values().zip(behind) {
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
        self.compare_permissions(archive, no)?;
        self.compare_digests(archive, no)
    }

    /// Byte for byte (I6).
    fn compare_digests(&mut self, archive: &dyn Archive, no: GroupNo) -> Result<(), StoreError> {
        let folded = std::mem::take(&mut self.closed_digests).into_rows(&self.digests);
        // Those of another form are nothing to compare with: the next server makes them again.
        let Some(stored) = archive.digest_rows(no)? else { return Ok(()) };
        let DigestRows { group, run, carry, closed } = folded;
        self.same("I6: digest", group, stored.group);
        self.same("I6: digest of the last run", run, stored.run);
        self.same("what the digests fold on from", carry, stored.carry);
        self.same("I6: digests of runs", closed.runs, stored.closed.runs);
        self.same("digests of turns", closed.turns, stored.closed.turns);
        Ok(())
    }

    fn compare_permissions(
        &mut self,
        archive: &dyn Archive,
        no: GroupNo,
    ) -> Result<(), StoreError> {
        let mut filter =
            PermissionFilter { group: Some(no), limit: PAGE, ..PermissionFilter::default() };
        loop {
            let page = archive.permissions(&filter)?;
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
        let mut folded = self.permissions.remove(&id);
        if let Some(folded) = &mut folded {
            // What the agent shows with it is in its own frame, and its deadline in none.
            folded.asked.shown.clone_from(&asked.shown);
            folded.asked.expires_at = asked.expires_at;
        }
        let stored = Permission { asked, opened_at, state, selected, resolved };
        self.same(&format!("permission {id}"), folded, Some(stored));
    }

    fn compare_head(&mut self, standing: &Standing) {
        let mut head = self.group.head().clone();
        // Until when the next run waits is in no frame, nor that it waited long enough.
        head.launch_due = standing.head.launch_due;
        head.provenance.clone_from(&standing.head.provenance);
        // Likewise until when no compaction is ordered.
        head.compacting.rest_as(&standing.head.compacting);
        self.same("head", head, standing.head.clone());
        self.same("status", self.group.status(), standing.status);
        let waiting = self.group.waiting().len() as u64;
        self.same("queue length", waiting, standing.queue_length);
        // Whether somebody else has the lock, and whether a wait is over, is in no frame.
        let waits =
            |task: &Task| task.kind() == TaskKind::Compaction || task.state == TaskState::Retrying;
        let waits = self.group.waiting().any(waits) || self.group.head().launch_due.is_some();
        if !waits {
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
