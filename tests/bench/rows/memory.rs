//! The server's memory, and its processor time when idle.

use std::{thread, time::Duration};

use greenroom_test_support::{poll, process};

use crate::{
    Result, Scale, crowd, http,
    rows::{GROUP, fill},
    server::{connect, cpu_seconds, setup, start},
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
    let server = start(setup())?;
    let fresh = resident(server.pid())?;
    let mut client = connect(&server)?;
    let last = fill(&mut client, GROUP, scale.history)?;
    let mut readers = Vec::new();
    for _ in 0..ATTACHES {
        let mut reader = Subscriber::open(server.address(), GROUP, 0)?;
        reader.read_to(last)?;
        reader.read_to_seam()?;
        readers.push(reader);
    }
    let resident = resident(server.pid())?;
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

fn resident(pid: u32) -> Result<f64> {
    Ok(process::memory(pid, "VmRSS").ok_or("the server is gone")? as f64)
}

/// Groups without a turn, or with one turn each and a stopped agent.
fn idle_groups(scale: &Scale, used: bool) -> Result<Line> {
    let server = start(setup().text("defaults", "idle_timeout", "0s"))?;
    let pid = server.pid();
    let fresh = resident(pid)?;
    let request = |group: usize| {
        let group = format!("g{group}");
        if used { http::turn(&group, "empty", 60) } else { http::put(&group) }
    };
    let clients = (0..CLIENTS)
        .map(|client| (client..scale.idle_groups).step_by(CLIENTS).map(request).collect());
    crowd::send(server.address(), clients.collect(), 1)?;
    let has_child =
        || process::all().into_iter().any(|child| process::parent_of_live(child) == Some(pid));
    let ended = poll(PATIENCE, || (!has_child()).then_some(()));
    ended.ok_or("idle agents do not end")?;
    let resident = resident(pid)?;
    let cpu = cpu_seconds(&server);
    thread::sleep(IDLE);
    let share = (cpu_seconds(&server) - cpu) / IDLE.as_secs_f64();
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
