//! A step: the facts and effects of one event.

use crate::{Effect, Fact};

/// What an event leads to: facts to commit, then effects to perform.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Facts in order. They are durable before the first effect.
    pub facts: Vec<Fact>,
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
