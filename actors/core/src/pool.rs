//! The pool: which runs have a place, which wait in line, and which are evicted (DQ-7).
//!
//! Owns the places and the line. Each group knows what its run is used for, which is an argument
//! here, and may refuse an eviction.

use crate::RunId;

/// What a run is used for, as its group last reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunUsage {
    /// The group's task uses it.
    Busy,
    /// Nothing uses it since this moment. A later moment is a greater number.
    Idle(u64),
    /// Its group is stopping it.
    Stopping,
    /// The group's task uses it, and the context would be lost with it.
    BusyForgetful,
    /// Nothing uses it since this moment, but the context would be lost with it.
    IdleForgetful(u64),
}

/// How a group uses its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The run has a task, or compacts by itself.
    Busy,
    /// The run has no task.
    Idle,
    /// The group has stopped the run.
    Stopping,
    /// The run is busy, and the context would be lost with it: its agent can restore no session.
    BusyForgetful,
    /// The run has no task, but the context would be lost with it.
    IdleForgetful,
}

impl Activity {
    /// Whether the run has no task, and is not stopping.
    pub fn is_idle(self) -> bool {
        match self {
            Self::Idle | Self::IdleForgetful => true,
            Self::Busy | Self::BusyForgetful | Self::Stopping => false,
        }
    }
}

/// What the pool's actor has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolAction {
    /// Let the run start its process: it has a place.
    Admit(RunId),
    /// Ask the run's group to stop it, if it is still idle.
    Evict {
        /// The run.
        run: RunId,
        /// Since when it is idle.
        since: u64,
    },
}

/// The runs that have a place or wait for one.
#[derive(Clone, Debug)]
pub struct Pool {
    max: usize,
    /// In the order of their requests.
    runs: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    run: RunId,
    admitted: bool,
    eviction: Eviction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eviction {
    NotRequested,
    Requested,
    /// Its group refused: it had work for the run. The run counts as busy until its idle moment
    /// differs from this one.
    Refused(u64),
}

impl Pool {
    /// A pool of `max` places without runs.
    pub fn new(max: usize) -> Self {
        Self { max, runs: Vec::new() }
    }

    /// Returns the number of places.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns the number of admitted runs.
    pub fn count(&self) -> usize {
        self.runs.iter().filter(|entry| entry.admitted).count()
    }

    /// Returns the number of runs that wait for a place.
    pub fn waiting(&self) -> usize {
        self.runs.len() - self.count()
    }

    /// Puts a launched run into the line.
    pub fn request(&mut self, run: RunId) {
        self.runs.push(Entry { run, admitted: false, eviction: Eviction::NotRequested });
    }

    /// Removes a run that has ended or no longer waits.
    pub fn release(&mut self, run: RunId) {
        self.runs.retain(|entry| entry.run != run);
    }

    /// Notes that the group refused to evict its run, which was idle since `moment`.
    pub fn refuse_eviction(&mut self, run: RunId, moment: u64) {
        if let Some(entry) = self.runs.iter_mut().find(|entry| entry.run == run) {
            entry.eviction = Eviction::Refused(moment);
        }
    }

    /// Admits the first waiting runs to free places, and evicts the longest idle run for each busy
    /// run that still waits, less those that are leaving. Also evicts waiting runs that are idle.
    /// A run whose context would be lost with it is evicted only if that is true of all runs that
    /// have a place: another one will be idle before long. `usage` returns what a run is used for.
    pub fn next_actions(&mut self, usage: impl Fn(RunId) -> RunUsage) -> Vec<PoolAction> {
        let mut actions = Vec::new();
        let free = self.max.saturating_sub(self.count());
        for entry in self.runs.iter_mut().filter(|entry| !entry.admitted).take(free) {
            entry.admitted = true;
            actions.push(PoolAction::Admit(entry.run));
        }
        let (mut waiting, mut leaving, mut spares_forgetful) = (0, 0, false);
        let (mut idle, mut forgetful, mut unneeded) = (Vec::new(), Vec::new(), Vec::new());
        for (index, entry) in self.runs.iter().enumerate() {
            match (entry.admitted, entry.eviction, usage(entry.run)) {
                (true, Eviction::Requested, usage) => {
                    leaving += 1;
                    spares_forgetful |= !matches!(usage, RunUsage::IdleForgetful(_));
                }
                // Another run gets its place, and will be idle before long.
                (true, _, RunUsage::Stopping) => (leaving, spares_forgetful) = (leaving + 1, true),
                (false, Eviction::Requested, _) | (false, _, RunUsage::Stopping) => {}
                (_, Eviction::Refused(then), RunUsage::Idle(since)) if since == then => {
                    spares_forgetful |= entry.admitted;
                }
                (_, Eviction::Refused(then), RunUsage::IdleForgetful(since)) if since == then => {}
                (true, _, RunUsage::Idle(since)) => idle.push((since, index)),
                (true, _, RunUsage::IdleForgetful(since)) => forgetful.push((since, index)),
                (false, _, RunUsage::Idle(since) | RunUsage::IdleForgetful(since)) => {
                    unneeded.push((since, index));
                }
                (false, _, RunUsage::Busy | RunUsage::BusyForgetful) => waiting += 1,
                (true, _, RunUsage::Busy) => spares_forgetful = true,
                (true, _, RunUsage::BusyForgetful) => {}
            }
        }
        if idle.is_empty() && !spares_forgetful {
            idle = forgetful;
        }
        idle.sort_unstable();
        idle.truncate(usize::saturating_sub(waiting, leaving));
        actions.extend(idle.into_iter().chain(unneeded).map(|(since, index)| {
            let entry = &mut self.runs[index];
            entry.eviction = Eviction::Requested;
            PoolAction::Evict { run: entry.run, since }
        }));
        actions
    }
}
