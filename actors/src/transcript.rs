//! The transcript: frames packed into blocks, and the live feed of new frames.

pub mod feed;
pub mod frame;
