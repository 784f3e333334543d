//! Empty turns: the cost of greenroom itself, with an agent that does nothing.

use std::time::Instant;

use crate::{
    Result, Scale, bare, crowd, http,
    rows::{GROUP, repeat},
    server::{connect, cpu_seconds, setup, start},
    table::{Line, mean, median, ms, quantile, rate, ratio, us},
};
use greenroom_test_support::Server;

const GROUPS: usize = 64;

/// One group, one plain client, one turn after another; beside a bare pipe with two commits each.
pub fn one_group(scale: &Scale) -> Result<Vec<Line>> {
    let server = start(setup())?;
    let quiet = start(setup().environment("GREENROOM_LOG", "warn"))?;
    let mut pipeline = bare::Pipeline::start()?;
    let (mut rates, mut cpus, mut quiets, mut bare) = (vec![], vec![], vec![], vec![]);
    // All start with a write-ahead log that was filled once.
    turn_rate(&server, scale.turns)?;
    turn_rate(&quiet, scale.turns)?;
    pipeline.turns(scale.turns)?;
    // Many short runs in turn, so that a disturbance of the disk meets both sides.
    let turns = scale.turns / 4;
    for _ in 0..scale.runs * 4 {
        let cpu = cpu_seconds(&server);
        rates.push(turn_rate(&server, turns)?);
        cpus.push((cpu_seconds(&server) - cpu) / turns as f64);
        bare.push(turns as f64 / pipeline.turns(turns)?);
        quiets.push(turn_rate(&quiet, turns)?);
    }
    let (measured, cpu, quiet, bare) = (median(rates), mean(&cpus), median(quiets), median(bare));
    let line = |name: &str, measured: f64| Line {
        name: format!("empty turns, one group, plain client{name}"),
        greenroom: rate(measured),
        limit: rate(bare),
        ratio: ratio(measured, bare),
        ..Line::default()
    };
    Ok(vec![
        Line {
            greenroom: format!("{} ({} processor time each)", rate(measured), us(cpu)),
            published: "23/s",
            target: "≥ 0.55 of the bare pipe with two commits",
            holds: Some(measured / bare >= 0.55),
            ..line("", measured)
        },
        line(", GREENROOM_LOG=warn", quiet),
    ])
}

fn turn_rate(server: &Server, turns: u64) -> Result<f64> {
    let mut client = connect(server)?;
    client.turn(GROUP, "empty")?;
    let request = http::turn(GROUP, "empty", 60);
    let start = Instant::now();
    for _ in 0..turns {
        client.exchange(&request)?;
    }
    Ok(turns as f64 / start.elapsed().as_secs_f64())
}

/// 64 groups, a client for each; beside 64 bare pipes with grouped commits.
pub fn many_groups(scale: &Scale) -> Result<Vec<Line>> {
    let server = start(setup())?;
    let quiet = start(setup().environment("GREENROOM_LOG", "warn"))?;
    let turns = scale.turns / 5;
    let all = |server: &Server, turns: u64| {
        let clients = (0..GROUPS).map(|group| vec![http::turn(&format!("g{group}"), "empty", 60)]);
        crowd::send(server.address(), clients.collect(), turns)
    };
    let mut crowd = bare::Crowd::start(GROUPS)?;
    // All start with a write-ahead log that was filled once.
    all(&server, turns / 2)?;
    all(&quiet, turns / 2)?;
    crowd.turns(turns / 2)?;
    let count = (GROUPS as u64 * turns) as f64;
    let runs = repeat(scale, || {
        let cpu = cpu_seconds(&server);
        let (took, latencies) = all(&server, turns)?;
        let cpu = (cpu_seconds(&server) - cpu) / count;
        let (quiet, _) = all(&quiet, turns)?;
        let bare = count / crowd.turns(turns)?;
        let of = |share| quantile(&latencies, share);
        let (measured, quiet) = (count / took.as_secs_f64(), count / quiet.as_secs_f64());
        Ok([measured, bare, quiet, of(0.5), of(0.99), cpu])
    })?;
    let figure = |index: usize| median(runs.iter().map(|run| run[index]).collect());
    let (measured, bare) = (figure(0), figure(1));
    let line = |name: &str, measured: f64| Line {
        name: format!("empty turns, {GROUPS} groups{name}"),
        greenroom: rate(measured),
        limit: rate(bare),
        ratio: ratio(measured, bare),
        ..Line::default()
    };
    Ok(vec![
        Line {
            greenroom: format!("{} ({} processor time each)", rate(measured), us(figure(5))),
            published: "12–16k/s",
            target: "≥ 10k/s",
            holds: Some(measured >= 1e4),
            ..line("", measured)
        },
        Line {
            name: format!("empty turns, {GROUPS} groups: latency, median · p99"),
            greenroom: format!("{} · {}", ms(figure(3)), ms(figure(4))),
            published: "p99 7–10 ms",
            target: "p99 ≤ 12 ms",
            holds: Some(figure(4) <= 0.012),
            ..Line::default()
        },
        line(", GREENROOM_LOG=warn", figure(2)),
    ])
}
