//! What the group's own timers and spawned futures found out.
//!
//! It goes by way of the mailbox. actix polls one spawned item between a message's handler and the
//! future that the handler has the actor wait for, and of two such futures the later one first: a
//! commit that an item makes itself overtakes the message's, and a crash between the two leaves a
//! gap in the transcript (I3).

use actix::{ActorFutureExt as _, AtomicResponse, Context, Handler, Message};
use greenroom_core::Event;
use tokio::sync::OwnedSemaphorePermit;

use super::Group;

/// What an item found out.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) enum Item {
    /// The group's turn for a slot has come.
    Slot(OwnedSemaphorePermit),
    /// The timer went off.
    Timer,
    /// Something that the rules decide on.
    Event(Event),
}

impl Handler<Item> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, item: Item, ctx: &mut Context<Self>) -> Self::Result {
        let events = match item {
            Item::Slot(slot) => self.take_slot(slot),
            Item::Timer => self.expired(ctx),
            Item::Event(event) => vec![event],
        };
        AtomicResponse::new(Box::pin(self.advance(events, ctx).map(|_, _, _| ())))
    }
}
