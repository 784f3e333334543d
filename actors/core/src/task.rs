//! A task: a unit of work in a group's queue, and its record.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Deadline, End, EndFrame, EndState, Ending, Json, Now, Stage, Start, TaskError, TaskId,
    TaskState, Timestamp,
};

/// A unit of work in a group's queue. Its record stays. A prompt that an agent may have acted on is
/// never sent again automatically.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its place in the group's accept order, from 1.
    pub ordinal: u64,
    /// What it does.
    pub work: Work,
    /// Who submitted it.
    pub origin: Origin,
    /// The caller's own data.
    pub metadata: Option<Json>,
    /// How long one attempt may take, in milliseconds; absent: the server's `turn_timeout`.
    pub deadline_ms: Option<u64>,
    /// When it expires unless it has started, if its caller set that.
    pub expires: Option<Deadline>,
    /// The ended task that a caller retries with this one.
    pub retry_of: Option<TaskId>,
    /// The number of its last attempt, from 1; 0 before the first. An attempt whose agent did not
    /// start counts.
    pub attempt: u32,
    /// Whether a caller asked to cancel it. A request is not an outcome (I9).
    pub cancel_requested: bool,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Where it is.
    pub stage: Stage,
}

impl Task {
    /// A task before it is accepted.
    pub fn new(id: TaskId, work: Work, origin: Origin) -> Self {
        Self {
            id,
            ordinal: 0,
            work,
            origin,
            metadata: None,
            deadline_ms: None,
            expires: None,
            retry_of: None,
            attempt: 0,
            cancel_requested: false,
            created_at: Timestamp::default(),
            stage: Stage::Queued,
        }
    }

    /// Returns the milliseconds until it expires, if it can still expire.
    pub(crate) fn start_within(&self, now: Now) -> Option<u64> {
        let expires = self.expires.filter(|_| self.start().is_none());
        expires.map(|expires| expires.left_ms(now))
    }

    /// Returns what decides its place in the queue.
    pub(crate) fn queued(&self) -> Queued {
        Queued {
            is_claimed: self.has_slot(),
            is_retrying: self.state() == TaskState::Retrying,
            kind: self.kind(),
            ordinal: self.ordinal,
        }
    }

    /// Returns the START of the running attempt.
    pub fn running_start(&self) -> Option<Start> {
        self.start().filter(|_| self.state() == TaskState::Running)
    }

    /// Returns the task at its end. It ends with the slot that it has.
    pub fn ended(self, attempt: u32, state: EndState, frame: EndFrame, ending: Ending) -> Self {
        let (claimed_at, start) = (self.stage.claimed_at(), self.stage.start());
        let end = End { state, claimed_at, start, frame: Some(frame), ending };
        Self { attempt, stage: Stage::Ended(Box::new(end)), ..self }
    }

    /// Returns its state.
    pub fn state(&self) -> TaskState {
        self.stage.state()
    }

    /// Whether it has its group's slot.
    pub fn has_slot(&self) -> bool {
        matches!(self.stage, Stage::Claimed { .. } | Stage::Running { .. })
    }

    /// Returns the START of its last attempt whose prompt was committed.
    pub fn start(&self) -> Option<Start> {
        self.stage.start()
    }

    /// Returns when its next attempt is due, while its backoff lasts.
    pub fn retry_at(&self) -> Option<Deadline> {
        match self.stage {
            Stage::Retrying { due, .. } => due,
            Stage::Queued | Stage::Claimed { .. } | Stage::Running { .. } | Stage::Ended(_) => None,
        }
    }

    /// Returns its last frame, if it has ended.
    pub fn last_frame(&self) -> Option<EndFrame> {
        match &self.stage {
            Stage::Ended(end) => end.frame,
            Stage::Queued
            | Stage::Claimed { .. }
            | Stage::Running { .. }
            | Stage::Retrying { .. } => None,
        }
    }

    /// Returns how it ended; empty if it has not.
    pub fn ending(&self) -> &Ending {
        match &self.stage {
            Stage::Ended(end) => &end.ending,
            Stage::Queued
            | Stage::Claimed { .. }
            | Stage::Running { .. }
            | Stage::Retrying { .. } => Ending::NONE,
        }
    }

    /// Appends message text that the agent wrote after its answer, if the task has ended.
    pub fn push_late_text(&mut self, more: &str) {
        if let Stage::Ended(end) = &mut self.stage {
            end.ending.push_late_text(more);
        }
    }

    /// Returns the error of its end; while it is `retrying`, that of its last attempt.
    pub fn error(&self) -> Option<&TaskError> {
        let failed = self.stage.failed_attempts().and_then(|retry| retry.error.as_deref());
        failed.or(self.ending().error.as_ref())
    }

