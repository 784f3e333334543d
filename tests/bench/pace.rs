//! Clients at a steady pace, regardless of the server's speed: each has a group of its own, submits
//! a turn at fixed times, and measures when the agent got the prompt.

use std::{net::SocketAddr, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{Result, crowd, http};

/// Submits a turn each `every` to each of this number of groups, for this time. Returns the start
/// latency of each turn in seconds: from the request's first byte until the agent has read the
/// prompt, including all commits before.
pub fn starts(
    address: SocketAddr,
    groups: usize,
    every: Duration,
    duration: Duration,
) -> Result<Vec<f64>> {
    let start = Instant::now();
    crowd::gather((0..groups).map(|group| {
        let first = start + every.mul_f64(group as f64 / groups as f64);
        client(address, format!("g{group}"), first, every, start + duration)
    }))
}

async fn client(
    address: SocketAddr,
    group: String,
    first: Instant,
    every: Duration,
    end: Instant,
) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = http::turn(&group, "stamp", 60);
    let mut latencies = Vec::new();
    let mut pace = interval_at(first, every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while pace.tick().await < end {
        let sent = now_ns();
        let answer = crowd::exchange(&mut stream, &request).await?;
        let task: serde_json::Value = serde_json::from_slice(&answer)?;
        let stamp = task["text"].as_str().and_then(|text| text.parse::<i128>().ok());
        let started = stamp.ok_or_else(|| format!("a turn without its stamp: {task}"))?;
        latencies.push((started - sent) as f64 / 1e9);
    }
    Ok(latencies)
}

/// Returns the machine's monotonic time, which all processes share, in nanoseconds.
fn now_ns() -> i128 {
    let now = clock_gettime(ClockId::Monotonic);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}
