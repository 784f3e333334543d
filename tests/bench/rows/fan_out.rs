//! One agent streams, 32 subscribers read.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

use crate::{
    Result, Scale,
    rows::GROUP,
    server::{connect, cpu_seconds, setup, start},
    subscriber::Subscriber,
    table::{Line, median, rate, ratio, us},
};

const SUBSCRIBERS: usize = 32;
const CHUNK_BYTES: usize = 256 << 10;

/// Streams 200-byte frames to 32 subscribers, beside 32 sockets that carry the same bytes.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let count = scale.frames / 4;
    let server = start(setup())?;
    let mut client = connect(&server)?;
    let mut last = client.turn(GROUP, "empty")?["seq_last"].as_u64().unwrap_or_default();
    let mut subscribers = (0..SUBSCRIBERS)
        .map(|_| Subscriber::open(server.address(), GROUP, 0))
        .collect::<Result<Vec<_>>>()?;
    let delivered = (count * SUBSCRIBERS) as f64;
    let (mut rates, mut cpus, mut bare) = (vec![], vec![], vec![]);
    for _ in 0..scale.runs {
        for subscriber in &mut subscribers {
            subscriber.read_to(last)?;
            subscriber.bytes = 0;
        }
        let (cpu, start) = (cpu_seconds(&server), Instant::now());
        last = thread::scope(|scope| -> Result<u64> {
            let readers: Vec<_> = subscribers
                .iter_mut()
                .map(|reader| scope.spawn(move || reader.read_to(last + count as u64)))
                .collect();
            let task = client.turn(GROUP, &format!("stream {count} 200"))?;
            for reader in readers {
                let end = reader.join().map_err(|_| "a reader panicked")??;
                rates.push(delivered / (end - start).as_secs_f64());
            }
            Ok(task["seq_last"].as_u64().unwrap_or_default())
        })?;
        // The last rates are those of each reader; the slowest reader counts.
        let measured = rates.split_off(rates.len() - SUBSCRIBERS);
        rates.push(measured.into_iter().fold(f64::INFINITY, f64::min));
        cpus.push((cpu_seconds(&server) - cpu) / delivered);
        let bytes: usize = subscribers.iter().map(|subscriber| subscriber.bytes).sum();
        bare.push(delivered / carry(bytes / SUBSCRIBERS)?);
    }
    let (measured, cpu, bare) = (median(rates), median(cpus), median(bare));
    Ok(vec![
        Line {
            name: format!("{SUBSCRIBERS} subscribers, delivered frames, beside bare sockets"),
            greenroom: rate(measured),
            limit: rate(bare),
            ratio: ratio(measured, bare),
            published: "1.12–1.18M/s",
            target: "≥ 1.7M/s",
            holds: Some(measured >= 1.7e6),
        },
        Line {
            name: format!("{SUBSCRIBERS} subscribers: processor time for each delivered frame"),
            greenroom: us(cpu),
            published: "1.2 µs",
            target: "≤ 0.6 µs",
            holds: Some(cpu <= 0.6e-6),
            ..Line::default()
        },
    ])
}

/// Returns the seconds to carry `bytes` prepared bytes to each of 32 readers.
fn carry(bytes: usize) -> Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let mut readers = Vec::new();
        let mut sockets = Vec::new();
        for _ in 0..SUBSCRIBERS {
            let mut stream = TcpStream::connect(address)?;
            sockets.push(listener.accept()?.0);
            readers.push(scope.spawn(move || {
                let mut buffer = vec![0; CHUNK_BYTES];
                while matches!(stream.read(&mut buffer), Ok(read) if read > 0) {}
                Instant::now()
            }));
        }
        let start = Instant::now();
        let chunk = vec![b'x'; CHUNK_BYTES];
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(CHUNK_BYTES);
            for socket in &mut sockets {
                socket.write_all(&chunk[..piece])?;
            }
            left -= piece;
        }
        drop(sockets);
        let mut end = start;
        for reader in readers {
            end = end.max(reader.join().map_err(|_| "a reader panicked")?);
        }
        Ok((end - start).as_secs_f64())
    })
}
