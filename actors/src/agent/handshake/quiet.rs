//! The end of a restore: the agent is quiet for a while, so that no part of a replay follows.

use std::time::Duration;

use greenroom_core::{Continuity, Loss};

use super::{Handshake, Next, Phase};

/// How long the agent has to be quiet after it restored a session: some agents, such as
/// gemini-cli, replay the session after their answer, and a prompt among that would get its words
/// as its answer. They write it at once; the time is for a machine with much else to do.
pub(super) const QUIET: Duration = Duration::from_millis(250);
/// How long greenroom waits for the begin of a replay if the answer to a `session/load` is empty:
/// only that shows that the agent knows the session.
pub(super) const REPLAY_BEGINS: Duration = Duration::from_secs(1);
/// The longest wait for quiet, for an agent that is never quiet.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(10);

impl Handshake {
    /// Returns for how long the agent has to be quiet now, if greenroom waits for that.
    pub fn quiet_time(&self) -> Option<Duration> {
        match self.phase {
            Phase::Asked(_) => None,
            Phase::InDoubt => Some(REPLAY_BEGINS),
            Phase::Restored(_) => Some(QUIET),
        }
    }

    /// Whether an update belongs to a replay, which is not stored. While the agent restores the
    /// session that is any update; hermes replays on `session/resume` too, against the protocol.
    /// After the answer it is what an agent does not send unasked (`is_history`).
    pub fn is_replay(&mut self, is_history: bool) -> bool {
        let replay = self.is_restoring() || (self.quiet_time().is_some() && is_history);
        self.replayed |= replay;
        if replay && self.phase == Phase::InDoubt {
            self.phase = Phase::Restored(Continuity::Loaded);
        }
        replay
    }

    /// Waits for the quiet after a restore.
    pub(super) fn await_quiet(&mut self, phase: Phase) -> Next {
        self.phase = phase;
        Next::AwaitQuiet
    }

    /// Handles the quiet after a restore: no replay follows any more. An empty answer without one
    /// is as doubtful as an error that may pass.
    pub fn on_quiet(&mut self) -> Next {
        match (self.phase, self.to_restore.clone()) {
            (Phase::Restored(continuity), Some(session)) => Next::Ready(session, continuity),
            (Phase::InDoubt, Some(_)) => {
                let cause = "session/load: its answer is empty, and it replayed nothing".into();
                self.fail_or_replace(Loss { cause, is_unknown: self.is_denied })
            }
            (Phase::Asked(_) | Phase::InDoubt | Phase::Restored(_), _) => self.request_new(),
        }
    }
}
