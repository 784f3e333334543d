//! What comes out of the rules: facts and orders.

use crate::{ExitReason, Json, RunId, SessionId, StopReason, TaskId, Write};

/// What an event led to: facts to make durable, and then orders to carry out.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Facts in the past tense, in order. Durable before the first effect.
    pub writes: Vec<Write>,
    /// Orders, in order.
    pub effects: Vec<Effect>,
}

/// An order to an actor, carried out only once the step's facts are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start an agent process, and take up `session` in it if there is one.
    Launch {
        /// The run's name.
        run: RunId,
        /// The session to take up again.
        session: Option<SessionId>,
    },
    /// Send a prompt.
    Prompt {
        /// To which run.
        run: RunId,
        /// JSON-RPC's id.
        id: u64,
        /// The session.
        session: SessionId,
        /// The content blocks.
        prompt: Json,
    },
    /// Have the agent open another session.
    OpenSession {
        /// Which run.
        run: RunId,
        /// JSON-RPC's id.
        id: u64,
    },
    /// Ask for the lock of a session.
    TakeLock {
        /// The compaction task.
        task: TaskId,
        /// The session.
        key: SessionId,
    },
    /// Give a lock back that nobody wants any more.
    DropLock {
        /// The session.
        key: SessionId,
        /// Whose it is.
        holder: String,
        /// The fencing token.
        token: u64,
    },
    /// Send `session/cancel`.
    Cancel {
        /// To which run.
        run: RunId,
        /// The session.
        session: SessionId,
    },
    /// Answer a permission request.
    Answer {
        /// To which run.
        run: RunId,
        /// The answer.
        answer: Answer,
    },
    /// End the agent's process tree.
    Stop {
        /// Which run.
        run: RunId,
        /// How.
        how: Stop,
    },
}

/// An answer to a permission request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request's JSON-RPC id.
    pub request: Json,
    /// The option chosen; absent: `cancelled`.
    pub selected: Option<String>,
}

/// How to end a process tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Close its stdin; 2 s later TERM; 5 s later KILL.
    Gently,
    /// TERM at once; 5 s later KILL.
    Firmly,
}

impl Step {
    /// Takes another step's facts and orders behind this one's.
    pub fn extend(&mut self, later: Step) {
        self.writes.extend(later.writes);
        self.effects.extend(later.effects);
    }
}

impl From<ExitReason> for StopReason {
    fn from(reason: ExitReason) -> Self {
        match reason {
            ExitReason::Protocol => Self::Protocol,
            ExitReason::ServerRestart => Self::ServerRestart,
            ExitReason::Storage => Self::Storage,
            ExitReason::StartFailed | ExitReason::Exited | ExitReason::Stopped => {
                Self::ProcessExited
            }
        }
    }
}
