//! The shim with real processes: what an agent starts with, and that no process of its tree is
//! left (I10).
//!
//! Agents are shell scripts. Every wait is for an event and has an end.

mod claims;
mod fork_chains;
mod launch;
mod sandbox;
mod shim;
mod support;
mod termination;
