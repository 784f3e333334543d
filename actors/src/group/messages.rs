//! The messages that a group takes, and their short handlers.

use actix::{
    ActorFutureExt as _, AtomicResponse, Context, Handler, Message, ResponseFuture,
    WrapFuture as _, fut::LocalBoxActorFuture,
};
use greenroom_core::{
    Choice, Event, PermissionId, Rejected, SettingsPatch, Submission, Task, TaskId,
};
use tokio::sync::oneshot;

use super::Group;
use crate::{
    agent::AgentReport,
    clock, failpoint,
    quota::Full,
    storage::{StoreError, TaskView, Unreadable},
    working_dir,
};

/// Why a group refused a message, or could not handle it.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The rules forbid it; nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The server shuts down and takes no work.
    #[error("the server is shutting down")]
    Draining,
    /// The commit failed; nothing changed.
    #[error("it could not be stored, and so it did not happen")]
    Storage(#[source] StoreError),
    /// The idempotency key was used for another body.
    #[error("the idempotency key was used with another body")]
    KeyConflict,
    /// The group does not exist.
    #[error("there is no such group")]
    Unknown,
    /// The configuration has no such agent.
    #[error("the configuration has no agent {0:?}")]
    UnknownAgent(String),
    /// The group's agent may not work in this directory.
    #[error("{0}")]
    InvalidCwd(String),
    /// The group's profile has no strategy for ordered compactions.
    #[error("the group's agent has no compaction strategy")]
    CompactionUnsupported,
    /// The group's actor died; the supervisor rebuilds it from the database.
    #[error("the group is being rebuilt from the database")]
    Rebuilding,
    /// A row of the group cannot be read; the group refuses all changes until it is repaired.
    #[error("a stored row of the group cannot be read ({0}); {remedy}", remedy = .0.remedy())]
    Broken(Unreadable),
    /// The server as a whole has no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// A range of numbers of the group, or of the database, is exhausted.
    #[error("no number is left for another task of this group, or for another group")]
    Exhausted,
}

pub(super) type Answer<T> = AtomicResponse<Group, Result<T, GroupError>>;

/// Accept a task. The answer comes once it is durable (I2).
#[derive(Debug, Message)]
#[rtype(result = "Result<Accepted, GroupError>")]
pub struct Submit {
    /// The work, and what the caller said about it.
    pub submission: Submission,
    /// The idempotency key of the request, if the caller gave one.
    pub key: Option<KeyHashes>,
    /// Whether the caller waits for the task's end; see [`Accepted::end`].
    pub wait: bool,
}

/// An idempotency key in use: SHA-256 of caller, method, path and key, and of the body.
#[derive(Clone, Copy, Debug)]
pub struct KeyHashes {
    /// Of caller, method, path and key.
    pub key: [u8; 32],
    /// Of the body.
    pub body: [u8; 32],
}

/// A task that is durable.
#[derive(Debug)]
pub struct Accepted {
    /// The task's current state.
    pub view: TaskView,
    /// Whether it existed before this request.
    pub deduplicated: bool,
    /// Receives the end of a task that this request created, if the caller waits for it: this saves
    /// a second message.
    pub end: Option<oneshot::Receiver<Task>>,
}

/// Report when a task is terminal. The answer is `None` if the group has no such active task.
#[derive(Debug, Message)]
#[rtype(result = "Option<Task>")]
pub struct Await(pub TaskId);

/// Cancel a task.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct Cancel(pub TaskId);

/// Decide on a permission. The first answer wins.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct AnswerPermission {
    /// The permission.
    pub permission: PermissionId,
    /// The decision.
    pub choice: Choice,
    /// Who decided.
    pub by: &'static str,
}

/// Create the group, change it, or restore it from the archive. Answers whether it is new.
///
/// A refused change must not create a group, so its sender has looked the agent up before, with
/// [`Shared::profile`](super::Shared::profile).
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, GroupError>")]
pub struct Configure(pub SettingsPatch);

/// Pause or resume the queue, or stop the run.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub enum Control {
    /// Claim no more work; the running task continues.
    Pause,
    /// Claim work again.
    Resume,
    /// Stop the run, and cancel its task.
    Stop,
}

/// Cancel all tasks, stop the agent, and keep the group readable, or delete it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct Archive {
    /// Whether its rows are deleted as well.
    pub purge: bool,
}

/// Answer once the group has recovered from the database; nothing else.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct EnsureLoaded;

/// Rebuild the digests from the transcript, as one of their rows cannot be read. An actor does so
/// only once: a rebuild does not mend the transcript itself, and it blocks the group.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct RebuildDigests;

/// Accept no more work and start none: the server shuts down (DQ-11).
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Cancel the running turn: the drain took too long.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CancelRunning;

/// Stop the agent. The answer comes when its process tree is gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StopAgent;

/// Answers at once.
pub(super) fn answer<T: 'static>(now: Result<T, GroupError>) -> Answer<T> {
    AtomicResponse::new(Box::pin(actix::fut::ready(now)))
}

