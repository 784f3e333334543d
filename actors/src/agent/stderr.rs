//! What an agent writes to stderr: always read, kept in part, never in the way (SEEDS AM-40).
//! What a line may mean is for whoever is told of it.

use std::collections::VecDeque;

use greenroom_core::{GroupId, RunId};

/// Lines kept; older ones are dropped and counted.
const LINES_MAX: usize = 1024;
/// Of a line that is longer, the rest is dropped.
const LINE_BYTES_MAX: usize = 1024;
/// Lines shown when the run has ended.
const TAIL_LINES: usize = 20;

/// The last lines of a run's stderr.
pub struct Stderr {
    group: GroupId,
    run: RunId,
    open: Vec<u8>,
    lines: VecDeque<String>,
    dropped: u64,
}

impl Stderr {
    /// Nothing yet.
    pub fn new(group: GroupId, run: RunId) -> Self {
        Self { group, run, open: Vec::new(), lines: VecDeque::new(), dropped: 0 }
    }

    /// Takes in what was read, and tells `heard` each line that ends in it.
    pub fn take(&mut self, bytes: &[u8], mut heard: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.open.len());
            self.open.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.close(&mut heard);
            }
        }
    }

    /// Ends the last line, if it has no line feed, and tells `heard`.
    pub fn finish(&mut self, mut heard: impl FnMut(&str)) {
        if !self.open.is_empty() {
            self.close(&mut heard);
        }
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(TAIL_LINES);
        self.lines.range(from..).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Counts a line of which nothing could be made in time.
    pub fn drop_one(&mut self) {
        self.dropped += 1;
    }

    /// How many lines nobody kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn close(&mut self, heard: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.open).trim_end().to_owned();
        self.open.clear();
        heard(&line);
        log::debug!(group:% = self.group, run:% = self.run, line; "agent stderr");
        self.lines.push_back(line);
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// SEEDS AM-40: 4,096 unread lines cost no more than 1,024, and none is dropped unsaid.
    #[test]
    fn old_lines_are_dropped_and_counted() {
        let mut stderr = Stderr::new("g".parse().unwrap(), crate::clock::run_id());
        for line in 0..4096 {
            stderr.take(format!("line {line}\n").as_bytes(), |_| {});
        }
        let mut heard = Vec::new();
        stderr.take(&[b'x'; 9000], |line| heard.push(line.to_owned()));
        stderr.take(b"end\nlast", |line| heard.push(line.to_owned()));
        stderr.finish(|line| heard.push(line.to_owned()));
        assert_eq!(heard, ["x".repeat(LINE_BYTES_MAX), "last".to_owned()]);
        assert_eq!(stderr.lines.len(), LINES_MAX);
        assert_eq!(stderr.dropped(), 4098 - LINES_MAX as u64);
        assert!(stderr.tail().ends_with("x\nlast") && stderr.tail().starts_with("line 4078\n"));
    }
}
