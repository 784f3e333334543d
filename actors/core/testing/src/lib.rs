//! What tests of the rules share: a model of the world around one group, whose checker tests the
//! invariants at every step, and a driver that plays single events.

#![allow(clippy::unwrap_used)]

pub mod driver;
pub mod invariants;
pub mod world;
