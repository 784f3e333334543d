//! Continues a history until nothing is left to do.

use greenroom_core::{Continuity, ExitReason, StopReason, Timer};

use super::{
    Checked, Committed, World,
    actions::{Action, LockReply},
    ensure,
};

/// The agent's behaviour from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// It answers.
    Answers,
    /// It starts, never answers, and ignores a cancel.
    Silent,
    /// It cannot be started.
    NeverStarts,
    /// It starts and dies of each prompt, without a word.
    DiesOfPrompts,
}

/// At most six tasks wait, and one of the group's own; each has at most six attempts, of at most
/// eight actions each.
const ACTIONS_MAX: usize = 7 * 6 * 8;
/// Likewise; and a stopping run may come before the first one.
const LAUNCHES_MAX: usize = 7 * 6 + 1;

impl World {
    /// Plays the expected actions until nothing is left to do (I12).
    pub fn drain(&mut self, agent: Drain) -> Checked<Vec<Committed>> {
        let mut committed = Vec::new();
        // A start follows a shutdown.
        if self.shut_down {
            committed.extend(self.play(Action::Crash)?);
        }
        let launches = self.checker.launches();
        for _ in 0..ACTIONS_MAX {
            let Some(next) = self.next_action(agent) else { break };
            committed.extend(self.play(next)?);
        }
        let launches = self.checker.launches() - launches;
        ensure!(launches <= LAUNCHES_MAX, "I12: {launches} launches");
        ensure!(self.group.waiting().len() == 0, "I12: tasks wait for ever: {:?}", self.group);
        ensure!(self.group.current().is_none(), "I12: a task hangs for ever: {:?}", self.group);
        let active = self.group.active_compaction();
        ensure!(active.is_none(), "I5, I12: a compaction hangs for ever: {active:?}");
        let open = self.group.permissions();
        ensure!(open.is_empty(), "I12, C22: a permission stays open for ever: {open:?}");
        ensure!(self.leases.is_empty(), "HL-7: a lock is held for ever: {:?}", self.leases);
        self.checker.all_ended()?;
        Ok(committed)
    }

    fn next_action(&self, behaviour: Drain) -> Option<Action> {
        let answers = behaviour == Drain::Answers;
        match &self.agent {
            Some(agent) if agent.is_stopping || agent.closed => {
                return Some(Action::Exit(ExitReason::Stopped));
            }
            Some(agent) if !agent.ready && behaviour == Drain::NeverStarts => {
                return Some(Action::Exit(ExitReason::StartFailed));
            }
            Some(agent) if !agent.ready => return Some(Action::Ready(Continuity::New)),
            Some(agent) if !agent.prompts.is_empty() && behaviour == Drain::DiesOfPrompts => {
                return Some(Action::Exit(ExitReason::Exited));
            }
            Some(agent) if !agent.prompts.is_empty() && answers => {
                return Some(Action::AnswerPrompt(StopReason::EndTurn));
            }
            Some(agent) if !agent.opening.is_empty() && answers => {
                return Some(Action::OpenSession(true));
            }
            Some(_) | None => {}
        }
        if !self.lock_requests.is_empty() {
            return Some(Action::AnswerLock(LockReply::Acquired));
        }
        if self.group.wants_slot() {
            return Some(Action::GrantSlot);
        }
        let state = self.group.state();
        if (state.paused || state.hold.reason.is_some()) && self.group.waiting().len() > 0 {
            return Some(Action::Resume);
        }
        // An idle agent may stay; every other timer fires, the soonest first.
        let timers = self.timers().into_iter().enumerate();
        let ends = timers.filter(|(_, (timer, _))| !matches!(timer, Timer::Idle(..)));
        let (place, _) = ends.min_by_key(|(_, (_, ms))| *ms)?;
        Some(Action::FireTimer(place as u8))
    }
}
