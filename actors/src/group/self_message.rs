//! The results of the group's own timers and spawned futures, sent through its mailbox.
//!
//! actix polls one spawned future between a message's handler and the future that the handler makes
//! the actor wait for, and of two such futures the later one first. So a commit by a spawned future
//! would overtake the message's commit, and a crash between the two would leave a gap in the
//! transcript (I3).

use actix::{ActorFutureExt as _, AtomicResponse, Context, Handler, Message};
use greenroom_core::Event;
use tokio::sync::OwnedSemaphorePermit;

use super::Group;

/// The result of a timer or of a spawned future.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) enum SelfMessage {
    /// The group gets a slot.
    Slot(OwnedSemaphorePermit),
    /// The timer fired.
    Timer,
    /// An event for core.
    Event(Box<Event>),
}

impl Handler<SelfMessage> for Group {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, message: SelfMessage, ctx: &mut Context<Self>) -> Self::Result {
        let events = match message {
            SelfMessage::Slot(slot) => self.on_slot_granted(slot),
            SelfMessage::Timer => self.fired_timers(ctx),
            SelfMessage::Event(event) => vec![*event],
        };
        AtomicResponse::new(Box::pin(self.advance(events, ctx).map(|_, _, _| ())))
    }
}
