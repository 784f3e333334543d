//! What one may ask of a group, and how it answers.

use actix::{
    ActorFutureExt as _, AtomicResponse, Context, Handler, Message, ResponseFuture,
    WrapFuture as _, fut::LocalBoxActorFuture,
};
use greenroom_core::{
    Blocked, Choice, Due, Event, Json, OnInterrupt, Origin, PermissionId, PermissionPolicy,
    Rejected, Settings, Step, Stop, Task, TaskId, Work,
};
use tokio::sync::oneshot;

use super::Group;
use crate::{
    agent::AgentReport,
    clock, failpoint,
    storage::{KeyUse, StoreError, TaskView, Unreadable},
};

/// Why a group did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The rules forbid it; nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The server shuts down and takes no work.
    #[error("the server is shutting down")]
    Draining,
    /// It could not be made durable, and so it did not happen.
    #[error("it could not be stored, and so it did not happen")]
    Storage(#[source] StoreError),
    /// The idempotency key was used for another body.
    #[error("the idempotency key was used with another body")]
    KeyConflict,
    /// Nobody made the group.
    #[error("there is no such group")]
    Unknown,
    /// The configuration has no such agent.
    #[error("the configuration has no agent {0:?}")]
    UnknownAgent(String),
    /// The group's agent may not work in the group's directory.
    #[error("{0}")]
    InvalidCwd(String),
    /// The group's agent has no way to compact on order.
    #[error("the group's agent has no compaction strategy that could be ordered")]
    CompactionUnsupported,
    /// The group's actor died, and is being rebuilt from the database.
    #[error("the group is being rebuilt from the database")]
    Rebuilding,
    /// A row of the group cannot be read; it takes nothing until that is repaired.
    #[error("a stored row of the group cannot be read ({0}); {remedy}", remedy = .0.remedy())]
    Broken(Unreadable),
    /// The group, or the database, has used up a range of numbers.
    #[error("no number is left for another task of this group, or for another group")]
    Exhausted,
}

type Answer<T> = AtomicResponse<Group, Result<T, GroupError>>;

/// Accept a task. Answered once it is durable (I2).
#[derive(Debug, Message)]
#[rtype(result = "Result<Accepted, GroupError>")]
pub struct Submit {
    /// What is to be done.
    pub demand: Demand,
    /// What the caller keeps with it.
    pub metadata: Option<Json>,
    /// How long one attempt may take, milliseconds.
    pub deadline_ms: Option<u64>,
    /// How long it may wait for its start, milliseconds.
    pub expires_in_ms: Option<u64>,
    /// What identifies the request, if its caller wants it carried out once.
    pub key: Option<KeyHashes>,
    /// Whether the caller waits for the task's end; see [`Accepted::end`].
    pub wait: bool,
}

impl Submit {
    /// A wish for this, and nothing else said about it.
    pub fn new(demand: Demand, key: Option<KeyHashes>) -> Self {
        Self { demand, metadata: None, deadline_ms: None, expires_in_ms: None, key, wait: false }
    }
}

/// An idempotency key in use: SHA-256 of caller, method, path and key, and of the body.
#[derive(Clone, Copy, Debug)]
pub struct KeyHashes {
    /// Of caller, method, path and key.
    pub key: [u8; 32],
    /// Of the body.
    pub body: [u8; 32],
}

/// What a caller wants done.
#[derive(Debug)]
pub enum Demand {
    /// A prompt, as ACP content blocks.
    Turn(Json),
    /// A compaction, and what its summary should keep in view.
    Compaction(Option<String>),
    /// What an ended task was to do.
    Again(TaskId, Work),
}

/// A task that is durable.
#[derive(Debug)]
pub struct Accepted {
    /// The task as it stands.
    pub view: TaskView,
    /// Whether it was there before.
    pub deduplicated: bool,
    /// Tells of the end of a task that was not there before, if the caller wanted to wait for it:
    /// so it need not ask a second time.
    pub end: Option<oneshot::Receiver<Task>>,
}

