//! The actors and their libraries from inside: frames, the pool, the supervisor, the storage, and
//! recordings of real agents.

#![allow(clippy::unwrap_used)]

mod fixtures;
mod frames;
mod pool;
mod storage;
mod supervisor;
