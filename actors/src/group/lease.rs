//! The group's lock on the session that it compacts (HL): requested, renewed, released.

use std::time::Duration;

use actix::{
    ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _, fut::LocalBoxActorFuture,
};
use greenroom_core::{
    Event, Limits, LockAnswer, SessionId, SignalKind, TaskId,
    lock::{Holder, Lease, LockKey},
};

use super::{Group, self_message::SelfMessage};
use crate::storage::{
    LockError, LockRequest, chain, holder,
    lease::{self, LeaseEnd},
};

impl Group {
    /// Requests a lock. The mailbox stays open: another holder may keep the lock for minutes.
    pub(super) fn acquire_lock(&mut self, task: TaskId, key: &SessionId, ctx: &mut Context<Self>) {
        if self.shared.is_draining() {
            return;
        }
        let request = self.lock_request(key);
        let db = self.shared.db.clone();
        let answer = async move {
            // A session whose name cannot be a lock's is not compacted without one.
            let Some(request) = request else { return LockAnswer::Failed };
            match db.lock_acquire(request).await {
                Ok(granted) => {
                    let Lease { holder, token, .. } = granted.lock.lease;
                    LockAnswer::Acquired { holder: holder.to_string(), token }
                }
                Err(LockError::Conflict { holder, .. }) => {
                    LockAnswer::Busy { holder: holder.to_string() }
                }
                Err(LockError::Absent) => LockAnswer::Absent,
                Err(err @ (LockError::Lost | LockError::Store(_))) => {
                    log::warn!(err:% = chain(&err); "lock request failed");
                    LockAnswer::Failed
                }
            }
        };
        let key = key.clone();
        ctx.spawn(answer.into_actor(self).map(move |answer, _, ctx| {
            let answered = Event::LockAnswered { task, key, answer };
            ctx.address().do_send(SelfMessage::Event(answered.into()));
        }));
    }

    fn lock_request(&self, key: &SessionId) -> Option<LockRequest> {
        let ttl = self.shared.defaults.lock_ttl;
        let key: LockKey = key.0.parse().ok()?;
        Some(LockRequest { key, holder: holder::fresh(), ttl, group: Some(self.no) })
    }

    /// Releases a lock that core no longer wants. If that fails, the lock expires.
    pub(super) fn release_lock(&self, key: &SessionId, holder: &str, token: u64) {
        let Some(lease) = lease_of(key, holder, token) else { return };
        let db = self.shared.db.clone();
        actix::spawn(async move { db.lock_release(lease).await });
    }

    /// Renews the lease that core holds before events that may publish its compaction; `None` if
    /// nothing is published. Returns the event that the lease is lost, if it is.
    ///
    /// The commit is fenced, too (HL-11); but an actor whose commit fails stops, and its agent with
    /// it. A lease that was renewed a moment ago is lost then only if its row is deleted.
    pub(super) fn checked_lease(
        &self,
        events: &[Event],
    ) -> Option<LocalBoxActorFuture<Self, Option<Event>>> {
        let (key, holder, token) = self.log.core.lease()?;
        let task = self.log.core.locking_task()?;
        if !events.iter().any(may_publish) {
            return None;
        }
        let lease = lease_of(key, holder, token)?;
        let db = self.shared.db.clone();
        let renewed = async move { db.lock_refresh(lease).await };
        Some(Box::pin(renewed.into_actor(self).map(move |renewed, group, _| match renewed {
            Err(lost @ (LockError::Conflict { .. } | LockError::Lost)) => {
                log::warn!(group:% = group.id, lost:%; "lease is lost at its compaction's end");
                Some(Event::LockLost { task })
            }
            // The fence of the commit decides.
            Ok(_) | Err(LockError::Absent | LockError::Store(_)) => None,
        })))
    }

    /// Renews the lease that core holds, and no other.
    pub(super) fn reconcile_lease(&mut self, ctx: &mut Context<Self>) {
        let held = self.log.core.lease().map(|(_, _, token)| token);
        if held == self.lease.as_ref().map(|(token, _)| *token) {
            return;
        }
        if let Some((_, renewal)) = self.lease.take() {
            ctx.cancel_future(renewal);
        }
        let Some((key, holder, token)) = self.log.core.lease() else { return };
        let lease = lease_of(key, holder, token);
        let Some((lease, task)) = lease.zip(self.log.core.locking_task()) else { return };
        let ttl = self.shared.defaults.lock_ttl;
        // A compaction and its escalation, after the turn of another group released its slot.
        let Limits { turn_ms, compaction_ms, .. } = self.shared.defaults.limits;
        let life_max = Duration::from_millis(turn_ms.saturating_add(2 * compaction_ms));
        let db = self.shared.db.clone();
        let renewed = async move {
            let lost = lease::keep(db.clone(), lease.clone(), ttl, life_max).await;
            log::warn!(key:% = lease.key, lost:?; "lease ends");
            if !matches!(lost, LeaseEnd::Gone(_)) {
                // It is no longer renewed, and must not block others until it expires.
                _ = db.lock_release(lease).await;
            }
        };
        let renewal = ctx.spawn(renewed.into_actor(self).map(move |(), group, ctx| {
            group.lease = None;
            ctx.address().do_send(SelfMessage::Event(Event::LockLost { task }.into()));
        }));
        self.lease = Some((token, renewal));
    }
}

/// Whether a compaction may be completed by the event.
fn may_publish(event: &Event) -> bool {
    match event {
        Event::Signalled { signal, .. } | Event::StderrMatched { signal, .. } => {
            signal.kind == SignalKind::Completed
        }
        Event::SessionOpened { .. } | Event::PromptAnswered { .. } => true,
        _ => false,
    }
}

fn lease_of(key: &SessionId, holder: &str, token: u64) -> Option<Lease> {
    Some(Lease { key: key.0.parse().ok()?, holder: holder.parse::<Holder>().ok()?, token })
}
