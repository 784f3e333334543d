//! One group's old frames, folded a page at a time until its log can be cut.

use std::collections::BTreeMap;

use greenroom_core::{Task, TaskId, Timestamp};

use crate::{
    base::Base,
    frames::Block,
    refold::Refold,
    storage::{Archive, Cut, FrameFilter, GroupNo, StoreError, StoredBase, TaskFilter},
};

/// What is read at a time: a reading thread is not kept from others for longer.
const PAGE_BYTES: usize = 1 << 20;
/// A cut deletes no more ended tasks, runs and compactions than this, and no more bytes of what
/// tasks were asked and answered; those of the task that goes over are still deleted. All of them go
/// in one transaction.
const ENDED_MAX: usize = 100;
const ENDED_BYTES_MAX: usize = 1 << 20;

/// A fold under way.
pub struct Fold {
    no: GroupNo,
    refold: Refold,
    /// Only frames that are not younger are folded,
    horizon: Timestamp,
    /// and none behind this one.
    last: u64,
    /// Where the fold began, or the log was cut since.
    cut_at: u64,
    /// The last frame behind which the log may be cut.
    may_cut_at: u64,
    /// The ordinal of the last task whose row was read.
    tasks_read: u64,
}

/// What a page more led to.
pub enum Found {
    /// There is more to fold.
    More(Box<Fold>),
    /// The log is to be cut, and there may be more to fold.
    Cut(Box<Fold>, Cut),
    /// Nothing more may be folded, and this frame is the last behind which the log may be cut.
    Beyond(u64),
    /// Nothing is old enough.
    Nothing,
    /// The log contradicts itself.
    Differs(String),
}

impl Fold {
    /// Begins where a group's log does; `None` if it has no frame that is old enough, or ends with
    /// one that is younger than `now`: then the clock is wrong.
    ///
    /// # Errors
    ///
    /// The database's error, as for every call here.
    pub fn begin(
        archive: &dyn Archive,
        no: GroupNo,
        now: Timestamp,
        horizon: Timestamp,
        last: u64,
    ) -> Result<Option<Self>, StoreError> {
        let at_end = |descending| -> Result<_, StoreError> {
            let filter =
                FrameFilter { descending, frames_max: 1, bytes_max: 1, ..Default::default() };
            Ok(archive.blocks(no, &filter)?.first().map(|block| block.at))
        };
        if at_end(false)?.is_none_or(|oldest| oldest > horizon)
            || at_end(true)?.is_none_or(|newest| newest > now)
        {
            return Ok(None);
        }
        let (base, unread) = match archive.base(no)?.as_ref().map(StoredBase::read) {
            None => (None, None),
            Some(Ok(base)) => (Some(base), None),
            Some(Err(err)) => (None, Some(format!("the base cannot be read: {err}"))),
        };
        let waiting = base.as_ref().map_or(0, |base| base.waiting.len());
        let tasks_read = base.as_ref().map_or(0, |base| base.head.tasks);
        let cut_at = base.as_ref().map_or(0, Base::seq);
        let accepted = tasks(archive, no, 0, waiting)?;
        let mut refold = Refold::new(base, accepted);
        refold.differences.extend(unread);
        Ok(Some(Self { no, refold, horizon, last, cut_at, may_cut_at: cut_at, tasks_read }))
    }

    /// Folds a page more.
    ///
    /// # Errors
    ///
    /// The database's error.
    pub fn go_on(mut self, archive: &dyn Archive) -> Result<Found, StoreError> {
        if let Some(difference) = self.refold.differences.pop() {
            return Ok(Found::Differs(difference));
        }
        let filter = FrameFilter {
            after: self.refold.seq,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        let blocks = archive.blocks(self.no, &filter)?;
        self.read_tasks(archive, &blocks)?;
        // What is read begins with the block that holds the last frame read before.
        let before = self.refold.seq;
        for block in blocks.iter().filter(|block| before < block.last_seq()) {
            if block.at > self.horizon || block.last_seq() > self.last {
                return Ok(self.end());
            }
            self.refold.block(block);
            if let Some(difference) = self.refold.differences.pop() {
                return Ok(Found::Differs(difference));
            }
            if self.refold.may_be_cut() {
                self.may_cut_at = self.refold.seq;
                if self.is_full() {
                    return Ok(self.cut());
                }
            }
        }
        Ok(if self.refold.seq == before { self.end() } else { Found::More(Box::new(self)) })
    }

    /// Reads the rows of the tasks that are accepted in `blocks`.
    fn read_tasks(&mut self, archive: &dyn Archive, blocks: &[Block]) -> Result<(), StoreError> {
        let frames = blocks.iter().flat_map(Block::frames);
        let fresh = frames
            .filter(|frame| frame.seq > self.refold.seq && frame.kind == "greenroom/task_queued");
        let to = self.refold.group.head().tasks + fresh.count() as u64;
        let count = usize::try_from(to.saturating_sub(self.tasks_read)).unwrap_or(usize::MAX);
        self.refold.accepted.extend(tasks(archive, self.no, self.tasks_read, count)?);
        self.tasks_read = self.tasks_read.max(to);
        Ok(())
    }

    fn is_full(&self) -> bool {
        let Refold { tasks, runs, compactions, .. } = &self.refold;
        let bytes = |task: &Task| task.ending.text.len() + task.prompt().as_str().len();
        tasks.len() + runs.len() + compactions.len() >= ENDED_MAX
            || tasks.values().map(bytes).sum::<usize>() >= ENDED_BYTES_MAX
    }

    /// No frame more may be folded.
    fn end(self) -> Found {
        match self.may_cut_at {
            seq if seq == self.cut_at => Found::Nothing,
            seq if seq == self.refold.seq => self.cut(),
            seq => Found::Beyond(seq),
        }
    }

    fn cut(mut self) -> Found {
        let (base, ended) = self.refold.cut();
        self.cut_at = self.refold.seq;
        let keys_before = Timestamp(self.horizon.0.saturating_add(1));
        let cut = Cut { group: self.no, base: StoredBase::from(&base), ended, keys_before };
        Found::Cut(Box::new(self), cut)
    }
}

fn tasks(
    archive: &dyn Archive,
    no: GroupNo,
    after: u64,
    limit: usize,
) -> Result<BTreeMap<TaskId, Task>, StoreError> {
    let filter = TaskFilter { after, limit, ..TaskFilter::default() };
    let views = archive.tasks(no, &filter)?;
    Ok(views.into_iter().map(|view| (view.task.id, view.task)).collect())
}