/// Tell when a task is terminal. Answered `None` if the group has no such task that is not.
#[derive(Debug, Message)]
#[rtype(result = "Option<Task>")]
pub struct Await(pub TaskId);

/// Call a task off.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct Cancel(pub TaskId);

/// Decide on a permission. The first answer wins.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct Decide {
    /// Which one.
    pub permission: PermissionId,
    /// How.
    pub choice: Choice,
    /// Who decides.
    pub by: &'static str,
}

/// Make the group, change it, or revive it. Answers whether it is new.
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, GroupError>")]
pub struct Configure(pub Patch);

/// Settings to change; what is absent stays.
#[derive(Debug, Default)]
pub struct Patch {
    /// A profile's name.
    pub agent: Option<String>,
    /// An absolute path, checked.
    pub cwd: Option<String>,
    /// A name for people.
    pub title: Option<String>,
    /// A share of the context window.
    pub auto_compact: Option<f64>,
    /// Who decides on what its agent asks for.
    pub permission_policy: Option<PermissionPolicy>,
    /// What becomes of its queue after a turn was cut off.
    pub on_interrupt: Option<OnInterrupt>,
    /// Whatever the caller keeps with the group.
    pub metadata: Option<Json>,
}

/// Claim no more work, or go on, or end the run now.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub enum Control {
    /// Claim no more work; what runs goes on.
    Pause,
    /// Go on.
    Resume,
    /// End the run; the task in it is cancelled.
    Stop,
}

/// Call everything off, end the agent, and keep the group readable, or delete it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct Archive {
    /// Whether its rows are deleted as well.
    pub purge: bool,
}

/// Answer, as soon as the group has read itself back from the database: nothing else.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Rouse;

/// Make the digests again from the transcript, as one of their rows cannot be read. An actor does
/// so once: what is damaged in the transcript itself stays so, and the group stands still for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), GroupError>")]
pub struct Refold;

/// Take no more work and start none: the server shuts down (SEEDS DQ-11).
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Cancel the running turn: the drain took too long.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Cut;

/// End the agent. Answered when nothing of it is left.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Halt;

impl Handler<Submit> for Group {
    type Result = Answer<Accepted>;

    fn handle(&mut self, submit: Submit, ctx: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.takes_work() {
            return answer(Err(refused));
        }
        let Some(hashes) = submit.key else {
            let progress = self.accept(submit, None, ctx);
            return AtomicResponse::new(progress);
        };
        let ledger = self.shared.ledger.clone();
        let KeyHashes { key, body } = hashes;
        let used = async move {
            let used = ledger.read(move |archive| {
                let Some(used) = archive.key(&key)? else { return Ok(None) };
                Ok(Some((used.body, archive.task(used.task)?)))
            });
            let Some((used_with, view)) = used.await? else { return Ok(None) };
            if used_with != body {
                return Err(GroupError::KeyConflict);
            }
            Ok(view.map(|view| Accepted { view, deduplicated: true, end: None }))
        };
        AtomicResponse::new(Box::pin(used.into_actor(self).then(
            move |used, group, ctx| -> LocalBoxActorFuture<Group, _> {
                match used {
                    Ok(Some(accepted)) => Box::pin(actix::fut::ready(Ok(accepted))),
                    Ok(None) => group.accept(submit, Some(hashes), ctx),
                    Err(err) => Box::pin(actix::fut::ready(Err(err))),
                }
            },
        )))
    }
}

