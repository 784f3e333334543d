//! The stage of a task: it waits, has its slot, runs, or has ended; and what is known of it there.

use serde::{Deserialize, Serialize};

use crate::{Deadline, Ending, RunId, TaskError, Timestamp};

/// Where a task is between its acceptance and its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// It waits for its slot, and never had an attempt.
    Queued,
    /// It has its slot and waits for its agent.
    Claimed {
        /// When it got its slot.
        at: Timestamp,
        /// What is left of the attempts before, if there were any.
        retry: Option<Retry>,
    },
    /// Its prompt is committed, and the attempt is not settled.
    Running {
        /// When it got its slot.
        claimed_at: Timestamp,
        /// The attempt's START.
        start: Start,
    },
    /// Its last attempt failed; it waits for its backoff and its slot.
    Retrying {
        /// What is left of the attempts before.
        retry: Retry,
        /// When its next attempt is due; absent once its backoff has ended.
        due: Option<Deadline>,
    },
    /// It has ended.
    Ended(Box<End>),
}

/// The START of an attempt: the commit of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// When it was committed.
    pub at: Timestamp,
    /// The run that gets the prompt.
    pub run: RunId,
    /// The segment in which it began.
    pub segment: u32,
    /// Its first frame.
    pub seq: u64,
}

/// What is left of the failed attempts of a task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retry {
    /// The last START; absent if no agent of the task was ever ready.
    pub start: Option<Start>,
    /// What the last attempt failed with; absent in a row of an earlier version.
    pub error: Option<Box<TaskError>>,
}

/// How and when a task ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Its terminal state.
    pub state: EndState,
    /// When it got its slot, if it ended with it.
    pub claimed_at: Option<Timestamp>,
    /// The START of its last attempt whose prompt was committed.
    pub start: Option<Start>,
    /// Its last frame; absent if an earlier version failed it for its unreadable row.
    pub frame: Option<EndFrame>,
    /// What else is known of its end.
    pub ending: Ending,
}

/// The last frame of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndFrame {
    /// When it was stored.
    pub at: Timestamp,
    /// Its number.
    pub seq: u64,
}

/// The state of a task. The last five are terminal, and a terminal state never changes (I9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It waits for its slot, or is claimed and waits for its agent.
    Queued,
    /// Its prompt is committed, and the attempt is not settled.
    Running,
    /// Its last attempt failed; it waits for its retry.
    Retrying,
    /// The agent answered the prompt.
    Completed,
    /// The agent answered with an error or did not start, or the task expired.
    Failed,
    /// A caller cancelled it.
    Cancelled,
    /// It ended after the agent may have acted; it is never retried automatically (I7).
    Interrupted,
    /// Its compaction had nothing to do, no lock or no strategy.
    Skipped,
}

impl TaskState {
    /// Whether the state is final.
    pub fn is_terminal(self) -> bool {
        self.end().is_some()
    }
}

/// A terminal state of a task: it never changes (I9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndState {
    /// See [`TaskState::Completed`].
    Completed,
    /// See [`TaskState::Failed`].
    Failed,
    /// See [`TaskState::Cancelled`].
    Cancelled,
    /// See [`TaskState::Interrupted`].
    Interrupted,
    /// See [`TaskState::Skipped`].
    Skipped,
}

impl From<EndState> for TaskState {
    fn from(state: EndState) -> Self {
        match state {
            EndState::Completed => Self::Completed,
            EndState::Failed => Self::Failed,
            EndState::Cancelled => Self::Cancelled,
            EndState::Interrupted => Self::Interrupted,
            EndState::Skipped => Self::Skipped,
        }
    }
}

impl TaskState {
    /// Returns the terminal state that it is, if it is one.
    pub fn end(self) -> Option<EndState> {
        match self {
            Self::Queued | Self::Running | Self::Retrying => None,
            Self::Completed => Some(EndState::Completed),
            Self::Failed => Some(EndState::Failed),
            Self::Cancelled => Some(EndState::Cancelled),
            Self::Interrupted => Some(EndState::Interrupted),
            Self::Skipped => Some(EndState::Skipped),
        }
    }
}

