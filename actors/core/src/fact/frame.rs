//! How a fact is a frame of the transcript: kind, payload, and how many frames.

use serde::{Deserialize as _, Deserializer, de::Error as _};

use crate::{Fact, Json, TaskId};

/// The prefix of the kinds of greenroom's own frames.
const KIND_PREFIX: &str = "greenroom/";

/// Reads a response: an object, whatever is in it.
pub(super) fn response<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
    let json = Json::deserialize(deserializer)?;
    let is_object = json.as_str().starts_with('{');
    if is_object { Ok(json) } else { Err(D::Error::custom("it is no response")) }
}

macro_rules! kinds {
    ($($fact:pat => $kind:literal,)*) => {
        /// All kinds of greenroom's own frames, and of the frames that come of a fact.
        pub const KINDS: &[&str] = &[$($kind),*];

        /// Returns the kind of the fact's frame; for [`Fact::AgentOutput`], [`Lines::kinds`] has
        /// the kinds.
        pub fn kind(&self) -> &'static str {
            match self {
                $($fact => $kind,)*
            }
        }
    };
}

impl Fact {
    /// Returns the payload of the fact's frame.
    pub fn payload(&self) -> String {
        // Written as an object with one member, named after the fact.
        let mut named = serde_json::to_string(self).unwrap_or_else(|_| r#"{"":null}"#.into());
        let name_bytes = named.find(':').map_or(0, |colon| colon + 1);
        named.pop();
        named.drain(..name_bytes);
        named
    }

    /// Reads the fact of a stored frame, without its task's record. Returns `None` for agent output
    /// and for prompts.
    ///
    /// # Errors
    ///
    /// The frame's kind is greenroom's own, and this version knows no such fact.
    pub fn read(kind: &str, payload: &str) -> Option<Result<Self, serde_json::Error>> {
        let name = kind.strip_prefix(KIND_PREFIX)?;
        Some(serde_json::from_str(&format!("{{{name:?}:{payload}}}")))
    }

    /// Returns the task that the fact itself names.
    pub fn task(&self) -> Option<TaskId> {
        match self {
            Self::TaskQueued { task, .. }
            | Self::TaskClaimed { task }
            | Self::TaskReleased { task }
            | Self::TaskStarted { task, .. }
            | Self::TurnStarted { task, .. }
            | Self::CancelRequested { task }
            | Self::TurnCut { task, .. }
            | Self::TurnSettled { task, .. }
            | Self::SummaryGiven { task, .. }
            | Self::TaskRetrying { task, .. }
            | Self::LockRefused { task, .. }
            | Self::LockBypassed { task, .. }
            | Self::LockLost { task }
            | Self::TaskEnded { task, .. } => Some(*task),
            Self::PermissionOpened(permission) => permission.task,
            Self::CompactionStarted(compaction)
            | Self::CompactionUpdated(compaction)
            | Self::CompactionEnded(compaction) => compaction.task,
            _ => None,
        }
    }

    /// Returns how many frames of the transcript the fact is.
    pub fn frames(&self) -> u64 {
        match self {
            Self::AgentOutput(output) => output.lines.count,
            Self::RunStopping { .. }
            | Self::CancelSent { .. }
            | Self::CompactionRests { .. }
            | Self::BackoffEnded { .. }
            | Self::LaunchAllowed {}
            | Self::ProvenanceNoted { .. }
            | Self::LockAsked { .. }
            | Self::LockRefused { again: true, .. }
            | Self::LockTaken { .. }
            | Self::LockReleased { .. } => 0,
            _ => 1,
        }
    }

    kinds! {
        Self::GroupCreated(_) => "greenroom/group_created",
        Self::GroupChanged(_) => "greenroom/group_changed",
        Self::GroupArchived {} => "greenroom/group_archived",
        Self::PurgeOrdered {} => "greenroom/purge_ordered",
        Self::GroupPaused {} => "greenroom/group_paused",
        Self::GroupResumed {} => "greenroom/group_resumed",
        Self::GroupHeld { .. } => "greenroom/group_held",
        Self::TaskQueued { .. } => "greenroom/task_queued",
        Self::TaskClaimed { .. } => "greenroom/task_claimed",
        Self::TaskReleased { .. } => "greenroom/task_released",
        Self::TaskStarted { .. } => "greenroom/task_started",
        Self::TurnStarted { .. } => "greenroom/turn_started",
        Self::PromptSent { .. } => "session/prompt",
        Self::AgentOutput(_) => "session/update",
        Self::AgentOutputRejected { .. } => "greenroom/agent_output_rejected",
        Self::RequestRefused { .. } => "greenroom/request_refused",
        Self::PermissionOpened(_) => "greenroom/permission_opened",
        Self::PermissionResolved { .. } => "greenroom/permission_resolved",
        Self::CancelRequested { .. } => "greenroom/cancel_requested",
        Self::CancelSent { .. } => "greenroom/cancel_sent",
        Self::TurnCut { .. } => "greenroom/turn_cut",
        Self::PromptAnswered(_) => "greenroom/prompt_answered",
        Self::TurnSettled { .. } => "greenroom/turn_settled",
        Self::TaskRetrying { .. } => "greenroom/task_retrying",
        Self::BackoffEnded { .. } => "greenroom/backoff_ended",
        Self::TaskEnded { .. } => "greenroom/task_ended",
        Self::RunStarted { .. } => "greenroom/run_started",
        Self::RunReady { .. } => "greenroom/run_ready",
        Self::RunStopping { .. } => "greenroom/run_stopping",
        Self::RunExited { .. } => "greenroom/run_exited",
        Self::AgentDegraded { .. } => "greenroom/agent_degraded",
        Self::AgentAuthRequired { .. } => "greenroom/agent_auth_required",
        Self::LaunchAllowed {} => "greenroom/launch_allowed",
        Self::SegmentEnded { .. } => "greenroom/segment_ended",
        Self::SegmentStarted { .. } => "greenroom/segment_started",
        Self::ProvenanceNoted { .. } => "greenroom/provenance_noted",
        Self::CompactionStarted(_) => "greenroom/compaction_started",
        Self::CompactionUpdated(_) => "greenroom/compaction_updated",
        Self::CompactionEnded(_) => "greenroom/compaction_ended",
        Self::CompactionRests { .. } => "greenroom/compaction_rests",
        Self::SummaryGiven { .. } => "greenroom/summary_given",
        Self::LockAsked { .. } => "greenroom/lock_asked",
        Self::LockRefused { .. } => "greenroom/lock_refused",
        Self::LockTaken { .. } => "greenroom/lock_taken",
        Self::LockBypassed { .. } => "greenroom/lock_bypassed",
        Self::LockLost { .. } => "greenroom/lock_lost",
        Self::LockReleased { .. } => "greenroom/lock_released",
        Self::AgentWedged { .. } => "greenroom/agent_wedged",
        Self::StderrMatched { .. } => "greenroom/stderr",
        Self::ContextLost { .. } => "greenroom/context_lost",
    }
}
