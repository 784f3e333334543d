//! What of a group is asked for: tasks, permissions, frames.

use greenroom_core::{PermissionId, PermissionState, TaskId, TaskKind, TaskState};

use super::GroupNo;
use crate::frames::{Block, Frame};

/// Which permissions to list.
#[derive(Clone, Debug, Default)]
pub struct PermissionFilter {
    /// Only this group's.
    pub group: Option<GroupNo>,
    /// Only those that stand so.
    pub state: Option<PermissionState>,
    /// Only those asked for after this one.
    pub after: Option<PermissionId>,
    /// At most so many.
    pub limit: usize,
}

/// What is shown of a transcript as the context that is in force (SEEDS AM-15): the open segment,
/// what came before the first session, and begin and end of the turn that reaches into the open
/// segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentView {
    /// The open segment.
    pub segment: u32,
    /// The task that ran when it was opened.
    pub task: Option<TaskId>,
    /// Frames below this number came before the first session.
    pub first_opened: u64,
    /// No other frame of the view is below this number.
    pub from: u64,
}

impl CurrentView {
    /// The frames of an older segment's turn that are shown.
    pub const BOOKENDS: [&str; 3] =
        ["greenroom/turn_started", "greenroom/turn_settled", "greenroom/cancel_requested"];

    fn takes(self, block: &Block, kind: &str) -> bool {
        let spans = self.task.is_some() && block.task == self.task;
        block.segment == 0
            || block.segment == self.segment
            || (spans && Self::BOOKENDS.contains(&kind))
    }
}

/// Which tasks of a group to list.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// Only these states.
    pub state: Option<TaskState>,
    /// Only this kind.
    pub kind: Option<TaskKind>,
    /// Only those after this ordinal.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}

/// Which frames of a group to read.
#[derive(Clone, Debug, Default)]
pub struct FrameFilter {
    /// Only those above this number.
    pub after: u64,
    /// Only those below this number.
    pub before: Option<u64>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this task's.
    pub task: Option<TaskId>,
    /// Only this segment's.
    pub segment: Option<u32>,
    /// Only what belongs to this view.
    pub view: Option<CurrentView>,
    /// The newest first.
    pub descending: bool,
    /// At most so many frames; more may come, to the end of a block.
    pub frames_max: u64,
    /// At most so many bytes; more may come, to the end of a block.
    pub bytes_max: usize,
}

impl FrameFilter {
    /// Whether a frame of `block` is wanted, if the block is.
    pub fn takes(&self, block: &Block, frame: Frame<'_>) -> bool {
        self.after < frame.seq
            && self.view.is_none_or(|view| view.takes(block, frame.kind))
            && self.before.is_none_or(|before| frame.seq < before)
            && self.kind.as_ref().is_none_or(|kind| frame.kind == kind)
    }
}
