//! The group's data: its stored state, its queue, its running task and its run.
//!
//! [`super::replay`] changes it, [`super::questions`] reads it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::lock::LockState;
use crate::{
    Attempt, CancelReason, Compaction, Deadline, HoldReason, MessageOwners, Permission,
    PromptCapabilities, Provenance, Run, SessionCursor, SessionId, Settings, Source, Task,
    Timestamp, Usage, compaction::RecentCompactions,
};

/// The most sessions that a group remembers.
pub const KNOWN_SESSIONS_MAX: usize = 32;

/// What is stored of a group beside its tasks and its run.
///
/// The checkpoint of a truncated log holds it, in the form of [`super::stored_state`].
#[derive(Clone, Debug, PartialEq)]
pub struct GroupState {
    /// What callers set.
    pub settings: Settings,
    /// When the group was first committed; absent: it was not yet.
    pub created_at: Option<Timestamp>,
    /// The last frame's number.
    pub last_seq: u64,
    /// How many tasks the group ever accepted.
    pub tasks: u64,
    /// The session in force; absent before the first one.
    pub session: Option<Session>,
    /// The open segment; 0 before the first session.
    pub segment: u32,
    /// Whether it claims no task until a caller resumes it.
    pub paused: bool,
    /// Whether it accepts work, or is deleted.
    pub existence: Existence,
    /// Its compactions so far.
    pub compacting: CompactionHistory,
    /// A summary that the next prompt has to carry into the session. It outlives the session that
    /// it was meant for.
    pub pending_summary: Option<String>,
    /// What keeps its queue until a caller decides.
    pub hold: Hold,
    /// What delays its next run.
    pub crash_loop: CrashLoop,
    /// The content blocks that the group's agent takes, as its last run reported; `None`: unknown.
    pub prompts: Option<PromptCapabilities>,
}

/// The session in force, and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Whether it never got a prompt: then nothing is lost with it.
    pub is_fresh: bool,
    /// Whether a run opened it, and there was neither output nor a completed turn in it since: the
    /// agent may not keep it, and nothing is lost with it.
    pub is_unanswered: bool,
    /// The context usage last reported.
    pub usage: Option<Usage>,
    /// The agent's own session in force: the one to restore in the next run.
    pub provenance: Option<Provenance>,
}

/// Whether a group accepts work, or is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// It accepts work.
    Live,
    /// It accepts no work and stays readable.
    Archived,
    /// Its rows are to be deleted, as soon as its run is over.
    Purging,
}

/// The hold of the queue, and the interruptions that may lead to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Why the group is on hold: it claims no task until a caller decides.
    pub reason: Option<HoldReason>,
    /// How many turns in a row were interrupted.
    pub interruptions: u32,
}

/// The wait after runs that crashed, or found that the agent wants a login.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrashLoop {
    /// How many runs in a row ended without settling an attempt.
    pub crashes: u32,
    /// What the next run waits for.
    pub launch_wait: Option<LaunchWait>,
}

/// The wait before the next run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchWait {
    /// Its end.
    #[serde(flatten)]
    pub due: Deadline,
    /// How many starts in a row found that the agent wants a login, as they opened the session or
    /// answered the first prompt; 0: its runs crashed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub logins: u32,
    /// Whether it is over, and no start since has shown whether the login works.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_over: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl From<Deadline> for LaunchWait {
    /// The wait after a crash.
    fn from(due: Deadline) -> Self {
        Self { due, logins: 0, is_over: false }
    }
}

impl CrashLoop {
    /// Returns the wait before the next run, while it lasts.
    pub fn waits(&self) -> Option<LaunchWait> {
        self.launch_wait.filter(|wait| !wait.is_over)
    }

    /// Whether the next run waits for a login.
    pub fn wants_login(&self) -> bool {
        self.waits().is_some_and(|wait| wait.logins > 0)
    }

    /// Returns how many starts in a row found that the agent wants a login.
    pub(super) fn logins(&self) -> u32 {
        self.launch_wait.map_or(0, |wait| wait.logins)
    }

    /// Ends the wait. How often the agent wanted a login stays known until it answers a prompt.
    pub(super) fn end_wait(&mut self) {
        let logins = self.launch_wait.filter(|wait| wait.logins > 0);
        self.launch_wait = logins.map(|wait| LaunchWait { is_over: true, ..wait });
    }

