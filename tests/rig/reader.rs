//! Readers of events: those that follow a group over every restart, and those that are slow or
//! dead (F28, F29).

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{history::Seen, random::Random, stage::Stage};

/// How long a read may wait before the reader checks whether the run is over.
const LOOK: Duration = Duration::from_millis(200);

/// The time between two attempts to reach a server that is down.
const PAUSE: Duration = Duration::from_millis(10);

/// Follows a group from its first frame, over every restart, until the run is over.
pub fn follow(stage: &Stage, group: &str) {
    let mut cursor = 0;
    while !stage.is_over() {
        if let Some(address) = stage.address() {
            // A broken stream is resumed after the last complete frame.
            drop(stream(stage, address, group, &mut cursor));
        }
        thread::sleep(PAUSE);
    }
}

fn stream(stage: &Stage, address: SocketAddr, group: &str, cursor: &mut u64) -> io::Result<()> {
    let life = stage.life();
    let mut reader = BufReader::new(open(address, group, *cursor)?);
    let mut line = Vec::new();
    let mut id = None;
    let mut is_ok = false;
    loop {
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock && !stage.is_over() => continue,
            Err(err) => return Err(err),
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let text = text.trim_end_matches(['\r', '\n']);
        is_ok |= text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200");
        if let Some(number) = text.strip_prefix("id: ") {
            id = number.parse().ok();
        } else if let (Some(data), Some(seq), true) = (text.strip_prefix("data: "), id, is_ok) {
            let (group, text) = (group.to_owned(), data.to_owned());
            let seen = Seen { life, at: stage.now(), group, seq, text };
            stage.record().seen.push(seen);
            *cursor = seq;
            id = None;
        }
        line.clear();
    }
}

/// In HTTP/1.0, so that the body is everything until the end, without chunks.
fn open(address: SocketAddr, group: &str, cursor: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, LOOK)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut request = format!("GET /v1/groups/{group}/events HTTP/1.0\r\nHost: {address}\r\n");
    request.push_str(&format!("Last-Event-ID: {cursor}\r\n\r\n"));
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// Starts readers of which one half reads a little and the other half nothing; they last as long as
/// their life of the server.
pub fn loiter(stage: &Stage, random: &mut Random, count: u64) {
    let life = stage.life();
    let Some(address) = stage.address() else { return };
    let open = |_| open(address, &random.pick(&stage.plan.groups).name, 0).ok();
    let mut readers: Vec<TcpStream> = (0..count).filter_map(open).collect();
    let mut piece = [0; 256];
    while stage.life() == life && stage.address().is_some() && !stage.is_over() {
        for (number, reader) in readers.iter_mut().enumerate() {
            if number % 2 == 0 {
                drop(reader.read(&mut piece));
            }
        }
        thread::sleep(PAUSE);
        if random.one_in(40) {
            readers.pop();
        }
    }
}