impl Group {
    fn accept(
        &mut self,
        submit: Submit,
        key: Option<KeyHashes>,
        ctx: &mut Context<Self>,
    ) -> LocalBoxActorFuture<Self, Result<Accepted, GroupError>> {
        let refuse = |err| -> LocalBoxActorFuture<Self, Result<Accepted, GroupError>> {
            Box::pin(actix::fut::ready(Err(err)))
        };
        let (work, retry_of) = match self.work(submit.demand) {
            Ok(work) => work,
            Err(err) => return refuse(err),
        };
        let (id, at) = (clock::task_id(), clock::moment());
        let origin = if retry_of.is_some() { Origin::Retry } else { Origin::Api };
        let task = Task {
            metadata: submit.metadata,
            deadline_ms: submit.deadline_ms,
            expires: submit.expires_in_ms.map(|ms| Due::after(at, ms)),
            retry_of,
            ..Task::new(id, work, origin)
        };
        let mut step = match self.apply(Event::Submitted(Box::new(task)), at) {
            Ok(step) => step,
            Err(Rejected::AlreadyCompacting(id)) => {
                let Some(view) = self.view(id) else { return refuse(GroupError::Rebuilding) };
                let key = key.map(|KeyHashes { key, body }| KeyUse { key, body, task: id });
                let stored = self.store(Step::default(), at, key);
                let accepted = Accepted { view, deduplicated: true, end: None };
                return Box::pin(stored.map(move |stored, _, _| stored.map(|()| accepted)));
            }
            Err(rejected) => return refuse(rejected.into()),
        };
        self.use_slot(&mut step, at, ctx);
        let view = self.view(id).or_else(|| self.ended_in(&step, id));
        let key = key.map(|KeyHashes { key, body }| KeyUse { key, body, task: id });
        let wait = submit.wait;
        let stored = self.store(step, at, key);
        Box::pin(stored.map(move |stored, group: &mut Self, _| {
            stored?;
            let view = view.ok_or(GroupError::Rebuilding)?;
            let end = (wait && !view.task.state.is_terminal()).then(|| group.end_of(id));
            Ok(Accepted { view, deduplicated: false, end })
        }))
    }

    /// Tells of the end of a task that is not terminal.
    fn end_of(&mut self, task: TaskId) -> oneshot::Receiver<Task> {
        let (done, end) = oneshot::channel();
        let waiters = self.waiters.entry(task).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(done);
        end
    }

    /// What is to be done, and the ended task that it was before.
    fn work(&self, demand: Demand) -> Result<(Work, Option<TaskId>), GroupError> {
        let (focus, retry_of) = match demand {
            Demand::Turn(prompt) => return Ok((Work::Turn { prompt }, None)),
            Demand::Again(task, Work::Turn { prompt }) => {
                return Ok((Work::Turn { prompt }, Some(task)));
            }
            Demand::Again(task, Work::Compaction { focus, .. }) => {
                (focus.map(|focus| (*focus).to_owned()), Some(task))
            }
            Demand::Compaction(focus) => (focus, None),
        };
        if self.core.head().created_at.is_none() {
            return Err(GroupError::Unknown);
        }
        let agent = &self.core.head().settings.agent;
        let profile = self.shared.profiles.get(agent);
        let profile = profile.ok_or_else(|| GroupError::UnknownAgent(agent.clone()))?;
        let order = profile.compaction.order().ok_or(GroupError::CompactionUnsupported)?;
        Ok((order.work(focus.map(Into::into)), retry_of))
    }

    /// A task that was over as soon as it was accepted.
    fn ended_in(&self, step: &Step, id: TaskId) -> Option<TaskView> {
        let task = step.writes.iter().find_map(|write| match write {
            greenroom_core::Write::TaskEnded { task, record, .. } if *task == id => Some(record),
            _ => None,
        })?;
        let task = Task::clone(task);
        Some(TaskView { task, group: self.id.clone(), position: None, blocked_by: None::<Blocked> })
    }
}

fn answer<T: 'static>(now: Result<T, GroupError>) -> Answer<T> {
    AtomicResponse::new(Box::pin(actix::fut::ready(now)))
}

impl Handler<Await> for Group {
    type Result = ResponseFuture<Option<Task>>;

    fn handle(&mut self, Await(task): Await, _: &mut Context<Self>) -> Self::Result {
        if self.core.task(task).is_none() {
            return Box::pin(std::future::ready(None));
        }
        let end = self.end_of(task);
        Box::pin(async { end.await.ok() })
    }
}

