//! The pool of agents: first come, first served; the longest idle agent is evicted, never a busy
//! one, and one whose context would be lost with it only if that is true of all (DQ-7, I16).

use std::collections::{BTreeMap, VecDeque};

use greenroom_core::{
    RunId,
    pool::{Pool, PoolAction, RunUsage},
};
use proptest::{collection::vec, prelude::*};
use uuid::Uuid;

fn run(number: u128) -> RunId {
    RunId(Uuid::from_u128(number))
}

fn evict(number: u128, since: u64) -> PoolAction {
    PoolAction::Evict { run: run(number), since }
}

/// Returns a pool that runs 1, 2, 3… requested in this order; the first `max` have a place.
fn requested(max: usize, count: u128) -> Pool {
    let mut pool = Pool::new(max);
    for number in 1..=count {
        pool.request(run(number));
        pool.next_actions(|_| RunUsage::Busy);
    }
    assert_eq!((pool.count(), pool.waiting()), (max, count as usize - max));
    pool
}

/// Returns the usage of runs 1, 2, 3….
fn usages(usages: &[RunUsage]) -> impl Fn(RunId) -> RunUsage {
    move |run| usages[usize::try_from(run.0.as_u128()).expect("a small number") - 1]
}

#[test]
fn longest_idle_agent_is_evicted() {
    use RunUsage::{Busy, BusyForgetful, Idle, IdleForgetful, Stopping};
    #[rustfmt::skip]
    let cases: &[(&str, usize, &[RunUsage], &[PoolAction])] = &[
        ("no run waits",            2, &[Idle(5), Idle(3)],                      &[]),
        ("the longest idle",        2, &[Idle(5), Idle(3), Busy],                &[evict(2, 3)]),
        ("never a busy one",        2, &[Busy, Busy, Busy],                      &[]),
        ("the only idle",           2, &[Busy, Idle(9), Busy, Busy],             &[evict(2, 9)]),
        ("one for each that waits", 3, &[Idle(5), Idle(3), Idle(4), Busy, Busy], &[evict(2, 3), evict(3, 4)]),
        ("room is being made",      2, &[Stopping, Idle(3), Busy],               &[]),
        ("room for one of two",     2, &[Stopping, Idle(3), Busy, Busy],         &[evict(2, 3)]),
        ("an idle run waits",       1, &[Busy, Idle(7)],                         &[evict(2, 7)]),
        ("idle needs no room",      1, &[Idle(2), Idle(7)],                      &[evict(2, 7)]),
        ("stopping needs no room",  1, &[Idle(2), Stopping],                     &[]),
        ("a context outlives",      2, &[IdleForgetful(1), Idle(3), Busy],       &[evict(2, 3)]),
        ("it waits for a busy one", 2, &[IdleForgetful(1), Busy, Busy],          &[]),
        ("one for two that wait",   2, &[IdleForgetful(1), Idle(3), Busy, Busy], &[evict(2, 3)]),
        ("all forget",              2, &[IdleForgetful(4), IdleForgetful(3), Busy], &[evict(2, 3)]),
        ("all forget, one busy",    2, &[BusyForgetful, IdleForgetful(3), Busy], &[evict(2, 3)]),
        ("all forget and are busy", 2, &[BusyForgetful, BusyForgetful, Busy],    &[]),
    ];
    for (name, max, usage, expected) in cases {
        let mut pool = requested(*max, usage.len() as u128);
        assert_eq!(pool.next_actions(usages(usage)), *expected, "{name}");
        assert_eq!(pool.next_actions(usages(usage)), [], "{name}: each action comes once");
    }
}

/// The pool does not ask a group that refused an eviction again, but another, until the run is idle
/// again.
#[test]
fn a_refused_eviction_counts_until_the_agent_is_idle_again() {
    let mut pool = requested(2, 3);
    let usage = [RunUsage::Idle(1), RunUsage::Idle(2), RunUsage::Busy];
    assert_eq!(pool.next_actions(usages(&usage)), [evict(1, 1)]);
    pool.refuse_eviction(run(1), 1);
    assert_eq!(pool.next_actions(usages(&usage)), [evict(2, 2)]);
    pool.refuse_eviction(run(2), 2);
    assert_eq!(pool.next_actions(usages(&usage)), []);
    let usage = [RunUsage::Idle(4), RunUsage::Idle(2), RunUsage::Busy];
    assert_eq!(pool.next_actions(usages(&usage)), [evict(1, 4)]);
}

