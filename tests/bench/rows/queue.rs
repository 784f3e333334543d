//! Turns are accepted, run and listed at the same rate with a short and a long queue.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Result, Scale, crowd,
    http::{self, Connection},
    rows::{GROUP, repeat},
    server::{connect, setup, start},
    table::{Line, median, ms, rate, ratio},
};
use greenroom_test_support::Server;

const CLIENTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// The rate at which one group accepts turns during a turn that never ends.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let server = start(setup().set("limits", "queue", 1_000_000))?;
    connect(&server)?.exchange(&http::turn(GROUP, "hang", 0))?;
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
    let mut client = connect(server)?;
    let request = http::turn(GROUP, "empty", 0);
    let start = Instant::now();
    for _ in 0..turns {
        client.exchange(&request)?;
    }
    Ok(turns as f64 / start.elapsed().as_secs_f64())
}

/// One group with a long queue: the rate of its turns with a long and a short queue, with and
/// without a deadline to start; and the reading of the queue.
pub fn drain(scale: &Scale) -> Result<Vec<Line>> {
    let plain = http::turn(GROUP, "empty", 0);
    let body = json!({ "prompt": "empty", "expires_in_ms": 3_600_000 });
    let expiring = http::request("POST", &format!("/v1/groups/{GROUP}/turns"), &body);
    let line = |name: &str, (early, late): (f64, f64)| Line {
        name: format!("turns of one group, {} waiting against few{name}", scale.queue),
        greenroom: format!("{} against {}", rate(early), rate(late)),
        ratio: ratio(early, late),
        target: "≥ 0.8",
        holds: Some(early / late >= 0.8),
        ..Line::default()
    };
    let (read, rates) = drained(scale, &plain)?;
    let (_, with_expiry) = drained(scale, &expiring)?;
    Ok(vec![line("", rates), line(", all with expires_in_ms", with_expiry), read])
}

/// Returns the time to read the queue, and the rates of its turns while it is almost full and
/// almost empty.
fn drained(scale: &Scale, request: &[u8]) -> Result<(Line, (f64, f64))> {
    let server = start(setup().set("limits", "queue", 1_000_000))?;
    connect(&server)?.exchange(&http::turn(GROUP, "hang", 0))?;
    crowd::spread(server.address(), vec![request.to_vec(); scale.queue])?;
    let mut client = connect(&server)?;
    let read = read(&mut client, scale)?;
    // Ends the turn that never ends, and its agent: the queue then continues with another one.
    client.exchange(&http::request("POST", &format!("/v1/groups/{GROUP}/stop"), &json!({})))?;
    let (start, mut seen) = (Instant::now(), Vec::new());
    loop {
        let depth = client.get("/v1/status")?["queue_depth"].as_u64().ok_or("no queue_depth")?;
        seen.push((start.elapsed().as_secs_f64(), depth as f64 / scale.queue as f64));
        match depth {
            0 => break,
            _ if start.elapsed() > PATIENCE => return Err("the queue does not drain".into()),
            _ => thread::sleep(POLL),
        }
    }
    let rate = |from: f64, to: f64| {
        let at = |share: f64| seen.iter().find(|(_, left)| *left <= share).copied();
        let ((begin, before), (end, after)) = (at(from)?, at(to)?);
        Some((before - after) * scale.queue as f64 / (end - begin))
    };
    let rates = rate(0.99, 0.85).zip(rate(0.15, 0.01)).ok_or("a queue that was never full")?;
    Ok((read, rates))
}

/// Returns the time to read a page of the queue, and its last task.
fn read(client: &mut Connection, scale: &Scale) -> Result<Line> {
    let mut timed = |path: &str| -> Result<(f64, Value)> {
        let start = Instant::now();
        let found = client.get(path)?;
        Ok((start.elapsed().as_secs_f64(), found))
    };
    let page =
        format!("/v1/groups/{GROUP}/tasks?state=queued&limit=100&cursor={}", scale.queue - 99);
    let (_, tasks) = timed(&page)?;
    let last = tasks["items"][99]["id"].as_str().ok_or("a page that is not full")?.to_owned();
    let task = format!("/v1/tasks/{last}");
    let runs = repeat(scale, || Ok((timed(&page)?.0, timed(&task)?.0)))?;
    let (pages, tasks): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
    let (page, task) = (median(pages), median(tasks));
    Ok(Line {
        name: format!("read of {} waiting tasks: a page of 100 · one", scale.queue),
        greenroom: format!("{} · {}", ms(page), ms(task)),
        target: "≤ 20 ms",
        holds: Some(page <= 0.02),
        ..Line::default()
    })
}
