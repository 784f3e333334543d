//! The group's data: its stored state, its queue, its running task and its run.
//!
//! [`super::replay`] changes it, [`super::questions`] reads it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::lock::LockState;
use crate::{
    Attempt, CancelReason, Compaction, Deadline, HoldReason, Permission, Provenance, Run,
    SessionId, Settings, Source, Task, Timestamp, Usage, compaction::RecentCompactions,
};

/// What is stored of a group beside its tasks and its run.
///
/// The checkpoint of a truncated log holds it, so a field that an earlier version did not write
/// needs a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    /// What callers set.
    pub settings: Settings,
    /// When the group was first committed; absent: it was not yet.
    pub created_at: Option<Timestamp>,
    /// The last frame's number.
    pub last_seq: u64,
    /// How many tasks the group ever accepted.
    pub tasks: u64,
    /// The session in force.
    pub session: Option<SessionId>,
    /// Whether that session never got a prompt: then nothing is lost with it.
    #[serde(rename = "unspoken")]
    pub is_fresh_session: bool,
    /// The open segment; 0 before the first session.
    pub segment: u32,
    /// The context usage last reported.
    pub usage: Option<Usage>,
    /// Whether it claims no task until a caller resumes it.
    pub paused: bool,
    /// Whether it is archived.
    pub archived: bool,
    /// Whether its rows are to be deleted, as soon as its run is over.
    pub purging: bool,
    /// The hermes session in force: the one to restore in the next run.
    pub provenance: Option<Provenance>,
    /// Its compactions so far.
    pub compacting: CompactionHistory,
    /// A summary that the next prompt has to carry into the session.
    #[serde(rename = "lead_in")]
    pub pending_summary: Option<String>,
    /// Why it is on hold: it claims no task until a caller decides.
    pub held: Option<HoldReason>,
    /// How many turns in a row were interrupted.
    pub interruptions: u32,
    /// How many runs in a row ended without settling an attempt.
    pub crashes: u32,
    /// Until when the next run waits, after a crash loop.
    pub launch_due: Option<Deadline>,
}

impl GroupState {
    /// The state of a group before its first commit.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            created_at: None,
            last_seq: 0,
            tasks: 0,
            session: None,
            is_fresh_session: false,
            segment: 0,
            usage: None,
            paused: false,
            archived: false,
            purging: false,
            provenance: None,
            compacting: CompactionHistory::default(),
            pending_summary: None,
            held: None,
            interruptions: 0,
            crashes: 0,
            launch_due: None,
        }
    }
}

/// A group's compactions over its whole life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompactionHistory {
    /// How many were completed; never falls (AM-23).
    pub count: u64,
    /// Who first reported the last one.
    pub last_source: Option<Source>,
    /// When the last one began.
    pub last_started_at: Option<Timestamp>,
    /// When the last completed one ended.
    pub last_completed_at: Option<Timestamp>,
    /// Whether usage was reported since the last completed one.
    pub(super) measured: bool,
    /// The tokens in use before the last completed one, until it is known how many that freed.
    pub(super) before: Option<u64>,
    /// How many in a row freed too little (I12).
    #[serde(rename = "streak")]
    pub(super) ineffective_in_a_row: u8,
    /// Until when automatic compaction is paused, because an ordered one was not completed (HL-14).
    /// No frame holds it.
    #[serde(default, rename = "rest", skip_serializing_if = "Option::is_none")]
    pub(super) paused_until: Option<Deadline>,
    /// When an ordered one last failed: an earlier version stored the pause in this form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed_at: Option<Timestamp>,
}

/// A group's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub(super) state: GroupState,
    pub(super) waiting: VecDeque<Task>,
    pub(super) waiting_bytes: usize,
    /// How many of the waiting tasks have a deadline for their start.
    pub(super) expiring: usize,
    pub(super) current: Option<Current>,
    pub(super) run: Option<Run>,
    /// The run's unanswered permissions, in order.
    pub(super) permissions: Vec<Permission>,
    /// The compactions that the run reported.
    pub(super) recent: RecentCompactions,
    pub(super) lock: LockState,
}

/// The task that has the group's slot.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Current {
    pub(super) task: Task,
    /// Absent while the task is claimed and waits for its agent.
    pub(super) attempt: Option<Attempt>,
}

impl Group {
    /// A group before its first commit.
    pub fn new(settings: Settings) -> Self {
        Self {
            state: GroupState::new(settings),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            expiring: 0,
            current: None,
            run: None,
            permissions: Vec::new(),
            recent: RecentCompactions::default(),
            lock: LockState::Unasked,
        }
    }

    /// Builds a group from its stored parts: its `tasks` that are not terminal, in accept order;
    /// its `run` and running `attempt`, if any; of its `compactions` the active one and those that
    /// were completed in the running attempt; and its unanswered `permissions`.
    pub fn restore(
        state: GroupState,
        tasks: Vec<Task>,
        run: Option<Run>,
        attempt: Option<Attempt>,
        compactions: impl IntoIterator<Item = Compaction>,
        permissions: Vec<Permission>,
    ) -> Self {
        let mut group = Self { state, run, permissions, ..Self::new(Settings::default()) };
        compactions.into_iter().for_each(|compaction| group.recent.upsert(compaction));
        for task in tasks {
            if task.claimed_at.is_some() {
                let mut attempt = attempt.clone();
                if let Some(attempt) = attempt.as_mut().filter(|_| task.cancel_requested) {
                    attempt.cancel_reason.get_or_insert(CancelReason::Caller);
                }
                group.current = Some(Current { task, attempt });
            } else {
                group.enqueue(task);
            }
        }
        group
    }
}
