//! The invariants between two events.

use greenroom_core::{Blocked, RunPhase, Timer, pool::Activity};

use super::{Checked, LIMITS, World, actions::TimerKind, ensure, events};

impl World {
    /// Checks the invariants between two events: every wait has an end (I12).
    pub(super) fn at_rest(&self) -> Checked {
        let (group, agent) = (&self.group, self.agent.as_ref());
        let run = group.run();
        ensure!(
            run.map(|run| run.id) == agent.map(|agent| agent.run),
            "the group has run {run:?}, which is not the live one"
        );
        let stopping = run.is_some_and(|run| run.phase == RunPhase::Stopping);
        let ends = agent
            .is_some_and(|agent| agent.is_stopping || (agent.closed && (agent.ready || stopping)));
        ensure!(stopping == ends, "exactly the stopping run is stopping: {run:?}");
        let held: Vec<_> = group.lease().into_iter().collect();
        let granted = self.leases.iter().map(|(key, holder, token)| (key, holder.as_str(), *token));
        ensure!(
            held == granted.collect::<Vec<_>>(),
            "HL-7: {held:?} is held, and granted are {:?}",
            self.leases
        );
        self.waits_end()?;
        self.timers_hold()
    }

    fn waits_end(&self) -> Checked {
        let group = &self.group;
        if let Some(current) = group.current() {
            let ready = group.run().is_some_and(|run| run.phase == RunPhase::Ready);
            ensure!(group.run().is_some(), "I12: {} has no run to wait for", current.id);
            let in_flight = self.checker.in_flight().is_some();
            ensure!(in_flight || !ready, "I12: {} is not started", current.id);
            let starts = (!in_flight && group.waiting().len() == 0).then_some(Blocked::Agent);
            ensure!(
                starts.is_none() || group.blocked_by() == starts,
                "I12: the start is not reported"
            );
            return Ok(());
        }
        let Some(next) = group.waiting().next() else {
            ensure!(!group.wants_slot(), "a slot is wanted for nothing");
            return Ok(());
        };
        let is_requested = self.lock_requests.iter().any(|(task, _)| *task == next.id);
        let timers = self.timers();
        let has_timer = |kind| timers.iter().any(|(timer, _)| events::timer_kind(timer) == kind);
        let blocked_by = group.blocked_by();
        let expected = match (group.state().hold.reason, group.state().paused) {
            (Some(_), _) => Blocked::Held,
            (None, true) => Blocked::Paused,
            (None, false) if self.checker.wants_login() => Blocked::AgentAuth,
            (None, false) if self.checker.backs_off(next.id) => Blocked::Backoff,
            (None, false) if group.wants_slot() => Blocked::Slot,
            (None, false) => Blocked::Lock,
        };
        ensure!(
            blocked_by == Some(expected),
            "I12: {} waits by {blocked_by:?}, not {expected:?}",
            next.id
        );
        let ends = match expected {
            Blocked::Backoff => has_timer(TimerKind::Backoff) || has_timer(TimerKind::Launch),
            Blocked::AgentAuth => has_timer(TimerKind::Login),
            Blocked::Lock => is_requested || has_timer(TimerKind::Lock) || self.shut_down,
            _ => true,
        };
        ensure!(
            ends,
            "I12: {} waits by {blocked_by:?}, and nothing ends that: {timers:?}",
            next.id
        );
        let wants_slot = expected == Blocked::Slot;
        ensure!(wants_slot == group.wants_slot(), "a slot is wanted, and {blocked_by:?}");
        Ok(())
    }

    fn timers_hold(&self) -> Checked {
        let (group, run) = (&self.group, self.group.run());
        let timers = self.timers();
        // An idle run stays as long as a context would be lost with it.
        let stays = group.activity() == Some(Activity::IdleForgetful);
        let ready = !stays && run.is_some_and(|run| run.phase == RunPhase::Ready);
        ensure!(!ready || !timers.is_empty(), "I12: a ready run has no deadline: {group:?}");
        let active = group.active_compaction().map(|active| active.id);
        let bounded = |id| timers.iter().any(|(timer, _)| *timer == Timer::Compaction(id));
        ensure!(active.is_none_or(bounded), "AM-28: {active:?} has no deadline");
        for open in group.permissions() {
            let timer = (Timer::Permission(open.permission), LIMITS.permission_ms);
            ensure!(timers.contains(&timer), "C22: {} has no deadline", open.permission);
        }
        for (timer, _) in timers {
            match timer {
                Timer::Attempt(task) | Timer::Cancel(task) => {
                    let runs = self.checker.in_flight() == Some(task);
                    ensure!(runs, "a deadline for {task}, which does not run");
                }
                Timer::Idle(id, seq) => {
                    let idle = group.current().is_none() && group.state().last_seq == seq;
                    let is_live = run.is_some_and(|run| run.id == id);
                    let asks = !group.permissions().is_empty();
                    ensure!(idle && is_live && active.is_none(), "{id} is not idle at {seq}");
                    ensure!(!asks, "{id} is not idle: a permission is open");
                }
                Timer::Compaction(id) => {
                    ensure!(active == Some(id), "a deadline for {id}, which is over");
                }
                Timer::Lock(task, _) => {
                    let waits = group.waiting().any(|waiting| waiting.id == task);
                    ensure!(waits, "HL-2: {task} does not wait for its lock");
                }
                Timer::Permission(id) => {
                    let open = group.permissions().iter().any(|open| open.permission == id);
                    ensure!(open, "a deadline for {id}, which is resolved");
                }
                // See `invariants/i12_timers.rs`.
                Timer::Backoff(..) | Timer::Launch(_) | Timer::Login(_) | Timer::Queued(_) => {}
            }
        }
        Ok(())
    }
}
