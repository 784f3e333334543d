//! Logs the lines of an agent that are no message: a few of each run a minute, and how many others.

use greenroom_core::{Fact, GroupId, RunId, Timestamp};

/// The lines of one run that are logged in each [`PERIOD_MS`].
const LINES_MAX: u32 = 10;
const PERIOD_MS: i64 = 60_000;

/// What was logged of the run that wrote such a line last.
#[derive(Debug, Default)]
pub(super) struct RejectedLog {
    run: Option<RunId>,
    since: Timestamp,
    logged: u32,
    left_out: u64,
}

/// What to log now.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    /// How many lines were left out before.
    left_out: u64,
    /// Whether to log the line itself.
    line: bool,
}

impl RejectedLog {
    /// Logs a fact, if it is such a line, or if it ends a turn or the run after some were left out.
    pub(super) fn log(&mut self, group: &GroupId, fact: &Fact, at: Timestamp) {
        let (run, Log { left_out, line }) = (self.run, self.add(fact, at));
        if let Some(run) = run.filter(|_| left_out > 0) {
            log::warn!(
                target: "greenroom::run", group:%, run:%, left_out;
                "agent output rejected, and not logged: these lines are in the transcript only"
            );
        }
        if let Fact::AgentOutputRejected { run, reason, .. } = fact
            && line
        {
            log::warn!(target: "greenroom::run", group:%, run:%, reason; "agent output rejected");
        }
    }

    fn add(&mut self, fact: &Fact, at: Timestamp) -> Log {
        let mut line = false;
        let mut left_out = 0;
        match fact {
            Fact::AgentOutputRejected { run, .. } => {
                let passed_ms = at.0.saturating_sub(self.since.0);
                if self.run != Some(*run) || !(0..PERIOD_MS).contains(&passed_ms) {
                    left_out = std::mem::take(&mut self.left_out);
                    (self.run, self.since, self.logged) = (Some(*run), at, 0);
                }
                line = self.logged < LINES_MAX;
                self.logged += u32::from(line);
                self.left_out += u64::from(!line);
            }
            Fact::TurnSettled { .. } | Fact::RunExited { .. } => {
                left_out = std::mem::take(&mut self.left_out);
            }
            _ => {}
        }
        Log { left_out, line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F13, I16: a flood of rejected lines does not flood the log, and none is left out unsaid.
    #[test]
    fn rejected_lines_are_logged_at_a_rate() {
        let run = |number| RunId(uuid::Uuid::from_u128(number));
        let rejected = |number| Fact::AgentOutputRejected {
            run: run(number),
            reason: "no JSON".into(),
            bytes: String::new(),
        };
        let settled = Fact::RunExited {
            run: run(1),
            exit: greenroom_core::Exit::unseen(greenroom_core::ExitReason::Exited, ""),
        };
        let mut log = RejectedLog::default();
        let mut add = |fact: &Fact, at| {
            let Log { left_out, line } = log.add(fact, Timestamp(at));
            (left_out, line)
        };
        for at in 0..i64::from(LINES_MAX) {
            assert_eq!(add(&rejected(1), at), (0, true));
        }
        assert_eq!(
            (add(&rejected(1), 59_000), add(&rejected(1), 59_999)),
            ((0, false), (0, false))
        );
        assert_eq!(add(&rejected(1), 60_000), (2, true), "the next minute");
        assert_eq!(add(&rejected(2), 60_001), (0, true), "another run");
        for _ in 1..LINES_MAX {
            assert_eq!(add(&rejected(2), 60_001), (0, true));
        }
        assert_eq!(add(&rejected(2), 60_001), (0, false));
        assert_eq!((add(&settled, 60_002), add(&settled, 60_002)), ((1, false), (0, false)));
        assert_eq!(add(&rejected(2), 0), (0, true), "the wall clock was set back");
    }
}
