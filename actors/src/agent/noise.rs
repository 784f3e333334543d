//! How many lines that are no message an agent may write before it counts as broken (F13).

use std::time::Duration;

use crate::awake::{self, Awake};

/// Lines in a row that begin as messages do, and are broken: no JSON, or with members of a message.
const BROKEN_MAX: u32 = 10;
/// The bytes of other lines, such as log lines and stack traces, that an agent may write at once.
/// As many again are allowed in each [`REFILL`]; a message allows all of them again.
const OTHER_BYTES_MAX: u64 = 4 << 20;
const REFILL: Duration = Duration::from_secs(60);
/// What a line counts besides its bytes: each one is stored as a frame.
const LINE_BYTES: u64 = 64;

/// The lines of one run that are no message, since its last message.
#[derive(Debug)]
pub struct Noise {
    broken: u32,
    other_bytes: u64,
    /// When `other_bytes` was counted down last.
    counted_at: Awake,
}

impl Noise {
    /// Begins with no such line.
    pub fn new() -> Self {
        Self { broken: 0, other_bytes: 0, counted_at: awake::now() }
    }

    /// The agent wrote a message.
    pub fn on_message(&mut self) {
        (self.broken, self.other_bytes) = (0, 0);
    }

    /// Counts a line that is no message, of which `bytes` are stored; `is_broken` says that it may
    /// have been meant as one. Returns why the agent counts as broken, if it does by now.
    pub fn on_rejected(&mut self, bytes: usize, is_broken: bool) -> Option<String> {
        self.count(bytes, is_broken, awake::now())
    }

    fn count(&mut self, bytes: usize, is_broken: bool, now: Awake) -> Option<String> {
        if is_broken {
            self.broken += 1;
            let why = || format!("the agent wrote {BROKEN_MAX} lines in a row that are no message");
            return (self.broken >= BROKEN_MAX).then(why);
        }
        let passed_ms = u64::try_from(now.since(self.counted_at).as_millis()).unwrap_or(u64::MAX);
        let refilled = passed_ms.saturating_mul(OTHER_BYTES_MAX) / REFILL.as_millis() as u64;
        // Whole milliseconds are counted once: a part of one stays for the next line.
        self.counted_at = self.counted_at + Duration::from_millis(passed_ms);
        self.other_bytes = self.other_bytes.saturating_sub(refilled) + LINE_BYTES + bytes as u64;
        (self.other_bytes > OTHER_BYTES_MAX).then(|| {
            let (mebibytes, seconds) = (OTHER_BYTES_MAX >> 20, REFILL.as_secs());
            format!(
                "the agent wrote more than {mebibytes} MiB in {seconds} s to stdout that is no \
                 message, and no message between"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = (1 << 10) - LINE_BYTES as usize;

    /// F13: a stack trace ends no run, ten broken messages in a row do, wherever they stand.
    #[test]
    fn broken_messages_are_counted_by_themselves() {
        let mut noise = Noise::new();
        let at = noise.counted_at;
        for _ in 0..2 {
            for _ in 1..BROKEN_MAX {
                assert_eq!(noise.count(1, true, at), None);
                assert_eq!((0..100).find_map(|_| noise.count(80, false, at)), None);
            }
            noise.on_message();
        }
        let why = (0..BROKEN_MAX).find_map(|_| noise.count(1, true, at));
        assert!(why.is_some_and(|why| why.contains("10 lines in a row")));
    }

    /// F13, I11: other lines have a budget that time or a message renews.
    #[test]
    fn other_lines_have_a_budget_of_bytes_and_time() {
        let mut noise = Noise::new();
        let begun = noise.counted_at;
        let mut written = |kibibytes: usize, after_s: u64| {
            let now = begun + Duration::from_secs(after_s);
            (0..kibibytes).find_map(|_| noise.count(KIB, false, now))
        };
        assert_eq!(written(4096, 0), None);
        assert_eq!(written(2048, 30), None, "half of it is renewed by then");
        assert!(written(1, 30).is_some_and(|why| why.contains("4 MiB in 60 s")));
        assert_eq!(written(4095, 1000), None, "no more than all of it is renewed");
        assert!(written(2, 1000).is_some());
        noise.on_message();
        assert_eq!((0..4096).find_map(|_| noise.count(KIB, false, begun)), None);
        let blank = OTHER_BYTES_MAX / LINE_BYTES;
        noise.on_message();
        assert_eq!((0..blank).find_map(|_| noise.count(0, false, begun)), None);
        assert!(noise.count(0, false, begun).is_some(), "a flood of short lines is bounded");
    }
}
