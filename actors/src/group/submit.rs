//! Accepting tasks: the idempotency key first, then core's decision, then one commit with the key.

use actix::{
    ActorFutureExt as _, AtomicResponse, Context, Handler, WrapFuture as _,
    fut::LocalBoxActorFuture,
};
use greenroom_core::{CompactionOrder, Event, Fact, Rejected, Step, Task, TaskId, TaskKind};
use tokio::sync::oneshot;

use super::{
    Accepted, Group, GroupError, KeyHashes, Submit,
    messages::{Answer, answer},
};
use crate::{
    clock,
    storage::{KeyUse, TaskView},
};

impl Handler<Submit> for Group {
    type Result = Answer<Accepted>;

    fn handle(&mut self, submit: Submit, ctx: &mut Context<Self>) -> Self::Result {
        if let Err(refused) = self.check_accepts_work() {
            return answer(Err(refused));
        }
        let Some(hashes) = submit.key else {
            let progress = self.accept(submit, None, ctx);
            return AtomicResponse::new(progress);
        };
        let db = self.shared.db.clone();
        let KeyHashes { key, body } = hashes;
        let used = async move {
            let used = db.read(move |store| {
                let Some(used) = store.key(&key)? else { return Ok(None) };
                Ok(Some((used.body, store.task(used.task)?)))
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
    /// Accepts a task whose key, if it has one, is not in use.
    fn accept(
        &mut self,
        submit: Submit,
        key: Option<KeyHashes>,
        ctx: &mut Context<Self>,
    ) -> LocalBoxActorFuture<Self, Result<Accepted, GroupError>> {
        let refuse = |err| -> LocalBoxActorFuture<Self, Result<Accepted, GroupError>> {
            Box::pin(actix::fut::ready(Err(err)))
        };
        let (id, at) = (clock::task_id(), clock::moment());
        let task = match submit.submission.into_task(id, at, || self.compaction_order()) {
            Ok(task) => task,
            Err(err) => return refuse(err),
        };
        // A group has one compaction, which callers may order twice.
        let queued = &self.shared.quotas.queued_bytes;
        if task.kind() == TaskKind::Turn
            && let Err(full) = queued.check(task.queued_bytes() as u64)
        {
            return refuse(full.into());
        }
        let mut step = match self.apply(Event::Submitted(Box::new(task)), at) {
            Ok(step) => step,
            Err(Rejected::AlreadyCompacting(id)) => {
                let Some(view) = self.view(id) else { return refuse(GroupError::Rebuilding) };
                let key = key.map(|KeyHashes { key, body }| KeyUse { key, body, task: id });
                let stored = self.commit(Step::default(), at, key);
                let accepted = Accepted { view, deduplicated: true, end: None };
                return Box::pin(stored.map(move |stored, _, _| stored.map(|()| accepted)));
            }
            Err(rejected) => return refuse(rejected.into()),
        };
        self.reconcile_slot(&mut step, at, ctx);
        let view = self.view(id).or_else(|| self.ended_by_step(&step, id));
        let key = key.map(|KeyHashes { key, body }| KeyUse { key, body, task: id });
        let wait = submit.wait;
        let stored = self.commit(step, at, key);
        Box::pin(stored.map(move |stored, group: &mut Self, _| {
            stored?;
            let view = view.ok_or(GroupError::Rebuilding)?;
            let end =
                (wait && !view.task.state().is_terminal()).then(|| group.subscribe_to_end(id));
            Ok(Accepted { view, deduplicated: false, end })
        }))
    }

    /// Returns the receiver of the end of a task that is not terminal.
    pub(super) fn subscribe_to_end(&mut self, task: TaskId) -> oneshot::Receiver<Task> {
        let (done, end) = oneshot::channel();
        let waiters = self.waiters.entry(task).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(done);
        end
    }

    /// Returns how the group's agent is ordered to compact.
    fn compaction_order(&self) -> Result<CompactionOrder, GroupError> {
        if self.log.core.state().created_at.is_none() {
            return Err(GroupError::Unknown);
        }
        let profile = self.shared.profile(&self.log.core.state().settings.agent)?;
        profile.compaction.order().ok_or(GroupError::CompactionUnsupported)
    }

    /// Returns a task that ended in the step that accepted it.
    fn ended_by_step(&self, step: &Step, id: TaskId) -> Option<TaskView> {
        let task = step.facts.iter().find_map(|recorded| match &recorded.fact {
            Fact::TaskEnded { task, record, .. } if *task == id => Some(record),
            _ => None,
        })?;
        let task = Task::clone(task);
        Some(TaskView { task, group: self.id.clone(), position: None, blocked_by: None })
    }
}
