//! Many clients on one thread: each has a connection of its own and sends its requests one by one.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use greenroom_test_support::http::parse;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
};

use crate::{Result, http};

const CLIENTS: usize = 16;

/// Has each client send its `requests` one after another, `times` times. Returns the whole time,
/// and each request's latency in seconds, sorted.
pub fn send(
    address: SocketAddr,
    clients: Vec<Vec<Vec<u8>>>,
    times: u64,
) -> Result<(Duration, Vec<f64>)> {
    let start = Instant::now();
    let clients = clients.into_iter().map(|requests| client(address, requests, times));
    let mut latencies = gather(clients)?;
    latencies.sort_by(f64::total_cmp);
    Ok((start.elapsed(), latencies))
}

/// Runs all clients on this thread. Returns all their latencies.
pub fn gather(
    clients: impl Iterator<Item = impl Future<Output = Result<Vec<f64>>> + Send + 'static>,
) -> Result<Vec<f64>> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut crowd: JoinSet<_> = clients.collect();
        let mut latencies = Vec::new();
        while let Some(done) = crowd.join_next().await {
            latencies.extend(done??);
        }
        Ok(latencies)
    })
}

/// Has a few clients share these requests and send each once.
pub fn spread(address: SocketAddr, requests: Vec<Vec<u8>>) -> Result<()> {
    let mut clients = vec![Vec::new(); CLIENTS];
    for (request, client) in requests.into_iter().zip((0..CLIENTS).cycle()) {
        clients[client].push(request);
    }
    send(address, clients, 1).map(drop)
}

async fn client(address: SocketAddr, requests: Vec<Vec<u8>>, times: u64) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await?;
    let mut latencies = Vec::new();
    for request in (0..times).flat_map(|_| &requests) {
        let start = Instant::now();
        exchange(&mut stream, request).await?;
        latencies.push(start.elapsed().as_secs_f64());
    }
    Ok(latencies)
}

/// Sends a request. Returns the response's body, if its status is 2xx.
pub async fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(request).await?;
    let mut response = Vec::new();
    loop {
        if stream.read_buf(&mut response).await? == 0 {
            return Err("the server closed the connection".into());
        }
        if let Some(reply) = parse(&response, false) {
            return http::accepted(reply);
        }
    }
}
