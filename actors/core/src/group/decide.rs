//! The dispatch of events: each is decided by one method, in the file of its noun.

use uuid::Uuid;

use super::{EffectiveSettings, Group, Rejected};
use crate::{AgentOutput, Attempt, CompactionId, Effect, Event, Fact, Now, Step, Task};

/// A group while it decides on one event. Each recorded fact is applied at once.
pub(super) struct Transition<'a> {
    pub(super) group: &'a mut Group,
    pub(super) now: Now,
    pub(super) settings: &'a EffectiveSettings,
    pub(super) fresh: &'a mut dyn FnMut() -> Uuid,
    step: Step,
}

impl<'a> Transition<'a> {
    /// Begins the transition for one event.
    pub(super) fn new(
        group: &'a mut Group,
        now: Now,
        settings: &'a EffectiveSettings,
        fresh: &'a mut dyn FnMut() -> Uuid,
    ) -> Self {
        Self { group, now, settings, fresh, step: Step::default() }
    }

    /// Decides on the event. A rejected event changes nothing.
    pub(super) fn decide(mut self, event: Event) -> Result<Step, Rejected> {
        match event {
            // Output of a run that has ended, or was never this group's, is dropped.
            Event::OutputReceived { run, .. }
            | Event::OutputRejected { run, .. }
            | Event::StderrMatched { run, .. }
            | Event::RequestRefused { run, .. }
            | Event::PermissionAsked { run, .. }
                if !self.group.is_live_run(run) => {}
            Event::Configured(settings) => self.configure(settings)?,
            Event::Submitted(task) => self.submit(*task)?,
            Event::CancelRequested(task) => self.cancel(task)?,
            Event::Archived => self.archive(),
            Event::PurgeOrdered => self.order_purge(),
            Event::Paused => self.pause()?,
            Event::Resumed => self.resume()?,
            Event::Stopped => self.stop_run()?,
            Event::SlotGranted => self.claim(),
            Event::LockAnswered { task, key, answer } => self.lock_answered(task, key, answer),
            Event::LockLost { task } => self.lock_lost(task),
            Event::AgentReady {
                run,
                pid,
                session,
                continuity,
                provenance,
                is_forgetful,
                prompts,
                loss,
            } => {
                let (given, can) = ((session, provenance), (is_forgetful, prompts));
                self.agent_ready(run, pid, given, (continuity, loss), can);
            }
            Event::Signalled { run, signal } => self.signalled(run, &signal),
            Event::ProvenanceGiven { run, provenance } => self.provenance_given(run, provenance),
            Event::StderrMatched { run, line, signal } => {
                self.record(Fact::StderrMatched { run, line });
                self.signalled(run, &signal);
            }
            Event::SessionOpened { run, id, opened } => self.session_opened(run, id, opened),
            Event::OutputReceived { lines, summary, session, after_prompt, .. } => {
                let named = session.as_ref().map(|session| &*session.0);
                let mut summary = self.group.session_cursor.counted(named, summary);
                let used = summary.usage.as_ref().map(|usage| usage.used);
                let earlier = self.group.earlier_task_of(&summary, after_prompt);
                let late = earlier.map(|(task, _)| task);
                summary.is_early = earlier.is_some_and(|(_, is_sure)| is_sure);
                self.end_retry_of(late);
                self.record(Fact::AgentOutput(AgentOutput { lines, summary, late }));
                self.measure_compaction(used);
            }
            Event::OutputRejected { run, reason, bytes } => {
                self.record_bare_output(Fact::AgentOutputRejected { run, reason, bytes });
            }
            Event::RequestRefused { run, method } => {
                self.record_bare_output(Fact::RequestRefused { run, method });
            }
            Event::PermissionAsked { run, lines, asked } => {
                self.permission_asked(run, lines, *asked);
            }
            Event::PermissionAnswered { permission, choice, by } => {
                self.permission_answered(permission, choice, by)?;
            }
            Event::PromptAnswered { run, id, reply, response } => {
                self.prompt_answered(run, id, reply, response);
            }
            Event::AgentClosed(run) => self.agent_closed(run),
            Event::AgentExited { run, exit } => self.agent_exited(run, exit),
            Event::TimerFired(timer) => self.timer_fired(timer),
            Event::Evicted { run } if !self.group.is_evictable(run) => return Ok(self.step),
            Event::Evicted { run } => self.evict(run),
            // A server that ends begins nothing: it requests no lock either.
            Event::DrainStarted => {
                self.drain_started();
                return Ok(self.step);
            }
            Event::DrainTimedOut => {
                self.drain_timed_out();
                return Ok(self.step);
            }
            Event::DrainEnded => {
                self.drain_ended();
                return Ok(self.step);
            }
            Event::PromptWithheld { run, id } => self.prompt_withheld(run, id),
            Event::Recovered(recovery) => self.recovered(recovery),
        }
        self.reconcile_run();
        self.reconcile_lock();
        self.reconcile_purge();
        Ok(self.step)
    }

    /// Applies the fact and adds it to the step. Returns its place's number.
    pub(super) fn record(&mut self, fact: Fact) -> u64 {
        let recorded = self.group.record(fact, self.now.wall);
        let seq = recorded.place.seq;
        self.step.facts.push(recorded);
        seq
    }

    /// Adds an effect to the step.
    pub(super) fn emit(&mut self, effect: Effect) {
        self.step.effects.push(effect);
    }

    /// Makes a new compaction id.
    pub(super) fn compaction_id(&mut self) -> CompactionId {
        CompactionId((self.fresh)())
    }

    /// Returns the task whose prompt is in flight, and its attempt.
    pub(super) fn running(&self) -> Option<(&Task, &Attempt)> {
        let current = self.group.current.as_ref()?;
        Some((&current.task, current.attempt.as_ref()?))
    }
}
