//! Projections: derive digests, checkpoints and rows from a group's log of facts.
//!
//! The live state is projected by `greenroom_core::Group::replay`. This folder has the digests'
//! rows, the replay of a stored log, the checkpoint that replaces deleted frames, and the three
//! users of a replay: verify compares rows, repair rebuilds them, retention truncates the log.

pub mod checkpoint;
pub mod digest;
pub mod repair;
mod replay;
pub mod retention;
pub mod retention_scan;
pub mod verify;