impl Stage {
    /// Returns the state that the API shows. A claimed task keeps the one that it waited in.
    pub fn state(&self) -> TaskState {
        match self {
            Self::Queued | Self::Claimed { retry: None, .. } => TaskState::Queued,
            Self::Retrying { .. } | Self::Claimed { retry: Some(_), .. } => TaskState::Retrying,
            Self::Running { .. } => TaskState::Running,
            Self::Ended(end) => end.state.into(),
        }
    }

    /// Returns when the task got its slot, if it has it or ended with it.
    pub fn claimed_at(&self) -> Option<Timestamp> {
        match self {
            Self::Claimed { at, .. } | Self::Running { claimed_at: at, .. } => Some(*at),
            Self::Ended(end) => end.claimed_at,
            Self::Queued | Self::Retrying { .. } => None,
        }
    }

    /// Returns the START of the last attempt whose prompt was committed.
    pub fn start(&self) -> Option<Start> {
        match self {
            Self::Running { start, .. } => Some(*start),
            Self::Claimed { retry: Some(retry), .. } | Self::Retrying { retry, .. } => retry.start,
            Self::Ended(end) => end.start,
            Self::Queued | Self::Claimed { retry: None, .. } => None,
        }
    }

    /// Gives a waiting task its slot.
    pub(crate) fn claim(&mut self, at: Timestamp) {
        match self {
            Self::Queued => *self = Self::Claimed { at, retry: None },
            Self::Retrying { retry, .. } => {
                let retry = Some(std::mem::take(retry));
                *self = Self::Claimed { at, retry };
            }
            Self::Claimed { .. } | Self::Running { .. } | Self::Ended(_) => {}
        }
    }

    /// Takes the slot from a task whose prompt was not sent.
    pub(crate) fn release(&mut self) {
        match self {
            Self::Claimed { retry, .. } => {
                *self = match retry.take() {
                    None => Self::Queued,
                    Some(retry) => Self::Retrying { retry, due: None },
                };
            }
            Self::Queued | Self::Running { .. } | Self::Retrying { .. } | Self::Ended(_) => {}
        }
    }

    /// Begins an attempt.
    pub(crate) fn run(&mut self, start: Start) {
        *self = Self::Running { claimed_at: self.claimed_at().unwrap_or(start.at), start };
    }

    /// Ends an attempt that failed with `error`; the next one is due at `due`.
    pub(crate) fn retry(&mut self, error: TaskError, due: Deadline) {
        let retry = Retry { start: self.start(), error: Some(error.into()) };
        *self = Self::Retrying { retry, due: Some(due) };
    }

    /// Returns what is left of the failed attempts of a task that waits for the next one.
    pub(crate) fn failed_attempts(&self) -> Option<&Retry> {
        match self {
            Self::Claimed { retry, .. } => retry.as_ref(),
            Self::Retrying { retry, .. } => Some(retry),
            Self::Queued | Self::Running { .. } | Self::Ended(_) => None,
        }
    }