    /// Forgets that the agent wanted a login.
    pub(super) fn forget_login(&mut self) {
        self.launch_wait = self.launch_wait.filter(|wait| wait.logins == 0);
    }
}

impl Existence {
    /// Reads the existence from its two stored marks. A group whose rows are to be deleted is
    /// archived, whatever is stored of that.
    pub fn of(archived: bool, purging: bool) -> Self {
        match (archived, purging) {
            (_, true) => Self::Purging,
            (true, false) => Self::Archived,
            (false, false) => Self::Live,
        }
    }
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
            segment: 0,
            paused: false,
            existence: Existence::Live,
            compacting: CompactionHistory::default(),
            pending_summary: None,
            hold: Hold::default(),
            crash_loop: CrashLoop::default(),
            prompts: None,
        }
    }

    /// Forgets what `row` lacks, because an earlier version wrote it.
    pub fn forget_unstored(&mut self, row: &Self) {
        self.prompts = self.prompts.filter(|_| row.prompts.is_some());
        if let (Some(session), Some(stored)) = (&mut self.session, &row.session) {
            session.is_unanswered &= stored.is_unanswered;
        }
    }

    /// Whether the group is archived, and perhaps to be purged.
    pub fn is_archived(&self) -> bool {
        self.existence != Existence::Live
    }

    /// Returns the id of the session in force.
    pub fn session_id(&self) -> Option<&SessionId> {
        self.session.as_ref().map(|session| &session.id)
    }

    /// Returns the context usage last reported.
    pub fn usage(&self) -> Option<&Usage> {
        self.session.as_ref()?.usage.as_ref()
    }

    /// Returns which of the agent's own sessions is in force.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.session.as_ref()?.provenance.as_ref()
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
    /// Whether it is paused because another program had the lock.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) lock_held: bool,
    /// An ordered one that the agent may yet complete in the next prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unfinished: Option<Unfinished>,
    /// When an ordered one last failed: an earlier version stored the pause in this form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed_at: Option<Timestamp>,
}

/// A compaction that the agent's own command ordered and did not complete, until a turn is
/// answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The tokens in use before it, if they are known.
    pub(super) before: Option<u64>,
    /// Whether a detector reported a completed compaction in the turn after it.
    #[serde(default)]
    pub(super) is_completed: bool,
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
    /// Which session's messages count. A restored group starts without one: recovery ends its run,
    /// and a log replay, which restores a live run, decides nothing.
    pub(super) session_cursor: SessionCursor,
    /// Whose the messages of its run are. A restored group starts without them, too.
    pub(super) message_owners: MessageOwners,
    /// The sessions of the last segments, each once, the last one last. The agent may still send
    /// updates about a former one, and does not move there by that (AM-13).
    pub(super) known_sessions: VecDeque<SessionId>,
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
            session_cursor: SessionCursor::default(),
            message_owners: MessageOwners::default(),
            known_sessions: VecDeque::new(),
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
        let session_cursor = SessionCursor::between_runs(state.session_id().cloned());
        let new = Self::new(Settings::default());
        let mut group = Self { state, run, permissions, session_cursor, ..new };
        compactions.into_iter().for_each(|compaction| group.recent.upsert(compaction));
        for task in tasks {
            if task.has_slot() {
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

    /// Returns the group with the sessions of its last segments, each once, the last one last: at
    /// most [`KNOWN_SESSIONS_MAX`].
    #[must_use]
    pub fn with_known_sessions(self, known_sessions: VecDeque<SessionId>) -> Self {
        Self { known_sessions, ..self }
    }

    /// Returns the group with the messages of its run.
    #[must_use]
    pub fn with_message_owners(self, message_owners: MessageOwners) -> Self {
        Self { message_owners, ..self }
    }

    /// Returns whose the messages of its run are.
    pub fn message_owners(&self) -> &MessageOwners {
        &self.message_owners
    }

    /// Returns the sessions of the last segments, each once, the last one last.
    pub fn known_sessions(&self) -> &VecDeque<SessionId> {
        &self.known_sessions
    }
}
