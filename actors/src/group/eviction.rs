//! The group's side of the agent pool: reports the use of its run, and passes evictions to core.

use actix::{ActorFutureExt as _, AtomicResponse, Context, Handler};
use greenroom_core::{Event, pool::Activity};

use super::Group;
use crate::pool::Evict;

impl Group {
    /// Reports the use of the run to the pool, if it changed.
    pub(super) fn reconcile_pool(&self) {
        if let (Some((current, agent)), Some(activity)) = (&self.agent, self.log.core.activity())
            && self.log.core.run().is_some_and(|run| run.id == *current)
        {
            self.shared.launcher.pool.report_usage(&agent.usage, activity);
        }
    }
}

impl Handler<Evict> for Group {
    type Result = AtomicResponse<Self, bool>;

    fn handle(&mut self, Evict(run): Evict, ctx: &mut Context<Self>) -> Self::Result {
        let progress = self.advance(vec![Event::Evicted { run }], ctx);
        AtomicResponse::new(Box::pin(progress.map(move |_, group, _| {
            // If the group has another run by now, the one to evict has ended.
            group.log.core.run().is_none_or(|current| current.id != run)
                || group.log.core.activity() == Some(Activity::Stopping)
        })))
    }
}