#[test]
fn agents_are_admitted_in_order_of_arrival() {
    let mut pool = requested(2, 5);
    pool.release(run(4));
    pool.release(run(1));
    assert_eq!(pool.next_actions(|_| RunUsage::Busy), [PoolAction::Admit(run(3))]);
    pool.release(run(2));
    pool.release(run(3));
    assert_eq!(pool.next_actions(|_| RunUsage::Busy), [PoolAction::Admit(run(5))]);
    assert_eq!((pool.count(), pool.waiting()), (1, 0));
}

/// An action of a random history; its number selects one of the possible runs.
#[derive(Clone, Copy, Debug)]
enum Action {
    Request,
    /// And whether the run's context would be lost with it.
    BecomeIdle(usize, bool),
    BecomeForgetful(usize),
    BecomeBusy(usize),
    /// A group handles the oldest request to evict a run.
    HandleEviction,
    /// No process of a run is left, for any reason.
    End(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let any = 0..100_usize;
    let idle = (any.clone(), proptest::bool::ANY);
    let idle = idle.prop_map(|(run, forgets)| Action::BecomeIdle(run, forgets));
    let one = prop_oneof![
        3 => Just(Action::Request),
        3 => idle,
        1 => any.clone().prop_map(Action::BecomeForgetful),
        2 => any.clone().prop_map(Action::BecomeBusy),
        4 => Just(Action::HandleEviction),
        2 => any.prop_map(Action::End),
    ];
    vec(one, 0..200)
}

fn is_busy(usage: RunUsage) -> bool {
    matches!(usage, RunUsage::Busy | RunUsage::BusyForgetful)
}

fn idle_since(usage: RunUsage) -> Option<u64> {
    match usage {
        RunUsage::Idle(since) | RunUsage::IdleForgetful(since) => Some(since),
        RunUsage::Busy | RunUsage::BusyForgetful | RunUsage::Stopping => None,
    }
}

/// The groups' side, and the invariants of the pool at every step.
struct World {
    pool: Pool,
    usages: BTreeMap<u128, RunUsage>,
    admitted: Vec<u128>,
    ended: Vec<u128>,
    eviction_requests: VecDeque<(u128, u64)>,
    last_run: u128,
    moment: u64,
}

impl World {
    fn new(max: usize) -> Self {
        Self {
            pool: Pool::new(max),
            usages: BTreeMap::new(),
            admitted: Vec::new(),
            ended: Vec::new(),
            eviction_requests: VecDeque::new(),
            last_run: 0,
            moment: 1,
        }
    }

    fn pick(&self, number: usize, fits: impl Fn(RunUsage) -> bool) -> Option<u128> {
        let all: Vec<u128> =
            self.usages.iter().filter(|(_, usage)| fits(**usage)).map(|(run, _)| *run).collect();
        (!all.is_empty()).then(|| all[number % all.len()])
    }

    fn play(&mut self, next: Action) -> Result<(), TestCaseError> {
        match next {
            Action::Request => {
                self.last_run += 1;
                self.usages.insert(self.last_run, RunUsage::Busy);
                self.pool.request(run(self.last_run));
            }
            Action::BecomeIdle(number, forgets) => {
                if let Some(run) = self.pick(number, is_busy) {
                    self.become_idle(run, forgets);
                }
            }
            Action::BecomeForgetful(number) => {
                if let Some(run) = self.pick(number, |usage| usage == RunUsage::Busy) {
                    self.usages.insert(run, RunUsage::BusyForgetful);
                }
            }
            Action::BecomeBusy(number) => {
                if let Some(run) = self.pick(number, |usage| idle_since(usage).is_some()) {
                    self.usages.insert(run, RunUsage::Busy);
                }
            }
            Action::HandleEviction => {
                let Some((one, since)) = self.eviction_requests.pop_front() else { return Ok(()) };
                match self.usages.get(&one) {
                    Some(RunUsage::Idle(_) | RunUsage::IdleForgetful(_)) => {
                        self.usages.insert(one, RunUsage::Stopping);
                    }
                    Some(RunUsage::Busy | RunUsage::BusyForgetful) => {
                        self.pool.refuse_eviction(run(one), since)
                    }
                    Some(RunUsage::Stopping) | None => {}
                }
            }
            Action::End(number) => {
                if let Some(one) = self.pick(number, |usage| !is_busy(usage)) {
                    self.release(one);
                }
            }
        }
        self.advance()
    }

