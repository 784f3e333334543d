//! An agent's process tree: spawned, watched and ended, without knowledge of protocols or actors.

pub mod cgroup;
pub mod child;
mod control;
pub mod environment;
pub mod leftovers;
mod pipe;
pub mod proc;
pub mod sandbox;
mod search;
pub mod shim;
mod shims;
pub mod sweep;

pub use self::pipe::{Pipe, READ_BYTES};
