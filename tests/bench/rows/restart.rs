//! The server is killed, and comes back on a long transcript.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result, Scale,
    rows::{GROUP, fill, repeat},
    server::{Server, Setup},
    subscriber::Subscriber,
    table::{Line, median, ms},
};

/// From the spawn to the first frame that a client reads; after SIGKILL and after SIGTERM.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let mut server = Server::start(Setup::default())?;
    fill(&mut server.connect()?, GROUP, scale.history)?;
    let killed = repeat(scale, || {
        server.kill()?;
        first_frame(&mut server)
    })?;
    let stopped = repeat(scale, || {
        server.stop()?;
        first_frame(&mut server)
    })?;
    let killed = median(killed);
    Ok(vec![Line {
        name: format!("restart with {} frames: first frame from the spawn", scale.history),
        greenroom: format!("{} (after SIGTERM {})", ms(killed), ms(median(stopped))),
        published: "2,000–2,500 ms",
        target: "≤ 50 ms",
        holds: Some(killed <= 0.05),
        ..Line::default()
    }])
}

fn first_frame(server: &mut Server) -> Result<f64> {
    let start = Instant::now();
    server.spawn()?;
    while start.elapsed() < Duration::from_secs(10) {
        // Refused connections, and answers before the groups are known, are both tried again.
        if let Ok(mut reader) = Subscriber::open(server.address(), GROUP, 0)
            && let Ok(first) = reader.read_to(1)
        {
            return Ok((first - start).as_secs_f64());
        }
        thread::sleep(Duration::from_micros(500));
    }
    Err("no frame after a restart".into())
}