    fn become_idle(&mut self, run: u128, forgets: bool) {
        self.moment += 1;
        let since = self.moment;
        let idle = if forgets { RunUsage::IdleForgetful(since) } else { RunUsage::Idle(since) };
        self.usages.insert(run, idle);
    }

    fn release(&mut self, one: u128) {
        self.usages.remove(&one);
        self.ended.push(one);
        self.pool.release(run(one));
    }

    fn advance(&mut self) -> Result<(), TestCaseError> {
        let usages = self.usages.clone();
        let usage =
            |run: RunId| usages.get(&run.0.as_u128()).copied().unwrap_or(RunUsage::Stopping);
        for action in self.pool.next_actions(usage) {
            match action {
                PoolAction::Admit(run) => self.admitted.push(run.0.as_u128()),
                PoolAction::Evict { run, since } => {
                    let is_idle = idle_since(usage(run)) == Some(since);
                    prop_assert!(is_idle, "only an idle run is evicted");
                    let lasts = |one: &u128| {
                        let is_asked = self.eviction_requests.iter().any(|(asked, _)| asked == one);
                        let lasts =
                            matches!(usages.get(one), Some(RunUsage::Busy | RunUsage::Idle(_)));
                        lasts && !is_asked
                    };
                    let forgets = matches!(usage(run), RunUsage::IdleForgetful(_));
                    let has_place = self.admitted.contains(&run.0.as_u128());
                    let spares = forgets && has_place && self.admitted.iter().any(lasts);
                    prop_assert!(!spares, "{run} is evicted, and others could be: {:?}", usages);
                    self.eviction_requests.push_back((run.0.as_u128(), since));
                }
            }
        }
        prop_assert!(self.pool.count() <= self.pool.max());
        prop_assert_eq!(self.pool.count() + self.pool.waiting(), self.usages.len());
        let is_full = self.pool.count() == self.pool.max();
        prop_assert!(is_full || self.pool.waiting() == 0, "a place is free, and a run waits");
        prop_assert!(self.admitted.is_sorted(), "first come, first served: {:?}", self.admitted);
        Ok(())
    }

    /// Handles all requests, ends all stopping runs and lets the busy ones finish: no run waits for
    /// ever.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..1_000 {
            while !self.eviction_requests.is_empty() {
                self.play(Action::HandleEviction)?;
            }
            let going = self.pick(0, |usage| usage == RunUsage::Stopping);
            match going {
                Some(one) => self.release(one),
                None if self.pool.waiting() == 0 => return Ok(()),
                // One of the admitted runs is busy, or the longest idle would be evicted.
                None => {
                    let admitted = |one: &u128| self.admitted.contains(one);
                    let mut runs = self.usages.iter();
                    let busy = runs.find(|(one, usage)| admitted(one) && is_busy(**usage));
                    let busy = busy.map(|(one, usage)| (*one, *usage == RunUsage::BusyForgetful));
                    prop_assert!(busy.is_some(), "runs wait and none is busy: {:?}", self.usages);
                    if let Some((one, forgets)) = busy {
                        self.become_idle(one, forgets);
                    }
                }
            }
            self.advance()?;
        }
        Err(TestCaseError::fail(format!("no end: {:?}", self.pool)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No place is lost or given twice, and no waiting run is forgotten, whatever the order of
    /// events.
    #[test]
    fn no_place_is_lost_or_given_twice(max in 1..5_usize, history in actions()) {
        let mut world = World::new(max);
        for next in history {
            world.play(next)?;
        }
        world.settle()?;
        let mut known: Vec<u128> = world.admitted.iter().chain(&world.ended).copied().collect();
        known.sort_unstable();
        known.dedup();
        let all: Vec<u128> = (1..=world.last_run).collect();
        prop_assert_eq!(known, all, "each run was admitted or ended");
    }
}
