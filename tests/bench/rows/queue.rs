//! Work is accepted at the same rate however much waits already.

use std::time::Instant;

use crate::{
    Result, Scale, crowd, http,
    rows::{GROUP, repeat},
    server::{Server, Setup},
    table::{Line, median, rate, ratio},
};

const CLIENTS: usize = 4;

/// The rate at which one group accepts turns behind a turn that never ends.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let server = Server::start(Setup { queue: 1_000_000, ..Setup::default() })?;
    server.connect()?.exchange(&http::turn(GROUP, "hang", 0))?;
    let burst = scale.backlog / 50;
    accept(&server, burst)?;
    let early = median(repeat(scale, || accept(&server, burst / 5))?);
    let crowd = vec![vec![http::turn(GROUP, "empty", 0)]; CLIENTS];
    let fill = scale.backlog - burst;
    let (took, _) = crowd::send(server.address(), crowd, (fill / CLIENTS) as u64)?;
    let late = median(repeat(scale, || accept(&server, burst / 5))?);
    Ok(vec![Line {
        name: format!("accepted turns, {} waiting against {}", scale.backlog, burst),
        greenroom: format!("{} against {}", rate(late), rate(early)),
        limit: format!("{} with {CLIENTS} clients", rate(fill as f64 / took.as_secs_f64())),
        ratio: ratio(late, early),
        published: "",
        target: "≥ 0.8",
        holds: Some(late / early >= 0.8),
    }])
}

fn accept(server: &Server, turns: usize) -> Result<f64> {
    let mut client = server.connect()?;
    let request = http::turn(GROUP, "empty", 0);
    let start = Instant::now();
    for _ in 0..turns {
        client.exchange(&request)?;
    }
    Ok(turns as f64 / start.elapsed().as_secs_f64())
}
