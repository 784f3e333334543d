//! The history checker: every rule reads a [`History`] and returns its violations.
//!
//! It knows only the server's contract. `check/tests.rs` feeds it small bad histories, at least one
//! for each rule: a checker that cannot fail is worth nothing.

mod digests;
mod frames;
mod group;
mod requests;
mod sent;
mod sights;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::history::History;

/// The most memory that a server may use, in bytes (I11): a build without optimisation, some
/// hundred readers, floods of a few megabytes.
const MEMORY_MAX: u64 = 512 << 20;

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The rule's name.
    pub rule: &'static str,
    /// How the history breaks it.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: String = self.what.chars().take(1_500).collect();
        write!(out, "{}: {what}", self.rule)
    }
}

type Rule = fn(&History) -> Vec<String>;

/// The rules, each with its invariant.
#[rustfmt::skip]
pub const RULES: [(&str, Rule); 21] = [
    ("every fault was injected",    injected),
    ("the log is sound",            group::log_is_sound),               // I1, I3 to I5, I7 to I9
    ("one at a time",               group::one_at_a_time),              // I1
    ("accepted is kept",            requests::accepted_is_kept),        // I2
    ("frames stay",                 frames::frames_stay),               // I3
    ("compacting ends",             group::compacting_ends),            // I5
    ("nothing is left running",     sights::nothing_is_left_running),   // I5
    ("runs are sealed",             digests::runs_are_sealed),          // I6
    ("sent once an attempt",        sent::sent_once_an_attempt),        // I7
    ("sent as it was committed",    sent::sent_as_committed),           // I7, I3
    ("in order",                    group::accepted_in_order),          // I8
    ("one outcome",                 requests::one_outcome),             // I9
    ("no orphans",                  |history| history.orphans.clone()), // I10
    ("bounded",                     bounded),                           // I11
    ("nothing is stuck",            |history| history.stuck.clone()),   // I12
    ("every wait says why",         requests::every_wait_says_why),     // I12
    ("replay is live",              |history| history.damage.clone()),  // I13
    ("others continue",             group::others_continue),            // I15
    ("rejected lines are reported", sent::rejected_is_reported),        // I16
    ("a lost context is reported",  sent::lost_context_is_reported),    // I16
    ("answers are sound",           requests::answers_are_sound),       // keys, retry_of, statuses
];

/// Returns all violations.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for (rule, holds) in RULES {
        found.extend(holds(history).into_iter().map(|what| Violation { rule, what }));
    }
    let wrong = history.wrong.iter().cloned();
    found.extend(wrong.map(|what| Violation { rule: "nothing else goes wrong", what }));
    found
}

/// A rig that injected no fault tested nothing.
fn injected(history: &History) -> Vec<String> {
    let missing = history.injected.iter().filter(|injected| injected.proof.is_none());
    missing.map(|one| format!("nothing was injected in life {}: {}", one.life, one.fault)).collect()
}

fn bounded(history: &History) -> Vec<String> {
    let memory = history.memory;
    (MEMORY_MAX < memory).then(|| format!("a server had {memory} bytes")).into_iter().collect()
}
