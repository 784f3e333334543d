//! One incarnation of a group's agent process, as the rules see it.

use serde::{Deserialize, Serialize};

use crate::{RunId, SessionId};

/// The group's agent process: there is at most one (SEEDS AM-1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Which incarnation.
    pub id: RunId,
    /// How far it is.
    pub phase: RunPhase,
    /// Whether the profile that it was started by listens to more than ACP: then a compaction of
    /// which nothing is heard was none.
    #[serde(default)]
    pub listens: bool,
    /// Whether the group's agent or directory was changed since it was started. It may finish the
    /// turn that runs in it, and gets no other.
    pub outdated: bool,
    /// Whether it opened its session as a new one, and no prompt was sent in that yet.
    #[serde(default)]
    pub fresh: bool,
    /// Whether a cancel was sent to it: hermes does not always survive one.
    pub cancelled: bool,
    /// Whether it did not survive one, and is ended for that.
    pub wedged: bool,
    /// Whether it settled a turn.
    pub settled: bool,
    /// Whether it told of a compaction by ACP: lesser detectors then only add to that.
    pub shows_acp: bool,
    /// The session that a summary was carried out of: it may be heard of late.
    pub left: Option<SessionId>,
}

impl Run {
    /// A run that is being started.
    pub fn new(id: RunId, phase: RunPhase) -> Self {
        Self {
            id,
            phase,
            listens: false,
            outdated: false,
            fresh: false,
            cancelled: false,
            wedged: false,
            settled: false,
            shows_acp: false,
            left: None,
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Spawning, initializing, or restoring its session.
    Starting,
    /// It has a session and takes prompts.
    Ready,
    /// Told to end; takes no prompt any more.
    Stopping,
}

/// What became of the context when a run opened its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Continuity {
    /// The group's first session.
    New,
    /// `session/resume` took the session up again.
    Resumed,
    /// `session/load` took the session up again.
    Loaded,
    /// The old session could not be restored; this one knows nothing of it (I16).
    Lost,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// The agent's process, if it came to one.
    pub pid: Option<u32>,
    /// The process's exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why, as far as greenroom knows.
    pub reason: ExitReason,
    /// What a person needs to understand it; empty for an ordinary end.
    pub detail: String,
    /// The last lines that it wrote to stderr.
    pub stderr_tail: String,
    /// Stderr lines that nobody kept (SEEDS AM-40).
    pub stderr_dropped: u64,
}

impl Exit {
    /// The end of a run of whose process nobody saw anything.
    pub fn unseen(reason: ExitReason, detail: impl Into<String>) -> Self {
        Self {
            pid: None,
            code: None,
            signal: None,
            reason,
            detail: detail.into(),
            stderr_tail: String::new(),
            stderr_dropped: 0,
        }
    }
}

impl ExitReason {
    /// Whether the agent is to blame, and not greenroom.
    pub(crate) fn is_crash(self) -> bool {
        match self {
            Self::StartFailed | Self::Exited | Self::Protocol => true,
            Self::Stopped | Self::ServerRestart | Self::Storage => false,
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It could not be started, or did not become ready in time.
    StartFailed,
    /// It ended by itself.
    Exited,
    /// greenroom told it to end.
    Stopped,
    /// It broke the protocol, and greenroom ended it.
    Protocol,
    /// The server that held it is gone.
    ServerRestart,
    /// What it did could not be stored, and greenroom ended it.
    Storage,
}