impl Handler<Cancel> for Group {
    type Result = Answer<()>;

    fn handle(&mut self, Cancel(task): Cancel, ctx: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(self.advance(vec![Event::CancelRequested(task)], ctx))
    }
}

impl Handler<Decide> for Group {
    type Result = Answer<()>;

    fn handle(&mut self, decide: Decide, ctx: &mut Context<Self>) -> Self::Result {
        let Decide { permission, choice, by } = decide;
        let answered = Event::PermissionAnswered { permission, choice, by: by.into() };
        AtomicResponse::new(self.advance(vec![answered], ctx))
    }
}

impl Handler<Configure> for Group {
    type Result = Answer<bool>;

    fn handle(&mut self, Configure(patch): Configure, _: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.takes_work() {
            return answer(Err(refused));
        }
        if let Some(agent) = &patch.agent
            && !self.shared.profiles.contains_key(agent)
        {
            return answer(Err(GroupError::UnknownAgent(agent.clone())));
        }
        let head = self.core.head();
        let (created, old) = (head.created_at.is_none(), head.settings.clone());
        let places = patch.agent.is_some() || patch.cwd.is_some();
        let settings = Settings {
            agent: patch.agent.unwrap_or(old.agent),
            cwd: patch.cwd.or(old.cwd),
            title: patch.title.or(old.title),
            auto_compact: patch.auto_compact.or(old.auto_compact),
            permission_policy: patch.permission_policy.or(old.permission_policy),
            on_interrupt: patch.on_interrupt.or(old.on_interrupt),
            metadata: patch.metadata.or(old.metadata),
        };
        // Here, and not only at the edge: agent and directory may come with two requests.
        let profile = self.shared.profiles.get(&settings.agent).cloned();
        let place = settings.cwd.clone().filter(|_| places).zip(profile);
        let checked = async move {
            match place {
                Some((cwd, profile)) => profile.check_cwd_apart(cwd.into()).await.map(drop),
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
        if let Err(refused) = self.cannot_work() {
            if !purge {
                return answer(Err(refused));
            }
            let purged = self.delete().into_actor(self);
            return AtomicResponse::new(Box::pin(
                purged.map(|purged, group: &mut Self, ctx| group.purged(purged, ctx)),
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
        let AgentReport { mut events, under } = report;
        if under.as_ref() != self.reread.in_force() {
            // The prompt of another session was committed, and the run did not know yet.
            for event in &mut events {
                if let Event::AgentSaid { lines, fold, .. } = event {
                    *fold = self.reread.meaning_of(lines);
                }
            }
        }
        // A failed commit stops this actor; the agent learns of it by its report's end.
        AtomicResponse::new(Box::pin(self.advance(events, ctx).map(|_, _, _| ())))
    }
}

impl Handler<Rouse> for Group {
    type Result = ();

    fn handle(&mut self, _: Rouse, _: &mut Context<Self>) {}
}

impl Handler<Drain> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) -> Self::Result {
        // What did not start yet starts after the next start of the server (SEEDS DQ-11).
        let unsent = self.core.current().is_some() && self.core.turn().is_none();
        let events = if unsent { vec![Event::Shutdown] } else { Vec::new() };
        AtomicResponse::new(Box::pin(self.advance(events, ctx).map(|_, _, _| ())))
    }
}

impl Handler<Cut> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: Cut, ctx: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(self.advance(vec![Event::Shutdown], ctx).map(|_, _, _| ())))
    }
}

impl Handler<Halt> for Group {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Halt, _: &mut Context<Self>) -> Self::Result {
        let Some((_, agent)) = &self.agent else { return Box::pin(std::future::ready(())) };
        let how = if self.core.current().is_some() { Stop::Firmly } else { Stop::Gently };
        agent.agent.do_send(crate::agent::Order::Stop(how));
        let (done, end) = oneshot::channel();
        self.halted.push(done);
        Box::pin(async { _ = end.await })
    }
}
