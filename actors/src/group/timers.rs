//! The group's one timer: armed for the earliest of core's deadlines.

use std::time::Duration;

use actix::{AsyncContext as _, Context};
use greenroom_core::{Event, Timer};

use super::{Group, self_message::SelfMessage};
use crate::{
    awake::{self, Awake},
    clock,
};

impl Group {
    /// Arms the timer for the earliest deadline. A timer that is armed for an earlier moment stays:
    /// a turn that settles in time costs none.
    pub(super) fn reconcile_timer(&mut self, ctx: &mut Context<Self>) {
        let now = clock::moment();
        let deadlines =
            self.log.core.timers(&self.shared.defaults.limits, now).map(|(timer, ms)| {
                // These were promised in real time, which counts a freeze.
                let is_promised = matches!(
                    timer,
                    Timer::Launch(_) | Timer::Login(_) | Timer::Backoff(..) | Timer::Queued(_)
                );
                let known = self.deadlines.iter().find(|(same, _)| *same == timer && !is_promised);
                known.copied().unwrap_or_else(|| (timer, awake::now() + Duration::from_millis(ms)))
            });
        self.deadlines = deadlines.collect();
        let Some(earliest) = self.deadlines.iter().map(|(_, at)| *at).min() else { return };
        match self.timer {
            Some((_, armed_for)) if armed_for <= earliest => return,
            Some((timer, _)) => _ = ctx.cancel_future(timer),
            None => {}
        }
        let fire =
            |_: &mut Self, ctx: &mut Context<Self>| ctx.address().do_send(SelfMessage::Timer);
        self.timer = Some((ctx.run_later(earliest.left(), fire), earliest));
    }

    /// Returns an event for each deadline that has passed. Call it when the timer fired.
    pub(super) fn fired_timers(&mut self, ctx: &mut Context<Self>) -> Vec<Event> {
        self.timer = None;
        let now = awake::now();
        let fired =
            |(timer, at): &(Timer, Awake)| (*at <= now).then_some(Event::TimerFired(*timer));
        let events: Vec<Event> = self.deadlines.iter().filter_map(fired).collect();
        if events.is_empty() {
            self.reconcile_timer(ctx);
        }
        self.deadlines.retain(|(_, at)| *at > now);
        events
    }
}
