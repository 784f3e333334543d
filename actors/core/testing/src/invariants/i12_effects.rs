//! I12, I7, I16: each fact that orders something has its effect in the same step, and no effect is
//! without its fact: so a prompt is sent once, and only after its START is durable.

use greenroom_core::{Effect, EndReason, Existence, Fact, Group, Recorded, RunPhase, TaskId};

use super::{Checked, Invariant, Played, ensure};

#[derive(Default)]
pub struct Effects {
    /// The task whose prompt is in flight, and whether that was cancelled.
    in_flight: Option<(TaskId, bool)>,
}

impl Effects {
    /// Checks that a fact or a state calls for the effect.
    fn check_effect(&mut self, effect: &Effect, step: &Played) -> Checked {
        let group = &step.group;
        let run = match effect {
            Effect::Launch { run, .. }
            | Effect::Prompt { run, .. }
            | Effect::Cancel { run, .. }
            | Effect::OpenSession { run, .. }
            | Effect::FollowSession { run, .. }
            | Effect::Answer { run, .. }
            | Effect::Stop { run, .. } => *run,
            Effect::AcquireLock { .. } | Effect::ReleaseLock { .. } => return Ok(()),
            Effect::Purge => return check_purge(group),
        };
        let live = group.run().filter(|live| live.id == run);
        ensure!(live.is_some(), "an effect for {run}, which is not the group's: {effect:?}");
        let stated = |calls: &dyn Fn(&Recorded) -> bool| step.facts.iter().any(calls);
        match effect {
            Effect::Launch { may_replace, .. } => {
                let is_first = group.current().is_none_or(|task| task.attempt == 0)
                    && group.state().crash_loop.crashes == 0;
                ensure!(!may_replace || !is_first, "I16: {run} gives its session up at once");
                let starts = |it: &Recorded| match it.fact {
                    Fact::RunStarted { run: started, .. } => started == run,
                    _ => false,
                };
                ensure!(stated(&starts), "AM-1: {run} is launched without a fact");
            }
            Effect::Prompt { id, session, .. } => {
                let sent = |it: &Recorded| {
                    it.place.seq == *id && matches!(it.fact, Fact::PromptSent { .. })
                };
                ensure!(stated(&sent), "I7, AM-2: prompt {id} is sent without its fact");
                let ready = live.is_some_and(|live| live.phase == RunPhase::Ready);
                ensure!(ready, "I7: prompt {id} goes to a run that is not ready: {live:?}");
                let in_force = group.state().session_id() == Some(session);
                ensure!(in_force, "I7: prompt {id} goes to another session");
            }
            Effect::OpenSession { id, .. } => {
                let given = |it: &Recorded| {
                    it.place.seq == *id && matches!(it.fact, Fact::SummaryGiven { .. })
                };
                ensure!(stated(&given), "{id} opens a session with no summary given");
            }
            Effect::Cancel { .. } => {
                let Some((task, is_cancelled)) = &mut self.in_flight else {
                    return Err("a cancel is sent and no prompt runs".into());
                };
                ensure!(!*is_cancelled, "the prompt of {task} is cancelled twice");
                *is_cancelled = true;
            }
            Effect::FollowSession { session, .. } => {
                let in_force = group.state().session_id() == Some(session);
                ensure!(in_force, "AM-13: {run} follows its agent to another session");
            }
            Effect::Answer { .. } | Effect::Stop { .. } => {}
            Effect::AcquireLock { .. } | Effect::ReleaseLock { .. } | Effect::Purge => {}
        }
        Ok(())
    }

    /// Whether the effects of the step do what the fact orders.
    fn is_ordered(&self, Recorded { place, fact }: &Recorded, step: &Played) -> bool {
        let count = |matches: &dyn Fn(&Effect) -> bool| {
            step.effects.iter().filter(|effect| matches(effect)).count()
        };
        let stops = |effect: &Effect| matches!(effect, Effect::Stop { .. });
        match fact {
            Fact::PromptSent { .. } => {
                count(&|it| matches!(it, Effect::Prompt { id, .. } if *id == place.seq)) == 1
            }
            Fact::SummaryGiven { .. } => {
                count(&|it| matches!(it, Effect::OpenSession { id, .. } if *id == place.seq)) == 1
            }
            Fact::RunStarted { run, .. } => {
                count(&|it| matches!(it, Effect::Launch { run: started, .. } if started == run))
                    == 1
            }
            Fact::RunStopping { .. } => step.stdout_closed || 0 < count(&stops),
            Fact::TurnCut { task, .. } | Fact::CancelRequested { task } => match self.in_flight {
                Some((running, false)) if running == *task => 0 < count(&stops),
                _ => true,
            },
            Fact::CancelSent { run } => {
                count(&|it| matches!(it, Effect::Cancel { run: target, .. } if target == run)) == 1
            }
            Fact::SegmentEnded { end_reason: EndReason::AcpSessionIdChanged, .. } => {
                count(&|it| matches!(it, Effect::FollowSession { .. })) == 1
            }
            Fact::LockAsked { task } => {
                count(&|it| matches!(it, Effect::AcquireLock { task: asks, .. } if asks == task))
                    == 1
            }
            _ => true,
        }
    }
}

impl Invariant for Effects {
    fn fact(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        match fact {
            Fact::PromptSent { .. } => self.in_flight = place.task.map(|task| (task, false)),
            Fact::TurnSettled { .. } => self.in_flight = None,
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        step.effects.iter().try_for_each(|effect| self.check_effect(effect, step))?;
        let idle = step.facts.iter().find(|recorded| !self.is_ordered(recorded, step));
        ensure!(idle.is_none(), "I12: {idle:?} has no effect, or several: {:?}", step.effects);
        Ok(())
    }
}

fn check_purge(group: &Group) -> Checked {
    let is_over = group.run().is_none() && group.current().is_none();
    let is_due = is_over && group.state().existence == Existence::Purging;
    ensure!(is_due, "{group:?} is purged");
    Ok(())
}
