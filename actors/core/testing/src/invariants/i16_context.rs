//! I16, AM-11, AM-13: the session in force is the one that the facts name, with its provenance; and
//! an agent with a new session for an old context says that the context was lost; and no run is
//! stopped for being idle with which a context would be lost.

use std::rc::Rc;

use greenroom_core::{
    Continuity, Fact, FailedStart, Provenance, Recorded, SessionId, StopReason, Timer,
};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure, is_answer};

/// Only worlds tell what a step began with.
#[derive(Default)]
pub struct Context {
    in_world: bool,
    session: Option<SessionId>,
    provenance: Option<Provenance>,
    /// Whether a prompt was sent in the session.
    is_prompted: bool,
    /// Whether a summary waits for the next prompt: the context is in it.
    has_summary: bool,
    /// Whether there was a context to lose as the step began, and whether a fact reports the loss.
    has_context: bool,
    is_lost: bool,
    /// Whether a run is ready in this step, or one ended that restored the session.
    is_replaced: bool,
    /// Whether the agent of this step's run does not know the session before.
    is_unknown: bool,
    /// Whether a run opened the session, and there was neither output nor a completed turn in it.
    is_unanswered: bool,
    /// Likewise, as the step began.
    had_no_answer: bool,
    /// Whether the step began with the end of an idle time.
    is_idle_over: bool,
    /// Whether the run's agent can restore no session.
    is_forgetful: bool,
}

impl Invariant for Context {
    fn begin(&mut self, step: &Rc<Begun>) {
        self.is_idle_over = matches!(step.trigger, Trigger::Expired(Timer::Idle(..)));
        (self.in_world, self.is_lost) = (true, false);
        self.is_unknown = step.trigger == Trigger::Ready(true);
        self.had_no_answer = self.is_unanswered;
        self.is_replaced = matches!(step.trigger, Trigger::Exited(_, _, FailedStart::InRestore));
        self.has_context = self.session.is_some() && self.is_prompted && !self.has_summary;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::SegmentStarted { session, provenance, .. } => {
                self.is_unanswered &= self.session.as_ref() == Some(session);
                self.is_prompted &= self.session.as_ref() == Some(session);
                self.session = Some(session.clone());
                self.provenance.clone_from(provenance);
            }
            Fact::ProvenanceNoted { provenance } => {
                let is_new = self.provenance.as_ref() != Some(provenance);
                ensure!(is_new, "AM-13: {:?} is noted twice", self.provenance);
                self.provenance = Some(provenance.clone());
            }
            Fact::PromptSent { .. } => self.is_prompted = true,
            Fact::AgentOutput(output) => self.is_unanswered &= !output.summary.has_output,
            Fact::PermissionOpened(_) => self.is_unanswered = false,
            fact if fact.is_bare_output() => self.is_unanswered = false,
            Fact::TurnSettled { stop_reason, .. }
                if is_answer(*stop_reason) && *stop_reason != StopReason::Error =>
            {
                self.is_unanswered = false;
            }
            Fact::RunReady { session, provenance, continuity, is_forgetful, prompts, .. } => {
                self.is_replaced = true;
                self.is_forgetful = *is_forgetful;
                // Facts of earlier versions lack the blocks, and their rows the mark.
                let is_new =
                    matches!(continuity, Continuity::New | Continuity::Lost) && prompts.is_some();
                let is_kept = !(self.is_unknown && self.had_no_answer);
                self.is_unanswered |= is_new;
                let lost = *continuity == Continuity::Lost && self.has_context && is_kept;
                let (is_said, in_world) = (self.is_lost, self.in_world);
                ensure!(!in_world || lost == is_said, "I16: {session}: {lost}, said {is_said}");
                self.session = Some(session.clone());
                self.provenance = provenance.clone().or(self.provenance.take());
            }
            Fact::RunStopping { run } if self.is_idle_over => {
                let forgets = self.is_forgetful && self.has_context;
                ensure!(!forgets, "I16: {run} is stopped for being idle, and its context is lost");
            }
            Fact::ContextLost { .. } => {
                let (has_context, in_world) = (self.has_context, self.in_world);
                ensure!(!in_world || has_context, "I16: a context is lost, and there was none");
                (self.session, self.provenance, self.is_lost) = (None, None, true);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let (is_lost, is_replaced) = (self.is_lost, self.is_replaced);
        ensure!(!is_lost || is_replaced, "I16: a context is lost, and no agent failed on it");
        let state = step.group.state();
        self.has_summary = state.pending_summary.is_some();
        let (session, provenance) = (state.session_id(), state.provenance());
        ensure!(self.session.as_ref() == session, "AM-11: {:?} is in force", self.session);
        ensure!(self.provenance.as_ref() == provenance, "AM-13: {:?} is known", self.provenance);
        let is_fresh = state.session.as_ref().is_some_and(|session| session.is_fresh);
        let expected = session.is_some() && !self.is_prompted;
        ensure!(is_fresh == expected, "I16: prompted {}", self.is_prompted);
        Ok(())
    }
}
