//! Readers of events: those that follow a group over every restart, and those that are slow or
//! dead (F28, F29).

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use greenroom_test_support::{
    random::Random,
    sse::{self, Stream},
};

use crate::{history::Seen, stage::Stage};

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
    let mut events = Stream::new(open(address, group, *cursor)?);
    loop {
        match events.read() {
            Ok(Some(event)) => {
                if let Some(seq) = event.id {
                    let (group, text) = (group.to_owned(), event.data);
                    let seen = Seen { life, at: stage.now(), group, seq, text };
                    stage.record().seen.push(seen);
                    *cursor = seq;
                }
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock && !stage.is_over() => {}
            ended => return ended.map(drop),
        }
    }
}

fn open(address: SocketAddr, group: &str, cursor: u64) -> io::Result<TcpStream> {
    let path = format!("/v1/groups/{group}/events");
    let stream = sse::connect(address, &path, &[("Last-Event-ID", &cursor.to_string())])?;
    stream.set_read_timeout(Some(LOOK))?;
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
