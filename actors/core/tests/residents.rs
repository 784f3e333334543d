//! The places for runs: first come first served, the longest idle gives way, never a busy one
//! (SEEDS DQ-7).

use std::collections::{BTreeMap, VecDeque};

use greenroom_core::{
    RunId,
    residents::{Call, Need, Residents},
};
use proptest::{collection::vec, prelude::*};
use uuid::Uuid;

fn run(number: u128) -> RunId {
    RunId(Uuid::from_u128(number))
}

fn let_go(number: u128, since: u64) -> Call {
    Call::LetGo { run: run(number), since }
}

/// Runs 1, 2, 3… have come in this order, and the first `max` have a place.
fn arrived(max: usize, count: u128) -> Residents {
    let mut residents = Residents::new(max);
    for number in 1..=count {
        residents.arrive(run(number));
        residents.next(|_| Need::Busy);
    }
    assert_eq!((residents.count(), residents.waiting()), (max, count as usize - max));
    residents
}

/// What runs 1, 2, 3… are needed for.
fn needs(needs: &[Need]) -> impl Fn(RunId) -> Need {
    move |run| needs[usize::try_from(run.0.as_u128()).expect("a small number") - 1]
}

#[test]
fn who_gives_way() {
    use Need::{Busy, Going, Idle};
    #[rustfmt::skip]
    let cases: &[(&str, usize, &[Need], &[Call])] = &[
        ("nobody waits",              2, &[Idle(5), Idle(3)],                   &[]),
        ("the longest idle",          2, &[Idle(5), Idle(3), Busy],             &[let_go(2, 3)]),
        ("never a busy one",          2, &[Busy, Busy, Busy],                   &[]),
        ("the only idle",             2, &[Busy, Idle(9), Busy, Busy],          &[let_go(2, 9)]),
        ("one for each that waits",   3, &[Idle(5), Idle(3), Idle(4), Busy, Busy], &[let_go(2, 3), let_go(3, 4)]),
        ("room is being made",        2, &[Going, Idle(3), Busy],               &[]),
        ("room for one of two",       2, &[Going, Idle(3), Busy, Busy],         &[let_go(2, 3)]),
        ("who waits for nothing",     1, &[Busy, Idle(7)],                      &[let_go(2, 7)]),
        ("needs no room",             1, &[Idle(2), Idle(7)],                   &[let_go(2, 7)]),
        ("nor does who leaves",       1, &[Idle(2), Going],                     &[]),
    ];
    for (name, max, need, expected) in cases {
        let mut residents = arrived(*max, need.len() as u128);
        assert_eq!(residents.next(needs(need)), *expected, "{name}");
        assert_eq!(residents.next(needs(need)), [], "{name}: said once");
    }
}

/// A run whose group has work after all is not asked again, and another is, until it is idle anew.
#[test]
fn a_refusal_counts_until_it_is_idle_anew() {
    let mut residents = arrived(2, 3);
    let need = [Need::Idle(1), Need::Idle(2), Need::Busy];
    assert_eq!(residents.next(needs(&need)), [let_go(1, 1)]);
    residents.refuse(run(1), 1);
    assert_eq!(residents.next(needs(&need)), [let_go(2, 2)]);
    residents.refuse(run(2), 2);
    assert_eq!(residents.next(needs(&need)), []);
    let need = [Need::Idle(4), Need::Idle(2), Need::Busy];
    assert_eq!(residents.next(needs(&need)), [let_go(1, 4)]);
}

#[test]
fn places_go_in_the_order_of_arrival() {
    let mut residents = arrived(2, 5);
    residents.leave(run(4));
    residents.leave(run(1));
    assert_eq!(residents.next(|_| Need::Busy), [Call::Enter(run(3))]);
    residents.leave(run(2));
    residents.leave(run(3));
    assert_eq!(residents.next(|_| Need::Busy), [Call::Enter(run(5))]);
    assert_eq!((residents.count(), residents.waiting()), (1, 0));
}

/// A step of a random history; numbers choose among the runs that it can be about.
#[derive(Clone, Copy, Debug)]
enum Move {
    Arrive,
    GetIdle(usize),
    GetBusy(usize),
    /// The group takes the oldest request to let a run go.
    Hear,
    /// Nothing is left of a run, for whatever reason.
    Leave(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let any = 0..100_usize;
    let one = prop_oneof![
        3 => Just(Move::Arrive),
        3 => any.clone().prop_map(Move::GetIdle),
        2 => any.clone().prop_map(Move::GetBusy),
        4 => Just(Move::Hear),
        2 => any.prop_map(Move::Leave),
    ];
    vec(one, 0..200)
}

/// The groups' side, and what must hold of the places at every step.
struct World {
    residents: Residents,
    needs: BTreeMap<u128, Need>,
    entered: Vec<u128>,
    left: Vec<u128>,
    asked: VecDeque<(u128, u64)>,
    last_run: u128,
    moment: u64,
}

impl World {
    fn new(max: usize) -> Self {
        Self {
            residents: Residents::new(max),
            needs: BTreeMap::new(),
            entered: Vec::new(),
            left: Vec::new(),
            asked: VecDeque::new(),
            last_run: 0,
            moment: 1,
        }
    }

