//! The server is killed and restarted on a long transcript, a long queue, or many groups.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result, Scale, crowd, database, http,
    rows::{GROUP, fill, repeat},
    server::{connect, setup, start},
    subscriber::Subscriber,
    table::{Line, median, ms},
};
use greenroom_test_support::{Server, poll};

/// The most seconds of a restart with any amount of data (F31).
const READY_MAX: f64 = 10.0;
/// How long a group may take to settle after a restart, before the row fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// From the spawn to the first frame that a client reads; after SIGKILL and after SIGTERM.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let mut server = start(setup())?;
    fill(&mut connect(&server)?, GROUP, scale.history)?;
    let killed = repeat(scale, || {
        server.kill();
        first_frame(&mut server)
    })?;
    let stopped = repeat(scale, || {
        server.terminate();
        server.wait_exit();
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
    server.spawn();
    while start.elapsed() < Duration::from_secs(10) {
        // Refused connections, and answers before the groups are known, are both retried.
        if let Ok(mut reader) = Subscriber::open(server.address(), GROUP, 0)
            && let Ok(first) = reader.read_to(1)
        {
            return Ok((first - start).as_secs_f64());
        }
        thread::sleep(Duration::from_micros(500));
    }
    Err("no frame after a restart".into())
}

/// From the spawn after SIGKILL until `/readyz` answers 200, and until the last group answers.
pub fn large(scale: &Scale) -> Result<Vec<Line>> {
    let (tasks, groups) = (scale.queue, scale.groups);
    let waiting = |group: &str| http::turn(group, "empty", 0);
    let long = |server: &Server| {
        // Queued during a turn that never ends; after the restart the first of them starts at once.
        connect(server)?.exchange(&http::turn("g0", "hang", 0))?;
        crowd::spread(server.address(), vec![waiting("g0"); tasks])
    };
    let idle = |server: &Server| {
        crowd::spread(server.address(), names(groups).map(|group| http::put(&group)).collect())
    };
    let busy = |server: &Server| {
        connect(server)?.exchange(&http::turn("holds-the-slot", "hang", 0))?;
        crowd::spread(server.address(), names(groups).map(|group| waiting(&group)).collect())
    };
    let frames = |server: &Server| fill(&mut connect(server)?, "g0", scale.many_frames).map(drop);
    Ok(vec![
        back(&format!("{tasks} waiting tasks in one group"), 1, &long)?,
        back(&format!("{groups} idle groups"), groups, &idle)?,
        back(&format!("{groups} groups with a waiting task each"), groups, &busy)?,
        back(&format!("{} frames in one group", scale.many_frames), 1, &frames)?,
    ])
}

fn names(groups: usize) -> impl Iterator<Item = String> {
    (0..groups).map(|group| format!("g{group}"))
}

/// Kills a server with this number of filled groups, and measures the time until it is ready again.
fn back(what: &str, groups: usize, fill: &dyn Fn(&Server) -> Result<()>) -> Result<Line> {
    let setup = setup().set("limits", "running_groups", 1).set("limits", "queue", 1_000_000);
    let mut server = start(setup)?;
    fill(&server)?;
    server.kill();
    let start = Instant::now();
    server.spawn();
    server.wait_for("/readyz");
    let ready = start.elapsed().as_secs_f64();
    // The last group in the order of recovery.
    connect(&server)?.get(&format!("/v1/groups/g{}", groups - 1))?;
    let answered = start.elapsed().as_secs_f64();
    Ok(Line {
        name: format!("restart with {what}: ready · last group answers"),
        greenroom: format!("{} · {}", ms(ready), ms(answered)),
        target: "≤ 10 s",
        holds: Some(answered <= READY_MAX),
        ..Line::default()
    })
}

/// From the spawn after SIGKILL until `/readyz` answers 200, which it does once no group has a task
/// of the earlier server, and until the last of these tasks is shown as interrupted.
pub fn busy(scale: &Scale) -> Result<Vec<Line>> {
    scale.busy.iter().map(|groups| settled(*groups)).collect()
}

/// Kills a server amid turns of this number of groups. Only one of them has run: of the others it
/// has the rows, as the machine has no room for their agents.
fn settled(groups: usize) -> Result<Line> {
    let mut server = start(setup().set("limits", "running_groups", 1))?;
    connect(&server)?.exchange(&http::turn("g0", "hang", 0))?;
    server.wait_group("g0", "its turn runs", |shown| shown["last_seq"].as_u64() >= Some(8));
    server.kill();
    database::multiply_group(&server.home.database(), groups)?;
    let start = Instant::now();
    server.spawn();
    server.wait_for("/readyz");
    let ready = start.elapsed().as_secs_f64();
    let mut client = connect(&server)?;
    let mut interrupted = |group: &str| -> Result<bool> {
        let tasks = client.get(&format!("/v1/groups/{group}/tasks"))?;
        Ok(tasks["items"][0]["state"] == "interrupted")
    };
    // A server that takes longer is ready before that, and refuses to show the tasks until then.
    let last = format!("g{}", groups - 1);
    poll(PATIENCE, || interrupted(&last).ok()).ok_or("the last group is not settled")?;
    let settled = start.elapsed().as_secs_f64();
    for group in names(groups) {
        if !interrupted(&group)? {
            return Err(format!("the turn of {group} is not interrupted").into());
        }
    }
    Ok(Line {
        name: format!("restart with {groups} groups whose turn ran: ready · last group settled"),
        greenroom: format!("{} · {}", ms(ready), ms(settled)),
        target: "≤ 10 s",
        holds: Some(settled <= READY_MAX),
        ..Line::default()
    })
}
