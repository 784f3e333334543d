//! How long a run waits for its agent to be ready: for its answers, and for the end of a replay.

use greenroom_core::ExitReason;

use super::RunLoop;
use crate::{
    acp::{self, Notification},
    agent::{
        NOT_READY,
        handshake::{Next, quiet::SETTLES_WITHIN},
    },
    awake,
};

/// The most bytes that are held back until the agent is ready (I11). What is beyond is stored at
/// once, and nothing is read from it: it is news about commands and modes, sent unasked.
const HELD_BYTES_MAX: usize = 1 << 20;

impl RunLoop {
    /// Notes that the agent wrote something: one that replays a session is alive, however long that
    /// takes, up to a limit of its own; and after its answer it is not quiet yet.
    pub(super) fn note_activity(&mut self) {
        let Some(handshake) = &self.handshake else { return };
        if handshake.is_restoring() {
            let silent_by = awake::now() + self.profile.start_timeout;
            self.ready_by = silent_by.min(self.loaded_by);
        }
        if let (Some((at, _)), Some(time)) = (&mut self.quiet, handshake.quiet_time()) {
            *at = awake::now() + time;
        }
    }

    /// Begins to wait for the end of a replay.
    pub(super) fn await_quiet(&mut self) {
        let time = self.handshake.as_ref().and_then(|handshake| handshake.quiet_time());
        let now = awake::now();
        self.quiet = time.map(|time| (now + time, now + SETTLES_WITHIN));
    }

    /// Continues after the agent was quiet for long enough. On a busy machine that may be greenroom
    /// alone: what the pipe holds is read first.
    pub(super) fn on_quiet(&mut self) {
        let Some((at, by)) = &mut self.quiet else { return };
        let Some(handshake) = &mut self.handshake else { return };
        if !by.has_passed() && self.stdout.has_unread() {
            *at = awake::now() + handshake.quiet_time().unwrap_or_default();
            return;
        }
        self.quiet = None;
        if self.stdout.ended {
            // It takes no prompt any more; its exit ends the start.
            return;
        }
        // The wait was no part of the start, which may continue with another request.
        self.ready_by = awake::now() + self.profile.start_timeout;
        let next = handshake.on_quiet();
        if matches!(next, Next::Ready(..)) {
            self.on_handshake(next);
            for line in self.take_held() {
                self.on_line(line.as_bytes());
            }
        } else {
            // They are about a session that is not restored.
            self.store_held();
            self.on_handshake(next);
        }
    }

    /// Holds back an update that is no replay until the agent is ready.
    pub(super) fn hold_back(&mut self, line: &str) {
        if self.held_bytes + line.len() > HELD_BYTES_MAX {
            self.store_held();
        }
        self.held_bytes += line.len();
        self.held.push(line.to_owned());
    }

    /// Stores what was held back, and reads nothing from it.
    pub(super) fn store_held(&mut self) {
        for line in self.take_held() {
            if let Ok(acp::Message::Notification(held)) = acp::parse(&line) {
                let Notification { kind, session, summary, .. } = held;
                self.batch.push_line(&line, kind, session.as_deref(), summary);
            }
        }
    }

    fn take_held(&mut self) -> Vec<String> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held)
    }

    pub(super) fn on_start_timed_out(&mut self) {
        let timeout = self.profile.start_timeout;
        let is_loading = self.handshake.as_ref().is_some_and(|it| it.is_restoring());
        let why = if is_loading && self.loaded_by.has_passed() {
            let waited = (timeout * super::LOAD_TIMEOUTS).as_millis();
            format!("it did not restore its session within {waited} ms")
        } else {
            format!("{NOT_READY} {} ms", timeout.as_millis())
        };
        self.termination.kill(ExitReason::StartFailed, &why);
    }
}
