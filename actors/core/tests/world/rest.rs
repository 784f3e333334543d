//! What holds between two events.

use greenroom_core::{Blocked, CompactionStatus, Event, Expiry, Recovery, RunPhase, Write};
use uuid::Uuid;

use super::{Group, Held, LIMITS, World, ensure, events, kept, moves::Bound};

impl World {
    /// A database does not keep a run's phase and what it was seen to do, nor a prompt's id, nor
    /// the lock, nor compactions of the run that ended: none of them makes a difference once the
    /// group has recovered. Nothing of a past run is heard any more, so that no late signal can be
    /// about those compactions; and the lock's row goes with its holder, so that a compaction which
    /// still waits asks again.
    pub(super) fn forgets_well(&self) -> Held {
        let recovered = |mut group: Group| {
            let mut fresh = || Uuid::from_u128(self.ids + 1);
            let (event, now) = (Event::Recovered(Recovery::Restart), self.moment());
            let step = group.apply(event, now, &self.terms(), &mut fresh);
            let step = step.map_err(|rejected| rejected.to_string())?;
            let outcome = |write: &Write| match write {
                Write::TaskEnded { task, state, interrupted, .. } => {
                    Some(format!("{task} {state:?} {interrupted:?}"))
                }
                Write::CompactionEnded(own)
                    if matches!(
                        own.status,
                        CompactionStatus::Cancelled | CompactionStatus::Abandoned
                    ) =>
                {
                    Some(format!("{} cut off", own.id))
                }
                Write::CompactionEnded(own) => Some(format!("{} {:?}", own.id, own.status)),
                Write::LockAsked { .. } | Write::LockReleased { .. } => None,
                other => Some(other.kind().to_owned()),
            };
            let outcomes: Vec<String> = step.writes.iter().filter_map(outcome).collect();
            Held::Ok((kept(&group), outcomes))
        };
        let live = recovered(self.group.clone())?;
        let forgetful = recovered(self.reference.restore_forgetful())?;
        ensure!(
            live == forgetful,
            "I13: what is not stored makes a difference:\n  {forgetful:?}\n  {live:?}"
        );
        Ok(())
    }

    /// What holds between two events: whatever waits has somebody who ends the wait (I12).
    pub(super) fn at_rest(&self) -> Held {
        self.checker.at_rest(&self.group)?;
        let (group, agent) = (&self.group, self.agent.as_ref());
        let run = group.run();
        ensure!(
            run.map(|run| run.id) == agent.map(|agent| agent.run),
            "the group believes in run {run:?}, which is not the one that lives"
        );
        let stopping = run.is_some_and(|run| run.phase == RunPhase::Stopping);
        let ends = agent
            .is_some_and(|agent| agent.told_to_end || (agent.closed && (agent.ready || stopping)));
        ensure!(stopping == ends, "a run that is to end is ending, and no other: {run:?}");
        let held: Vec<_> = group.lease().into_iter().collect();
        let given = self.leases.iter().map(|(key, holder, token)| (key, holder.as_str(), *token));
        ensure!(
            held == given.collect::<Vec<_>>(),
            "HL-7: {held:?} is held, and given are {:?}",
            self.leases
        );
        self.waits_end()?;
        self.bounds_hold()
    }

    fn waits_end(&self) -> Held {
        let group = &self.group;
        if let Some(current) = group.current() {
            let ready = group.run().is_some_and(|run| run.phase == RunPhase::Ready);
            ensure!(group.run().is_some(), "I12: {} has no run to wait for", current.id);
            let in_flight = self.checker.in_flight().is_some();
            ensure!(in_flight || !ready, "I12: {} is not started", current.id);
            let starts = (!in_flight && group.waiting().len() == 0).then_some(Blocked::Agent);
            ensure!(starts.is_none() || group.blocked_by() == starts, "I12: no word of the start");
            return Ok(());
        }
        let Some(next) = group.waiting().next() else {
            ensure!(!group.wants_slot(), "a slot is wanted for nothing");
            return Ok(());
        };
        let asked = self.lock_requests.iter().any(|(task, _)| *task == next.id);
        let bounds = self.bounds();
        let bounded = |kind| bounds.iter().any(|(expiry, _)| events::bound(expiry) == kind);
        let said = group.blocked_by();
        let expected = match (group.head().held, group.head().paused) {
            (Some(_), _) => Blocked::Held,
            (None, true) => Blocked::Paused,
            (None, false) if self.checker.backs_off(next.id) => Blocked::Backoff,
            (None, false) if group.wants_slot() => Blocked::Slot,
            (None, false) => Blocked::Lock,
        };
        ensure!(said == Some(expected), "I12: {} waits by {said:?}, not {expected:?}", next.id);
        let ends = match expected {
            Blocked::Backoff => bounded(Bound::Backoff) || bounded(Bound::Launch),
            Blocked::Lock => asked || bounded(Bound::Lock) || self.shut_down,
            _ => true,
        };
        ensure!(ends, "I12: {} waits by {said:?}, and nothing ends that: {bounds:?}", next.id);
        let goes_on = expected == Blocked::Slot;
        ensure!(goes_on == group.wants_slot(), "a slot is wanted, and {said:?}");
        Ok(())
    }

    fn bounds_hold(&self) -> Held {
        let (group, run) = (&self.group, self.group.run());
        let bounds = self.bounds();
        let ready = run.is_some_and(|run| run.phase == RunPhase::Ready);
        ensure!(!ready || !bounds.is_empty(), "I12: a ready run has no deadline: {group:?}");
        let active = group.active_compaction().map(|active| active.id);
        let bounded = |id| bounds.iter().any(|(expiry, _)| *expiry == Expiry::Compaction(id));
        ensure!(active.is_none_or(bounded), "AM-28: {active:?} has no deadline");
        self.checker.attempts().bounded(&bounds, group, self.moment())?;
        for own in group.permissions() {
            let bound = (Expiry::Permission(own.permission), LIMITS.permission_ms);
            ensure!(bounds.contains(&bound), "C22: {} is not bounded", own.permission);
        }
        for (expiry, _) in bounds {
            match expiry {
                Expiry::Turn(task) | Expiry::Cancel(task) => {
                    let runs = self.checker.in_flight() == Some(task);
                    ensure!(runs, "a deadline for {task}, which does not run");
                }
                Expiry::Idle(id, seq) => {
                    let idle = group.current().is_none() && group.head().last_seq == seq;
                    let own = run.is_some_and(|run| run.id == id);
                    let asks = !group.permissions().is_empty();
                    ensure!(idle && own && active.is_none(), "{id} is not idle at {seq}");
                    ensure!(!asks, "{id} is not idle: somebody is asked");
                }
                Expiry::Compaction(id) => {
                    ensure!(active == Some(id), "a deadline for {id}, which is over");
                }
                Expiry::Lock(task, _) => {
                    let waits = group.waiting().any(|waiting| waiting.id == task);
                    ensure!(waits, "HL-2: {task} does not wait for its lock");
                }
                Expiry::Permission(id) => {
                    let open = group.permissions().iter().any(|own| own.permission == id);
                    ensure!(open, "a deadline for {id}, which is decided on");
                }
                // See `Attempts::bounded`.
                Expiry::Backoff(..) | Expiry::Launch(_) | Expiry::Queued(_) => {}
            }
        }
        Ok(())
    }
}
