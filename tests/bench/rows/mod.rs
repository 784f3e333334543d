//! The rows: each starts and stops the server that it needs.

pub mod attach;
pub mod crash;
pub mod digest;
pub mod disk;
pub mod fan_out;
pub mod isolation;
pub mod machine;
pub mod memory;
pub mod queue;
pub mod restart;
pub mod stream;
pub mod turns;

use crate::{Result, Scale, http::Connection};

/// The group's name, where one group is enough.
pub const GROUP: &str = "bench";

/// Fills a group with a long transcript of 200-byte frames. Returns its last frame's number.
pub fn fill(client: &mut Connection, group: &str, frames: usize) -> Result<u64> {
    let task = client.turn(group, &format!("stream {frames} 200"))?;
    task["seq_last"].as_u64().ok_or_else(|| "the turn has no frames".into())
}

/// Measures a figure as often as the scale says.
pub fn repeat<T>(scale: &Scale, mut take: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..scale.runs).map(|_| take()).collect()
}
