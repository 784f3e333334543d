//! What a caller submits, and the task that it becomes.

use crate::{
    CompactionOrder, Deadline, Json, Now, Origin, Rejected, Task, TaskId, TaskState, Work,
};

/// What a caller submits: a turn, a compaction, or the retry of an ended task.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    work: SubmittedWork,
    /// The ended task that this one retries.
    retry_of: Option<TaskId>,
    /// The caller's own data, stored with the task.
    pub metadata: Option<Json>,
    /// How long one attempt may take, milliseconds.
    pub deadline_ms: Option<u64>,
    /// How long it may wait for its start, milliseconds.
    pub expires_in_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
enum SubmittedWork {
    Turn { prompt: Json },
    Compaction { focus: Option<std::sync::Arc<str>> },
}

impl Submission {
    fn new(work: SubmittedWork) -> Self {
        Self { work, retry_of: None, metadata: None, deadline_ms: None, expires_in_ms: None }
    }

    /// A turn with this prompt, as ACP content blocks.
    pub fn turn(prompt: Json) -> Self {
        Self::new(SubmittedWork::Turn { prompt })
    }

    /// A compaction, and the focus of its summary.
    pub fn compaction(focus: Option<String>) -> Self {
        Self::new(SubmittedWork::Compaction { focus: focus.map(Into::into) })
    }

    /// The retry of a task that ended without success, as a task of its own: with the same prompt
    /// or focus, data and deadline (API-2).
    ///
    /// # Errors
    ///
    /// [`Rejected::NotRetryable`] if the task is in any other state.
    pub fn retry(task: Task) -> Result<Self, Rejected> {
        match task.state() {
            TaskState::Failed | TaskState::Interrupted | TaskState::Cancelled => {}
            TaskState::Queued
            | TaskState::Running
            | TaskState::Retrying
            | TaskState::Completed
            | TaskState::Skipped => return Err(Rejected::NotRetryable),
        }
        let work = match task.work {
            Work::Turn { prompt } => SubmittedWork::Turn { prompt },
            Work::Compaction { focus, .. } => SubmittedWork::Compaction { focus },
        };
        Ok(Self {
            retry_of: Some(task.id),
            metadata: task.metadata,
            deadline_ms: task.deadline_ms,
            ..Self::new(work)
        })
    }

    /// Returns the task that it becomes at `now`. Only a compaction needs `order`, also the retry
    /// of one: it is done as the group's profile says today.
    ///
    /// # Errors
    ///
    /// The error of `order`.
    pub fn into_task<E>(
        self,
        id: TaskId,
        now: Now,
        order: impl FnOnce() -> Result<CompactionOrder, E>,
    ) -> Result<Task, E> {
        let work = match self.work {
            SubmittedWork::Turn { prompt } => Work::Turn { prompt },
            SubmittedWork::Compaction { focus } => order()?.work(focus),
        };
        let origin = if self.retry_of.is_some() { Origin::Retry } else { Origin::Api };
        Ok(Task {
            metadata: self.metadata,
            deadline_ms: self.deadline_ms,
            expires: self.expires_in_ms.map(|ms| Deadline::after(now, ms)),
            retry_of: self.retry_of,
            ..Task::new(id, work, origin)
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{EndFrame, EndState, Ending, Retry, RunId, Stage, Start, Strategy, Timestamp};

    const ID: TaskId = TaskId(Uuid::from_u128(1));
    const NEXT: TaskId = TaskId(Uuid::from_u128(2));

    fn json(text: &str) -> Json {
        Json::parse(text.to_owned()).expect("JSON")
    }

    fn order(text: &str) -> Result<CompactionOrder, &'static str> {
        Ok(CompactionOrder { strategy: Strategy::Command, text: text.into() })
    }

    fn ended(task: Task, state: EndState) -> Task {
        task.ended(1, state, EndFrame { at: Timestamp::default(), seq: 1 }, Ending::default())
    }

    /// API-2: only a task that ended without success is retried.
    #[test]
    fn only_a_task_that_ended_without_success_is_retried() {
        use EndState::{Cancelled, Completed, Failed, Interrupted, Skipped};
        let task = || Task::new(ID, Work::Turn { prompt: json("[]") }, Origin::Api);
        let (at, retry) = (Timestamp::default(), Retry::default());
        let start = Start { at, run: RunId(Uuid::nil()), segment: 1, seq: 1 };
        let open = [
            Stage::Queued,
            Stage::Claimed { at, retry: None },
            Stage::Running { claimed_at: at, start },
            Stage::Retrying { retry, due: None },
        ];
        let open = open.map(|stage| Task { stage, ..task() });
        let over = [Completed, Failed, Cancelled, Interrupted, Skipped];
        let over = over.map(|state| ended(task(), state));
        let is_retried = |task: &Task| match Submission::retry(task.clone()) {
            Ok(_) => true,
            Err(rejected) => {
                assert_eq!(rejected, Rejected::NotRetryable, "{:?}", task.stage);
                false
            }
        };
        let retried = open.iter().chain(&over).filter(|task| is_retried(task));
        let retried: Vec<TaskState> = retried.map(Task::state).collect();
        let expected = [Failed, Cancelled, Interrupted].map(TaskState::from);
        assert_eq!(retried, expected);
    }

    /// API-2: a retry keeps what the caller gave, and not how long the first task might wait. A
    /// compaction is done as the profile says today.
    #[test]
    fn a_retry_keeps_what_its_caller_gave() {
        let now = Now::default();
        let turn = Submission {
            metadata: Some(json("{}")),
            deadline_ms: Some(5),
            expires_in_ms: Some(6),
            ..Submission::turn(json(r#"[1]"#))
        };
        let no_order = || Err("a turn needs no order");
        let first = turn.into_task(ID, now, no_order).expect("a turn");
        assert_eq!((first.origin, first.retry_of), (Origin::Api, None));
        assert_eq!((first.metadata.clone(), first.deadline_ms), (Some(json("{}")), Some(5)));
        assert_eq!(first.expires, Some(Deadline::after(now, 6)));
        let failed = ended(first.clone(), EndState::Failed);
        let again = Submission::retry(failed).expect("failed").into_task(NEXT, now, no_order);
        let expected =
            Task { id: NEXT, origin: Origin::Retry, retry_of: Some(ID), expires: None, ..first };
        assert_eq!(again, Ok(expected));

        let compaction = Submission::compaction(Some("names".into()));
        assert_eq!(compaction.clone().into_task(ID, now, || Err("none")), Err("none"));
        let first = compaction.into_task(ID, now, || order("/old")).expect("a compaction");
        let cancelled = ended(first, EndState::Cancelled);
        let again = Submission::retry(cancelled).expect("cancelled");
        let again = again.into_task(NEXT, now, || order("/new")).expect("a compaction");
        assert_eq!(again.work, order("/new").expect("an order").work(Some("names".into())));
    }
}
