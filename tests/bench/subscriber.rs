//! A fast reader of a group's events that does not limit the measurement: it reads large pieces and
//! looks only for the last frame's number in each, as numbers have no gap.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use greenroom_test_support::sse;
use memchr::memmem::{Finder, FinderRev};

use crate::Result;

const PIECE_BYTES: usize = 256 << 10;
/// The most bytes at the end of a piece of an `id:` line that continues in the next.
const KEPT_BYTES: usize = 32;
const ID: &[u8] = b"\nid: ";

/// A connection with a group's events.
pub struct Subscriber {
    stream: TcpStream,
    buffer: Vec<u8>,
    kept: usize,
    last_id: FinderRev<'static>,
    seam: Finder<'static>,
    synced: bool,
    /// The last frame that was read.
    pub seq: u64,
    /// All bytes that were read.
    pub bytes: usize,
}

impl Subscriber {
    /// Attaches to a group, to its frames after `after`.
    pub fn open(address: SocketAddr, group: &str, after: u64) -> Result<Self> {
        let path = format!("/v1/groups/{group}/events?after={after}");
        Ok(Self {
            stream: sse::connect(address, &path, &[])?,
            buffer: vec![0; KEPT_BYTES + PIECE_BYTES],
            kept: 0,
            last_id: FinderRev::new(ID),
            seam: Finder::new("greenroom/synced"),
            synced: false,
            seq: 0,
            bytes: 0,
        })
    }

    /// Reads until frame `seq`. Returns the time.
    pub fn read_to(&mut self, seq: u64) -> Result<Instant> {
        while self.seq < seq {
            self.read()?;
        }
        Ok(Instant::now())
    }

    /// Reads until the replay is over and live frames begin.
    pub fn read_to_seam(&mut self) -> Result<()> {
        while !self.synced {
            self.read()?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let read = self.stream.read(&mut self.buffer[self.kept..])?;
        if read == 0 {
            return Err("the server ended the stream".into());
        }
        self.bytes += read;
        let filled = self.kept + read;
        let piece = &self.buffer[..filled];
        if let Some(at) = self.last_id.rfind(piece) {
            let digits = piece[at + ID.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let seq = digits.fold(0, |seq, digit| seq * 10 + u64::from(digit - b'0'));
            self.seq = self.seq.max(seq);
        }
        self.synced = self.synced || self.seam.find(piece).is_some();
        self.kept = filled.min(KEPT_BYTES);
        self.buffer.copy_within(filled - self.kept..filled, 0);
        Ok(())
    }
}
