//! An agent's stderr: always read, stored in part, never a reason to wait (AM-40).
//!
//! The callers interpret the lines, and get them as they are; what is kept and logged of them has
//! no secret of the configuration (C16).

use std::collections::VecDeque;

use greenroom_core::{GroupId, RunId};

use crate::{acp, secrets};

/// The number of lines kept; older ones are dropped and counted.
const LINES_MAX: usize = 1024;
/// The longest line; the rest of a longer one is dropped.
const LINE_BYTES_MAX: usize = 1024;
/// The number of lines reported with the run's end.
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
    /// Creates an empty buffer.
    pub fn new(group: GroupId, run: RunId) -> Self {
        Self { group, run, open: Vec::new(), lines: VecDeque::new(), dropped: 0 }
    }

    /// Adds bytes, and calls `on_line` for each line that they complete.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.open.len());
            self.open.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.close(&mut on_line);
            }
        }
    }

    /// Completes the last line, if it has no line feed, and calls `on_line` for it.
    pub fn finish(&mut self, mut on_line: impl FnMut(&str)) {
        if !self.open.is_empty() {
            self.close(&mut on_line);
        }
    }

    /// Returns the last lines, without secrets: they go into errors and logs, and a program may
    /// name its key (C16).
    pub fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(TAIL_LINES);
        let lines = self.lines.range(from..).map(|line| acp::redacted(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Counts a line that could not be reported in time as dropped.
    pub fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Returns the number of dropped lines.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn close(&mut self, on_line: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.open).trim_end().to_owned();
        self.open.clear();
        on_line(&line);
        let line = secrets::redacted_cut(&line).into_owned();
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

    /// AM-40: 4,096 unread lines cost no more than 1,024, and every dropped line is counted.
    #[test]
    fn old_lines_are_dropped_and_counted() {
        let mut stderr = Stderr::new("g".parse().unwrap(), crate::clock::run_id());
        for line in 0..4096 {
            stderr.push(format!("line {line}\n").as_bytes(), |_| {});
        }
        let mut lines = Vec::new();
        stderr.push(&[b'x'; 9000], |line| lines.push(line.to_owned()));
        stderr.push(b"end\nlast", |line| lines.push(line.to_owned()));
        stderr.finish(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["x".repeat(LINE_BYTES_MAX), "last".to_owned()]);
        assert_eq!(stderr.lines.len(), LINES_MAX);
        assert_eq!(stderr.dropped(), 4098 - LINES_MAX as u64);
        assert!(stderr.tail().ends_with("x\nlast") && stderr.tail().starts_with("line 4078\n"));
    }

    /// C16: a line that was cut within a secret does not keep its beginning.
    #[test]
    fn a_cut_line_keeps_no_part_of_a_secret() {
        secrets::set([("IT_KEY".to_owned(), "cut-in-the-middle".to_owned())]);
        let mut stderr = Stderr::new("g".parse().unwrap(), crate::clock::run_id());
        let padding = "x".repeat(LINE_BYTES_MAX - 10);
        stderr.push(format!("{padding}cut-in-the-middle\n").as_bytes(), |_| {});
        assert_eq!(stderr.lines[0], format!("{padding}[redacted:IT_KEY]"));
    }

    /// I16: the reported lines are the last ones, also if all are as long as they may be.
    #[test]
    fn the_tail_of_long_lines_has_the_last_one() {
        let mut stderr = Stderr::new("g".parse().unwrap(), crate::clock::run_id());
        let line = format!("{}\n", "x".repeat(LINE_BYTES_MAX));
        stderr.push(line.repeat(TAIL_LINES).as_bytes(), |_| {});
        stderr.push(b"token: a1b2c3d4e5\nthe reason\n", |_| {});
        let tail = stderr.tail();
        assert!(tail.ends_with("x\ntoken: [redacted]\nthe reason"), "{tail}");
        assert_eq!(tail.lines().count(), TAIL_LINES);
    }
}
