//! Every order in which some events may come that race with each other.

use greenroom_core::{Held, Task, TaskState, Write};

use crate::world::{Drain, Move, World};

/// A situation, and who races in it. What one of them does keeps its order.
#[derive(Clone)]
pub struct Race {
    pub given: Vec<Move>,
    pub lanes: Vec<(&'static str, Vec<Move>)>,
}

/// What came of one order.
pub struct Told {
    /// Whose move was made when.
    order: Vec<&'static str>,
    /// All facts since the race began.
    pub facts: Vec<Write>,
    /// All tasks, in the order of acceptance, as they ended.
    pub tasks: Vec<Task>,
    /// Whether the group was held when the race was over.
    pub held: Option<Held>,
    pub segment: u32,
    pub compactions: u64,
}

pub fn race(given: &[&[Move]], lanes: &[(&'static str, &[Move])]) -> Race {
    let lanes = lanes.iter().map(|(name, moves)| (*name, moves.to_vec())).collect();
    Race { given: given.concat(), lanes }
}

impl Race {
    /// With somebody else who races.
    pub fn and(&self, name: &'static str, moves: &[Move]) -> Self {
        let mut race = self.clone();
        race.lanes.push((name, moves.to_vec()));
        race
    }

    /// Plays every order, and has what came of it judged. How many there were.
    pub fn in_every_order(&self, does: Drain, judge: impl Fn(&Told)) -> usize {
        let mut orders = Vec::new();
        self.extend(&mut Vec::new(), &mut vec![0; self.lanes.len()], &mut orders);
        for order in &orders {
            let told = self.play(order, does).unwrap_or_else(|why| {
                panic!("in the order {:?}: {why}", self.names(order));
            });
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(&told)));
            if let Err(why) = judged {
                let kinds: Vec<_> = told.facts.iter().map(Write::kind).collect();
                eprintln!("in the order {:?} from {:?}: {kinds:#?}", told.order, self.given);
                std::panic::resume_unwind(why);
            }
        }
        orders.len()
    }

    fn extend(&self, order: &mut Vec<usize>, made: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        let mut is_whole = true;
        for lane in 0..self.lanes.len() {
            if made[lane] < self.lanes[lane].1.len() {
                is_whole = false;
                order.push(lane);
                made[lane] += 1;
                self.extend(order, made, all);
                order.pop();
                made[lane] -= 1;
            }
        }
        if is_whole {
            all.push(order.clone());
        }
    }

    fn names(&self, order: &[usize]) -> Vec<&'static str> {
        order.iter().map(|lane| self.lanes[*lane].0).collect()
    }

    fn play(&self, order: &[usize], does: Drain) -> Result<Told, String> {
        let mut world = World::default();
        for next in &self.given {
            world.play(*next)?;
        }
        let (mut facts, mut made) = (Vec::new(), vec![0; self.lanes.len()]);
        for lane in order {
            let next = self.lanes[*lane].1[made[*lane]];
            made[*lane] += 1;
            facts.extend(world.play(next)?.into_iter().flat_map(|(_, writes)| writes));
        }
        let held = world.group.head().held;
        facts.extend(world.drain(does)?.into_iter().flat_map(|(_, writes)| writes));
        let tasks = world.reference.tasks().cloned().collect();
        let head = world.group.head();
        let (segment, compactions) = (head.segment, head.compacting.count);
        Ok(Told { order: self.names(order), facts, tasks, held, segment, compactions })
    }
}

impl Told {
    /// Whether this one's `n`-th move came before that one's `m`-th, counted from 0.
    pub fn before(&self, (own, n): (&str, usize), (other, m): (&str, usize)) -> bool {
        let place = |name: &str, number| {
            let places = self.order.iter().enumerate().filter(|(_, lane)| **lane == name);
            let place = places.map(|(place, _)| place).nth(number);
            place.unwrap_or_else(|| panic!("{name} makes no move {number}"))
        };
        place(own, n) < place(other, m)
    }

    /// Whether this one was the first of all.
    pub fn is_first(&self, name: &str) -> bool {
        self.order.first() == Some(&name)
    }

    /// How the task of this number ended: its state, its error's code, its attempts.
    pub fn end(&self, ordinal: usize) -> (TaskState, Option<&str>, u32) {
        let task = &self.tasks[ordinal - 1];
        let error = task.ending.error.as_ref().map(|error| error.code.as_str());
        (task.state, error, task.attempt)
    }

    /// How many facts are of this kind.
    pub fn count(&self, kind: &str) -> usize {
        self.facts.iter().filter(|fact| fact.kind().ends_with(kind)).count()
    }
}
