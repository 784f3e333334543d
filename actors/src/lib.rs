//! greenroom's actors: they own the clock, the children and the database, and decide nothing.
//!
//! Every decision is [`greenroom_core`]'s; an actor makes its facts durable and then carries out
//! its orders.

pub mod agent;
pub mod awake;
pub mod base;
pub mod changes;
pub mod clock;
pub mod digest;
mod failpoint;
pub mod feed;
pub mod frames;
pub mod group;
pub mod metrics;
pub mod profile;
mod refold;
pub mod repair;
pub mod residents;
pub mod retention;
pub mod storage;
pub mod supervisor;
pub mod verify;
pub mod vital;
pub mod watchdog;
mod word;