    fn pick(&self, number: usize, fits: impl Fn(Need) -> bool) -> Option<u128> {
        let all: Vec<u128> =
            self.needs.iter().filter(|(_, need)| fits(**need)).map(|(run, _)| *run).collect();
        (!all.is_empty()).then(|| all[number % all.len()])
    }

    fn play(&mut self, next: Move) -> Result<(), TestCaseError> {
        match next {
            Move::Arrive => {
                self.last_run += 1;
                self.needs.insert(self.last_run, Need::Busy);
                self.residents.arrive(run(self.last_run));
            }
            Move::GetIdle(number) => {
                if let Some(run) = self.pick(number, |need| need == Need::Busy) {
                    self.moment += 1;
                    self.needs.insert(run, Need::Idle(self.moment));
                }
            }
            Move::GetBusy(number) => {
                if let Some(run) = self.pick(number, |need| matches!(need, Need::Idle(_))) {
                    self.needs.insert(run, Need::Busy);
                }
            }
            Move::Hear => {
                let Some((one, since)) = self.asked.pop_front() else { return Ok(()) };
                match self.needs.get(&one) {
                    Some(Need::Idle(_)) => _ = self.needs.insert(one, Need::Going),
                    Some(Need::Busy) => self.residents.refuse(run(one), since),
                    Some(Need::Going) | None => {}
                }
            }
            Move::Leave(number) => {
                if let Some(one) = self.pick(number, |need| need != Need::Busy) {
                    self.leave(one);
                }
            }
        }
        self.go_on()
    }

    fn leave(&mut self, one: u128) {
        self.needs.remove(&one);
        self.left.push(one);
        self.residents.leave(run(one));
    }

    fn go_on(&mut self) -> Result<(), TestCaseError> {
        let needs = self.needs.clone();
        let need = |run: RunId| needs.get(&run.0.as_u128()).copied().unwrap_or(Need::Going);
        for call in self.residents.next(need) {
            match call {
                Call::Enter(run) => self.entered.push(run.0.as_u128()),
                Call::LetGo { run, since } => {
                    prop_assert_eq!(need(run), Need::Idle(since), "only an idle one gives way");
                    self.asked.push_back((run.0.as_u128(), since));
                }
            }
        }
        prop_assert!(self.residents.count() <= self.residents.max());
        prop_assert_eq!(self.residents.count() + self.residents.waiting(), self.needs.len());
        let is_full = self.residents.count() == self.residents.max();
        prop_assert!(is_full || self.residents.waiting() == 0, "a place is free, and one waits");
        prop_assert!(self.entered.is_sorted(), "first come, first served: {:?}", self.entered);
        Ok(())
    }

    /// All that is asked is heard, what goes is gone, and what is busy finishes: nobody waits on.
    fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..1_000 {
            while !self.asked.is_empty() {
                self.play(Move::Hear)?;
            }
            let going = self.pick(0, |need| need == Need::Going);
            match going {
                Some(one) => self.leave(one),
                None if self.residents.waiting() == 0 => return Ok(()),
                // Among those that have a place there is a busy one, or the longest idle went.
                None => {
                    let entered = |one: &u128| self.entered.contains(one);
                    let busy =
                        self.needs.iter().find(|(one, need)| entered(one) && **need == Need::Busy);
                    let busy = busy.map(|(one, _)| *one);
                    prop_assert!(busy.is_some(), "some wait for nobody: {:?}", self.needs);
                    self.moment += 1;
                    busy.map(|one| self.needs.insert(one, Need::Idle(self.moment)));
                }
            }
            self.go_on()?;
        }
        Err(TestCaseError::fail(format!("no end: {:?}", self.residents)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No place is lost, none is given twice, and none who waits is forgotten, in whatever order
    /// things happen.
    #[test]
    fn no_place_is_lost(max in 1..5_usize, history in moves()) {
        let mut world = World::new(max);
        for next in history {
            world.play(next)?;
        }
        world.come_to_rest()?;
        let mut known: Vec<u128> = world.entered.iter().chain(&world.left).copied().collect();
        known.sort_unstable();
        known.dedup();
        prop_assert_eq!(known, (1..=world.last_run).collect::<Vec<_>>(), "each got in, or left");
    }
}
