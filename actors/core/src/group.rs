//! A group: its queue, its running task, its agent's run. The rules of I1, I7, I8 and I9.
//!
//! [`Group::apply`] decides; [`Group::replay`] alone changes the state, live and at recovery (I13).
//! Each noun has one file with its decisions and with the changes that its facts make.

// Compactions that detectors report.
mod compaction_detected;
// When a group may order a compaction by itself.
mod compaction_history;
// Compactions that greenroom orders.
mod compaction_ordered;
// The group itself: created, changed, paused, resumed, archived.
mod control;
// Which method decides on which event.
mod decide;
// The lock that the next compaction needs.
mod lock;
// Permissions that the agent asks for.
mod permission;
// The running prompt, from START to settlement.
mod prompt;
// Questions that change nothing.
mod questions;
// Which fact changes what.
mod replay;
// Retries and holds.
mod retry;
// The agent's run.
mod run;
// Segments, and the session in force.
mod segment;
// The state's types.
mod state;
// The state's stored form.
mod stored_state;
// Tasks, and the order of the queue.
mod task;
// The limits in time.
mod timers;

use uuid::Uuid;

use self::{decide::Transition, state::Current};
pub use self::{
    questions::Status,
    state::{
        CompactionHistory, CrashLoop, Existence, Group, GroupState, Hold, KNOWN_SESSIONS_MAX,
        LaunchWait, Session, Unfinished,
    },
    timers::{EffectiveSettings, Limits, Timer},
};
use crate::{Event, Now, RefusedBlock, Step, TaskId};

/// Why a group rejects an event. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The queue is at its limit of tasks or bytes.
    #[error("the group's queue is full")]
    QueueFull,
    /// The group is archived.
    #[error("the group was deleted; PUT revives it")]
    Archived,
    /// The group's rows are being deleted.
    #[error("the group is being deleted")]
    Purging,
    /// The task has ended.
    #[error("the task has ended")]
    AlreadyTerminal,
    /// A compaction already waits or runs; the caller gets its id (DQ-3).
    #[error("a compaction of the group already waits or runs")]
    AlreadyCompacting(TaskId),
    /// The task did not end without success, so a caller cannot retry it.
    #[error("only a failed, interrupted or cancelled task can be retried")]
    NotRetryable,
    /// The prompt has a block that the group's agent is known not to take.
    #[error("{0}")]
    PromptNotSupported(RefusedBlock),
    /// The permission is resolved already, or unknown.
    #[error("the permission is already resolved")]
    NotPending,
    /// The permission does not offer that option.
    #[error("the permission has no such option")]
    NoSuchOption,
}

impl Group {
    /// Decides on `event` and applies the facts that follow. `fresh` makes new ids.
    ///
    /// # Errors
    ///
    /// [`Rejected`] if the group rejects the event; then nothing changed.
    pub fn apply(
        &mut self,
        event: Event,
        now: Now,
        settings: &EffectiveSettings,
        fresh: &mut dyn FnMut() -> Uuid,
    ) -> Result<Step, Rejected> {
        Transition::new(self, now, settings, fresh).decide(event)
    }
}
