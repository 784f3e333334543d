//! Clients at a steady pace, regardless of the server's speed: each has a group of its own, submits
//! a turn at fixed times, and measures when the agent got the prompt.

use std::{net::SocketAddr, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{Result, http};

/// Submits a turn each `every` to each of this number of groups, for this time. Returns the start
/// latency of each turn in seconds: from the request's first byte until the agent has read the
/// prompt, including all commits before.
pub fn starts(
    address: SocketAddr,
    groups: usize,
    every: Duration,
    duration: Duration,
) -> Result<Vec<f64>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        let start = Instant::now();
        for group in 0..groups {
            let share = group as f64 / groups as f64;
            let first = start + every.mul_f64(share);
            clients.spawn(client(address, format!("g{group}"), first, every, start + duration));
        }
        let mut latencies = Vec::new();
        while let Some(done) = clients.join_next().await {
            latencies.extend(done??);
        }
        Ok(latencies)
    })
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
    let mut response = Vec::new();
    let mut latencies = Vec::new();
    let mut pace = interval_at(first, every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while pace.tick().await < end {
        let sent = now_ns();
        stream.write_all(&request).await?;
        response.clear();
        let task: serde_json::Value = loop {
            if stream.read_buf(&mut response).await? == 0 {
                return Err("the server closed the connection".into());
            }
            if let Some(body) = http::body(&response)? {
                break serde_json::from_slice(body)?;
            }
        };
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
