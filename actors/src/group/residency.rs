//! What the group's run is needed for, and letting it go when another group's run needs its place.

use actix::{ActorFutureExt as _, AtomicResponse, Context, Handler};
use greenroom_core::{Event, Expiry, RunId, RunPhase};

use super::Group;
use crate::residents::{LetGo, Use};

impl Group {
    /// Says what the run is needed for, if that is not what was said last.
    pub(super) fn see_to_residency(&self) {
        if let (Some((own, agent)), Some(now)) = (&self.agent, self.use_of_run())
            && self.core.run().is_some_and(|run| run.id == *own)
        {
            self.shared.nursery.residents.note(&agent.needed, now);
        }
    }

    fn use_of_run(&self) -> Option<Use> {
        Some(match self.core.run()?.phase {
            RunPhase::Stopping => Use::Going,
            RunPhase::Starting | RunPhase::Ready if self.core.needs_run() => Use::Busy,
            RunPhase::Starting | RunPhase::Ready => Use::Idle,
        })
    }

    fn is_idle(&self, run: RunId) -> bool {
        self.core.run().is_some_and(|own| own.id == run) && self.use_of_run() == Some(Use::Idle)
    }
}

impl Handler<LetGo> for Group {
    type Result = AtomicResponse<Self, bool>;

    fn handle(&mut self, LetGo(run): LetGo, ctx: &mut Context<Self>) -> Self::Result {
        let events = if self.is_idle(run) {
            vec![Event::Expired(Expiry::Idle(run, self.core.head().last_seq))]
        } else {
            Vec::new()
        };
        let progress = self.advance(events, ctx);
        AtomicResponse::new(Box::pin(progress.map(move |_, group, _| {
            // A run that is another by now ends without being told.
            group.core.run().is_none_or(|own| own.id != run)
                || group.use_of_run() == Some(Use::Going)
        })))
    }
}
