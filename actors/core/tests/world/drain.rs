//! How a history goes on until nothing is left to do.

use greenroom_core::{Continuity, ExitReason, Expiry, StopReason};

use super::{
    Committed, Held, World, ensure,
    moves::{LockSaid, Move},
};

/// What the agent does from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// It answers.
    Answers,
    /// It starts, never answers, and heeds no cancel.
    Silent,
    /// It cannot be started.
    NeverStarts,
    /// It starts and dies of each prompt, without a word.
    DiesOfPrompts,
}

/// Six tasks wait at most, and one of the group's own; each is tried six times at most, and no
/// try takes more than eight moves.
const MOVES_MAX: usize = 7 * 6 * 8;
/// Likewise; and a run that was told to end may stand before the first one.
const LAUNCHES_MAX: usize = 7 * 6 + 1;

impl World {
    /// Lets the world do what it should until nothing is left to do (I12).
    pub fn drain(&mut self, agent: Drain) -> Held<Vec<Committed>> {
        let mut committed = Vec::new();
        // After a shutdown comes a start.
        if self.shut_down {
            committed.extend(self.play(Move::Crash)?);
        }
        let launches = self.checker.launches();
        for _ in 0..MOVES_MAX {
            let Some(next) = self.next_in_order(agent) else { break };
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

    fn next_in_order(&self, does: Drain) -> Option<Move> {
        let answers = does == Drain::Answers;
        match &self.agent {
            Some(agent) if agent.told_to_end || agent.closed => {
                return Some(Move::Exit(ExitReason::Stopped));
            }
            Some(agent) if !agent.ready && does == Drain::NeverStarts => {
                return Some(Move::Exit(ExitReason::StartFailed));
            }
            Some(agent) if !agent.ready => return Some(Move::Ready(Continuity::New)),
            Some(agent) if !agent.prompts.is_empty() && does == Drain::DiesOfPrompts => {
                return Some(Move::Exit(ExitReason::Exited));
            }
            Some(agent) if !agent.prompts.is_empty() && answers => {
                return Some(Move::Answer(StopReason::EndTurn));
            }
            Some(agent) if !agent.opening.is_empty() && answers => return Some(Move::Open(true)),
            Some(_) | None => {}
        }
        if !self.lock_requests.is_empty() {
            return Some(Move::Lock(LockSaid::Taken));
        }
        if self.group.wants_slot() {
            return Some(Move::Grant);
        }
        let head = self.group.head();
        if (head.paused || head.held.is_some()) && self.group.waiting().len() > 0 {
            return Some(Move::Resume);
        }
        // An idle agent may stay; anything else that is bounded in time gets that time, the soonest
        // first.
        let bounds = self.bounds().into_iter().enumerate();
        let ends = bounds.filter(|(_, (expiry, _))| !matches!(expiry, Expiry::Idle(..)));
        let (place, _) = ends.min_by_key(|(_, (_, ms))| *ms)?;
        Some(Move::Expire(place as u8))
    }
}