    /// Forgets the error of its last attempt, which an earlier version did not store.
    pub fn forget_attempt_error(&mut self) {
        match &mut self.stage {
            Stage::Retrying { retry, .. } | Stage::Claimed { retry: Some(retry), .. } => {
                retry.error = None;
            }
            Stage::Queued
            | Stage::Claimed { retry: None, .. }
            | Stage::Running { .. }
            | Stage::Ended(_) => {}
        }
    }

    /// Sets what is in no fact of the log: the end of the backoff, and the tokens that the agent
    /// reported. A stage that does not have them ignores them.
    pub fn set_unlogged(&mut self, backoff: Option<Deadline>, tokens: Option<Json>) {
        match &mut self.stage {
            Stage::Retrying { due, .. } => *due = backoff,
            Stage::Ended(end) => end.ending.tokens = tokens,
            Stage::Queued | Stage::Claimed { .. } | Stage::Running { .. } => {}
        }
    }

    /// Returns its kind.
    pub fn kind(&self) -> TaskKind {
        match self.work {
            Work::Turn { .. } => TaskKind::Turn,
            Work::Compaction { .. } => TaskKind::Compaction,
        }
    }

    /// Returns the bytes that the caller gave with it: what counts while it waits.
    pub fn queued_bytes(&self) -> usize {
        let metadata = self.metadata.as_ref().map_or(0, |json| json.as_str().len());
        self.prompt().as_str().len() + metadata
    }

    /// Returns the prompt as ACP content blocks.
    pub fn prompt(&self) -> &Json {
        self.work.prompt()
    }
}

/// What a task does.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Sends a caller's prompt.
    Turn {
        /// ACP content blocks, a JSON array.
        prompt: Json,
    },
    /// Compacts the context. Prompt and strategy come from the profile in force at acceptance, and
    /// from START on from the profile in force at START.
    Compaction {
        /// What the summary should focus on.
        focus: Option<Arc<str>>,
        /// The command, or the request for a summary, as ACP content blocks.
        prompt: Json,
        /// How the context is compacted.
        strategy: Strategy,
    },
}

impl Work {
    /// Returns the prompt as ACP content blocks.
    pub fn prompt(&self) -> &Json {
        match self {
            Self::Turn { prompt } | Self::Compaction { prompt, .. } => prompt,
        }
    }
}

/// How an ordered compaction is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The agent runs its own compaction command.
    Command,
    /// The agent summarizes the session, and continues in a new session with the summary.
    Rotate,
}

/// ACP's content block of plain text.
#[derive(Serialize)]
struct TextBlock<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

/// How a profile orders its agent to compact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionOrder {
    /// The strategy.
    pub strategy: Strategy,
    /// The agent's own command, or the request for a summary.
    pub text: String,
}

impl CompactionOrder {
    /// Returns the prompt of a compaction task with this focus, as ACP content blocks.
    pub fn prompt(&self, focus: Option<&str>) -> Json {
        let text = match (self.strategy, focus) {
            (_, None) => self.text.clone(),
            (Strategy::Command, Some(focus)) => format!("{} {focus}", self.text),
            (Strategy::Rotate, Some(focus)) => {
                format!("{}\nKeep in view above all: {focus}", self.text)
            }
        };
        Json::write(&[TextBlock { kind: "text", text: &text }])
            .unwrap_or_else(|_| unreachable!("text always has a JSON form"))
    }

    /// Returns the work of a compaction task with this focus.
    pub fn work(&self, focus: Option<Arc<str>>) -> Work {
        let prompt = self.prompt(focus.as_deref());
        Work::Compaction { focus, prompt, strategy: self.strategy }
    }
}

/// The kinds of [`Work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// See [`Work::Turn`].
    Turn,
    /// See [`Work::Compaction`].
    Compaction,
}

/// Who submitted a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A caller over HTTP.
    Api,
    /// The group itself, for an automatic compaction.
    Auto,
    /// An ACP client.
    Acp,
    /// A caller who retries an ended task.
    Retry,
}

/// What decides the place of a task that has not started in its group's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Whether it has the group's slot.
    pub is_claimed: bool,
    /// Whether its last attempt failed.
    pub is_retrying: bool,
    /// Its kind.
    pub kind: TaskKind,
    /// Its place in the accept order.
    pub ordinal: u64,
}

