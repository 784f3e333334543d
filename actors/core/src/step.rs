//! A step: the facts and effects of one event, and the place of each fact in the group's log.

use crate::{Effect, Fact, RunId, TaskId};

/// What an event leads to: facts to commit, then effects to perform.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Facts in order. They are durable before the first effect.
    pub facts: Vec<Recorded>,
    /// Effects in order.
    pub effects: Vec<Effect>,
}

impl Step {
    /// Appends another step's facts and effects.
    pub fn extend(&mut self, later: Step) {
        self.facts.extend(later.facts);
        self.effects.extend(later.effects);
    }
}

/// A fact at its place in the group's log. [`crate::Group::record`] gives it the place; a stored
/// log has it in the columns of its frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The place.
    pub place: Place,
    /// The fact.
    pub fact: Fact,
}

impl Recorded {
    /// Returns the last frame up to and including the fact.
    pub fn last_seq(&self) -> u64 {
        self.place.seq + self.fact.frames() - 1
    }
}

/// Where a fact is in its group's log, and what its frames belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of its first frame; of the next frame, if it is none (I3).
    pub seq: u64,
    /// The open segment; that which the fact opens.
    pub segment: u32,
    /// The run that is alive; that which the fact starts.
    pub run: Option<RunId>,
    /// The task that the fact names, else the one that has its slot. Of an agent's output, the task
    /// whose attempt runs.
    pub task: Option<TaskId>,
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_later_step_follows_the_earlier_one() {
        let step = |seq: u64| {
            let id = Uuid::from_u128(seq.into());
            let place = Place { seq, segment: 0, run: None, task: None };
            let fact = Fact::CancelRequested { task: TaskId(id) };
            let effect = Effect::OpenSession { run: RunId(id), id: seq };
            (Recorded { place, fact }, effect)
        };
        let [first, second] = [step(1), step(2)];
        let single = |(fact, effect)| Step { facts: vec![fact], effects: vec![effect] };
        let mut both = single(first.clone());
        both.extend(single(second.clone()));
        let facts = vec![first.0, second.0];
        assert_eq!(both, Step { facts, effects: vec![first.1, second.1] });
    }
}
