//! The group's side of the agent pool: reports the use of its run, and stops it on eviction.

use actix::{ActorFutureExt as _, AtomicResponse, Context, Handler};
use greenroom_core::{Event, RunId, RunPhase, Timer};

use super::Group;
use crate::pool::{Activity, Evict};

impl Group {
    /// Reports the use of the run to the pool, if it changed.
    pub(super) fn reconcile_pool(&self) {
        if let (Some((current, agent)), Some(activity)) = (&self.agent, self.activity())
            && self.core.run().is_some_and(|run| run.id == *current)
        {
            self.shared.launcher.pool.report_usage(&agent.usage, activity);
        }
    }

    fn activity(&self) -> Option<Activity> {
        Some(match self.core.run()?.phase {
            RunPhase::Stopping => Activity::Stopping,
            RunPhase::Starting | RunPhase::Ready if self.core.needs_run() => Activity::Busy,
            RunPhase::Starting | RunPhase::Ready => Activity::Idle,
        })
    }

    fn is_idle(&self, run: RunId) -> bool {
        self.core.run().is_some_and(|current| current.id == run)
            && self.activity() == Some(Activity::Idle)
    }
}

impl Handler<Evict> for Group {
    type Result = AtomicResponse<Self, bool>;

    fn handle(&mut self, Evict(run): Evict, ctx: &mut Context<Self>) -> Self::Result {
        let events = if self.is_idle(run) {
            vec![Event::TimerFired(Timer::Idle(run, self.core.state().last_seq))]
        } else {
            Vec::new()
        };
        let progress = self.advance(events, ctx);
        AtomicResponse::new(Box::pin(progress.map(move |_, group, _| {
            // If the group has another run by now, the one to evict has ended.
            group.core.run().is_none_or(|current| current.id != run)
                || group.activity() == Some(Activity::Stopping)
        })))
    }
}
