//! A run: one process tree of the group's agent, from launch to exit.

use serde::{Deserialize, Serialize};

use crate::{RunId, SessionId, StopReason};

/// The group's run: there is at most one (AM-1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its phase.
    pub phase: RunPhase,
    /// Whether the profile had detectors beyond ACP at its launch. Then an ordered compaction that
    /// none of them saw is a no-op.
    #[serde(default, rename = "listens")]
    pub has_detectors: bool,
    /// Whether the group's agent or directory changed since its launch. It finishes its running
    /// attempt and gets no other.
    pub outdated: bool,
    /// Whether it opened a new session, which has got no prompt yet.
    #[serde(default)]
    pub fresh: bool,
    /// Whether greenroom sent it a cancel: not every agent survives one.
    pub cancelled: bool,
    /// Whether it is wedged after a cancel, and is stopped for that.
    pub wedged: bool,
    /// Whether it settled an attempt.
    pub settled: bool,
    /// Whether it reported a compaction by ACP: other detectors then only add details.
    #[serde(rename = "shows_acp")]
    pub reports_by_acp: bool,
    /// The session that a rotation replaced: late output may still name it.
    #[serde(rename = "left")]
    pub left_session: Option<SessionId>,
}

impl Run {
    /// A new run in this phase.
    pub fn new(id: RunId, phase: RunPhase) -> Self {
        Self {
            id,
            phase,
            has_detectors: false,
            outdated: false,
            fresh: false,
            cancelled: false,
            wedged: false,
            settled: false,
            reports_by_acp: false,
            left_session: None,
        }
    }
}

/// The phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Its process spawns, initializes or restores the session.
    Starting,
    /// It has a session and takes prompts.
    Ready,
    /// It is being stopped, or closed its stdout. It takes no prompt.
    Stopping,
}

/// Whether the context was restored when a run opened its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Continuity {
    /// The group's first session.
    New,
    /// `session/resume` restored the session.
    Resumed,
    /// `session/load` restored the session.
    Loaded,
    /// The stored session could not be restored; the new one is empty (I16).
    Lost,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// The agent's process id, if a process was started.
    pub pid: Option<u32>,
    /// The process's exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Why it ended, as far as greenroom knows.
    pub reason: ExitReason,
    /// The explanation for a person; empty for an ordinary end.
    pub detail: String,
    /// The last lines that it wrote to stderr.
    pub stderr_tail: String,
    /// The number of stderr lines that were dropped (AM-40).
    pub stderr_dropped: u64,
}

impl Exit {
    /// The exit of a run whose process greenroom did not see end.
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
    /// Whether the agent caused it, and not greenroom.
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
    /// It did not start, or was not ready in time.
    StartFailed,
    /// It ended by itself.
    Exited,
    /// greenroom stopped it.
    Stopped,
    /// It broke the protocol, and greenroom stopped it.
    Protocol,
    /// Its server, or its group's actor, died.
    ServerRestart,
    /// greenroom could not store its output, and stopped it.
    Storage,
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