impl Queued {
    /// Returns what the queue is sorted by: the claimed task, then retries, then a compaction
    /// before turns (I8), then by accept order.
    pub fn rank(&self) -> impl Ord + use<> {
        (!self.is_claimed, !self.is_retrying, self.kind == TaskKind::Turn, self.ordinal)
    }
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// Another task of the group.
    Turn,
    /// One of the server's running slots.
    Slot,
    /// The agent's launch.
    Agent,
    /// A person who logs in: the agent wants that.
    AgentAuth,
    /// Its backoff, or the wait before the next run of a crash loop.
    Backoff,
    /// A caller who resumes the paused group.
    Paused,
    /// A caller who decides about the group on hold.
    Held,
    /// Another holder of the session's lock.
    Lock,
    /// The database, which refuses commits.
    Storage,
}

impl Blocked {
    /// Returns what the task at `place` of the queue waits for. `next`: what its group's next task
    /// waits for.
    pub fn at(place: u64, is_claimed: bool, next: Option<Self>) -> Option<Self> {
        match place {
            0 if is_claimed => Some(Self::Agent),
            0 => next,
            _ => next.map(Self::for_later_tasks),
        }
    }

    /// Returns what the later tasks of the queue wait for, if the next one waits for this.
    fn for_later_tasks(self) -> Self {
        match self {
            Self::AgentAuth | Self::Held | Self::Paused | Self::Storage => self,
            Self::Turn | Self::Slot | Self::Agent | Self::Backoff | Self::Lock => Self::Turn,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// I8: the claimed task, then retries, then a compaction, then turns, each in accept order.
    #[test]
    fn the_queue_has_one_order() {
        let queued = |is_claimed, is_retrying, kind, ordinal| Queued {
            is_claimed,
            is_retrying,
            kind,
            ordinal,
        };
        use TaskKind::{Compaction, Turn};
        #[rustfmt::skip]
        let sorted = [
            queued(true,  false, Turn,       9),
            queued(false, true,  Compaction, 8),
            queued(false, true,  Turn,       6),
            queued(false, true,  Turn,       7),
            queued(false, false, Compaction, 5),
            queued(false, false, Turn,       1),
            queued(false, false, Turn,       2),
        ];
        let mut queue = sorted;
        queue.reverse();
        queue.sort_by_key(|queued| queued.rank());
        assert_eq!(queue, sorted);
    }

    /// I13: what no fact holds is set where the task's stage has it, and changes nothing else.
    #[test]
    fn what_is_in_no_fact_is_set_where_a_stage_has_it() {
        let (due, tokens) = (Deadline { ms: 7, ..Deadline::default() }, Json::write(&[1]).unwrap());
        let (at, retry) = (Timestamp::default(), crate::Retry::default());
        let start = Start { at, run: crate::RunId(uuid::Uuid::nil()), segment: 1, seq: 1 };
        let ended = |ending| {
            let state = EndState::Completed;
            Stage::Ended(Box::new(End {
                state,
                claimed_at: None,
                start: None,
                frame: None,
                ending,
            }))
        };
        let reported = Ending { tokens: Some(tokens.clone()), ..Ending::default() };
        let (claimed, running) = (
            Stage::Claimed { at, retry: Some(retry.clone()) },
            Stage::Running { claimed_at: at, start },
        );
        let work = Work::Turn { prompt: Json::write(&[(); 0]).unwrap() };
        let task = Task::new(TaskId(uuid::Uuid::nil()), work, Origin::Api);
        for (stage, expected) in [
            (Stage::Queued, Stage::Queued),
            (claimed.clone(), claimed),
            (running.clone(), running),
            (
                Stage::Retrying { retry: retry.clone(), due: None },
                Stage::Retrying { retry, due: Some(due) },
            ),
            (ended(Ending::default()), ended(reported)),
        ] {
            let mut set = Task { stage, ..task.clone() };
            set.set_unlogged(Some(due), Some(tokens.clone()));
            assert_eq!(set, Task { stage: expected, ..task.clone() });
        }
    }

    /// Only the next task waits for what the group waits for.
    #[test]
    fn a_later_task_waits_for_the_tasks_before_it() {
        #[rustfmt::skip]
        let cases = [
            (0, true,  Some(Blocked::Turn),   Some(Blocked::Agent)),
            (0, false, Some(Blocked::Slot),   Some(Blocked::Slot)),
            (0, false, None,                  None),
            (1, false, Some(Blocked::Agent),  Some(Blocked::Turn)),
            (1, false, Some(Blocked::Paused), Some(Blocked::Paused)),
            (9, false, Some(Blocked::Held),   Some(Blocked::Held)),
            (9, false, Some(Blocked::AgentAuth), Some(Blocked::AgentAuth)),
            (1, false, None,                  None),
        ];
        for (place, is_claimed, next, expected) in cases {
            let case = format!("{place} {is_claimed} {next:?}");
            assert_eq!(Blocked::at(place, is_claimed, next), expected, "{case}");
        }
    }
}
