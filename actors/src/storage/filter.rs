//! The filters of lists: tasks, permissions, frames.

use greenroom_core::{PermissionId, PermissionState, TaskId, TaskKind, TaskState};

use super::GroupNo;
use crate::transcript::frame::{Block, Frame};

/// Which permissions to list.
#[derive(Clone, Debug, Default)]
pub struct PermissionFilter {
    /// Only this group's.
    pub group: Option<GroupNo>,
    /// Only those in this state.
    pub state: Option<PermissionState>,
    /// Only those opened after this one.
    pub after: Option<PermissionId>,
    /// At most this many.
    pub limit: usize,
}

/// The part of a transcript that is shown as the context in force (AM-15): the open segment, the
/// frames before the first session, and begin and end of the turn that reaches into the open
/// segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentView {
    /// The open segment.
    pub segment: u32,
    /// The task that ran when it was opened.
    pub task: Option<TaskId>,
    /// Frames below this number were stored before the first session.
    pub first_opened: u64,
    /// All other frames of the view have this number or a greater one.
    pub from: u64,
}

impl CurrentView {
    /// The kinds of frames of an older segment's turn that are shown.
    pub const BOOKENDS: [&str; 3] =
        ["greenroom/turn_started", "greenroom/turn_settled", "greenroom/cancel_requested"];

    fn includes(self, block: &Block, kind: &str) -> bool {
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
    /// At most this many.
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
    /// Only those in this view.
    pub view: Option<CurrentView>,
    /// The newest first.
    pub descending: bool,
    /// At most this many frames; more are read, to the end of a block.
    pub frames_max: u64,
    /// At most this many bytes; more are read, to the end of a block.
    pub bytes_max: usize,
}

impl FrameFilter {
    /// Whether the filter includes `frame`, given that it includes its `block`.
    pub fn takes(&self, block: &Block, frame: Frame<'_>) -> bool {
        self.after < frame.seq
            && self.view.is_none_or(|view| view.includes(block, frame.kind))
            && self.before.is_none_or(|before| frame.seq < before)
            && self.kind.as_ref().is_none_or(|kind| frame.kind == kind)
    }
}
