//! Detects a write-ahead log that was damaged after it was written.
//!
//! SQLite reads its log up to the first frame with a wrong checksum, without an error: that is how
//! it ignores a commit that a power failure interrupted. If a byte changes in an earlier commit,
//! SQLite also ignores all commits after it, though they were synced and acknowledged, and the next
//! commit overwrites them. The two cases differ: each commit is synced before the next is written,
//! so after a torn commit there is at most its own end, and never the end of another one.
//! The format is that of <https://sqlite.org/fileformat2.html#walformat>.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// The last bit says in which byte order checksums are computed.
const MAGIC: u32 = 0x377f_0682;

/// Returns where the log at `path` was damaged, in bytes from its beginning; `None` if it is whole,
/// torn only in its last commit, or does not exist. No process may write to it meanwhile.
///
/// # Errors
///
/// The file cannot be read.
pub fn damage(path: &Path) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut log = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_BYTES];
    if !fill(&mut log, &mut header)? {
        return Ok(None);
    }
    let magic = big_endian_u32(&header, 0);
    let page_bytes = big_endian_u32(&header, 8) as usize;
    if magic & !1 != MAGIC || !page_bytes.is_power_of_two() || !(512..=65_536).contains(&page_bytes)
    {
        return Ok(None);
    }
    let mut sum = Checksum { big_endian: magic & 1 == 1, of: (0, 0) };
    sum.add(&header[..24]);
    let salts = &header[16..24];
    let mut whole = sum.is(&header[24..]);
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let (mut at, mut broken_at, mut ends) = (HEADER_BYTES as u64, 0, 0);
    while fill(&mut log, &mut frame)? {
        let is_current = frame[8..16] == *salts;
        if whole {
            sum.add(&frame[..8]);
            sum.add(&frame[FRAME_HEADER_BYTES..]);
            whole = is_current && sum.is(&frame[16..FRAME_HEADER_BYTES]);
        }
        if !whole {
            if broken_at == 0 {
                broken_at = at;
            }
            let ends_commit = big_endian_u32(&frame, 4) != 0;
            ends += u32::from(is_current && ends_commit);
        }
        at += frame.len() as u64;
    }
    Ok((ends > 1).then_some(broken_at))
}

/// Fills `bytes`; returns false if less is left.
fn fill(log: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(bytes) {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

fn big_endian_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// SQLite's checksum, over everything from the log's beginning.
struct Checksum {
    big_endian: bool,
    of: (u32, u32),
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let read = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let (mut one, mut two) = self.of;
        for pair in bytes.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *pair;
            one = one.wrapping_add(read([a, b, c, d])).wrapping_add(two);
            two = two.wrapping_add(read([e, f, g, h])).wrapping_add(one);
        }
        self.of = (one, two);
    }

    fn is(&self, stored: &[u8]) -> bool {
        (big_endian_u32(stored, 0), big_endian_u32(stored, 4)) == self.of
    }
}
