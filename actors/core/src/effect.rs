//! Effects: orders to actors, which perform them once the step's facts are durable.

use crate::{Json, RunId, SessionId, TaskId};

/// An order to an actor, which performs it only once the step's facts are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Launch an agent process, and restore `session` in it if there is one.
    Launch {
        /// The run's id.
        run: RunId,
        /// The session to restore.
        session: Option<SessionId>,
        /// Whether a new session may replace it if the agent answers with an error, whatever that
        /// says: it was tried often enough.
        may_replace: bool,
    },
    /// Send the prompt that the step recorded.
    Prompt {
        /// The run that gets it.
        run: RunId,
        /// JSON-RPC's id, which is the number of the prompt's frame.
        id: u64,
        /// The session.
        session: SessionId,
    },
    /// Ask the agent to open another session.
    OpenSession {
        /// The run.
        run: RunId,
        /// JSON-RPC's id.
        id: u64,
    },
    /// Read what the agent reports of another session, to which it moved by itself.
    FollowSession {
        /// The run.
        run: RunId,
        /// The session.
        session: SessionId,
    },
    /// Request the lock of a session.
    AcquireLock {
        /// The compaction task.
        task: TaskId,
        /// The session.
        key: SessionId,
    },
    /// Release a lock that arrived when its task no longer needed it.
    ReleaseLock {
        /// The session.
        key: SessionId,
        /// The name that the group holds it under.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// Send `session/cancel`.
    Cancel {
        /// The run that gets it.
        run: RunId,
        /// The session.
        session: SessionId,
    },
    /// Answer a permission request.
    Answer {
        /// The run that asked.
        run: RunId,
        /// The answer.
        answer: Answer,
    },
    /// Stop the agent's process tree.
    Stop {
        /// The run.
        run: RunId,
        /// How to stop it.
        how: Stop,
    },
    /// Delete all rows of the group, which is archived and has no run.
    Purge,
}

/// An answer to a permission request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request's JSON-RPC id.
    pub request: Json,
    /// The selected option; absent: `cancelled`.
    pub selected: Option<String>,
}

/// How to stop a process tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Close its stdin; send TERM 2 s later, KILL another 5 s later.
    Gently,
    /// Send TERM at once, KILL 5 s later.
    Firmly,
    /// KILL at once: its group's actor has ended. Core decides on no such stop.
    AtOnce,
}
