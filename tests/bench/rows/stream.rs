//! One agent streams, one subscriber reads; every frame is durable before it is published.

use std::{thread, time::Instant};

use crate::{
    Result, Scale, bare,
    bare::Layout,
    http::Connection,
    rows::GROUP,
    server::{connect, cpu_seconds, setup, start},
    subscriber::Subscriber,
    table::{Line, median, rate, ratio, us},
};

/// Streams frames of `bytes` bytes, beside a bare pipeline in both layouts.
pub fn run(scale: &Scale, bytes: usize) -> Result<Vec<Line>> {
    let count = if bytes > 1000 { scale.frames / 4 } else { scale.frames };
    let server = start(setup())?;
    let mut client = connect(&server)?;
    let warm = client.turn(GROUP, "empty")?["seq_last"].as_u64().unwrap_or_default();
    let mut subscriber = Subscriber::open(server.address(), GROUP, 0)?;
    subscriber.read_to(warm)?;
    let mut bare = bare::Pipeline::start()?;
    // Both sides start with a write-ahead log that was filled once.
    streamed(&mut client, &mut subscriber, count, bytes)?;
    bare.stream(count, bytes, Layout::Packed)?;
    let (mut rates, mut cpus, mut rows, mut packed) = (vec![], vec![], vec![], vec![]);
    for _ in 0..scale.runs {
        let cpu = cpu_seconds(&server);
        let took = streamed(&mut client, &mut subscriber, count, bytes)?;
        rates.push(count as f64 / took);
        cpus.push((cpu_seconds(&server) - cpu) / count as f64);
        for (layout, rates) in [(Layout::Rows, &mut rows), (Layout::Packed, &mut packed)] {
            rates.push(count as f64 / bare.stream(count, bytes, layout)?);
        }
    }
    let (measured, cpu, rows, packed) = (median(rates), median(cpus), median(rows), median(packed));
    let line = |limit: f64, layout: &str| Line {
        name: format!("stream {bytes} B, 1 subscriber, beside the bare pipeline, {layout}"),
        greenroom: rate(measured),
        limit: rate(limit),
        ratio: ratio(measured, limit),
        ..Line::default()
    };
    let by_row = line(rows, "a row for each frame");
    let by_block = line(packed, "packed");
    if bytes > 1000 {
        let published = "81k–94k/s";
        let target = "≥ 0.60 of the bare pipeline in the same layout (packed)";
        let holds = Some(measured / packed >= 0.6);
        return Ok(vec![by_row, Line { published, target, holds, ..by_block }]);
    }
    let cpu = Line {
        name: format!("stream {bytes} B: processor time of the server for each frame"),
        greenroom: us(cpu),
        published: "8.2 µs",
        target: "≤ 4 µs",
        holds: Some(cpu <= 4e-6),
        ..Line::default()
    };
    let published = "159k–175k/s";
    let (target, holds) = ("≥ 0.60 of the bare pipeline", Some(measured / rows >= 0.6));
    Ok(vec![Line { published, target, holds, ..by_row }, by_block, cpu])
}

/// Returns the seconds from the prompt until the subscriber has read the last of `count` frames.
fn streamed(
    client: &mut Connection,
    subscriber: &mut Subscriber,
    count: usize,
    bytes: usize,
) -> Result<f64> {
    let last = subscriber.seq + count as u64;
    thread::scope(|scope| {
        let start = Instant::now();
        let reader = scope.spawn(|| subscriber.read_to(last).map(|end| (end, subscriber)));
        let task = client.turn(GROUP, &format!("stream {count} {bytes}"))?;
        let (end, subscriber) = reader.join().map_err(|_| "the reader panicked")??;
        subscriber.read_to(task["seq_last"].as_u64().unwrap_or_default())?;
        Ok((end - start).as_secs_f64())
    })
}