    /// Ends the backoff.
    pub(crate) fn end_backoff(&mut self) {
        if let Self::Retrying { due, .. } = self {
            *due = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp(9);
    const LATER: Timestamp = Timestamp(10);
    const START: Start = Start { at: NOW, run: RunId(Uuid::nil()), segment: 1, seq: 4 };

    fn ended(state: EndState) -> Stage {
        let (start, ending) = (Some(START), Ending::default());
        Stage::Ended(Box::new(End { state, claimed_at: Some(NOW), start, frame: None, ending }))
    }

    /// A claimed task that loses its slot is again what it was, and a START outlives its attempt.
    #[test]
    fn each_stage_goes_where_its_facts_lead() {
        let failed = || TaskError { code: "agent_error".into(), message: "no".into() };
        let left = |start| Retry { start, error: Some(Box::new(failed())) };
        let (never, sent) = (&left(None), &left(Some(START)));
        let due = Deadline::default();
        let (queued, running) = (Stage::Queued, Stage::Running { claimed_at: NOW, start: START });
        let claimed = |retry: Option<&Retry>| Stage::Claimed { at: NOW, retry: retry.cloned() };
        let waits = |retry: &Retry| Stage::Retrying { retry: retry.clone(), due: None };
        let backs_off = |retry: &Retry| Stage::Retrying { retry: retry.clone(), due: Some(due) };
        let claim: fn(&mut Stage) = |stage| stage.claim(NOW);
        let release: fn(&mut Stage) = Stage::release;
        let run: fn(&mut Stage) = |stage| stage.run(START);
        let retry: fn(&mut Stage) = |stage| {
            let error = TaskError { code: "agent_error".into(), message: "no".into() };
            stage.retry(error, Deadline::default());
        };
        let end_backoff: fn(&mut Stage) = Stage::end_backoff;
        let end = ended(EndState::Failed);
        #[rustfmt::skip]
        let cases = [
            ("claimed",                   queued.clone(),              claim,       claimed(None)),
            ("claimed for a retry",       waits(sent),                 claim,       claimed(Some(sent))),
            ("claimed twice",             claimed(None),               claim,       claimed(None)),
            ("released",                  claimed(None),               release,     queued.clone()),
            ("released before a retry",   claimed(Some(never)),        release,     waits(never)),
            ("started",                   claimed(None),               run,         running.clone()),
            ("started at once",           queued.clone(),              run,         running.clone()),
            ("started again",             claimed(Some(sent)),         run,         running.clone()),
            ("not started",               claimed(None),               retry,       backs_off(never)),
            ("not started after a START", claimed(Some(sent)),         retry,       backs_off(sent)),
            ("failed",                    running.clone(),             retry,       backs_off(sent)),
            ("backed off",                backs_off(sent),             end_backoff, waits(sent)),
            ("late claim",                end.clone(),                 claim,       end.clone()),
            ("late release",              end.clone(),                 release,     end.clone()),
            ("late end of a backoff",     end.clone(),                 end_backoff, end),
        ];
        for (name, mut stage, change, expected) in cases {
            change(&mut stage);
            assert_eq!(stage, expected, "{name}");
        }
    }

    #[test]
    fn a_claimed_task_keeps_the_time_of_its_claim() {
        let mut stage = Stage::Claimed { at: NOW, retry: None };
        stage.run(Start { at: LATER, ..START });
        assert_eq!(stage.claimed_at(), Some(NOW));
    }

    /// API-1: what a claimed task shows is the state that it waited in.
    #[test]
    fn each_stage_has_a_state_of_the_api() {
        use TaskState as T;
        let retry = Retry::default();
        #[rustfmt::skip]
        let cases = [
            (Stage::Queued,                                        T::Queued),
            (Stage::Claimed { at: NOW, retry: None },              T::Queued),
            (Stage::Claimed { at: NOW, retry: Some(retry.clone()) }, T::Retrying),
            (Stage::Retrying { retry, due: None },                 T::Retrying),
            (Stage::Running { claimed_at: NOW, start: START },     T::Running),
            (ended(EndState::Completed),                           T::Completed),
            (ended(EndState::Failed),                              T::Failed),
            (ended(EndState::Cancelled),                           T::Cancelled),
            (ended(EndState::Interrupted),                         T::Interrupted),
            (ended(EndState::Skipped),                             T::Skipped),
        ];
        for (stage, state) in cases {
            assert_eq!(stage.state(), state, "{stage:?}");
            assert_eq!(state.is_terminal(), matches!(stage, Stage::Ended(_)), "{stage:?}");
        }
    }
}
