//! Which runs may have a process: so many at a time, first come first served, and who gives way
//! to whom (SEEDS DQ-7).
//!
//! Owns the places and the line before them. What a run is needed for is its group's to know, and
//! is an argument; whether an idle run really goes is its group's to decide.

use crate::RunId;

/// What a run is needed for, as its group last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// For the group's task.
    Busy,
    /// For nothing since this moment. Of two moments the later is the greater number.
    Idle(u64),
    /// For nothing any more: it was told to end.
    Going,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The run has a place, and may start its process.
    Enter(RunId),
    /// Its group is to end the run, if it still has no work for it.
    LetGo {
        /// Which.
        run: RunId,
        /// Since when it is idle.
        since: u64,
    },
}

/// The runs that have a place or wait for one.
#[derive(Clone, Debug)]
pub struct Residents {
    max: usize,
    /// In the order in which they came.
    runs: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    run: RunId,
    has_place: bool,
    told: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    ToGo,
    /// To go, and there was work for it after all. It counts as busy until it is idle anew.
    Refused(u64),
}

impl Residents {
    /// Nobody yet, and places for `max` runs.
    pub fn new(max: usize) -> Self {
        Self { max, runs: Vec::new() }
    }

    /// The places.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The places that are taken.
    pub fn count(&self) -> usize {
        self.runs.iter().filter(|entry| entry.has_place).count()
    }

    /// The runs that wait for a place.
    pub fn waiting(&self) -> usize {
        self.runs.len() - self.count()
    }

    /// Somebody launched a run, and it wants a place.
    pub fn arrive(&mut self, run: RunId) {
        self.runs.push(Entry { run, has_place: false, told: Told::Nothing });
    }

    /// Nothing is left of the run, or it waits no longer.
    pub fn leave(&mut self, run: RunId) {
        self.runs.retain(|entry| entry.run != run);
    }

    /// The run was to be let go as idle since `moment`, and its group has work for it.
    pub fn refuse(&mut self, run: RunId, moment: u64) {
        if let Some(entry) = self.runs.iter_mut().find(|entry| entry.run == run) {
            entry.told = Told::Refused(moment);
        }
    }

    /// What follows from all that: free places are taken by those who came first, and for each run
    /// that still waits, and that nobody makes room for yet, the longest idle one is let go. A run
    /// that waits and is not needed any more is let go as well. `need` is asked after the runs.
    pub fn next(&mut self, need: impl Fn(RunId) -> Need) -> Vec<Call> {
        let mut calls = Vec::new();
        let free = self.max.saturating_sub(self.count());
        for entry in self.runs.iter_mut().filter(|entry| !entry.has_place).take(free) {
            entry.has_place = true;
            calls.push(Call::Enter(entry.run));
        }
        let (mut wanted, mut going) = (0, 0);
        let (mut idle, mut unneeded) = (Vec::new(), Vec::new());
        for (index, entry) in self.runs.iter().enumerate() {
            match (entry.has_place, entry.told, need(entry.run)) {
                (true, Told::ToGo, _) | (true, _, Need::Going) => going += 1,
                (false, Told::ToGo, _) | (false, _, Need::Going) => {}
                (_, Told::Refused(then), Need::Idle(since)) if since == then => {}
                (true, _, Need::Idle(since)) => idle.push((since, index)),
                (false, _, Need::Idle(since)) => unneeded.push((since, index)),
                (false, _, Need::Busy) => wanted += 1,
                (true, _, Need::Busy) => {}
            }
        }
        idle.sort_unstable();
        idle.truncate(usize::saturating_sub(wanted, going));
        calls.extend(idle.into_iter().chain(unneeded).map(|(since, index)| {
            let entry = &mut self.runs[index];
            entry.told = Told::ToGo;
            Call::LetGo { run: entry.run, since }
        }));
        calls
    }
}
