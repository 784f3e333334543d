//! The lock of the session that the group is about to compact, or compacts (SEEDS HL): asked for,
//! kept while the core holds it, and given back if it comes too late.

use std::time::Duration;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use greenroom_core::{
    Event, LockAnswer, Patience, SessionId, TaskId,
    lock::{Holder, Lease, LockKey, Ttl},
};

use super::{Group, item::Item};
use crate::storage::{
    LockAsk, LockError, chain, holder,
    lease::{self, Lost},
};

impl Group {
    /// Asks for a lock. The mailbox stays open: whoever has it may have it for minutes.
    pub(super) fn take_lock(&mut self, task: TaskId, key: &SessionId, ctx: &mut Context<Self>) {
        if self.shared.is_draining() {
            return;
        }
        let ask = self.lock_ask(key);
        let ledger = self.shared.ledger.clone();
        let answer = async move {
            // A session that cannot have a lock is not compacted without one.
            let Some(ask) = ask else { return LockAnswer::Failed };
            match ledger.lock_acquire(ask).await {
                Ok(granted) => {
                    let Lease { holder, token, .. } = granted.lock.lease;
                    LockAnswer::Taken { holder: holder.to_string(), token }
                }
                Err(LockError::Held { holder, .. }) => {
                    LockAnswer::Held { holder: holder.to_string() }
                }
                Err(LockError::Absent) => LockAnswer::Absent,
                Err(err @ (LockError::Lost | LockError::Store(_))) => {
                    log::warn!(err:% = chain(&err); "lock could not be asked for");
                    LockAnswer::Failed
                }
            }
        };
        let key = key.clone();
        ctx.spawn(answer.into_actor(self).map(move |answer, _, ctx| {
            let answered = Event::LockAnswered { task, key, answer };
            ctx.address().do_send(Item::Event(answered));
        }));
    }

    fn lock_ask(&self, key: &SessionId) -> Option<LockAsk> {
        let ttl =
            Ttl::from_ms(u64::try_from(self.shared.limits.lock_ttl.as_millis()).ok()?).ok()?;
        let key: LockKey = key.0.parse().ok()?;
        Some(LockAsk { key, holder: holder::fresh(), ttl, group: Some(self.no) })
    }

    /// Gives back what nobody wants any more. If that fails it expires.
    pub(super) fn drop_lock(&self, key: &SessionId, holder: &str, token: u64) {
        let Some(lease) = lease_of(key, holder, token) else { return };
        let ledger = self.shared.ledger.clone();
        actix::spawn(async move { ledger.lock_release(lease).await });
    }

    /// Keeps the lease that the core holds, and no other.
    pub(super) fn see_to_lease(&mut self, ctx: &mut Context<Self>) {
        let held = self.core.lease().map(|(_, _, token)| token);
        if held == self.lease.as_ref().map(|(token, _)| *token) {
            return;
        }
        if let Some((_, keeper)) = self.lease.take() {
            ctx.cancel_future(keeper);
        }
        let Some((key, holder, token)) = self.core.lease() else { return };
        let ttl = u64::try_from(self.shared.limits.lock_ttl.as_millis()).unwrap_or(u64::MAX);
        let (Some(lease), Ok(ttl), Some(task)) =
            (lease_of(key, holder, token), Ttl::from_ms(ttl), self.core.locking_task())
        else {
            return;
        };
        // A compaction and its ladder, once the turn of another group gave up its slot.
        let Patience { turn_ms, compaction_ms, .. } = self.shared.limits.patience;
        let life_max = Duration::from_millis(turn_ms.saturating_add(2 * compaction_ms));
        let ledger = self.shared.ledger.clone();
        let kept = async move {
            let lost = lease::keep(ledger.clone(), lease.clone(), ttl, life_max).await;
            log::warn!(key:% = lease.key, lost:?; "lease ends");
            if !matches!(lost, Lost::Gone(_)) {
                // It is not kept any more, and must not stand in anybody's way until it expires.
                _ = ledger.lock_release(lease).await;
            }
        };
        let keeper = ctx.spawn(kept.into_actor(self).map(move |(), group, ctx| {
            group.lease = None;
            ctx.address().do_send(Item::Event(Event::LockLost { task }));
        }));
        self.lease = Some((token, keeper));
    }
}

fn lease_of(key: &SessionId, holder: &str, token: u64) -> Option<Lease> {
    Some(Lease { key: key.0.parse().ok()?, holder: holder.parse::<Holder>().ok()?, token })
}
