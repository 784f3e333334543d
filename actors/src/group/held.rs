//! What the actor holds over time, reconciled with core's state: the slot, the run's handle, the
//! place in the pool, the lease, the timer.
//!
//! The slot comes before the commit, as a task starts in it; all else follows the commit.

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use greenroom_core::{Event, Now, Step};
use tokio::sync::OwnedSemaphorePermit;

use super::{Group, self_message::SelfMessage};

impl Group {
    /// Reconciles what the actor holds with the state that is durable now.
    pub(super) fn reconcile(&mut self, ctx: &mut Context<Self>) {
        if self.log.core.run().is_none() {
            self.agent = None;
            self.stop_waiters.drain(..).for_each(|waiter| _ = waiter.send(()));
        }
        self.hold_shares();
        self.reconcile_pool();
        self.reconcile_lease(ctx);
        self.reconcile_timer(ctx);
    }

    /// Releases the slot after each task. If core wants one: claims a free slot, or waits for one.
    pub(super) fn reconcile_slot(&mut self, step: &mut Step, at: Now, ctx: &mut Context<Self>) {
        loop {
            if self.log.core.current().is_none() {
                self.slot = None;
            }
            if self.shared.is_draining() || self.waits_for_slot || !self.log.core.wants_slot() {
                return;
            }
            match self.shared.slots.clone().try_acquire_owned() {
                Ok(slot) => {
                    self.slot = Some(slot);
                    step.extend(self.apply(Event::SlotGranted, at).unwrap_or_default());
                }
                Err(_) => return self.wait_for_slot(ctx),
            }
        }
    }

    fn wait_for_slot(&mut self, ctx: &mut Context<Self>) {
        self.waits_for_slot = true;
        let slot = self.shared.slots.clone().acquire_owned();
        ctx.spawn(slot.into_actor(self).map(|slot, group, ctx| match slot {
            Ok(slot) => ctx.address().do_send(SelfMessage::Slot(slot)),
            Err(_) => group.waits_for_slot = false,
        }));
    }

    /// Returns the event of a slot that the group waited for, if it still wants one.
    pub(super) fn on_slot_granted(&mut self, slot: OwnedSemaphorePermit) -> Vec<Event> {
        self.waits_for_slot = false;
        if self.shared.is_draining() || !self.log.core.wants_slot() {
            return Vec::new();
        }
        self.slot = Some(slot);
        vec![Event::SlotGranted]
    }
}
