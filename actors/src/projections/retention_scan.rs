//! `RetentionScan`: replays one group's old frames page by page, to truncate its log.

use std::collections::BTreeMap;

use greenroom_core::{Task, TaskId, Timestamp};

use crate::{
    projections::checkpoint::Checkpoint,
    projections::replay::LogReplay,
    storage::{
        FrameFilter, GroupNo, LogTruncation, ReadStore, StoreError, StoredCheckpoint, TaskFilter,
    },
    transcript::frame::Block,
};

/// The bytes of frames that are read at a time, so that the reading thread is soon free again.
const PAGE_BYTES: usize = 1 << 20;
/// The most ended tasks, runs and compactions that one truncation deletes in its transaction, and
/// the most bytes of their prompts and answers; the task that exceeds them is still deleted.
const ENDED_MAX: usize = 100;
const ENDED_BYTES_MAX: usize = 1 << 20;

/// A scan under way.
pub struct RetentionScan {
    no: GroupNo,
    /// The group's epoch at the scan's start.
    epoch: Option<u64>,
    replay: LogReplay,
    /// Frames younger than this are not replayed,
    horizon: Timestamp,
    /// nor frames after this one.
    last: u64,
    /// The checkpoint's frame: of the scan's start, or of the last truncation.
    truncated_at: u64,
    /// The last frame after which the log can be truncated.
    may_truncate_at: u64,
    /// The ordinal of the last task whose row was read.
    tasks_read: u64,
}

/// What follows a page of a scan.
pub enum ScanStep {
    /// The scan continues with the next page.
    Continue(Box<RetentionScan>),
    /// The log has to be truncated; then the scan continues.
    Truncate(Box<RetentionScan>, LogTruncation),
    /// The scan has replayed beyond the last frame after which the log can be truncated. It has to
    /// be repeated up to this frame.
    Rescan(u64),
    /// No further frame can be deleted.
    Done,
    /// The log contradicts itself.
    Contradiction(String),
}

impl RetentionScan {
    /// Starts with a group's first frame. Returns `None` if no frame is old enough, or if the last
    /// one is younger than `now`: then the clock is wrong.
    ///
    /// # Errors
    ///
    /// The database's error, as for every call here.
    pub fn start(
        store: &dyn ReadStore,
        no: GroupNo,
        now: Timestamp,
        horizon: Timestamp,
        last: u64,
    ) -> Result<Option<Self>, StoreError> {
        let at_end = |descending| -> Result<_, StoreError> {
            let filter =
                FrameFilter { descending, frames_max: 1, bytes_max: 1, ..Default::default() };
            Ok(store.blocks(no, &filter)?.first().map(|block| block.at))
        };
        if at_end(false)?.is_none_or(|oldest| oldest > horizon)
            || at_end(true)?.is_none_or(|newest| newest > now)
        {
            return Ok(None);
        }
        let (checkpoint, unread) = match store.checkpoint(no)?.as_ref().map(StoredCheckpoint::read)
        {
            None => (None, None),
            Some(Ok(checkpoint)) => (Some(checkpoint), None),
            Some(Err(err)) => (None, Some(format!("the checkpoint cannot be read: {err}"))),
        };
        let waiting = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.waiting.len());
        let tasks_read = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.tasks);
        let truncated_at = checkpoint.as_ref().map_or(0, Checkpoint::seq);
        let accepted = tasks(store, no, 0, waiting)?;
        let mut replay = LogReplay::new(checkpoint, accepted);
        replay.differences.extend(unread);
        Ok(Some(Self {
            no,
            epoch: store.epoch(no)?,
            replay,
            horizon,
            last,
            truncated_at,
            may_truncate_at: truncated_at,
            tasks_read,
        }))
    }

    /// Replays the next page.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub fn next_page(mut self, store: &dyn ReadStore) -> Result<ScanStep, StoreError> {
        if let Some(difference) = self.replay.differences.pop() {
            return Ok(ScanStep::Contradiction(difference));
        }
        let filter = FrameFilter {
            after: self.replay.seq,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        let blocks = store.blocks(self.no, &filter)?;
        self.read_tasks(store, &blocks)?;
        // The first block may repeat frames that were read before.
        let before = self.replay.seq;
        for block in blocks.iter().filter(|block| before < block.last_seq()) {
            if block.at > self.horizon || block.last_seq() > self.last {
                return Ok(self.end());
            }
            self.replay.read_block(block);
            if let Some(difference) = self.replay.differences.pop() {
                return Ok(ScanStep::Contradiction(difference));
            }
            if self.replay.can_be_truncated() {
                self.may_truncate_at = self.replay.seq;
                if self.is_full() {
                    return Ok(self.truncate());
                }
            }
        }
        Ok(if self.replay.seq == before { self.end() } else { ScanStep::Continue(Box::new(self)) })
    }

    /// Reads the rows of the tasks that `blocks` accept.
    fn read_tasks(&mut self, store: &dyn ReadStore, blocks: &[Block]) -> Result<(), StoreError> {
        let frames = blocks.iter().flat_map(Block::frames);
        let fresh = frames
            .filter(|frame| frame.seq > self.replay.seq && frame.kind == "greenroom/task_queued");
        let to = self.replay.group.state().tasks + fresh.count() as u64;
        let count = usize::try_from(to.saturating_sub(self.tasks_read)).unwrap_or(usize::MAX);
        self.replay.accepted.extend(tasks(store, self.no, self.tasks_read, count)?);
        self.tasks_read = self.tasks_read.max(to);
        Ok(())
    }

    /// Whether enough has ended for one truncation.
    fn is_full(&self) -> bool {
        let LogReplay { tasks, runs, compactions, .. } = &self.replay;
        let bytes = |task: &Task| task.ending().text.len() + task.prompt().as_str().len();
        tasks.len() + runs.len() + compactions.len() >= ENDED_MAX
            || tasks.values().map(bytes).sum::<usize>() >= ENDED_BYTES_MAX
    }

    /// Ends the scan, as no further frame may be replayed.
    fn end(self) -> ScanStep {
        match self.may_truncate_at {
            seq if seq == self.truncated_at => ScanStep::Done,
            seq if seq == self.replay.seq => self.truncate(),
            seq => ScanStep::Rescan(seq),
        }
    }

    fn truncate(mut self) -> ScanStep {
        let (checkpoint, ended) = self.replay.truncate();
        self.truncated_at = self.replay.seq;
        let keys_before = Timestamp(self.horizon.0.saturating_add(1));
        let truncation = LogTruncation {
            group: self.no,
            epoch: self.epoch,
            checkpoint: StoredCheckpoint::from(&checkpoint),
            ended,
            keys_before,
        };
        ScanStep::Truncate(Box::new(self), truncation)
    }
}

fn tasks(
    store: &dyn ReadStore,
    no: GroupNo,
    after: u64,
    limit: usize,
) -> Result<BTreeMap<TaskId, Task>, StoreError> {
    let filter = TaskFilter { after, limit, ..TaskFilter::default() };
    let views = store.tasks(no, &filter)?;
    Ok(views.into_iter().map(|view| (view.task.id, view.task)).collect())
}
