//! The rules: tables, races in every order, and random histories. No clock, no I/O.

#![allow(clippy::unwrap_used)]

mod auto_compaction_pause;
mod compaction_lock;
mod counted_digest;
mod detected_compactions;
mod detector_scenarios;
mod detectors;
mod digest;
mod digest_limits;
mod interleavings;
mod interruptions;
mod invariants;
mod late_words;
mod logins;
mod ordered_compactions;
mod ordered_ends;
mod pool;
mod prompt_blocks;
mod properties;
mod questions;
mod races;
mod recorded_agents;
mod restores;
mod retries;
mod rotation;
mod run_ends;
mod session_moves;
mod settings;
