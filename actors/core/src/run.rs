//! A run: one process tree of the group's agent, from launch to exit.

use serde::{Deserialize, Serialize};

use crate::{RunId, StopReason};

/// The group's run: there is at most one (AM-1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredRun", into = "StoredRun")]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its phase.
    pub phase: RunPhase,
    /// Whether the profile had detectors beyond ACP at its launch. Then an ordered compaction that
    /// none of them saw is a no-op.
    pub has_detectors: bool,
    /// Whether the group's agent or directory changed since its launch. It finishes its running
    /// attempt and gets no other.
    pub outdated: bool,
    /// What became of its prompts.
    pub progress: RunProgress,
    /// Whether it survived the cancels that greenroom sent it.
    pub health: RunHealth,
    /// Whether it reported a compaction by ACP: other detectors then only add details.
    pub reports_by_acp: bool,
    /// Whether its agent can neither load nor resume a session: the context ends with the run.
    pub is_forgetful: bool,
}

impl Run {
    /// A new run in this phase.
    pub fn new(id: RunId, phase: RunPhase) -> Self {
        Self {
            id,
            phase,
            has_detectors: false,
            outdated: false,
            progress: RunProgress::Unsettled,
            health: RunHealth::Sound,
            reports_by_acp: false,
            is_forgetful: false,
        }
    }
}

/// What became of a run's prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunProgress {
    /// It settled no attempt.
    Unsettled,
    /// Nor did it get a prompt, and the session that it opened is new.
    Fresh,
    /// It settled an attempt.
    Settled,
}

/// Whether a run survived the cancels that it was sent: not every agent survives one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunHealth {
    /// It got no cancel, or answered a prompt since.
    Sound,
    /// It got a cancel.
    Cancelled,
    /// It is wedged after a cancel, and is stopped for that.
    Wedged,
}

impl RunProgress {
    /// Returns the progress once the session is not new any more, or another one is in force.
    pub(crate) fn without_fresh(self) -> Self {
        match self {
            Self::Fresh | Self::Unsettled => Self::Unsettled,
            Self::Settled => Self::Settled,
        }
    }
}

impl RunHealth {
    /// Returns the health after a cancel was sent.
    pub(crate) fn after_cancel(self) -> Self {
        match self {
            Self::Sound | Self::Cancelled => Self::Cancelled,
            Self::Wedged => Self::Wedged,
        }
    }

    /// Returns the health after an answer to a prompt that was not cancelled.
    pub(crate) fn after_answer(self) -> Self {
        match self {
            Self::Sound | Self::Cancelled => Self::Sound,
            Self::Wedged => Self::Wedged,
        }
    }
}

/// A [`Run`] in a checkpoint: flat, as all versions have it. Of marks that contradict each other
/// the later one counts.
#[derive(Clone, Serialize, Deserialize)]
struct StoredRun {
    id: RunId,
    phase: RunPhase,
    #[serde(default)]
    listens: bool,
    outdated: bool,
    #[serde(default)]
    fresh: bool,
    cancelled: bool,
    wedged: bool,
    settled: bool,
    shows_acp: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    forgetful: bool,
}

impl From<StoredRun> for Run {
    fn from(stored: StoredRun) -> Self {
        Self {
            id: stored.id,
            phase: stored.phase,
            has_detectors: stored.listens,
            outdated: stored.outdated,
            progress: match (stored.settled, stored.fresh) {
                (true, _) => RunProgress::Settled,
                (false, true) => RunProgress::Fresh,
                (false, false) => RunProgress::Unsettled,
            },
            health: match (stored.wedged, stored.cancelled) {
                (true, _) => RunHealth::Wedged,
                (false, true) => RunHealth::Cancelled,
                (false, false) => RunHealth::Sound,
            },
            reports_by_acp: stored.shows_acp,
            is_forgetful: stored.forgetful,
        }
    }
}

impl From<Run> for StoredRun {
    fn from(run: Run) -> Self {
        Self {
            id: run.id,
            phase: run.phase,
            listens: run.has_detectors,
            outdated: run.outdated,
            fresh: run.progress == RunProgress::Fresh,
            cancelled: run.health != RunHealth::Sound,
            wedged: run.health == RunHealth::Wedged,
            settled: run.progress == RunProgress::Settled,
            shows_acp: run.reports_by_acp,
            forgetful: run.is_forgetful,
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
    /// What it shows of the next start, if it was not ready. Not stored: it decides on the exit.
    #[serde(skip)]
    pub failed_start: FailedStart,
}

/// What the end of a run that was not ready shows of the next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailedStart {
    /// Another start may succeed, or nothing is known of that.
    #[default]
    Passing,
    /// The agent ended, or was stopped, while it restored its session: it may do so each time.
    InRestore,
    /// Another start would get the same error.
    Lasting,
}

/// How an agent did not restore a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The cause for a person, of bounded length.
    pub cause: String,
    /// Whether the agent says that there is no such session.
    pub is_unknown: bool,
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
            failed_start: FailedStart::Passing,
        }
    }
}

impl ExitReason {
    /// Whether the agent caused it, and not greenroom.
    pub(crate) fn is_crash(self) -> bool {
        match self {
            Self::StartFailed | Self::Exited | Self::Protocol => true,
            Self::AgentAuth | Self::Stopped | Self::ServerRestart | Self::Storage => false,
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It did not start, or was not ready in time.
    StartFailed,
    /// It wants a login before it opens a session.
    AgentAuth,
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
            ExitReason::StartFailed
            | ExitReason::AgentAuth
            | ExitReason::Exited
            | ExitReason::Stopped => Self::ProcessExited,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;

    /// The stored form keeps its keys, their order and their values.
    #[test]
    fn the_stored_form_is_flat() {
        use {RunHealth as H, RunProgress as P};
        let stored = |fresh, cancelled, wedged, settled| {
            format!(
                r#"{{"id":"{}","phase":"ready","listens":true,"outdated":true,"fresh":{fresh},"cancelled":{cancelled},"wedged":{wedged},"settled":{settled},"shows_acp":true}}"#,
                RunId(Uuid::nil())
            )
        };
        let run = |progress, health| Run {
            has_detectors: true,
            outdated: true,
            progress,
            health,
            reports_by_acp: true,
            ..Run::new(RunId(Uuid::nil()), RunPhase::Ready)
        };
        #[rustfmt::skip]
        let cases = [
            ("no prompt",  stored(false, false, false, false), run(P::Unsettled, H::Sound)),
            ("fresh",      stored(true,  false, false, false), run(P::Fresh,     H::Sound)),
            ("settled",    stored(false, false, false, true),  run(P::Settled,   H::Sound)),
            ("cancelled",  stored(false, true,  false, true),  run(P::Settled,   H::Cancelled)),
            ("wedged",     stored(false, true,  true,  true),  run(P::Settled,   H::Wedged)),
        ];
        for (name, text, run) in cases {
            assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run, "{name}");
            assert_eq!(serde_json::to_string(&run).unwrap(), text, "{name}");
        }
        let text = stored(false, false, false, true).replace('}', r#","forgetful":true}"#);
        let forgetful = Run { is_forgetful: true, ..run(P::Settled, H::Sound) };
        assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), forgetful);
        assert_eq!(serde_json::to_string(&forgetful).unwrap(), text);
        // An earlier version stored the session that a rotation left, too.
        let text = stored(false, false, false, true).replace('}', r#","left":"s"}"#);
        assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run(P::Settled, H::Sound));
        // An earlier version forgot the cancel of a run that it found wedged by a success.
        let text = stored(false, false, true, true);
        assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run(P::Settled, H::Wedged));
    }
}
