//! All interleavings of events that race with each other.

use greenroom_core::{Fact, HoldReason, Task, TaskState};
use greenroom_testing::world::{Action, Drain, World};

/// A situation and the lanes that race in it. The actions of one lane keep their order.
#[derive(Clone)]
pub struct Race {
    pub given: Vec<Action>,
    pub lanes: Vec<(&'static str, Vec<Action>)>,
}

/// The outcome of one interleaving.
pub struct Outcome {
    /// The lane of each action, in order.
    order: Vec<&'static str>,
    /// All facts since the race began.
    pub facts: Vec<Fact>,
    /// All ended tasks, in order of acceptance.
    pub tasks: Vec<Task>,
    /// Why the group was on hold at the end of the race.
    pub held: Option<HoldReason>,
    pub segment: u32,
    pub compactions: u64,
}

pub fn race(given: &[&[Action]], lanes: &[(&'static str, &[Action])]) -> Race {
    let lanes = lanes.iter().map(|(name, actions)| (*name, actions.to_vec())).collect();
    Race { given: given.concat(), lanes }
}

impl Race {
    /// Returns the race with one more lane.
    pub fn and(&self, name: &'static str, actions: &[Action]) -> Self {
        let mut race = self.clone();
        race.lanes.push((name, actions.to_vec()));
        race
    }

    /// Plays every interleaving, and checks its outcome. Returns the number of interleavings.
    pub fn in_every_order(&self, drain: Drain, check: impl Fn(&Outcome)) -> usize {
        let mut orders = Vec::new();
        self.extend(&mut Vec::new(), &mut vec![0; self.lanes.len()], &mut orders);
        for order in &orders {
            let outcome = self.play(order, drain).unwrap_or_else(|why| {
                panic!("in the order {:?}: {why}", self.names(order));
            });
            let checked =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&outcome)));
            if let Err(why) = checked {
                let kinds: Vec<_> = outcome.facts.iter().map(Fact::kind).collect();
                eprintln!("in the order {:?} from {:?}: {kinds:#?}", outcome.order, self.given);
                std::panic::resume_unwind(why);
            }
        }
        orders.len()
    }

    fn extend(&self, order: &mut Vec<usize>, played: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        let mut is_whole = true;
        for lane in 0..self.lanes.len() {
            if played[lane] < self.lanes[lane].1.len() {
                is_whole = false;
                order.push(lane);
                played[lane] += 1;
                self.extend(order, played, all);
                order.pop();
                played[lane] -= 1;
            }
        }
        if is_whole {
            all.push(order.clone());
        }
    }

    fn names(&self, order: &[usize]) -> Vec<&'static str> {
        order.iter().map(|lane| self.lanes[*lane].0).collect()
    }

    fn play(&self, order: &[usize], drain: Drain) -> Result<Outcome, String> {
        let mut world = World::default();
        for next in &self.given {
            world.play(*next)?;
        }
        let (mut facts, mut played) = (Vec::new(), vec![0; self.lanes.len()]);
        for lane in order {
            let next = self.lanes[*lane].1[played[*lane]];
            played[*lane] += 1;
            facts.extend(world.play(next)?);
        }
        let held = world.group.state().hold.reason;
        facts.extend(world.drain(drain)?);
        let facts = facts.into_iter().flat_map(|(_, facts)| facts).map(|fact| fact.fact).collect();
        let tasks = world.tasks();
        let state = world.group.state();
        let (segment, compactions) = (state.segment, state.compacting.count);
        Ok(Outcome { order: self.names(order), facts, tasks, held, segment, compactions })
    }
}

impl Outcome {
    /// Whether the `n`-th action of the lane `first` came before the `m`-th of `second`, counted
    /// from 0.
    pub fn before(&self, (first, n): (&str, usize), (second, m): (&str, usize)) -> bool {
        let place = |name: &str, number| {
            let places = self.order.iter().enumerate().filter(|(_, lane)| **lane == name);
            let place = places.map(|(place, _)| place).nth(number);
            place.unwrap_or_else(|| panic!("{name} has no action {number}"))
        };
        place(first, n) < place(second, m)
    }

    /// Whether the first action of all was this lane's.
    pub fn is_first(&self, name: &str) -> bool {
        self.order.first() == Some(&name)
    }

    /// Returns how the task of this number ended: its state, its error's code, its attempts.
    pub fn end(&self, ordinal: usize) -> (TaskState, Option<&str>, u32) {
        let task = &self.tasks[ordinal - 1];
        let error = task.ending().error.as_ref().map(|error| error.code.as_str());
        (task.state(), error, task.attempt)
    }

    /// Returns the number of facts of this kind.
    pub fn count(&self, kind: &str) -> usize {
        self.facts.iter().filter(|fact| fact.kind().ends_with(kind)).count()
    }
}
