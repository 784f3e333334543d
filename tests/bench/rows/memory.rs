//! The server's memory, and its processor time when idle.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result, Scale, crowd, http, process,
    rows::{GROUP, fill},
    server::{Server, Setup},
    subscriber::Subscriber,
    table::{Line, mib},
};

const ATTACHES: usize = 6;
const CLIENTS: usize = 16;
const IDLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

/// A long transcript that was read six times, and many idle groups.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    Ok(vec![long_transcript(scale)?, idle_groups(scale, false)?, idle_groups(scale, true)?])
}

fn long_transcript(scale: &Scale) -> Result<Line> {
    let server = Server::start(Setup::default())?;
    let fresh = process::resident(server.pid()?)?;
    let mut client = server.connect()?;
    let last = fill(&mut client, GROUP, scale.history)?;
    let mut readers = Vec::new();
    for _ in 0..ATTACHES {
        let mut reader = Subscriber::open(server.address(), GROUP, 0)?;
        reader.read_to(last)?;
        reader.read_to_seam()?;
        readers.push(reader);
    }
    let resident = process::resident(server.pid()?)?;
    Ok(Line {
        name: format!("memory after {} frames and {ATTACHES} attaches", scale.history),
        greenroom: mib(resident),
        limit: format!("{} at its start", mib(fresh)),
        published: "1.4 GiB",
        target: "≤ 70 MiB",
        holds: Some(resident <= 70.0 * f64::from(1 << 20)),
        ..Line::default()
    })
}

/// Groups without a turn, or with one turn each and a stopped agent.
fn idle_groups(scale: &Scale, used: bool) -> Result<Line> {
    let server = Server::start(Setup { idle_timeout: "0s", ..Setup::default() })?;
    let pid = server.pid()?;
    let fresh = process::resident(pid)?;
    let request = |group: usize| {
        let group = format!("g{group}");
        if used { http::turn(&group, "empty", 60) } else { http::put(&group) }
    };
    let clients = (0..CLIENTS)
        .map(|client| (client..scale.idle_groups).step_by(CLIENTS).map(request).collect());
    crowd::send(server.address(), clients.collect(), 1)?;
    let start = Instant::now();
    while process::children(pid)? > 0 {
        if start.elapsed() > PATIENCE {
            return Err("idle agents do not end".into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let resident = process::resident(pid)?;
    let cpu = server.cpu()?;
    thread::sleep(IDLE);
    let share = (server.cpu()? - cpu) / IDLE.as_secs_f64();
    let what = if used { "after a turn each" } else { "just made" };
    Ok(Line {
        name: format!("memory of {} idle groups, {what}; processor use", scale.idle_groups),
        greenroom: format!("{} · {:.1} %", mib(resident), share * 100.0),
        limit: format!("{} at its start", mib(fresh)),
        published: "181 MiB",
        target: "≤ 90 MiB, none",
        holds: Some(resident <= 90.0 * f64::from(1 << 20) && share < 0.01),
        ..Line::default()
    })
}