impl Handler<Await> for Group {
    type Result = ResponseFuture<Option<Task>>;

    fn handle(&mut self, Await(task): Await, _: &mut Context<Self>) -> Self::Result {
        if self.log.core.task(task).is_none() {
            return Box::pin(std::future::ready(None));
        }
        let end = self.subscribe_to_end(task);
        Box::pin(async { end.await.ok() })
    }
}

impl Handler<Cancel> for Group {
    type Result = Answer<()>;

    fn handle(&mut self, Cancel(task): Cancel, ctx: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(self.advance(vec![Event::CancelRequested(task)], ctx))
    }
}

impl Handler<AnswerPermission> for Group {
    type Result = Answer<()>;

    fn handle(&mut self, answer: AnswerPermission, ctx: &mut Context<Self>) -> Self::Result {
        let AnswerPermission { permission, choice, by } = answer;
        let answered = Event::PermissionAnswered { permission, choice, by: by.into() };
        AtomicResponse::new(self.advance(vec![answered], ctx))
    }
}

impl Handler<Configure> for Group {
    type Result = Answer<bool>;

    fn handle(&mut self, Configure(patch): Configure, _: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.check_accepts_work() {
            return answer(Err(refused));
        }
        let state = self.log.core.state();
        let created = state.created_at.is_none();
        let changes_place = patch.agent.is_some() || patch.cwd.is_some();
        let settings = state.settings.patched(patch);
        // Here, and not only in HTTP: agent and directory may come with two requests.
        let profile = self.shared.profiles.get(&settings.agent).cloned();
        let place = settings.cwd.clone().filter(|_| changes_place).zip(profile);
        let reserved = self.shared.work_dir.reserved(Some(self.no));
        let checked = async move {
            match place {
                Some((cwd, profile)) => {
                    working_dir::check(cwd.into(), profile, reserved).await.map(drop)
                }
                None => Ok(()),
            }
        };
        AtomicResponse::new(Box::pin(checked.into_actor(self).then(
            move |checked, group, ctx| -> LocalBoxActorFuture<Group, _> {
                if let Err(err) = checked {
                    return Box::pin(actix::fut::ready(Err(GroupError::InvalidCwd(
                        err.to_string(),
                    ))));
                }
                let progress = group.advance(vec![Event::Configured(settings)], ctx);
                Box::pin(progress.map(move |done, _, _| done.map(|()| created)))
            },
        )))
    }
}

impl Handler<Control> for Group {
    type Result = Answer<()>;

    fn handle(&mut self, control: Control, ctx: &mut Context<Self>) -> Self::Result {
        let event = match control {
            Control::Pause => Event::Paused,
            Control::Resume => Event::Resumed,
            Control::Stop => Event::Stopped,
        };
        AtomicResponse::new(self.advance(vec![event], ctx))
    }
}

impl Handler<Archive> for Group {
    type Result = Answer<()>;

    fn handle(&mut self, Archive { purge }: Archive, ctx: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.check_readable() {
            if !purge {
                return answer(Err(refused));
            }
            let purged = self.delete().into_actor(self);
            return AtomicResponse::new(Box::pin(
                purged.map(|purged, group: &mut Self, ctx| group.on_purged(purged, ctx)),
            ));
        }
        let mut events = vec![Event::Archived];
        events.extend(purge.then_some(Event::PurgeOrdered));
        AtomicResponse::new(self.advance(events, ctx))
    }
}

impl Handler<AgentReport> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, report: AgentReport, ctx: &mut Context<Self>) -> Self::Result {
        failpoint::pass("group", &self.id);
        // A failed commit stops this actor; the run's actor learns of it by the failed answer.
        AtomicResponse::new(Box::pin(self.advance(report.events, ctx).map(|_, _, _| ())))
    }
}

impl Handler<EnsureLoaded> for Group {
    type Result = ();

    fn handle(&mut self, _: EnsureLoaded, _: &mut Context<Self>) {}
}

impl Handler<Drain> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) -> Self::Result {
        let drained = self.advance(vec![Event::DrainStarted], ctx);
        AtomicResponse::new(Box::pin(drained.map(|_, _, _| ())))
    }
}

impl Handler<CancelRunning> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: CancelRunning, ctx: &mut Context<Self>) -> Self::Result {
        let cancelled = self.advance(vec![Event::DrainTimedOut], ctx);
        AtomicResponse::new(Box::pin(cancelled.map(|_, _, _| ())))
    }
}

impl Handler<StopAgent> for Group {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopAgent, ctx: &mut Context<Self>) -> Self::Result {
        if self.agent.is_none() {
            return Box::pin(std::future::ready(()));
        }
        // Nothing to commit, and thus at once: the mailbox may be full of the run's last reports,
        // which still have to be stored.
        let step = self.apply(Event::DrainEnded, clock::moment()).unwrap_or_default();
        debug_assert!(step.facts.is_empty(), "the end of a drain states no fact");
        self.perform(step.effects, &[], ctx);
        let (done, end) = oneshot::channel();
        self.stop_waiters.push(done);
        Box::pin(async { _ = end.await })
    }
}
